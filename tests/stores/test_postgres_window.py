"""The account's limit is kept by all processes on a database together, whatever happens to one of them.

The window is scaled: 20 requests in 1 s. Rules without which it breaks have a control, which is the same test
over SQL or constants that lack the rule.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import attrs
import postgres
import pytest
from canary import CANARY_KEY
from counting import Child, CountingServer, ReplyCutter, through
from portable import PATIENCE
from window_child import Run

from kie4o import AsyncKieClient, clock
from kie4o.emulator import Emulator
from kie4o.errors import StoreError
from kie4o.models import RateLimit
from kie4o.settings import Secret
from kie4o.stores.postgres import PostgresStore
from kie4o.stores.postgres import database as database_module
from kie4o.stores.postgres import process as process_module
from kie4o.stores.postgres import window as window_module
from kie4o.stores.postgres.address import address_of
from kie4o.stores.postgres.database import Database
from kie4o.stores.postgres.schema import migrate
from kie4o.stores.postgres.window import SharedLimiter, SharedSlot

LIMIT = RateLimit(20, per=1.0)
FEW = RateLimit(2, per=0.5)


@contextlib.asynccontextmanager
async def limiters(
    url: str, count: int, limit: RateLimit = LIMIT, **more: object
) -> AsyncIterator[list[SharedLimiter]]:
    """Those of several clients, each with a lease of its own."""
    stores = [PostgresStore(url, Secret(CANARY_KEY)) for _ in range(count)]
    try:
        for store in stores:
            await store.open()
        yield [store._machines.limiter(limit, **more) for store in stores]
    finally:
        for store in stores:
            await store.aclose()


@contextlib.asynccontextmanager
async def database_at(url: str) -> AsyncIterator[Database]:
    """The tables, without a process on them."""
    database = Database(address_of(url))
    await database.open()
    await migrate(database)
    try:
        yield database
    finally:
        await database.aclose()


async def without(database: Database, rule: str, instead: str = "") -> None:
    """Replace a part of the functions of the window."""
    sql = files("kie4o.stores.postgres").joinpath("sql/window.sql").read_text("utf-8")
    assert len(re.findall(rule, sql, re.DOTALL)) == 1
    sql = re.sub(rule, instead, sql, flags=re.DOTALL)
    await database.rows(sql.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))


DELETION = r"DELETE FROM kie4o.slot\s+WHERE account = of_account AND process = me.*?held\)\);"


async def short_leases(database: Database, seconds: float) -> None:
    await database.rows(
        "CREATE OR REPLACE FUNCTION kie4o.lease() RETURNS interval LANGUAGE sql IMMUTABLE "
        f"AS $$ SELECT interval '{seconds} s' $$"
    )


async def take_all(limiter: SharedLimiter, *, counted: bool | None = None) -> list[SharedSlot]:
    """Every slot of a window; released at once unless `counted` is None."""
    slots = await asyncio.gather(*(limiter.acquire() for _ in range(limiter.limit.limit)))
    for slot in slots if counted is not None else []:
        slot.release(counted=bool(counted))
    return slots


async def is_granted(task: asyncio.Task[SharedSlot], seconds: float = 0.3) -> bool:
    await asyncio.wait([task], timeout=seconds)
    return task.done()


async def rows_of(database: Database) -> tuple[int, int, int]:
    """How many slots wait, are open, and are answered."""
    [row] = await database.rows(
        "SELECT count(*) FILTER (WHERE taken_at IS NULL AND answered_at IS NULL), "
        "count(*) FILTER (WHERE taken_at IS NOT NULL AND answered_at IS NULL), count(answered_at) "
        "FROM kie4o.slot"
    )
    return row


async def until_rows(database: Database, *expected: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while await rows_of(database) != expected:
            await asyncio.sleep(0.02)


@pytest.fixture
def url() -> str:
    return postgres.shared_url()


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    async with database_at(url) as database:
        yield database


# -- one window ------------------------------------------------------------------------------------


@pytest.mark.posix("PostgreSQL")
async def test_processes_share_one_window(url: str) -> None:
    """However many wait in each of them."""
    async with CountingServer() as server, contextlib.AsyncExitStack() as stack:
        runs = [Run(url=url, port=server.port, waiters=waiters) for waiters in (1, 8, 60)]
        children = [await stack.enter_async_context(Child(run)) for run in runs]
        try:
            async with asyncio.timeout(PATIENCE):
                while len(server.arrivals) < 70:
                    await asyncio.sleep(0.05)
        finally:
            print(len(server.arrivals), "requests", [child.lines for child in children])
    assert server.most(LIMIT.per) == 20


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "control"])
async def test_the_count_is_read_after_the_lock(url: str, database: Database, guarded: bool) -> None:
    """In a later statement. Control: all statements see what was committed before the lock was waited for,
    as they do in a transaction that is not read committed. Such a server is refused."""
    if not guarded:
        await without(database, r"IF current_setting.*?END IF;")
    old = "options=-c%20default_transaction_isolation%3Drepeatable%5C%20read"
    async with limiters(f"{url}&{old}", 6, RateLimit(3, per=60.0)) as several:
        if guarded:
            with pytest.raises(StoreError, match="read committed"):
                await several[0].acquire()
            return
        async with asyncio.timeout(PATIENCE):
            while (await rows_of(database))[1] <= 3:
                await database.rows("DELETE FROM kie4o.slot")
                tasks = [asyncio.create_task(each.acquire()) for each in several]
                await asyncio.wait(tasks, timeout=0.1)
                for task in tasks:
                    task.cancel()


async def test_first_come_first_served(url: str) -> None:
    """Among all processes, also behind one with many waiters; a refused request goes before all."""
    async with limiters(url, 2, RateLimit(3, per=1.5)) as (many, one):
        order: list[str] = []

        async def wait(limiter: SharedLimiter, name: str, *, front: bool = False) -> None:
            (await limiter.acquire(front=front)).release(counted=True)
            order.append(name)

        await take_all(one, counted=True)
        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(wait(many, f"many {number}"))
            await asyncio.sleep(0.3)
            group.create_task(wait(one, "one"))
            await asyncio.sleep(0.3)
            group.create_task(wait(many, "refused", front=True))
        assert set(order[:3]) == {"refused", "many 0", "many 1"}
        assert set(order[3:6]) == {"many 2", "many 3", "many 4"}
        assert order[6:] == ["one"]


@pytest.mark.parametrize("kept", [True, False], ids=["rule", "control"])
async def test_one_waiter_behind_many(url: str, database: Database, kept: bool) -> None:
    """It is served when all of them were. Control: without tickets, by whose client asks first, which may be
    the others' each time in one of three runs."""
    if not kept:
        await without(database, "WHERE slot.account = of_account", "WHERE slot.process = me")

    async def place_of_one() -> int:
        order: list[str] = []

        async def wait(limiter: SharedLimiter, name: str) -> None:
            (await limiter.acquire()).release(counted=True)
            order.append(name)

        async with limiters(url, 2, RateLimit(2, per=0.2)) as (many, one):
            await take_all(one, counted=True)
            async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
                for _ in range(20):
                    group.create_task(wait(many, "many"))
                await asyncio.sleep(0.1)
                group.create_task(wait(one, "one"))
        return order.index("one")

    places = [await place_of_one()]
    while not kept and len(places) < 3 and min(places) >= 19:
        places.append(await place_of_one())
    assert (min(places) >= 19) is kept  # two are granted at the same time


