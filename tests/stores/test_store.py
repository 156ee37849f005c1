"""One suite for every store: what `kie4o.stores.store.Store` promises, whoever keeps it.

Another implementation adds one line to `KINDS`. What only a file can promise comes after that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import sqlite3
import stat
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import UTC
from pathlib import Path
from typing import Any

import attrs
import pytest
from cancelling import cancelled_after, cancelled_at
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import kie4o.stores.memory
from kie4o import (
    AsyncKieClient,
    ImageRequest,
    PollPolicy,
    StoreError,
    StoreLockedError,
    TaskDetails,
    TaskState,
)
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore
from kie4o.stores.packing import checksum, packed, unpacked
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.sqlite_file import SCHEMA
from kie4o.stores.store import CALLBACKS_PER_REF, Entry, EntryState, Store
from kie4o.wire import decoding


@attrs.frozen
class Kind:
    """How to make a store in a directory of its own; `durable` if another object finds it there."""

    make: Callable[[Path], Store]
    durable: bool


KINDS = {
    "memory": Kind(lambda place: MemoryStore(), durable=False),
    "sqlite": Kind(lambda place: SQLiteStore(place / "run.db"), durable=True),
}

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
UNFINISHED = (EntryState.SUBMITTED, EntryState.UNKNOWN)
PATIENCE = 5.0  # seconds after which something hangs


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
async def store(kind: Kind, tmp_path: Path):
    """An open store of each kind."""
    store = kind.make(tmp_path)
    await store.open()
    yield store
    await store.aclose()


def entry_of(key: str = "k", prompt: str = "x", **more: Any) -> Entry:
    return Entry(key, request=ImageRequest(prompt), **{"ref": f"ref of {key}"} | more)


def ended(entry: Entry, state: EntryState = EntryState.SUCCEEDED) -> Entry:
    """The entry after its task has ended."""
    task_id = entry.task_id or f"task-of-{entry.key}"
    urls = ("https://images.example/1.png",) if state is EntryState.SUCCEEDED else ()
    details = TaskDetails(task_id, state=TaskState(state.value), urls=urls, raw={"taskId": task_id})
    return attrs.evolve(entry, state=state, task_id=task_id, details=details)


def submitted(key: str, **more: Any) -> Entry:
    return entry_of(key, state=EntryState.SUBMITTED, submitted_at=5.0, **{"task_id": f"task-of-{key}"} | more)


def plain(entry: Entry | None) -> object:
    """An entry for an exact comparison: `raw`, which takes no part in equality, and each type in it."""
    raw = entry.details.raw if entry is not None and entry.details is not None else None
    return entry, json.dumps(raw)


async def keys_owed(store: Store) -> list[str]:
    return [entry.key async for entry in store.unfinished()]


# -- claim, save, find, forget ------------------------------------------------------------------------


async def test_a_new_key_is_claimed_and_found(store: Store) -> None:
    """Claiming a new key keeps the entry and gives it back."""
    entry = entry_of()
    assert await store.find(key="k") is None
    assert await store.claim(entry) == entry
    assert await store.find(key="k") == entry
    assert await store.find(key="K") is None
    assert await store.find(key="k ") is None


async def test_a_standing_key_keeps_what_it_has(store: Store) -> None:
    """Claiming a key that stands changes nothing and gives what stands, in whatever state it is."""
    first = entry_of()
    await store.claim(first)
    for stands in (first, submitted("k"), ended(submitted("k"))):
        await store.save(stands)
        assert plain(await store.claim(entry_of(prompt="y", ref="another"))) == plain(stands)
        assert plain(await store.find(key="k")) == plain(stands)


async def test_of_many_claims_at_once_exactly_one_wins(store: Store) -> None:
    """However many claim a key at the same moment, all of them get the one entry that is kept."""
    claims = [entry_of(prompt=f"prompt {n}", ref=f"ref {n}") for n in range(50)]
    stands = await asyncio.gather(*(store.claim(claim) for claim in claims))
    assert {entry.ref for entry in stands} == {stands[0].ref}
    assert stands[0] in claims
    assert await store.find(key="k") == stands[0]


async def test_save_keeps_and_replaces(store: Store) -> None:
    """A save needs no claim before it, and takes the place of all that stood under the key."""
    for entry in (entry_of(state=EntryState.INTENT, submitted_at=1.5), submitted("k"), ended(submitted("k"))):
        await store.save(entry)
        assert plain(await store.find(key="k")) == plain(entry)
    await store.save(entry_of("other"))
    assert plain(await store.find(key="k")) == plain(entry)


async def test_an_entry_is_found_by_its_task_id(store: Store) -> None:
    """The task id finds the entry from SUBMITTED on, and also when the task has ended."""
    assert await store.find(task_id="task-of-k") is None
    assert await store.find() is None
    await store.claim(entry_of())
    for entry in (submitted("k"), ended(submitted("k"))):
        await store.save(entry)
        assert await store.find(task_id="task-of-k") == entry
    assert await store.find(task_id="task-of-K") is None


async def test_an_entry_is_found_by_its_ref(store: Store) -> None:
    """The ref finds the entry in every state; a submit anew under the key has another ref."""
    assert await store.find(ref="ref of k") is None
    await store.claim(entry_of())
    for entry in (entry_of(), submitted("k"), ended(submitted("k"))):
        await store.save(entry)
        assert await store.find(ref="ref of k") == entry
    again = submitted("k", ref="new ref")
    await store.save(again)
    assert await store.find(ref="new ref") == again
    assert await store.find(ref="ref of k") is None


async def test_a_task_id_never_finds_the_entry_of_another_task(store: Store) -> None:
    """When a failed task was submitted again under its key, the old id does not lead to the new
    entry: what is learned of the old task would be written over the new one."""
    failed = ended(submitted("k", task_id="first"), EntryState.FAILED)
    again = submitted("k", task_id="second")
    for entry in (failed, entry_of(state=EntryState.INTENT), again):
        await store.save(entry)
    assert await store.find(task_id="second") == again
    assert await store.find(task_id="first") is None


async def test_what_is_forgotten_is_gone(store: Store) -> None:
    """A forgotten key is found by nothing and may stand for something else; forgetting what is not
    there is no error."""
    await store.forget("k")
    await store.save(submitted("k"))
    await store.save(submitted("other"))
    await store.forget("k")
    assert await store.find(key="k") is None
    assert await store.find(task_id="task-of-k") is None
    assert await keys_owed(store) == ["other"]
    other = entry_of(prompt="y")
    assert await store.claim(other) == other


async def test_the_inbox_keeps_what_callbacks_named(store: Store) -> None:
    """Task ids wait under a ref, each once and not without end, until the entry of that ref has ended."""
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
    assert len(await store.callbacks_of("ref of k")) == CALLBACKS_PER_REF
    await store.save(submitted("k"))
    assert len(await store.callbacks_of("ref of k")) == CALLBACKS_PER_REF
    await store.save(ended(submitted("k")))
    assert list(await store.callbacks_of("ref of k")) == []
    assert list(await store.callbacks_of("ref of other")) == ["third"]


# -- what is unfinished, what is recent -----------------------------------------------------------------


async def test_unfinished_is_what_is_paid_or_perhaps_paid(store: Store) -> None:
    """Of the six states exactly SUBMITTED and UNKNOWN are owed."""
    for state in EntryState:
        await store.save(entry_of(state.value, state=state))
    assert sorted(await keys_owed(store)) == ["submitted", "unknown"]
    await store.save(ended(submitted("submitted")))
    await store.forget("unknown")
    assert await keys_owed(store) == []


async def test_unfinished_gives_more_than_any_page_once_each(store: Store) -> None:
    """1,200 entries come out whole and once each, among as many that are not owed."""
    owed = [submitted(f"owed {n}") for n in range(1200)]
    others = [ended(submitted(f"ended {n}")) for n in range(600)] + [entry_of(f"new {n}") for n in range(600)]
    await asyncio.gather(*(store.save(entry) for pair in zip(owed, others, strict=True) for entry in pair))
    found = [entry async for entry in store.unfinished()]
    assert sorted(found, key=lambda entry: entry.key) == sorted(owed, key=lambda entry: entry.key)


async def test_unfinished_while_entries_come_and_go(store: Store) -> None:
    """Writes during an iteration neither break it nor make it give one entry twice; what stands
    throughout is given. A second iteration and one that is broken off disturb nobody."""
    await asyncio.gather(*(store.save(submitted(f"{n:04}")) for n in range(1200)))
    seen: list[str] = []
    async for entry in store.unfinished():
        seen.append(entry.key)
        if len(seen) == 1:
            await store.forget("1199")
        if len(seen) == 700:
            await store.save(submitted("new"))
            await store.save(ended(submitted("0000")))  # given already
            await store.save(submitted("0001"))  # written again as it is
            async for _ in store.unfinished():
                break
            assert len(await keys_owed(store)) == 1199
    assert len(seen) == len(set(seen))
    assert {f"{n:04}" for n in range(1199)} <= set(seen) <= {*(f"{n:04}" for n in range(1200)), "new"}


async def test_recent_is_what_counts_against_the_limit(store: Store, kind: Kind) -> None:
    """The times of submits after a moment, of those that left: a store that outlives its process
    knows them all, whatever became of them."""
    for number, state in enumerate(EntryState):
        stamp = None if state is EntryState.PLANNED else 100.0 + number
        await store.save(
            entry_of(state.value, state=state, submitted_at=stamp, keyed=state.value != "failed")
        )
    times = await store.recent(0.0)
    assert all(isinstance(stamp, float) for stamp in times)
    assert set(times) <= {101.0, 102.0, 103.0, 104.0, 105.0}
    assert await store.recent(105.0) == []
    if kind.durable:
        assert sorted(times) == [101.0, 102.0, 103.0, 104.0, 105.0]
        assert sorted(await store.recent(103.0)) == [104.0, 105.0]


async def test_ended_without_a_key_is_owed_no_more(store: Store) -> None:
    """An entry under no key of the caller's is nobody's once it has ended: it is not owed, and if
    it is still found then as it ended."""
    entry = submitted("ref", keyed=False)
    await store.save(entry)
    assert await store.find(task_id="task-of-ref") == entry
    assert await keys_owed(store) == ["ref"]
    await store.save(ended(entry))
    assert await keys_owed(store) == []
    assert await store.find(task_id="task-of-ref") in (None, ended(entry))


# -- every value comes back as it was -------------------------------------------------------------------

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # half pairs too: Kie's JSON may hold them
SENDABLE = st.text(st.characters(codec="utf-8"), min_size=1)
PROMPTS = SENDABLE.filter(str.strip)
URLS = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="\\"), max_size=10
).map("https://a.example/{}".format)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)
TASK_IDS = st.from_regex(decoding.TASK_ID, fullmatch=True)
TIMES = st.none() | st.datetimes(timezones=st.just(UTC))


def quietly(**fields: Any) -> ImageRequest:
    """A request whose maker was warned; who reads it back is not to be warned again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ImageRequest(**fields)


