"""The body of the paid POST: whatever stops it from being written leaves proof that nothing was sent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from canary import CANARY_KEY
from faults import GOOD_BODY, Connection, FaultServer, answer, http, silent, stall, unused_port
from paths import TLS

from kie4o import clock
from kie4o.settings import resolve
from kie4o.transport.paid_body import PaidAttempt, PaidBody
from kie4o.transport.transport import Transport

BODY = b'{"prompt":"x"}'


class Paper:
    """Takes what is written, as aiohttp's writer does; it is its own protocol."""

    def __init__(self, *, should_close: bool = False, connected: bool = True) -> None:
        self.written = b""
        self.protocol = self
        self.should_close = should_close
        self._connected = connected

    def is_connected(self) -> bool:
        return self._connected

    async def write(self, chunk: bytes) -> None:
        self.written += chunk


async def written(attempt: PaidAttempt, paper: Paper) -> bytes:
    writer: Any = paper
    await PaidBody(BODY, attempt).write(writer)
    return paper.written


async def test_the_control_writes_the_body() -> None:
    """Without a reason against it the body is written, and counts as sent."""
    attempt = PaidAttempt(good_until=clock.uptime() + 1)
    assert await written(attempt, Paper()) == BODY
    assert attempt.sent


def test_a_new_attempt_claims_nothing() -> None:
    """What is not recorded has not happened: neither a whole answer nor a time limit, nor a lasting fault."""
    attempt = PaidAttempt()
    assert not any((attempt.sent, attempt.withdrawn, attempt.complete, attempt.timed_out, attempt.permanent))
    assert (attempt.status, attempt.body, attempt.fault) == (None, b"", "")


@pytest.mark.parametrize(
    ("paper", "good_for", "withdrawn", "kind"),
    [
        (Paper(should_close=True), 1.0, False, aiohttp.ClientConnectionResetError),
        (Paper(connected=False), 1.0, False, aiohttp.ClientConnectionResetError),
        (Paper(), -0.001, False, aiohttp.ClientConnectionResetError),
        (Paper(), 1.0, True, asyncio.CancelledError),
    ],
    ids=["a stale answer", "a broken connection", "a late slot", "withdrawn"],
)
async def test_each_reason_alone_stops_the_body(
    paper: Paper, good_for: float, withdrawn: bool, kind: type[BaseException]
) -> None:
    """Nothing is written, and nothing counts as sent."""
    attempt = PaidAttempt(good_until=clock.uptime() + good_for)
    if withdrawn:
        assert attempt.withdraw()
    with pytest.raises(kind):
        await written(attempt, paper)
    assert (paper.written, attempt.sent) == (b"", False)


async def test_what_was_sent_cannot_be_withdrawn() -> None:
    """It may be paid."""
    attempt = PaidAttempt()
    await written(attempt, Paper())
    assert not attempt.withdraw()
    assert not attempt.withdrawn


# -- through the transport ---------------------------------------------------------------------------


def transport_to(url: str, timeout: float = 5.0, **more: Any) -> Transport:
    settings = resolve(api_key=CANARY_KEY, base_url=url, upload_url=None, webhook_key=None, environment={})
    return Transport(settings, timeout=timeout, **more)


async def paid(url: str, timeout: float = 5.0, **more: Any) -> PaidAttempt:
    """One attempt over a transport of its own."""
    attempt, transport = PaidAttempt(**more), transport_to(url, timeout)
    await transport.pay(BODY, attempt)
    await transport.aclose()
    return attempt


async def test_an_attempt_holds_the_answer() -> None:
    """Status, body and the Retry-After; no fault."""
    async with FaultServer(answer(GOOD_BODY, "200 OK", "Retry-After: 7")) as server:
        attempt = await paid(server.url)
        assert (attempt.sent, attempt.status, attempt.body) == (True, 200, GOOD_BODY)
        assert (attempt.fault, attempt.retry_after) == ("", "7")
        assert server.bodies == [BODY]


