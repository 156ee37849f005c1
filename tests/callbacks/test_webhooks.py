"""The receivers: what they answer, that they keep callbacks safely, and that they withstand floods."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import pytest
from aiohttp import web
from canary import CANARY_KEY
from clients import QUICK, state_of, until
from clocks import VirtualLoop, run_virtual

import kie4o
from kie4o import AsyncKieClient, sign_callback
from kie4o.callbacks.receiving import CallbackReceiver
from kie4o.emulator import Emulator
from kie4o.models import Callback
from kie4o.stores.store import EntryState
from kie4o.webhooks import asgi_app, routes

KEY, OLD_KEY = "the new webhook key", "the old webhook key"
PUBLIC = "https://me.example/kie/{ref}"


def body_of(task_id: str, code: int = 200, urls: tuple[str, ...] = ()) -> bytes:
    info = {"result_urls": list(urls)} if code == 200 else None
    return json.dumps({"code": code, "msg": "m", "data": {"taskId": task_id, "info": info}}).encode()


def signed(task_id: str, key: str = KEY, at: float | None = None) -> dict[str, str]:
    return sign_callback(task_id, key=key, timestamp=time.time() if at is None else at)


class Setting:
    """An emulator, a client, one submitted task, and both receivers in front of the client."""

    def __init__(self, *, receivers: dict[str, Any] | None = None, **client) -> None:
        self.receivers = receivers or {}
        self.arguments = {"webhook_key": [KEY, OLD_KEY], "callback_url": PUBLIC} | client

    async def __aenter__(self) -> Setting:
        self.kie = await Emulator(duration=0.0, limit=1000).__aenter__()
        self.kie.plan("x", callback="never")
        self.client = AsyncKieClient(CANARY_KEY, base_url=self.kie.url, poll=QUICK, **self.arguments)
        self.task = await self.client.submit("x", key="k")
        url = self.kie.tasks[self.task.id].request["callBackUrl"]
        self.ref = url.rpartition("/")[2]
        app = web.Application()
        unsigned = not self.arguments["webhook_key"]
        app.add_routes(routes(self.client, "/kie/{ref}", allow_unsigned=unsigned, **self.receivers))
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        self.asgi = asgi_app(self.client, "/kie/{ref}", allow_unsigned=unsigned, **self.receivers)
        self.session = aiohttp.ClientSession()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()
        await self.runner.cleanup()
        await self.client.aclose()
        await self.kie.aclose()

    async def by_aiohttp(
        self, body: bytes, headers: dict[str, str], *, ref: str | None = None, method="POST"
    ) -> int:
        headers = {"Content-Type": "application/json"} | headers
        url = f"{self.url}/kie/{ref or self.ref}"
        async with self.session.request(method, url, data=body, headers=headers) as response:
            assert await response.read() in (b"", b"405: Method Not Allowed")
            return response.status

    async def by_asgi(
        self, body: bytes, headers: dict[str, str], *, ref: str | None = None, method="POST"
    ) -> int:
        headers = {"Content-Type": "application/json"} | headers
        pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)] or [b""]
        messages = [
            {"type": "http.request", "body": piece, "more_body": number < len(pieces) - 1}
            for number, piece in enumerate(pieces)
        ]
        sent = []

        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": f"/prefix/kie/{ref or self.ref}",
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()],
        }
        await self.asgi(scope, receive, send)
        return sent[0]["status"]


HOWS = ["by_aiohttp", "by_asgi"]


@pytest.mark.parametrize("how", HOWS)
async def test_answers(how: str) -> None:
    """Each kind of request has its status, and only the true callback causes a look."""
    async with Setting() as here:
        post, good = getattr(here, how), body_of(here.task.id)
        ours = signed(here.task.id)
        cases = {
            "unreadable": (await post(b"{", ours), 400),
            "no id": (await post(b"{}", ours), 400),
            "unsigned": (await post(good, {}), 401),
            "forged": (await post(good, signed(here.task.id, key="wrong")), 401),
            "too old": (await post(good, signed(here.task.id, at=time.time() - 3700)), 401),
            "too new": (await post(good, signed(here.task.id, at=time.time() + 3700)), 401),
            "unknown ref": (await post(good, ours, ref="x" * 32), 404),
            "another task": (await post(body_of("0" * 32), signed("0" * 32)), 404),
            "too long": (await post(b" " * (64 * 1024 + 1), ours), 413),
            "encoded": (await post(good, ours | {"Content-Encoding": "gzip"}), 415),
            "not JSON": (await post(good, ours | {"Content-Type": "text/plain"}), 415),
            "GET": (await post(b"", {}, method="GET"), 405),
        }
        assert {name: got for name, (got, _) in cases.items()} == {
            name: wanted for name, (_, wanted) in cases.items()
        }
        assert here.kie.looks(here.task.id) == []
        assert await post(good.ljust(64 * 1024), ours) == 200
        assert await post(good, signed(here.task.id, key=OLD_KEY)) == 200  # rotation
        result = await here.task
        assert result.urls
        [entry] = [await here.client._runtime.store.find(key="k")]
        assert entry.state is EntryState.SUCCEEDED


@pytest.mark.parametrize("how", HOWS)
async def test_a_full_queue_answers_503(how: str, monkeypatch) -> None:
    """Above the limit of waiting callbacks the answer is 503, so Kie sends them again."""
    monkeypatch.setattr("kie4o.callbacks.receiving.PENDING", 2)
    async with Setting() as here:
        receiver = here.client.receiver(pending=0)
        headers = [*signed(here.task.id).items(), ("content-type", "application/json")]

        async def body():
            yield body_of(here.task.id)

        assert await receiver.receive(headers, body(), here.ref) == 503


@pytest.mark.parametrize("length", ["65537", "9" * 18])
async def test_a_body_that_is_announced_too_long_is_not_awaited(length: str) -> None:
    """The answer comes before any of the body."""
    async with Setting() as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(here.url.rpartition(":")[2]))
        head = f"POST /kie/{here.ref} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {length}\r\n\r\n".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        writer.close()


@pytest.mark.parametrize(("seconds", "status"), [(4.9, 401), (5.1, 408)])
def test_a_slow_body_is_cut_off(seconds: float, status: int) -> None:
    """A body that trickles in is given up after 5 s; until then it is read, and found to be unsigned."""

    async def trickle() -> AsyncIterator[bytes]:
        for byte in body_of("0" * 32):
            yield bytes([byte])
        await asyncio.sleep(seconds)
        yield b" "

    async def answered() -> int:
        receiver = AsyncKieClient(CANARY_KEY, webhook_key=KEY).receiver()
        return await receiver.receive([("content-type", "application/json")], trickle())

    assert run_virtual(answered()) == status


async def test_a_request_is_cancelled_while_its_body_arrives() -> None:
    """As web servers do when the sender has gone: it ends so, and is not answered."""
    receiver = AsyncKieClient(CANARY_KEY, webhook_key=KEY).receiver()
    reading = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        reading.set()
        yield await asyncio.Future()

    request = asyncio.create_task(receiver.receive([("content-type", "application/json")], body()))
    await reading.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request


async def test_a_sender_that_hangs_up_raises_nothing() -> None:
    """If it hangs up in the middle of the body, nothing is kept and no traceback is logged."""
    async with Setting() as here:

        async def broken():
            yield b"{"
            raise ConnectionResetError("Connection lost")

        headers = [("content-type", "application/json")]
        assert await here.client.receiver().receive(headers, broken(), here.ref) == 400


async def test_without_a_key_unsigned_must_be_allowed() -> None:
    """Without a webhook key a receiver needs `allow_unsigned=True`; then only the ref decides."""
    client = AsyncKieClient(CANARY_KEY)
    for make in (routes, asgi_app, AsyncKieClient.receiver):
        with pytest.raises(kie4o.ConfigurationError, match="allow_unsigned"):
            make(client)
    async with Setting(webhook_key=None) as here:
        assert await here.by_aiohttp(body_of(here.task.id), {}, ref="guess") == 404
        assert here.kie.looks(here.task.id) == []
        assert await here.by_aiohttp(body_of(here.task.id), {}) == 200


async def test_lifespan_and_other_scopes() -> None:
    """Alone under an ASGI server the application starts and stops; websockets are ignored."""
    app = asgi_app(AsyncKieClient(CANARY_KEY), allow_unsigned=True)
    messages, sent = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}], []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message["type"])

    await app({"type": "lifespan"}, receive, send)
    await app({"type": "websocket", "path": "/"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_repeated_callbacks_cost_nothing() -> None:
    """The same signed callback is answered 200 without another look."""
    async with Setting() as here:
        headers = signed(here.task.id)
        for _ in range(5):
            assert await here.by_aiohttp(body_of(here.task.id), headers) == 200
        await here.task
        assert len(here.kie.looks(here.task.id)) <= 2


async def test_repetitions_are_remembered_within_bounds(monkeypatch) -> None:
    """What is remembered of signed callbacks is bounded; a forgotten one is confirmed like a new one."""
    monkeypatch.setattr("kie4o.callbacks.receiving._SEEN", 2)
    async with Setting() as here:
        receiver = here.client.receiver()
        for age in [0, 1, 2, 3, 4, 5, 0, 1]:
            headers = [("content-type", "application/json")]
            headers += signed(here.task.id, at=time.time() - 10 * age).items()
            assert await receiver.receive(headers, body_of(here.task.id), here.ref) == 200
            assert len(receiver._seen) <= 3
        assert (await here.task).urls


class Accepting:
    """A delivery that counts what it is given."""

    times = 0

    async def accept(self, callback: Callback, *, limit: int) -> bool:
        self.times += 1
        return True

    async def opened(self) -> Accepting:
        return self


def test_a_repetition_is_remembered_for_as_long_as_its_signature_is_valid() -> None:
    """For twice the tolerance in use, since a time stamp may be as far in the future; then it is forgotten,
    before anything else is."""

    def parse(body: bytes, headers: object, ref: str | None) -> Callback:
        return attrs.evolve(kie4o.parse_callback(body, ref=ref), verified=True)

    async def accepted(tolerance: float, times: list[float], tasks: str = "ttt") -> int:
        delivery, loop = Accepting(), asyncio.get_running_loop()
        receiver, start = CallbackReceiver(parse, delivery.opened, tolerance=tolerance), loop.time()
        for at, task in zip(times, tasks, strict=False):
            await asyncio.sleep(start + at - loop.time())
            assert await receiver.receive([("content-type", "application/json")], body_of(task * 32)) == 200
        assert len(receiver._seen) == 1
        return delivery.times

    for tolerance in (1.0, 300.0, 3600.0, 86400.0):
        assert run_virtual(accepted(tolerance, [0, tolerance, 1.99 * tolerance])) == 1
        assert run_virtual(accepted(tolerance, [0, 2.01 * tolerance])) == 2
        assert run_virtual(accepted(tolerance, [0, tolerance, 2.01 * tolerance], "tuu")) == 2


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    ("of_client", "of_receiver", "age", "status"),
    [
        (None, None, 3500, 200),
        (None, None, -3500, 200),
        (None, None, 3700, 401),
        (60, None, 50, 200),
        (60, None, 70, 401),
        (60, None, -70, 401),
        (60, 7200, 7000, 200),
        (7200, 60, 70, 401),
    ],
)
async def test_the_tolerance(
    how: str, of_client: float | None, of_receiver: float | None, age: float, status: int
) -> None:
    """An hour, or the client's, or the receiver's own; `client.parse_callback` has the client's."""
    own = {} if of_client is None else {"tolerance": of_client}
    async with Setting(receivers={"tolerance": of_receiver}, **own) as here:
        headers = signed(here.task.id, at=time.time() - age)
        assert await getattr(here, how)(body_of(here.task.id), headers) == status
        if abs(age) < (of_client or 3600):
            assert here.client.parse_callback(body_of(here.task.id), headers).verified
        else:
            with pytest.raises(kie4o.InvalidSignatureError, match="time stamp"):
                here.client.parse_callback(body_of(here.task.id), headers)


