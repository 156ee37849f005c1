"""The store in a SQLite file: durability, a single owner, and files that are refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sqlite3
import stat
import time
import warnings
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest
from cancelling import cancelled_at
from entries import PATIENCE, ended, entry_of, plain, submitted, unfinished_keys
from platforms import like_windows
from portable import file_size_limit

import kie4o
from kie4o import AsyncKieClient, PollPolicy, StoreError, StoreLockedError
from kie4o.emulator import Emulator
from kie4o.stores.packing import packed
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.sqlite_creation import SCHEMA
from kie4o.stores.store import EntryState, Store, TracedEntry

# -- durability ------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


@contextlib.asynccontextmanager
async def opened(path: Path):
    store = SQLiteStore(path)
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


async def test_entries_are_there_after_a_restart(path: Path) -> None:
    """Each state is read back exactly, except that an INTENT has become UNKNOWN.

    Its process may have paid before it died. The request and the ref are kept, and it counts as submitted
    now.
    """
    before = {state: entry_of(state.value, state=state, submitted_at=7.0) for state in EntryState}
    before[EntryState.SUBMITTED] = submitted("submitted")
    before[EntryState.SUCCEEDED] = ended(submitted("succeeded"))
    before[EntryState.FAILED] = ended(submitted("failed"), EntryState.FAILED)
    async with opened(path) as store:
        for entry in before.values():
            await store.save(entry)
        for task_id in ("named", "another"):
            await store.keep_callback("ref of intent", task_id)
    for _ in range(2):
        now = time.time()
        async with opened(path) as store:
            after = {state: await store.find(key=state.value) for state in EntryState}
            assert sorted(await unfinished_keys(store)) == ["intent", "submitted", "unknown"]
            assert after.pop(EntryState.INTENT).state is EntryState.UNKNOWN
            intent = await store.find(key="intent")
            assert (intent.request, intent.ref) == (before[EntryState.INTENT].request, "ref of intent")
            assert now - 60 < intent.submitted_at <= time.time()
            assert len(await store.recent(60)) == 3  # those that have not finished
            assert sorted(await store.callbacks_of("ref of intent")) == ["another", "named"]
        assert {state: plain(entry) for state, entry in after.items()} == {
            state: plain(entry) for state, entry in before.items() if state is not EntryState.INTENT
        }


async def test_an_entry_with_every_field_is_there_after_a_restart(path: Path) -> None:
    """Also one that has all that an entry can have."""
    entry = attrs.evolve(
        ended(submitted("k", price=Decimal(6))), keyed=False, sent_at=7.0, earlier=("r",), superseded_key="s"
    ).traced("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    assert json.loads(packed(entry)).keys() == attrs.fields_dict(TracedEntry).keys()  # control
    async with opened(path) as store:
        await store.save(entry)
    async with opened(path) as store:
        assert plain(await store.find(key="k")) == plain(entry)


async def test_cancelled_writes_are_on_the_disk(path: Path) -> None:
    """A write whose caller was cancelled while it was under way is there after a restart."""
    async with opened(path) as store:
        saves = [asyncio.create_task(store.save(submitted(f"{n:03}"))) for n in range(200)]
        await asyncio.sleep(0)
        for save in saves:
            save.cancel()
        ends = await asyncio.gather(*saves, return_exceptions=True)
        assert any(isinstance(end, asyncio.CancelledError) for end in ends)
    async with opened(path) as store:
        assert await unfinished_keys(store) == [f"{n:03}" for n in range(200)]


async def test_writes_that_wait_share_a_commit(path: Path) -> None:
    """200 concurrent saves cause one commit, which is an fsync. One after the other, each causes its own."""
    async with opened(path) as store:
        statements: list[str] = []
        await store._worker.run(lambda connection: connection.set_trace_callback(statements.append))
        statements.clear()
        await asyncio.gather(*(store.save(entry_of(f"at once {n}")) for n in range(200)))
        assert statements.count("COMMIT") == 1
        statements.clear()
        for n in range(20):
            await store.save(entry_of(f"one by one {n}"))
        assert statements.count("COMMIT") == 20


@pytest.mark.parametrize("state", [EntryState.INTENT, EntryState.SUBMITTED, EntryState.SUCCEEDED])
async def test_what_is_under_its_key_already_is_replaced_in_place(path: Path, state: EntryState) -> None:
    """Without a look for who else has the task, and without writing each index again."""
    planned = entry_of()
    intent = planned.become(EntryState.INTENT, submitted_at=7.0)
    answered = submitted("k", submitted_at=7.0)
    states = [planned, intent, answered, ended(answered)]
    at = [each.state for each in states].index(state)
    async with opened(path) as store:
        for entry in states[:at]:
            await store.save(entry)
        statements: list[str] = []
        await store._worker.run(lambda connection: connection.set_trace_callback(statements.append))
        await store.save(states[at])
        assert await store.find(key="k") == states[at]
    assert [each.split()[0] for each in statements if " entry" in each] == ["UPDATE", "SELECT"]


async def test_a_write_that_fails_does_not_affect_its_group(path: Path) -> None:
    """A call that SQLite refuses raises `StoreError`; the others of its commit are kept."""
    async with opened(path) as store:
        outcomes = await asyncio.gather(
            *(store.save(entry_of("\ud800" if n == 10 else f"{n}")) for n in range(20)),
            store.find(key="\udfff"),
            return_exceptions=True,
        )
        failed = [n for n, outcome in enumerate(outcomes) if outcome is not None]
        assert failed == [10, 20]
        assert all(isinstance(outcomes[n], StoreError) for n in failed)
        assert all([await store.find(key=f"{n}") for n in range(20) if n != 10])


async def test_a_full_disk_is_an_error_and_loses_nothing(path: Path) -> None:
    """A save raises `StoreError`, earlier entries stay, and with room again the store works."""
    async with opened(path) as store:
        await store.save(submitted("before"))
        await store._worker.run(lambda connection: connection.execute("PRAGMA max_page_count = 1").fetchall())
        with pytest.raises(StoreError, match="full"):
            for n in range(100):
                await store.save(entry_of(f"{n}", "x" * 1000))
        assert await unfinished_keys(store) == ["before"]
        await store._worker.run(
            lambda connection: connection.execute("PRAGMA max_page_count = 100000").fetchall()
        )
        await store.save(submitted("after"))
    async with opened(path) as store:
        assert await unfinished_keys(store) == ["before", "after"]


@pytest.mark.posix("a limit on the size of files")
async def test_what_was_committed_is_kept_though_the_checkpoint_after_it_fails(path: Path) -> None:
    """If the log can grow and the main file cannot, a save that is on the disk does not fail."""
    async with opened(path) as store:
        await asyncio.gather(*(store.save(entry_of(f"old {n}", "x" * 3000)) for n in range(60)))
    for calls in range(6):  # the checkpoint follows the 1st, 2nd, 4th and 8th
        async with opened(path) as store:
            for _ in range(calls):
                await store.find(key="-")
            with file_size_limit(path.stat().st_size // 4096 * 4096):
                [outcome] = await asyncio.gather(
                    store.save(entry_of(f"{calls}", "x" * 9000)), return_exceptions=True
                )
            kept = await store.find(key=f"{calls}") is not None
            assert kept == (outcome is None), outcome


async def test_a_commit_is_synced(path: Path) -> None:
    """SQLite syncs the log at each commit, not only when it copies it into the file. For a file that another
    program has locked it does not wait."""
    async with opened(path) as store:
        pragmas = {
            name: await store._worker.run(
                lambda connection, name=name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            )
            for name in ("synchronous", "journal_mode", "locking_mode", "busy_timeout")
        }
    assert pragmas == {
        "synchronous": 2,
        "journal_mode": "wal",
        "locking_mode": "exclusive",
        "busy_timeout": 0,
    }


# -- one owner -------------------------------------------------------------------------------------


async def test_a_second_store_on_the_file_is_locked_out(path: Path) -> None:
    """Two stores on one file would pay twice, so the second fails at once.

    The first is not affected, and once it is closed the next one opens.
    """
    async with opened(path) as first:
        for _ in range(3):
            start = time.monotonic()
            with pytest.raises(StoreLockedError, match=r"run\.db"):
                await SQLiteStore(path).open()
            assert time.monotonic() - start < 2
            await first.save(submitted("k"))
    async with opened(path) as second:
        assert await unfinished_keys(second) == ["k"]


async def test_a_store_object_that_is_open_is_not_opened_again(path: Path) -> None:
    """If one store is passed to two clients, the second is refused and the first can still write."""
    store = SQLiteStore(path)
    await store.open()
    try:
        with pytest.raises(StoreError):
            await store.open()
        await store.save(submitted("k"))
        assert await unfinished_keys(store) == ["k"]
    finally:
        await store.aclose()
    async with opened(path) as again:  # it was released
        assert await unfinished_keys(again) == ["k"]


@pytest.mark.parametrize("mode", ["pending", "done"])
async def test_opening_again_after_a_cancel(tmp_path: Path, mode) -> None:
    """A cancelled opening leaves no lock behind that would block the next one."""
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
    pytest.fail("the sweep did not end")


USES: dict[str, Callable[[Store], Any]] = {
    "claim": lambda store: store.claim(entry_of()),
    "save": lambda store: store.save(entry_of()),
    "forget": lambda store: store.forget("k"),
    "find": lambda store: store.find(key="k"),
    "keep_callback": lambda store: store.keep_callback("ref of k", "task-of-k"),
    "callbacks_of": lambda store: store.callbacks_of("ref of k"),
    "recent": lambda store: store.recent(10.0),
    "prune": lambda store: store.prune(1e9),
    "backup": lambda store: store.backup(store.path.with_name("copy.db")),
    "unfinished": unfinished_keys,
}


@pytest.mark.parametrize("use", USES)
async def test_a_closed_store_raises_store_error(path: Path, use: str) -> None:
    """Before it is opened and after it is closed every call is a `StoreError`."""
    store = SQLiteStore(path)
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
def test_a_store_belongs_to_one_loop(path: Path, use: str) -> None:
    """In another loop every call is a `StoreError`; in its own it still works."""
    store = SQLiteStore(path)
    with asyncio.Runner() as mine, asyncio.Runner() as other:
        mine.run(store.open())
        with pytest.raises(StoreError, match="not open in this event loop"):
            other.run(USES[use](store))
        mine.run(USES[use](store))
        mine.run(store.aclose())


def in_child(use: Callable[[], Any]) -> int:
    """Call it in a forked process; 0 if it raises `StoreError`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside a thread is the point here
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