async def test_a_stale_answer_is_no_answer() -> None:
    """A response that waits in a kept connection is not taken for that to the next attempt, which has another
    connection."""

    async def speaks_out_of_turn(connection: Connection) -> None:
        for _ in range(3):
            await connection.request()
            body = b'{"code":200,"data":{"taskId":"%032d"}}' % connection.server.posts
            await connection.send(kept(body))
            if connection.server.posts == 1:
                await asyncio.sleep(0.02)  # the connection is idle again
                await connection.send(kept(b'{"code":200,"data":{"taskId":"stale"}}'))

    def kept(body: bytes) -> bytes:
        return http(body).replace(b"Connection: close\r\n", b"")

    async with FaultServer(speaks_out_of_turn) as server:
        transport = transport_to(server.url)
        attempts = [PaidAttempt() for _ in range(3)]
        for attempt in attempts:
            await transport.pay(BODY, attempt)
            await asyncio.sleep(0.05)
        await transport.aclose()
        assert all(attempt.sent and not attempt.fault for attempt in attempts)
        assert [attempt.body[-4:] for attempt in attempts] == [b'1"}}', b'2"}}', b'3"}}']
        assert (server.posts, server.connections) == (3, 2)


class Slow:
    """Blocks the loop for a while in each turn, so that what a server does in its thread comes first."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        time.sleep(0.01)
        self._handle = self._loop.call_soon(self._turn)

    def stop(self) -> None:
        self._handle.cancel()


@contextlib.contextmanager
def resetting(go: threading.Event, *, answers: int, tls: bool) -> Iterator[tuple[str, list[bytes]]]:
    """A server in a thread that resets each connection after so many answers, as soon as it may `go`.

    Yields its URL and what it read.
    """
    seen: list[bytes] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                if tls:
                    connection = context.wrap_socket(connection, server_side=True)
                for _ in range(answers):
                    seen.append(connection.recv(65536))
                    connection.sendall(http(GOOD_BODY).replace(b"Connection: close\r\n", b""))
                assert go.wait(5)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=serve, daemon=True)
        server.start()
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listening.getsockname()[1]}", seen
        with contextlib.suppress(OSError):  # of Windows, where closing is enough
            listening.shutdown(socket.SHUT_RDWR)
    server.join(5)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.usefixtures("any_certificate")
async def test_a_reset_that_arrived_before_the_body_leaves_it_unsent(kept: bool, tls: bool) -> None:
    """On a fresh connection and on one that is reused: the loop has not told anyone of the reset yet."""

    go = threading.Event()
    with resetting(go, answers=kept, tls=tls) as (url, seen):
        transport, slow = transport_to(url), Slow()
        for _ in range(5):
            if kept:
                go.clear()
                await transport.pay(BODY, first := PaidAttempt())
                assert first.complete
            go.set()
            time.sleep(0.02)
            await transport.pay(BODY, attempt := PaidAttempt())
            assert (attempt.sent, attempt.withdrawn) == (False, True)
            assert attempt.fault
        slow.stop()
        await transport.aclose()
    assert len(seen) == 5 * kept


async def test_an_attempt_that_ends_unsent_stays_unsent() -> None:
    """Its body cannot be written afterwards: by a task of aiohttp that starts late."""
    attempt = await paid(f"http://127.0.0.1:{unused_port()}")
    assert (attempt.sent, attempt.withdrawn, bool(attempt.fault)) == (False, True, True)
    assert not attempt.permanent
    async with FaultServer(silent) as server:
        transport, attempt = transport_to(server.url), PaidAttempt(good_until=0.0)
        await transport.pay(BODY, attempt)
        assert (attempt.sent, attempt.withdrawn) == (False, True)
        assert attempt.fault
        await transport.aclose()


async def test_a_cancelled_attempt_is_withdrawn() -> None:
    """Unless it was sent; then the answer may be on its way."""
    async with FaultServer(stall) as server:
        transport, attempt = transport_to(server.url), PaidAttempt()
        running = asyncio.create_task(transport.pay(BODY, attempt))
        running.cancel()
        await asyncio.wait([running])
        assert not attempt.withdrawn  # it did not begin
        running = asyncio.create_task(transport.pay(BODY, attempt))
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])
        assert (attempt.sent, attempt.withdrawn) == (False, True)
        await transport.aclose()


async def test_a_time_out_is_told_from_other_faults() -> None:
    """And a failure that would come again is told from one that would not."""
    async with FaultServer(stall) as server:
        attempt = await paid(server.url, timeout=0.1)
        assert (attempt.timed_out, attempt.sent, attempt.withdrawn) == (True, True, False)
        assert not attempt.permanent
    async with FaultServer(answer(), tls=True) as server:
        attempt = await paid(server.url)
        assert (attempt.timed_out, attempt.sent, attempt.permanent) == (False, False, True)
    transport, attempt = transport_to("http://127.0.0.1:1"), PaidAttempt()
    await transport.aclose()
    await transport.pay(BODY, attempt)
    assert (attempt.sent, attempt.permanent) == (False, True)
    assert "the client is closed" in attempt.fault
