"""Plays many worlds, or shows one: `nox -s simulate -- --seeds 100000`."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from simulation.laws import broken
from simulation.loop import START, WorldLoop
from simulation.mutants import MUTANTS, OF_NAME, Mutant, put_back
from simulation.plan import Plan, plan_of
from simulation.play import World, play
from simulation.shrink import shrunk

CHUNK = 100  # worlds that a process plays before it reports
FOLDER = Path("build/simulation")  # of the plans that have broken a law
Failure = tuple[int, str, str]  # seed, law, how


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many worlds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first world that fails")
    parser.add_argument("--report", type=Path, help="a file for the figures, as JSON")
    parser.add_argument("--show", metavar="SEED|PLAN", help="play one world, and show each step")
    parser.add_argument("--stop-at", type=int, metavar="STEP", help="with --show: start the debugger there")
    parser.add_argument(
        "--mutants", nargs="*", metavar="NAME", help="after how many seeds each mutant is seen"
    )
    return parser.parse_args()


def main() -> int:
    options = arguments()
    gc.collect()
    gc.freeze()
    if options.show:
        return show(options.show, options.stop_at)
    if options.mutants is not None:
        return try_mutants([OF_NAME[name] for name in options.mutants] or MUTANTS, options)
    return search(options)


# -- many worlds -------------------------------------------------------------------------------------


def search(options: argparse.Namespace) -> int:
    began, last, totals, failures = time.perf_counter(), 0.0, Counter[str](), list[Failure]()
    for counts, failed in chunks(options):
        totals += counts
        failures += failed
        took = time.perf_counter() - began
        if took > last + 5 or failed:
            last = took
            print(f"{totals['worlds']} worlds, {totals['worlds'] / took:.0f} a second", flush=True)
        if failures and not options.keep_going:
            break
    took = time.perf_counter() - began
    numbers = ", ".join(f"{count} {what}" for what, count in totals.items())
    print(f"seeds {options.first} to {options.first + totals['worlds'] - 1} in {took:.1f} s: {numbers}")
    print(f"{totals['worlds'] / took:.1f} worlds a second in {options.jobs} processes")
    if options.report is not None:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        figures = {"seconds": round(took), "jobs": options.jobs, "failed": len(failures), "counts": totals}
        options.report.write_text(json.dumps(figures))
    for seed, law, how in failures:
        print(f"seed {seed} breaks {law!r}: {how}")
    if failures:
        seed, law, _ = failures[0]
        report(seed, law)
    return bool(failures)


def chunks(options: argparse.Namespace) -> Iterator[tuple[Counter[str], list[Failure]]]:
    """The counts and failures of each `CHUNK` of worlds, in the order of the seeds."""
    seeds = range(options.first, options.first + options.seeds)
    parts = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    if options.jobs == 1:
        yield from map(play_chunk, parts)
        return
    with ProcessPoolExecutor(options.jobs) as processes:
        try:
            yield from processes.map(play_chunk, parts)
        finally:
            processes.shutdown(cancel_futures=True)


def play_chunk(seeds: range) -> tuple[Counter[str], list[Failure]]:
    counts, failures = Counter[str](), list[Failure]()
    logging.disable(logging.CRITICAL)
    # The collection after each crash then walks neither the modules nor what anyio keeps of killed tasks.
    gc.freeze()
    for seed in seeds:
        world = play(plan_of(seed))
        counts += counts_of(world)
        failures += [(seed, law, how) for law, how in broken(world)]
    gc.collect()
    return counts, failures


def counts_of(world: World) -> Counter[str]:
    return Counter(
        worlds=1,
        lives=len(world.runs),
        kills=sum(life.end == "kill" for life in world.plan.lives),
        calls=len(world.outcomes),
        submits=len(world.kie.posts),
        polls=sum(len(task.looks) for task in world.kie.tasks.values()),
        callbacks=len(world.kie.callbacks),
        turns=world.loop.turn,
    )


def report(seed: int, law: str) -> None:
    """Shrink the plan, and say how to see it."""
    print(f"shrinking the plan of seed {seed} ...", flush=True)
    plan = shrunk(plan_of(seed), law)
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / f"{seed}.json"
    file.write_text(plan.to_json())
    print(plan.to_json())
    print(f"step by step: nox -s simulate -- --show {file}")
    print(f"the whole:    nox -s simulate -- --show {seed}")


# -- mutants -----------------------------------------------------------------------------------------


def try_mutants(mutants: list[Mutant], options: argparse.Namespace) -> int:
    logging.disable(logging.CRITICAL)
    unseen = 0
    for mutant in mutants:
        seed, law = seen_after(mutant, range(options.first, options.first + options.seeds))
        unseen += seed is None
        words = "not seen" if seed is None else f"seen after {seed - options.first + 1} seeds, by {law!r}"
        print(f"{mutant.name}: {words}", flush=True)
    return bool(unseen)


def seen_after(mutant: Mutant, seeds: range) -> tuple[int | None, str]:
    with put_back(mutant):
        for seed in seeds:
            for law, _ in broken(play(plan_of(seed))):
                return seed, law
    return None, ""


# -- one world ---------------------------------------------------------------------------------------


def show(which: str, stop_at: int | None) -> int:
    plan = plan_of(int(which)) if which.isdigit() else Plan.from_json(Path(which).read_text())
    print(plan.to_json())
    steps = 0

    def step(loop: WorldLoop, who: str, what: object) -> None:
        nonlocal steps
        steps += 1
        print(f"{steps:5} turn {loop.turn:6} {loop.now - START:10.4f} s  {who}: {what}")
        if steps == stop_at:
            breakpoint()

    logging.disable(logging.CRITICAL)
    world = play(plan, step)
    for entry in world.entries:
        print(f"in the store: {entry.key} ({entry.request.prompt}) {entry.state.value} {entry.task_id}")
    failures = broken(world)
    for law, how in failures:
        print(f"BROKEN {law}: {how}")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