async def test_a_slot_counts_from_its_answer(url: str) -> None:
    async with limiters(url, 2, FEW) as (limiter, other):
        slots = await take_all(limiter)
        waiting = asyncio.create_task(other.acquire())
        assert not await is_granted(waiting, 1.2)  # two windows later: they may still arrive
        before = time.monotonic()
        for slot in slots:
            slot.release(counted=True)
        assert await is_granted(waiting, 3)
        assert FEW.per <= time.monotonic() - before < FEW.per + 1.2


async def test_accounts_do_not_share(url: str) -> None:
    async with limiters(url, 1, FEW) as (limiter,), limiters(f"{url}&account=other", 1, FEW) as (other,):
        await take_all(limiter)
        await asyncio.wait_for(take_all(other), 0.4 * PATIENCE)


async def test_hold_all_holds_everybody(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """For a whole window from then on; each process says so once."""
    caplog.set_level(logging.INFO, "kie4o")
    async with limiters(url, 3, RateLimit(20, per=1.5)) as (refused, *others):
        loop = asyncio.get_running_loop()
        (await others[0].acquire()).release(counted=True)
        began = loop.time()
        assert refused.hold_all() == pytest.approx(1.5)
        assert (await rows_of(refused._database))[0] == 0
        async with asyncio.timeout(PATIENCE):
            while refused._pause is not None:
                await asyncio.sleep(0.01)
            granted = await asyncio.gather(*(each.acquire() for each in [refused, *others] for _ in range(5)))
        assert loop.time() - began >= 1.5
        assert len(granted) == 15
    paused = [record.getMessage() for record in caplog.records if "pause" in record.getMessage()]
    assert len(paused) == 3
    assert all(line.endswith("s: Kie refused one for too many calls") for line in paused)


@pytest.mark.parametrize("kept", [True, False], ids=["rule", "control"])
async def test_a_refusal_holds_the_other_processes(url: str, database: Database, kept: bool) -> None:
    """The pause is that of the account. Control: only the process that was refused knows of it."""
    if not kept:
        await without(database, r"IF t \+ make_interval\(secs => new_pause\).*?END IF;")
    async with limiters(url, 2, RateLimit(20, per=2.0)) as (refused, other):
        for limiter in (refused, other):
            (await limiter.acquire()).release(counted=True)
        refused.hold_all()
        async with asyncio.timeout(PATIENCE):
            while refused._pause is not None:
                await asyncio.sleep(0.01)
        waiting = asyncio.create_task(other.acquire())
        assert await is_granted(waiting, 0.8) is not kept
        waiting.cancel()


async def test_a_pause_is_logged_once_in_a_window(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kie4o")
    async with limiters(url, 1, RateLimit(3, per=1.5)) as (limiter,):
        for task in [asyncio.create_task(limiter.acquire()) for _ in range(6)]:
            (await task).release(counted=True)
    [line] = [record.getMessage() for record in caplog.records if "pause" in record.getMessage()]
    assert re.fullmatch(r"submits pause for 1\.\d s: the limit of 3 in 1\.5 s is used up", line)


async def test_slots_are_announced(url: str) -> None:
    """Before they are free, and no more than there are waiters."""
    loop, announced = asyncio.get_running_loop(), []
    lead = 0.2

    def announce(number: int) -> None:
        announced.append((loop.time(), number))

    async with limiters(url, 1, RateLimit(3, per=1.0), announce=announce, lead=lambda: lead) as (limiter,):
        await take_all(limiter, counted=True)
        assert announced == []
        await asyncio.gather(limiter.acquire(), limiter.acquire())
        granted_at = loop.time()
        assert max(number for _, number in announced) == 2
        assert lead / 2 < granted_at - announced[0][0] < lead + 0.5


# -- waiters that are cancelled, slots that are given back --------------------------------------------


@pytest.mark.parametrize("kept", [True, False], ids=["rule", "control"])
async def test_cancelled_waiters_leave_nothing(url: str, database: Database, kept: bool) -> None:
    """Control: rows of waiters that are not there any more keep another process from every slot."""
    if not kept:
        await without(database, DELETION)
    async with limiters(url, 2, FEW) as (limiter, other):
        await take_all(limiter, counted=True)
        waiting = [asyncio.create_task(limiter.acquire()) for _ in range(20)]
        await until_rows(database, 20, 0, 2)
        for task in waiting:
            task.cancel()
        waiting = [asyncio.create_task(each.acquire()) for each in (limiter, other)]  # one polls on
        assert await is_granted(waiting[1], 2.0) is kept
        if kept:
            await until_rows(database, 0, 2, 0)
        for task in waiting:
            task.cancel()


@pytest.mark.parametrize("kept", [True, False], ids=["rule", "control"])
async def test_a_slot_that_was_not_used_is_given_back(url: str, database: Database, kept: bool) -> None:
    """Control: otherwise the window stands still, full of open slots of a process that lives."""
    if not kept:
        await without(database, DELETION)
    async with limiters(url, 2, FEW) as (limiter, other):
        await take_all(limiter, counted=False)
        assert await is_granted(asyncio.create_task(other.acquire()), 2.0) is kept


async def test_cancelled_in_the_turn_of_the_grant(url: str, database: Database) -> None:
    async with limiters(url, 1) as (limiter,):
        task = asyncio.create_task(limiter.acquire())
        async with asyncio.timeout(PATIENCE):
            while not limiter._held:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        await until_rows(database, 0, 0, 0)


# -- lost replies, restarts, outages ---------------------------------------------------------------


async def test_a_lost_reply_is_asked_for_again(url: str, database: Database) -> None:
    """The slot that was granted is the one that the waiter gets. Released twice, it counts once."""
    async with (
        ReplyCutter(urlsplit(url).port or 5432) as cutter,
        limiters(through(url, cutter), 1) as (limiter,),
    ):
        (await limiter.acquire()).release(counted=True)
        await until_rows(database, 0, 0, 1)
        cutter.cuts = 2
        slot = await asyncio.wait_for(limiter.acquire(), PATIENCE)
        assert cutter.cuts == 0
        assert (await rows_of(database))[:2] == (0, 1)
        cutter.cuts = 2
        slot.release(counted=True)
        await asyncio.sleep(0.1)
        before = await database.rows("SELECT max(answered_at) FROM kie4o.slot")
        async with asyncio.timeout(PATIENCE):
            while limiter._answered:
                await asyncio.sleep(0.02)
        assert cutter.cuts == 0
        assert await database.rows("SELECT max(answered_at) FROM kie4o.slot") == before


async def test_a_waiter_that_is_cancelled_while_the_reply_is_lost(url: str, database: Database) -> None:
    """The slot that it was granted is free again."""
    async with (
        ReplyCutter(urlsplit(url).port or 5432) as cutter,
        limiters(through(url, cutter), 1) as (limiter,),
    ):
        (await limiter.acquire()).release(counted=False)
        await until_rows(database, 0, 0, 0)
        cutter.cuts = 1
        task = asyncio.create_task(limiter.acquire())
        await cutter.done.wait()
        assert (await rows_of(database))[:2] == (0, 1)
        task.cancel()
        await until_rows(database, 0, 0, 0)


@pytest.mark.parametrize("kept", [True, False], ids=["rule", "control"])
async def test_a_question_that_arrives_late_changes_nothing(url: str, database: Database, kept: bool) -> None:
    """Its connection was cut, and the server executes it after the next one. Control: a slot that is in use
    is taken for given back."""
    if not kept:
        await without(database, r"WHEN question <= \(.*?THEN 'late'\n")
    async with limiters(url, 1) as (limiter,):
        await limiter.acquire()
        late = (
            "SELECT outcome, granted FROM kie4o.take(%s, %s, 1, ARRAY[gen_random_uuid()], ARRAY[false], "
            "'{}', '{}', 20, 1, 5, NULL, NULL, NULL, NULL)"
        )
        rows = await database.rows(late, limiter._account, limiter._process.id)
        [(used,)] = await database.rows(
            "SELECT count(*) FROM kie4o.slot WHERE token = %s", next(iter(limiter._held))
        )
        assert (rows == [("late", None)]) is kept
        assert (used == 1) is kept


@pytest.fixture(scope="module")
def own_server() -> Iterator[postgres.PostgresServer]:
    with postgres.own_server() as server:
        yield server


async def test_a_restart_is_only_a_delay(own_server: postgres.PostgresServer) -> None:
    """The slot that was granted before it stays, its release is written after it, and waiters go on."""
    url = f"{own_server.url}?schema=restarted"
    async with limiters(url, 2, FEW) as (limiter, other), database_at(url) as database:
        slots = await take_all(limiter)
        waiting = [asyncio.create_task(each.acquire()) for each in (limiter, other)]
        await until_rows(database, 2, 2, 0)
        restarting = asyncio.create_task(asyncio.to_thread(own_server.restart, signal.SIGQUIT))
        await asyncio.sleep(0.05)
        for slot in slots:
            slot.release(counted=True)
        await restarting
        async with asyncio.timeout(PATIENCE):
            granted = await asyncio.gather(*waiting)
        assert all(slot.good_until > clock.uptime() for slot in granted)
        assert (await rows_of(database))[:2] == (0, 2)


async def test_after_a_long_outage_waiters_fail(
    own_server: postgres.PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an error of the store: nothing was sent. No slot is lost or granted without the database."""
    monkeypatch.setattr(window_module, "OUTAGE", 0.5)
    url = f"{own_server.url}?schema=away"
    async with limiters(url, 1, FEW) as (limiter,), database_at(url) as database:
        slots = await take_all(limiter)
        early = asyncio.create_task(limiter.acquire())
        await until_rows(database, 1, 2, 0)
        await asyncio.to_thread(own_server.stop)
        slots[0].release(counted=True)
        slots[1].release(counted=False)
        for task in (early, asyncio.create_task(limiter.acquire())):
            with pytest.raises(StoreError, match="nothing is submitted without the store"):
                await asyncio.wait_for(task, PATIENCE)
        await asyncio.to_thread(own_server.start)
        await asyncio.wait_for(limiter.acquire(), PATIENCE)
        await until_rows(database, 0, 1, 1)


async def test_closing_writes_what_was_answered(url: str, database: Database) -> None:
    """Also if that takes a while, here because the account is locked."""
    async with limiters(url, 1) as (limiter,):
        slots = await take_all(limiter)
        await postgres.lock_rows(database, "account", 0.3)
        for slot in slots:
            slot.release(counted=True)
    assert await rows_of(database) == (0, 0, 20)


# -- a client --------------------------------------------------------------------------------------


async def test_clients_take_their_slots_from_the_database(
    kie: Emulator, api_key: str, url: str, database: Database
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(AsyncKieClient(api_key, base_url=kie.url, store=url))
            for _ in range(2)
        ]
        await asyncio.gather(*(client.submit(f"{n}") for client in clients for n in range(8)))
        assert len(kie.submits) == 16
    assert await rows_of(database) == (0, 0, 16)


async def test_nothing_is_sent_without_the_database(
    own_server: postgres.PostgresServer, kie: Emulator, api_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_module, "OUTAGE", 0.5)
    monkeypatch.setattr(database_module, "OUTAGE", 0.5)
    url = f"{own_server.url}?schema=client"
    async with AsyncKieClient(api_key, base_url=kie.url, store=url) as client:
        await client.submit("before")
        await asyncio.to_thread(own_server.stop)
        with pytest.raises(StoreError, match="nothing is submitted without the store"):
            await client.submit("meanwhile")
        await asyncio.to_thread(own_server.start)
        await client.submit("after")
    assert len(kie.submits) == 2


# -- processes that end or stand still ---------------------------------------------------------------


async def test_a_lost_lease_costs_no_slot(url: str, database: Database) -> None:
    """Its slots and waiters go on under the next lease."""
    async with limiters(url, 1, FEW) as (limiter,):
        slots = await take_all(limiter)
        waiting = asyncio.create_task(limiter.acquire())
        await until_rows(database, 1, 2, 0)
        before = limiter._process.id
        await database.rows("UPDATE kie4o.process SET expires_at = clock_timestamp() - interval '1 s'")
        async with asyncio.timeout(PATIENCE):
            while limiter._process.id == before:
                await asyncio.sleep(0.02)
            open_now = "SELECT count(*) FROM kie4o.slot WHERE process = %s AND taken_at IS NOT NULL"
            while await database.rows(open_now, limiter._process.id) != [(2,)]:  # a moment later
                await asyncio.sleep(0.02)
            slots[0].release(counted=False)
            await waiting
        assert await rows_of(database) == (0, 2, 0)


@pytest.mark.posix("SIGKILL")
@pytest.mark.parametrize("kept", [True, False], ids=["rule", "control"])
async def test_the_slots_of_a_killed_process_age_out(
    url: str, database: Database, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """Once its lease has run out they count from when the last of its requests can have arrived; those who
    waited in it are passed over soon. Control: the window is full for ever."""
    if not kept:
        await without(database, r"WHERE process <> me AND NOT kie4o.alive\(process\)", "WHERE false")
    await short_leases(database, 1.0)
    monkeypatch.setattr(window_module, "GOOD", 0.3)
    monkeypatch.setattr(process_module, "RENEWAL", 0.2)
    async with CountingServer() as server, limiters(url, 1) as (limiter,):
        run = Run(url=url, port=server.port, waiters=30, good=0.3, renewal=0.2, waits=True)
        async with Child(run) as child:
            await child.says("granted")
            await until_rows(database, 10, 20, 0)
            child.process.kill()
            await child.process.wait()
        began = time.monotonic()
        if not kept:
            waiting = asyncio.create_task(limiter.acquire())
            assert not await is_granted(waiting, 5)
            waiting.cancel()
            return
        slot = await asyncio.wait_for(limiter.acquire(), PATIENCE)
        assert 1.0 < time.monotonic() - began < 5  # as long as the control waits
        slot.release(counted=True)
        await until_rows(database, 0, 0, 1)


@pytest.mark.posix("SIGSTOP")
@pytest.mark.parametrize("checks", [True, False], ids=["rule", "control"])
async def test_a_process_that_stands_still_sends_nothing_late(
    url: str, database: Database, checks: bool
) -> None:
    """It is stopped between its grants and its requests, for so long that others have its slots. Control:
    without a look at its own clock it sends into the window of the others."""
    await short_leases(database, 1.0)
    async with CountingServer() as server:
        run = Run(url=url, port=server.port, waiters=20, good=0.3, renewal=0.2, checks=checks, waits=True)
        async with Child(run) as child:
            await child.says("granted")
            await until_rows(database, 0, 20, 0)
            child.process.send_signal(signal.SIGSTOP)
            async with Child(attrs.evolve(run, checks=True, waits=False)):
                async with asyncio.timeout(PATIENCE):
                    while len(server.arrivals) < 20:
                        await asyncio.sleep(0.01)
                await child.go()
                child.process.send_signal(signal.SIGCONT)
                async with asyncio.timeout(PATIENCE):
                    while len(server.arrivals) < 41:
                        await asyncio.sleep(0.01)
        assert ("too old" in child.lines) is checks
    assert server.most(LIMIT.per) == 20 if checks else server.most(LIMIT.per) > 30


# -- clocks and replicas -----------------------------------------------------------------------------


async def set_clock(database: Database, seconds: float) -> None:
    await database.rows(
        "CREATE OR REPLACE FUNCTION kie4o.clock() RETURNS timestamptz LANGUAGE sql VOLATILE "
        f"AS $$ SELECT clock_timestamp() + interval '{seconds} s' $$"
    )


@pytest.mark.parametrize("checked", [True, False], ids=["rule", "control"])
async def test_a_clock_that_is_set_forward(
    url: str,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    checked: bool,
) -> None:
    """Every slot looks old at once, so nothing is granted until none of them can count. Control: the window
    is granted a second time."""
    monkeypatch.setattr(window_module, "GOOD", 0.5)
    if not checked:
        await without(database, "WHEN server_time < earliest OR server_time > latest THEN 'doubtful'")
        monkeypatch.setattr(window_module.Offset, "moved", lambda *_: 0.0)
    async with limiters(url, 2) as (limiter, other):
        await asyncio.gather(take_all(limiter, counted=True), asyncio.sleep(0))
        waiting = [asyncio.create_task(each.acquire()) for each in (limiter, other) for _ in range(10)]
        await until_rows(database, 20, 0, 20)
        began = asyncio.get_running_loop().time()
        await set_clock(database, 100)
        await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE)
        took = asyncio.get_running_loop().time() - began
        assert (took >= LIMIT.per + 2 * 0.5) is checked
    assert (
        any("clock of the database moved by " in record.getMessage() for record in caplog.records) is checked
    )


FROM_THE_FUTURE = {
    "rule": "",
    "without that of slots": r"UPDATE kie4o.slot SET taken_at = least.*?interval '1 s';",
    "without that of pauses": r"stored.paused_until := least.*?;",
}


@pytest.mark.parametrize("rule", FROM_THE_FUTURE.values(), ids=FROM_THE_FUTURE.keys())
async def test_a_clock_that_is_set_back(
    url: str, database: Database, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    """What is in the future counts from now. Control: the window stands still until the clock caught up."""
    monkeypatch.setattr(window_module, "GOOD", 0.5)
    if rule:
        await without(database, rule)
    async with limiters(url, 2) as (limiter, other):
        await take_all(other, counted=True)
        other.hold_all()
        async with asyncio.timeout(PATIENCE):
            while other._pause is not None:
                await asyncio.sleep(0.01)
        await set_clock(database, -3600)
        waiting = asyncio.create_task(limiter.acquire())
        assert await is_granted(waiting, 3 if rule else 5) is not bool(rule)
        waiting.cancel()


async def test_a_clock_that_is_set_back_again_and_again(
    url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With open slots, which are answered at an earlier time than they were taken."""
    monkeypatch.setattr(window_module, "GOOD", 0.5)
    async with limiters(url, 2) as (limiter, other):
        await take_all(other)  # and open
        await set_clock(database, -3600)
        waiting = asyncio.create_task(limiter.acquire())
        assert not await is_granted(waiting)
        other.hold_all()
        for token in list(other._held):
            other.release(token, counted=True)
        await set_clock(database, -7200)
        assert await is_granted(waiting, 5)


@pytest.mark.parametrize("kept", [True, False], ids=["rule", "control"])
async def test_a_replica_that_takes_over_holds_everybody(url: str, database: Database, kept: bool) -> None:
    """It may lack the slots that were taken last. Control: they are granted again."""
    if not kept:
        await without(database, r"IF promotion > stored.*?END IF;")
    async with limiters(url, 2, FEW) as (limiter, other):
        (await limiter.acquire()).release(counted=True)
        await database.rows("UPDATE kie4o.server SET identity = 'x', timeline = 'x'")
        waiting = [asyncio.create_task(each.acquire()) for each in (limiter, other)]
        await asyncio.sleep(FEW.per + 0.3)
        assert any(task.done() for task in waiting) is not kept
        if not kept:
            for task in waiting:
                task.cancel()
            return
        [(left,)] = await database.rows(
            "SELECT extract(epoch FROM paused_until - clock_timestamp()) FROM kie4o.account"
        )
        assert 0 < left <= FEW.per + 2 * window_module.GOOD
        for task in waiting:
            task.cancel()


@pytest.mark.parametrize("counts", [True, False], ids=["rule", "control"])
async def test_a_machine_that_was_suspended_sends_nothing_late(
    url: str, database: Database, monkeypatch: pytest.MonkeyPatch, counts: bool
) -> None:
    """Between the grant and the request, for a minute in which the clock of the loop stands still on Linux.
    Another slot is taken. Control: the clock of the loop is asked, and the late slot is used."""
    awake, suspended, begun = clock.real_uptime, 0.0, list[int]()
    monkeypatch.setattr(clock, "real_uptime", lambda: awake() + suspended)
    if not counts:
        monkeypatch.setattr(clock, "uptime", lambda: asyncio.get_running_loop().time())
    store = PostgresStore(url, Secret(CANARY_KEY))
    begin = store.begin

    async def begin_and_sleep(*words: Any) -> None:
        nonlocal suspended
        await begin(*words)
        begun.append(len(kie.submits))
        if len(begun) == 1:
            suspended = 60.0
            await set_clock(database, suspended)

    monkeypatch.setattr(store, "begin", begin_and_sleep)
    async with (
        Emulator(clock="real") as kie,
        AsyncKieClient(CANARY_KEY, base_url=kie.url, store=store) as client,
    ):
        await client.submit("x", key="k")
        assert begun == ([0, 0] if counts else [0])
        assert len(kie.submits) == 1
    assert await rows_of(database) == (0, 0, 1)


# -- all of it ---------------------------------------------------------------------------------------


async def run_for(
    seconds: float,
    url: str,
    database: Database,
    *,
    waiters: list[int],
    per: float = 1.0,
    killed: int = 0,
    cuts: float = 0.0,
) -> tuple[int, float, int]:
    """The most requests in a window, the share of the ideal, and how many connections were cut."""
    rng, gone, unsent, cut = random.Random(1), 0, 0, 0
    loop = asyncio.get_running_loop()
    await short_leases(database, 8.0)  # shorter than an open slot of a killed process counts
    async with CountingServer() as server, contextlib.AsyncExitStack() as stack:
        children = [
            await stack.enter_async_context(
                Child(Run(url=url, port=server.port, waiters=number, per=per, renewal=2.0))
            )
            for number in waiters
        ]
        async with asyncio.timeout(PATIENCE * 3):
            ids = [int(await child.says("process")) for child in children]
            while not server.arrivals:
                await asyncio.sleep(0.01)
        began = server.arrivals[0]
        victims = [began + seconds * (n + 1) / (killed + 1) for n in range(killed)]
        while loop.time() < began + seconds:
            await asyncio.sleep(rng.uniform(0, 2 / cuts) if cuts else 0.2)
            if victims and loop.time() > victims[0]:
                victims.pop(0)
                number = len(children) - 1 - len(victims)
                children[number].process.kill()
                await children[number].process.wait()
                [(open_,)] = await database.rows(
                    "SELECT count(*) FROM kie4o.slot "
                    "WHERE process = %s AND taken_at IS NOT NULL AND answered_at IS NULL",
                    ids[number],
                )
                recent = [
                    sender
                    for sender, at in zip(server.senders, server.arrivals, strict=True)
                    if at > loop.time() - per / 2
                ]
                gone += open_
                unsent += max(0, open_ - recent.count(ids[number]))
            if cuts:
                [(pid,)] = await database.rows(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE query LIKE %s AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1",
                    f'%"{address_of(url).schema}".take(%',
                ) or [(False,)]
                cut += bool(pid)
        ended = loop.time()
    used = [at for at in server.arrivals if began <= at <= ended]
    took = [float(line.split()[1]) for child in children for line in child.lines if line.startswith("took")]
    window = per + sum(took) / len(took)
    ideal = LIMIT.limit * (1 + (ended - began) // window) - gone * 2 * window_module.GOOD / window - unsent
    lost = f"{gone} lost, {unsent} of them not used"
    print(f"{len(used)} requests, {ideal:.0f} ideally ({window:.3f} s), {lost}, {cut} connections cut")
    return server.most(per), len(used) / ideal, cut


@pytest.mark.posix("PostgreSQL")
async def test_with_cut_connections(url: str, database: Database) -> None:
    most, share, cut = await run_for(4, url, database, waiters=[1, 10, 30], cuts=5.0)
    assert most == 20
    assert share > 0.6  # on a busy machine
    assert cut > 3


@pytest.mark.proof
@pytest.mark.sweep
@pytest.mark.paced
@pytest.mark.posix("SIGKILL")
@pytest.mark.parametrize(("per", "least"), [(1.0, 0.85), (10.0, 0.95)])
async def test_eight_processes_for_a_minute(url: str, database: Database, per: float, least: float) -> None:
    """Two are killed, and connections are cut at random. In a window of 1 s each cut and kill weighs ten
    times as much as in that of Kie."""
    waiters = [1, 2, 5, 10, 20, 40, 70, 100]
    most, share, cut = await run_for(65, url, database, waiters=waiters, per=per, killed=2, cuts=6.0)
    assert most == 20
    assert share >= least
    assert cut > 100


# -- what a client says of it ------------------------------------------------------------------------------


@pytest.mark.posix("PostgreSQL")
async def test_the_state_of_a_client_counts_the_slots_of_all(url: str) -> None:
    """Those of another process too, until the window has passed, and when the next one may be free."""
    limit = RateLimit(2, per=2.0)
    async with Emulator(clock="real", limit=1000) as kie, contextlib.AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(
                AsyncKieClient(CANARY_KEY, base_url=kie.url, store=url, rate_limit=limit)
            )
            for _ in range(2)
        ]
        state = await other.state()
        assert (state.window_used, state.next_slot, state.unfinished) == (0, 0.0, 0)
        await asyncio.gather(one.submit("x"), one.submit("y"))
        state = await other.state()
        assert (state.window_used, state.window_limit, state.in_flight) == (2, 2, 0)
        assert (state.unfinished, state.store_failure) == (2, None)
        waiting = asyncio.create_task(other.submit("z"))
        async with asyncio.timeout(PATIENCE):
            while not ((state := await other.state()).waiting_for_slot and state.next_slot):
                await asyncio.sleep(0.02)
        assert 0 < state.next_slot < 2.5
        assert repr(other._runtime.limiter) == "<SharedLimiter: 0 of 2 slots per 2 s open here, 1 waiting>"
        assert "? of 2 slots in use" in repr(other)
        await waiting
        async with asyncio.timeout(PATIENCE):
            while not state.database_heard or state.window_used:
                await asyncio.sleep(0.05)
                state = await one.state()
