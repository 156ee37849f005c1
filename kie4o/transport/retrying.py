"""Calls that cost nothing may be made again: which failures are worth it, and how long to pause.

Never used for the paid call, which has a table of its own in `submission`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import backoff

from ..errors import KieError, worth_repeating

TRIES = 3
_FIRST_PAUSE = 0.5  # seconds; doubled for the next one, with full jitter
_T = TypeVar("_T")

Sleep = Callable[[float], Awaitable[object]]


async def repeated(
    call: Callable[[], Awaitable[_T]],
    *,
    tries: int = TRIES,
    worth: Callable[[Exception], bool] = worth_repeating,
    sleep: Sleep = asyncio.sleep,
    chance: Callable[[], float] = random.random,
) -> _T:
    """What `call` gives, tried a few times; the last failure is raised as it came."""
    pauses = backoff.expo(factor=_FIRST_PAUSE)
    next(pauses)  # backoff's first one is None
    for attempt in range(tries):
        try:
            return await call()
        except KieError as error:
            if attempt == tries - 1 or not worth(error):
                raise
            asked = getattr(error, "retry_after", None) or 0.0
        await sleep(min(30.0, asked) + next(pauses) * chance())
    raise AssertionError("tries is at least 1")