@pytest.mark.posix("fork")
@pytest.mark.parametrize("use", USES)
def test_a_forked_child_cannot_use_it(path: Path, use: str) -> None:
    """Thread and lock stay with the parent, so in a child every call is a `StoreError`.

    That holds in the inherited loop and in a new one. The parent goes on.
    """
    store = SQLiteStore(path)
    with asyncio.Runner() as runner:
        runner.run(store.open())
        assert in_child(lambda: runner.run(USES[use](store))) == 0
        assert in_child(lambda: asyncio.run(USES[use](store))) == 0
        assert in_child(lambda: asyncio.run(SQLiteStore(path).open())) == 0
        runner.run(store.save(submitted("k")))
        assert runner.run(unfinished_keys(store)) == ["k"]
        runner.run(store.aclose())


# -- the file --------------------------------------------------------------------------------------


@pytest.mark.posix("modes of files")
async def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    """Prompts are private: the file and its log have mode 0600 from the start.

    No temporary file is left.
    """
    path = tmp_path / "new" / "folder" / "run.db"
    async with opened(path) as store:
        await store.save(submitted("k"))
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {"run.db": 0o600, "run.db-wal": 0o600}
    assert [file.name for file in path.parent.iterdir()] == ["run.db"]


async def test_the_api_key_is_never_in_the_file(path: Path, api_key: str) -> None:
    """Law 7: after paid, refused and failed submits neither the file nor its log holds the key."""
    async with Emulator(duration=0.0) as kie:
        async with AsyncKieClient(
            api_key, base_url=kie.url, store=path, poll=PollPolicy(first=0.34)
        ) as client:
            kie.plan("failed", outcome="failed")
            kie.plan("refused", answer=400)
            for prompt in ("fine", "failed", "refused"):
                with contextlib.suppress(kie4o.KieError):
                    await client.generate(prompt, key=prompt)
            log = path.with_name("run.db-wal").read_bytes()
        assert len(kie.submits) == 3
    content = path.read_bytes() + log
    assert b"refused" in content
    assert api_key.encode() not in content


