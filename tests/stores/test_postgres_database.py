"""Statements to a real PostgreSQL: repeated until they are answered, and migrations."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import postgres
import pytest
from clocks import KIND
from counting import ReplyCutter, through
from paths import IMPORT_ROOT
from postgres import opened

from kie4o import StoreError
from kie4o.settings import Secret
from kie4o.stores.postgres import PostgresStore
from kie4o.stores.postgres import database as database_module
from kie4o.stores.postgres import schema as schema_module
from kie4o.stores.postgres.__main__ import main
from kie4o.stores.postgres.address import address_of
from kie4o.stores.postgres.database import Database
from kie4o.stores.postgres.schema import VERSION, migrate, script

CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE %s AND pid <> pg_backend_pid()"


# -- statements --------------------------------------------------------------------------------------


async def test_a_statement_returns_its_rows() -> None:
    """Several at once, on at most four connections."""
    async with opened(postgres.shared_url()) as database:
        ask = "SELECT %s::int, pg_backend_pid(), pg_sleep(0.01)"
        answers = await asyncio.gather(*(database.rows(ask, n) for n in range(20)))
        assert [rows[0][0] for rows in answers] == list(range(20))
        assert len({rows[0][1] for rows in answers}) == database_module.CONNECTIONS


async def test_a_statement_whose_connection_is_cut_is_repeated() -> None:
    """The caller sees only its answer. Control: a connection of psycopg itself raises."""
    url = postgres.shared_url()
    import psycopg  # where there is a server

    async with opened(url) as database, opened(url) as killer:
        waiting = [asyncio.create_task(database.rows("SELECT 'cut me', pg_sleep(0.3)")) for _ in range(3)]
        await asyncio.sleep(0.1)
        assert len(await killer.rows(CUT, "%cut me%")) >= 3
        assert [rows[0][0] for rows in await asyncio.gather(*waiting)] == ["cut me"] * 3
        connection = await database.connect()
        naive = asyncio.create_task(connection.execute("SELECT 'naive', pg_sleep(5)"))
        await asyncio.sleep(0.1)
        await killer.rows(CUT, "%naive%")
        with pytest.raises(psycopg.OperationalError):
            await naive
        await connection.close()


@pytest.mark.paced
async def test_a_restart_is_only_a_delay() -> None:
    """A statement that runs when the server is stopped, and one that begins while it is away, are answered
    soon after it is back."""
    with postgres.own_server() as server:
        async with opened(server.url) as database:
            running = asyncio.create_task(database.rows("SELECT 'running', pg_sleep(1)"))
            await asyncio.sleep(0.2)
            await asyncio.to_thread(server.stop)
            later = asyncio.create_task(database.rows("SELECT 'later'"))
            await asyncio.sleep(2)
            await asyncio.to_thread(server.start)
            back = time.monotonic()
            assert [await later, (await running)[0][0]] == [[("later",)], "running"]
            assert time.monotonic() - back < 4


async def test_an_outage_that_lasts_is_a_store_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the server, and neither its user nor a value of the statement."""
    monkeypatch.setattr(database_module, "OUTAGE", 0.3)
    with postgres.own_server() as server:
        async with opened(server.url) as database:
            server.stop()
            with pytest.raises(
                StoreError, match=f"^the database 127.0.0.1:{server.port}/postgres cannot be"
            ) as caught:
                await database.rows("SELECT %s::text", "a secret value")
            assert "secret value" not in str(caught.value)
            assert caught.value.__cause__ is caught.value.__context__ is None


async def test_a_driver_that_cannot_be_loaded_is_a_store_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"import of psycopg.* pip install '\.\[postgres\]'"):
        await Database(address_of("postgresql://db.example/images")).open()


async def test_a_database_that_cannot_be_reached_is_said_at_once() -> None:
    """When the store is opened: most likely its URL is wrong."""
    server = address_of(postgres.shared_url()).conninfo
    for wrong in (server.replace("/postgres", "/nowhere"), "postgresql://kie4o:s3cret@127.0.0.1:1/postgres"):
        begun = time.monotonic()
        with pytest.raises(StoreError, match="cannot be used: ") as caught:
            await Database(address_of(wrong)).open()
        assert time.monotonic() - begun < 5
        assert "s3cret" not in str(caught.value)


