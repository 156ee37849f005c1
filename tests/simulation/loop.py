"""Virtual time on one loop, and lives on it that end as by `kill -9`.

A `Life` is one run of a program. Whatever is started in its context belongs to it: tasks, timers and
connections. `kill` freezes all of that between two turns of the loop. No except block, no finally and no
callback of it runs any more, and its sockets are closed, as the kernel does. Nothing is patched: the loop
forgets what the life has scheduled, and takes nothing more from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar, copy_context
from typing import Any

START = 1000.0  # of every world, on the clock of its loop
EPOCH = 1.7e9  # what the wall clock shows at loop time 0
PATIENCE = 5.0  # real seconds to wait for a thread

LIFE: ContextVar[Life | None] = ContextVar("life", default=None)


class HangError(RuntimeError):
    """Nothing is ready, and no timer is set; or virtual time is over."""


class Life:
    """One run of a program, with a context for all that it starts."""

    def __init__(self, number: int, *, mortal: bool) -> None:
        self.number = number
        self.mortal = mortal  # it will be killed: what it schedules is noted
        self.dead = False
        self.died_at: float | None = None
        self.tasks: list[asyncio.Task[Any]] = []
        self.handles: list[asyncio.Handle] = []
        self.protocols: list[Any] = []  # of aiohttp, which have a `transport`
        self.sockets: list[socket.socket] = []
        self.context = copy_context()
        self.context.run(LIFE.set, self)


class Machine:
    """The computer that the program runs on, whose wall clock can be set, and which can be started anew.

    It is the loop's `kie4o_clock`, by which `kie4o.clock` tells the time.
    """

    def __init__(self, loop: WorldLoop) -> None:
        self._loop = loop
        self._ahead = 0.0  # by how many seconds the wall clock is wrong
        self._started = 0.0  # at this loop time
        self.working_threads = 0

    def read(self, real: Callable[[], float]) -> float:
        if real is time.time:
            return EPOCH + self._loop.now + self._ahead
        return self._loop.now - self._started

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """A thread works, and will wake the loop: time stands still."""
        self.working_threads += 1
        try:
            yield
        finally:
            self.working_threads -= 1

    def step(self, seconds: float) -> None:
        self._ahead += seconds

    def restart(self) -> None:
        self._started = self._loop.now


class _JumpingSelector(selectors.DefaultSelector):
    """Where the loop waits for events, once a turn: it jumps to the next timer instead."""

    loop: WorldLoop

    def select(self, timeout: float | None = None) -> Any:
        loop = self.loop
        loop.turn += 1
        for action in loop.actions.pop(loop.turn, ()):
            action()
            timeout = 0  # it may have scheduled something, or taken away what was
        events = super().select(0)
        if events or timeout == 0:
            return events
        if loop.kie4o_clock.working_threads:
            return super().select(PATIENCE)
        if timeout is None:
            raise HangError("nothing is ready and no timer is set")
        loop.now += timeout
        if loop.now > loop.end:
            raise HangError(f"virtual time is over: {loop.end - START:g} s")
        return events


class WorldLoop(asyncio.SelectorEventLoop):
    """A loop whose time jumps, which counts its turns, and on which a life can be killed."""

    def __init__(self, *, limit: float) -> None:
        self.now = START
        self.end = START + limit
        self.turn = 0
        self.actions: dict[int, list[Callable[[], object]]] = {}  # by the turn before which they happen
        self.kie4o_clock = Machine(self)
        selector = _JumpingSelector()
        selector.loop = self
        super().__init__(selector)
        self.set_task_factory(self._task)

    def time(self) -> float:
        return self.now

    def at_turn(self, turn: int, action: Callable[[], object]) -> None:
        """Between two turns; at once if it is too late."""
        self.actions.setdefault(max(turn, self.turn + 1), []).append(action)

    def kill(self, life: Life) -> None:
        life.dead, life.died_at = True, self.now
        for handle in life.handles:
            handle.cancel()
        transports = [each.transport for each in life.protocols if each.transport is not None]
        connected = {transport.get_extra_info("socket").fileno() for transport in transports}
        for transport in transports:
            transport.abort()
        for each in life.sockets:
            if each.fileno() != -1 and each.fileno() not in connected:  # it listens, or is being connected
                self._close(each)

    def _close(self, sock: socket.socket) -> None:
        try:
            self.remove_reader(sock)
            self.remove_writer(sock)
        except RuntimeError:  # it has a transport that does not read yet, and the loop knows its descriptor
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        else:
            sock.close()

    # -- what belongs to a life ------------------------------------------------------------------------

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        return _noted(super().call_soon(callback, *args, context=context), context)

    def call_at(
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return _noted(super().call_at(when, callback, *args, context=context), context)

    def _task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **more: Any) -> asyncio.Task[Any]:
        life, context = LIFE.get(), more.get("context")
        if context is not None:
            if life is not None and LIFE not in context:  # an empty one does not make it immortal
                context.run(LIFE.set, life)
            life = context.get(LIFE)
        task = asyncio.Task(coroutine, loop=loop, **more)
        if life is not None:
            life.tasks.append(task)
        return task

    async def create_connection(self, protocol_factory: Any, *args: Any, **more: Any) -> Any:
        def noted() -> Any:
            protocol, life = protocol_factory(), LIFE.get()
            if life is not None:
                life.protocols.append(protocol)
            return protocol

        return await super().create_connection(noted, *args, **more)

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        life = LIFE.get()
        if life is not None:
            life.sockets.append(sock)
        await super().sock_connect(sock, address)

    def run_in_executor(self, *args: Any) -> asyncio.Future[Any]:
        working = contextlib.ExitStack()
        working.enter_context(self.kie4o_clock.working())
        future = super().run_in_executor(*args)
        future.add_done_callback(lambda _: working.close())
        return future


def _noted(handle: Any, context: Context | None) -> Any:
    life = LIFE.get() if context is None else context.get(LIFE)
    if life is not None:
        if life.dead:
            handle.cancel()
        elif life.mortal:
            life.handles.append(handle)
    return handle
