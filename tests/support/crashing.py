"""Batches that are killed and run again, and the checks of what they leave behind.

A `CountingServer` is Kie reduced to what costs money: it counts complete POSTs per item and remembers the
task ids that it returned. A `Lane` runs `crash_child` processes one after the other. A `Case` is one store
and everything that happened to it; `faults` lists the promises that it broke. The store is a file in the
folder of the case, or in PostgreSQL.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import attrs
import postgres
from crash_child import Run
from paths import SUPPORT
from portable import PATIENCE
from proving import tried
from serving import LoopbackServer

from kie4o.stores.postgres.address import address_of
from kie4o.stores.store import Entry, EntryState

_T = TypeVar("_T")

LANES = 2
ITEMS = [f"item-{number:02}" for number in range(20)]
CHILD = SUPPORT / "crash_child.py"
KILLED = -9  # SIGKILL, which the signal module of Windows does not have
LOOKS = 2  # a task has finished at its second look

# The errors of items that were not paid for; the next run tries them again.
UNPAID = {"StoreError", "StoreLockedError", "APIConnectionError", "APITimeoutError"}

# -- the server ------------------------------------------------------------------------------------

SERVER_STEPS = (
    *("connect", "post", "half an answer", "a whole answer"),
    *("look", "half a last look", "a last look"),
)


@attrs.define(eq=False)
class CountingServer(LoopbackServer):
    """`async with CountingServer()`. At the `at`-th occurrence of `step`, one of `SERVER_STEPS`, it calls
    `kill`."""

    step: str = ""
    at: int = 0
    kill: Callable[[], None] = attrs.field(default=lambda: None)
    posts: Counter[str] = attrs.field(factory=Counter, init=False)  # complete ones, by item
    task_of: dict[str, str] = attrs.field(factory=dict, init=False)  # the last id returned for an item
    given: set[str] = attrs.field(factory=set, init=False)  # ids whose answer was sent in full
    looks: Counter[str] = attrs.field(factory=Counter, init=False)
    _seen: Counter[str] = attrs.field(factory=Counter, init=False)

    def _reach(self, step: str) -> None:
        self._seen[step] += 1
        if step == self.step and self._seen[step] == self.at:
            self.kill()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reach("connect")
        while True:
            await self._exchange(reader, writer)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        body = await reader.readexactly(length)
        if head.startswith(b"POST "):
            task_id = self._paid(json.loads(body)["prompt"].removeprefix("draw "))
            self._reach("post")
            await self._answer(writer, {"taskId": task_id}, "half an answer")
            self.given.add(task_id)
            self._reach("a whole answer")
        else:
            task_id = head.split(b" ", 2)[1].decode().partition("taskId=")[2]
            self.looks[task_id] += 1
            ended = self.looks[task_id] >= LOOKS
            self._reach("look")
            await self._answer(writer, self._record(task_id, ended), "half a last look" if ended else "")
            if ended:
                self._reach("a last look")

    def _paid(self, item: str) -> str:
        self.posts[item] += 1
        self.task_of[item] = task_id = f"{item}-task-{self.posts[item]}"
        return task_id

    def _record(self, task_id: str, ended: bool) -> dict[str, Any]:
        urls = [f"http://127.0.0.1:9/{task_id}.png"]
        state = (
            {"successFlag": 1, "status": "SUCCESS"} if ended else {"successFlag": 0, "status": "GENERATING"}
        )
        return {"taskId": task_id, "response": {"resultUrls": urls} if ended else None, **state}

    async def _answer(self, writer: asyncio.StreamWriter, data: dict[str, Any], half: str) -> None:
        body = json.dumps({"code": 200, "msg": "success", "data": data}).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        answer = head.encode() + body
        middle = len(answer) - 20
        writer.write(answer[:middle])
        await writer.drain()
        self._reach(half)
        writer.write(answer[middle:])
        await writer.drain()


# -- the processes ---------------------------------------------------------------------------------


class Lane:
    """`async with Lane()`: a fork server that runs one `crash_child` at a time."""

    def __init__(self) -> None:
        self._server: asyncio.subprocess.Process | None = None
        self.pid = 0
        self._running = False

    async def __aenter__(self) -> Lane:
        pipe = asyncio.subprocess.PIPE
        self._server = await asyncio.create_subprocess_exec(sys.executable, CHILD, stdin=pipe, stdout=pipe)
        return self

    async def __aexit__(self, *_: object) -> None:
        server = self._server
        assert server is not None
        assert server.stdin is not None
        if self._running:
            self.kill()
        server.stdin.close()
        try:
            await asyncio.wait_for(server.wait(), PATIENCE)
        except TimeoutError:
            server.kill()
            await server.wait()

    async def start(self, run: Run) -> None:
        assert self._server is not None
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(attrs.asdict(run)).encode() + b"\n")
        self.pid = int(await self._line())
        self._running = True

    async def wait(self) -> int:
        """The exit code of the run, negative if a signal ended it."""
        try:
            code = int(await asyncio.wait_for(self._line(), PATIENCE))
        except TimeoutError:
            raise AssertionError("a run hung") from None
        self._running = False
        return code

    def kill(self) -> None:
        """Safe just after the run has ended too: its pid is not free before the next run."""
        self.signal(signal.SIGKILL)

    def signal(self, which: signal.Signals) -> None:
        os.kill(self.pid, which)

    async def _line(self) -> bytes:
        assert self._server is not None
        assert self._server.stdout is not None
        return await self._server.stdout.readline()


async def on_lanes(cases: Iterable[_T], act: Callable[[Lane, _T], Awaitable[list[str]]]) -> list[str]:
    """`act` for each case, on several lanes at once; return the faults. Cases are taken one by one."""
    following = iter(cases)
    faults: list[str] = []

    async def work() -> None:
        async with Lane() as lane:
            for case in following:
                tried()
                faults.extend(f"{case}: {fault}" for fault in await act(lane, case))

    async with asyncio.TaskGroup() as lanes:
        for _ in range(LANES):
            lanes.create_task(work())
    return faults


# -- one store and what happened to it -------------------------------------------------------------


def on_postgres() -> str:
    """The URL of tables that no other case has."""
    url = postgres.shared_url()
    return f"{url}&application_name={address_of(url).schema}"


async def bury(store: str) -> None:
    """Wait until the database has noticed that a process is gone, and end its lease at once."""
    gone = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND pid <> pg_backend_pid()"
    async with postgres.opened(store) as database, asyncio.timeout(PATIENCE):
        while await database.rows(gone, address_of(store).schema):
            await asyncio.sleep(0.005)
        [(exists,)] = await database.rows("SELECT to_regclass('kie4o.process') IS NOT NULL")
        if exists:
            await database.rows("UPDATE kie4o.process SET expires_at = '-infinity'")


@attrs.define(eq=False)
class Case:
    """`async with Case(folder, CountingServer(...))`: one store and its runs."""

    folder: Path
    server: CountingServer
    naive: bool = False
    store: str = "run.db"
    links: bool = True  # whether its drive has hard links
    codes: list[int] = attrs.field(factory=list, init=False)

    async def __aenter__(self) -> Case:
        self.folder.mkdir(parents=True)
        await self.server.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.server.__aexit__()

    def run_of(self, step: str = "", at: int = 0, **more: Any) -> Run:
        return Run(
            self.server.url,
            str(self.folder),
            ITEMS,
            self.naive,
            step,
            at,
            **{"store": self.store, "links": self.links} | more,
        )

    async def run(
        self, lane: Lane, step: str = "", at: int = 0, *, kill_after: float | None = None, **more: Any
    ) -> int:
        """One run on this store, killed after `kill_after` seconds unless it has ended."""
        self.server.kill = lane.kill
        await lane.start(self.run_of(step, at, **more))
        killer = None
        if kill_after is not None:
            killer = asyncio.get_running_loop().call_later(kill_after, lane.kill)
        try:
            self.codes.append(await lane.wait())
        finally:
            if killer is not None:
                killer.cancel()
        await self.settled()
        return self.codes[-1]

    async def settled(self) -> None:
        """After a run: all that it sent has arrived, and its lease is over."""
        await self.server.settled()
        if "://" in self.store:
            await bury(self.store)

    async def finish(self, lane: Lane) -> list[str]:
        """Run the batch to its end and once more; return what was wrong with any of its runs."""
        code = await self.run(lane)
        if self.naive:
            return [] if code == 0 else [f"ended with code {code}: {self.said}"]
        posts, looks = self.server.posts.total(), self.server.looks.total()
        code_again = await self.run(lane)
        faults = self.faults(await self.entries())
        if (code, code_again) != (0, 0):
            faults.append(f"the last two runs ended with codes {code}, {code_again}: {self.said}")
        if self.server.posts.total() != posts or self.server.looks.total() != looks:
            faults.append("a further run of the finished batch went to the network")
        return faults

    async def entries(self) -> dict[str, Entry]:
        """The entries in the store now."""
        store = self.run_of().new_store()
        await store.open()
        try:
            found = await asyncio.gather(*(store.find(key=item) for item in ITEMS))
        finally:
            await store.aclose()
        return {entry.key: entry for entry in found if entry is not None}

    @property
    def said(self) -> str:
        """What all runs printed and logged."""
        files = (self.folder / "stderr", self.folder / "log")
        return "".join(file.read_text("utf-8", "replace") for file in files if file.exists())

    @property
    def double_payments(self) -> int:
        return sum(count - 1 for count in self.server.posts.values() if count > 1)

    def of_run(self, pid: int) -> list[dict[str, Any]]:
        """What that run yielded, and how it ended."""
        return [line for line in self.lines("outcomes") if line["run"] == pid]

    def lines(self, name: str) -> list[dict[str, Any]]:
        file = self.folder / name
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    # -- the promises ------------------------------------------------------------------------------

    def faults(self, entries: dict[str, Entry]) -> list[str]:
        runs: dict[int, list[dict[str, Any]]] = {}
        for line in self.lines("outcomes"):
            runs.setdefault(line["run"], []).append(line)
        faults = [f"paid {count} times: {item}" for item, count in self.server.posts.items() if count > 1]
        for item in ITEMS:
            if item not in entries:
                faults.append(f"no entry in the end: {item}")
        faults += self._last_runs(list(runs.values())[-2:])
        for outcomes in runs.values():
            faults += self._outcomes(outcomes, entries)
        faults += self._received(entries)
        if "Traceback" in self.said:
            faults.append(f"a traceback: {self.said}")
        return faults

    def _last_runs(self, last: list[list[dict[str, Any]]]) -> list[str]:
        """The last run but one yields every item once; the last one replays them."""
        faults = []
        for outcomes in last:
            if [line.get("ended") for line in outcomes[-1:]] != [""]:
                faults.append(f"a last run failed: {outcomes[-1:]}")
            if sorted(line["key"] for line in outcomes if "key" in line) != ITEMS:
                faults.append("a last run did not yield every item exactly once")
        if len(last) != 2:
            faults.append("the last two runs left no trace")
        elif not all(line["replayed"] for line in last[-1] if "key" in line):
            faults.append("a further run did not replay everything")
        return faults

    def _outcomes(self, outcomes: list[dict[str, Any]], entries: dict[str, Entry]) -> list[str]:
        """What a run yielded agrees with the store, or says that nothing was paid."""
        faults = []
        seen = Counter(line["key"] for line in outcomes if "key" in line)
        faults += [f"yielded {count} times by one run: {item}" for item, count in seen.items() if count > 1]
        for line in outcomes:
            if "ended" in line:
                if line["ended"] not in ("", *UNPAID):
                    faults.append(f"a run ended with {line['ended']}")
                continue
            entry = entries.get(line["key"])
            final = {
                None: entry is not None
                and entry.state is EntryState.SUCCEEDED
                and entry.task_id == line["task_id"] == self.server.task_of.get(line["key"]),
                "SubmissionUnknownError": entry is not None and entry.state is EntryState.UNKNOWN,
                "TaskTimeoutError": entry is not None and entry.task_id == line["task_id"],
            }
            if not line["ours"] or not final.get(line["error"], line["error"] in UNPAID):
                faults.append(f"yielded {line}, and the store holds {entry} in the end")
        return faults

    def _received(self, entries: dict[str, Entry]) -> list[str]:
        """An id whose save returned, or was followed by a save that did, is in the store.

        An id that the server sent and the store does not have was overtaken by the kill; its item is unknown.
        """
        faults = []
        evidence = self.lines("evidence")
        returned = {(line["run"], line["number"]) for line in evidence if "done" in line}
        failed = {(line["run"], line["number"]) for line in evidence if "failed" in line}
        latest: dict[int, int] = {}
        for run, number in returned:
            latest[run] = max(number, latest.get(run, 0))
        for line in evidence:
            if line.get("task_id") is None or "asked" not in line:
                continue
            run, number, task_id = line["run"], line["number"], line["task_id"]
            kept = entries.get(line["key"])
            if kept is not None and kept.task_id == task_id:
                continue
            if (run, number) in failed:
                if task_id not in self.said:
                    faults.append(f"{task_id} could not be saved, and was not logged")
            elif number <= latest.get(run, 0):
                faults.append(f"{task_id} was received and is lost: {kept}")
        for item, task_id in self.server.task_of.items():
            kept = entries.get(item)
            if kept is None or (kept.task_id != task_id and kept.state is not EntryState.UNKNOWN):
                faults.append(f"{task_id} is paid, and the store does not have it: {kept}")
            elif kept.task_id is None and self._arrived(task_id) and task_id not in self.said:
                faults.append(f"{task_id} was sent to a process that was not killed, and is lost")
        return faults

    def _arrived(self, task_id: str) -> bool:
        """Whether the id certainly reached a process: its answer was sent, and no run was killed."""
        return task_id in self.server.given and not any(code < 0 for code in self.codes)
