"""Laws 1 and 2 under `kill -9`: a batch is killed, run again until it ends, and judged by what the server
counted and by the store that it left, a file or the tables of a database.

By default a batch is killed once at every named step and at 40 random moments; HYPOTHESIS_PROFILE=deep takes
every step at every item, and 200 moments. Over PostgreSQL there are a third of the moments.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from canary import CANARY_KEY
from crashing import (
    CHILD,
    ITEMS,
    KILLED,
    SERVER_STEPS,
    Case,
    CountingServer,
    Lane,
    on_lanes,
    on_postgres,
)
from proving import DEEP

from kie4o import AsyncKieClient, KieError, StoreLockedError

pytestmark = [pytest.mark.once, pytest.mark.posix("fork, and signals that stop and kill")]

MOMENTS = 200 if DEEP else 40
SAVED = ("claim", "intent", "submitted", "succeeded")
ONCE = ("open", "recent", "find_many", "close")
NewStore = Callable[[], str]
STORES: dict[str, NewStore] = {"sqlite": lambda: "run.db", "postgres": on_postgres}
every_store = pytest.mark.parametrize(
    "new_store",
    [
        pytest.param(STORES["sqlite"], id="sqlite"),
        pytest.param(STORES["postgres"], id="postgres", marks=pytest.mark.proof),
    ],
)

CONNECTIONS = 6  # that every run opens; how many more (9 to 16) depends on which are free to be reused


@attrs.frozen
class Kill:
    """Where one run is killed: by its store or by the server, at the `at`-th occurrence of `step`."""

    by: str
    step: str
    at: int

    def __str__(self) -> str:
        return f"killed by the {self.by} at {self.step} number {self.at}"


def named_steps(new_store: NewStore) -> list[Kill]:
    """Every step: at one item, or at each in the deep profile."""
    numbers = random.Random(3)
    kills = [Kill("store", f"{when} {what}", 1) for what in ONCE for when in ("before", "during", "after")]
    each = SAVED if new_store is not on_postgres else (*SAVED, "release")
    for step in (f"{when} {what}" for what in each for when in ("before", "during", "after")):
        kills += [Kill("store", step, at) for at in _items(numbers)]
    for step in ("before find", "during find", "after find"):  # once a task has ended
        kills += [Kill("store", step, at) for at in ((1, 10, 20) if not DEEP else range(1, 21))]
    for step in SERVER_STEPS:
        most = CONNECTIONS if step == "connect" else len(ITEMS)
        kills += [Kill("server", step, at) for at in _items(numbers, most)]
    return kills


def _items(numbers: random.Random, most: int = len(ITEMS)) -> list[int]:
    return list(range(1, most + 1)) if DEEP else [numbers.randint(2, most)]


async def killed(folder: Path, lane: Lane, kill: Kill, **more: Any) -> tuple[Case, list[str]]:
    """Run a batch that is killed there, then to its end; return its faults too."""
    by_server = kill.by == "server"
    server = CountingServer(kill.step, kill.at) if by_server else CountingServer()
    async with Case(folder, server, **more) as case:
        code = await case.run(lane, *(() if by_server else (kill.step, kill.at)))
        faults = [] if code == KILLED else [f"the step was not reached: code {code}, {case.said}"]
        return case, faults + await case.finish(lane)


@pytest.mark.sweep
@every_store
async def test_a_batch_killed_at_any_named_step_pays_once_and_loses_nothing(
    tmp_path: Path, new_store: NewStore
) -> None:
    """Killed before, during or after any call of the store, or at any stage of an exchange, a batch still
    completes.

    Each item has one outcome and at most one complete POST, no task id that arrived is lost, and a further
    run of the finished batch sends nothing.
    """

    async def act(lane: Lane, kill: Kill) -> list[str]:
        return (await killed(tmp_path / str(kill), lane, kill, store=new_store()))[1]

    assert await on_lanes(named_steps(new_store), act) == []


async def test_a_batch_over_a_database(tmp_path: Path) -> None:
    """The same over PostgreSQL, at a few of these steps."""
    kills = [
        Kill("store", "during open", 1),
        Kill("store", "after claim", 4),
        Kill("store", "after intent", 7),
    ]
    kills += [Kill("store", "during intent", at) for at in (3, 11)]
    kills += [Kill("store", "before submitted", 5), Kill("server", "half an answer", 6)]

    async def act(lane: Lane, kill: Kill) -> list[str]:
        return (await killed(tmp_path / str(kill), lane, kill, store=on_postgres()))[1]

    assert await on_lanes(kills, act) == []


async def test_a_batch_on_a_drive_without_hard_links(tmp_path: Path) -> None:
    """The same where the store is created by renaming, killed around that and later."""
    kills = [Kill("store", f"{when} open", 1) for when in ("before", "during", "after")]
    kills += [Kill("store", "during intent", 3), Kill("server", "half an answer", 7)]

    async def act(lane: Lane, kill: Kill) -> list[str]:
        return (await killed(tmp_path / str(kill), lane, kill, links=False))[1]

    assert await on_lanes(kills, act) == []


@attrs.frozen
class Moments:
    """Up to three kills of one batch, as fractions of its duration."""

    number: int
    shares: tuple[float, ...]


@pytest.mark.sweep
@every_store
async def test_a_batch_killed_at_random_moments_pays_once_and_loses_nothing(
    tmp_path: Path, new_store: NewStore
) -> None:
    """The same for `MOMENTS` batches killed at random moments, fewer over PostgreSQL: each takes longer.

    Every third is killed twice and every ninth three times, so some are killed while they resume. A kill
    after the end does not count.
    """
    undisturbed = await _duration(tmp_path, new_store)
    moments = MOMENTS // 3 if new_store is on_postgres else MOMENTS
    hits = 0

    def cases() -> Iterator[Moments]:
        numbers = random.Random(200)
        for number in range(3 * moments):
            if hits < moments:
                times = 1 + (number % 3 == 0) + (number % 9 == 0)
                yield Moments(number, tuple(numbers.random() for _ in range(times)))

    async def act(lane: Lane, kills: Moments) -> list[str]:
        nonlocal hits
        async with Case(tmp_path / str(kills.number), CountingServer(), store=new_store()) as case:
            for share in kills.shares:
                await case.run(lane, kill_after=share * undisturbed)
            hits += case.codes[0] == KILLED
            return await case.finish(lane)

    assert await on_lanes(cases(), act) == []
    assert hits >= moments


async def _duration(folder: Path, new_store: NewStore) -> float:
    """The duration of a batch that is not killed."""
    async with Lane() as lane, Lane() as other:

        async def one(lane: Lane, name: str) -> float:
            async with Case(folder / name, CountingServer(), store=new_store()) as case:
                start = time.perf_counter()
                assert await case.run(lane) == 0
                return time.perf_counter() - start

        pairs = [await asyncio.gather(one(lane, f"a{n}"), one(other, f"b{n}")) for n in range(2)]
    return min(pairs[-1])


async def test_control_a_naive_client_pays_twice(tmp_path: Path) -> None:
    """Control: a client that saves the task id after the POST pays again, so the tests see double
    payments."""
    kills = [Kill("server", step, at) for step in ("post", "half an answer") for at in (2, 9, 16)]
    twice: list[int] = []

    async def act(lane: Lane, kill: Kill) -> list[str]:
        case, faults = await killed(tmp_path / str(kill), lane, kill, naive=True)
        twice.append(case.double_payments)
        return faults

    assert await on_lanes(kills, act) == []
    assert min(twice) > 0


async def test_control_without_intents_a_database_lets_it_pay_twice(tmp_path: Path) -> None:
    """Control: so the tests see double payments there too."""
    async with (
        Lane() as lane,
        Case(tmp_path / "case", CountingServer("post", 9), store=on_postgres()) as case,
    ):
        assert await case.run(lane, unprotected=True) == KILLED
        await case.run(lane)
        assert case.double_payments > 0


async def test_control_a_lost_id_is_seen(tmp_path: Path) -> None:
    """Control of the other promises: a store that lost an entry, or holds another task id, is found out."""
    async with Lane() as lane, Case(tmp_path / "case", CountingServer()) as case:
        assert await case.run(lane) == 0
        assert await case.finish(lane) == []
        entries = await case.entries()
        lost = dict(entries)
        del lost[ITEMS[3]]
        assert len(case.faults(lost)) >= 2
        changed = entries | {ITEMS[3]: attrs.evolve(entries[ITEMS[3]], task_id="another")}
        assert len(case.faults(changed)) >= 2
        case.server.posts[ITEMS[0]] += 1
        assert case.faults(entries) == [f"paid 2 times: {ITEMS[0]}"]


async def test_a_store_is_locked_while_its_process_runs(tmp_path: Path) -> None:
    """A second process gets `StoreLockedError` and pays nothing, even if the first one is frozen.

    After `kill -9` of the first the store opens, and the batch continues.
    """
    async with Lane() as first, Lane() as second, Case(tmp_path / "case", CountingServer("post", 5)) as case:
        await frozen(case, first)
        await second.start(case.run_of())
        assert await second.wait() == 0
        assert case.of_run(second.pid) == [{"run": second.pid, "ended": "StoreLockedError"}]
        assert second.pid not in {line["run"] for line in case.lines("evidence")}
        with pytest.raises(StoreLockedError):
            async with AsyncKieClient(
                CANARY_KEY, base_url=case.server.url, store=case.folder / "run.db", store_wait=0
            ):
                pass
        first.kill()
        case.codes.append(await first.wait())
        assert case.codes == [KILLED]
        assert await case.finish(second) == []


async def frozen(case: Case, lane: Lane, *step: Any, **more: Any) -> None:
    """Start a run, and stop its process (SIGSTOP) where the server would kill it."""
    reached = asyncio.Event()

    def freeze() -> None:
        lane.signal(signal.SIGSTOP)
        reached.set()

    case.server.kill = freeze
    await lane.start(case.run_of(*step, **more))
    await reached.wait()


async def test_a_fresh_interpreter_continues_a_killed_batch(tmp_path: Path) -> None:
    """A batch that was killed in a forked process continues in a fresh interpreter."""
    async with Lane() as lane, Case(tmp_path / "case", CountingServer("a whole answer", 7)) as case:
        assert await case.run(lane) == KILLED
        run = json.dumps(attrs.asdict(case.run_of()))
        process = await asyncio.create_subprocess_exec(sys.executable, CHILD, run)
        assert await process.wait() == 0
        assert await case.finish(lane) == []


async def test_an_unknown_outcome_is_reported_and_not_sent_again(tmp_path: Path) -> None:
    """An item whose POST was sent before the process died is unknown in every later run, and is not sent
    again."""
    async with Lane() as lane, Case(tmp_path / "case", CountingServer("post", 5)) as case:
        assert await case.run(lane) == KILLED
        assert await case.finish(lane) == []
        errors = [line["error"] for line in case.lines("outcomes") if "key" in line]
        assert 2 <= errors.count("SubmissionUnknownError") <= 2 * 8
        async with AsyncKieClient(
            CANARY_KEY, base_url=case.server.url, store=case.folder / "run.db"
        ) as client:
            unknown = [entry async for entry in client.unfinished()]
            assert {entry.state.value for entry in unknown} == {"unknown"}
            with pytest.raises(KieError, match="may have been charged"):
                await client.submit(unknown[0].request, key=unknown[0].key)
        assert max(case.server.posts.values()) == 1


# -- files that are copied, deleted, renamed and linked --------------------------------------------


async def two_processes(folder: Path, *, unprotected: bool) -> Case:
    """A process copies its open store; a second one tries to use the store; both go on to their ends."""
    async with Lane() as first, Lane() as second, Case(folder, CountingServer("post", 10)) as case:
        await frozen(case, first, "after submitted", 2, mishap="copy", unprotected=unprotected)
        await second.start(case.run_of(unprotected=unprotected))
        case.codes.append(await second.wait())
        first.signal(signal.SIGCONT)
        case.codes.append(await first.wait())
        await case.server.settled()
        if not unprotected:
            assert case.of_run(second.pid) == [{"run": second.pid, "ended": "StoreLockedError"}]
            assert await case.finish(second) == []
        return case


async def test_a_copy_of_an_open_store_lets_no_second_process_in(tmp_path: Path) -> None:
    """Closing the handle of a copy drops SQLite's lock; ours stays, so nothing is paid twice."""
    case = await two_processes(tmp_path / "case", unprotected=False)
    assert case.double_payments == 0
    assert (case.folder / "copy.db").exists()


