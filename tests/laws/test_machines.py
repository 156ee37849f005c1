"""Several processes, one account: a request is paid once, whichever of them asks for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import postgres
import pytest
from paths import IMPORT_ROOT, SUPPORT
from postgres import opened
from proving import DEEP

from kie4o.emulator import Emulator
from kie4o.stores.postgres.schema import migrate

pytestmark = pytest.mark.once

CHILD = SUPPORT / "postgres_child.py"
ROUNDS = 20 if DEEP else 4


@contextlib.contextmanager
def processes(
    count: int, keys: int, kie: Emulator, *more: str, url: str | None = None, killed: int = 0
) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes on one store, all open. The first `killed` of them do not end by themselves."""
    command = [sys.executable, str(CHILD), url or postgres.shared_url(), kie.url, str(keys), *more]
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
        for child in running[killed:]:
            assert child.stdin is not None
            child.stdin.close()
        for child in running[killed:]:
            assert child.wait(60) == 0


def tell(running: list[subprocess.Popen[str]], name: str) -> None:
    """Have the same keys submitted in each process."""
    for child in running:
        assert child.stdin is not None
        child.stdin.write(f"{name}\n")
        child.stdin.flush()


def answers(running: list[subprocess.Popen[str]]) -> list[list[str]]:
    """What they came to in each process."""
    return [json.loads(child.stdout.readline()) for child in running if child.stdout is not None]


def emulator(latency: float = 0.0) -> contextlib.AbstractContextManager[Emulator]:
    return Emulator.in_thread(
        clock="real", limit=1_000_000, credits=1_000_000, duration=3600, latency=latency
    )


LEASE = "CREATE OR REPLACE FUNCTION kie4o.lease() RETURNS interval LANGUAGE sql AS $$ SELECT interval '{}' $$"


@pytest.mark.parametrize("rounds", [2, pytest.param(ROUNDS, marks=pytest.mark.sweep)])
async def test_a_process_is_killed(rounds: int) -> None:
    """In the middle of its submits. The others take over what it had not sent; what it may have sent is
    unknown (13 of 400 keys in 20 rounds), unless it saved a task; nothing is paid twice."""
    url, keys = postgres.shared_url(), 20
    async with opened(url) as database:
        await migrate(database)
        await database.rows(LEASE.format("2 s"))
        for number in range(rounds):
            with emulator(latency=0.05) as kie, processes(4, keys, kie, url=url, killed=1) as running:
                tell(running, f"{number}")
                await asyncio.sleep(0.02 + 0.3 * number / rounds)
                running[0].kill()
                outcomes = await asyncio.to_thread(answers, running[1:])
                assert len({tuple(each) for each in outcomes}) == 1
                prompts = Counter(submit.request["prompt"] for submit in kie.submits)
                assert set(prompts.values()) == {1}
                unknown = outcomes[0].count("SubmissionUnknownError")
                assert len(set(outcomes[0]) & set(kie.tasks)) == keys - unknown


@pytest.mark.parametrize(
    ("count", "keys", "rounds"),
    [(4, 10, 2), pytest.param(16, 50, ROUNDS, marks=pytest.mark.sweep)],
    ids=["4x10", "16x50"],
)
def test_the_same_keys_in_many_processes_are_paid_once(count: int, keys: int, rounds: int) -> None:
    """At the same moments; each process gets the same tasks."""
    with emulator() as kie, processes(count, keys, kie) as running:
        for number in range(rounds):
            tell(running, f"{number}")
            outcomes = answers(running)
            assert len({tuple(tasks) for tasks in outcomes}) == 1
            assert len(set(outcomes[0])) == keys
        prompts = Counter(submit.request["prompt"] for submit in kie.submits)
        assert len(prompts) == rounds * keys
        assert set(prompts.values()) == {1}
        assert kie.paid == rounds * keys


def test_control_without_a_hold_keys_are_paid_again() -> None:
    with emulator() as kie, processes(4, 10, kie, "control") as running:
        tell(running, "0")
        answers(running)
        assert kie.paid > 10
