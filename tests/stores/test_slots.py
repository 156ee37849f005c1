"""`recent`: the submits that still count against the account's limit, whatever the clocks do."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from entries import ended, entry_of, submitted
from test_store_suite import KINDS, Kind

from kie4o import clock
from kie4o.stores.memory import MemoryStore
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.store import Entry, EntryState, Store

DAY = 86_400.0


@attrs.define
class Clocks:
    """The wall clock and the uptime of the machine, moved by hand."""

    wall: float = 1_800_000_000.0
    uptime: float = 1000.0

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.uptime += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks()
    monkeypatch.setattr(clock, "unix_time", lambda: clocks.wall)
    monkeypatch.setattr(clock, "uptime", lambda: clocks.uptime)
    return clocks


# Where processes share a store, its limiter has the slots.
ALONE = {name: kind for name, kind in KINDS.items() if name != "postgres"}


@pytest.fixture(params=ALONE.values(), ids=ALONE)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
async def store(kind: Kind, tmp_path: Path):
    store = kind.make(tmp_path)
    await store.open()
    yield store
    await store.aclose()


def begun(key: str, state: EntryState = EntryState.INTENT, **more: object) -> Entry:
    return entry_of(key, state=state, submitted_at=clock.unix_time(), **more)


async def restarted(kind: Kind, store: Store, folder: Path) -> Store:
    """Closed and opened by another object, if there is anything to find."""
    await store.aclose()
    if kind.durable:
        store = kind.make(folder)
    await store.open()
    return store


async def test_the_ages_of_submits(store: Store, clocks: Clocks) -> None:
    """A submit counts from its INTENT, then from its answer or from when it was given up."""
    await store.save(begun("a"))
    clocks.pass_(4)
    assert await store.recent(10) == [4]
    await store.save(submitted("a", submitted_at=clocks.wall))
    await store.save(begun("b"))
    clocks.pass_(3)
    await store.save(begun("b", EntryState.UNKNOWN))
    clocks.pass_(2)
    assert sorted(await store.recent(10)) == [2, 5]
    assert await store.recent(5) == [2]
    assert await store.recent(2) == []


async def test_a_submit_that_was_answered_does_not_count_anew(store: Store, clocks: Clocks) -> None:
    """Not when its task ends, nor when a callback names the task of a lost answer."""
    answered = submitted("a", submitted_at=clocks.wall)
    lost = begun("b", EntryState.UNKNOWN)
    await store.save(answered)
    await store.save(lost)
    clocks.pass_(7)
    await store.save(ended(answered))
    await store.save(lost.become(EntryState.SUBMITTED, task_id="named"))
    assert await store.recent(10) == [7, 7]


async def test_a_submit_that_was_not_paid_for_does_not_count(store: Store, clocks: Clocks) -> None:
    """Whether it is planned again, forgotten, or what was stored under its key before is restored."""
    planned = entry_of("a")
    await store.save(begun("a"))
    await store.save(planned)
    await store.save(begun("b"))
    await store.forget("b")
    failed = ended(submitted("c", submitted_at=clocks.wall), EntryState.FAILED)
    await store.save(failed)
    await store.begin(begun("c", ref="another ref"), failed.superseded())
    await store.save(failed)
    assert await store.recent(DAY) == []


async def test_a_key_that_is_used_again_counts_twice(store: Store, clocks: Clocks) -> None:
    """The first submit of the key may have been paid for, and the second is. The first one keeps its age."""
    first = begun("a", EntryState.UNKNOWN)
    await store.save(first)
    clocks.pass_(4)
    await store.begin(begun("a", ref="another ref"), first.superseded())
    clocks.pass_(1)
    await store.save(submitted("a", ref="another ref", submitted_at=clocks.wall))
    assert sorted(await store.recent(10)) == [0, 5]


async def test_slots_are_kept_for_the_window(
    kind: Kind, store: Store, tmp_path: Path, clocks: Clocks
) -> None:
    """After almost a day a restart still counts what a window of a day holds; one of a week keeps a week."""
    for n in range(5):
        await store.save(submitted(f"{n}", submitted_at=clocks.wall + n / 100))
    clocks.pass_(DAY - 0.5)
    store = await restarted(kind, store, tmp_path)
    assert len(await store.recent(10)) == 0
    assert len(await store.recent(DAY)) == 5
    clocks.pass_(5 * DAY)
    assert len(await store.recent(7 * DAY)) == 5
    await store.aclose()


@pytest.mark.parametrize("step", [-100 * DAY, -5.0, 5.0, 3600.0, 100 * DAY])
async def test_a_step_of_the_wall_clock_makes_no_slot_older(
    kind: Kind, store: Store, tmp_path: Path, clocks: Clocks, step: float
) -> None:
    """Set forward or back, also while the process does not run: no age exceeds the time that passed."""
    await store.save(submitted("a", submitted_at=clocks.wall))
    clocks.pass_(2)
    clocks.wall += step
    store = await restarted(kind, store, tmp_path)
    [age] = await store.recent(10)
    assert 0 <= age <= 2
    clocks.pass_(10)
    assert await store.recent(10) == []  # it delays for one window, not until the clock is right again
    await store.aclose()


async def test_after_a_restart_of_the_machine_the_wall_clock_counts(tmp_path: Path, clocks: Clocks) -> None:
    """The uptime began anew. In a file from another machine, which may have any uptime, nothing is older than
    the wall clock says."""
    store = SQLiteStore(tmp_path / "run.db")
    await store.open()
    await store.save(submitted("a", submitted_at=clocks.wall))
    clocks.wall += 300
    for uptime in (20.0, 999.0, 1e6):
        clocks.uptime = uptime
        assert await store.recent(301) == [300]
        assert await store.recent(299) == []
    await store.aclose()


async def test_what_no_window_needs_is_deleted(tmp_path: Path, clocks: Clocks) -> None:
    """Slots older than a day, or than the window if that is longer."""
    store = SQLiteStore(tmp_path / "run.db")
    await store.open()
    await store.save(submitted("a", submitted_at=clocks.wall))

    async def count() -> int:
        sql = "SELECT count(*) FROM slot"
        return await store._worker.run(lambda connection: connection.execute(sql).fetchone()[0])

    clocks.pass_(DAY + 1)
    assert len(await store.recent(2 * DAY)) == await count() == 1
    assert (await store.recent(DAY), await count()) == ([], 0)
    await store.aclose()


async def test_an_abandoned_intent_counts_from_the_opening(tmp_path: Path, clocks: Clocks) -> None:
    """Its request may have been sent at any time before its process died."""
    store = SQLiteStore(tmp_path / "run.db")
    await store.open()
    await store.save(begun("a"))
    await store.aclose()
    clocks.pass_(60)
    await store.open()
    assert await store.recent(10) == [0]
    await store.aclose()


async def test_memory_keeps_the_newest(clocks: Clocks) -> None:
    """The dict of a process that runs for months does not grow."""
    store = MemoryStore()
    for n in range(1_200):
        await store.save(submitted(f"{n}", submitted_at=clocks.wall))
        clocks.pass_(1)
    assert sorted(await store.recent(DAY)) == list(range(1, 1_001))
