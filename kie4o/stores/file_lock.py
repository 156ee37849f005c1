"""The lock that keeps other processes, and other clients of this one, out of a store file.

SQLite's own locks are POSIX locks. Those belong to the process, and closing any descriptor of the file drops
them, as a copy of the open file does. This lock belongs to one open file description and ends with it. It
covers a single byte that SQLite leaves alone, because on network file systems and on BSD locks of the whole
file conflict with SQLite's.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from ..events import Event, StoreWarned
from ..events.reporter import LOG

# SQLite locks 0x40000000 to 0x400001FF and keeps no data in that page ("Database File Format", 1.4). In any
# other page this lock would hide data from SQLite itself on Windows, once the file has 2 GiB.
_BYTE = 0x40000200
_TAKEN = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}
_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}

Identity = tuple[int, int]  # device and inode

# `struct flock` of the systems that have such locks, for a kind of lock: see fcntl(2).
_FLOCKS: Mapping[str, Callable[[int], bytes]] = MappingProxyType(
    {
        "linux": lambda kind: struct.pack("hhqqi", kind, os.SEEK_SET, _BYTE, 1, 0),
        "darwin": lambda kind: struct.pack("qqihh", _BYTE, 1, 0, kind, os.SEEK_SET),
    }
)
_held: dict[Identity, FileLock] = {}
_warned: set[Path] = set()

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, _BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _set(descriptor: int, kind: int) -> None:
        command = getattr(fcntl, "F_OFD_SETLK", None)  # not every system and every Python has it
        packed = _FLOCKS.get(sys.platform)
        if command is None or packed is None:
            raise OSError(errno.ENOTSUP, "this system has no locks of open files")
        fcntl.fcntl(descriptor, command, packed(kind))

    def _lock(descriptor: int) -> None:
        _set(descriptor, fcntl.F_WRLCK)

    def _unlock(descriptor: int) -> None:
        _set(descriptor, fcntl.F_UNLCK)

    os.register_at_fork(after_in_child=lambda: _forget_in_child())


class FileLock:
    """Locks the file at `path` until `release`. Raises `BlockingIOError` if it is locked already.

    `release` it only after SQLite has closed the file: closing this descriptor drops SQLite's locks.
    """

    def __init__(self, path: Path, report: Callable[[Event], None] = LOG) -> None:
        if identity_of(path.stat(), path) in _held:  # closing a descriptor of it would drop SQLite's locks
            raise BlockingIOError(errno.EAGAIN, "the file is locked")
        self._descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        try:
            _lock_or_warn(self._descriptor, path, report)
            self.identity: Identity = identity_of(os.fstat(self._descriptor), path)
        except BaseException:
            os.close(self._descriptor)
            raise
        _held[self.identity] = self

    def release(self) -> None:
        """Does nothing if it is released already."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        _held.pop(self.identity, None)
        try:
            _unlock(descriptor)  # at once, also if a child process is just being started with a duplicate
        except OSError:
            pass  # it was not locked, see _lock_or_warn
        finally:
            os.close(descriptor)


def identity_of(found: os.stat_result, path: Path) -> Identity:
    """What tells a file from another one at the same path.

    It is the path itself on a drive that does not number its files, as some network drives of Windows do not.
    """
    return found.st_dev, found.st_ino or hash(path)


def _lock_or_warn(descriptor: int, path: Path, report: Callable[[Event], None]) -> None:
    try:
        _lock(descriptor)
    except OSError as error:
        if error.errno in _TAKEN:
            raise BlockingIOError(errno.EAGAIN, "the file is locked") from None
        if error.errno not in _UNSUPPORTED:
            raise
        if path in _warned:  # also while it waits for another process, and tries ten times a second
            return
        _warned.add(path)
        report(StoreWarned(what="no locks", detail=f"{path} ({error.strerror})"))


def _forget_in_child() -> None:
    """The locks stay with the parent. A child that kept their descriptors would hold them longer."""
    for lock in _held.values():
        os.close(lock._descriptor)
        lock._descriptor = -1
    _held.clear()
