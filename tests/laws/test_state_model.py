"""All of it in any order: submits, lost answers, cancels, callbacks true and false, waits, restarts,
settling.

Hypothesis makes the calls, over each store; a `Reference` says what must then be stored and paid for. The
network is the emulator, its callbacks reach a real receiver, and time is virtual. The control is the same
over stores that have one fault each.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import attrs
import postgres
import pytest
from aiohttp import web
from canary import CANARY_KEY
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import kie4o
from kie4o import AsyncKieClient, RateLimit
from kie4o.emulator import Emulator, Fault
from kie4o.settings import Secret
from kie4o.stores.memory import MemoryStore
from kie4o.stores.postgres import PostgresStore
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.store import Entry, EntryState, Store
from kie4o.webhooks import routes

SIGNED = "a webhook key"
PRICE = 6
DURATION = 30.0  # seconds that a task takes
LIMIT = RateLimit(2, per=10.0)
PLENTY = RateLimit(1000, per=10.0)  # the clock of a database is not virtual
KEYS = st.sampled_from("abc")
ANSWERS = st.sampled_from(["accepted", "accepted", "refused", "lost", "lost, not charged"])
NAMING = ("true", "altered", "false failure")  # what callbacks say that are signed and about a task of ours
CONTENTS = st.sampled_from([*NAMING, "forged", "unknown task"])
_T = TypeVar("_T")


# -- the reference ---------------------------------------------------------------------------------------


@attrs.define
class Known:
    """One submit that was not refused."""

    key: str
    task: str | None  # at Kie; None: it was not charged
    state: str
    called: bool = False  # a callback has come, so that its end is found without anybody who waits

    @property
    def named(self) -> str | None:
        return None if self.state == "unknown" else self.task


class Reference:
    """What is stored, and what is paid for, after each call."""

    def __init__(self) -> None:
        self.submits: dict[str, list[Known]] = {}  # by key, the last of which the key stands for
        self.results: dict[str, object] = {}  # what the first wait for each task has returned

    def latest(self, key: str) -> Known | None:
        submits = self.submits.get(key)
        return submits[-1] if submits else None

    def all(self) -> list[Known]:
        return [known for submits in self.submits.values() for known in submits]

    def sends(self, key: str, *, resubmit: bool, retry: bool) -> bool:
        """Whether a submit under the key makes a POST."""
        latest = self.latest(key)
        if latest is None:
            return True
        return (latest.state == "unknown" and resubmit) or (latest.state == "failed" and retry)

    def submitted(self, key: str, task: str | None, answer: str) -> None:
        if answer != "refused":
            state = "submitted" if answer == "accepted" else "unknown"
            self.submits.setdefault(key, []).append(Known(key, task, state))

    def called_back(self, task: str, content: str) -> None:
        for known in self.all():
            if known.task == task and content in NAMING:
                known.called = True
                if known.state == "unknown":
                    known.state = "submitted"

    def ended(self, task: str | None, outcome: str) -> None:
        for known in self.all():
            if task is not None and known.named == task:
                known.state = outcome

    def not_charged(self, key: str) -> None:
        self.submits[key].pop()

    def unfinished(self) -> Counter[tuple[str, str | None]]:
        return Counter(
            (known.key, known.named) for known in self.all() if known.state in ("submitted", "unknown")
        )

    def counts(self) -> Counter[str]:
        return Counter(known.state for known in self.all())


# -- the machine -----------------------------------------------------------------------------------------


@attrs.frozen
class Kind:
    """How a store is made: in a folder, by the next client; how many clients have it; and their limit."""

    make: Callable[[Path], Store]
    clients: int = 1
    limit: RateLimit = LIMIT
    lasts: bool = False  # one object is for all clients, one after another


def on_postgres(folder: Path) -> Store:
    return PostgresStore(postgres.shared_url("model"), Secret(f"{CANARY_KEY} {folder}"))


class Machine(RuleBasedStateMachine):
    """Clients of one store, beside the reference."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)
        self.expected = Reference()
        self.outcomes: dict[str, str] = {}  # by task
        self.clients: list[AsyncKieClient] = []
        self.cleanup = contextlib.AsyncExitStack()
        self.kept: Store | None = None

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return self.runner.run(coroutine)

    @initialize()
    def open(self) -> None:
        async def start() -> None:
            limit = self.kind.limit
            settings: dict[str, Any] = {"limit": limit.limit, "per": limit.per, "clock": "virtual"}
            self.kie = Emulator(
                duration=DURATION,
                latency=0.3,
                webhook_key=SIGNED,
                callback="never",
                time_limit=1e9,
                **settings,
            )
            await self.cleanup.enter_async_context(self.kie)
            app = web.Application()
            app.router.add_post("/kie/{ref}", self.receive)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            self.cleanup.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            self.callback_url = f"http://127.0.0.1:{port}/kie/{{ref}}"
            await self.open_clients()

        self.run(start())

    async def open_clients(self) -> None:
        for _ in range(self.kind.clients):
            store = self.kept or self.kind.make(Path(self.folder.name))
            self.kept = store if self.kind.lasts else None
            client = AsyncKieClient(
                CANARY_KEY,
                base_url=self.kie.url,
                store=store,
                rate_limit=self.kind.limit,
                callback_url=self.callback_url,
                webhook_key=SIGNED,
            )
            self.clients.append(await client.__aenter__())

    async def close_clients(self) -> None:
        clients, self.clients = self.clients, []
        for client in clients:
            await client.aclose()

    async def receive(self, request: web.Request) -> web.StreamResponse:
        """A callback reaches any of the clients."""
        [route] = routes(self.clients[len(self.kie.looks()) % len(self.clients)], "/kie/{ref}")
        return await route.handler(request)

    def client(self, which: int) -> AsyncKieClient:
        return self.clients[which % len(self.clients)]

    def newest_task(self, prompt: str, before: set[str]) -> str | None:
        new = [task for task in self.kie.tasks if task not in before]
        assert len(new) <= 1, f"{prompt!r} was paid {len(new)} times"
        return new[0] if new else None

    # -- calls ---------------------------------------------------------------------------------------

    @rule(
        key=KEYS, answer=ANSWERS, outcome=st.sampled_from(["success", "failed"]), resubmit=st.booleans(),
        retry=st.booleans(), which=st.integers(0, 1),
    )  # fmt: skip
    def submit(self, key: str, answer: str, outcome: str, resubmit: bool, retry: bool, which: int) -> None:
        latest = self.expected.latest(key)
        sends = self.expected.sends(key, resubmit=resubmit, retry=retry)
        if sends:
            answers: dict[str, Any] = {
                "refused": 402,
                "lost": Fault("submit", code=500, charged=True),
                "lost, not charged": Fault("submit", code=500, charged=False),
            }
            self.kie.plan(f"town {key}", answer=answers.get(answer), outcome=outcome)
        before, posts = set(self.kie.tasks), len(self.kie.submits)
        how: dict[str, Any] = {"on_unknown": "resubmit" if resubmit else "hold", "retry_failed": retry}
        error, task = None, None
        try:
            task = self.run(self.client(which).submit(f"town {key}", key=key, **how)).id
        except kie4o.KieError as failure:
            error = failure
        assert len(self.kie.submits) - posts == sends
        paid = self.newest_task(f"town {key}", before)
        if paid is not None:
            self.outcomes[paid] = "succeeded" if outcome == "success" else "failed"
        if sends:
            self.expected.submitted(key, paid, answer)
            latest = self.expected.latest(key)
        if sends and answer == "refused":
            assert isinstance(error, kie4o.InsufficientCreditsError)
            return
        assert latest is not None
        assert task == latest.named
        assert isinstance(error, kie4o.SubmissionUnknownError) is (latest.state == "unknown"), error

    @rule(
        key=KEYS, turns=st.integers(0, 40), seconds=st.sampled_from([0.0, 0.1, 1.0]), which=st.integers(0, 1)
    )
    def cancel(self, key: str, turns: int, seconds: float, which: int) -> None:
        """A submit that is cancelled was not sent, or runs to its end."""
        if self.expected.latest(key) is not None:
            return
        before = set(self.kie.tasks)

        async def cancelled() -> None:
            task = asyncio.create_task(self.client(which).submit(f"town {key}", key=key))
            for _ in range(turns):
                await asyncio.sleep(0)
            await asyncio.sleep(seconds)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await asyncio.sleep(5)

        self.run(cancelled())
        paid = self.newest_task(f"town {key}", before)
        if paid is not None:
            self.outcomes[paid] = "succeeded"
            self.expected.submitted(key, paid, "accepted")

    @rule(key=KEYS, which=st.integers(0, 1))
    def conflict(self, key: str, which: int) -> None:
        if self.expected.latest(key) is not None:
            with pytest.raises(kie4o.KeyConflictError):
                self.run(self.client(which).submit("another town", key=key))

    @rule(number=st.integers(0, 5), content=CONTENTS)
    def callback(self, number: int, content: str) -> None:
        """Of any task, also of one whose submit was lost, true or not."""
        tasks = list(self.kie.tasks)
        if not tasks:
            return
        task = tasks[number % len(tasks)]

        async def call() -> None:
            await self.kie.call_back(task, content)
            await asyncio.sleep(5)

        self.run(call())
        self.expected.called_back(task, content)

    @rule(key=KEYS, which=st.integers(0, 1))
    def wait(self, key: str, which: int) -> None:
        latest = self.expected.latest(key)
        if latest is None or latest.named is None:
            return
        task, outcome = latest.named, self.outcomes[latest.named]
        try:
            result: object = self.run(self.client(which).wait(task))
            assert outcome == "succeeded"
        except kie4o.TaskFailedError as error:
            result = str(error)
            assert outcome == "failed"
        assert result == self.expected.results.setdefault(task, result)
        self.expected.ended(task, outcome)

    def check_unfinished(self, found: Counter[tuple[str, str | None]]) -> None:
        """All of it, except what a callback is ending."""
        expected = self.expected.unfinished()
        called = {known.task for known in self.expected.all() if known.called}
        assert all(task in called for _, task in expected - found)
        assert not found - expected

    @rule(which=st.integers(0, 1))
    def resume(self, which: int) -> None:
        async def resume() -> list[tuple[str, str | None]]:
            return [(done.key, done.task_id) async for done in self.client(which).resume()]

        self.check_unfinished(Counter(self.run(resume())))
        for known in self.expected.all():
            if known.named is not None:
                self.expected.ended(known.named, self.outcomes[known.named])

    @rule(key=KEYS, which=st.integers(0, 1))
    def settle(self, key: str, which: int) -> None:
        """What a person finds at Kie: the task, or that there is none."""
        latest = self.expected.latest(key)
        if latest is None or latest.state != "unknown":
            return
        if latest.task is None:
            self.run(self.client(which).settle(key, charged=False))
            self.expected.not_charged(key)
        else:
            entry = self.run(self.client(which).settle(key, task_id=latest.task))
            assert entry.task_id == latest.task
            latest.state = "submitted" if entry.state is EntryState.SUBMITTED else self.outcomes[latest.task]

    @rule(seconds=st.sampled_from([1.0, 12.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule()
    def restart(self) -> None:
        async def restart() -> None:
            await self.close_clients()
            await self.open_clients()

        self.run(restart())
        for known in self.expected.all():
            known.called = known.called and known.state == "submitted"

    # -- what must hold -----------------------------------------------------------------------------------

    @invariant()
    def as_expected(self) -> None:
        for which in range(len(self.clients)):
            self.run(self.check(self.client(which)))

    async def check(self, client: AsyncKieClient) -> None:
        for key in "abc":
            entry, latest = await client.find(key), self.expected.latest(key)
            if latest is not None and entry is not None and latest.called and entry.state.ended:
                self.expected.ended(latest.named, self.outcomes[latest.task or ""])
            assert entry is None if latest is None else entry is not None
            if entry is not None and latest is not None:
                assert (entry.state.value, entry.task_id) == (latest.state, latest.named)
        unfinished = [(entry.callers_key, entry.task_id) async for entry in client.unfinished()]
        self.check_unfinished(Counter(unfinished))
        spent = await client.spent()
        assert spent.credits == PRICE * len(self.expected.all())
        assert self.kie.paid == sum(known.task is not None for known in self.expected.all())
        assert self.kie.windows() <= self.kind.limit.limit
        assert self.kie.windows("look") <= 3
        assert self.kie.answers()[429] == 0

    def teardown(self) -> None:
        async def close() -> None:
            await self.close_clients()
            await self.cleanup.aclose()

        try:
            self.run(close())
        finally:
            self.runner.close()
            self.folder.cleanup()


KINDS = {
    "memory": Kind(lambda folder: MemoryStore(), lasts=True),
    "sqlite": Kind(lambda folder: SQLiteStore(folder / "run.db")),
    "postgres": Kind(on_postgres, clients=2, limit=PLENTY),
}


@pytest.mark.hypothesis
@pytest.mark.parametrize("kind", KINDS)
def test_any_order(kind: str) -> None:
    examples = settings.default.max_examples // 6
    run_state_machine_as_test(
        lambda: Machine(KINDS[kind]), settings=settings(max_examples=examples, stateful_step_count=15)
    )


# -- the control -----------------------------------------------------------------------------------------


class Unsure(MemoryStore):
    """Takes an unknown outcome for a refusal."""

    async def save(self, entry: Entry) -> None:
        unsure = entry.state is EntryState.UNKNOWN
        await super().save(attrs.evolve(entry, state=EntryState.PLANNED) if unsure else entry)


class Endless(MemoryStore):
    """Does not keep how tasks end."""

    async def save(self, entry: Entry) -> None:
        if not entry.state.ended:
            await super().save(entry)


class Forgetful(MemoryStore):
    """Loses the earlier submit of a key."""

    async def begin(self, entry: Entry, superseded: Entry | None = None) -> None:
        await super().begin(entry)


class Nameless(MemoryStore):
    """Does not find what a ref belongs to."""

    async def find(
        self, *, key: str | None = None, task_id: str | None = None, ref: str | None = None
    ) -> Entry | None:
        return await super().find(key=key, task_id=task_id)


@pytest.mark.parametrize("store", [Unsure, Endless, Forgetful, Nameless])
def test_control_a_store_with_a_fault(store: type[MemoryStore]) -> None:
    kind = Kind(lambda folder: store(), lasts=True)
    how = settings(
        max_examples=200,
        stateful_step_count=15,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        print_blob=False,
    )
    with pytest.raises((AssertionError, kie4o.KieError, ExceptionGroup)):
        run_state_machine_as_test(lambda: Machine(kind), settings=how)
