"""Receivers for Kie's callbacks: `routes` for aiohttp.web, `asgi_app` for any ASGI framework.

Both are thin adapters around `client.receiver()`, which serves any other framework as well. A public server
still needs a proxy or timeout for headers that never end, and a limit on connections.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from .client import AsyncKieClient
from .wire.requests import path_pattern

if TYPE_CHECKING:
    from aiohttp import web

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def routes(
    client: AsyncKieClient,
    path: str = "/kie/callback",
    *,
    allow_unsigned: bool = False,
    tolerance: float | None = None,
) -> list[web.RouteDef]:
    """Routes for an aiohttp.web application: `app.add_routes(routes(client, "/kie/{ref}"))`.

    Args:
        client: The client whose requests the callbacks are about.
        path: Where `callback_url` leads; it may hold `{ref}`, as `callback_url` may.
        allow_unsigned: Accept callbacks without a signature if the client has no `webhook_key`. Then only the
            ref in the URL tells them from forged ones.
        tolerance: Seconds by which the time stamp of a callback may differ from now; the default is the
            client's.

    Raises:
        ConfigurationError: The client has no `webhook_key`, and `allow_unsigned` is False.
    """
    from aiohttp import web

    receiver = client.receiver(allow_unsigned=allow_unsigned, tolerance=tolerance)

    async def handle(request: web.Request) -> web.Response:
        variable, query = request.match_info.get("ref"), request.rel_url.raw_query_string
        ref = receiver.ref_of(request.path, query, variable=variable)
        status = await receiver.receive(request.headers, await _content(request), ref)
        response = web.Response(status=status)
        if status is not HTTPStatus.OK:
            response.force_close()  # the rest of the body is not worth reading
        return response

    return [web.post(path, handle)]


def asgi_app(
    client: AsyncKieClient,
    path: str | None = None,
    *,
    allow_unsigned: bool = False,
    tolerance: float | None = None,
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """An ASGI application, alone or mounted: `app.mount("/kie", asgi_app(client, "/{ref}"))`.

    Args:
        client: The client whose requests the callbacks are about.
        path: Where `callback_url` leads, below the mount point; it may hold `{ref}`. None accepts every path.
        allow_unsigned: As for `routes`.
        tolerance: As for `routes`.

    Raises:
        ConfigurationError: The client has no `webhook_key`, and `allow_unsigned` is False.
    """
    receiver = client.receiver(allow_unsigned=allow_unsigned, tolerance=tolerance)
    pattern = re.compile("") if path is None else path_pattern(path)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        match = pattern.search(scope["path"])
        if match is None:
            status = HTTPStatus.NOT_FOUND
        elif scope["method"] != "POST":
            status = HTTPStatus.METHOD_NOT_ALLOWED
        else:
            query, variable = scope.get("query_string", b"").decode("latin-1"), match.groupdict().get("ref")
            ref = receiver.ref_of(scope["path"], query, variable=variable)
            status = await receiver.receive(scope["headers"], _body(receive), ref)
        await send(
            {"type": "http.response.start", "status": int(status), "headers": [(b"content-length", b"0")]}
        )
        await send({"type": "http.response.body", "body": b""})

    return app


async def _content(request: web.Request) -> bytes | AsyncIterator[bytes]:
    """A body that a middleware has read is kept by aiohttp. One that has arrived as a whole is there already.
    Another one is read within limits."""
    content = request.content
    if content.at_eof():
        return await request.read()
    return content.read_nowait() if content.is_eof() and content.exception() is None else content.iter_any()


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def _lifespan(receive: Receive, send: Send) -> None:
    """Nothing to start or stop: the client belongs to the application."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
