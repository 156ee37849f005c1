"""What `python -m kie4o.emulator` and `kie4o emulator` do: serve an emulator until Ctrl-C.

The signature of `serve` and its docstring are the options of both programs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import signal
from pathlib import Path
from typing import Literal

import attrs
from aiohttp import web

from .live_log import LiveLog, line_of_callback
from .openapi import document
from .script import Script, read
from .server import Emulator
from .values import invalid

_TICK = 0.1  # seconds between two looks for callbacks to show

OutcomeName = Literal[
    "success", "partial", "no_images", "failed", "policy", "input", "create_failed", "stuck", "missing"
]


async def serve(
    *,
    port: int = 8787,
    host: str = "127.0.0.1",
    allow_remote: bool = False,
    speed: float | None = None,
    script: Path | None = None,
    duration: float | None = None,
    looks: int | None = None,
    outcome: OutcomeName | None = None,
    limit: int | None = None,
    per: float | None = None,
    credits: float | None = None,  # noqa: A002  # Kie's word
    api_key: str | None = None,
    callback: str | None = None,
    webhook_key: str | None = None,
    seed: int | None = None,
    quiet: bool = False,
    openapi: bool = False,
) -> None:
    """Emulate Kie on this machine until Ctrl-C, for programs in any language. Durations are emulated seconds.

    Args:
        port: Port to listen on; 0 picks a free one.
        host: Address to listen on; 0.0.0.0 is every interface.
        allow_remote: Answer other machines too, not with 403.
        speed: Emulated seconds per real second; 1 by default, up to 100 is reliable.
        script: TOML file with [settings], [[plan]] and [[fault]] tables; options go before its settings.
        duration: How long a task takes; 20 by default.
        looks: Status checks that end a task in place of the duration; for clients whose waits are short.
        outcome: How tasks end; success by default.
        limit: New tasks accepted in each window; 20 by default.
        per: Length of that window; 10 by default.
        credits: Balance at the start; 1000 by default. An image costs 6.
        api_key: The only key to accept; any by default.
        callback: How tasks call back; end by default.
        webhook_key: Key that signs callbacks; they are sent to this machine only.
        seed: Makes task ids, and faults with a probability, the same in every run.
        quiet: Print no line for each request.
        openapi: Print the OpenAPI document of the emulated service, and end.
    """
    if openapi:
        print(json.dumps(document(), indent=2, ensure_ascii=False))
        return
    if not 0 <= port <= 65_535:
        raise invalid("port", port, "a number from 0 to 65535")
    settings = {
        "speed": speed,
        "duration": duration,
        "looks": looks,
        "outcome": outcome,
        "limit": limit,
        "per": per,
        "credits": credits,
        "api_key": api_key,
        "callback": callback,
        "webhook_key": webhook_key,
        "seed": seed,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    written = Script() if script is None else await asyncio.to_thread(read, script)
    address = {"host": host, "port": port, "allow_remote": allow_remote}
    kie = _LoggedEmulator(clock="real", **written.settings | given | address)
    written.arrange(kie)
    if not quiet:
        kie.log = LiveLog(lambda: kie.credits)
    async with kie:
        _announce(kie)
        await _until_stopped(kie)


@attrs.define(kw_only=True, eq=False)
class _LoggedEmulator(Emulator):
    """An emulator that shows its requests."""

    log: LiveLog | None = attrs.field(default=None, init=False)

    def _app(self) -> web.Application:
        app = super()._app()
        if self.log is not None:
            self.log.watch(app)
        return app


def _announce(kie: Emulator) -> None:
    """Say where it is, and how a program reaches it."""
    whom = "any machine" if kie.allow_remote else "this machine only (--allow-remote serves others)"
    print(f"Kie emulator at {kie.url} for {whom}; press Ctrl-C to stop")
    variables = {"KIE_BASE_URL": kie.url, "KIE_UPLOAD_URL": kie.url}
    variables["KIE_API_KEY"] = kie.api_key or "anything"
    if kie.webhook_key is not None:
        variables["KIE_WEBHOOK_KEY"] = str(kie.webhook_key)
    print("export", *(f"{name}={shlex.quote(value)}" for name, value in variables.items()), flush=True)


async def _until_stopped(kie: _LoggedEmulator) -> None:
    """Wait for Ctrl-C or for what ends a container, and show the callbacks meanwhile."""
    stopped, log, shown = asyncio.Event(), kie.log, 0
    with contextlib.suppress(NotImplementedError):  # Windows has no such handlers: Ctrl-C raises there
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    while not stopped.is_set():
        if log is not None:
            for record in kie.callbacks[shown:]:
                log.print(line_of_callback(record))
                shown += 1
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), _TICK if log else None)
