"""The benchmark suite: what kie4o costs, compared with a hand-written loop, other SDKs and itself.

    python -m benchmarks [--quick] [--only cpu,memory] [--clients kie4o,bare,httpx] [--readme]

All clients take turns against a loopback server in its own process. Figures are ratios within one run, most
of them to the bare aiohttp loop. A complete run writes benchmarks/results/, the tables in
docs/performance.md and three figures in the README, and exits with status 1 if a goal is missed. `--readme`
writes them from existing results, without measuring.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from . import picture, report
from .clients import CLIENTS, OURS
from .measures import MEASURES, Measure
from .plan import Plan, Step
from .probe import reason_to_skip
from .processes import ROOT, ChildError, Server, set_server

RESULTS = ROOT / "benchmarks" / "results"
_UNDERNEATH = ("attrs", "cattrs", "backoff", "yarl", "multidict", "uvloop")


def say(words: str) -> None:
    print(time.strftime("%H:%M:%S"), words, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """What the figures depend on, without anything that identifies the machine."""
    found: dict[str, Any] = {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        found["cpu"] = names[0].partition(":")[2].strip() if names else ""
    if hasattr(os, "sysconf"):
        found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return found


def packages() -> dict[str, str]:
    found = {}
    for name in sorted({entry.package for entry in CLIENTS.values()} | {*_UNDERNEATH}):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def probe(plan: Plan) -> None:
    """Skip the clients that cannot run here, with their reasons."""
    for name in plan.clients:
        set_server(plan.base, looks=4)
        reason = reason_to_skip(name, plan.base)
        say(f"{CLIENTS[name].label}: {f'skipped: {reason}' if reason else 'runs'}")
        if reason and name in OURS:
            raise ChildError(f"{name} cannot run: {reason}")
        if reason:
            plan.skipped[name] = reason


def run(plan: Plan) -> dict[str, Any]:
    probe(plan)
    measures: dict[str, Measure] = {name: MEASURES[name](plan) for name in plan.only}
    steps: list[Step] = [step for measure in measures.values() for step in measure.steps()]
    total = sum(step.seconds for step in steps)
    began, done = time.monotonic(), 0.0
    for number, step in enumerate(steps, start=1):
        pace = (time.monotonic() - began) / done if done > 0.1 * total else 1.0
        left = (total - done) * pace / 60
        done += step.seconds
        if step.owner in plan.skipped:
            continue
        say(f"{number} of {len(steps)}, about {left:.1f} min left: {step.name}")
        try:
            step.run()
        except ChildError as error:
            if step.owner in OURS or not step.owner:
                raise
            plan.skipped[step.owner] = str(error)
            say(f"{CLIENTS[step.owner].label}: skipped from now on: {error}")
    minutes = (time.monotonic() - began) / 60
    say(f"measured in {minutes:.1f} min")
    return {"minutes": minutes} | {name: measure.results() for name, measure in measures.items()}


def write(results: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "results.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    (RESULTS / "figures.svg").write_text(picture.svg(results), "utf-8")
    report.rewrite(ROOT / "README.md", results)
    say(f"wrote benchmarks/results/results.json, benchmarks/results/figures.svg, {report.PAGE} and README.md")


def _names(words: str, known: Sequence[str]) -> list[str]:
    names = words.split(",")
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"invalid name {name!r}: expected one of {', '.join(known)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="measure less, and write nothing")
    parser.add_argument("--only", type=lambda words: _names(words, list(MEASURES)), help=",".join(MEASURES))
    parser.add_argument("--clients", type=lambda words: _names(words, list(CLIENTS)), help=",".join(CLIENTS))
    parser.add_argument("--readme", action="store_true", help="write from the stored results")
    words = parser.parse_args()
    if words.readme:
        write(json.loads((RESULTS / "results.json").read_text("utf-8")))
        return
    with Server() as server:
        # The bare loop is the baseline of all ratios.
        clients = list(dict.fromkeys([*(words.clients or CLIENTS), "bare"]))
        plan = Plan(words.quick, server, clients, words.only or list(MEASURES), {})
        results: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine(),
            "packages": packages(),
        }
        results |= run(plan)
    results["skipped"] = plan.skipped
    results["goals"] = report.judged(results)
    print(report.tables(results))
    if words.quick or words.only or words.clients:
        say("nothing was written, because the run was not complete")
        return
    write(results)
    sys.exit(any(goal["verdict"] == "MISSED" for goal in results["goals"]))


if __name__ == "__main__":
    main()
