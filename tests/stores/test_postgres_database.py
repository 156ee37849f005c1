"""Statements to a real PostgreSQL: repeated until they are answered, and migrations."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import socket
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import postgres
import pytest
from clocks import KIND, run_virtual
from counting import ReplyCutter, through
from paths import IMPORT_ROOT
from postgres import opened

from kie4o import StoreError
from kie4o.settings import Secret
from kie4o.stores import guard
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
        assert len({rows[0][1] for rows in answers}) == database_module.CONNECTIONS == 4
        assert await database.rows("SELECT '100%'") == [("100%",)]
        assert database._busy == set()


async def test_a_peer_that_has_vanished_is_noticed() -> None:
    """In about ten seconds, unless the URL says otherwise."""
    url = postgres.shared_url()
    for words, idle in (("", "5"), ("&keepalives_idle=7", "7")):
        async with opened(url + words) as database:
            connection = await database.connect()
            settings = connection.info.get_parameters()
            await connection.close()
        found = {name: settings[name] for name in settings if name in database_module._SOCKET}
        assert found == {
            "connect_timeout": "5",
            "keepalives_idle": idle,
            "keepalives_interval": "2",
            "keepalives_count": "3",
            "tcp_user_timeout": "10000",
        }


def test_a_statement_is_repeated_for_as_long_as_an_outage_lasts() -> None:
    """After longer and longer pauses. What is asked later waits for the same outage, and after an answer it
    is another one."""

    async def run() -> None:
        loop, url = asyncio.get_running_loop(), postgres.shared_url()
        async with ReplyCutter(urlsplit(url).port or 5432) as proxy, opened(through(url, proxy)) as database:
            for _ in range(2):
                proxy.refused.clear()
                proxy.cuts, proxy.away = 1, True
                began = loop.time()
                with pytest.raises(StoreError):
                    await database.rows("SELECT 1")
                times = [began, *proxy.refused]
                pauses = [after - before for before, after in itertools.pairwise(times)]
                assert pauses[:7] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0], abs=0.01)
                assert 28.0 < times[-1] - began <= 29.0
                with pytest.raises(StoreError):
                    await database.rows("SELECT 1")
                assert loop.time() - began <= 29.0
                proxy.away = False
                assert await database.rows("SELECT 1") == [(1,)]

    run_virtual(run())


def test_what_ended_one_connection_has_ended_all() -> None:
    """A statement is repeated once, not with each of them."""

    async def run() -> None:
        url, loop = postgres.shared_url(), asyncio.get_running_loop()
        async with opened(url) as database, opened(url) as killer:
            await asyncio.gather(*(database.rows("SELECT 'cut all', pg_sleep(0.1)") for _ in range(4)))
            assert len(await killer.rows(CUT, "%cut all%")) == 4
            began = loop.time()
            await database.rows("SELECT 1")
            assert loop.time() - began == pytest.approx(0.05)

    run_virtual(run())


def test_an_outage_ends_before_the_limit_of_a_call() -> None:
    assert database_module.OUTAGE + database_module._LONGEST_DELAY == guard.LIMIT


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


async def test_a_connection_may_lead_elsewhere() -> None:
    """As to a server that delivers notifications."""
    async with opened(postgres.shared_url()) as database:
        for conninfo, name in (
            (None, "postgres"),
            (database.address.conninfo.replace("/postgres", "/template1"), "template1"),
        ):
            connection = await database.connect(conninfo)
            assert connection.info.dbname == name
            await connection.close()


async def test_a_server_that_stops_after_its_answer_is_asked_again() -> None:
    """An immediate stop is told as a warning. Control: any other warning means that nothing may be saved."""
    raising = "RAISE WARNING 'w' USING ERRCODE = '{}'; RAISE WARNING 'another'"
    warn = f"DO $$ BEGIN IF nextval('kie4o.calls') = 1 THEN {raising}; END IF; END $$"
    async with opened(postgres.shared_url()) as database:
        await migrate(database)
        await database.rows("CREATE SEQUENCE kie4o.calls")
        await database.rows(warn.format("57P02"), durably=True)
        assert await database.rows("SELECT last_value FROM kie4o.calls") == [(2,)]
        await database.rows("ALTER SEQUENCE kie4o.calls RESTART")
        with pytest.raises(StoreError, match=r"^the database \S+ may not have saved it: w$"):
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


@pytest.mark.parametrize("how", ["fails", "is cut short"])
async def test_what_becomes_of_a_statement_whose_caller_is_gone_is_no_error_of_the_loop(how: str) -> None:
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    database = Database(address_of(postgres.shared_url()))
    await database.open()
    seconds = 0.05 if how == "fails" else 60
    running = asyncio.create_task(database.rows(f"SELECT 1 / (0 * length(pg_sleep({seconds})::text))"))
    while not database._busy:
        await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])
    if how == "fails":
        await database.drain()
    await database.aclose()
    gc.collect()
    assert unhandled == []


async def test_closing_does_not_wait_for_a_server_that_answers_nothing() -> None:
    """For more than a second. Not even that it cancels."""
    url = postgres.shared_url()
    async with ReplyCutter(urlsplit(url).port or 5432) as proxy:
        database = Database(address_of(through(url, proxy)))
        await database.open()
        proxy.stalls = True
        running = asyncio.create_task(database.rows("SELECT 1"))
        await proxy.done.wait()
        began = time.monotonic()
        await database.aclose()
        assert 0.9 < time.monotonic() - began < 1.9
        with pytest.raises((StoreError, asyncio.CancelledError)):
            await asyncio.wait_for(running, 8)


async def test_closing_cuts_short_what_runs() -> None:
    database = Database(address_of(postgres.shared_url()))
    await database.open()
    running = asyncio.create_task(database.rows("SELECT pg_sleep(60)"))
    while not database._busy:
        await asyncio.sleep(0.01)
    [connection] = database._busy
    await database.aclose()
    await asyncio.wait([running])
    assert connection.closed


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
        assert [connection._notice_handlers for connection in database._idle] == [[]]


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


async def test_it_is_not_closed_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connections belong to another process, or to another loop."""
    async with opened(postgres.shared_url()) as database:
        with monkeypatch.context() as forked:
            forked.setattr(os, "getpid", lambda: -1)
            await database.aclose()
        await asyncio.to_thread(lambda: asyncio.run(database.aclose()))
        [connection] = database._idle
        assert await database.rows("SELECT 1") == [(1,)]
        assert database._idle == [connection]


@pytest.mark.parametrize("refused", [True, False])
async def test_on_windows_it_needs_another_loop(monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    loop = type(asyncio.get_running_loop()) if refused else int
    monkeypatch.setattr(asyncio, "ProactorEventLoop", loop, raising=False)
    monkeypatch.setattr(database_module, "sys", SimpleNamespace(platform="win32"))
    database = Database(address_of(postgres.shared_url()))
    if refused:
        with pytest.raises(StoreError, match=r"needs another event loop on Windows: .*SelectorEventLoop"):
            await database.open()
    else:
        await database.open()
        await database.aclose()


async def test_a_transaction_is_all_or_none() -> None:
    """An error that is not of the database passes as it is."""
    async with opened(postgres.shared_url()) as database:
        await migrate(database)
        with pytest.raises(ZeroDivisionError):
            async with database.transaction() as execute:
                await execute("CREATE TABLE kie4o.extra ()")
                raise ZeroDivisionError
        async with database.transaction() as execute:
            await execute("DO $$ BEGIN RAISE WARNING 'is none'; END $$")
            await execute("CREATE TABLE kie4o.extra ()")


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