@pytest.mark.parametrize("wrong", [0, -1, "60", True, float("nan"), float("inf")])
def test_a_tolerance_is_a_duration(wrong: Any) -> None:
    """As for every other duration, the error names it; None is the client's own for a receiver only."""
    client = AsyncKieClient(CANARY_KEY, webhook_key=KEY)
    for make in (
        lambda: AsyncKieClient(CANARY_KEY, tolerance=wrong),
        lambda: client.receiver(tolerance=wrong),
        lambda: routes(client, tolerance=wrong),
        lambda: asgi_app(client, tolerance=wrong),
    ):
        with pytest.raises(kie4o.ConfigurationError, match=r"tolerance=.*positive number of seconds"):
            make()
    with pytest.raises(kie4o.ConfigurationError, match="tolerance"):
        AsyncKieClient(CANARY_KEY, tolerance=None)


def test_a_receiver_tolerates_another_loop() -> None:
    """Its client may be closed and opened again, and a loop may count time from another origin: what the
    first one has remembered is neither taken for fresh nor kept for ever."""

    def parse(body: bytes, headers: object, ref: str | None) -> Callback:
        return attrs.evolve(kie4o.parse_callback(body, ref=ref), verified=True)

    delivery = Accepting()
    receiver = CallbackReceiver(parse, delivery.opened)

    async def receive() -> int:
        return await receiver.receive([("content-type", "application/json")], body_of("t" * 32), "r")

    async def earlier() -> int:
        asyncio.get_running_loop()._clock.now = 1e9
        return await receive()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(earlier()) == 200
    assert [run_virtual(receive()) for _ in range(2)] == [200, 200]
    assert delivery.times == 3
    assert max(receiver._seen.values()) < 1e6


