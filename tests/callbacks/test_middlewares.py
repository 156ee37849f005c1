"""The receivers behind middlewares that have read the body: a log of requests, an audit, error reports."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from canary import CANARY_KEY
from clients import QUICK
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.routing import Mount

from kie4o import AsyncKieClient, sign_callback
from kie4o.callbacks import MAX_BODY
from kie4o.emulator import Emulator
from kie4o.webhooks import asgi_app, routes

KEY = "a webhook key"
Read = Callable[[web.Request], Awaitable[object]]


@asynccontextmanager
async def submitted() -> AsyncIterator[tuple[AsyncKieClient, str, str]]:
    """A client with one task; its id and its ref."""
    async with (
        Emulator(duration=0.0) as kie,
        AsyncKieClient(
            CANARY_KEY,
            base_url=kie.url,
            poll=QUICK,
            webhook_key=KEY,
            callback_url="https://me.example/kie/{ref}",
        ) as client,
    ):
        kie.plan("x", callback="never")
        task = await client.submit("x")
        yield client, task.id, kie.tasks[task.id].request["callBackUrl"].rpartition("/")[2]


def callback_of(task_id: str, padding: int = 0) -> tuple[bytes, dict[str, str]]:
    """What Kie posts: a body and headers."""
    body = json.dumps({"code": 200, "msg": " " * padding, "data": {"taskId": task_id}}).encode()
    headers = {"Content-Type": "application/json"} | sign_callback(task_id, key=KEY, timestamp=time.time())
    return body, headers


# -- aiohttp -----------------------------------------------------------------------------------------


async def read_and_fail(request: web.Request) -> None:
    with suppress(ValueError):
        await request.json(loads=int)


async def read_some(request: web.Request) -> None:
    await request.content.read(5)


async def read_past_aiohttp(request: web.Request) -> None:
    await request.content.read()


READS: dict[str, Read] = {
    "nothing": lambda request: asyncio.sleep(0),
    "read": lambda request: request.read(),
    "read twice": lambda request: asyncio.gather(request.read(), request.read()),
    "text": lambda request: request.text(),
    "json": lambda request: request.json(),
    "json in vain": read_and_fail,
    "post": lambda request: request.post(),
}


async def answered_by_aiohttp(read: Read, padding: int = 0, *, chunked: bool = False) -> int:
    """The status of a callback behind a middleware that reads the body like this."""

    @web.middleware
    async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
        await read(request)
        return await handler(request)

    async with submitted() as (client, task_id, ref), aiohttp.ClientSession() as session:
        app = web.Application(middlewares=[middleware], client_max_size=10 * MAX_BODY)
        app.add_routes(routes(client, "/kie/{ref}"))
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        _, port = runner.addresses[0]
        body, headers = callback_of(task_id, padding)

        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(body), 1000):
                yield body[at : at + 1000]

        data = pieces() if chunked else body
        url = f"http://127.0.0.1:{port}/kie/{ref}"
        try:
            async with session.post(url, data=data, headers=headers) as response:
                return response.status
        finally:
            await runner.cleanup()


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
@pytest.mark.parametrize("how", READS)
async def test_a_body_that_an_aiohttp_middleware_has_read(how: str, chunked: bool) -> None:
    """aiohttp keeps what `request.read()` has read, and the receiver takes that."""
    assert await answered_by_aiohttp(READS[how], 5000, chunked=chunked) == 200


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
@pytest.mark.parametrize("how", READS)
async def test_the_size_limit_holds_behind_an_aiohttp_middleware(how: str, chunked: bool) -> None:
    """A body over 64 KiB is refused, whether a middleware has read it or not."""
    assert await answered_by_aiohttp(READS[how], MAX_BODY, chunked=chunked) == 413


@pytest.mark.parametrize(("read", "reason"), [(read_some, "JSON"), (read_past_aiohttp, "empty")])
async def test_a_body_that_was_taken_away(read: Read, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    """The control: read from the stream itself it is gone, and the log says so."""
    caplog.set_level(logging.INFO, "kie4o")
    assert await answered_by_aiohttp(read) == 400
    assert any("answered with 400" in line and reason in line for line in caplog.messages)


# -- ASGI --------------------------------------------------------------------------------------------


class Reading(BaseHTTPMiddleware):
    """Starlette's own kind, of which FastAPI's `@app.middleware("http")` makes one."""

    async def dispatch(self, request: Request, call_next: Any) -> Any:
        body = await request.body()
        assert json.loads(body) == await request.json()
        return await call_next(request)


class Replaying:
    """Reads the body and puts another `receive` in its place."""

    kind: Callable[[bytes], Any] = bytes
    ends = True  # with an empty message of its own

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        messages = [{"type": "http.request", "body": self.kind(body), "more_body": self.ends}]
        messages += [{"type": "http.request"}, {"type": "http.disconnect"}]

        async def replay() -> Any:
            return messages.pop(0)

        await self.app(scope, replay, send)


class ReplayingAtOnce(Replaying):
    ends = False


class ReplayingViews(Replaying):
    kind = memoryview


class ReplayingArrays(Replaying):
    kind = bytearray


class Swallowing(Replaying):
    """The control: reads the body and passes on the `receive` that has nothing more to give."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while scope["type"] == "http" and (await receive())["more_body"]:
            pass
        await self.app(scope, receive, send)


