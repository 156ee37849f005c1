"""The process that is killed: one run of a batch, over a store that can kill it at a named step.

Without arguments it is a fork server. It imports everything once, then forks one run for each line of JSON on
its standard input, which takes milliseconds; a fresh interpreter takes half a second. With one argument it is
that single run, for a tracer.

A run appends what it sees to files, one `write` per line, which the kernel keeps after `kill -9`: `outcomes`
(what the batch yielded), `evidence` (which writes to the store were requested, and which of them
returned) and, if it was forked, `log`.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import attrs
from canary import CANARY_KEY, WATCH
from clocks import TimelapseLoop, real_time_for_stores

from kie4o import AsyncKieClient, PollPolicy, RateLimit
from kie4o.errors import KieError
from kie4o.settings import Secret
from kie4o.stores import file_lock, guard, sqlite_file
from kie4o.stores.choosing import store_of
from kie4o.stores.postgres import PostgresStore
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.sqlite_file import StoreConnection
from kie4o.stores.store import Entry, Store

SPEED = 20.0  # loop seconds per second: two looks are at least 17 ms apart
SPEED_ON_POSTGRES = 5.0  # five seconds, in which a slot is good, are one
IN_FLIGHT = 8
UNEXPECTED = 70  # exit code of a run that raised anything but a `KieError`
PATH = "/api/v1/gpt4o-image/generate"


@attrs.frozen
class Run:
    """The arguments of one run. At the `at`-th occurrence of `step` its store kills it, or does what `mishap`
    names."""

    url: str
    folder: str
    items: list[str]
    naive: bool = False
    step: str = ""
    at: int = 0
    mishap: str = "kill"
    store: str = "run.db"  # in the folder, or the URL of a database
    links: bool = True
    unprotected: bool = False

    @property
    def on_postgres(self) -> bool:
        return "://" in self.store

    def new_store(self) -> Store:
        address = self.store if self.on_postgres else Path(self.folder) / self.store
        return store_of(address, Secret(CANARY_KEY))


class Lines:
    """A file of JSON lines. With `sync` they survive a crash of the machine too."""

    def __init__(self, path: Path, *, sync: bool = False) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._sync = sync

    def write(self, **fields: Any) -> None:
        os.write(self._file, json.dumps(fields).encode() + b"\n")
        if self._sync:
            os.fsync(self._file)


class DyingStore:
    """A `Store` around another: it logs the calls. At a named step it kills the process, or copies, deletes
    or renames the file.

    A step is "before", "during" or "after" and a name: open, recent, find_many, find, claim, release, close,
    or the state that is being saved.
    """

    def __init__(self, evidence: Lines, run: Run) -> None:
        self._inner: Any = run.new_store()
        # Of the loop, until the statement is under way, executed, or answered.
        self._turns = random.Random(f"{run.step} {run.at}").randrange(1, 30) if run.on_postgres else 1
        self._evidence = evidence
        self._step = run.step
        self._at = run.at
        self._mishap = MISHAPS[run.mishap]
        self._seen: Counter[str] = Counter()
        self._writes = 0
        self._begun: asyncio.Future[Any] | None = None  # keeps a reference

    def _due(self, step: str) -> bool:
        self._seen[step] += 1
        return step == self._step and self._seen[step] == self._at

    async def _through(self, name: str, act: Callable[[], Awaitable[Any]]) -> Any:
        if self._due(f"before {name}"):
            await self._mishap(self._inner)
        if self._due(f"during {name}"):
            self._begun = asyncio.ensure_future(act())
            for _ in range(self._turns):
                await asyncio.sleep(0)
            time.sleep(0.0002 * (self._at % 5))  # the store's thread, or the server, is in the middle of it
            die()
        value = await act()
        if self._due(f"after {name}"):
            await self._mishap(self._inner)
        return value

    async def _write(self, name: str, entry: Entry, act: Callable[[], Awaitable[Any]]) -> Any:
        self._writes += 1
        number = self._writes
        noted = {"run": os.getpid(), "number": number}
        self._evidence.write(asked=name, key=entry.key, task_id=entry.task_id, **noted)
        try:
            value = await self._through(name, act)
        except (KieError, asyncio.CancelledError):  # cancelled: by the limit of the guard
            self._evidence.write(failed=name, **noted)
            raise
        self._evidence.write(done=name, **noted)
        return value

    def __getattr__(self, name: str) -> Any:
        """All other methods are those of the inner store."""
        return getattr(self._inner, name)

    async def open(self) -> None:
        await self._through("open", self._inner.open)

    async def claim(self, entry: Entry, **options: Any) -> Entry | None:
        return await self._write("claim", entry, lambda: self._inner.claim(entry, **options))

    async def begin(self, entry: Entry, superseded: Entry | None = None) -> None:
        await self._write(entry.state.value, entry, lambda: self._inner.begin(entry, superseded))

    async def save(self, entry: Entry) -> None:
        await self._write(entry.state.value, entry, lambda: self._inner.save(entry))

    async def release(self, key: str) -> None:
        await self._through("release", lambda: self._inner.release(key))

    async def find(
        self, *, key: str | None = None, task_id: str | None = None, ref: str | None = None
    ) -> Entry | None:
        return await self._through("find", lambda: self._inner.find(key=key, task_id=task_id, ref=ref))

    async def find_many(self, keys: Sequence[str]) -> Sequence[Entry | None]:
        return await self._through("find_many", lambda: self._inner.find_many(keys))

    async def callbacks_of(self, ref: str) -> Sequence[str]:
        return await self._inner.callbacks_of(ref)

    async def recent(self, per: float) -> list[float]:
        return await self._through("recent", lambda: self._inner.recent(per))

    async def aclose(self) -> None:
        await self._through("close", self._inner.aclose)


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


async def _kill(store: SQLiteStore) -> None:
    die()


async def _copy(store: SQLiteStore) -> None:
    shutil.copy(store.path, store.path.with_name("copy.db"))


async def _back_up(store: SQLiteStore) -> None:
    await store.backup(store.path.with_name("backup.db"))


async def _delete(store: SQLiteStore) -> None:
    store.path.unlink()


async def _rename(store: SQLiteStore) -> None:
    store.path.rename(store.path.with_name("moved.db"))


MISHAPS: dict[str, Callable[[SQLiteStore], Awaitable[None]]] = {
    "kill": _kill,
    "copy": _copy,
    "backup": _back_up,
    "delete": _delete,
    "rename": _rename,
}


def take_away_protection() -> None:
    """Control: a store under SQLite's lock alone, which believes its path and its log; or one in
    PostgreSQL that keeps no intents."""

    async def begin(*_: object) -> None:
        pass

    PostgresStore.begin = begin  # type: ignore[method-assign]  # in this process only
    file_lock._lock = lambda descriptor: None
    StoreConnection.check_in_place = lambda self: None  # type: ignore[method-assign]  # in this process only
    sqlite_file.is_damaged = lambda log: False


def take_away_links() -> None:
    """As on FAT and exFAT: link(2)."""

    def link(*names: object) -> NoReturn:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    os.link = link


async def batch(run: Run) -> None:
    """The batch as a user writes it: a mapping of custom ids, a store, completions as they arrive."""
    folder = Path(run.folder)
    outcomes = Lines(folder / "outcomes")
    evidence = Lines(folder / "evidence")
    store = DyingStore(evidence, run)
    me = os.getpid()
    try:
        async with AsyncKieClient(
            CANARY_KEY,
            base_url=run.url,
            store=store,
            wait_timeout=200.0,
            max_in_flight=IN_FLIGHT,
            rate_limit=RateLimit(1000, per=10.0),
            poll=PollPolicy(first=0.34, factor=1.0, maximum=0.34, jitter=False),
        ) as client:
            async for completion in client.generate_many({item: f"draw {item}" for item in run.items}):
                outcomes.write(
                    run=me,
                    key=completion.key,
                    task_id=completion.task_id,
                    error=_kind(completion.error),
                    ours=completion.error is None or isinstance(completion.error, KieError),
                    replayed=completion.replayed,
                )
    except KieError as error:
        outcomes.write(run=me, ended=_kind(error))
    else:
        outcomes.write(run=me, ended="")


def _kind(error: Exception | None) -> str | None:
    return None if error is None else type(error).__name__


async def naive_batch(run: Run) -> None:
    """What people write first: POST, append the task id to a file, and skip the items in that file."""
    folder = Path(run.folder)
    book = folder / "book"
    done = {json.loads(line)["key"] for line in book.read_text().splitlines()} if book.exists() else set()
    lines = Lines(book, sync=True)
    in_flight = asyncio.Semaphore(IN_FLIGHT)
    async with aiohttp.ClientSession() as session:

        async def one(item: str) -> None:
            async with in_flight:
                request = {"prompt": f"draw {item}", "size": "1:1"}
                async with session.post(run.url + PATH, json=request) as response:
                    answer = await response.json()
                lines.write(key=item, task_id=answer["data"]["taskId"])

        await asyncio.gather(*(one(item) for item in run.items if item not in done))
    Lines(folder / "outcomes").write(run=os.getpid(), ended="")


def perform(run: Run) -> int:
    """Run it; the exit code is 0 unless it raised anything but a `KieError`."""
    if not run.links:
        take_away_links()
    if run.unprotected:
        take_away_protection()
    try:
        _run(run)
    except BaseException:
        traceback.print_exc()
        return UNEXPECTED
    if leaks := WATCH.leaks():
        print(*leaks, sep="\n", file=sys.stderr)
        return UNEXPECTED
    return 0


def _run(run: Run) -> None:
    speed = SPEED_ON_POSTGRES if run.on_postgres else SPEED
    with real_time_for_stores(speed), asyncio.Runner(loop_factory=lambda: TimelapseLoop(speed)) as runner:
        guard.OPENING = guard.LIMIT  # not ten minutes: the tracer may silence the database
        _beat(runner.get_loop())
        runner.run((naive_batch if run.naive else batch)(run))


def _beat(loop: asyncio.AbstractEventLoop) -> None:
    """Wake the loop regularly.

    The tracer may fail the send with which a thread wakes it; a real system never does.
    """
    loop.call_later(1.0, _beat, loop)


def serve() -> None:
    """Fork one run per line.

    A finished run stays a zombie until the next line, so that its pid is not reused while the tests may still
    kill it.
    """
    ended = 0
    WATCH.start()
    while line := sys.stdin.readline():
        if ended:
            os.waitpid(ended, 0)
        run = Run(**json.loads(line))
        pid = os.fork()
        if not pid:
            errors = os.open(Path(run.folder) / "stderr", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.dup2(errors, 2)
            logging.basicConfig(filename=Path(run.folder) / "log", force=True)  # is searched for the key
            logging.getLogger().addHandler(WATCH)
            code = perform(run)
            sys.stderr.flush()
            os._exit(code)
        print(pid, flush=True)
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert end is not None
        print(end.si_status if end.si_code == os.CLD_EXITED else -end.si_status, flush=True)
        ended = pid


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(perform(Run(**json.loads(sys.argv[1]))))
    serve()
