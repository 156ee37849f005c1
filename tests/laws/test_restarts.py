"""Law 3 across restarts: the submits of an earlier process on the store count against the limit."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from clients import MakeStore, client_of
from clocks import run_scaled
from faults import FaultServer, stall

import kie4o
from kie4o import RateLimit
from kie4o.emulator import Emulator
from kie4o.stores.sqlite import SQLiteStore

WINDOWS = [(20, 10.0), (1, 0.5)]  # loop seconds per second, and seconds of the limit's window
LIVES = (12, 8, 15, 5)  # submits in each life of the process


async def lives(kie: Emulator, per: float, places: list[Path]) -> None:
    """A process that is restarted several times and submits as fast as it may."""
    for number, (submits, place) in enumerate(zip(LIVES, places, strict=True)):
        limit = RateLimit(20, per=per)
        async with client_of(kie.url, SQLiteStore(place), rate_limit=limit) as client:
            await asyncio.gather(*(client.submit(f"{number}.{n}") for n in range(submits)))


@pytest.mark.parametrize(("speed", "per"), WINDOWS)
@pytest.mark.parametrize("limit", [20, 1000])
def test_a_restart_remembers_the_window(tmp_path: Path, speed: float, per: float, limit: int) -> None:
    """Law 3 over several lives on one file: no window sees a 21st submit, and a server that admits
    20 refuses none."""

    async def run() -> None:
        async with Emulator(limit=limit, per=per) as kie:
            await lives(kie, per, [tmp_path / "run.db"] * len(LIVES))
            assert kie.most_in_window() <= 20
            assert (kie.refused, kie.accepted) == (0, sum(LIVES))

    run_scaled(run(), speed)


@pytest.mark.parametrize(("speed", "per"), WINDOWS)
def test_control_a_restart_without_a_store_breaks_the_limit(tmp_path: Path, speed: float, per: float) -> None:
    """Control: with a new file for each life the same server sees more than 20 in a window, and one
    that admits 20 refuses some."""

    async def run() -> None:
        fresh = [tmp_path / f"{n}.db" for n in range(2 * len(LIVES))]
        async with Emulator(limit=1000, per=per) as kie:
            await lives(kie, per, fresh[: len(LIVES)])
            assert kie.most_in_window() > 20
        async with Emulator(limit=20, per=per) as kie:
            await lives(kie, per, fresh[len(LIVES) :])
            assert kie.refused > 0

    run_scaled(run(), speed)


async def test_a_restart_remembers_submits_whose_keys_were_used_again(tmp_path: Path) -> None:
    """Two tasks under one key, the second after the first had failed, are two in the window."""
    limit = RateLimit(20, per=2.0)
    async with Emulator(limit=1000, per=2.0, duration=0.0) as kie:
        for n in range(10):
            kie.plan(f"{n}", outcome="failed")
        async with client_of(kie.url, SQLiteStore(tmp_path / "run.db"), rate_limit=limit) as client:
            calls = (client.generate(f"{n}", key=f"{n}") for n in range(10))
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(end, kie4o.TaskFailedError) for end in ends)
            await asyncio.gather(*(client.submit(f"{n}", key=f"{n}", retry_failed=True) for n in range(10)))
        async with client_of(kie.url, SQLiteStore(tmp_path / "run.db"), rate_limit=limit) as client:
            await asyncio.gather(*(client.submit(f"new {n}") for n in range(10)))
        assert kie.most_in_window() <= 20
        assert kie.accepted == 30


async def test_a_submit_that_was_given_up_counts_from_then(store: MakeStore) -> None:
    """A request may reach Kie until its answer is given up on, so that is the time that a later life
    has to count from; counted from its beginning, a 21st would fit into Kie's window."""
    async with FaultServer(stall) as server:
        async with client_of(server.url, kept := store(), timeout=0.5) as client:
            with pytest.raises(kie4o.SubmissionUnknownError):
                await client.submit("x", key="a")
            assert (await kept.find(key="a")).submitted_at > time.time() - 0.25
