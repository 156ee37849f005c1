"""One suite for every store: what `kie4o.stores.store.Store` promises.

Another implementation adds a line to `KINDS`.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pooler
import postgres
import pytest
from canary import CANARY_KEY
from cancelling import cancelled_after, cancelled_at
from entries import A_DAY_AGO, ENTRIES, PATIENCE, ended, entry_of, plain, submitted, unfinished_keys
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from proving import DEEP

from kie4o import Spent, StoreError, TaskDetails, TaskState
from kie4o.pricing import Subtotal
from kie4o.settings import Secret
from kie4o.stores.memory import MemoryStore
from kie4o.stores.postgres import PostgresStore
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.store import DuplicateTaskError, Entry, EntryState, Store
from kie4o.wire import decoding


def on_postgres(folder: Path) -> Store:
    """For each directory another account: a schema takes 0.2 s."""
    return PostgresStore(postgres.shared_url("suite"), Secret(f"{CANARY_KEY} {folder}"))


def behind_a_pooler(folder: Path) -> Store:
    return PostgresStore(pooler.pooled_url("suite"), Secret(f"{CANARY_KEY} {folder}"))


@attrs.frozen
class Kind:
    """How to create a store in a directory; `durable` if another object finds its contents there."""

    make: Callable[[Path], Store]
    durable: bool


KINDS = {
    "memory": Kind(lambda folder: MemoryStore(), durable=False),
    "sqlite": Kind(lambda folder: SQLiteStore(folder / "run.db"), durable=True),
    "postgres": Kind(on_postgres, durable=True),
}
EACH = [
    *(pytest.param(kind, id=name) for name, kind in KINDS.items()),
    pytest.param(
        Kind(behind_a_pooler, durable=True), id="pooler", marks=[pytest.mark.sweep, pytest.mark.once]
    ),
]

every_kind = pytest.mark.parametrize("kind", EACH)
UNFINISHED = (EntryState.SUBMITTED, EntryState.UNKNOWN)


@pytest.fixture(params=EACH)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@every_kind
def test_a_closed_store_opens_in_another_loop(kind: Kind, tmp_path: Path) -> None:
    """With what it holds, as often as its client is closed and used again."""
    store = kind.make(tmp_path)

    async def use(number: int) -> None:
        await store.open()
        assert await unfinished_keys(store) == [f"{earlier}" for earlier in range(number)]
        if store.shared is None:  # whose limiter would know them
            assert len(await store.recent(1e9)) == number
        await asyncio.gather(store.save(submitted(f"{number}")), store.claim(entry_of("planned")))
        await store.release("planned")
        await store.aclose()

    async def use_each(*numbers: int) -> None:
        for number in numbers:
            await use(number)

    for numbers in ([0], [1, 2], [3]):
        asyncio.run(use_each(*numbers))


@pytest.fixture
async def store(kind: Kind, tmp_path: Path):
    """An open store of each kind."""
    store = kind.make(tmp_path)
    await store.open()
    yield store
    await store.aclose()


# -- claim, save, find, forget ---------------------------------------------------------------------


async def test_a_new_key_is_claimed_and_found(store: Store) -> None:
    """Claiming a new key keeps the entry and returns it."""
    entry = entry_of()
    assert await store.find(key="k") is None
    assert await store.claim(entry) == entry
    assert await store.find(key="k") == entry
    assert await store.find(key="K") is None
    assert await store.find(key="k ") is None


async def test_a_stored_key_keeps_its_entry(store: Store) -> None:
    """Claiming a stored key changes nothing and returns its entry, in any state."""
    first = entry_of()
    await store.claim(first)
    for stored in (first, submitted("k"), ended(submitted("k"))):
        await store.save(stored)
        assert plain(await store.claim(entry_of(prompt="y", ref="another"))) == plain(stored)
        assert plain(await store.find(key="k")) == plain(stored)


async def test_of_many_claims_at_once_exactly_one_wins(store: Store) -> None:
    """Concurrent claims of one key all return the one entry that is kept."""
    claims = [entry_of(prompt=f"prompt {n}", ref=f"ref {n}") for n in range(50)]
    stored = await asyncio.gather(*(store.claim(claim) for claim in claims))
    assert {entry.ref for entry in stored} == {stored[0].ref}
    assert stored[0] in claims
    assert await store.find(key="k") == stored[0]


async def test_save_keeps_and_replaces(store: Store) -> None:
    """A save needs no claim before it, and replaces the entry of its key."""
    for entry in (entry_of(state=EntryState.INTENT, submitted_at=1.5), submitted("k"), ended(submitted("k"))):
        await store.save(entry)
        assert plain(await store.find(key="k")) == plain(entry)
    await store.save(entry_of("other"))
    assert plain(await store.find(key="k")) == plain(entry)


async def test_many_keys_are_found_in_their_order(store: Store) -> None:
    """What `find` returns for each, also for a key that is asked for twice, and for more than SQL takes at
    once."""
    assert list(await store.find_many([])) == []
    for entry in (submitted("a"), ended(submitted("b")), entry_of("c", prompt="y")):
        await store.save(entry)
    keys = ["b", "missing", "c", "a", "b", "A", *(f"missing {number}" for number in range(2000))]
    found = await store.find_many(keys)
    assert [plain(entry) for entry in found] == [plain(await store.find(key=key)) for key in keys]


async def test_an_entry_is_found_by_its_task_id(store: Store) -> None:
    """From SUBMITTED on, and after the task has finished."""
    assert await store.find(task_id="task-of-k") is None
    assert await store.find() is None
    await store.claim(entry_of())
    for entry in (submitted("k"), ended(submitted("k"))):
        await store.save(entry)
        assert await store.find(task_id="task-of-k") == entry
    assert await store.find(task_id="task-of-K") is None


async def test_an_entry_is_found_by_its_ref(store: Store) -> None:
    """In every state. A resubmit under the key has another ref."""
    assert await store.find(ref="ref of k") is None
    await store.claim(entry_of())
    for entry in (entry_of(), submitted("k"), ended(submitted("k"))):
        await store.save(entry)
        assert await store.find(ref="ref of k") == entry
    again = submitted("k", ref="new ref", task_id="second")
    await store.claim(again, takes=tuple(EntryState))  # another submit of a key that is not held is refused
    await store.save(again)
    assert await store.find(ref="new ref") == again
    assert await store.find(ref="ref of k") is None


async def test_a_task_id_that_another_entry_has_is_not_saved(store: Store) -> None:
    """A submit whose answer was that to another one. What has the task may be saved again, also when it has
    moved; and what has ended is no news of a submit."""
    first = submitted("a", task_id="task")
    await store.save(first)
    intent = entry_of("b", state=EntryState.INTENT, submitted_at=1.5)
    await store.claim(entry_of("b"))
    await store.begin(intent)
    with pytest.raises(DuplicateTaskError, match="key 'a'") as caught:
        await store.save(submitted("b", task_id="task"))
    assert (caught.value.task_id, caught.value.key) == ("task", "a")
    assert await store.find(key="b") == intent
    assert await store.find(task_id="task") == first
    for again in (first, first.superseded()):
        await store.save(again)
        assert await store.find(task_id="task") == again
    await store.save(ended(submitted("c", task_id="task")))
    assert await store.find(key="c") == ended(submitted("c", task_id="task"))


async def test_a_task_id_never_finds_the_entry_of_another_task(store: Store) -> None:
    """After a resubmit under its key, the old id does not find the new entry.

    Otherwise news of the old task would replace the new one.
    """
    failed = ended(submitted("k", task_id="first"), EntryState.FAILED)
    again = submitted("k", ref="second", task_id="second")
    await store.save(failed)
    await store.claim(entry_of(ref="second"), takes=(EntryState.FAILED,))
    await store.begin(entry_of(ref="second", state=EntryState.INTENT), failed.superseded())
    await store.save(again)
    assert await store.find(task_id="second") == again
    assert await store.find(task_id="first") == failed.superseded()


async def test_a_forgotten_key_is_gone(store: Store) -> None:
    """With what callbacks have named: it is not found and may be claimed again. Forgetting an unknown key is
    no error."""
    await store.forget("k")
    await store.save(submitted("k"))
    await store.save(submitted("other"))
    for key in ("k", "other"):
        await store.keep_callback(f"ref of {key}", "named")
    await store.forget("k")
    assert await store.find(key="k") is None
    assert await store.find(task_id="task-of-k") is None
    assert await unfinished_keys(store) == ["other"]
    assert list(await store.callbacks_of("ref of k")) == []
    assert list(await store.callbacks_of("ref of other")) == ["named"]
    other = entry_of(prompt="y")
    assert await store.claim(other) == other


async def test_callbacks_are_kept_until_their_entry_has_ended(store: Store) -> None:
    """Four task ids are kept per ref, each once, until the entry of the ref has ended."""
    assert list(await store.callbacks_of("ref of k")) == []
    await store.save(entry_of(state=EntryState.UNKNOWN))
    for _ in range(2):
        await store.keep_callback("ref of k", "task-of-k")
        await store.keep_callback("ref of k", "another")
        await store.keep_callback("ref of other", "third")
    assert sorted(await store.callbacks_of("ref of k")) == ["another", "task-of-k"]
    assert list(await store.callbacks_of("ref of other")) == ["third"]
    for n in range(100):
        await store.keep_callback("ref of k", f"{n}")
    assert len(await store.callbacks_of("ref of k")) == 4
    await store.save(submitted("k"))
    assert len(await store.callbacks_of("ref of k")) == 4
    await store.save(ended(submitted("k")))
    assert list(await store.callbacks_of("ref of k")) == []
    assert list(await store.callbacks_of("ref of other")) == ["third"]


# -- what is unfinished, what is recent ------------------------------------------------------------


async def test_unfinished_is_what_is_or_may_be_paid(store: Store) -> None:
    """Of the six states exactly SUBMITTED and UNKNOWN are unfinished."""
    for state in EntryState:
        await store.save(entry_of(state.value, state=state))
    assert sorted(await unfinished_keys(store)) == ["submitted", "unknown"]
    await store.save(ended(submitted("submitted")))
    await store.forget("unknown")
    assert await unfinished_keys(store) == []


async def test_unfinished_returns_every_entry_once(store: Store) -> None:
    """1,200 entries are returned once each, among as many that are not unfinished."""
    unfinished = [submitted(f"unfinished {n}") for n in range(1200)]
    others = [ended(submitted(f"ended {n}")) for n in range(600)] + [entry_of(f"new {n}") for n in range(600)]
    await asyncio.gather(
        *(store.save(entry) for pair in zip(unfinished, others, strict=True) for entry in pair)
    )
    found = [entry async for entry in store.unfinished()]
    assert sorted(found, key=lambda entry: entry.key) == sorted(unfinished, key=lambda entry: entry.key)


async def test_unfinished_while_entries_are_written(store: Store) -> None:
    """Writes during an iteration neither break it nor make it return an entry twice.

    Entries that stay unfinished are all returned. Another iteration, even one that is abandoned, disturbs
    nothing.
    """
    await asyncio.gather(*(store.save(submitted(f"{n:04}")) for n in range(1200)))
    seen: list[str] = []
    async for entry in store.unfinished():
        seen.append(entry.key)
        if len(seen) == 1:
            await store.forget("1199")
        if len(seen) == 700:
            await store.save(submitted("new"))
            await store.save(ended(submitted("0000")))  # already returned
            await store.save(submitted("0001"))  # saved again unchanged
            async for _ in store.unfinished():
                break
            assert len(await unfinished_keys(store)) == 1199
    assert len(seen) == len(set(seen))
    assert {f"{n:04}" for n in range(1199)} <= set(seen) <= {*(f"{n:04}" for n in range(1200)), "new"}


async def test_an_ended_entry_without_a_key_is_not_unfinished(store: Store) -> None:
    """It is not listed any more; if it is still found, then as it ended."""
    entry = submitted("ref", keyed=False)
    await store.save(entry)
    assert await store.find(task_id="task-of-ref") == entry
    assert await unfinished_keys(store) == ["ref"]
    await store.save(ended(entry))
    assert await unfinished_keys(store) == []
    assert await store.find(task_id="task-of-ref") in (None, ended(entry))


# -- every value comes back as it was --------------------------------------------------------------


@every_kind
@given(entry=ENTRIES)
def test_every_field_comes_back(kind: Kind, entry: Entry) -> None:
    """Any request and any details are read back equal, including the parts that equality ignores.

    With odd Unicode, lone surrogates and raw JSON; from a durable store also after it is opened again.
    """
    if entry.state.ended and not entry.keyed:
        entry = attrs.evolve(entry, keyed=True)  # without a key it may be dropped

    async def run(folder: Path) -> None:
        store = kind.make(folder)
        await store.open()
        await store.save(entry)
        assert plain(await store.find(key=entry.key)) == plain(entry)
        if kind.durable:
            await store.aclose()
            store = kind.make(folder)
            await store.open()
        assert plain(await store.find(key=entry.key)) == plain(entry)
        assert await store.find(task_id=entry.task_id) == (entry if entry.task_id else None)
        assert await unfinished_keys(store) == ([entry.key] if entry.state in UNFINISHED else [])
        await store.aclose()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))


@pytest.mark.parametrize(
    "number",
    ["1e400", "-1e400", "1" * 4300, "0.1e-400", "[" * 300 + "]" * 300, '"\\ud800"'],
    ids=lambda n: n[:9],
)
async def test_any_json_from_kie_can_be_kept(kind: Kind, tmp_path: Path, number: str) -> None:
    """An unknown field of an answer is kept, whatever JSON it holds.

    It neither fails the save nor makes the store look damaged.
    """
    raw = decoding.json_value(b'{"taskId":"t","new":%s}' % number.encode())
    details = TaskDetails("t", state=TaskState.SUCCEEDED, urls=("https://images.example/1.png",), raw=raw)
    entry = attrs.evolve(submitted("k", task_id="t"), state=EntryState.SUCCEEDED, details=details)
    store = kind.make(tmp_path)
    await store.open()
    await store.save(entry)
    if kind.durable:
        await store.aclose()
        store = kind.make(tmp_path)
        await store.open()
    assert plain(await store.find(key="k")) == plain(entry)
    await store.aclose()


async def test_what_cannot_be_kept_is_a_store_error(store: Store) -> None:
    """An entry that is nested too deeply is kept or raises `StoreError`, and the previous entry stays.

    Another exception would hide a paid result.
    """
    raw: dict[str, Any] = {}
    for _ in range(100_000):
        raw = {"a": raw}
    await store.save(submitted("k"))
    details = TaskDetails("task-of-k", state=TaskState.SUCCEEDED, urls=("u",), raw=raw)
    entry = attrs.evolve(submitted("k"), state=EntryState.SUCCEEDED, details=details)
    try:
        await store.save(entry)
    except StoreError:
        assert await store.find(key="k") == submitted("k")
    else:
        assert await store.find(key="k") == entry


# -- cancelling ------------------------------------------------------------------------------------

WRITES = {
    "claim": lambda store: store.claim(entry_of("new")),
    "save": lambda store: store.save(submitted("old")),
    "forget": lambda store: store.forget("old"),
}


async def after_cancel(
    kind: Kind, folder: Path, write: str, cancel: Callable[[Any], Any]
) -> tuple[str, bool]:
    """Cancel one write among others; return how it ended, and whether it took effect."""
    folder.mkdir()
    store = kind.make(folder)
    await store.open()
    await store.save(entry_of("old"))
    done = {"claim": ("new", entry_of("new")), "save": ("old", submitted("old")), "forget": ("old", None)}
    key, new = done[write]
    old = await store.find(key=key)
    others = [asyncio.create_task(store.save(submitted(f"other {n}"))) for n in range(10)]
    how, value = await cancel(WRITES[write](store))
    assert how != "raised", value
    others += [asyncio.create_task(store.save(submitted(f"other {n}"))) for n in range(10, 20)]
    await asyncio.wait_for(asyncio.gather(*others), PATIENCE)
    stored = await store.find(key=key)
    assert stored in (old, new)
    if kind.durable:
        await store.aclose()
        store = kind.make(folder)
        await store.open()
        # A database may carry out what was cancelled after the others, but before the store is closed.
        late = store.shared is not None and how == "cancelled"
        assert await store.find(key=key) in ((stored, new) if late else (stored,))
    found = await asyncio.gather(*(store.find(key=f"other {n}") for n in range(20)))
    assert found == [submitted(f"other {n}") for n in range(20)]
    await store.aclose()
    return how, stored == new


@pytest.mark.parametrize("mode", ["pending", "done"])
@pytest.mark.parametrize("write", WRITES)
async def test_cancelling_a_write_does_not_undo_it(kind: Kind, tmp_path: Path, write: str, mode) -> None:
    """At every suspension of a write: it takes effect or not, never half, and no other write is affected.

    A durable store has the same after a restart.
    """
    for at in range(50):
        how, done = await after_cancel(
            kind, tmp_path / str(at), write, lambda call, at=at: cancelled_at(call, at, mode)
        )
        assert done or how == "cancelled"
        if how == "over":
            return
    pytest.fail("the sweep did not end")


@pytest.mark.parametrize("write", WRITES)
async def test_cancelling_a_write_after_any_tick(kind: Kind, tmp_path: Path, write: str) -> None:
    """The same after each turn of the loop, by default after every third."""
    for ticks in range(0, 30, 1 if DEEP else 3):
        how, done = await after_cancel(
            kind, tmp_path / str(ticks), write, lambda call, ticks=ticks: cancelled_after(call, ticks)
        )
        assert done or how == "cancelled"
        if how == "over":
            return


async def test_the_trace_of_a_submit_is_kept(store: Store) -> None:
    """In each state, and when its key is submitted again."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    planned = entry_of("k").traced(trace)
    await store.claim(planned)
    first = planned.become(EntryState.INTENT, submitted_at=A_DAY_AGO)
    await store.begin(first)
    failed = ended(first.become(EntryState.SUBMITTED, task_id="task-1"), EntryState.FAILED)
    for entry in (first.become(EntryState.SUBMITTED, task_id="task-1"), failed):
        await store.save(entry)
        assert await store.find(task_id="task-1") == entry
    again = entry_of("k", ref="another", state=EntryState.INTENT, submitted_at=A_DAY_AGO)
    await store.claim(again, takes=(EntryState.FAILED,))
    await store.begin(again, failed.superseded())
    found = await store.find(task_id="task-1")
    assert found is not None
    assert found.trace == trace
    assert (await store.find(key="k")) == again


