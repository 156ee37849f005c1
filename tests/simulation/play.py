"""A plan, played: what the program does in each of its lives, and how these end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import random
import sys
import tempfile
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import anyio
import attrs
from aiohttp import web

from kie4o import AsyncKieClient, PollPolicy, RateLimit
from kie4o.errors import KieError, StoreError
from kie4o.events import Event
from kie4o.stores.memory import MemoryStore
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.store import Entry, EntryState, Store
from kie4o.webhooks import routes
from simulation.kie import Kie, Task, listening_socket
from simulation.loop import START, HangError, Life, WorldLoop
from simulation.plan import LETTERS, Call, LifePlan, Plan, When
from simulation.store import LoopWorker, reading_store

KEY = "sk-canary-0f7d3be59a1c4426"  # what the tests search errors and logs for
POLICIES = {
    "default": None,
    "adaptive": PollPolicy.adaptive(),
    "fast": PollPolicy(first=0.34, factor=1.0, maximum=0.34),
}
REST = 400.0  # seconds after which nothing is under way any more
QUIET = 3000.0  # in which every call must end
CLOSED = 70.0  # the same after closing
LIMIT = 60_000.0  # of a world
SHM = Path("/dev/shm")  # where fsync takes no time

Tracer = Callable[[WorldLoop, str, object], None]


@attrs.define(eq=False)
class Outcome:
    """What became of a call."""

    call: Call
    life: int
    started_at: float | None = None
    waits_from: float | None = None  # for its task
    ended_at: float | None = None
    cancelled_at: float | None = None
    error: BaseException | None = None
    results: list[Any] = attrs.field(factory=list)
    errors: list[BaseException] = attrs.field(factory=list)
    completions: list[Any] = attrs.field(factory=list)
    task_ids: set[str] = attrs.field(factory=set)

    def failed(self, error: BaseException) -> None:
        self.errors.append(error)
        self.knows(getattr(error, "task_id", None))
        for note in getattr(error, "__notes__", ()):
            if note.startswith("Task "):
                self.knows(note.split()[1])

    def knows(self, task_id: str | None) -> None:
        if task_id is not None:
            self.task_ids.add(task_id)

    def __str__(self) -> str:
        what = self.call.prompt or self.call.batch
        return f"{self.call.verb} {what} of life {self.life} -> {self.error or self.results!r}"


class World:
    """A world while it is played, and what is known of it afterwards."""

    def __init__(self, plan: Plan, folder: Path, tracer: Tracer | None) -> None:
        self.plan = plan
        self.folder = folder
        self.tracer = tracer
        self.loop = WorldLoop(limit=LIMIT)
        self.kie = Kie(self.loop, plan, event=self.happened, note=self.note)
        self.memory = {letter: MemoryStore() for letter in LETTERS}
        self.receiving = listening_socket() if plan.http else None  # holds the port of the receiver
        self.runs: list[Run] = []
        self.outcomes: list[Outcome] = []
        self.entries: list[Entry] = []  # of all stores, at the end
        self.kept: dict[str, set[str]] = {}  # the task ids that callbacks have named, by ref
        self.reported: set[str] = set()  # the task ids in events
        self.broken: list[tuple[str, str]] = []  # laws, and how

    # -- for those who take part -----------------------------------------------------------------------

    def note(self, who: str, what: object) -> None:
        if self.tracer is not None:
            self.tracer(self.loop, who, what)

    def breaks(self, law: str, how: object) -> None:
        self.broken.append((law, str(how)))
        self.note("LAW", f"{law}: {how}")

    def happened(self, event: str, prompt: str = "") -> None:
        self.runs[-1].happened(event, prompt)

    def path_of(self, letter: str) -> Path:
        return self.folder / f"{letter}.db"

    @property
    def crashed(self) -> bool:
        return any(life.end in ("kill", "interrupt") for life in self.plan.lives)

    @property
    def disconnected(self) -> bool:
        """Whether a connection may have been refused or reset before a request."""
        return bool(self.kie.resets_at_accept or self.plan.outage)

    # -- the whole of it -------------------------------------------------------------------------------

    def play(self) -> None:
        self.loop.set_exception_handler(self._unhandled)
        try:
            self.loop.run_until_complete(self._play())
        except HangError as error:
            self.breaks("hang", error)
        finally:
            self.loop.set_exception_handler(lambda loop, context: None)  # what is dead is collected now
            self.kie.close()
            if self.receiving is not None:
                self.receiving.close()
            with contextlib.suppress(HangError):
                for run in self.runs:
                    self.loop.run_until_complete(run.bury())
                self.loop.run_until_complete(asyncio.sleep(0.01))  # closed transports close their sockets
            self.loop.close()

    async def _play(self) -> None:
        plan = self.plan
        await self.kie.start()
        if plan.outage is not None:
            self.kie.spawn(self.kie.be_down(*plan.outage))
        for after, seconds in plan.steps:
            self.loop.call_later(after, self._step_clock, seconds)
        for number, life in enumerate(plan.lives):
            self.kie.life = number
            self.runs.append(Run(self, number, life))
            await self.runs[-1].live()
            self.kie.receivers.clear()
            if life.reboot:
                self.loop.kie4o_clock.restart()
            await asyncio.sleep(life.gap)
        for letter in LETTERS[: plan.clients]:
            store = self.memory[letter] if plan.store == "memory" else reading_store(self.path_of(letter))
            try:
                await self._read_store(store)
            except KieError as error:
                self.breaks("store", f"it cannot be read afterwards: {error!r}")

    def _step_clock(self, seconds: float) -> None:
        self.note("machine", f"its wall clock is set by {seconds:g} s")
        self.loop.kie4o_clock.step(seconds)

    async def _read_store(self, store: Store) -> None:
        """What the next life would find, by all the names that are known from outside."""
        await store.open()
        found = {entry.ref: entry async for entry in store.unfinished()}
        names = [{"key": call.key} for call in self.plan.calls if call.key]
        names += [{"task_id": task_id} for task_id in self.kie.tasks]
        names += [{"ref": post.ref} for post in self.kie.posts if post.ref]
        for name in names:
            entry = await store.find(**name)
            if entry is not None:
                found[entry.ref] = entry
        for ref in found:
            self.kept[ref] = set(await store.callbacks_of(ref))
        self.entries += found.values()
        await store.aclose()

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.breaks("nothing is unhandled", {name: str(value)[:300] for name, value in context.items()})


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
                await getattr(self, "_" + call.verb.replace(" ", "_"))(
                    self.clients[call.letter], call, outcome
                )
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

    def _arguments(self, call: Call) -> dict[str, Any]:
        return {"key": call.key, "on_unknown": call.on_unknown, "retry_failed": call.retry_failed}

    async def _generate(self, client: AsyncKieClient, call: Call, outcome: Outcome) -> None:
        more = self._arguments(call) | ({} if call.timeout is None else {"timeout": call.timeout})
        if call.on_update:
            more["on_update"] = lambda details: asyncio.sleep(0.05)
        result = await client.generate(call.prompt, **more)
        outcome.results.append(result)
        outcome.knows(result.task_id)

    async def _submit_only(self, client: AsyncKieClient, call: Call, outcome: Outcome) -> Any:
        task = await client.submit(call.prompt, **self._arguments(call))
        outcome.knows(task.id)
        outcome.results.append(task)
        return task

    async def _submit(self, client: AsyncKieClient, call: Call, outcome: Outcome) -> None:
        task = await self._submit_only(client, call, outcome)
        outcome.waits_from = self.loop.now
        outcome.results[:] = [await task.wait(**({} if call.timeout is None else {"timeout": call.timeout}))]

    async def _generate_many(self, client: AsyncKieClient, call: Call, outcome: Outcome) -> None:
        async def lazily() -> AsyncGenerator[str]:
            for item in call.items:
                await asyncio.sleep(0.01)
                yield item

        completions = client.generate_many(
            lazily() if call.lazy else call.items,
            batch=call.batch,
            max_in_flight=call.max_in_flight,
            on_unknown=call.on_unknown,
            retry_failed=call.retry_failed,
        )
        async with contextlib.aclosing(completions):
            if call.stop_after != 0:
                await self._take(completions, outcome, call.stop_after)

    async def _resume(self, client: AsyncKieClient, call: Call, outcome: Outcome) -> None:
        async with contextlib.aclosing(client.resume()) as completions:
            await self._take(completions, outcome, None)

    async def _take(self, completions: AsyncGenerator[Any], outcome: Outcome, most: int | None) -> None:
        async for completion in completions:
            outcome.completions.append(completion)
            outcome.knows(completion.task_id)
            if completion.ok:
                outcome.results.append(completion.result)
            else:
                outcome.failed(completion.error)
            if len(outcome.completions) == most:
                break

    def _tasks(self, call: Call) -> list[Task]:
        """Two tasks that this client has submitted in this life or an earlier one."""
        return [task for task in self.kie.tasks.values() if task.prompt[0] == call.letter][-2:]

    async def _details(self, client: AsyncKieClient, call: Call, outcome: Outcome) -> None:
        for task in self._tasks(call):
            for _ in range(4):  # as fast as it admits
                await client.details(task.id)

    async def _wait(self, client: AsyncKieClient, call: Call, outcome: Outcome) -> None:
        for task in self._tasks(call):
            outcome.waits_from = self.loop.now
            more = {} if call.timeout is None else {"timeout": call.timeout}
            outcome.results.append(await client.wait(task.id, **more))

    async def _updates(self, client: AsyncKieClient, call: Call, outcome: Outcome) -> None:
        for task in self._tasks(call):
            outcome.waits_from = self.loop.now
            more = {} if call.timeout is None else {"timeout": call.timeout}
            async with contextlib.aclosing(client.task(task.id).updates(**more)) as updates:
                async for _ in updates:
                    pass

    async def _deliver(self, client: AsyncKieClient, call: Call, outcome: Outcome) -> None:
        for task in self._tasks(call):
            if task.ref is not None:
                body, headers = self.kie.callback_of(task), self.kie.signature_of(task.id)
                await client.deliver(client.parse_callback(body, headers, ref=task.ref))

    async def _unfinished(self, client: AsyncKieClient, call: Call, outcome: Outcome) -> None:
        async for entry in client.unfinished():
            outcome.knows(entry.task_id)

    async def _settle(self, client: AsyncKieClient, call: Call, outcome: Outcome) -> None:
        """A person looks at Kie's logs, and finds the one submit of this prompt, or that there was none."""
        async for entry in client.unfinished():
            posts = [post for post in self.kie.posts if post.prompt == entry.request.prompt]
            if entry.state is EntryState.UNKNOWN and len(posts) == 1:
                [post] = posts
                finding = {"task_id": post.task.id} if post.task else {"charged": False}
                settled = await client.settle(entry, **finding)
                outcome.knows(settled.task_id)

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
                with contextlib.suppress(BaseException):
                    task.get_coro().close()
        for client in self.clients.values():
            await client.aclose()
        for held in (self.clients, self.callers, self.life.tasks, self.life.handles):
            held.clear()


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


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """What was killed complains when it is collected."""
    old, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook = old


def play(plan: Plan, tracer: Tracer | None = None) -> World:
    """Play it to its end; `laws.broken` says what it has broken."""
    random.seed(plan.seed)  # the jitter of polls and resends
    with (
        _unheard(),
        tempfile.TemporaryDirectory(prefix="world-", dir=SHM if SHM.is_dir() else None) as folder,
    ):
        world = World(plan, Path(folder), tracer)
        world.play()
        if world.crashed:
            gc.collect()
    return world