async def test_control_sqlites_lock_lets_a_second_process_in(tmp_path: Path) -> None:
    """Control: under SQLite's lock alone both processes pay."""
    assert (await two_processes(tmp_path / "case", unprotected=True)).double_payments > 0


async def test_a_backup_of_a_finished_batch_is_restored_elsewhere(tmp_path: Path) -> None:
    """It was made through the open store, and replays every item without a request."""
    async with Lane() as lane, Case(tmp_path / "case", CountingServer()) as case:
        assert await case.run(lane, "before close", 1, mishap="backup") == 0
        elsewhere = case.folder / "elsewhere"
        elsewhere.mkdir()
        (case.folder / "backup.db").rename(elsewhere / "run.db")
        case.store = "elsewhere/run.db"
        assert await case.finish(lane) == []
        assert case.server.posts.total() == len(ITEMS)


@pytest.mark.parametrize("at", [1, 4, 9])
@pytest.mark.parametrize("mishap", ["delete", "rename"])
async def test_a_store_that_is_moved_away_stops_its_batch(tmp_path: Path, mishap: str, at: int) -> None:
    """Nothing is sent without an intent in a file that can be found, by this process or by the next.

    Once the file is back the batch continues, and nothing was paid twice.
    """
    async with Lane() as lane, Case(tmp_path / "case", CountingServer()) as case:
        assert await case.run(lane, "after submitted", at, mishap=mishap) == 0
        intents = [line for line in case.lines("evidence") if line.get("asked") == "intent"]
        saved = {line["number"] for line in case.lines("evidence") if "done" in line}
        # An item whose intent was saved may have been called off because the next one could not be.
        assert set(case.server.posts) <= {line["key"] for line in intents if line["number"] in saved}
        posts = case.server.posts.total()
        assert at <= posts < len(ITEMS)
        assert await case.run(lane) == 0  # the log of the missing file keeps a new store from starting
        assert [line["ended"] for line in case.of_run(lane.pid)] == ["StoreError"]
        assert case.server.posts.total() == posts
        if mishap == "rename":
            (case.folder / "moved.db").rename(case.folder / "run.db")
            assert await case.finish(lane) == []
        assert case.double_payments == 0