REQUESTS = st.builds(
    quietly,
    prompt=PROMPTS,
    size=st.sampled_from(["1:1", "3:2", "2:3"]),
    files_url=st.lists(URLS, max_size=5),
    mask_url=st.none() | URLS,
    n_variants=st.sampled_from([1, 2, 4]),
    callback_url=st.none() | URLS,
    is_enhance=st.booleans(),
    upload_cn=st.booleans(),
    enable_fallback=st.booleans(),
    fallback_model=st.sampled_from(["FLUX_MAX", "GPT_IMAGE_1"]),
    file_url=st.none() | URLS,
) | st.builds(quietly, files_url=st.lists(URLS, min_size=1, max_size=5))
DETAILS = st.builds(
    TaskDetails,
    TASK_IDS,
    state=st.sampled_from(TaskState),
    status=st.none() | ANY_TEXT,
    urls=st.lists(ANY_TEXT, max_size=3).map(tuple),
    progress=st.none() | st.floats(0, 1),
    error_code=st.none() | st.integers(),
    error_message=st.none() | ANY_TEXT,
    created_at=TIMES,
    completed_at=TIMES,
    raw=st.dictionaries(ANY_TEXT, JSON, max_size=4).map(lambda raw: json.loads(json.dumps(raw))),
)
ENTRIES = st.builds(
    Entry,
    SENDABLE,
    request=REQUESTS,
    ref=SENDABLE,
    keyed=st.booleans(),
    state=st.sampled_from([state for state in EntryState if state is not EntryState.INTENT]),
    task_id=st.none() | TASK_IDS,
    submitted_at=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    details=st.none() | DETAILS,
)


