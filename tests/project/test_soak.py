"""The soak sees what it looks for: each of its checks fails on a run that breaks it."""

import argparse
import random
import subprocess
import sys
from typing import Any

import pytest
from paths import REPOSITORY

sys.path.append(str(REPOSITORY))  # at the end: kie4o is the one under test

from benchmarks.processes import environment
from benchmarks.soak import Account, Run, by_line, checks, thirds

FACTS = {"posts": 9, "tasks": 8, "twice": 0, "most": 20, "looks": 3}
FLAT = {"memory": 50.0, "blocks": 210.0, "descriptors": 40.0, "tasks": 90.0}


def run_of(**more: Any) -> Run:
    """A run in which everything held, with one account and these differences in it."""
    account = Account("file", "http://127.0.0.1:1", facts=FACTS | more, answered=8, stored=8)
    return Run(argparse.Namespace(), random.Random(1), "", [account], samples=[FLAT] * 30)


def failed(run: Run) -> list[str]:
    return [what for what, good in checks(run).items() if not good]


def test_a_good_run_passes() -> None:
    """Otherwise the tests below prove nothing."""
    assert failed(run_of()) == []


@pytest.mark.parametrize(
    ("facts", "what"),
    [
        ({"tasks": 0}, "tasks were sold"),
        ({"twice": 1}, "paid twice"),
        ({"most": 21}, "at most 20"),
        ({"looks": 4}, "at most 3 polls"),
    ],
)
def test_what_the_server_saw_is_judged(facts: dict[str, Any], what: str) -> None:
    """Each count of the server that is wrong fails one check."""
    [only] = failed(run_of(**facts))
    assert what in only


def test_lost_ids_fail() -> None:
    """An id that was received and not stored, and a task of which the store knows nothing."""
    run = run_of()
    run.accounts[0].stored -= 1
    run.accounts[0].unaccounted += 1
    assert len(failed(run)) == 2


@pytest.mark.parametrize("what", FLAT)
def test_growth_fails(what: str) -> None:
    """A figure that grows steadily fails, and one that was high for a moment does not."""
    run = run_of()
    run.samples = [FLAT | {what: FLAT[what] + 5 * number} for number in range(30)]
    assert [name for name in failed(run) if name.startswith(what)] == failed(run) != []
    run.samples = [FLAT] * 29 + [FLAT | {what: 1000.0}]
    assert failed(run) == []
    assert thirds([FLAT, FLAT]) == {}  # too few to judge


def test_a_line_is_fitted_after_the_first_half() -> None:
    """By how much a figure rises, whatever it does while caches fill."""
    filling = [{"memory": 0.0}] * 20
    rising = [{"memory": 50.0 + number} for number in range(21)]
    assert by_line(filling + rising)["memory"] == pytest.approx(20)
    assert by_line(filling + rising[:1] * 21)["memory"] == pytest.approx(0)


def test_a_line_leaves_out_what_calls_explain() -> None:
    """More calls under way need more of everything, and a leak shows beside them."""
    calls = [number % 7 + number // 2 for number in range(30)]
    busy = [FLAT | {"calls": each, "memory": 50.0 + each} for each in calls]
    assert by_line(busy)["memory"] == pytest.approx(0, abs=1e-6)
    leaking = [sample | {"memory": sample["memory"] + at} for at, sample in enumerate(busy)]
    assert by_line(leaking)["memory"] == pytest.approx(14)


def test_no_samples_and_surprises_fail() -> None:
    """A run that measured nothing, and one that logged an error."""
    run = run_of()
    run.samples.clear()
    run.surprise("an error")
    assert failed(run) == ["figures were taken", "nothing unexpected"]


def soak(*words: str, kind: str = "soak", minutes: float = 0.25) -> tuple[int, str]:
    """Run it; its status and what it printed."""
    command = [sys.executable, "-m", f"benchmarks.{kind}", "--minutes", str(minutes), *words]
    patience = 60 * minutes + 300
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=patience
    )
    return done.returncode, done.stdout + done.stderr


LIGHT = ("--loop", "asyncio", "--rate", "20")  # what a machine that does other things can keep up with
KINDS = {"soak": (), "steady": LIGHT}
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@pytest.mark.once
@pytest.mark.paced
@pytest.mark.sweep
def test_a_short_soak_holds(kind: str) -> None:
    """The real thing, for a few seconds."""
    status, printed = soak(*KINDS[kind], kind=kind)
    assert status == 0, printed


@every_kind
@pytest.mark.once
@pytest.mark.parametrize("control", ["forget", "descriptor"])
@pytest.mark.paced
@pytest.mark.sweep
def test_controls_fail(control: str, kind: str) -> None:
    """One id that is forgotten, or descriptors that leak: the status is 1."""
    status, printed = soak("--control", control, *KINDS[kind], kind=kind)
    assert status == 1, printed
    assert "FAILED" in printed


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.paced
@pytest.mark.sweep
@pytest.mark.proof
@pytest.mark.timeout(1800)
@pytest.mark.posix("uvloop")
def test_half_an_hour_at_a_steady_rate(loop: str) -> None:
    """Half of it on each loop."""
    status, printed = soak("--loop", loop, kind="steady", minutes=15)
    assert status == 0, printed


@pytest.mark.parametrize("control", ["memory", "task"])
@pytest.mark.paced
@pytest.mark.sweep
@pytest.mark.proof
def test_controls_of_the_steady_rate_fail(control: str) -> None:
    """A MB, or ten asyncio tasks, that are kept each second."""
    status, printed = soak("--control", control, *LIGHT, kind="steady", minutes=1)
    assert status == 1, printed
    assert f"FAILED {control}" in printed
