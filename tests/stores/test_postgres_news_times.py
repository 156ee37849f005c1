"""When a process listens again, and when it asks instead: in virtual time, with a server in memory.

What holds over a real server is in test_postgres_news.py.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import pytest
from clocks import VirtualLoop

from kie4o.errors import StoreError
from kie4o.events import StoreWarned
from kie4o.stores.postgres.address import Address, address_of
from kie4o.stores.postgres.news import News

CALLER = ContextVar("CALLER", default="")


class Server:
    """As much of `Database` as `News` uses. Notices when it is connected to, probed and left."""

    def __init__(self) -> None:
        self._began = asyncio.get_running_loop().time()
        self.address: Address = address_of("postgresql://kie4o@127.0.0.1/memory?schema=shop")
        self.warned: list[str] = []
        self.connected: list[float] = []
        self.probed: list[float] = []
        self.callers: set[str] = set()
        self.statements: list[str] = []
        self.payloads: list[str] = []
        self.away = False
        self.deaf = False
        self.connections: list[Connection] = []

    def now(self) -> float:
        return asyncio.get_running_loop().time() - self._began

    def reporter(self, event: StoreWarned) -> None:
        self.warned.append(f"{event.what} {event.detail}")

    async def connect(self, conninfo: str) -> Connection:
        assert conninfo == self.address.listen
        self.connected.append(self.now())
        self.callers.add(CALLER.get())
        if self.away:
            raise StoreError("away")
        self.connections.append(Connection(self))
        return self.connections[-1]

    async def rows(self, statement: str, payload: str) -> None:
        assert statement == "SELECT kie4o.tell(%s)"
        self.probed.append(self.now())
        self.payloads.append(payload)
        if not self.deaf:
            self.tell(payload)

    def tell(self, payload: str | None) -> None:
        """None ends the connections."""
        for connection in self.connections:
            connection.queue.put_nowait(payload)


class Connection:
    def __init__(self, server: Server) -> None:
        self.queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._server = server
        self._in_use = False

    async def execute(self, statement: str) -> None:
        self._server.statements.append(statement)

    async def notifies(self) -> AsyncIterator[SimpleNamespace]:
        self._in_use = True
        try:
            while (payload := await self.queue.get()) is not None:
                yield SimpleNamespace(payload=payload)
        finally:
            self._in_use = False

    async def close(self) -> None:
        assert not self._in_use
        self._server.connections.remove(self)


def listening(scenario: Callable[[Server, News], Coroutine[Any, Any, None]], *, deaf: bool = False) -> None:
    async def run() -> None:
        server = Server()
        server.deaf = deaf
        database: Any = server
        news = News(database)
        assert not news.works
        news.start()
        CALLER.set("a caller")
        await scenario(server, news)
        before = asyncio.all_tasks()
        await news.aclose()
        assert not news.works
        assert (server.connections, news._waiting, news._readers) == ([], {}, set())
        assert {task.get_name() for task in before - asyncio.all_tasks()} >= {"kie4o news"}
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(run())


def test_a_process_listens_to_its_schema_and_hears_itself_with_each_renewal() -> None:
    async def scenario(server: Server, news: News) -> None:
        await asyncio.sleep(25.0)
        assert news.works
        assert (server.connected, server.probed) == ([0.0], [0.0, 10.0, 20.0])
        assert server.statements == ['LISTEN """shop"".news"']
        assert len(set(server.payloads)) == 3
        assert server.callers == {""}
        assert server.warned == []

    listening(scenario)


def test_it_connects_again_after_longer_and_longer_pauses() -> None:
    """Which begin anew when something had arrived."""

    async def scenario(server: Server, news: News) -> None:
        for _ in range(2):
            await asyncio.sleep(1.0)
            assert news.works
            server.away = True
            server.tell(None)
            began = server.now()
            await asyncio.sleep(0.01)
            assert not news.works
            await asyncio.sleep(6.0)
            times = [began, *(at for at in server.connected if at > began)]
            pauses = [after - before for before, after in itertools.pairwise(times)]
            assert pauses[:7] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
            server.away = False

    listening(scenario)


def test_one_that_does_not_hear_itself_asks_each_second() -> None:
    """It says so once, and listens again when its lease is renewed."""

    async def scenario(server: Server, news: News) -> None:
        checked = []
        with news.expected("x") as future:
            future.add_done_callback(lambda _: checked.append(server.now()))
            await asyncio.sleep(0.5)
            assert checked == [0.0]
        for second in (1.0, 2.0, 3.0):
            with news.expected("x") as future:
                await future
                assert server.now() == second
        assert not news.works
        assert server.warned == ["deaf 127.0.0.1/memory"]
        await asyncio.sleep(25.0 - server.now())
        assert server.connected == pytest.approx([0.0, 12.05, 24.15])
        server.deaf = False
        await asyncio.sleep(15.0)
        assert news.works
        assert len(server.warned) == 1

    listening(scenario, deaf=True)


def test_one_that_does_not_hear_itself_any_more_notices() -> None:
    async def scenario(server: Server, news: News) -> None:
        await asyncio.sleep(5.0)
        server.deaf = True
        await asyncio.sleep(6.9)
        assert (news.works, server.warned) == (True, [])
        await asyncio.sleep(0.2)
        assert (news.works, server.warned) == (False, ["deaf 127.0.0.1/memory"])

    listening(scenario)


def test_a_connection_that_is_lost_is_not_deaf() -> None:
    async def scenario(server: Server, news: News) -> None:
        await asyncio.sleep(1.0)
        server.tell(None)
        await asyncio.sleep(0.5)
        assert server.connected == pytest.approx([0.0, 1.05])
        assert server.warned == []

    listening(scenario, deaf=True)


def test_one_that_hears_asks_for_nothing() -> None:
    """Beyond what it may have missed when it began."""

    async def scenario(server: Server, news: News) -> None:
        await asyncio.sleep(0.5)
        with news.expected("x") as future:
            await asyncio.sleep(30.0)
            server.tell("y")
            server.tell("probe of another process")
            await asyncio.sleep(0.1)
            assert not future.done()
            server.tell("x")
            await asyncio.sleep(0)
            await future
        assert server.now() == pytest.approx(30.6)

    listening(scenario)


@pytest.mark.parametrize(("number", "last"), [(1000, "999"), (1001, None)])
def test_a_reader_that_falls_behind_is_told_to_check_everything(number: int, last: str | None) -> None:
    """What is told twice is read once."""

    async def scenario(server: Server, news: News) -> None:
        await asyncio.sleep(0.5)
        heard: list[str | None] = []

        async def read() -> None:
            async for what in news.read():
                heard.append(what)

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        for payload in ("a", "b", "a"):
            server.tell(payload)
        await asyncio.sleep(0.1)
        assert heard == ["a", "b"]
        for what in ("c", None):
            news._tell(what)
        await asyncio.sleep(0.1)
        assert heard.pop() is None
        assert heard == ["a", "b"]  # the check finds the other
        for each in range(number):
            server.tell(str(each))
        await asyncio.sleep(0.1)
        assert heard[2:] == [None] if last is None else (heard[-1], len(heard)) == (last, number + 2)
        reading.cancel()
        await asyncio.wait([reading])

    listening(scenario)