@every_kind
@given(entry=ENTRIES)
def test_every_field_comes_back(kind: Kind, entry: Entry) -> None:
    """Any request and any details, with odd Unicode, half pairs and raw JSON, come back equal, the
    parts that equality leaves out included; from a durable store also after it was opened again."""
    if entry.state.ended and not entry.keyed:
        entry = attrs.evolve(entry, keyed=True)  # the other one may be dropped

    async def run(place: Path) -> None:
        store = kind.make(place)
        await store.open()
        await store.save(entry)
        assert plain(await store.find(key=entry.key)) == plain(entry)
        if kind.durable:
            await store.aclose()
            store = kind.make(place)
            await store.open()
        assert plain(await store.find(key=entry.key)) == plain(entry)
        assert await store.find(task_id=entry.task_id) == (entry if entry.task_id else None)
        assert await keys_owed(store) == ([entry.key] if entry.state in UNFINISHED else [])
        await store.aclose()

    with tempfile.TemporaryDirectory() as place:
        asyncio.run(run(Path(place)))


@pytest.mark.parametrize(
    "number",
    ["1e400", "-1e400", "1" * 4300, "0.1e-400", "[" * 300 + "]" * 300, '"\\ud800"'],
    ids=lambda n: n[:9],
)
async def test_whatever_kie_can_send_can_be_kept(kind: Kind, tmp_path: Path, number: str) -> None:
    """A field of an answer that we do not know, with any JSON that we read, is kept and read again:
    it neither fails the save nor makes the store look damaged."""
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
    """An entry that a store cannot write, here one nested too deeply, is kept or is a `StoreError`: a
    foreign error would hide a paid result. What stood before it still stands."""
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


