"""Disk work of a coroutine: in a thread, owned to its end; and files that appear whole or never.

A thread cannot be cancelled. So whoever starts work here also stays until it has ended, even when
cancelled meanwhile: only then is it known what has to be cleaned up.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

from . import images

PREFIX = ".kie4o-"  # of files that are not finished; hidden, so that no gallery shows them
_T = TypeVar("_T")


async def in_thread(function: Callable[..., _T], *arguments: Any) -> _T:
    """What the function gives. A cancel is passed on when the thread has ended, not before."""
    work = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    await wait_uncancelled([work])
    return work.result()


async def wait_uncancelled(work: Collection[asyncio.Future[Any]]) -> None:
    """Wait until all of it has ended, whatever happens to the caller; a cancel is passed on then."""
    cancel: asyncio.CancelledError | None = None
    while pending := [each for each in work if not each.done()]:
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            cancel = error
    if cancel is not None:
        for each in work:  # whoever would have asked for it is gone
            if not each.cancelled():
                each.exception()
        raise cancel


class Draft:
    """A file that is being written beside its final place. Methods block: call them in a thread,
    one at a time. Raises `OSError`."""

    def __init__(self, directory: Path) -> None:
        self.size = 0
        self.head = self.tail = b""
        self.directory = directory
        self._file: int | None = None
        self._path: str | None = None

    def write(self, piece: bytes) -> None:
        if self._file is None:
            self._file, self._path = tempfile.mkstemp(dir=self.directory, prefix=PREFIX)
        view = memoryview(piece)
        while view:
            view = view[os.write(self._file, view) :]
        self.size += len(piece)
        self.head = (self.head + piece[: images.HEAD])[: images.HEAD]
        self.tail = (self.tail + piece[-images.TAIL :])[-images.TAIL :]

    def keep(self, name: str) -> Path:
        """Make it durable and visible under its name, in place of any file that has it."""
        if self._file is None or self._path is None:
            raise FileNotFoundError(errno.ENOENT, "nothing was written")
        place = self.directory / name
        os.fsync(self._file)
        self._close()
        Path(self._path).replace(place)
        self._path = None
        return place

    def discard(self) -> None:
        """Leave nothing behind, unless it was kept. Never raises."""
        path, self._path = self._path, None
        with contextlib.suppress(OSError):
            self._close()
        if path is not None:
            with contextlib.suppress(OSError):
                Path(path).unlink()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)