@pytest.mark.parametrize("how", HOWS)
async def test_a_store_that_fails_answers_503(how: str, monkeypatch) -> None:
    """Nothing escapes to the web server, and the callback is not taken for a repetition when Kie sends it
    again."""
    async with Setting() as here:
        post, ours = getattr(here, how), signed(here.task.id)
        with monkeypatch.context() as patch:

            async def broken(**by: str) -> None:
                raise kie4o.StoreError("disk I/O error")

            patch.setattr(here.client._runtime.store, "find", broken)
            assert await post(body_of(here.task.id), ours) == 503
        assert here.kie.looks(here.task.id) == []
        assert await post(body_of(here.task.id), ours) == 200
        await until(lambda: here.client._runtime.delivery.pending == 0)
        assert await state_of(here.client._runtime.store, "k") is EntryState.SUCCEEDED


async def test_paths() -> None:
    """`routes` has a default path, and an ASGI application accepts every path unless it is given one."""
    async with Setting() as here:
        [route] = routes(here.client)
        assert (route.method, route.path) == ("POST", "/kie/callback")
        assert await here.by_asgi(body_of(here.task.id), signed(here.task.id), ref="a/b") == 404
        assert here.kie.looks(here.task.id) == []
        here.asgi = asgi_app(here.client)
        assert await here.by_asgi(body_of(here.task.id), signed(here.task.id), ref="a/b") == 200