async def answered_by_asgi(middlewares: list[type], padding: int = 0) -> int:
    """The status of a callback to an application of Starlette's with these middlewares."""
    async with submitted() as (client, task_id, ref):
        app = Starlette(
            routes=[Mount("/kie", asgi_app(client, "/{ref}"))],
            middleware=[Middleware(each) for each in middlewares],
        )
        body, headers = callback_of(task_id, padding)
        messages = [
            {"type": "http.request", "body": body[:10], "more_body": True},
            {"type": "http.request", "body": body[10:], "more_body": False},
        ]
        sent: list[Any] = []

        async def receive() -> Any:
            return messages.pop(0) if messages else await asyncio.Future()  # until the sender hangs up

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": f"/kie/{ref}",
            "root_path": "",
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
        await app(scope, receive, send)
        return int(sent[0]["status"])


MIDDLEWARES = [
    *([], [Reading], [Reading, Reading], [Replaying], [ReplayingAtOnce], [ReplayingViews]),
    *([ReplayingArrays], [Replaying, Reading], [Reading, Replaying]),
]


@pytest.mark.parametrize("middlewares", MIDDLEWARES, ids=lambda kinds: "+".join(k.__name__ for k in kinds))
@pytest.mark.parametrize(("padding", "status"), [(5000, 200), (MAX_BODY, 413)])
async def test_a_body_that_an_asgi_middleware_has_read(
    middlewares: list[type], padding: int, status: int
) -> None:
    """It arrives again, and the size limit holds."""
    assert await answered_by_asgi(middlewares, padding) == status


async def test_a_body_that_an_asgi_middleware_has_swallowed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The control: it never arrives, and the log names the usual reason."""
    monkeypatch.setattr("kie4o.callbacks.receiving.BODY_TIMEOUT", 0.05)
    caplog.set_level(logging.INFO, "kie4o")
    assert await answered_by_asgi([Swallowing]) == 408
    assert any("answered with 408: " in line and "middleware" in line for line in caplog.messages)


# -- any framework -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_a_body_in_one_piece(kind: Callable[[bytes], Any]) -> None:
    """Any kind of bytes is taken, up to 64 KiB of them."""
    async with submitted() as (client, task_id, ref):
        body, headers = callback_of(task_id)
        assert await client.receiver().receive(headers.items(), kind(body.ljust(MAX_BODY)), ref) == 200
        assert await client.receiver().receive(headers.items(), kind(b" " * (MAX_BODY + 1)), ref) == 413


async def test_a_sender_that_hangs_up_in_a_framework() -> None:
    """Each framework has an exception of its own for it, as `starlette.requests.ClientDisconnect`."""

    class Disconnect(Exception):
        pass

    async def broken() -> AsyncIterator[bytes]:
        yield b"{"
        raise Disconnect

    async with submitted() as (client, task_id, ref):
        _, headers = callback_of(task_id)
        assert await client.receiver().receive(headers.items(), broken(), ref) == 400
