"""How many connections there may be, and what happens if there is no file left for another.

A process may have 256 open files in a shell of macOS, and other parts of the program need some of them.
Each pool of connections (`pools`) takes a share. If no file is left all the same, a call waits (`when_free`).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import TypeVar

import aiohttp

resource: ModuleType | None
if sys.platform == "win32":  # where sockets do not count as files
    resource = None
else:
    import resource

_SHARE = 8  # a pool takes this part of the files: there are three, and a transfer needs two files
_FEWEST = 20  # a client that submits one task at a time may still wait for many
_PAUSE = 0.1  # seconds
# EMFILE is the limit of the process, ENFILE that of the machine, WSAEMFILE the one of Windows.
_NO_FILE = frozenset(
    getattr(errno, name) for name in ("EMFILE", "ENFILE", "WSAEMFILE") if hasattr(errno, name)
)
_T = TypeVar("_T")


def most_connections(max_in_flight: int) -> int:
    """How many connections a pool may have: one per task in flight, but only a share of the files."""
    most = max(max_in_flight, _FEWEST)
    if resource is None:
        return most
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if files == resource.RLIM_INFINITY else max(1, min(most, files // _SHARE))


def no_file_left(error: BaseException) -> bool:
    """Whether a file or a socket could not be opened because too many are open."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):  # a resolver without a file knows no host
        return _is_full()
    return isinstance(error, OSError) and error.errno in _NO_FILE


def _is_full() -> bool:
    try:
        socket.socket().close()
    except OSError as error:
        return error.errno in _NO_FILE
    return False


async def when_free(
    call: Callable[[], Awaitable[_T]],
    *,
    seconds: float = 30.0,
    waits_for: Callable[[Exception], bool] = no_file_left,
) -> _T:
    """The result of `call`, which is called again while it fails because too many files are open.

    Raises the last failure unchanged after `seconds`.
    """
    loop = asyncio.get_running_loop()
    last = loop.time() + seconds - _PAUSE
    while True:
        try:
            return await call()
        except Exception as error:
            if not waits_for(error) or loop.time() > last:
                raise
        await asyncio.sleep(_PAUSE)
