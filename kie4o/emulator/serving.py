"""Serves an emulator in a program of its own: its addresses, its live log, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shlex
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from aiohttp import web

from .live_log import LiveLog, line_of_callback
from .openapi import document
from .script import Script, read
from .server import Emulator
from .values import invalid

_TICK = 0.1  # seconds between two looks for callbacks to show


def print_openapi() -> None:
    """Print the OpenAPI document of the emulated service."""
    print(json.dumps(document(), indent=2, ensure_ascii=False))


async def serve(
    settings: Mapping[str, Any], address: Mapping[str, Any], *, script: Path | None, quiet: bool
) -> None:
    """Serve an emulator with these arguments until it is stopped; they go before those of the script.

    Raises `ValueError` if one of them cannot be used.
    """
    if not 0 <= address["port"] <= 65_535:
        raise invalid("port", address["port"], "a number from 0 to 65535")
    written = Script() if script is None else await asyncio.to_thread(_read, script)
    kie = _LoggedEmulator(clock="real", **{**written.settings, **settings, **address})
    written.arrange(kie)
    if not quiet:
        kie.log = LiveLog(lambda: kie.credits)
    await _start(kie)
    async with contextlib.aclosing(kie):
        _announce(kie)
        await _until_stopped(kie)


def _read(script: Path) -> Script:
    try:
        return read(script)
    except OSError as error:
        raise ValueError(f"cannot read --script '{script}': {error.strerror or error}") from None


async def _start(kie: Emulator) -> None:
    try:
        await kie.start()
    except (OSError, UnicodeError) as error:
        reason = _reason(error)
        raise ValueError(f"cannot listen at --host {kie.host} --port {kie.port}: {reason}") from None


def _reason(error: OSError | UnicodeError) -> str:
    """In the words of the system, without those that asyncio puts around them."""
    if isinstance(error, (UnicodeError, socket.gaierror)) or error.errno is None:
        return "there is no such host"
    hint = "; --port 0 picks a free one" if error.errno == errno.EADDRINUSE else ""
    return f"{os.strerror(error.errno)}{hint}"


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