# -- what was spent ----------------------------------------------------------------------------------


async def test_each_state_is_summed_by_price(store: Store) -> None:
    """What was not sent costs nothing, nor what a person found not to be charged: FAILED without a task.

    An INTENT is unknown. Without a price an entry counts as one.
    """
    for state in EntryState:
        for number in range(3):
            key = f"{state.value} {number}"
            named = state in (EntryState.SUBMITTED, EntryState.SUCCEEDED, EntryState.FAILED)
            task_id = f"task-of-{key}" if named else None
            price = Decimal("0.1") if number else Decimal("1E+2")
            await store.save(entry_of(key, state=state, task_id=task_id, price=price))
    await store.save(entry_of("not charged", state=EntryState.FAILED, price=Decimal(7)))
    await store.save(submitted("without a price"))
    three = Subtotal(credits=Decimal("100.2"), tasks=3)
    assert await store.spent() == Spent(
        submitted=Subtotal(credits=Decimal("100.2"), tasks=4),
        succeeded=three,
        failed=three,
        unknown=Subtotal(credits=Decimal("200.4"), tasks=6),
        unpriced=1,
    )


async def test_an_entry_that_moves_or_changes_counts_once(store: Store) -> None:
    """It is submitted, fails and makes room for another submit of its key; and it is forgotten."""
    first = submitted("k", price=Decimal(6))
    await store.save(first)
    await store.save(first)
    failed = ended(first, EntryState.FAILED)
    await store.save(failed)
    assert await store.spent() == Spent(failed=Subtotal(credits=Decimal(6), tasks=1))
    second = entry_of("k", ref="another", state=EntryState.INTENT, price=Decimal(5), earlier=(first.ref,))
    await store.claim(second, takes=(EntryState.FAILED,))
    await store.begin(second, failed.superseded())
    assert (await store.spent()).credits == 11
    await store.save(failed)  # the second was not charged
    assert await store.spent() == Spent(failed=Subtotal(credits=Decimal(6), tasks=1))
    await store.forget("k")
    assert await store.spent() == Spent()


