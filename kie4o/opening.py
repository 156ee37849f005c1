"""What a client imports when it opens.

`import kie4o` leaves these modules out to be quick. When a call needs one, the process may have no file left
to read it from.
"""

from __future__ import annotations

import contextlib
import importlib

from .errors import KieError, reason_of

MODULES = (
    "cattrs",  # to read details
    "concurrent.futures.thread",  # asyncio's threads
    "encodings.idna",  # to look up a host
    "kie4o.batch.batch",
    "kie4o.batch.resumption",
    "kie4o.files.downloads",
    "kie4o.files.memory",
    "kie4o.files.saving",
    "kie4o.files.uploads",
    "kie4o.files.verification",
    "kie4o.state",
)


def import_late_modules() -> None:
    """Import what a call may need. A module that is missing is missed by the call that needs it."""
    reason = ""
    try:
        for name in MODULES:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    except OSError as error:
        reason = reason_of(error)
    if reason:
        raise KieError(f"the client cannot be opened ({reason}); raise the limit of open files (ulimit -n)")
