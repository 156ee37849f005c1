"""A thousand worlds, in which every law must hold, and mutants of kie4o, which worlds must show."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextvars import Context

import attrs
import pytest
from canary import WATCH
from clocks import KIND
from proving import tried

from simulation.laws import broken
from simulation.loop import Life, WorldLoop
from simulation.mutants import MUTANTS, Mutant, put_back
from simulation.plan import Plan, plan_of
from simulation.play import play
from simulation.shrink import shrunk

pytestmark = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.skipif(KIND != "asyncio", reason="no other loop has virtual time"),
    pytest.mark.posix("bytes on loopback that are there at once, and SO_REUSEPORT"),
]

WORLDS, CHUNK = 1000, 50


@pytest.fixture
def quiet() -> Iterator[None]:
    """Log lines are a third of the time of a world."""
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("first", range(0, WORLDS, CHUNK))
def test_every_law_holds(first: int) -> None:
    """In each of these worlds."""
    for seed in range(first, first + CHUNK):
        tried()
        assert broken(play(plan_of(seed))) == [], f"nox -s simulate -- --show {seed}"


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_control_a_mutant_is_seen(mutant: Mutant) -> None:
    """By a law, in one of the worlds listed: as a rule the last of them, which is played first."""
    with put_back(mutant):
        assert any(broken(play(plan_of(seed))) for seed in reversed(range(mutant.seeds)))
    WATCH.leaks()  # on purpose, if that is the fault


def steps_of(plan: Plan) -> list[tuple[int, float, str]]:
    steps = []
    play(plan, lambda loop, who, what: steps.append((loop.turn, loop.now, f"{who} {type(what)}")))
    return steps


@pytest.mark.parametrize("seed", range(20))
def test_a_world_is_the_same_each_time(seed: int) -> None:
    """Turn by turn, with its log lines, except with a real thread.

    On a busy machine the kernel may hand bytes over a turn later: of five plays two have to be the same.
    """
    plan = plan_of(seed)
    if plan.store == "thread":
        plan = attrs.evolve(plan, store="sqlite")
    played = [steps_of(plan)]
    while (steps := steps_of(plan)) not in played:  # the first may have been the one that differs
        played.append(steps)
        assert len(played) < 5, seed


def test_a_plan_is_shrunk() -> None:
    """To a few calls that still show the fault, and it survives being written down."""
    mutant = MUTANTS[0]
    with put_back(mutant):
        seed = next(seed for seed in range(MUTANTS[0].seeds) if broken(play(plan_of(seed))))
        [law, *_] = [law for law, _ in broken(play(plan_of(seed)))]
        plan = shrunk(plan_of(seed), law, plays=150)
        assert any(name == law for name, _ in broken(play(plan)))
    assert len(plan.calls) <= 2 < len(plan_of(seed).calls)
    assert Plan.from_json(plan.to_json()) == plan


def test_a_life_that_is_killed_runs_nothing_more() -> None:
    """No finally and no timer, in its tasks and in tasks with an empty context."""
    loop = WorldLoop(limit=100)
    happened: list[str] = []

    async def work(name: str) -> None:
        try:
            await asyncio.sleep(2)
        finally:
            happened.append(name)

    async def program() -> None:
        loop.create_task(work("empty"), context=Context())
        loop.call_later(2, happened.append, "timer")
        await work("its own")

    async def world() -> None:
        life = Life(0, mortal=True)
        loop.create_task(program(), context=life.context.copy())
        other = asyncio.create_task(work("another's"))
        await asyncio.sleep(1)
        loop.kill(life)
        await asyncio.sleep(5)
        assert other.done()
        for task in life.tasks:
            task.get_coro().close()

    loop.set_exception_handler(lambda loop, context: None)
    loop.run_until_complete(world())
    loop.close()
    assert happened == ["another's", "its own", "empty"]  # the last two as they are closed
