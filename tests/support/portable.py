"""Where systems differ, for tests and for the processes that they start.

What only POSIX systems have is imported where it is used, so that the tests can be collected on Windows.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

PATIENCE = 60.0  # real seconds for what should take a fraction of one, on a machine with much else to do


def environment(**variables: str) -> dict[str, str]:
    """The environment of a child process: these variables, and what a program needs on Windows."""
    if sys.platform == "win32":  # sockets need SYSTEMROOT, and its output is not in UTF-8 otherwise
        variables = {"SYSTEMROOT": os.environ["SYSTEMROOT"], "PYTHONUTF8": "1"} | variables
    return variables


def running_tasks() -> set[asyncio.Task[Any]]:
    """All tasks but those with which the loop of Windows accepts connections."""
    return {task for task in asyncio.all_tasks() if "IocpProactor.accept" not in repr(task)}


def interruptible() -> dict[str, Any]:
    """Options for a child process that Ctrl-C has to end.

    A background job of a shell ignores SIGINT, and its children inherit that.
    """
    if sys.platform == "win32":  # which has neither jobs nor `preexec_fn`
        return {}
    return {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process grows beyond that many bytes: a write fails as on a full disk."""
    import resource  # not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