# -- what ended long ago -----------------------------------------------------------------------------


def completed(entry: Entry, at: float | None, state: EntryState = EntryState.SUCCEEDED) -> Entry:
    """The entry after Kie has completed its task at this Unix time."""
    done = ended(entry, state)
    when = None if at is None else datetime.fromtimestamp(at, UTC)
    return attrs.evolve(done, details=attrs.evolve(done.details, completed_at=when))


async def test_what_ended_before_is_removed(store: Store) -> None:
    """With its key, its task id, its ref and its callbacks; what ended later is kept, and all that has not
    ended, however old it is."""
    old = submitted("old", submitted_at=1e9, price=Decimal(6))
    failed = submitted("failed", submitted_at=1e9, price=Decimal(5))
    unpaid = entry_of("unpaid", state=EntryState.FAILED, submitted_at=1e9, price=Decimal(4))
    removed = [
        completed(old, 1e9 + 50),
        completed(failed, None, EntryState.FAILED),
        attrs.evolve(unpaid, keyed=False),
    ]
    kept = [
        completed(submitted("late", submitted_at=1e9, price=Decimal(3)), 1e9 + 150),
        completed(submitted("new", submitted_at=1e9 + 101, price=Decimal(2)), None),
        completed(submitted("just", submitted_at=1e9), 1e9 + 100),
        submitted("runs", submitted_at=1.0),
        entry_of("unknown", state=EntryState.UNKNOWN, submitted_at=1.0),
        entry_of("intent", state=EntryState.INTENT, submitted_at=1.0),
        entry_of("planned"),
        ended(entry_of("without a time")),
    ]
    for entry in (*removed, *kept):
        await store.save(entry)
        await store.keep_callback(entry.ref, "named")
    spent, recent = await store.spent(), len(await store.recent(1e10))
    assert await store.prune(1e9 + 100) == 3
    for entry in removed:
        assert await store.find(key=entry.key) is None
        assert await store.find(ref=entry.ref) is None
        assert list(await store.callbacks_of(entry.ref)) == []
    assert await store.find(task_id="task-of-old") is None
    for entry in kept:
        assert plain(await store.find(key=entry.key)) == plain(entry)
        assert plain(await store.find(ref=entry.ref)) == plain(entry)
        assert list(await store.callbacks_of(entry.ref)) == ["named"]
    assert await store.spent() == spent
    assert len(await store.recent(1e10)) == recent
    assert await store.prune(1e9 + 100) == 0
    assert await store.claim(entry_of("old", prompt="y", ref="another")) == entry_of(
        "old", prompt="y", ref="another"
    )