async def refused(path: Path) -> StoreError:
    """The error of opening it, which is raised in time and twice the same."""
    for _ in range(2):
        store = SQLiteStore(path)
        with pytest.raises(StoreError) as caught:
            await asyncio.wait_for(store.open(), PATIENCE)
    return caught.value


async def filled(path: Path) -> None:
    async with opened(path) as store:
        for n in range(10):
            await store.save(ended(submitted(f"{n}")))


def tampered(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 8192, b"hello", b"SQLite format 3\0" + b"\xff" * 4096], ids=lambda c: str(c[:8])
)
async def test_a_file_that_is_no_store_is_refused(path: Path, content: bytes) -> None:
    """An empty or foreign file is an error, never a silent new start, and is left unchanged."""
    path.write_bytes(content)
    await refused(path)
    assert path.read_bytes() == content


async def test_another_database_is_refused(path: Path) -> None:
    """A SQLite file of another program is not taken over."""
    tampered(path, "CREATE TABLE theirs (x)")
    assert "not a kie4o store" in str(await refused(path))


async def test_a_newer_store_is_refused(path: Path) -> None:
    """A file of a later schema is refused, and the error says what to do."""
    await filled(path)
    tampered(path, f"PRAGMA user_version = {SCHEMA + 1}")
    assert "upgrade kie4o" in str(await refused(path))


