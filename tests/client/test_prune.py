"""`AsyncKieClient.prune`: what is removed, what stays, and what the same key means after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from canary import CANARY_KEY

from kie4o import (
    AsyncKieClient,
    InsufficientCreditsError,
    InvalidRequestError,
    RateLimit,
    StoreError,
    SubmissionUnknownError,
    TaskFailedError,
)
from kie4o.clock import unix_time
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.store import Entry, EntryState, Store

MONTH = 30 * 86_400.0

Make = Callable[[Path], Store]
KINDS: dict[str, Make] = {
    "memory": lambda folder: MemoryStore(),
    "sqlite": lambda folder: SQLiteStore(folder / "run.db"),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def make(request: pytest.FixtureRequest) -> Make:
    return request.param


async def aged(client: AsyncKieClient, key: str, seconds: float) -> Entry:
    """The entry of a key as if all that happened to it had happened earlier."""
    store = client._runtime.store
    entry = await store.find(key=key)
    assert entry is not None
    details, submitted_at = entry.details, entry.submitted_at
    if details is not None and details.completed_at is not None:
        details = attrs.evolve(details, completed_at=details.completed_at - timedelta(seconds=seconds))
    entry = attrs.evolve(entry, details=details, submitted_at=(submitted_at or unix_time()) - seconds)
    await store.save(entry)
    return entry


async def test_a_key_that_is_forgotten_is_paid_again(make: Make, tmp_path: Path) -> None:
    """One that was kept is not. What was removed is still counted in what was spent."""
    async with (
        Emulator(duration=0.0) as kie,
        AsyncKieClient(CANARY_KEY, base_url=kie.url, store=make(tmp_path)) as client,
    ):
        first = {key: (await client.generate("a lake", key=key)).task_id for key in ("old", "new")}
        await aged(client, "old", 2 * MONTH)
        await aged(client, "new", MONTH / 2)
        assert await client.prune(older_than=timedelta(days=30)) == 1
        assert await client.find("old") is None
        assert (await client.spent()).credits == 12
        assert (await client.generate("a lake", key="new")).task_id == first["new"]
        assert len(kie.tasks) == 2
        assert (
            await client.generate("a hill", key="old")
        ).task_id not in first.values()  # also another prompt
        assert len(kie.tasks) == 3
        assert (await client.spent()).credits == 18
        assert await client.prune(older_than=MONTH) == 0


async def test_what_is_or_may_be_paid_is_never_removed(make: Make, tmp_path: Path) -> None:
    """A task that runs and a submit with an unknown outcome, both of years ago. Their keys hold."""
    async with (
        Emulator(duration=0.0) as kie,
        AsyncKieClient(CANARY_KEY, base_url=kie.url, store=make(tmp_path)) as client,
    ):
        kie.plan("stuck", outcome="stuck")
        kie.plan("lost", answer="dropped")
        await client.submit("stuck", key="runs")
        with pytest.raises(SubmissionUnknownError):
            await client.submit("lost", key="unknown")
        for key in ("runs", "unknown"):
            await aged(client, key, 100 * MONTH)
        assert await client.prune(older_than=1e-9) == 0
        states = {entry.key: entry.state async for entry in client.unfinished()}
        assert states == {"runs": EntryState.SUBMITTED, "unknown": EntryState.UNKNOWN}
        with pytest.raises(SubmissionUnknownError):
            await client.submit("lost", key="unknown")
        assert len(kie.submits) == 2


async def test_control_of_the_above_a_store_that_removes_by_age_alone_pays_twice(tmp_path: Path) -> None:
    """Control: the same check finds a store that also removes what is unknown."""

    class Careless(MemoryStore):
        async def prune(self, before: float) -> int:
            for key in [*self._entries]:
                self._forget(key)
            return 0

    async with (
        Emulator(duration=0.0) as kie,
        AsyncKieClient(CANARY_KEY, base_url=kie.url, store=Careless()) as client,
    ):
        kie.plan("lost", answer="dropped")
        with pytest.raises(SubmissionUnknownError):
            await client.submit("lost", key="unknown")
        await client.prune(older_than=1e-9)
        await client.submit("lost", key="unknown")
        assert len(kie.submits) == 2


@pytest.mark.parametrize("sent", [False, True])
async def test_what_is_removed_during_the_next_submit_of_its_key_is_counted_once(
    make: Make, tmp_path: Path, sent: bool
) -> None:
    """A failed task is removed while its key is submitted again, which is then refused. It stays removed:
    stored again it would count twice. Also if it is removed before the request is sent."""
    limit = RateLimit(20, per=10.0) if sent else RateLimit(1, per=2.0)
    async with (
        Emulator(duration=0.0, latency=0.1) as kie,
        AsyncKieClient(CANARY_KEY, base_url=kie.url, store=make(tmp_path), rate_limit=limit) as client,
    ):
        kie.plan("a lake", outcome="failed")
        with pytest.raises(TaskFailedError):
            await client.generate("a lake", key="k")
        await aged(client, "k", 2 * MONTH)
        kie.plan("a lake", answer=402)
        if not sent:
            await client.submit("another", key="takes the slot")
        again = asyncio.ensure_future(client.submit("a lake", key="k", retry_failed=True))
        submits = len(kie.submits)
        while sent and len(kie.submits) == submits:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        spent = await client.spent()
        assert await client.prune(older_than=MONTH) == 1
        assert await client.spent() == spent
        with pytest.raises(InsufficientCreditsError):
            await again
        assert len(kie.submits) == submits + 1
        assert await client.find("k") is None
        assert (await client.spent()).credits == (6 if sent else 12)


async def test_control_of_the_above_without_pruning_the_failed_task_returns(tmp_path: Path) -> None:
    """Control: it does to its key, and counts once."""
    async with (
        Emulator(duration=0.0) as kie,
        AsyncKieClient(CANARY_KEY, base_url=kie.url, store=tmp_path / "run.db") as client,
    ):
        kie.plan("a lake", outcome="failed")
        with pytest.raises(TaskFailedError) as caught:
            await client.generate("a lake", key="k")
        kie.plan("a lake", answer=402)
        with pytest.raises(InsufficientCreditsError):
            await client.submit("a lake", key="k", retry_failed=True)
        entry = await client.find("k")
        assert entry is not None
        assert (entry.state, entry.task_id) == (EntryState.FAILED, caught.value.task_id)
        assert (await client.spent()).credits == 6


@pytest.mark.parametrize(
    "age",
    [0, -1, True, None, "30d", float("inf"), float("nan"), 10**400, timedelta(0), timedelta(days=-1)],
    ids=range(10),
)
async def test_an_age_is_a_positive_duration(age: Any) -> None:
    """Anything else is named, and nothing is removed."""
    async with AsyncKieClient(CANARY_KEY) as client:
        expected = "invalid older_than=.*: expected a positive number of seconds, or a timedelta"
        with pytest.raises(InvalidRequestError, match=expected):
            await client.prune(older_than=age)


async def test_a_store_that_fails_is_a_store_error() -> None:
    """Whatever a store of the caller's raises."""

    class Broken(MemoryStore):
        async def prune(self, before: float) -> int:
            raise OSError("no disk")

    async with AsyncKieClient(CANARY_KEY, store=Broken()) as client:
        with pytest.raises(StoreError, match="no disk"):
            await client.prune(older_than=MONTH)