async def test_what_is_wrong_is_not_repeated() -> None:
    """Nor does the error show a value."""
    async with opened(postgres.shared_url()) as database:
        begun = time.monotonic()
        with pytest.raises(StoreError, match=r"cannot be used: .* \(22012\)"):
            await database.rows("SELECT 1 / %s::int", 0)
        assert time.monotonic() - begun < 5
        assert await database.rows("SELECT 1") == [(1,)]


async def test_a_server_that_stops_after_its_answer_is_asked_again() -> None:
    """An immediate stop is told as a warning. Control: any other warning means that nothing may be saved."""
    raising = "RAISE WARNING 'w' USING ERRCODE = '{}'"
    warn = f"DO $$ BEGIN IF nextval('kie4o.calls') = 1 THEN {raising}; END IF; END $$"
    async with opened(postgres.shared_url()) as database:
        await migrate(database)
        await database.rows("CREATE SEQUENCE kie4o.calls")
        await database.rows(warn.format("57P02"), durably=True)
        assert await database.rows("SELECT last_value FROM kie4o.calls") == [(2,)]
        await database.rows("ALTER SEQUENCE kie4o.calls RESTART")
        with pytest.raises(StoreError, match="may not have saved it: w"):
            await database.rows(warn.format("01000"), durably=True)


async def test_a_cancelled_statement_goes_on() -> None:
    """It takes effect, and `drain` waits for it. Control: psycopg itself cancels it in the server."""
    url = postgres.shared_url()
    async with opened(url) as database:
        await migrate(database)
        slow = "INSERT INTO kie4o.account SELECT 'a'::bytea, '-infinity' FROM pg_sleep(0.3)"
        task = asyncio.create_task(database.rows(slow))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await database.drain()
        connection = await database.connect()
        naive = asyncio.create_task(
            connection.execute(database_module.in_schema(slow.replace("'a'", "'b'"), database.address.schema))
        )
        await asyncio.sleep(0.1)
        naive.cancel()
        await asyncio.wait([naive])
        await connection.close()
    async with opened(url) as database:
        assert await database.rows("SELECT id FROM kie4o.account") == [(b"a",)]


async def test_closing_does_not_wait_for_a_server_that_answers_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even that it cancels."""
    monkeypatch.setattr(database_module, "_CLOSING", 0.1)
    url = postgres.shared_url()
    async with ReplyCutter(urlsplit(url).port or 5432) as proxy:
        database = Database(address_of(through(url, proxy)))
        await database.open()
        proxy.stalls = True
        running = asyncio.create_task(database.rows("SELECT 1"))
        await proxy.done.wait()
        await asyncio.wait_for(database.aclose(), 2)
        with pytest.raises((StoreError, asyncio.CancelledError)):
            await asyncio.wait_for(running, 8)


async def test_a_warning_is_a_failure_if_it_is_asked_for() -> None:
    """A commit that gave up waiting for its replica reports success, with a warning."""
    warn = "DO $$ BEGIN RAISE WARNING 'committed locally'; END $$"
    async with opened(postgres.shared_url()) as database:
        await database.rows(warn)
        with pytest.raises(StoreError, match="may not have saved it: committed locally"):
            await database.rows(warn, durably=True)
        await database.rows(warn)
        await database.rows(warn.replace("WARNING", "NOTICE"), durably=True)
        assert await database.rows("SELECT 1", durably=True) == [(1,)]


async def test_it_is_not_used_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is open, after a fork, or in another loop."""
    database = Database(address_of(postgres.shared_url()))
    with pytest.raises(StoreError, match="not open"):
        await database.rows("SELECT 1")
    async with opened(postgres.shared_url()) as database:
        with monkeypatch.context() as forked:
            forked.setattr(os, "getpid", lambda: -1)
            with pytest.raises(StoreError, match="before a fork"):
                await database.rows("SELECT 1")

        def elsewhere() -> str:
            with pytest.raises(StoreError, match="event loop") as caught:
                asyncio.run(database.rows("SELECT 1"))
            return str(caught.value)

        assert await asyncio.to_thread(elsewhere)


# -- the schema --------------------------------------------------------------------------------------


async def test_many_may_create_the_schema_at_once() -> None:
    """One does, the others wait for it; later it is only read."""
    url = postgres.shared_url()
    async with contextlib.AsyncExitStack() as stack:
        databases = [await stack.enter_async_context(opened(url)) for _ in range(8)]
        await asyncio.gather(*map(migrate, databases))
        assert await databases[0].rows("SELECT number FROM kie4o.version") == [(VERSION,)]
        await migrate(databases[0])