def test_a_path_that_cannot_be_a_file_is_refused(tmp_path: Path) -> None:
    """A directory, a file as parent and a name with a null character are a `StoreError`."""
    (tmp_path / "file").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "file" / "run.db", tmp_path / "null\0.db"):
        assert "cannot be used" in str(asyncio.run(refused(path)))


NO_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "folder": (lambda folder: folder, r"it is a folder; use a file in it, such as .*run\.db"),
    "link to a folder": (lambda folder: folder / "link", "it is a folder; use a file in it"),
    "in a file": (lambda folder: folder / "file" / "run.db", r"file is a file, not a folder"),
    "far in a file": (lambda folder: folder / "file" / "a" / "run.db", r"file is a file, not a folder"),
    "device": (lambda folder: Path(os.devnull), "it is not a regular file; use another path"),
}


LINKED = pytest.param("link to a folder", marks=pytest.mark.posix("symbolic links"))


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("kind", [LINKED, *(kind for kind in NO_FILES if kind not in LINKED.values)])
async def test_a_path_that_is_no_file_is_called_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, windows: bool
) -> None:
    """On every platform: Windows refuses to open a folder with `PermissionError`, not `IsADirectoryError`."""
    (tmp_path / "file").write_bytes(b"x")
    if kind in LINKED.values:
        (tmp_path / "link").symlink_to(tmp_path)
    if windows:
        like_windows(monkeypatch)
    path_of, sentence = NO_FILES[kind]
    before = sorted(tmp_path.iterdir())
    assert re.search(f"cannot be used: .*{sentence}", str(await refused(path_of(tmp_path))))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("part", ["body", "checksum"])
async def test_a_flipped_byte_of_an_entry_is_detected(path: Path, part: str) -> None:
    """Damage that SQLite does not see fails the opening: one wrong letter loses a task id."""
    await filled(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        [content] = connection.execute(f"SELECT {part} FROM entry WHERE key = '7'").fetchone()
    for at in range(0, len(content), 1 + len(content) // 16):
        flipped = bytearray(content)
        flipped[at] ^= 0x01
        tampered(path, f"UPDATE entry SET {part} = x'{flipped.hex()}' WHERE key = '7'")
        assert "damaged" in str(await refused(path))
    tampered(path, f"UPDATE entry SET {part} = x'{content.hex()}' WHERE key = '7'")
    async with opened(path) as store:
        assert await store.find(key="7") == ended(submitted("7"))


COLUMNS = [
    *("key = 'other'", "task_id = 'other'", "task_id = NULL", "state = 'planned'", "state = 'what'"),
    *("price = '7'", "price = '6.0'", "price = 6", "price = ''"),
    *("submitted_at = 6.0", "submitted_at = NULL", "ref_hash = x'00'", "ref_hash = CAST(ref_hash AS TEXT)"),
    *("key = CAST(key AS BLOB)", "checksum = CAST(checksum AS TEXT)", "body = CAST(body AS TEXT)"),
    *("checksum = ''", "body = ''", "body = 5"),
]


@pytest.mark.parametrize("change", COLUMNS)
async def test_a_column_that_does_not_fit_is_detected(path: Path, change: str) -> None:
    """A column that differs from the entry fails the opening.

    So does one whose type a single flipped bit has changed.
    """
    await filled(path)
    tampered(path, f"UPDATE entry SET {change} WHERE key = '7'")
    assert re.search("damaged|cannot be used", str(await refused(path)))
