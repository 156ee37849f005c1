"""Other platforms, simulated at the calls that behave differently there, with the errors they document."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def like_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """No directory is opened, and no file is renamed while it is open (CreateFileW, MoveFileExW)."""
    real_open, real_replace = os.open, os.replace

    def open_(path: Any, *arguments: Any, **more: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real_open(path, *arguments, **more)

    def replace(source: Any, target: Any) -> None:
        if Path(source).stat().st_ino in {os.fstat(handle).st_ino for handle in handles()}:
            raise PermissionError(errno.EACCES, "The process cannot access the file", source)
        real_replace(source, target)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "replace", replace)


def handles() -> Iterator[int]:
    """The open descriptors of this process."""
    for handle in range(256):
        try:
            os.fstat(handle)
        except OSError:
            continue
        yield handle
