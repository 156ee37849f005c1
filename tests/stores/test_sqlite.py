"""The store in a SQLite file: what a file can promise, one owner, and files that are no store."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import signal
import sqlite3
import stat
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cancelling import cancelled_at
from entries import PATIENCE, ended, entry_of, keys_owed, plain, submitted

import kie4o
from kie4o import AsyncKieClient, PollPolicy, StoreError, StoreLockedError
from kie4o.emulator import Emulator
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.sqlite_file import SCHEMA
from kie4o.stores.store import EntryState, Store

# -- what a file can promise --------------------------------------------------------------------


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
        await store._do(lambda connection: connection.set_trace_callback(statements.append))
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
        await store._do(lambda connection: connection.execute("PRAGMA max_page_count = 1").fetchall())
        with pytest.raises(StoreError, match="full"):
            for n in range(100):
                await store.save(entry_of(f"{n}", "x" * 1000))
        assert await keys_owed(store) == ["before"]
        await store._do(lambda connection: connection.execute("PRAGMA max_page_count = 100000").fetchall())
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


# -- one owner ----------------------------------------------------------------------------------


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
        with pytest.raises(StoreError, match="not open here"):
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


# -- the file -----------------------------------------------------------------------------------


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
    assert "not a store" in str(await refused(place))


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
    *("submitted_at = 6.0", "submitted_at = NULL", "mark = x'00'", "mark = CAST(mark AS TEXT)"),
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
