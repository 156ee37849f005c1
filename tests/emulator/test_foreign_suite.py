"""A suite that someone else could have written: in a folder of its own, with nothing but the plugin."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import IMPORT_ROOT
from suites import OURS, run_suite

pytestmark = pytest.mark.once

SUITE = Path(__file__).parent / "foreign_suite"
FILES = {file.name: file.read_text("utf-8") for file in SUITE.glob("*.py")}
STRICT = {"asyncio_mode": "strict"}


def cpu_of_children() -> float:
    """Seconds of the processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["alone", "two workers"])
def test_it_passes(options: tuple[str, ...], tmp_path: Path) -> None:
    """Twelve tests, among them a crash, a callback, a 455 and a task of five minutes."""
    plugins = ("asyncio", OURS, *(("xdist",) if options else ()))
    run = run_suite(tmp_path, FILES, *options, plugins=plugins, settings=STRICT)
    assert run.counts == {"passed": 12}, run.out


@pytest.mark.paced
@pytest.mark.parametrize("workers", [1, 2])
def test_it_is_fast(workers: int, tmp_path: Path) -> None:
    """A worker uses at most three times the CPU time of collecting the suite, which is some 2 s. In real time
    it would take a quarter of an hour. The best of three runs counts, in turn with three of the control."""
    more = ("-n", str(workers)) if workers > 1 else ()
    runs: dict[str, list[float]] = {"all": [], "collect": []}
    for number in range(3):
        for kind, options in (("all", more), ("collect", ("--collect-only",))):
            folder = tmp_path / f"{kind}{number}"
            folder.mkdir()
            before = cpu_of_children()
            run_suite(folder, FILES, *options, plugins=("asyncio", OURS, "xdist"), settings=STRICT)
            runs[kind].append(cpu_of_children() - before)
    print(runs)
    assert min(runs["all"]) / workers < 3 * min(runs["collect"])


def test_control_without_the_plugin_it_does_not_pass(tmp_path: Path) -> None:
    """The control: nothing else offers its fixtures and its marker."""
    run = run_suite(tmp_path, FILES, plugins=("asyncio",), settings=STRICT)
    assert run.counts.get("passed") is None, run.out
    assert "'kie' not found in `markers`" in run.out


def test_its_types_are_strict(tmp_path: Path) -> None:
    """As users see them, under mypy --strict. The control: a wrong call of a fixture's value is seen."""
    pytest.importorskip("mypy")
    shutil.copytree(SUITE, tmp_path / "suite", ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "suite"

    def check() -> str:
        command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "."]
        environment = {"PYTHONPATH": str(IMPORT_ROOT), "MYPYPATH": str(IMPORT_ROOT), "PATH": ""}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    assert "Success" in check()
    wrong = "\n\ndef test_wrong(kie: Emulator) -> None:\n    kie.plan('a lake', outcome=3)\n"
    (folder / "test_wrong.py").write_text(f"from kie4o.emulator import Emulator{wrong}")
    assert 'Argument "outcome"' in check()