# -- cancelling -----------------------------------------------------------------------------------------

WRITES = {
    "claim": lambda store: store.claim(entry_of("new")),
    "save": lambda store: store.save(submitted("old")),
    "forget": lambda store: store.forget("old"),
}


async def after_cancel(kind: Kind, place: Path, write: str, cancel: Callable[[Any], Any]) -> tuple[str, bool]:
    """One write among others, cancelled: how it ended, and whether it was done."""
    place.mkdir()
    store = kind.make(place)
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
    stands = await store.find(key=key)
    assert stands in (old, new)
    if kind.durable:  # and so it stays
        await store.aclose()
        store = kind.make(place)
        await store.open()
        assert await store.find(key=key) == stands
    found = await asyncio.gather(*(store.find(key=f"other {n}") for n in range(20)))
    assert found == [submitted(f"other {n}") for n in range(20)]
    await store.aclose()
    return how, stands == new


@pytest.mark.parametrize("mode", ["pending", "done"])
@pytest.mark.parametrize("write", WRITES)
async def test_cancelling_a_write_does_not_undo_it(kind: Kind, tmp_path: Path, write: str, mode) -> None:
    """At every suspension of a write: it is done or not begun, never half, the same after a restart,
    and no other write is harmed."""
    for at in range(50):
        how, done = await after_cancel(
            kind, tmp_path / str(at), write, lambda call, at=at: cancelled_at(call, at, mode)
        )
        assert done or how == "cancelled"
        if how == "over":
            return
    pytest.fail("the sweep never came to its end")


@pytest.mark.parametrize("write", WRITES)
async def test_cancelling_a_write_after_any_tick(kind: Kind, tmp_path: Path, write: str) -> None:
    """The same after each turn of the loop."""
    for ticks in range(30):
        how, done = await after_cancel(
            kind, tmp_path / str(ticks), write, lambda call, ticks=ticks: cancelled_after(call, ticks)
        )
        assert done or how == "cancelled"
        if how == "over":
            return


# -- a model --------------------------------------------------------------------------------------------

MODEL_KEYS = st.sampled_from(["a", "b", "c", "d"])


