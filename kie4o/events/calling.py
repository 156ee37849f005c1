"""Tells of a call of the client when it begins and when it ends."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .calls import CallEnded, CallName, CallStarted
from .reporter import Reporter

_NUMBERS = itertools.count(1)
_T = TypeVar("_T")


def told(
    reporter: Reporter,
    call: CallName,
    work: Callable[[], Coroutine[Any, Any, _T]],
    *,
    key: str | None = None,
    task_id: str | None = None,
    trace: str | None = None,
) -> Coroutine[Any, Any, _T]:
    """The coroutine of `work`; if anyone wants to know, one that tells of its beginning and its end.

    So a task that waits holds another coroutine, of 0.5 KiB, only if there are hooks.
    """
    if CallStarted not in reporter.wanted:
        return work()
    return _told(reporter, call, work, key, task_id, trace)


async def _told(
    reporter: Reporter,
    call: CallName,
    work: Callable[[], Coroutine[Any, Any, _T]],
    key: str | None,
    task_id: str | None,
    trace: str | None,
) -> _T:
    loop, number = asyncio.get_running_loop(), next(_NUMBERS)
    began = loop.time()
    failure: str | None = None
    reporter(CallStarted(call=call, number=number, key=key, task_id=task_id, trace=trace))
    try:
        result = await work()
        task_id = getattr(result, "task_id", task_id)
    except BaseException as error:
        task_id = getattr(error, "task_id", None) or task_id
        failure = type(error).__name__
        raise
    finally:
        seconds = loop.time() - began
        ended = CallEnded(call=call, number=number, key=key, task_id=task_id, seconds=seconds, error=failure)
        reporter(ended)
        reporter.leave(number)
    return result
