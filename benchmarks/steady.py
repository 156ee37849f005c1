"""One client at a steady rate, for half an hour: does anything grow, and is every id that came stored?

    python -m benchmarks.steady [--minutes 30] [--loop asyncio|uvloop|both] [--rate 50] [--control NAME]

A client with a SQLite file starts so many calls of `generate` a second, as long as fewer than `IN_FLIGHT` are
under way, against an emulator in another process (`faulty`). Five of a hundred answers are a page with status
502, a reset, lost, cut, late or slow; as many tasks fail, and as many callbacks are lost. With `both` half of
the minutes are on asyncio and half on uvloop, each in a process of its own.

What is checked, and the exit status, are those of `soak`: the memory of the process, its descriptors and its
asyncio tasks do not grow in the last half, beside what the calls under way need. Memory has been seen to grow
for the first 20,000 tasks, and to be flat after that. Each figure is taken after a collection of garbage.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import logging
import random
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Collection
from pathlib import Path

from kie4o import AsyncKieClient, KieError, RateLimit
from kie4o.stores.sqlite import SQLiteStore

from .processes import ROOT, environment
from .soak import (
    CONTROLS,
    Account,
    Log,
    Run,
    beat,
    by_line,
    check_closed,
    check_each_minute,
    emulators,
    failing,
    figures,
    loop_factory,
    opened,
    report,
)

HEADROOM = 1.5  # of the limit over the rate, to catch up after a refusal or a pause
WAIT_TIMEOUT = 60.0  # seconds, at most: the end of a task whose callback is lost is found by polls
IN_FLIGHT = 500  # calls; at 50 a second about 300 are, most of which wait for what was lost
SAMPLES = 120  # figures that are taken in a run
DRAINING = 150.0  # seconds in which the last calls have to end
LOOPS = ("asyncio", "uvloop")
# As in `soak`, in the last half. In half an hour these are 22,500 calls on each loop: every second may leave
# a block of memory.
MORE = {"memory": 4.0, "blocks": 10.0, "descriptors": 20.0, "tasks": 40.0}


async def generate(run: Run, client: AsyncKieClient, number: int) -> None:
    """One call, every second one under a key."""
    prompt = f"A lighthouse in a calm, number {number}"
    run.verbs["generate"] += 1
    try:
        await client.generate(prompt, key=prompt if number % 2 else None)
        run.verbs["images"] += 1
    except KieError as error:
        run.errors[type(error).__name__] += 1
    except Exception:
        run.surprise(traceback.format_exc())


async def offer(run: Run, client: AsyncKieClient, calls: set[asyncio.Task[None]], until: float) -> None:
    """Start each call when it is due, and wait for the last ones."""
    began = time.monotonic()
    for number in itertools.count():
        due = began + number / run.arguments.rate
        if due > until:
            break
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        if len(calls) == IN_FLIGHT:
            run.verbs["calls left out"] += 1
            continue
        call = asyncio.create_task(generate(run, client, number), name="steady call")
        calls.add(call)
        call.add_done_callback(calls.discard)
    _, hanging = await asyncio.wait(calls, timeout=DRAINING) if calls else ((), ())
    for call in hanging:
        run.surprise(f"a call had not ended {DRAINING:g} s after the last one: {call.get_stack()}")
        call.cancel()


async def sample(run: Run, calls: Collection[object], until: float) -> None:
    """Take the figures at equal distances while calls are started, without what is garbage."""
    while time.monotonic() < until:
        await asyncio.sleep(run.arguments.minutes * 60 / SAMPLES)
        gc.collect()
        run.samples.append(figures() | {"calls": len(calls)})


async def steady(run: Run, folder: Path) -> None:
    loop, [account] = asyncio.get_running_loop(), run.accounts
    loop.set_exception_handler(lambda loop, context: run.surprise(f"the loop: {context}"))
    until = time.monotonic() + run.arguments.minutes * 60
    store = failing(run, SQLiteStore(folder / "run.db"))
    store.failing = False
    patience = min(WAIT_TIMEOUT, 20 * run.arguments.minutes)  # a third of the run, after which it is steady
    how = {"wait_timeout": patience, "max_in_flight": IN_FLIGHT, "poll": None}
    calls: set[asyncio.Task[None]] = set()
    async with opened(run, account, store, **how) as client:
        besides = [sample(run, calls, until), beat(run, until), check_each_minute(run, account, store)]
        tasks = [asyncio.create_task(each) for each in besides]
        try:
            await asyncio.wait([asyncio.create_task(offer(run, client, calls, until))])
        finally:
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, Exception):
                    run.surprise("".join(traceback.format_exception(outcome)))
    await check_closed(run, account, store)
    left = [task.get_name() for task in asyncio.all_tasks() if "kie4o" in task.get_name()]
    if left:
        run.surprise(f"tasks are left after closing: {left}")


def on_one_loop(arguments: argparse.Namespace) -> bool:
    """Run it in this process; whether everything held."""
    warnings.simplefilter("always")
    logging.captureWarnings(True)
    words = ("--accounts", "1", "--load", "steady")
    with contextlib.ExitStack() as stack:
        url, facts = stack.enter_context(emulators(arguments.seed, *words))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        limit = RateLimit(round(HEADROOM * arguments.rate), per=1.0)
        run = Run(
            arguments,
            random.Random(arguments.seed),
            facts,
            [Account("steady", url)],
            limit=limit,
            more=MORE,
            growth=by_line,
        )
        logging.getLogger().addHandler(Log(run))
        runner = stack.enter_context(asyncio.Runner(loop_factory=loop_factory(arguments.loop)))
        print(f"{arguments.minutes:g} minutes on {type(runner.get_loop()).__module__}", flush=True)
        runner.run(steady(run, Path(folder)))
        return report(run)


def on_both(arguments: argparse.Namespace) -> bool:
    """Half of the time on each loop."""
    words = [
        "--minutes",
        str(arguments.minutes / 2),
        "--rate",
        str(arguments.rate),
        "--seed",
        str(arguments.seed),
    ]
    words += ["--control", arguments.control] if arguments.control else []
    command = [sys.executable, "-m", "benchmarks.steady", *words]
    ends = [subprocess.run([*command, "--loop", loop], cwd=ROOT, env=environment()) for loop in LOOPS]
    return all(end.returncode == 0 for end in ends)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--loop", choices=[*LOOPS, "both"], default="both")
    parser.add_argument("--rate", type=float, default=50.0, help="calls a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--control", choices=CONTROLS, help="break this; the status must be 1")
    arguments = parser.parse_args()
    sys.exit(not (on_both if arguments.loop == "both" else on_one_loop)(arguments))


if __name__ == "__main__":
    main()