class Model(RuleBasedStateMachine):
    """A store beside a dict that says what it should hold."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind
        self.place = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.store: Store | None = None
        self.entries: dict[str, Entry] = {}
        self.tasks = 0

    @initialize()
    def open(self) -> None:
        self.store = self.kind.make(Path(self.place.name))
        self.runner.run(self.store.open())

    @rule(key=MODEL_KEYS, prompt=st.sampled_from(["x", "y"]))
    def claim(self, key: str, prompt: str) -> None:
        entry = entry_of(key, prompt)
        stands = self.entries.setdefault(key, entry)
        assert plain(self.runner.run(self.store.claim(entry))) == plain(stands)

    @rule(key=MODEL_KEYS, state=st.sampled_from(EntryState), new_task=st.booleans())
    def save(self, key: str, state: EntryState, new_task: bool) -> None:
        before = self.entries.get(key) or entry_of(key)
        task_id = before.task_id
        if state in (EntryState.PLANNED, EntryState.INTENT):
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
                stands = self.runner.run(self.store.find(key=key))
                assert abs(stands.submitted_at - time.time()) < 60
                self.entries[key] = attrs.evolve(
                    entry, state=EntryState.UNKNOWN, submitted_at=stands.submitted_at
                )

    @invariant()
    def equal(self) -> None:
        if self.store is None:
            return
        for key in ("a", "b", "c", "d"):
            assert plain(self.runner.run(self.store.find(key=key))) == plain(self.entries.get(key))
        owed = [key for key, entry in self.entries.items() if entry.state in UNFINISHED]
        assert sorted(self.runner.run(keys_owed(self.store))) == sorted(owed)

    def teardown(self) -> None:
        if self.store is not None:
            self.runner.run(self.store.aclose())
        self.runner.close()
        self.place.cleanup()


def test_a_store_is_a_dict_of_entries(kind: Kind) -> None:
    """Any order of calls leaves what a dict would hold, and by task id only what has that id now."""
    run_state_machine_as_test(lambda: Model(kind), settings=settings(stateful_step_count=20))


# -- memory only ----------------------------------------------------------------------------------------


async def test_memory_keeps_the_last_ended_and_all_that_is_owed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended entries make room for newer ones, in the order in which they ended; what still owes an
    outcome is never dropped, also if an earlier task under its key had failed."""
    monkeypatch.setattr(kie4o.stores.memory, "KEPT", 100)
    store = MemoryStore()
    await store.save(submitted("owed"))
    await store.save(ended(submitted("again", task_id="first"), EntryState.FAILED))
    await store.save(submitted("again", task_id="second"))
    for n in range(150):
        await store.save(ended(submitted(f"{n:03}")))
    kept = [n for n in range(150) if await store.find(key=f"{n:03}") is not None]
    assert kept == list(range(50, 150))
    assert await store.find(task_id="task-of-049") is None
    assert await keys_owed(store) == ["owed", "again"]


# -- packing --------------------------------------------------------------------------------------------


@given(entry=ENTRIES, data=st.data())
@example(entry=ended(submitted("k")), data=None)
def test_any_flipped_bit_is_noticed(entry: Entry, data: Any) -> None:
    """An entry that differs from what was packed in one bit, of its body or of its checksum, is an
    error and never another entry."""
    body = packed(entry)
    check = checksum(body)
    assert plain(unpacked(body, check)) == plain(entry)
    whole = body + check
    at = range(len(whole) * 8) if data is None else [data.draw(st.integers(0, len(whole) * 8 - 1))]
    for bit in at:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StoreError, match="damaged"):
            unpacked(bytes(flipped[: len(body)]), bytes(flipped[len(body) :]))


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{}", b'{"key":"k"}', b"\xff", b"[" * 100_000, b'{"details":5,"request":{}}'],
    ids=lambda body: str(body[:12]),
)
def test_a_body_that_is_no_entry_is_an_error(body: bytes) -> None:
    """A fitting checksum does not make an entry of anything."""
    with pytest.raises(StoreError, match="damaged"):
        unpacked(body, checksum(body))


# -- SQLite: what a file can promise --------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


@contextlib.asynccontextmanager
async def opened(place: Path):
    store = SQLiteStore(place)
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


async def test_everything_is_there_when_it_is_opened_again(place: Path) -> None:
    """Each state comes back exactly, except that an INTENT has become UNKNOWN: nobody can know
    whether a dead process paid. Its request and ref are kept, and it counts as submitted now."""
    before = {state: entry_of(state.value, state=state, submitted_at=7.0) for state in EntryState}
    before[EntryState.SUBMITTED] = submitted("submitted")
    before[EntryState.SUCCEEDED] = ended(submitted("succeeded"))
    before[EntryState.FAILED] = ended(submitted("failed"), EntryState.FAILED)
    async with opened(place) as store:
        for entry in before.values():
            await store.save(entry)
        await store.keep_callback("ref of intent", "named")
    for _ in range(2):
        now = time.time()
        async with opened(place) as store:
            after = {state: await store.find(key=state.value) for state in EntryState}
            assert sorted(await keys_owed(store)) == ["intent", "submitted", "unknown"]
            assert after.pop(EntryState.INTENT).state is EntryState.UNKNOWN
            intent = await store.find(key="intent")
            assert (intent.request, intent.ref) == (before[EntryState.INTENT].request, "ref of intent")
            assert now - 60 < intent.submitted_at <= time.time()
            assert await store.recent(now - 60) == [intent.submitted_at]
            assert list(await store.callbacks_of("ref of intent")) == ["named"]
        assert {state: plain(entry) for state, entry in after.items()} == {
            state: plain(entry) for state, entry in before.items() if state is not EntryState.INTENT
        }