async def test_an_asgi_client_that_disconnects_has_sent_no_callback() -> None:
    """The server reports it in the middle of the body: what has arrived is not a callback."""
    async with Setting() as here:
        body, sent = body_of(here.task.id), []
        messages = [
            {"type": "http.request", "body": body[:20], "more_body": True},
            {"type": "http.disconnect"},
        ]
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": f"/kie/{here.ref}", "headers": headers}

        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message)

        await here.asgi(scope, receive, send)
        assert sent[0]["status"] == 400
        assert here.kie.looks(here.task.id) == []


@pytest.mark.once
async def test_a_true_callback_gets_through_a_flood() -> None:
    """500 connections are slow, and eight senders post forged callbacks without end.

    While a true callback waits, each sender is answered at most twice, and it is answered within a second
    (99th percentiles; once each and 38 to 58 ms on two cores). Memory grows by less than 32 MB.
    """
    async with Setting() as here:
        port = int(here.url.rpartition(":")[2])
        head = (
            f"POST /kie/{here.ref} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            "Content-Length: 60000\r\n\r\n"
        ).encode()
        slow = []
        for _ in range(500):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head + b" ")
            slow.append((reader, writer))
        before = rss()
        stop = asyncio.Event()
        forged = 0

        async def flood() -> None:
            nonlocal forged
            bad = signed(here.task.id, key="wrong")
            async with aiohttp.ClientSession() as session:
                while not stop.is_set():
                    url = f"{here.url}/kie/{here.ref}"
                    headers = {"Content-Type": "application/json"} | bad
                    async with session.post(url, data=body_of(here.task.id), headers=headers) as response:
                        assert response.status == 401
                    forged += 1

        floods = [asyncio.create_task(flood()) for _ in range(8)]
        ahead, times = [], []
        for _ in range(200):
            before_it, start = forged, time.perf_counter()
            assert await here.by_aiohttp(body_of(here.task.id), signed(here.task.id)) == 200
            times.append(time.perf_counter() - start)
            ahead.append(forged - before_it)
        stop.set()
        await asyncio.gather(*floods)
        grown = rss() - before
        for _, writer in slow:
            writer.close()
        most, slowest = sorted(ahead)[197], sorted(times)[197]
        print(f"p99 {most} ahead, {slowest * 1e3:.1f} ms, {forged} forged, grown {grown / 1e6:.1f} MB")
        assert forged > 200
        assert most <= 2 * len(floods)
        assert slowest < 1.0
        assert grown < 32e6


