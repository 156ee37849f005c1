"""Which test runs which line, and how long it takes: recorded once for each state of a file of tests."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

FAST = "not paced and not sweep and not once and not proof"
# Rooms whose tests are tried. Those of PostgreSQL are skipped without its programs; each mutant has a server.
ROOMS = ("wire", "submission", "transport", "stores", "callbacks", "events", "polling", "client", "laws")
# The examples of Hypothesis are the same in every run.
OPTIONS = ["--no-header", "--tb=short", "-p", "no:cacheprovider", "--hypothesis-seed=0"]


@attrs.frozen
class Record:
    """`seconds` of each test that passes, and `tests` by file of kie4o and line."""

    seconds: dict[str, float]
    tests: dict[str, dict[int, list[str]]]

    def running(self, file: str, lines: Iterable[int]) -> set[str]:
        found = self.tests.get(file, {})
        return {test for line in lines for test in found.get(line, ())}


class Recorder:
    """A pytest plugin; it switches the context of coverage with each test, and keeps each file of tests."""

    def __init__(self, copy: Path, file: Path) -> None:
        import coverage

        self._sources, self._copy, self._file = copy / "kie4o", copy, file
        self._coverage = coverage.Coverage(data_file=None, include=[f"{self._sources}/*"], config_file=False)
        self._seconds: dict[str, float] = {}
        self._failed: set[str] = set()
        self._record = _read(file, copy)
        self._written = time.monotonic()
        self._coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
        began = time.perf_counter()
        self._coverage.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self._coverage.switch_context("")
            self._seconds[item.nodeid] = round(time.perf_counter() - began, 3)
            if nextitem is None or nextitem.path != item.path:
                self.keep(item.nodeid.partition("::")[0])
                if time.monotonic() - self._written > 60:  # what is stopped goes on from there
                    self.write()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self._failed.add(report.nodeid)

    def keep(self, name: str) -> None:
        """What the tests of this file have run; each test has its number there."""
        self._coverage.stop()
        data = self._coverage.get_data()
        seconds = {test: took for test, took in self._seconds.items() if test not in self._failed}
        number = {test: index for index, test in enumerate(seconds)}
        tests = {}
        for file in sorted(data.measured_files()):
            lines = {
                str(line): sorted(number[each] for each in contexts if each in number)
                for line, contexts in data.contexts_by_lineno(file).items()
            }
            tests[Path(file).relative_to(self._sources).as_posix()] = {k: v for k, v in lines.items() if v}
        self._record["files"][name] = {
            "digest": _digest(self._copy / name),
            "seconds": seconds,
            "tests": tests,
            "failed": sorted(self._failed),
        }
        self._seconds, self._failed = {}, set()
        self._coverage.erase()
        self._coverage.start()

    def write(self) -> None:
        self._file.write_text(json.dumps(self._record), encoding="utf-8")
        self._written = time.monotonic()


# -- the file of records -----------------------------------------------------------------------------


def not_recorded(file: Path, root: Path, rooms: Iterable[str]) -> list[str]:
    """The files of tests that have changed since they were recorded. That other things did changes little."""
    known = _read(file, root)["files"]
    files = _files(root, rooms)
    return [name for name in files if known.get(name, {}).get("digest") != _digest(root / name)]


def write_record(copy: str, file: str, names: list[str], log: str) -> None:
    """Run the fast tests of these files in `copy` and write what they run. In a process of its own."""
    enter(Path(copy), log)
    recorder = Recorder(Path(copy), Path(file))
    pytest.main(["-q", "-m", FAST, *OPTIONS, *names], plugins=[recorder])
    recorder.write()


def read_record(file: Path, root: Path, rooms: Iterable[str]) -> Record:
    known = _read(file, root)["files"]
    record, failed = Record({}, {}), []
    for one in (known[name] for name in _files(root, rooms) if name in known):
        names = list(one["seconds"])
        record.seconds.update(one["seconds"])
        failed += one["failed"]
        for source, lines in one["tests"].items():
            found = record.tests.setdefault(source, {})
            for line, tests in lines.items():
                found.setdefault(int(line), []).extend(names[each] for each in tests)
    if failed:
        print(f"left out, since they fail or are skipped without a mutant: {', '.join(failed[:8])}", end="")
        print(f" and {len(failed) - 8} more" if len(failed) > 8 else "")
    return record


def _files(root: Path, rooms: Iterable[str]) -> Iterator[str]:
    for room in rooms:
        for file in sorted((root / "tests" / room).glob("test_*.py")):
            yield file.relative_to(root).as_posix()


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _read(file: Path, root: Path) -> dict[str, Any]:
    """What was recorded, with the numbers that the lines of kie4o have now."""
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if record.get("python") != sys.version:
        record = {"python": sys.version, "sources": {}, "files": {}}
    package = root / "kie4o"
    sources = {
        path.relative_to(package).as_posix(): path.read_text(encoding="utf-8")
        for path in package.rglob("*.py")
    }
    for name, text in sources.items():
        before = record["sources"].get(name, text)
        for one in record["files"].values() if before != text else ():
            lines = one["tests"].get(name, {})
            one["tests"][name] = moved(lines, before.splitlines(), text.splitlines())
    return record | {"sources": sources}


def moved(lines: dict[str, list[int]], before: list[str], after: list[str]) -> dict[str, list[int]]:
    """The tests by the new numbers; new lines have those of the lines that they replace or stand before."""
    found = {}
    for what, old, old_end, new, new_end in difflib.SequenceMatcher(None, before, after, False).get_opcodes():
        for line in range(new, new_end):
            same = [old + line - new] if what == "equal" else range(old, max(old + 1, old_end))
            tests = {test for each in same for test in lines.get(str(each + 1), ())}
            if tests:
                found[str(line + 1)] = sorted(tests)
    return found


def enter(copy: Path, log: str) -> None:
    """Make this process, and those that it starts, import the copy; what they print goes to a file."""
    os.chdir(copy)
    sys.path[:] = [str(copy), *(each for each in sys.path if not (Path(each or ".") / "noxfile.py").exists())]
    os.environ["PYTHONPATH"] = str(copy)
    sys.dont_write_bytecode = False  # or each mutant would have everything compiled again
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
