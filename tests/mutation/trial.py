"""One mutant against the tests that run its line, in processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from mutation.operators import Mutant
from mutation.recording import OPTIONS, Record, enter

ASSERTION, ERROR, LIMIT = "killed by an assertion", "killed by an error", "killed by the time limit"
SURVIVED, UNREACHED = "survived", "run by no test"
UNSEEN = (SURVIVED, UNREACHED)
SECONDS = 5  # of time limit for a second that the tests took when they were recorded


@attrs.frozen
class Ending:
    how: str
    detail: str = ""
    took: float = 0.0


def ending_of(
    context: Any, mutant: Mutant, copy: Path, record: Record, limit: float, budget: float
) -> Ending:
    """Put the mutant into the copy, run its tests, and take it out again."""
    file, began = copy / mutant.module, time.monotonic()
    source = file.read_text(encoding="utf-8")
    file.write_text(mutant.applied(source), encoding="utf-8")
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
        compiled.unlink()  # it is told apart by size and second, which a mutant may share
    ending = Ending(UNREACHED)
    try:
        for tests in _stages(mutant, record, budget):
            seconds = limit + SECONDS * sum(record.seconds[test] for test in tests)
            ending = _run(context, copy, tests, seconds)
            if ending.how not in UNSEEN:
                break
    finally:
        file.write_text(source, encoding="utf-8")
    return attrs.evolve(ending, took=time.monotonic() - began)


def _stages(mutant: Mutant, record: Record, budget: float) -> Iterator[list[str]]:
    """The tests of the mutant's own room, then the others: quick ones first, and no more than the budget."""
    name = mutant.module.removeprefix("kie4o/")
    tests = record.running(name, mutant.lines)
    # What the import runs no test runs: neither a default argument nor a table.
    room, stem = f"tests/{name.split('/')[0]}/", Path(name).stem
    if not tests:
        own = {each for each in record.seconds if each.startswith(f"{room}test_{stem}.py")}
        tests = own | (record.running(name, mutant.body) or record.running(name, range(1)))
    for stage in ([each for each in tests if each.startswith(room) is own] for own in (True, False)):
        taken = []
        for test in sorted(stage, key=lambda each: (record.seconds[each], each)):
            budget -= record.seconds[test]
            if budget < 0:
                break
            taken.append(test)
        if taken:
            yield taken


def _run(context: Any, copy: Path, tests: list[str], seconds: float) -> Ending:
    told = copy / "ending"
    told.unlink(missing_ok=True)
    process = context.Process(target=_tested, args=(str(copy), tests, str(told)))
    process.start()
    process.join(seconds)
    in_time = not process.is_alive()
    with contextlib.suppress(ProcessLookupError, PermissionError):  # and the programs that tests have left
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    process.join()
    if told.exists():
        how, _, detail = told.read_text(encoding="utf-8").partition("\n")
        return Ending(how, detail)
    return Ending(LIMIT if not in_time else ERROR, "" if not in_time else f"exit code {process.exitcode}")


def _tested(copy: str, tests: list[str], told: str) -> None:
    """In a process of its own, which imports the copy."""
    if hasattr(os, "setsid"):
        os.setsid()
    enter(Path(copy), f"{copy}/log")
    watch = _Watch(tests)
    files = sorted({test.partition("::")[0] for test in tests})
    status = pytest.main(["-q", "-x", "-o", "timeout=0", *OPTIONS, *files], plugins=[watch])
    ending = watch.ending
    if ending is None and status is not pytest.ExitCode.OK:
        ending = ERROR, f"pytest ended with {status!r}"
    Path(told).write_text("\n".join(ending or (SURVIVED, "")), encoding="utf-8")
    os._exit(0)  # threads of a mutant may not end


class _Watch:
    """A pytest plugin: the chosen tests in their order, and how the first of them failed."""

    def __init__(self, tests: list[str]) -> None:
        self._order = {test: index for index, test in enumerate(tests)}
        self.ending: tuple[str, str] | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self._order), key=lambda item: self._order[item.nodeid]
        )

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.ending = self.ending or (ERROR, f"{report.nodeid} cannot be collected")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        report: Any = yield
        if report.failed and self.ending is None and call.excinfo is not None:
            error = call.excinfo.value
            how = ASSERTION if isinstance(error, AssertionError | pytest.fail.Exception) else ERROR
            self.ending = how, f"{item.nodeid}: {type(error).__name__}"[:200]
        return report