def rss() -> int:
    """The resident memory of this process in bytes; 0 on Windows, which has no /proc."""
    if sys.platform == "win32":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_a_refused_callback_is_logged_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    """At INFO, since anyone can post: the status and why, so that a wrong webhook key can be found."""
    caplog.set_level("INFO", "kie4o")
    async with Setting() as here:
        headers = [("content-type", "application/json")]
        assert await here.client.receiver().receive(headers, body_of(here.task.id), here.ref) == 401
    assert any("answered with 401: the callback is not signed" in line for line in caplog.messages)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("code", [200, 400, 451, 500, 501, 505, 404, 402, 429, 0, None])
async def test_a_trusted_callback_ends_a_task_by_a_code_of_kies_page_only(how: str, code: int | None) -> None:
    """Any other code is a reason to poll: the task, which has succeeded, is not taken for failed. That the
    four codes are believed, against the record, is the control."""
    async with Setting(trust_callbacks=True) as here:
        body = body_of(here.task.id, code, urls=("https://files.example/1.png",)).replace(b"null", b"{}")
        assert await getattr(here, how)(body, signed(here.task.id)) == 200
        await until(lambda: here.client._runtime.delivery.pending == 0)
        looks = here.kie.looks(here.task.id)
        if code == 200:
            assert (await here.task).urls == ("https://files.example/1.png",)
            assert looks == []
        elif code in (400, 451, 500):
            with pytest.raises(kie4o.TaskFailedError) as caught:
                await here.task
            assert caught.value.error_code == code
            assert looks == []
        else:
            result = await here.task
            assert here.task.id in result.urls[0]
            assert len(looks) == 1