async def test_cancelled_writes_that_were_begun_are_on_the_disk(place: Path) -> None:
    """A write whose caller was cancelled while it was under way is there after a restart."""
    async with opened(place) as store:
        saves = [asyncio.create_task(store.save(submitted(f"{n:03}"))) for n in range(200)]
        await asyncio.sleep(0)
        for save in saves:
            save.cancel()
        ends = await asyncio.gather(*saves, return_exceptions=True)
        assert any(isinstance(end, asyncio.CancelledError) for end in ends)
    async with opened(place) as store:
        assert await keys_owed(store) == [f"{n:03}" for n in range(200)]


async def test_writes_that_wait_share_a_commit(place: Path) -> None:
    """200 saves at once cause a few commits, each of which is an fsync; one after the other each
    causes its own."""
    async with opened(place) as store:
        statements: list[str] = []
        await store._worker.run(lambda connection: connection.set_trace_callback(statements.append))
        await asyncio.gather(*(store.save(entry_of(f"at once {n}")) for n in range(200)))
        assert statements.count("COMMIT") <= 20
        statements.clear()
        for n in range(20):
            await store.save(entry_of(f"one by one {n}"))
        assert statements.count("COMMIT") == 20


async def test_one_write_that_fails_harms_no_other_of_its_group(place: Path) -> None:
    """A call that SQLite refuses fails alone, with `StoreError`; the rest of its group is kept."""
    async with opened(place) as store:
        outcomes = await asyncio.gather(
            *(store.save(entry_of("\ud800" if n == 10 else f"{n}")) for n in range(20)),
            store.find(key="\udfff"),
            return_exceptions=True,
        )
        failed = [n for n, outcome in enumerate(outcomes) if outcome is not None]
        assert failed == [10, 20]
        assert all(isinstance(outcomes[n], StoreError) for n in failed)
        assert all([await store.find(key=f"{n}") for n in range(20) if n != 10])


async def test_a_full_disk_is_an_error_and_loses_nothing(place: Path) -> None:
    """When nothing more fits a save raises `StoreError`, what was kept stays, and with room again it
    goes on."""
    async with opened(place) as store:
        await store.save(submitted("before"))
        await store._worker.run(lambda connection: connection.execute("PRAGMA max_page_count = 1").fetchall())
        with pytest.raises(StoreError, match="full"):
            for n in range(100):
                await store.save(entry_of(f"{n}", "x" * 1000))
        assert await keys_owed(store) == ["before"]
        await store._worker.run(
            lambda connection: connection.execute("PRAGMA max_page_count = 100000").fetchall()
        )
        await store.save(submitted("after"))
    async with opened(place) as store:
        assert await keys_owed(store) == ["before", "after"]


