"""Law 3 across restarts: submits of earlier processes on the same store count against the limit."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from clients import MakeStore, client_of
from clocks import run_timelapse
from faults import FaultServer, stall

import kie4o
from kie4o import RateLimit, clock
from kie4o.emulator import Emulator
from kie4o.stores.sqlite import SQLiteStore

WINDOWS = [(20, 10.0), (1, 0.5)]  # loop seconds per second, and seconds of the limit's window
RUNS = (12, 8, 15, 5)  # submits in each run of the process


async def run_often(kie: Emulator, per: float, paths: list[Path]) -> None:
    """A process that is restarted several times and submits as fast as it may."""
    for number, (submits, path) in enumerate(zip(RUNS, paths, strict=True)):
        limit = RateLimit(20, per=per)
        async with client_of(kie.url, SQLiteStore(path), rate_limit=limit) as client:
            await asyncio.gather(*(client.submit(f"{number}.{n}") for n in range(submits)))


@pytest.mark.parametrize(("speed", "per"), WINDOWS)
@pytest.mark.parametrize("limit", [20, 1000])
def test_a_restart_remembers_the_window(tmp_path: Path, speed: float, per: float, limit: int) -> None:
    """No window has a 21st submit, and a server that admits 20 refuses none."""

    async def run() -> None:
        async with Emulator(limit=limit, per=per) as kie:
            await run_often(kie, per, [tmp_path / "run.db"] * len(RUNS))
            assert kie.windows() <= 20
            assert (kie.answers()[429], kie.paid) == (0, sum(RUNS))

    run_timelapse(run(), speed)


@pytest.mark.parametrize(("speed", "per"), WINDOWS)
def test_control_a_restart_without_a_store_breaks_the_limit(tmp_path: Path, speed: float, per: float) -> None:
    """Control: with a new file for each run there are more than 20, and the server refuses some."""

    async def run() -> None:
        fresh = [tmp_path / f"{n}.db" for n in range(2 * len(RUNS))]
        async with Emulator(limit=1000, per=per) as kie:
            await run_often(kie, per, fresh[: len(RUNS)])
            assert kie.windows() > 20
        async with Emulator(limit=20, per=per) as kie:
            await run_often(kie, per, fresh[len(RUNS) :])
            assert kie.answers()[429] > 0

    run_timelapse(run(), speed)


async def test_a_restart_remembers_submits_whose_keys_were_used_again(tmp_path: Path) -> None:
    """Two tasks of one key, the second after the first had failed, count as two."""
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
        assert kie.windows() <= 20
        assert kie.paid == 30


async def test_a_submit_that_was_given_up_counts_from_then(store: MakeStore) -> None:
    """A submit without an answer counts from the moment it was given up.

    Its request may have reached Kie at any time until then.
    """
    async with FaultServer(stall) as server:
        async with client_of(server.url, kept := store(), timeout=0.5) as client:
            with pytest.raises(kie4o.SubmissionUnknownError):
                await client.submit("x", key="a")
            assert (await kept.find(key="a")).submitted_at > time.time() - 0.25


@pytest.mark.parametrize("step", [5.0, 3600.0, -3600.0])
async def test_a_step_of_the_wall_clock_admits_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    """The clock is set before each of two restarts, by more than the window: it still holds 5 submits.

    Set back it may delay, by one window at each restart.
    """
    limit = RateLimit(5, per=0.5)
    true_time = time.time
    async with Emulator(limit=1000, per=0.5) as kie:
        for restart in range(3):
            monkeypatch.setattr(clock, "unix_time", lambda restart=restart: true_time() + restart * step)
            async with client_of(kie.url, SQLiteStore(tmp_path / "run.db"), rate_limit=limit) as client:
                await asyncio.gather(*(client.submit(f"{restart}.{n}") for n in range(5)))
        assert kie.windows() <= 5
        assert kie.paid == 15


async def test_a_restart_after_hours_remembers_a_window_of_a_day(
    store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 5 a day, a process that is restarted two hours later submits nothing."""
    limit = RateLimit(5, per=86_400)
    true_time, true_uptime = clock.unix_time, clock.uptime
    async with Emulator() as kie:
        async with client_of(kie.url, store(), rate_limit=limit) as client:
            await asyncio.gather(*(client.submit(f"{n}") for n in range(5)))
        monkeypatch.setattr(clock, "unix_time", lambda: true_time() + 7200)
        monkeypatch.setattr(clock, "uptime", lambda: true_uptime() + 7200)
        async with client_of(kie.url, store(), rate_limit=limit) as client:
            calls = [asyncio.create_task(client.submit(f"later {n}")) for n in range(5)]
            _, waiting = await asyncio.wait(calls, timeout=0.2)
            assert len(kie.submits) == 5
            for call in waiting:
                call.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
