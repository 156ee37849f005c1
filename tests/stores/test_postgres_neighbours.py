"""Processes that wait on one database: one polls each task, and callbacks and ends reach the others.

Each is a real process with a client. The control is one that knows nothing of the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import postgres
import pytest
from paths import IMPORT_ROOT
from portable import PATIENCE, environment

from kie4o.emulator import Emulator
from kie4o.stores.postgres.database import Database

pytestmark = pytest.mark.once
WEBHOOK_KEY = "a webhook key"
SUPPORT = Path(__file__).parent.parent / "support"


class Child:
    """One process, whose standard streams are lines of JSON."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process = process
        self.callback_url = f"http://127.0.0.1:{port}/{{ref}}"

    def tell(self, *words: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")

    async def next(self, seconds: float = PATIENCE) -> tuple[Any, float]:
        """What came of something, and when."""
        assert self._process.stdout is not None
        async with asyncio.timeout(seconds):
            line = await self._process.stdout.readline()
        _, done, at = json.loads(line)
        return done, at

    async def do(self, *words: Any) -> Any:
        self.tell(*words)
        return (await self.next())[0]

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


Start = Callable[..., Awaitable[Child]]


@pytest.fixture
async def kie() -> AsyncIterator[Emulator]:
    async with Emulator(clock="real", duration=2.0, limit=1000, webhook_key=WEBHOOK_KEY) as kie:
        yield kie


@pytest.fixture
async def url() -> str:
    return postgres.shared_url()


@pytest.fixture
async def start(kie: Emulator, url: str) -> AsyncIterator[Start]:
    """Starts one more process on the same database: alone as a control, or deaf to notifications."""
    async with contextlib.AsyncExitStack() as stack:

        async def start_one(*, alone: bool = False, deaf: bool = False) -> Child:
            elsewhere = url.partition("?")[0].replace("/postgres", "/template1")
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(SUPPORT / "neighbour_child.py"),
                f"{url}&listen={elsewhere}" if deaf else url,
                kie.url,
                *(["control"] if alone else []),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=environment(PYTHONPATH=f"{IMPORT_ROOT}{os.pathsep}{SUPPORT}"),
            )
            assert process.stdout is not None
            child = Child(process, 0)
            stack.push_async_callback(child.kill)
            async with asyncio.timeout(PATIENCE):
                child.callback_url = f"http://127.0.0.1:{int(await process.stdout.readline())}/{{ref}}"
            return child

        yield start_one


async def delays(kie: Emulator, waiter: Child, receiver: Child, name: str, count: int) -> list[float]:
    """Seconds from each callback to the end of the wait for its task, in another process."""
    for number in range(count):
        waiter.tell("generate", f"{name} {number}", receiver.callback_url)
    ended = {}
    for _ in range(count):
        (task_id, _source), at = await waiter.next()
        ended[task_id] = at
    called = {record.task_id: record.at for record in kie.callbacks}
    return [at - called[task_id] for task_id, at in ended.items()]


# -- callbacks and ends ------------------------------------------------------------------------------


@pytest.mark.paced
async def test_a_callback_at_one_process_wakes_the_waiter_in_another(kie: Emulator, start: Start) -> None:
    """At once; within a second or two where no notifications arrive. The control only polls, and rarely since
    it expects a callback."""
    receiver, waiter, deaf = await start(), await start(), await start(deaf=True)
    alone = await start(alone=True)
    kie.duration = 0.7
    heard = [
        delay for number in range(8) for delay in await delays(kie, waiter, receiver, f"heard {number}", 3)
    ]
    heard = heard[3:]  # the first of all are slow: both processes connect, and import what they need
    asked = await delays(kie, deaf, receiver, "asked", 6)
    print("callback to waiter", sorted(heard), "without notifications", sorted(asked))
    assert statistics.median(heard) < 0.2
    assert max(asked) < 4
    alone.tell("generate", "alone", receiver.callback_url)
    with pytest.raises(TimeoutError):
        await alone.next(6)


@pytest.mark.parametrize("deaf", [False, True], ids=["heard", "asked"])
async def test_a_callback_elsewhere_names_the_task_of_a_lost_answer(
    kie: Emulator, start: Start, deaf: bool
) -> None:
    """The inbox is a table. The control would look into it every 30 s."""
    receiver, waiter = await start(), await start(deaf=deaf)
    kie.fault("submit", cut=0, times=1)
    waiter.tell("generate", "lost", receiver.callback_url)
    (task_id, _), at = await waiter.next(20)
    [record] = [record for record in kie.callbacks if record.task_id == task_id]
    print("lost answer", at - record.at)
    assert at - record.at < (5 if deaf else 2)
    assert len(kie.submits) == 1


# -- polls -------------------------------------------------------------------------------------------


async def submitted(child: Child, name: str, count: int = 6) -> list[str]:
    return [await child.do("submit", f"{name} {number}") for number in range(count)]


def last_end(kie: Emulator, task_ids: list[str]) -> float:
    return max(kie.tasks[task_id].end or 0.0 for task_id in task_ids)


