"""Checks that a client works here and contacts only this machine: one task, in its own process.

    python -m benchmarks.probe NAME BASE

A client that connects to another machine, or looks up another name than localhost, is not measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from .clients import load
from .processes import ChildError, ask

_AT_HOME = {"127.0.0.1", "localhost", "::1"}
_WATCHED = {"socket.connect", "socket.getaddrinfo", "socket.sendto"}


def _guard(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _WATCHED:
        return
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif isinstance(arguments[1], tuple):  # otherwise it is the path of a Unix socket
        host = arguments[1][0]
    else:
        return
    name = host.decode() if isinstance(host, bytes) else str(host)
    if host is not None and name not in _AT_HOME:
        raise ConnectionRefusedError(f"{name} is not on this machine")


async def one_task(name: str, base: str) -> str:
    async with load(name)(base, 0.01) as run, asyncio.timeout(30):
        return await run(lambda: None)


def reason_to_skip(name: str, base: str) -> str:
    """Why the client cannot be measured; empty if it works."""
    try:
        ask("probe", name, base, patience=90.0)
    except ChildError as error:
        return str(error)
    return ""


def main() -> None:
    name, base = sys.argv[1:]
    sys.addaudithook(_guard)
    print(json.dumps({"url": asyncio.run(one_task(name, base))}))


if __name__ == "__main__":
    main()
