"""What only POSIX systems have, for tests and for the processes that they start.

Nothing here is needed to collect the tests on Windows: `resource` is imported where it is used.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Any


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
