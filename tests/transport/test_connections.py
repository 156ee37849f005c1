"""Which connections carry a request: none that was idle while the machine slept, and never too many."""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from canary import CANARY_KEY
from clients import client_of, until
from faults import Connection, FaultServer, good_body, http, task_id_of
from keeping import Keeping, id_for, look, transport_to

from kie4o import AsyncKieClient, ImageTask, KieError, SubmissionUnknownError, clock
from kie4o.transport import connections
from kie4o.transport.connections import most_connections, no_file_left, when_free

AT_ONCE = 8


class Clocks:
    """The wall clock and the uptime, which can be ahead of the loop's time."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.ahead = {"unix_time": 0.0, "uptime": 0.0}
        for name in self.ahead:
            patch.setattr(clock, name, self._reading(name, getattr(clock, name)))

    def _reading(self, name: str, original: Callable[[], float]) -> Callable[[], float]:
        return lambda: original() + self.ahead[name]


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


class Forgetful(FaultServer):
    """Keeps connections open, but after `forget` it swallows what arrives on those that it had by then.

    Only the first `after` answers wait for each other, so that each has a connection of its own.
    """

    def __init__(self, *, after: int = AT_ONCE, tls: bool = False) -> None:
        super().__init__(self._answers, tls=tls)
        self.forgotten = 0
        self._ids = itertools.count(1)
        self.held = asyncio.Event()
        self.held.set()
        self._first = asyncio.Barrier(after)

    def forget(self) -> None:
        self.forgotten = self.connections

    async def _answers(self, connection: Connection) -> None:
        number = self.connections
        if number <= self._first.parties:
            await connection.request()
            await self._first.wait()
            await self._answer(connection)
        while True:
            await connection.request()
            if number <= self.forgotten:
                await asyncio.sleep(3600)
            await self._answer(connection)
            if b"connection: close\r\n" in self.heads[-1].lower():
                return

    async def _answer(self, connection: Connection) -> None:
        body = good_body(next(self._ids))
        await self.held.wait()
        await connection.send(http(body).replace(b"Connection: close\r\n", b""))


def client_at(server: FaultServer, **more: Any) -> AsyncKieClient:
    return client_of(server.url, **{"api_key": CANARY_KEY, "timeout": 0.5} | more)


async def submits(client: AsyncKieClient) -> list[type]:
    """What several submits at once came to."""
    outcomes = await asyncio.gather(
        *(client.submit(str(number)) for number in range(AT_ONCE)), return_exceptions=True
    )
    return [type(outcome) for outcome in outcomes]


# -- after the machine slept -------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["unix_time", "uptime"])
async def test_no_submit_uses_a_connection_from_before_a_sleep(clocks: Clocks, which: str) -> None:
    """The loop's time stood still meanwhile, so that the connections are young by it. The server has
    forgotten them."""
    async with Forgetful() as server, client_at(server) as client:
        assert await submits(client) == [ImageTask] * AT_ONCE
        server.forget()
        clocks.ahead[which] += 60
        assert await submits(client) == [ImageTask] * AT_ONCE
        assert server.forgotten == AT_ONCE
        assert server.connections > AT_ONCE
        await until(lambda: server.open <= server.connections - AT_ONCE)  # the old ones are closed


async def test_control_without_a_sleep_young_connections_are_used(clocks: Clocks) -> None:
    """Control: a server that forgets connections while nothing shows it leaves every submit unknown."""
    async with Forgetful() as server, client_at(server) as client:
        await submits(client)
        server.forget()
        clocks.ahead["unix_time"] += 0.5  # a clock that is being adjusted
        assert await submits(client) == [SubmissionUnknownError] * AT_ONCE
        assert server.connections == AT_ONCE


async def test_no_poll_uses_a_connection_from_before_a_sleep(clocks: Clocks) -> None:
    """It would take the whole timeout of a poll to find that out."""
    async with Forgetful(after=1) as server, client_at(server, timeout=200) as client:
        for number in (1, 2):
            await asyncio.wait_for(client.details(task_id_of(number)), 5)
            server.forget()
            clocks.ahead["unix_time"] += 60
        assert server.connections == 2


async def test_a_wall_clock_that_is_set_costs_one_connection_at_most(clocks: Clocks) -> None:
    """Forward or back, however often it is used then."""
    async with Forgetful(after=1) as server, client_at(server) as client:
        for jump, expected in ((0, 1), (3600, 2), (0, 2), (-7200, 3), (0, 3), (3600, 4), (0, 4)):
            clocks.ahead["unix_time"] += jump
            await client.submit("x")
            assert server.connections == expected


async def test_a_running_post_goes_on_through_a_sleep(clocks: Clocks) -> None:
    """It has its answer, which proves its connection: the next submit uses it."""
    async with Forgetful(after=1) as server, client_at(server, timeout=200) as client:
        await client.submit("x")
        server.held.clear()
        running = asyncio.create_task(client.submit("a"))
        await until(lambda: server.posts == 2)
        clocks.ahead["uptime"] += 60
        another = asyncio.create_task(client.submit("b"))
        await until(lambda: server.posts == 3)
        assert (server.connections, server.open) == (2, 2)
        server.held.set()
        assert (await running).id != (await another).id
        await client.submit("c")
        assert (server.connections, server.open) == (2, 2)


# -- the connector of a session that was passed ------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True])
async def test_over_a_lent_connector_every_post_has_a_new_connection(tls: bool) -> None:
    """Its idle connections may be of any age. Polls use them."""
    connector = aiohttp.TCPConnector(ssl=False) if tls else None
    async with Forgetful(after=1, tls=tls) as server, aiohttp.ClientSession(connector=connector) as lent:
        async with client_at(server, session=lent) as client:
            for number in (1, 2, 3):
                await client.details(task_id_of(number))
            assert server.connections == 1
            server.forget()
            for number in range(3):
                assert await client.submit("x")
                assert server.connections == 2 + number
    posts = [head for head in server.heads if head.startswith(b"POST")]
    assert all(b"connection: close\r\n" in head.lower() for head in posts)


async def test_no_post_uses_the_connection_of_the_one_before() -> None:
    """Nor if the server closes it late, although it was asked to close it."""

    class Slow(Forgetful):
        async def _answer(self, connection: Connection) -> None:
            await super()._answer(connection)
            await connection.request()  # it would answer one more
            await super()._answer(connection)

    async with Slow(after=1) as server, aiohttp.ClientSession() as lent:
        async with client_at(server, session=lent) as client:
            for number in range(1, 4):
                assert await client.submit("x")
                assert server.connections == number


async def test_a_closed_transport_connects_to_nothing() -> None:
    """Its sessions would be opened anew."""
    async with Keeping() as server:
        transport = transport_to(server.url)
        await transport.aclose()
        with pytest.raises(KieError, match="the client is closed"):
            await look(transport)
        assert server.connections == 0


async def test_a_session_of_another_loop_is_refused() -> None:
    """Its connections belong to that loop; a client that is opened again needs a session of its own loop."""
    async with aiohttp.ClientSession() as lent, Forgetful(after=1) as server:

        async def elsewhere() -> None:
            async with client_of(server.url, session=lent) as client:
                with pytest.raises(KieError, match="belongs to another event loop"):
                    await client.submit("x")

        await asyncio.to_thread(asyncio.run, elsewhere())
        assert server.connections == 0


# -- how many ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "in_flight", "expected"),
    [
        (64, 100, 8),
        (256, 100, 32),
        (1024, 100, 100),
        (1024, 1000, 128),
        (1024, 1, 20),
        (-1, 300, 300),
        (4, 1, 1),
    ],
)
def test_connections_take_a_share_of_the_files(
    monkeypatch: pytest.MonkeyPatch, files: int, in_flight: int, expected: int
) -> None:
    """-1 stands for no limit."""

    class Resource:
        RLIMIT_NOFILE = 7
        RLIM_INFINITY = -1

        def getrlimit(self, which: int) -> tuple[int, int]:
            assert which == self.RLIMIT_NOFILE
            return files, -1

    monkeypatch.setattr(connections, "resource", Resource())
    assert most_connections(in_flight) == expected


def test_where_the_limit_is_not_known_tasks_in_flight_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no such limit for sockets, and no module `resource`."""
    monkeypatch.setattr(connections, "resource", None)
    assert most_connections(5000) == 5000


