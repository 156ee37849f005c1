"""One life of the program: its clients, its calls, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import anyio
from aiohttp import web

from kie4o import AsyncKieClient, PollPolicy, RateLimit
from kie4o.errors import KieError, StoreError
from kie4o.events import Event
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.store import Store
from kie4o.webhooks import routes
from simulation.calls import Calling, Outcome
from simulation.kie import KEY, listening_socket
from simulation.loop import START, Life
from simulation.plan import LETTERS, LifePlan, When
from simulation.store import LoopWorker

if TYPE_CHECKING:
    from simulation.play import World

POLICIES = {
    "default": None,
    "adaptive": PollPolicy.adaptive(),
    "fast": PollPolicy(first=0.34, factor=1.0, maximum=0.34),
}
REST = 400.0  # seconds after which nothing is under way any more
QUIET = 3000.0  # in which every call must end
CLOSED = 70.0  # the same after closing


class Run:
    """One life of the program."""

    def __init__(self, world: World, number: int, plan: LifePlan) -> None:
        self.world, self.number, self.plan = world, number, plan
        self.loop, self.kie = world.loop, world.kie
        self.life = Life(number, mortal=plan.end == "kill")
        self.started = self.loop.now
        self.first_turn = self.loop.turn
        self.cut_at: tuple[float, int] | None = None  # time and turn at which it was cut short
        self.clients: dict[str, AsyncKieClient] = {}
        self.workers: list[LoopWorker] = []
        self.runner: web.AppRunner | None = None
        self.callers: dict[asyncio.Task[None], Outcome] = {}
        self._awaited: list[tuple[str, str, int, int, Callable[[], object]]] = []

    def inside(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """A task of the program."""
        return self.loop.create_task(coroutine, name=name, context=self.life.context.copy())

    # -- moments ---------------------------------------------------------------------------------------

    def at(self, when: When, action: Callable[[], object], prompt: str = "") -> None:
        if when.event:
            of = "" if when.event == "commit" else prompt
            self._awaited.append((when.event, of, when.nth, when.turns or 0, action))
        elif when.turns is not None:
            self.loop.at_turn(self.first_turn + when.turns, action)
        else:
            self.loop.call_at(self.started + when.seconds, action)

    def happened(self, event: str, prompt: str) -> None:
        for number, (awaited, of, nth, turns, action) in enumerate(self._awaited):
            if awaited == event and of in ("", prompt):
                self._awaited[number] = (awaited, of, nth - 1, turns, action)
                if nth == 1:
                    self.loop.at_turn(self.loop.turn + turns, action)

    # -- from the beginning to the end -----------------------------------------------------------------

    async def live(self) -> None:
        world, end = self.world, self.plan.end
        world.note("program", f"life {self.number} begins")
        opening = self.inside(self._open(), "opening")
        await asyncio.wait([opening])
        if opening.exception() is not None:
            world.breaks("foreign", f"life {self.number} could not be opened: {opening.exception()!r}")
            return
        self._call()
        if end == "quiet":
            await self._come_to_rest()
        else:
            await self._until(functools.partial(self._end, end))
        if end in ("quiet", "close"):
            await self._close()
        elif end == "interrupt":
            await self._interrupted()
        for task, outcome in self.callers.items():
            if task.done():
                self._judge(task, outcome)

    async def _until(self, action: Callable[[], object]) -> None:
        """Do that at the moment of the end, or after a minute if its event does not happen."""
        done = self.loop.create_future()

        def act() -> None:
            if not done.done():
                action()
                done.set_result(None)

        self.at(self.plan.when, act)
        await asyncio.wait([done], timeout=60)
        act()

    def _end(self, how: str) -> None:
        self.world.note("program", f"life {self.number} ends: {how}")
        if how != "close":
            self.kie.receivers.clear()
            self.cut_at = (self.loop.now, self.loop.turn)
        if how == "kill":
            self._kill()
        elif how == "interrupt":
            self._cancel_all()

    def _kill(self) -> None:
        for worker in self.workers:
            worker.kill()
        if self.runner is not None:
            self.life.protocols += self.runner.server.connections
        self.loop.kill(self.life)

    def _cancel_all(self) -> list[asyncio.Task[Any]]:
        left = [task for task in self.life.tasks if not task.done()]
        for task in left:
            task.cancel()
        return left

    async def _open(self) -> None:
        plan = self.world.plan
        for letter in LETTERS[: plan.clients]:
            while letter not in self.clients:
                client = self._client(letter)
                try:
                    self.clients[letter] = await client.__aenter__()
                except StoreError:
                    await client.aclose()
                    if not plan.failing:
                        raise
        if plan.callbacks and plan.http:
            await self._serve()
        elif plan.callbacks:
            for letter, client in self.clients.items():
                self.kie.receivers[letter] = functools.partial(
                    self._received, client.receiver(allow_unsigned=True)
                )

    def _client(self, letter: str) -> AsyncKieClient:
        world, plan = self.world, self.world.plan
        port = 0 if world.receiving is None else world.receiving.getsockname()[1]
        return AsyncKieClient(
            KEY,
            base_url=f"http://127.0.0.1:{self.kie.port}",
            timeout=plan.timeout,
            wait_timeout=plan.wait_timeout,
            max_in_flight=plan.max_in_flight,
            rate_limit=RateLimit(plan.limit, per=plan.per),
            poll=POLICIES[plan.poll],
            callback_url=f"http://127.0.0.1:{port}/{letter}/{{ref}}" if plan.callbacks else None,
            webhook_key=plan.webhook_key,
            trust_callbacks=plan.trust,
            store=self._store(letter),
            on_event=functools.partial(self._event, letter) if plan.failing or world.tracer else None,
        )

    def _store(self, letter: str) -> Store:
        world, plan = self.world, self.world.plan
        if plan.store == "memory":
            return world.memory[letter]
        path = world.path_of(letter)
        if plan.store == "thread":
            return SQLiteStore(path)
        seed = f"{plan.seed}:{self.number}:{letter}:{len(self.workers)}"
        committed = functools.partial(world.happened, "commit")
        self.workers.append(LoopWorker(seed, slow=plan.slow, failing=plan.failing, on_commit=committed))
        return SQLiteStore(path, worker=self.workers[-1])

    def _event(self, letter: str, event: Event) -> None:
        if self.life.dead:
            return
        self.world.note(f"client {letter}", event)
        if getattr(event, "task_id", None):
            self.world.reported.add(event.task_id)

    # -- the receiver of callbacks ---------------------------------------------------------------------

    async def _received(self, receiver: Any, headers: dict[str, str], body: bytes, ref: str) -> int:
        return int(await self.inside(receiver.receive(headers, body, ref), "receiver"))

    async def _serve(self) -> None:
        app = web.Application()
        for letter, client in self.clients.items():
            app.add_routes(routes(client, f"/{letter}/{{ref}}", allow_unsigned=True))
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        port = self.world.receiving.getsockname()[1]
        listening = listening_socket(port)
        self.life.sockets.append(listening)
        await web.SockSite(self.runner, listening).start()
        for letter in self.clients:
            self.kie.receivers[letter] = functools.partial(_posted, port, letter)

    # -- what the program does -------------------------------------------------------------------------

    def _call(self) -> None:
        for call in self.plan.calls:
            outcome = Outcome(call, self.number)
            self.world.outcomes.append(outcome)
            scope = anyio.CancelScope() if call.cancel is not None and call.cancel.level else None
            task = self.inside(self._caller(outcome, scope), f"caller {call.verb}")
            self.callers[task] = outcome
            if call.cancel is not None:
                self.at(call.cancel.when, functools.partial(self._cancel, task, outcome, scope), call.prompt)

    def _cancel(self, task: asyncio.Task[None], outcome: Outcome, scope: anyio.CancelScope | None) -> None:
        if task.done() or self.life.dead:
            return
        self.world.note("program", f"cancels {outcome.call.verb} {outcome.call.prompt}")
        outcome.cancelled_at = self.loop.now
        if scope is not None:
            self.life.context.copy().run(scope.cancel)
            return
        task.cancel()
        if outcome.call.cancel.again is not None:
            self.loop.at_turn(self.loop.turn + outcome.call.cancel.again, task.cancel)

    async def _caller(self, outcome: Outcome, scope: anyio.CancelScope | None) -> None:
        call, world = outcome.call, self.world
        with scope or contextlib.nullcontext():
            await asyncio.sleep(call.at)
            outcome.started_at = self.loop.now
            world.note("program", f"calls {call.verb} {call.prompt or call.batch}")
            try:
                await Calling(self.clients[call.letter], self.kie, call, outcome).make()
            except BaseException as error:
                if not self.life.dead:  # else it is being buried
                    outcome.error = error
                    outcome.failed(error)
                raise
            finally:
                if not self.life.dead:
                    outcome.ended_at = self.loop.now
                    world.note("program", f"has {outcome}")
        if scope is not None and scope.cancelled_caught:
            raise asyncio.CancelledError

    # -- how it ends -----------------------------------------------------------------------------------

    async def _come_to_rest(self) -> None:
        await self._await_callers(QUIET)
        await asyncio.sleep(REST)
        self._check_rest("at rest")

    async def _await_callers(self, seconds: float) -> None:
        pending = [task for task in self.callers if not task.done()]
        if pending:
            _, pending = await asyncio.wait(pending, timeout=seconds)
        for task in pending:
            self.world.breaks("hang", f"{self.callers[task]} has not ended after {seconds:g} s")

    async def _close(self) -> None:
        await asyncio.wait([self.inside(self._close_clients(), "closing")])
        await self._await_callers(CLOSED)
        if self.runner is not None:
            await self.inside(self.runner.cleanup(), "closing")
        self._check_rest("after closing")
        ours = [task for task in self.life.tasks if not task.done() and task.get_name().startswith("kie4o")]
        if ours:
            self.world.breaks("nothing is left", f"tasks after closing: {ours}")

    async def _close_clients(self) -> None:
        began, clients = self.loop.now, [*self.clients.values()]
        closing = [asyncio.create_task(client.aclose(), name="closing") for client in clients]
        if self.plan.close_twice:
            closing += [asyncio.create_task(client.aclose(), name="closing") for client in clients]
        if self.plan.cancel_close is not None:
            await asyncio.wait(closing, timeout=self.plan.cancel_close)
            self.cut_at = (self.loop.now, self.loop.turn)
            for task in closing:
                task.cancel()
        await asyncio.wait(closing, timeout=300)
        for task in closing:
            if not task.done():
                self.world.breaks("hang", "aclose has not ended after 300 s")
            elif not task.cancelled() and task.exception() is not None:
                self.world.breaks("foreign", f"aclose raised {task.exception()!r}")
        for client in clients:
            await client.aclose()
        if self.loop.now - began > 40:
            self.world.breaks("hang", f"aclose took {self.loop.now - began:.1f} s")

    async def _interrupted(self) -> None:
        """All was cancelled, and is waited for, as `asyncio.run` does. What that starts is cancelled too."""
        left = [task for task in self.life.tasks if not task.done()]
        for seconds in (100.0, 3.0, 3.0):
            if left:
                _, left = await asyncio.wait(left, timeout=seconds)
            if left and seconds == 100.0:
                self.world.breaks("hang", f"cancelled tasks go on: {[task.get_name() for task in left]}")
            left = self._cancel_all()
        self._kill()

    def _check_rest(self, when: str) -> None:
        for letter, client in self.clients.items():
            parts = client._runtime
            counts = {
                "permits in use": parts.lifecycle.permits.in_use,
                "slots that are open": parts.limiter.open,
                "waiters for slots": parts.limiter.waiting,
                "live submits": parts.submissions.live,
                "waiters for tasks": parts.poller.waiting,
                "callbacks under way": 0 if self.world.plan.failing else parts.delivery.pending,
            }
            for what, count in counts.items():
                if count:
                    self.world.breaks("nothing is left", f"{count} {what} of {letter} {when}")

    def _judge(self, task: asyncio.Task[None], outcome: Outcome) -> None:
        """What a call may end with."""
        error = None if task.cancelled() else task.exception()
        if task.cancelled():
            if outcome.cancelled_at is None and self.plan.end not in ("interrupt", "kill"):
                self.world.breaks("foreign", f"{outcome}: CancelledError, although nobody has cancelled it")
        elif outcome.cancelled_at is not None and not self._was_too_late(outcome):
            self.world.breaks(
                "cancel", f"{outcome}: cancelled at {outcome.cancelled_at - START:.3f} and swallowed"
            )
        if error is not None and not isinstance(error, KieError):
            self.world.breaks("foreign", f"{outcome}: {error!r}")

    def _was_too_late(self, outcome: Outcome) -> bool:
        """A cancel scope does not strike a call whose result is there."""
        level = outcome.call.cancel is not None and outcome.call.cancel.level
        return level and outcome.ended_at == outcome.cancelled_at

    async def bury(self) -> None:
        """Close what is left of it without anybody noticing, or it would complain when it is collected."""
        if self.plan.end in ("quiet", "close") and not any(name == "hang" for name, _ in self.world.broken):
            return
        if not self.life.dead:
            self._kill()
        for task in self.life.tasks:
            if not task.done():
                end_coroutine_of(task)
        for client in self.clients.values():
            await client.aclose()
        for held in (self.clients, self.callers, self.life.tasks, self.life.handles):
            held.clear()


def end_coroutine_of(task: asyncio.Task[Any]) -> None:
    """Close it, again if it waits for something else on its way out, as at the end of a `finally`."""
    coroutine: Any = task.get_coro()
    while inspect.getcoroutinestate(coroutine) != inspect.CORO_CLOSED:
        with contextlib.suppress(BaseException):
            coroutine.close()


async def _posted(port: int, letter: str, headers: dict[str, str], body: bytes, ref: str) -> int:
    """The status that a server answers a callback with; 0 if it does not."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return 0
    with contextlib.closing(writer), contextlib.suppress(OSError, IndexError, ValueError):
        fields = {"Host": "x", "Content-Length": str(len(body)), "Connection": "close", **headers}
        lines = [f"POST /{letter}/{ref} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        return int((await reader.readline()).split()[1])
    return 0
