"""Waiting for work that must be finished although the caller is cancelled, or that may take too long, and
closing what an `async for` has left."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Collection
from typing import Any


async def wait_uncancelled(work: Collection[asyncio.Future[Any]]) -> None:
    """Wait until every future is done, also while the caller is being cancelled.

    Errors of the futures are not raised, and asyncio does not log them. A cancel of the caller is raised once
    all of them are done.
    """
    cancel: asyncio.CancelledError | None = None
    with _shielded():
        while pending := [each for each in work if not each.done()]:
            try:
                await asyncio.wait(pending)
            except asyncio.CancelledError as error:
                cancel = error
    for each in work:
        if not each.cancelled():
            each.exception()  # retrieved, also if the caller does not ask for it
    if cancel is not None:
        raise cancel


async def finished_within(seconds: float, work: Awaitable[object]) -> bool:
    """Whether the work finishes in time; its exception is raised.

    What does not is cancelled, and not waited for: it may be stuck in something that no cancel ends.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task], timeout=seconds)
    finally:
        if not task.done():
            task.cancel()
    if task.done():
        task.result()
    return task.done()


async def close_iterator(iterator: object) -> None:
    """Close what an `async for` that was left iterated over, if it can be closed."""
    aclose = getattr(iterator, "aclose", None)
    if aclose is None:
        return
    try:
        # If the loop has collected the iterator together with its user, or ends, it closes it as well, in
        # this turn. Of two calls of `aclose` at once the second fails.
        await asyncio.sleep(0)
    finally:
        if not getattr(iterator, "ag_running", False):
            await aclose()


def _shielded() -> contextlib.AbstractContextManager[object]:
    """Keeps a cancel scope of anyio out, if the program uses anyio.

    Such a scope (Starlette's, FastAPI's) cancels its task again in each turn of the loop until the task
    leaves the scope. Waiting on would still work, but keep a core busy: 1.2 s of CPU time in 1.5 s.
    """
    cancel_scope: Any = getattr(sys.modules.get("anyio"), "CancelScope", None)
    return contextlib.nullcontext() if cancel_scope is None else cancel_scope(shield=True)
