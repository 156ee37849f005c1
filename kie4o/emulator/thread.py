"""An emulator in a thread of its own, for tests that have no event loop and for fixtures of a session.

`LoopThread` is a thread with an event loop. `OnThread` makes an object that lives in one usable from every
thread: what another thread reads is a copy, and what it calls runs in the loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .clock import HangError

_COPIED = (dict, list, set, deque, Counter)
_T = TypeVar("_T")


class LoopThread:
    """A thread with an event loop, from `start` to `stop`."""

    def __init__(self, name: str) -> None:
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._ready = threading.Event()
        self._running: dict[asyncio.Task[None], concurrent.futures.Future[Any]] = {}
        self._awaited: set[concurrent.futures.Future[Any]] = set()  # by other threads
        self._loop: asyncio.AbstractEventLoop
        self._stopped: asyncio.Event

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Cancel what still runs, close the loop and wait for the thread."""
        if self._thread.ident is None:
            return
        self._ready.wait()
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    @property
    def is_elsewhere(self) -> bool:
        """Whether the loop runs, and not in the calling thread."""
        return self._thread.is_alive() and threading.current_thread() is not self._thread

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """The result of a coroutine, which runs in the loop. It is cancelled if the caller is interrupted.

        Raises `RuntimeError` if the loop is closed, or closes first.
        """
        outcome: concurrent.futures.Future[_T] = concurrent.futures.Future()
        self._awaited.add(outcome)
        try:
            self._loop.call_soon_threadsafe(self._begin, coroutine, outcome)
            return outcome.result()
        except BaseException:
            if self._loop.is_closed():
                coroutine.close()  # it may not have begun
            elif not outcome.done():
                self._loop.call_soon_threadsafe(self._cancel, outcome)
            raise
        finally:
            self._awaited.discard(outcome)

    def call(self, function: Callable[[], _T]) -> _T:
        """The result of a function, which is called in the loop."""

        async def called() -> _T:
            return function()

        return self.run(called())

    def _begin(self, coroutine: Coroutine[Any, Any, _T], outcome: concurrent.futures.Future[_T]) -> None:
        if self._stopped.is_set():
            coroutine.close()
            return

        async def run() -> None:
            try:
                result = await coroutine
            except BaseException as error:
                cut_short = isinstance(error, asyncio.CancelledError) and self._stopped.is_set()
                if not outcome.done() and not cut_short:  # a hang has been reported already
                    outcome.set_exception(error)
            else:
                outcome.set_result(result)

        task = self._loop.create_task(run(), name=getattr(coroutine, "__qualname__", "run"))
        self._running[task] = outcome
        task.add_done_callback(self._running.pop)

    def _cancel(self, outcome: concurrent.futures.Future[Any]) -> None:
        for task, each in self._running.items():
            if each is outcome:
                task.cancel()

    def _main(self) -> None:
        try:
            self._serve()
        finally:
            for outcome in self._awaited.copy():  # what the end has cut short, or never begun
                if not outcome.done():
                    outcome.set_exception(RuntimeError("the emulator was closed meanwhile"))

    def _serve(self) -> None:
        # A loop of asyncio itself whatever the policy says, since only that one has virtual time.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            self._loop = runner.get_loop()
            self._stopped = asyncio.Event()
            self._ready.set()
            while not self._stopped.is_set():
                try:
                    runner.run(self._wait_for_stop())
                except HangError as error:  # it has stopped the loop; those who wait for a result get it
                    for task, outcome in self._running.items():
                        if not outcome.done():  # it may still be cleaning up after an earlier one
                            outcome.set_exception(error)
                        task.cancel()

    async def _wait_for_stop(self) -> None:
        await self._stopped.wait()


class OnThread:
    """The base of an object that lives in a `LoopThread`, and is used from others as if it did not.

    An attribute that another thread reads is read in the loop, and a container is copied, so that it does not
    change while a test looks at it. A method is called in the loop. One that is a coroutine function is left
    as it is: it can be awaited in the loop only.
    """

    _home: LoopThread | None = None
    _called_anywhere: frozenset[str] = frozenset()  # names of methods that find their own way to the loop

    def __getattribute__(self, name: str) -> Any:
        read = functools.partial(super().__getattribute__, name)
        home = None if name.startswith("_") else super().__getattribute__("_home")
        if home is None or not home.is_elsewhere or name in self._called_anywhere:
            return read()
        value = home.call(lambda: _copied(read()))
        if not inspect.ismethod(value) or inspect.iscoroutinefunction(value):
            return value

        @functools.wraps(value)
        def call(*arguments: Any, **options: Any) -> Any:
            return home.call(lambda: _copied(value(*arguments, **options)))

        return call


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, _COPIED) else value