async def test_what_was_committed_is_kept_though_the_checkpoint_after_it_fails(place: Path) -> None:
    """The log can grow and the main file cannot: a save that is on the disk is not told as failed."""
    async with opened(place) as store:
        await asyncio.gather(*(store.save(entry_of(f"old {n}", "x" * 3000)) for n in range(60)))
    for calls in range(6):  # the checkpoint comes after the 1st, 2nd, 4th and 8th
        async with opened(place) as store:
            for _ in range(calls):
                await store.find(key="-")
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (place.stat().st_size // 4096 * 4096, hard))
            try:
                [outcome] = await asyncio.gather(
                    store.save(entry_of(f"{calls}", "x" * 9000)), return_exceptions=True
                )
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            kept = await store.find(key=f"{calls}") is not None
            assert kept == (outcome is None), outcome


# -- SQLite: one owner ----------------------------------------------------------------------------------


async def test_a_second_store_on_the_file_is_locked_out(place: Path) -> None:
    """Two stores on one file would pay twice: the second fails at once, the first notices nothing,
    and when it is closed the next one may."""
    async with opened(place) as first:
        for _ in range(3):
            start = time.monotonic()
            with pytest.raises(StoreLockedError, match=r"run\.db"):
                await SQLiteStore(place).open()
            assert time.monotonic() - start < 2
            await first.save(submitted("k"))
    async with opened(place) as second:
        assert await keys_owed(second) == ["k"]


async def test_a_store_object_that_is_open_is_not_opened_again(place: Path) -> None:
    """One store given to two clients: the second is refused, and the first can still write."""
    store = SQLiteStore(place)
    await store.open()
    try:
        with pytest.raises(StoreError):
            await store.open()
        await store.save(submitted("k"))
        assert await keys_owed(store) == ["k"]
    finally:
        await store.aclose()
    async with opened(place) as again:  # it has let go
        assert await keys_owed(again) == ["k"]


@pytest.mark.parametrize("mode", ["pending", "done"])
async def test_an_opening_that_was_cancelled_can_be_done_again(tmp_path: Path, mode) -> None:
    """Cancelling the opening leaves no lock behind that would shut out the next try."""
    for at in range(20):
        store = SQLiteStore(tmp_path / f"{at}.db")
        how, value = await cancelled_at(store.open(), at, mode)
        assert how != "raised", value
        if how != "cancelled":
            await store.aclose()
            return
        try:
            await asyncio.wait_for(store.open(), PATIENCE)
            await store.save(submitted("k"))
        finally:
            await store.aclose()
    pytest.fail("the sweep never came to its end")


USES: dict[str, Callable[[Store], Any]] = {
    "claim": lambda store: store.claim(entry_of()),
    "save": lambda store: store.save(entry_of()),
    "forget": lambda store: store.forget("k"),
    "find": lambda store: store.find(key="k"),
    "keep_callback": lambda store: store.keep_callback("ref of k", "task-of-k"),
    "callbacks_of": lambda store: store.callbacks_of("ref of k"),
    "recent": lambda store: store.recent(0.0),
    "unfinished": keys_owed,
}


@pytest.mark.parametrize("use", USES)
async def test_a_store_that_is_not_open_says_so(place: Path, use: str) -> None:
    """Before it was opened and after it was closed every call is a `StoreError`."""
    store = SQLiteStore(place)
    with pytest.raises(StoreError, match="not open"):
        await USES[use](store)
    await store.open()
    await USES[use](store)
    await store.aclose()
    await store.aclose()
    with pytest.raises(StoreError, match="not open"):
        await USES[use](store)
    await store.open()
    await USES[use](store)
    await store.aclose()


@pytest.mark.parametrize("use", USES)
def test_a_store_belongs_to_one_loop(place: Path, use: str) -> None:
    """In another loop every call is a `StoreError`, and in its own it still works."""
    store = SQLiteStore(place)
    with asyncio.Runner() as mine, asyncio.Runner() as other:
        mine.run(store.open())
        with pytest.raises(StoreError, match="not open in this event loop"):
            other.run(USES[use](store))
        mine.run(USES[use](store))
        mine.run(store.aclose())


def in_child(use: Callable[[], Any]) -> int:
    """Whether that raises `StoreError` in a forked process: 0 if it does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside a thread: that is the point
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(int(PATIENCE))
            use()
        except StoreError:
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("use", USES)
def test_a_forked_child_cannot_use_it(place: Path, use: str) -> None:
    """The thread and the lock stay with the parent: in a child every call is a `StoreError`, in the
    loop that came with it and in a new one; the parent goes on."""
    store = SQLiteStore(place)
    with asyncio.Runner() as runner:
        runner.run(store.open())
        assert in_child(lambda: runner.run(USES[use](store))) == 0
        assert in_child(lambda: asyncio.run(USES[use](store))) == 0
        assert in_child(lambda: asyncio.run(SQLiteStore(place).open())) == 0
        runner.run(store.save(submitted("k")))
        assert runner.run(keys_owed(store)) == ["k"]
        runner.run(store.aclose())


# -- SQLite: the file -----------------------------------------------------------------------------------


async def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    """Prompts are private: the file and its log have mode 0600 from the start, and no draft is left."""
    place = tmp_path / "new" / "run.db"
    async with opened(place) as store:
        await store.save(submitted("k"))
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in place.parent.iterdir()}
    assert modes == {"run.db": 0o600, "run.db-wal": 0o600}
    assert [file.name for file in place.parent.iterdir()] == ["run.db"]


async def test_the_api_key_is_never_in_the_file(place: Path, api_key: str) -> None:
    """Law 7: after paid, refused and failed submits neither the file nor its log holds the key."""
    async with Emulator(duration=0.0) as kie:
        async with AsyncKieClient(
            api_key, base_url=kie.url, store=place, poll=PollPolicy(first=0.34)
        ) as client:
            kie.plan("failed", outcome="failed")
            kie.plan("refused", answer=400)
            for prompt in ("fine", "failed", "refused"):
                with contextlib.suppress(kie4o.KieError):
                    await client.generate(prompt, key=prompt)
            log = place.with_name("run.db-wal").read_bytes()  # to read the file itself would lift its lock
        assert kie.posts == 3
    content = place.read_bytes() + log
    assert b"refused" in content
    assert api_key.encode() not in content


async def refused(place: Path) -> StoreError:
    """The error of opening it, which comes soon, and twice the same."""
    for _ in range(2):
        store = SQLiteStore(place)
        with pytest.raises(StoreError) as caught:
            await asyncio.wait_for(store.open(), PATIENCE)
    return caught.value


async def filled(place: Path) -> None:
    async with opened(place) as store:
        for n in range(10):
            await store.save(ended(submitted(f"{n}")))


def tampered(place: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(place)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 8192, b"hello", b"SQLite format 3\0" + b"\xff" * 4096], ids=lambda c: str(c[:8])
)
async def test_a_file_that_is_no_store_is_refused(place: Path, content: bytes) -> None:
    """An empty or foreign file is an error, never a silent start from zero, and is left as it is."""
    place.write_bytes(content)
    await refused(place)
    assert place.read_bytes() == content


async def test_another_database_is_refused(place: Path) -> None:
    """A SQLite file of somebody else's is not taken over."""
    tampered(place, "CREATE TABLE theirs (x)")
    assert "not a kie4o store" in str(await refused(place))


async def test_a_newer_store_is_refused(place: Path) -> None:
    """A file of a later schema is refused with a sentence that says what to do."""
    await filled(place)
    tampered(place, f"PRAGMA user_version = {SCHEMA + 1}")
    assert "upgrade kie4o" in str(await refused(place))


def test_a_place_that_cannot_be_a_file_is_refused(tmp_path: Path) -> None:
    """A directory, a file as parent and a name with a null are errors, not tracebacks or silence."""
    (tmp_path / "file").write_bytes(b"x")
    for place in (tmp_path, tmp_path / "file" / "run.db", tmp_path / "null\0.db"):
        assert "cannot be used" in str(asyncio.run(refused(place)))


@pytest.mark.parametrize("part", ["body", "checksum"])
async def test_a_flipped_byte_of_an_entry_is_noticed(place: Path, part: str) -> None:
    """Damage that SQLite does not see fails the opening: a task id with a wrong letter is lost."""
    await filled(place)
    with contextlib.closing(sqlite3.connect(place)) as connection:
        [content] = connection.execute(f"SELECT {part} FROM entry WHERE key = '7'").fetchone()
    for at in range(0, len(content), 1 + len(content) // 16):
        flipped = bytearray(content)
        flipped[at] ^= 0x01
        tampered(place, f"UPDATE entry SET {part} = x'{flipped.hex()}' WHERE key = '7'")
        assert "damaged" in str(await refused(place))
    tampered(place, f"UPDATE entry SET {part} = x'{content.hex()}' WHERE key = '7'")
    async with opened(place) as store:
        assert await store.find(key="7") == ended(submitted("7"))


COLUMNS = [
    *("key = 'other'", "task_id = 'other'", "task_id = NULL", "state = 'planned'", "state = 'what'"),
    *("submitted_at = 6.0", "submitted_at = NULL", "ref_hash = x'00'", "ref_hash = CAST(ref_hash AS TEXT)"),
    *("key = CAST(key AS BLOB)", "checksum = CAST(checksum AS TEXT)", "body = CAST(body AS TEXT)"),
    *("checksum = ''", "body = ''", "body = 5"),
]


@pytest.mark.parametrize("change", COLUMNS)
async def test_a_column_that_does_not_fit_is_noticed(place: Path, change: str) -> None:
    """Columns that say something else than the entry, or whose type one flipped bit has changed, fail
    the opening."""
    await filled(place)
    tampered(place, f"UPDATE entry SET {change} WHERE key = '7'")
    assert re.search("damaged|cannot be used", str(await refused(place)))


async def test_one_store_object_serves_one_client_at_a_time() -> None:
    """Two clients that do not know of each other would pay twice for a key."""
    store = MemoryStore()
    async with Emulator() as kie, AsyncKieClient("sk-test", base_url=kie.url, store=store) as first:
        await first.submit("x", key="k")
        with pytest.raises(kie4o.StoreLockedError):
            await AsyncKieClient("sk-test", base_url=kie.url, store=store).submit("x", key="k")
    async with AsyncKieClient("sk-test", base_url=kie.url, store=store) as second:
        assert [entry.key async for entry in second.unfinished()] == ["k"]