async def test_a_submit_counts_against_the_limit_after_its_entry_was_removed(store: Store) -> None:
    """Whoever removes everything at once stays inside the limit."""
    now = time.time()
    entry = submitted("k", submitted_at=now)
    await store.save(entry)
    await store.save(completed(entry, now))
    assert await store.prune(now + 1) == 1
    if store.shared is None:  # whose limiter would know it
        assert len(await store.recent(60)) == 1


async def test_what_is_removed_is_counted_once_and_summed(store: Store) -> None:
    """Over several times, with prices and without."""
    for number in range(3):
        for price in (Decimal(6), None):
            entry = submitted(f"{number} {price}", submitted_at=1e9 + number, price=price)
            await store.save(completed(entry, None))
        assert await store.prune(2e9) == 2
    spent = await store.spent()
    assert spent == Spent(succeeded=Subtotal(credits=Decimal(18), tasks=6), unpriced=3)


async def test_thousands_are_removed_while_others_are_written(store: Store) -> None:
    """Every one of them, and none of the others."""
    for start in range(0, 3000, 500):
        entries = [submitted(f"{n}") for n in range(start, start + 500)]
        await asyncio.gather(*(store.save(completed(e, None) if int(e.key) % 3 else e) for e in entries))
    pruning = asyncio.ensure_future(store.prune(A_DAY_AGO + 1))
    for number in range(50):
        await store.save(submitted(f"new {number}"))
    assert await pruning == 2000
    assert len(await unfinished_keys(store)) == 1050


