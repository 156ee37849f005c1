"""Several processes, one account: a request is paid once, whichever of them asks for it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import postgres
import pytest
from paths import IMPORT_ROOT, SUPPORT

from kie4o.emulator import Emulator

CHILD = SUPPORT / "postgres_child.py"


@contextlib.contextmanager
def processes(count: int, keys: int, kie: Emulator, *more: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes on one store, all open."""
    command = [sys.executable, str(CHILD), postgres.shared_url(), kie.url, str(keys), *more]
    environment = {"PYTHONPATH": str(IMPORT_ROOT)}
    with contextlib.ExitStack() as stack:
        running = []
        for _ in range(count):
            child = subprocess.Popen(
                command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            stack.enter_context(child)
            stack.callback(child.kill)
            running.append(child)
        for child in running:
            assert child.stdout is not None
            assert child.stdout.readline() == "open\n"
        yield running
        for child in running:
            assert child.stdin is not None
            child.stdin.close()
        for child in running:
            assert child.wait(60) == 0


def submit_everywhere(running: list[subprocess.Popen[str]], name: str) -> list[list[str]]:
    """What the same keys came to in each process."""
    for child in running:
        assert child.stdin is not None
        child.stdin.write(f"{name}\n")
        child.stdin.flush()
    return [json.loads(child.stdout.readline()) for child in running if child.stdout is not None]


def emulator() -> contextlib.AbstractContextManager[Emulator]:
    return Emulator.in_thread(clock="real", limit=1_000_000, credits=1_000_000, duration=3600)


@pytest.mark.parametrize(
    ("count", "keys", "rounds"),
    [(4, 10, 2), pytest.param(16, 50, 20, marks=[pytest.mark.sweep, pytest.mark.once])],
    ids=["4x10", "16x50"],
)
def test_the_same_keys_in_many_processes_are_paid_once(count: int, keys: int, rounds: int) -> None:
    """At the same moments; each process gets the same tasks."""
    with emulator() as kie, processes(count, keys, kie) as running:
        for number in range(rounds):
            outcomes = submit_everywhere(running, f"{number}")
            assert len({tuple(tasks) for tasks in outcomes}) == 1
            assert len(set(outcomes[0])) == keys
        prompts = Counter(submit.request["prompt"] for submit in kie.submits)
        assert len(prompts) == rounds * keys
        assert set(prompts.values()) == {1}
        assert kie.paid == rounds * keys


def test_control_without_a_hold_keys_are_paid_again() -> None:
    with emulator() as kie, processes(4, 10, kie, "control") as running:
        submit_everywhere(running, "0")
        assert kie.paid > 10
