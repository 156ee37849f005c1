"""Repeating calls that cost nothing: which failures are worth it, and how long to wait between.

Not for the paid call, whose repetitions are a table in `submission`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import backoff

from ..errors import KieError, worth_repeating
from ..events import Retried
from ..events.reporter import LOG, Reporter
from ..wire.words import cause_of

TRIES = 3
_FIRST_DELAY = 0.5  # seconds; doubled for each further try
_LONGEST_RETRY_AFTER = 30.0  # seconds of a server's Retry-After that are waited in addition
_T = TypeVar("_T")

Sleep = Callable[[float], Awaitable[object]]
Jitter = Callable[[float], float]  # from a delay to the one that is used
full_jitter: Jitter = backoff.full_jitter


async def repeated(
    call: Callable[[], Awaitable[_T]],
    *,
    tries: int = TRIES,
    worth: Callable[[Exception], bool] = worth_repeating,
    sleep: Sleep = asyncio.sleep,
    jitter: Jitter = full_jitter,
    reporter: Reporter = LOG,
) -> _T:
    """The result of `call`, which is tried up to `tries` times. Raises the last failure unchanged."""
    delays = backoff.expo(factor=_FIRST_DELAY)
    next(delays)  # the first value of backoff's generators is None
    for _ in range(tries - 1):
        try:
            return await call()
        except KieError as error:
            if not worth(error):
                raise
            retry_after = getattr(error, "retry_after", None) or 0.0
            delay = min(retry_after, _LONGEST_RETRY_AFTER) + jitter(next(delays))
            reporter(Retried(cause=cause_of(error), seconds=delay))
        await sleep(delay)
    return await call()
