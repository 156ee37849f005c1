"""Cancel a coroutine at its n-th suspension, deterministically and without sleeping.

Each suspension has two moments that matter: while the awaited future is pending, and in the tick in which it
is done. "level" cancels a scope of anyio around the coroutine while the future is pending: such a scope
cancels again in each turn of the loop until it is left, where `Task.cancel` strikes once. The coroutine is
driven by hand: its n-th suspension is the n-th value that it yields, however deep that comes from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Literal

import anyio
from canary import WATCH

Mode = Literal["pending", "done", "level"]


class _Driven:
    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], cancel: Callable[[], object], at: int, mode: Mode
    ) -> None:
        self.coroutine = coroutine
        self.cancel = cancel
        self.at = at
        self.mode = mode
        self.suspensions = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        resume = lambda: self.coroutine.send(None)  # noqa: E731  # swapped for a throw below
        while True:
            try:
                awaited = resume()
            except StopIteration as stop:
                return stop.value
            if self.suspensions == self.at:
                if self.mode == "done" and isinstance(awaited, asyncio.Future):
                    awaited.add_done_callback(lambda _: self.cancel())
                else:
                    asyncio.get_running_loop().call_soon(self.cancel)
            self.suspensions += 1
            try:
                yield awaited
            except BaseException as error:
                resume = lambda error=error: self.coroutine.throw(error)  # noqa: E731
            else:
                resume = lambda: self.coroutine.send(None)  # noqa: E731


async def cancelled_at(coroutine: Coroutine[Any, Any, Any], at: int, mode: Mode) -> tuple[str, Any]:
    """Cancel at the `at`-th suspension; return ("cancelled", None), ("returned", value) or ("raised", error).

    ("over", value) says that the coroutine returned before that suspension: a sweep is complete.
    """
    suspensions = 0

    async def run() -> Any:
        nonlocal suspensions
        task = asyncio.current_task()
        assert task is not None
        with anyio.CancelScope() as scope:
            driven = _Driven(coroutine, scope.cancel if mode == "level" else task.cancel, at, mode)
            try:
                return await driven
            finally:
                suspensions = driven.suspensions
        raise asyncio.CancelledError  # the scope has caught its own

    task = asyncio.ensure_future(run())
    try:
        value = await task
    except asyncio.CancelledError as error:
        WATCH.search_raised(error)
        return "cancelled", None
    except Exception as error:
        return "raised", error
    return ("returned" if suspensions > at else "over"), value


async def cancelled_after(coroutine: Coroutine[Any, Any, Any], ticks: int) -> tuple[str, Any]:
    """The same, but cancelled after `ticks` turns of the loop."""
    task = asyncio.ensure_future(coroutine)
    for _ in range(ticks):
        if task.done():
            return "over", None if task.cancelled() or task.exception() else task.result()
        await asyncio.sleep(0)
    task.cancel()
    try:
        return "returned", await task
    except asyncio.CancelledError as error:
        WATCH.search_raised(error)
        return "cancelled", None
    except Exception as error:
        return "raised", error
