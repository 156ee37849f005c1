"""The wall clock, in one place so that a simulation can replace it.

It is used for what other processes and people read: time stamps in a store, signatures. Durations are
measured on the clock of the event loop.
"""

from __future__ import annotations

import time


def unix_time() -> float:
    """Seconds since 1970."""
    return time.time()