async def test_a_schema_that_a_person_creates(monkeypatch: pytest.MonkeyPatch) -> None:
    """`script` is the whole of it; a user who may create nothing then uses it."""
    url = postgres.shared_url()
    schema = address_of(url).schema
    async with opened(url) as database:
        connection = await database.connect()
        await connection.execute(script(schema))  # type: ignore[arg-type]
        await connection.close()

        def never(*_: object) -> None:
            raise AssertionError

        monkeypatch.setattr(Database, "transaction", never)
        await migrate(database)


async def test_a_migration_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one transaction."""
    async with opened(postgres.shared_url()) as database:
        with monkeypatch.context() as broken:
            broken.setattr(
                schema_module, "_steps", lambda version: ["CREATE TABLE kie4o.entry ()", "SELECT 1 / 0"]
            )
            with pytest.raises(StoreError, match="cannot be used: division by zero"):
                await migrate(database)
        await migrate(database)


async def test_a_newer_schema_is_refused() -> None:
    async with opened(postgres.shared_url()) as database:
        await migrate(database)
        await database.rows("INSERT INTO kie4o.version VALUES (%s)", VERSION + 1)
        with pytest.raises(StoreError, match="was made by a newer kie4o"):
            await migrate(database)


async def refused(url: str) -> str:
    with pytest.raises(StoreError) as caught:
        async with opened(url) as database:
            await migrate(database)
    return str(caught.value)


def unknown_host(*_: object, **__: object) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


async def test_every_refusal_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a newcomer meets: a wrong password, a database or a server that is not there, too few rights."""
    with postgres.own_server() as server:
        async with opened(server.url) as database:
            await database.rows("CREATE ROLE app LOGIN PASSWORD 's3cret'")
            await database.rows("CREATE ROLE reader LOGIN PASSWORD 's3cret'")
            await database.rows("ALTER ROLE reader SET default_transaction_read_only = on")
        rules = "host all kie4o 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        (server.data / "pg_hba.conf").write_text(rules, "utf-8")
        server.restart()
        base = f"127.0.0.1:{server.port}/postgres"
        remedies = {
            f"app:wrong@{base}": "Check the user and the password",
            f"app@{base}": "Check the user and the password",
            f"kie4o@127.0.0.1:{server.port}/nowhere": "Create it",
            "app:s3cret@127.0.0.1:1/postgres": "Start it",
            f"app:s3cret@{base}": "which `python -m kie4o.stores.postgres` prints",
            f"app:s3cret@{base}?schema=shop": "which `python -m kie4o.stores.postgres shop` prints",
            f"reader:s3cret@{base}": "Connect to the server that accepts writes",
        }
        if KIND == "asyncio":  # other loops cannot be kept from looking the name up
            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown_host)
            remedies["app:s3cret@nowhere.invalid/postgres"] = "Correct the host"
        for url, remedy in remedies.items():
            said = await refused(f"postgresql://{url}")
            print(said)
            assert remedy in said
            assert "s3cret" not in said
        await printed_and_granted(server)


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """The SQL for the schema that is named, or for that of the default, with the GRANTs in a comment."""
    printed: dict[str, str] = {}
    for schema, words in (("shop", ["shop"]), ("kie4o", [])):
        main(*words)
        printed[schema] = capsys.readouterr().out
        assert f"GRANT USAGE ON SCHEMA {schema} TO ROLE;" in printed[schema]
    assert printed["kie4o"].count('"kie4o".') == printed["shop"].count('"shop".') > 100


async def printed_and_granted(server: postgres.PostgresServer) -> None:
    """A role that may not create anything uses what the owner has created from the printed SQL."""
    words = [sys.executable, "-W", "error", "-m", "kie4o.stores.postgres", "shop"]
    printed = subprocess.run(words, cwd=IMPORT_ROOT, capture_output=True, text=True, check=True).stdout
    grants = "\n".join(line.removeprefix("-- ") for line in printed.splitlines() if "GRANT" in line)
    assert grants.count("GRANT") == 2
    async with opened(server.url) as database, database.transaction() as execute:
        await execute(printed.replace("BEGIN;", "").replace("COMMIT;", "") + grants.replace("ROLE", "app"))
    store = PostgresStore(
        f"postgresql://app:s3cret@127.0.0.1:{server.port}/postgres?schema=shop", Secret("k")
    )
    await store.open()
    await store.aclose()
