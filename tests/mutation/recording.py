"""Which test runs which line, and how long it takes: recorded once for a state of the sources."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

FAST = "not paced and not sweep and not once and not proof"
# Rooms whose tests are tried. Those of PostgreSQL run nothing here without a server.
ROOMS = ("wire", "submission", "transport", "stores", "callbacks", "polling", "client", "laws")


@attrs.frozen
class Record:
    """`seconds` of each test that passes, and `tests` by file and line; line 0 is any line of the file that
    is not run by the import."""

    seconds: dict[str, float]
    tests: dict[str, dict[int, list[str]]]

    def running(self, file: str, lines: range) -> set[str]:
        found = self.tests.get(file, {})
        return {test for line in lines for test in found.get(line, ())}


class Recorder:
    """A pytest plugin; it switches the context of coverage with each test."""

    def __init__(self, sources: Path) -> None:
        import coverage

        self._sources = sources
        self._coverage = coverage.Coverage(data_file=None, include=[f"{sources}/*"], config_file=False)
        self._seconds: dict[str, float] = {}
        self._failed: set[str] = set()
        self._coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        began = time.perf_counter()
        self._coverage.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self._coverage.switch_context("")
            self._seconds[item.nodeid] = round(time.perf_counter() - began, 3)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self._failed.add(report.nodeid)

    def record(self) -> dict[str, Any]:
        self._coverage.stop()
        data = self._coverage.get_data()
        seconds = {test: took for test, took in self._seconds.items() if test not in self._failed}
        number = {test: index for index, test in enumerate(seconds)}
        tests: dict[str, dict[int, list[int]]] = {}
        for file in sorted(data.measured_files()):
            lines = {
                line: sorted(number[each] for each in contexts if each in number)
                for line, contexts in data.contexts_by_lineno(file).items()
            }
            lines[0] = sorted({test for each in lines.values() for test in each})
            tests[Path(file).relative_to(self._sources).as_posix()] = {k: v for k, v in lines.items() if v}
        return {"seconds": seconds, "tests": tests, "failed": sorted(self._failed)}


def digest(root: Path) -> str:
    """Of all that decides which test runs which line."""
    files = sorted([*(root / "kie4o").rglob("*.py"), *(root / "tests").rglob("*.py")])
    told = hashlib.sha256(sys.version.encode())
    for file in files:
        if "mutation" not in file.parts:
            told.update(file.read_bytes())
    return told.hexdigest()


def write_record(copy: str, file: str, rooms: list[str], log: str) -> None:
    """Run the fast tests in `copy` and write what they run. In a process of its own."""
    enter(Path(copy), log)
    recorder = Recorder(Path(copy) / "kie4o")
    folders = [f"tests/{room}" for room in rooms]
    pytest.main(["-q", "-m", FAST, "--ignore-glob=*/test_postgres_*", *OPTIONS, *folders], plugins=[recorder])
    Path(file).write_text(json.dumps({"digest": digest(Path(copy)), "rooms": rooms, **recorder.record()}))


def read_record(file: Path) -> Record:
    raw = json.loads(file.read_text())
    names = list(raw["seconds"])
    tests = {
        file: {int(line): [names[each] for each in found] for line, found in lines.items()}
        for file, lines in raw["tests"].items()
    }
    if raw["failed"]:
        print(
            f"left out, since they fail or are skipped without a mutant: {', '.join(raw['failed'][:8])}",
            end="",
        )
        print(f" and {len(raw['failed']) - 8} more" if len(raw["failed"]) > 8 else "")
    return Record(raw["seconds"], tests)


# The examples of Hypothesis are the same in every run.
OPTIONS = ["--no-header", "--tb=short", "-p", "no:cacheprovider", "--hypothesis-seed=0"]


def enter(copy: Path, log: str) -> None:
    """Make this process, and those that it starts, import the copy; what they print goes to a file."""
    os.chdir(copy)
    sys.path[:] = [str(copy), *(each for each in sys.path if not (Path(each or ".") / "noxfile.py").exists())]
    os.environ["PYTHONPATH"] = str(copy)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
