"""What makes a write durable on each platform: the settings of SQLite, and syncing a directory.

On macOS `fsync` ends in the cache of the drive, and only `F_FULLFSYNC` survives a power cut. Windows cannot
open a directory, and some network and FUSE file systems cannot sync one: they keep the names of new files by
other means, or not at all, and refusing to work would not change that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import sys
from pathlib import Path

_UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EBADF}
# For every connection that writes. The last two are for macOS; elsewhere they change nothing.
_PRAGMAS = ("synchronous = FULL", "fullfsync = ON", "checkpoint_fullfsync = ON")


def make_durable(connection: sqlite3.Connection) -> None:
    """From now on what was committed is on the disk, past every cache that can be flushed."""
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def sync_directory(directory: Path) -> None:
    """Make the names of new files durable, if the system can."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):  # Windows; or a directory that may be written but not read
        return
    try:
        _sync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(handle)


if sys.platform == "win32":
    _sync = os.fsync
else:
    import fcntl

    def _sync(handle: int) -> None:
        full_sync = getattr(fcntl, "F_FULLFSYNC", None)  # macOS
        if full_sync is not None:
            with contextlib.suppress(OSError):  # not every file system has it; `fsync` reports what is wrong
                fcntl.fcntl(handle, full_sync)
                return
        os.fsync(handle)
