"""One mutant against the tests that run its line, in processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from mutation.operators import Mutant
from mutation.recording import OPTIONS, Record, enter

ASSERTION, ERROR, LIMIT = "killed by an assertion", "killed by an error", "killed by the time limit"
SURVIVED, UNREACHED = "survived", "run by no test"
UNSEEN = (SURVIVED, UNREACHED)
SECONDS = 5  # of time limit for a second that a test took when it was recorded
CASES = 4  # of a test function, which are much alike, that are tried at a time
KILLERS = 8  # tests that are tried first: those that killed mutants of the module before


@attrs.frozen
class Ending:
    how: str
    test: str = ""
    error: str = ""
    took: float = 0.0


def ending_of(
    context: Any,
    mutant: Mutant,
    copy: Path,
    record: Record,
    killers: list[str],
    named: str,
    limit: float,
    budget: float,
) -> Ending:
    """Put the mutant into the copy, run its tests, and take it out again.

    `killers` are those that killed mutants of the module before, the latest last. The `named` test is tried
    though it may not run the mutant's line: it may use a table, or what is cached.
    """
    file, began = copy / mutant.module, time.monotonic()
    source = file.read_text(encoding="utf-8")
    _replace(file, mutant.applied(source))
    ending = Ending(UNREACHED)
    try:
        for tests in _stages(mutant, record, killers, named, budget):
            ending = _run(context, copy, {test: limit + SECONDS * record.seconds[test] for test in tests})
            if ending.how not in UNSEEN:
                break
    finally:
        _replace(file, source)
    return attrs.evolve(ending, took=time.monotonic() - began)


def _replace(file: Path, source: str) -> None:
    file.write_text(source, encoding="utf-8")
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
        compiled.unlink()  # it is told apart by size and second, which a mutant may share


def _stages(
    mutant: Mutant, record: Record, killers: list[str], named: str, budget: float
) -> Iterator[list[str]]:
    """The named test; then the latest killers, those of the files that are named after the module, those of
    its room, and the others within the budget."""
    if named in record.seconds:
        yield [named]
    name = mutant.module.removeprefix("kie4o/")
    tests = record.running(name, mutant.lines)
    # What the import runs no test runs: neither a default argument nor a table.
    room, stem = f"tests/{name.split('/')[0]}/", Path(name).stem
    if not tests:
        own = {each for each in record.seconds if each.startswith(f"{room}test_{stem}.py")}
        tests = own | (record.running(name, mutant.body) or record.running(name, record.tests.get(name, ())))
    first = [each for each in dict.fromkeys(reversed(killers)) if each in tests][:KILLERS]
    tests -= set(first)
    named_so = {each for each in tests if stem in Path(each.partition("::")[0]).stem}
    in_room = {each for each in tests if each.startswith(room)} - named_so
    for stage in (first, named_so, in_room, tests - named_so - in_room):
        taken = []
        for test in _in_order(stage, record):
            budget -= record.seconds[test]
            if budget < 0:
                break
            taken.append(test)
        if taken:
            yield taken


def _in_order(tests: Iterable[str], record: Record) -> list[str]:
    """Quick ones first, and a few cases of each function before the others of any."""
    cases = Counter[str]()
    turns = {}
    for test in sorted(tests, key=lambda each: (record.seconds[each], each)):
        function = test.partition("[")[0]
        turns[test] = cases[function] // CASES
        cases[function] += 1
    return sorted(turns, key=turns.__getitem__)


def _run(context: Any, copy: Path, limits: dict[str, float]) -> Ending:
    """The tests in their order, each with its limit in seconds."""
    told = copy / "ending"
    told.unlink(missing_ok=True)
    process = context.Process(target=_tested, args=(str(copy), limits, str(told)))
    process.start()
    process.join(sum(limits.values()))
    in_time = not process.is_alive()
    with contextlib.suppress(ProcessLookupError, PermissionError):  # and the programs that tests have left
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    process.join()
    if told.exists():
        return Ending(*told.read_text(encoding="utf-8").split("\n"))
    return Ending(LIMIT) if not in_time else Ending(ERROR, error=f"exit code {process.exitcode}")


def _tested(copy: str, limits: dict[str, float], told: str) -> None:
    """In a process of its own, which imports the copy."""
    if hasattr(os, "setsid"):
        os.setsid()
    enter(Path(copy), f"{copy}/log")

    def tell(how: str, test: str = "", error: str = "") -> None:
        Path(told).write_text(f"{how}\n{test}\n{error}", encoding="utf-8")
        os._exit(0)  # threads of a mutant may not end

    watch = _Watch(limits, tell)
    files = sorted({test.partition("::")[0] for test in limits})
    status = pytest.main(["-q", "-x", "-o", "timeout=0", *OPTIONS, *files], plugins=[watch])
    if status is pytest.ExitCode.OK:
        tell(SURVIVED)
    tell(ERROR, error=f"pytest ended with {status!r}")


class _Watch:
    """A pytest plugin: the chosen tests in their order, and how the first of them failed."""

    def __init__(self, limits: dict[str, float], tell: Callable[[str, str, str], None]) -> None:
        self._limits, self._tell = limits, tell
        self._order = {test: index for index, test in enumerate(limits)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self._order), key=lambda item: self._order[item.nodeid]
        )

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._tell(ERROR, report.nodeid, "it cannot be collected")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        timer = threading.Timer(self._limits[item.nodeid], self._tell, (LIMIT, item.nodeid, ""))
        timer.daemon = True
        timer.start()
        try:
            return (yield)
        finally:
            timer.cancel()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        report: Any = yield
        if report.failed and call.excinfo is not None:
            error = call.excinfo.value
            how = ASSERTION if isinstance(error, AssertionError | pytest.fail.Exception) else ERROR
            self._tell(how, item.nodeid, type(error).__name__)
        return report
