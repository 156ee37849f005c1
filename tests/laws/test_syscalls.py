"""Laws 1 and 2 when the system fails: `strace` makes the n-th write, sync, connect or send of a process kill
it, or fail. The batch is then run again undisturbed and judged as after any crash, over a file and over a
database.

By default a few positions are tried; HYPOTHESIS_PROFILE=deep tries at least 150.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import pytest
from canary import WATCH
from crashing import CHILD, ITEMS, KILLED, Case, CountingServer, Lane, on_lanes, on_postgres
from proving import DEEP

STRACE = shutil.which("strace")
KILL = "signal=SIGKILL"
# How each call can fail. "+" means this call and all later ones, as on a disk that stays full.
WAYS = {
    "fdatasync": (KILL, "error=EIO", "error=ENOSPC", "error=EIO+"),
    "fsync": (KILL, "error=EIO"),
    "pwrite64": (KILL, "error=EIO", "error=ENOSPC", "error=ENOSPC+"),
    "sendto": (KILL, "error=EIO", "error=ECONNRESET"),
    "connect": (KILL, "error=EIO", "error=ECONNREFUSED", "error=ENETUNREACH+"),
}
# Over a database: what asyncio itself receives and sends to wake its loop never fails in a real system.
NETWORK_WAYS = {"sendto": WAYS["sendto"], "recvfrom": (KILL,), "connect": WAYS["connect"]}
# Seconds for a run. Where a send fails and the connection does not, the database is silent: the call in hand,
# the release of its key and the end are each given up after 30.
PATIENCE = 180
POSITIONS = 16 if DEEP else 2  # for each call and way
LEAST = (150, 100) if DEEP else (15, 10)  # positions that have to be reached, in a file and over a database


def why_not() -> str:
    """Why strace cannot be used here; empty if it can."""
    if STRACE is None:
        return "strace is not installed"
    trial = [STRACE, "-f", "-qq", "--seccomp-bpf", "-e", "inject=connect:error=EIO:when=1", "true"]
    tried = subprocess.run(trial, capture_output=True, text=True, timeout=30)
    return f"strace may not trace here: {tried.stderr.strip()}" if tried.returncode else ""


REASON = why_not()
pytestmark = [
    pytest.mark.once,
    pytest.mark.posix("strace"),
    pytest.mark.skipif(bool(REASON), reason=REASON or "strace works"),
]


@attrs.frozen
class Failure:
    """The `at`-th call of `syscall` in any thread fails in that way."""

    syscall: str
    way: str
    at: int

    def __str__(self) -> str:
        return f"{self.syscall} {self.at} {self.way}"

    @property
    def option(self) -> str:
        way, rest = self.way.removesuffix("+"), "+" * self.way.endswith("+")
        return f"inject={self.syscall}:{way}:when={self.at}{rest}"


async def traced(case: Case, *options: str, strings: bool = False) -> tuple[int, str]:
    """One run in an interpreter of its own under strace; return its exit code and the trace."""
    log = case.folder / "trace"
    run = json.dumps(attrs.asdict(case.run_of()))
    assert STRACE is not None
    command = [STRACE, "-f", "-qq", "-y", "-o", log, "-s", str(20_000 * strings)]
    if not any(KILL in option for option in options):  # strace 6.1 loses most signals with it
        command.append("--seccomp-bpf")
    command += [word for option in options for word in ("-e", option)]
    with (case.folder / "stderr").open("ab") as errors:
        process = await asyncio.create_subprocess_exec(*command, sys.executable, CHILD, run, stderr=errors)
        try:
            code = await asyncio.wait_for(process.wait(), PATIENCE)
        except TimeoutError:
            raise AssertionError(f"a run traced with {options} hung: {case.said}") from None
        finally:
            if process.returncode is None:
                process.terminate()  # strace detaches from the run and ends it
                await process.wait()
    case.codes.append(code)
    await case.settled()
    trace = log.read_bytes()
    log.unlink()
    WATCH.search_sent(trace)
    return code, trace.decode("utf-8", "replace")


async def counted(folder: Path, calls: Iterable[str], store: str) -> Counter[str]:
    """The number of calls of each kind that the busiest thread of an undisturbed run makes."""
    async with Lane() as lane, Case(folder / "undisturbed", CountingServer(), store=store) as case:
        code, trace = await traced(case, f"trace={','.join(calls)}")
        assert code == 0
        assert await case.finish(lane) == []
    per_thread = Counter(re.findall(r"^(\d+) +(\w+)\(", trace, re.MULTILINE))
    counts: Counter[str] = Counter()
    for (_, syscall), count in per_thread.items():
        counts[syscall] = max(count, counts[syscall])
    return counts


def failures(counts: Counter[str], calls: Mapping[str, Sequence[str]]) -> Iterator[Failure]:
    """For each way, positions spread over the run, first and later ones."""
    for syscall, ways in calls.items():
        most = counts[syscall]
        for number, way in enumerate(ways):
            step = max(1.0, most / POSITIONS)
            first = 1 + (number * step / len(ways) if most > POSITIONS else 0)
            for at in sorted({int(first + step * n) for n in range(POSITIONS)}):
                if at <= most:
                    yield Failure(syscall, way, at)


STORES = [
    pytest.param(WAYS, lambda: "run.db", LEAST[0], id="sqlite"),
    pytest.param(NETWORK_WAYS, on_postgres, LEAST[1], id="postgres", marks=pytest.mark.proof),
]


@pytest.mark.sweep
@pytest.mark.parametrize(("calls", "new_store", "least"), STORES)
async def test_any_system_call_may_fail(
    tmp_path: Path, calls: Mapping[str, Sequence[str]], new_store: Callable[[], str], least: int
) -> None:
    """Wherever it fails, each item has at most one complete POST and one outcome.

    Only our errors are raised, no thread logs a traceback, and a task id that could not be saved is reported.
    """
    start = time.monotonic()
    counts = await counted(tmp_path, calls, new_store())
    assert all(counts[syscall] for syscall in calls), counts
    reached: Counter[str] = Counter()

    async def act(lane: Lane, failure: Failure) -> list[str]:
        async with Case(tmp_path / str(failure), CountingServer(), store=new_store()) as case:
            code, trace = await traced(case, f"trace={failure.syscall}", failure.option)
            reached[failure.syscall] += code == KILLED or "(INJECTED)" in trace
            expected = (0, KILLED) if failure.way == KILL else (0,)
            faults = [] if code in expected else [f"ended with code {code}: {case.said}"]
            return faults + await case.finish(lane)

    faults = await on_lanes(failures(counts, calls), act)
    print(f"{reached.total()} positions in {time.monotonic() - start:.0f} s: {dict(reached)}")
    assert faults == []
    assert reached.total() >= least


CREATING = {"unlink": 3, "rename": 1, "fsync": 1, "fdatasync": 3, "pwrite64": 4}  # how often at least


@pytest.mark.sweep
async def test_a_store_without_hard_links_is_created_whole(tmp_path: Path) -> None:
    """Killed at any call that creates it, the batch still completes."""
    kills = [Failure(name, KILL, at) for name, most in CREATING.items() for at in range(1, most + 1)]
    reached: list[str] = []

    async def act(lane: Lane, failure: Failure) -> list[str]:
        async with Case(tmp_path / str(failure), CountingServer(), links=False) as case:
            code, _ = await traced(case, f"trace={failure.syscall}", failure.option)
            reached.extend([str(failure)] * (code == KILLED))
            return await case.finish(lane)

    assert await on_lanes(kills, act) == []
    assert sorted(reached) == sorted(map(str, kills))


INTENT = re.compile(r'\\"key\\":\\"(item-\d\d)\\",(?:(?!\\"key\\").)*?\\"state\\":\\"intent\\"')


async def test_an_intent_is_synced_before_its_request_is_sent(tmp_path: Path) -> None:
    """In the order that the kernel saw, the intent of an item is written and synced before its POST is
    sent."""
    async with Case(tmp_path / "case", CountingServer()) as case:
        code, trace = await traced(case, "trace=pwrite64,fdatasync,sendto", strings=True)
    assert code == 0
    written: set[str] = set()
    syncing: set[str] = set()
    synced: set[str] = set()
    sent: list[str] = []
    for line in trace.splitlines():
        if "pwrite64(" in line:
            written.update(INTENT.findall(line))
        if "fdatasync(" in line:
            syncing = set(written)
        if "fdatasync" in line and line.endswith("= 0"):
            synced |= syncing
        if match := re.search(r'sendto\(.*"POST .*draw (item-\d\d)', line):
            sent.append(match[1])
            assert match[1] in synced
    assert sorted(sent) == ITEMS


async def test_the_name_of_a_new_store_is_synced_before_a_request_is_sent(tmp_path: Path) -> None:
    """Its directory is synced after the file got its name, and before the first POST.

    Otherwise a crash of the machine would lose the file with all its intents.
    """
    async with Case(tmp_path / "case", CountingServer()) as case:
        code, trace = await traced(case, "trace=link,linkat,fsync,sendto", strings=True)
    assert code == 0
    steps = {
        "named": rf'link(at)?\(.*"{re.escape(str(case.folder / "run.db"))}"',
        "synced": rf"fsync\(\d+<{re.escape(str(case.folder))}>",
        "sent": r'sendto\(.*"POST .*draw item',
    }
    lines = trace.splitlines()
    seen = [[number for number, line in enumerate(lines) if re.search(step, line)] for step in steps.values()]
    assert all(seen), seen
    assert sorted(seen) == seen
