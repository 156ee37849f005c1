"""Disk work in threads, and files that appear complete or not at all.

A running thread cannot be cancelled. A coroutine that is cancelled while its thread works waits for
the thread before it cleans up, since only then is it known which files exist.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..errors import reason_of
from ..waiting import wait_uncancelled
from . import images

PREFIX = ".kie4o-"  # of incomplete files; the dot hides them from galleries
_LEFT_BEHIND = 600.0  # seconds after which an incomplete file is nobody's; a download takes 300 at most
_PATIENCE = 2.0  # seconds until a running thread has taken over what no new thread can be started for
# Until a virus scanner or a viewer lets go of a file on Windows; together one second.
_PAUSES = (0.01, 0.02, 0.04, 0.08, 0.15, 0.2, 0.25, 0.25)
_HELD = (5, 32)  # ERROR_ACCESS_DENIED, ERROR_SHARING_VIOLATION
# What `pathlib` raises for a value that is no path, and for a `~` without a home directory.
NO_PATH = (TypeError, ValueError, RuntimeError)
_T = TypeVar("_T")


def reason_of_folder(error: Exception) -> str:
    """Why a folder cannot be created: the words of the system, which says of a file only that it exists."""
    return "it is not a folder" if isinstance(error, FileExistsError) else reason_of(error)


class NoThreadError(OSError):
    """No thread can be started, and none has become free."""

    def __init__(self) -> None:
        message = (
            "no thread can be started; raise the limit of threads or processes (ulimit -u, a pids limit)"
        )
        super().__init__(errno.EAGAIN, message)


def start_in_thread(function: Callable[..., _T], *arguments: Any) -> asyncio.Future[_T]:
    """Run a blocking function in the default executor. A cancel calls it off if it has not begun.

    If no thread can be started, one that is running may still take it over. After `_PATIENCE` seconds the
    future fails with `NoThreadError`, and the function is not called any more.
    """
    loop = asyncio.get_running_loop()
    work: concurrent.futures.Future[_T] = concurrent.futures.Future()
    future = asyncio.wrap_future(work)
    decided = threading.Lock()  # taken by the first of the two below

    def run() -> None:
        if decided.acquire(blocking=False) and work.set_running_or_notify_cancel():
            try:
                work.set_result(function(*arguments))
            except BaseException as error:
                work.set_exception(error)

    def give_up() -> None:
        if decided.acquire(blocking=False) and work.set_running_or_notify_cancel():
            work.set_exception(NoThreadError())

    try:
        loop.run_in_executor(None, run)
    except RuntimeError:  # `run` is in the queue of the executor nevertheless
        loop.call_later(_PATIENCE, give_up)
    return future


async def in_thread(function: Callable[..., _T], *arguments: Any) -> _T:
    """Run a blocking function in the default executor and return its result.

    If the caller is cancelled, `CancelledError` is raised after the function has returned, not before.
    """
    work = start_in_thread(function, *arguments)
    await wait_uncancelled([work])
    return work.result()


async def in_thread_or_here(function: Callable[[], _T]) -> _T:
    """As `in_thread`, but without a thread the function blocks the loop: what cleans up must be called."""
    work = start_in_thread(function)
    try:
        await wait_uncancelled([work])
    finally:  # also if the caller was cancelled meanwhile
        if isinstance(work.exception(), NoThreadError):
            work = asyncio.get_running_loop().create_future()
            work.set_result(function())
    return work.result()


class PartialFile:
    """A file that is written under a temporary name in its directory, then renamed.

    The methods block: call them in a thread, one at a time. `write` and `commit` raise `OSError`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.seen: images.Inspection = images.Inspection()
        self.path: str | None = None
        self._file: int | None = None

    def write(self, chunk: bytes) -> None:
        """Append a chunk; the first one creates the file."""
        if self._file is None:
            self._file, self.path = tempfile.mkstemp(dir=self.directory, prefix=PREFIX)
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._file, view) :]
        self.seen.feed(chunk)

    def commit(self, name: str, *, rename: bool = False) -> Path:
        """Flush the file to the disk and rename it to `name`, replacing a file of that name.

        With `rename` nothing is replaced: the first free name of `a.png`, `a (1).png`, `a (2).png` is used.
        """
        if self._file is None or self.path is None:
            raise FileNotFoundError(errno.ENOENT, "nothing was written")
        path = self.directory / name
        os.fsync(self._file)
        self._close()
        if rename:
            return _renamed(Path(self.path), path)  # `discard` removes the old name if it is left
        _when_let_go(Path(self.path).replace, path)
        self.path = None
        return path

    def discard(self) -> None:
        """Close and delete the file, unless it was committed. Never raises."""
        path, self.path = self.path, None
        with contextlib.suppress(OSError):
            self._close()
        if path is not None:
            with contextlib.suppress(OSError):
                _when_let_go(Path(path).unlink)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def remove_leftovers(folder: Path) -> None:
    """Remove the incomplete files that a killed process has left behind. Never raises."""
    for path in folder.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - _LEFT_BEHIND:
                path.unlink()


def _renamed(file: Path, path: Path) -> Path:
    """The first free name, which is now the file's."""
    number, free = 0, path
    while True:
        try:
            _rename(file, free)
            return free
        except FileExistsError:
            number += 1
            free = path.with_name(f"{path.stem} ({number}){path.suffix}")


def _rename(file: Path, path: Path) -> None:
    """Give the file this name. Raises `FileExistsError` if there is one of that name, however new it is."""
    try:
        os.link(file, path)
        return
    except FileExistsError:
        raise
    except OSError:
        pass  # a file system without hard links: an empty file takes the name first
    path.touch(exist_ok=False)
    try:
        _when_let_go(file.replace, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _when_let_go(function: Callable[..., object], *arguments: Path) -> None:
    """Call the function, and again for a second while another process of Windows holds a file open."""
    for pause in _PAUSES:
        try:
            function(*arguments)
            return
        except PermissionError as error:
            if getattr(error, "winerror", None) not in _HELD:
                raise
        time.sleep(pause)
    function(*arguments)