# -- a model ---------------------------------------------------------------------------------------

UNPAID = (EntryState.PLANNED, EntryState.INTENT)
MODEL_KEYS = st.sampled_from(["a", "b", "c", "d"])


class Model(RuleBasedStateMachine):
    """A store beside a dict of what it should hold."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.store: Store | None = None
        self.entries: dict[str, Entry] = {}
        self.tasks = 0

    @initialize()
    def open(self) -> None:
        self.store = self.kind.make(Path(self.folder.name))
        self.runner.run(self.store.open())

    @rule(key=MODEL_KEYS, prompt=st.sampled_from(["x", "y"]))
    def claim(self, key: str, prompt: str) -> None:
        entry = entry_of(key, prompt)
        stored = self.entries.setdefault(key, entry)
        assert plain(self.runner.run(self.store.claim(entry))) == plain(stored)

    @rule(key=MODEL_KEYS, state=st.sampled_from(EntryState), new_task=st.booleans())
    def save(self, key: str, state: EntryState, new_task: bool) -> None:
        before = self.entries.get(key) or entry_of(key, price=Decimal(1 + ord(key)))
        task_id = before.task_id
        if task_id is not None and (state in UNPAID or (before.state.ended and not state.ended)):
            return  # no submit forgets its task, or that it has ended
        if state in UNPAID:
            task_id = None
        elif task_id is None or new_task:
            self.tasks += 1
            task_id = f"task-{self.tasks}"
        entry = attrs.evolve(before, state=state, task_id=task_id, details=None)
        if state.ended:
            entry = ended(entry, state)
        self.entries[key] = entry
        self.runner.run(self.store.save(entry))

    @rule(key=MODEL_KEYS)
    def forget(self, key: str) -> None:
        self.entries.pop(key, None)
        self.runner.run(self.store.forget(key))

    @rule(number=st.integers(1, 30))
    def find_task(self, number: int) -> None:
        task_id = f"task-{number}"
        expected = [entry for entry in self.entries.values() if entry.task_id == task_id]
        found = self.runner.run(self.store.find(task_id=task_id))
        assert [found] == (expected or [None])

    @precondition(lambda self: self.kind.durable)
    @rule()
    def reopen(self) -> None:
        self.runner.run(self.store.aclose())
        self.open()
        for key, entry in self.entries.items():
            if entry.state is EntryState.INTENT:
                stored = self.runner.run(self.store.find(key=key))
                assert abs(stored.submitted_at - time.time()) < 60
                self.entries[key] = attrs.evolve(
                    entry, state=EntryState.UNKNOWN, submitted_at=stored.submitted_at
                )

    @invariant()
    def equal(self) -> None:
        if self.store is None:
            return
        for key in ("a", "b", "c", "d"):
            assert plain(self.runner.run(self.store.find(key=key))) == plain(self.entries.get(key))
        unfinished = [key for key, entry in self.entries.items() if entry.state in UNFINISHED]
        assert sorted(self.runner.run(unfinished_keys(self.store))) == sorted(unfinished)
        charged = [entry.price or 0 for entry in self.entries.values() if entry.charged]
        assert self.runner.run(self.store.spent()).credits == sum(charged)

    def teardown(self) -> None:
        if self.store is not None:
            self.runner.run(self.store.aclose())
        self.runner.close()
        self.folder.cleanup()


def test_a_store_is_a_dict_of_entries(kind: Kind) -> None:
    """Any order of calls leaves what a dict would hold; a task id finds only the entry that has it now.

    By default what keeps it on a disk is asked in fewer orders.
    """
    examples = settings.default.max_examples // (4 if kind.durable and not DEEP else 1)
    run_state_machine_as_test(
        lambda: Model(kind), settings=settings(max_examples=examples, stateful_step_count=20)
    )
