"""Receivers for Kie's callbacks: `routes` for aiohttp.web, `asgi_app` for everything that speaks ASGI.

Both are thin; `Receiver` is the common part and knows no framework. It reads a raw body within a
size and a time, answers as soon as the callback is safely kept (Kie waits 15 s and gives up after
three repetitions), and leaves the look that confirms it to a task of the client's. Nothing of the
input is echoed. Answers: 200 kept · 400 unreadable · 401 signature · 404 belongs to nothing here ·
405 · 408 too slow · 413 over 64 KiB · 415 encoded or not JSON · 503 full, or the store fails.

A server of yours still needs what every public server needs: a proxy or a time-out for headers
that never end, and a cap on connections.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from .callbacks.parsing import MAX_BODY, TIMESTAMP_HEADER, TOLERANCE
from .client import AsyncKieClient
from .errors import CallbackError, ConfigurationError, InvalidSignatureError, KieError, MalformedCallbackError

if TYPE_CHECKING:
    from aiohttp import web


BODY_SECONDS = 5.0  # for a whole body of well under one KiB
PENDING = 1000  # callbacks kept and not yet confirmed, before new ones are put off
_SEEN = 10_000  # signed callbacks remembered, so that a repetition costs nothing

Headers = Iterable[tuple[str, str]]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Receiver:
    """From the parts of one HTTP request to the status of its answer.

    Without a webhook key on the client everybody can post; say `allow_unsigned=True` if the ref in
    the callback URL is enough for you. Raises `ConfigurationError`.
    """

    def __init__(
        self, client: AsyncKieClient, *, allow_unsigned: bool = False, pending: int = PENDING
    ) -> None:
        if not client._settings.webhook_key and not allow_unsigned:
            raise ConfigurationError(
                "callbacks would not be verified: set webhook_key (or KIE_WEBHOOK_KEY) to the webhookHmacKey "
                "of kie.ai/settings, or pass allow_unsigned=True"
            )
        self._client = client
        self._pending = pending
        self._seen: OrderedDict[tuple[str, str], float] = OrderedDict()

    async def receive(self, headers: Headers, body: AsyncIterator[bytes], ref: str | None) -> HTTPStatus:
        """`headers` in any case; `body` in pieces, not decoded; `ref` as the URL carried it."""
        named = [(name.lower(), value) for name, value in headers]
        refused = _refused(dict(named))
        if refused is not None:
            return refused
        try:
            async with asyncio.timeout(BODY_SECONDS):
                raw = await _read(body)
        except TimeoutError:
            return HTTPStatus.REQUEST_TIMEOUT
        except ConnectionError:  # the caller has hung up, and hears nothing
            return HTTPStatus.BAD_REQUEST
        if raw is None:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        return await self._take(named, raw, ref)

    async def _take(self, headers: list[tuple[str, str]], raw: bytes, ref: str | None) -> HTTPStatus:
        try:
            callback = self._client.parse_callback(raw, headers, ref=ref)
            sign = (callback.task_id, dict(headers).get(TIMESTAMP_HEADER.lower(), ""))
            if callback.verified and self._repeats(sign):
                return HTTPStatus.OK
            await self._client._ready()
            if not await self._client._delivery.take(callback, most=self._pending):
                return HTTPStatus.SERVICE_UNAVAILABLE
            if callback.verified:
                self._seen[sign] = time.monotonic() + 2 * TOLERANCE
            return HTTPStatus.OK
        except MalformedCallbackError:
            return HTTPStatus.BAD_REQUEST
        except InvalidSignatureError:
            return HTTPStatus.UNAUTHORIZED
        except CallbackError:
            return HTTPStatus.NOT_FOUND
        except KieError:
            return HTTPStatus.SERVICE_UNAVAILABLE

    def _repeats(self, sign: tuple[str, str]) -> bool:
        """Whether a callback with this signature was kept before."""
        now = time.monotonic()
        while self._seen and (len(self._seen) > _SEEN or next(iter(self._seen.values())) < now):
            self._seen.popitem(last=False)
        return sign in self._seen


def routes(
    client: AsyncKieClient, path: str = "/kie/callback", *, allow_unsigned: bool = False
) -> list[web.RouteDef]:
    """For `app.add_routes(...)`. `path` may hold `{ref}`, as `callback_url` may."""
    from aiohttp import web

    receiver = Receiver(client, allow_unsigned=allow_unsigned)

    async def handle(request: web.Request) -> web.Response:
        ref = request.match_info.get("ref") or request.query.get("ref")
        body = request.content.iter_any() if request.can_read_body else _nothing()
        status = await receiver.receive(request.headers.items(), body, ref)
        response = web.Response(status=status)
        if status is not HTTPStatus.OK:
            response.force_close()  # the rest of the body is not worth reading
        return response

    return [web.post(path, handle)]


def asgi_app(
    client: AsyncKieClient, path: str | None = None, *, allow_unsigned: bool = False
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """An ASGI application, alone or mounted. `path` may hold `{ref}`; None takes every path."""
    receiver = Receiver(client, allow_unsigned=allow_unsigned)
    pattern = None if path is None else _pattern(path)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        found = re.search("", "") if pattern is None else pattern.search(scope["path"])
        if found is None:
            status = HTTPStatus.NOT_FOUND
        elif scope["method"] != "POST":
            status = HTTPStatus.METHOD_NOT_ALLOWED
        else:
            query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
            ref = found.groupdict().get("ref") or next(iter(query.get("ref", [])), None)
            headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
            status = await receiver.receive(headers, _asgi_body(receive), ref)
        await send(
            {"type": "http.response.start", "status": int(status), "headers": [(b"content-length", b"0")]}
        )
        await send({"type": "http.response.body", "body": b""})

    return app


# -- parts ---------------------------------------------------------------------------------------


def _refused(headers: dict[str, str]) -> HTTPStatus | None:
    """What can be said before the body is read."""
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        return HTTPStatus.UNSUPPORTED_MEDIA_TYPE  # a small bomb would become a big body
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit() and (len(length) > 9 or int(length) > MAX_BODY):
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    return None


async def _read(body: AsyncIterator[bytes]) -> bytes | None:
    """All of it, or None if it is more than a callback can be."""
    raw = b""
    async for piece in body:
        raw += piece
        if len(raw) > MAX_BODY:
            return None
    return raw


async def _nothing() -> AsyncIterator[bytes]:
    yield b""


async def _asgi_body(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def _lifespan(receive: Receive, send: Send) -> None:
    """Nothing to start or stop: the client belongs to whoever made it."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _pattern(path: str) -> re.Pattern[str]:
    """The end of a path, since a mounted application may see it with its prefix."""
    before, ref, after = path.partition("{ref}")
    middle = "(?P<ref>[^/]+)" if ref else ""
    return re.compile(f"{re.escape(before)}{middle}{re.escape(after)}/?$")
