"""`kie4o listen`: a receiver of callbacks that prints what it accepts, and keeps it in the store."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from ..errors import KieError
from .clients import opened
from .parameters import CONNECTED, Connected, OptionalStore
from .terminal import Terminal, UsageError

if TYPE_CHECKING:
    from aiohttp import web

    from ..client import AsyncKieClient

_BODY_TIMEOUT = 5.0  # seconds for a whole body of well under one KiB
_LARGEST = 64 * 1024  # bytes; a callback has well under one KiB

Port = Annotated[
    int,
    Parameter(validator=validators.Number(gte=0, lte=65_535), show_default=True, help="0 is any free one."),
]
Host = Annotated[str, Parameter(show_default=True, help="0.0.0.0 serves other machines too.")]
At = Annotated[
    str, Parameter(name="--path", show_default=True, help="Path of the callback URL; may hold {ref}.")
]
Unsigned = Annotated[
    bool,
    Parameter(
        name="--allow-unsigned", help="Accept callbacks without a signature if there is no KIE_WEBHOOK_KEY."
    ),
]


async def listen(
    *,
    port: Port = 8080,
    host: Host = "127.0.0.1",
    path: At = "/kie/callback",
    store: OptionalStore = None,
    allow_unsigned: Unsigned = False,
    terminal: Connected = CONNECTED,
) -> None:
    """Receive the callbacks for the requests in a store, until Ctrl-C: verify, print and keep them."""
    from aiohttp import web

    from ..webhooks import routes

    _check_path(path)
    async with opened(terminal, store=store) as client:
        received = routes(client, path, allow_unsigned=allow_unsigned)
        app = web.Application(client_max_size=_LARGEST, middlewares=[_printing(client, terminal)])
        app.add_routes(received)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            site = web.SockSite(runner, _socket(host, port))
            await site.start()
            terminal.note(f"listening at {site.name}{path}; press Ctrl-C to stop")
            with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C is how it ends
                await asyncio.Event().wait()
        finally:
            await runner.cleanup()


def _check_path(path: str) -> None:
    """Raises `UsageError` unless aiohttp can route it."""
    from aiohttp.web import UrlDispatcher

    try:
        UrlDispatcher().add_resource(path)
        if path.startswith("/"):
            return
    except ValueError:
        pass
    raise UsageError(f"invalid --path '{path}': expected a path such as /kie/callback or /kie/{{ref}}")


def _socket(host: str, port: int) -> socket.socket:
    """Where it listens. Raises `UsageError`."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason, _, _ = (error.strerror or str(error)).partition(" (while ")  # which names them once more
    raise UsageError(f"cannot listen at --host {host} --port {port}: {reason}")


def _printing(client: AsyncKieClient, terminal: Terminal) -> Callable[..., Awaitable[web.StreamResponse]]:
    """A middleware that prints the callbacks which were accepted."""
    from aiohttp import web

    @web.middleware
    async def middleware(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        async with asyncio.timeout(_BODY_TIMEOUT):
            body = await request.read()  # aiohttp keeps it for the receiver
        response = await handler(request)
        if response.status != 200:
            terminal.note(f"refused a callback with {response.status}")
            return response
        try:
            callback = client.parse_callback(body, request.headers)
        except KieError:
            return response
        fields = {"task_id": callback.task_id, "code": callback.code, "message": callback.message}
        words = f"{callback.task_id}  {callback.code}  {callback.message}"
        terminal.show(words, **fields, urls=[*callback.urls], verified=callback.verified)
        return response

    return middleware
