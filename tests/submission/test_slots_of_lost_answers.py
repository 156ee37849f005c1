"""The account's limit when answers are lost: a request that may have arrived counts as a new task."""

from __future__ import annotations

import asyncio

import pytest
from clients import MakeStore, client_of, until
from clocks import run_scaled
from faults import Connection, FaultServer, Script, hang_up, reset_at_once, silent
from held import HeldServer, never_connects

import kie4o
from kie4o import RateLimit, SubmissionUnknownError

SPEED = 5  # loop seconds per second
LIMIT, PER = 2, 1.0
SUBMITS = 8


class Counting(FaultServer):
    """Notes when each request has arrived, and goes on with the script."""

    def __init__(self, script: Script) -> None:
        super().__init__(self._note)
        self._script = script
        self.times: list[float] = []

    async def _note(self, connection: Connection) -> None:
        await connection.request()
        self.times.append(asyncio.get_running_loop().time())
        await self._script(connection)

    def most_in_window(self, per: float) -> int:
        """The most requests that arrived in any window of this length."""
        return max(sum(start <= time < start + per for time in self.times) for start in self.times)


async def reset(connection: Connection) -> None:
    connection.reset()


def sends(data: bytes) -> Script:
    async def script(connection: Connection) -> None:
        await connection.send(data)

    return script


LOST: dict[str, Script] = {
    "closed": hang_up,
    "reset": reset,
    "cut": sends(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
    "bad gateway": sends(b"HTTP/1.1 502 Bad\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
    "never": silent,
}


@pytest.mark.parametrize("how", LOST)
def test_requests_whose_answers_are_lost_stay_inside_the_limit(how: str, api_key: str) -> None:
    """Each keeps its slot for a window: Kie may have started its task."""

    async def run() -> None:
        limit = RateLimit(LIMIT, per=PER)
        async with Counting(LOST[how]) as kie:
            async with client_of(kie.url, api_key=api_key, rate_limit=limit, timeout=0.5) as client:
                calls = [client.submit(f"{number}") for number in range(SUBMITS)]
                errors = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 60)
            assert all(isinstance(error, SubmissionUnknownError) for error in errors)
            assert len(kie.times) == SUBMITS
            assert kie.most_in_window(0.98 * PER) <= LIMIT

    run_scaled(run(), SPEED)


def test_control_requests_that_were_never_sent_do_not_count(api_key: str) -> None:
    """Control: connections that fail before anything is sent do not use up the limit of the window."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with FaultServer(reset_at_once) as server:
            url = server.url.replace("http:", "https:")
            limit = RateLimit(1, per=1000.0)
            async with client_of(url, api_key=api_key, rate_limit=limit, timeout=100) as client:
                start = loop.time()
                for _ in range(3):
                    with pytest.raises(kie4o.APIConnectionError):
                        await asyncio.wait_for(client.submit("x"), 100)
                assert loop.time() - start < 100

    run_scaled(run(), 40)


def test_a_submit_that_is_called_off_while_it_connects_gives_its_slot_back(api_key: str) -> None:
    """The next call need not wait for a window."""

    async def run() -> None:
        with never_connects() as url:
            limit = RateLimit(1, per=1000.0)
            async with client_of(url, api_key=api_key, rate_limit=limit, timeout=1000) as client:
                for _ in range(3):
                    call = asyncio.create_task(client.submit("x"))
                    await until(lambda: client._runtime.limiter.open == 1)
                    call.cancel()
                    await until(lambda: client._runtime.submissions.live == 0)
                    assert client._runtime.limiter.open == 0

    run_scaled(run(), 40)


def test_a_submit_that_was_cut_short_counts_after_a_restart(store: MakeStore, api_key: str) -> None:
    """Closing gave up on its answer just now: the next client on the store leaves its slot taken."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        limit = RateLimit(1, per=20.0)
        async with HeldServer() as kie:
            client = client_of(kie.url, store(), api_key=api_key, rate_limit=limit)
            call = asyncio.create_task(client.submit("x", key="a"))
            await until(lambda: kie.posts == 1)
            await asyncio.wait_for(client.aclose(), 100)  # after 30 s
            await asyncio.wait([call], timeout=1)
            assert isinstance(call.exception(), SubmissionUnknownError)
            closed = loop.time()
            async with client_of(kie.url, store(), api_key=api_key, rate_limit=limit) as later:
                call = asyncio.create_task(later.submit("y"))
                await until(lambda: kie.posts == 2)
                arrived = loop.time() - closed
                kie.accept("y")
                await asyncio.wait_for(call, 10)
        assert kie.prompts == ["x", "y"]
        assert arrived > 5.0

    run_scaled(run(), 40)