async def test_only_a_lack_of_files_is_waited_for() -> None:
    """Any other failure is raised at once, and the lack of files when the time is up."""
    calls = 0

    def failing(number: int, times: int) -> Callable[[], Any]:
        async def call() -> str:
            nonlocal calls
            calls += 1
            if calls <= times:
                raise OSError(number, "no")
            return "done"

        return call

    assert await when_free(failing(24, 2)) == "done"
    assert calls == 3
    calls = 0
    with pytest.raises(OSError, match="no"):
        await when_free(failing(13, 2))
    assert calls == 1
    calls = 0
    with pytest.raises(OSError, match="no"):
        await when_free(failing(23, 99), seconds=0.15)
    assert calls == 2


@pytest.mark.parametrize("paid", [False, True])
async def test_a_call_without_a_file_for_a_connection_waits_for_one(paid: bool) -> None:
    """The answer is that of the call, as soon as a file is closed. A submit is not sent before."""

    class Full(aiohttp.TCPConnector):
        left = 2

        async def connect(self, *words: Any, **more: Any) -> Any:
            self.left -= 1
            if self.left >= 0:
                raise OSError(errno.EMFILE, "Too many open files")
            return await super().connect(*words, **more)

    async with Keeping() as server, aiohttp.ClientSession(connector=Full()) as session:
        async with client_of(server.url, session=session) as client:
            if paid:
                assert (await client.submit("x")).id == id_for("x")
            else:
                assert await client.credits() == 100
        assert (server.connections, len(server.heads)) == (1, 1)


@pytest.mark.parametrize(("full", "waits"), [(True, True), (False, False)])
def test_a_host_that_was_not_found_for_want_of_a_file(
    monkeypatch: pytest.MonkeyPatch, full: bool, waits: bool
) -> None:
    """The resolver needs a file too, and without one it says that there is no such host."""
    key = ConnectionKey("kie.example", 443, True, True, None, None, None)
    unknown = aiohttp.ClientConnectorDNSError(key, OSError("Name or service not known"))

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    if full:
        monkeypatch.setattr(connections.socket, "socket", refuse)
    assert no_file_left(unknown) is waits