async def polls(kie: Emulator, waiters: list[Child], name: str) -> tuple[int, float]:
    """Polls of six tasks that all these processes wait for, and the seconds from the last end to the last
    answer."""
    task_ids = await submitted(waiters[0], name)
    for waiter in waiters:
        waiter.tell("wait", task_ids)
    late = 0.0
    for waiter in waiters:
        done, at = await waiter.next()
        assert [task_id for task_id, _ in done] == task_ids
        late = max(late, at - last_end(kie, task_ids))
    return sum(len(kie.looks(task_id)) for task_id in task_ids), late


@pytest.mark.sweep
@pytest.mark.proof
async def test_many_processes_poll_a_task_no_more_often_than_one(kie: Emulator, start: Start) -> None:
    """The others hear of its end, or ask for it. The control polls in each process."""
    kie.duration = 6.0
    four = [await start(), await start(), await start(), await start(deaf=True)]
    alone = [await start(alone=True) for _ in range(4)]
    one, _ = await polls(kie, four[:1], "one")
    together, late = await polls(kie, four, "together")
    each, _ = await polls(kie, alone, "each")
    print("polls of one process", one, "of four", together, "late", late, "control", each)
    assert together <= 1.2 * one
    assert late < 7
    assert each > 3 * one


async def test_followers_hear_of_the_end_only(kie: Emulator, start: Start, url: str) -> None:
    """`on_update` and `updates` say what their own process polls, and the outcome. Control: in the process
    that polls they say more."""
    kie.duration = 7.0
    leader, follower, deaf = await start(), await start(), await start(deaf=True)
    async with postgres.opened(url) as database:
        [task_id] = await submitted(follower, "updates", 1)
        leader.tell("updates", task_id, 60)
        await until(database, "SELECT count(*) FROM kie4o.watch", 1)
        for child in (follower, deaf):
            child.tell("updates", task_id, 60)
        for child in (follower, deaf):
            assert await child.next() == ([["succeeded"], ["succeeded"], "succeeded"], ANY)
        (heard, seen, _), _ = await leader.next()
        for said in (heard, seen):  # the wait, which looks into the store first, may miss the first poll
            assert said == ["running"] * (len(said) - 1) + ["succeeded"]
            assert len(said) > 1


async def test_a_follower_polls_once_before_its_deadline(kie: Emulator, start: Start, url: str) -> None:
    """So that no wait times out without a look."""
    kie.duration = 60.0
    leader, follower = await start(), await start()
    async with postgres.opened(url) as database:
        [task_id] = await submitted(leader, "deadline", 1)
        leader.tell("wait", [task_id])
        await until(database, "SELECT count(*) FROM kie4o.watch", 1)
        (heard, _, ended) = await follower.do("updates", task_id, 3)
        assert (heard, ended) == (["running"], "TaskTimeoutError")


async def test_a_process_that_polls_and_dies_is_replaced(kie: Emulator, start: Start, url: str) -> None:
    """By one of those that wait for the same tasks, once its lease has run out."""
    kie.duration = 8.0
    leader, follower, deaf = await start(), await start(), await start(deaf=True)
    async with postgres.opened(url) as database:
        await database.rows(
            "CREATE OR REPLACE FUNCTION kie4o.lease() RETURNS interval LANGUAGE sql IMMUTABLE "
            "AS $$ SELECT interval '2 s' $$"
        )
        long = "SELECT count(*) FROM kie4o.process WHERE expires_at > clock_timestamp() + interval '3 s'"
        await until(database, long, 0)  # all have renewed their leases
        task_ids = await submitted(follower, "t", 3)
        leader.tell("wait", task_ids)
        holders = "SELECT count(*) FROM kie4o.watch WHERE holder IS NOT NULL AND followed"
        await until(database, "SELECT count(*) FROM kie4o.watch", 3)
        for waiter in (follower, deaf):
            waiter.tell("wait", task_ids)
        await until(database, holders, 3)
        await leader.kill()
        for waiter in (follower, deaf):
            done, at = await waiter.next()
            assert [task_id for task_id, _ in done] == task_ids
            assert at - last_end(kie, task_ids) < 8
        await until(database, "SELECT count(*) FROM kie4o.watch WHERE holder IS NOT NULL", 0)


async def test_status_checks_of_all_processes_take_turns(kie: Emulator, start: Start) -> None:
    """Kie allows three a second for each task. The control breaks that."""
    kie.duration = 60.0
    looks = {}
    for alone in (False, True):
        children = [await start(alone=alone) for _ in range(3)]
        [task_id] = await submitted(children[0], f"{alone}", 1)
        for _ in range(2):
            for child in children:
                child.tell("details", task_id, 2)
            for child in children:
                await child.next()
        looks[alone] = sorted(look.at for look in kie.looks(task_id))
    gaps = [after - before for before, after in itertools.pairwise(looks[False])]
    print("gaps", gaps)
    assert len(gaps) >= 5
    assert min(gaps) > 0.3
    assert min(after - before for before, after in itertools.pairwise(looks[True])) < 0.3


async def until(database: Database, count: str, expected: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while (await database.rows(count))[0][0] != expected:
            await asyncio.sleep(0.02)