@pytest.mark.parametrize("mishap", ["delete", "rename"])
async def test_control_a_store_that_believes_its_path_loses_what_it_pays(tmp_path: Path, mishap: str) -> None:
    """Control: the batch goes on into a file that no one finds, and the next run pays for all of it again."""
    async with Lane() as lane, Case(tmp_path / "case", CountingServer()) as case:
        await case.run(lane, "after submitted", 4, mishap=mishap, unprotected=True)
        assert case.server.posts.total() == len(ITEMS)
        (case.folder / "run.db-wal").unlink()
        await case.run(lane)
        assert case.double_payments == len(ITEMS)


async def behind_a_link(folder: Path, at: int, *, unprotected: bool) -> Case:
    """A store that is opened through a link is killed, and the log beside the real file damaged."""
    async with Lane() as lane, Case(folder, CountingServer("post", at), store="link.db") as case:
        real = case.folder / "data" / "real.db"
        real.parent.mkdir()
        (case.folder / "link.db").symlink_to(real)
        assert await case.run(lane) == KILLED
        log = real.with_name("real.db-wal")
        content = log.read_bytes()
        log.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        await case.run(lane, unprotected=unprotected)
        if not unprotected:
            assert [line["ended"] for line in case.of_run(lane.pid)] == ["StoreError"]
            log.write_bytes(content)
            assert await case.finish(lane) == []
        return case


async def test_a_damaged_log_behind_a_link_is_found(tmp_path: Path) -> None:
    """Nothing is sent, and with the right log nothing is paid twice."""
    for at in (5, 9, 16):
        assert (await behind_a_link(tmp_path / str(at), at, unprotected=False)).double_payments == 0


async def test_control_a_damaged_log_that_is_believed_pays_twice(tmp_path: Path) -> None:
    """Control: what was paid since SQLite last copied the log into the file is paid for again."""
    cases = [await behind_a_link(tmp_path / str(at), at, unprotected=True) for at in range(5, 17)]
    assert sum(case.double_payments for case in cases) > 0
