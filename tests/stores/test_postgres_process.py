"""The lease of a process: renewed, lost, and not lost while the database was away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import postgres
import pytest
from portable import PATIENCE

from kie4o.errors import StoreError
from kie4o.stores.postgres import process as process_module
from kie4o.stores.postgres.address import address_of
from kie4o.stores.postgres.database import Database
from kie4o.stores.postgres.process import Process
from kie4o.stores.postgres.schema import migrate


@contextlib.asynccontextmanager
async def entered(url: str) -> AsyncIterator[tuple[Database, Process]]:
    database = Database(address_of(url))
    await database.open()
    await migrate(database)
    process = Process(database)
    await process.enter()
    try:
        yield database, process
    finally:
        await process.leave()
        await database.aclose()


async def is_alive(database: Database, process: Process) -> bool:
    [(alive,)] = await database.rows("SELECT kie4o.alive(%s)", process.id)
    return alive


async def expire(database: Database) -> None:
    """As if no process had renewed its lease for longer than it lasts."""
    await database.rows("UPDATE kie4o.process SET expires_at = clock_timestamp() - interval '1 s'")


async def expire_soon(database: Database) -> None:
    await database.rows("UPDATE kie4o.process SET expires_at = clock_timestamp() + interval '20 s'")


async def expires_soon(database: Database) -> bool:
    """Whether no lease was renewed, for 30 s, since `expire_soon`."""
    [(soon,)] = await database.rows(
        "SELECT max(expires_at) < clock_timestamp() + interval '21 s' FROM kie4o.process"
    )
    return soon


async def test_a_process_lives_from_enter_to_leave() -> None:
    async with entered(postgres.shared_url()) as (database, process):
        other = Process(database)
        assert not await is_alive(database, other)
        await other.enter()
        assert other.id != process.id
        assert await is_alive(database, other)
        await other.leave()
        assert not await is_alive(database, other)
        assert await is_alive(database, process)


async def test_who_has_left_asks_nothing_more() -> None:
    """Nor does one that has never entered."""
    async with entered(postgres.shared_url()) as (database, _):
        other = Process(database)
        assert other.id == 0
        before = asyncio.all_tasks()
        await other.enter()
        await other.leave()
        assert other.id == 0
        assert asyncio.all_tasks() == before
        await other.enter()
        await other.stop()
        assert asyncio.all_tasks() == before
        await other.leave()
    for gone in (other, Process(database)):  # whose database is closed
        await gone.leave()


async def test_two_renewals_may_fail() -> None:
    async with entered(postgres.shared_url()) as (database, _):
        [(lease,)] = await database.rows("SELECT extract(epoch FROM kie4o.lease())::float")
        assert lease == 3 * process_module.RENEWAL == 30.0


async def test_a_promotion_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Again if what follows it could not be done."""
    told = 0

    async def promoted() -> None:
        nonlocal told
        told += 1
        if told == 1:
            raise StoreError("away")

    async with entered(postgres.shared_url()) as (_, process):
        process.on_promotion(promoted)
        process.timeline = "another"
        for times in (1, 2, 2):
            await process.renew()
            async with asyncio.timeout(PATIENCE):
                while process._following is not None and not process._following.done():
                    await asyncio.sleep(0.01)
            assert told == times
    assert [record.levelname for record in caplog.records if "replica" in record.getMessage()] == [
        "WARNING"
    ] * 2


async def test_a_lease_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a task of the process, again and again."""
    monkeypatch.setattr(process_module, "RENEWAL", 0.05)
    async with entered(postgres.shared_url()) as (database, process):
        for _ in range(2):
            await expire_soon(database)
            async with asyncio.timeout(PATIENCE):
                while await expires_soon(database):
                    await asyncio.sleep(0.01)
        assert await is_alive(database, process)


async def test_what_follows_a_renewal_does_not_hold_up_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that waits for a replica may take longer than a lease. It is not begun again meanwhile."""
    monkeypatch.setattr(process_module, "RENEWAL", 0.05)
    begun, free = 0, asyncio.Event()

    async def waits() -> None:
        nonlocal begun
        begun += 1
        await free.wait()

    async with entered(postgres.shared_url()) as (database, process), asyncio.timeout(PATIENCE):
        process.on_renewal(waits)
        while not begun:
            await asyncio.sleep(0.01)
        for _ in range(3):
            await expire_soon(database)
            while await expires_soon(database):
                await asyncio.sleep(0.01)
        assert begun == 1
        free.set()
        while begun == 1:
            await asyncio.sleep(0.01)


async def test_a_lost_lease_means_a_new_id(caplog: pytest.LogCaptureFixture) -> None:
    """The process is told once; the old id stays dead."""
    caplog.set_level(logging.WARNING, "kie4o")
    async with entered(postgres.shared_url()) as (database, process):
        before = process.id
        await expire(database)
        assert not await is_alive(database, process)
        await process.renew()
        assert process.id != before
        assert await is_alive(database, process)
        assert await database.rows("SELECT kie4o.alive(%s)", before) == [(False,)]
        await asyncio.gather(*(process.lost(before) for _ in range(3)))
        assert [record.message for record in caplog.records if "taken for dead" in record.message]
        assert len(await database.rows("SELECT FROM kie4o.process")) == 1


async def test_leases_do_not_run_out_while_the_database_is_away() -> None:
    """After a restart every process has a full lease to come back, from the first renewal on.

    Control: without a restart the same processes are dead.
    """
    with postgres.own_server() as server:
        async with entered(server.url) as (database, process), entered(server.url) as (_, other):
            await expire(database)
            assert not await is_alive(database, process)
            await asyncio.to_thread(server.restart)
            assert await is_alive(database, process)
            assert await is_alive(database, other)
            kept = process.id, other.id
            await process.renew()
            assert await is_alive(database, other)
            await other.renew()
            assert (process.id, other.id) == kept
            await expire(database)
            assert await is_alive(database, other)  # for the rest of the lease that the restart gave
            await database.rows("UPDATE kie4o.server SET since = since - kie4o.lease()")
            assert not await is_alive(database, other)


async def test_a_restart_wakes_nobody_who_has_left() -> None:
    with postgres.own_server() as server:
        async with entered(server.url) as (database, _):
            gone = Process(database)
            await gone.enter()
            await gone.leave()
            await asyncio.to_thread(server.restart)
            assert not await is_alive(database, gone)


async def test_those_who_are_long_gone_are_dropped() -> None:
    """Unless an entry still names them."""
    async with entered(postgres.shared_url()) as (database, process):
        others = [Process(database) for _ in range(2)]
        for other in others:
            await other.enter()
            other._renewing.cancel()  # type: ignore[union-attr]
        await database.rows("UPDATE kie4o.process SET expires_at = expires_at - interval '2 hours'")
        holds = "'x', 'x', 'x', 'x', 'intent', %s, 'x', 'x'"
        columns = "account, key, mark, fingerprint, state, holder, body, checksum"
        await database.rows(f"INSERT INTO kie4o.entry ({columns}) VALUES ({holds})", others[0].id)
        await process.renew()
        ids = {number for (number,) in await database.rows("SELECT id FROM kie4o.process")}
        assert ids == {others[0].id, process.id}
