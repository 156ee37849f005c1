"""What the suite measures, as steps of one process or one round each, so that clients take turns.

A measure plans its steps, collects their figures and sums them up at the end. A failure of another
project's client is noted in the results and does not end the run; a failure of kie4o or of the bare loop
is an error.
"""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from . import imports
from .clients import CLIENTS, OPPONENTS, OURS, TUNED
from .jobs import Jobs, batch, latency, makespan, stores, transfers
from .plan import Plan, Step
from .processes import ROOT, ChildError, Server, answer_of, ask, environment, set_server
from .turns import FEW, MANY, Took, figures, spread

IN_FLIGHT = (4, 20, 100)
Seconds = list[tuple[float, int]]  # CPU time used in each second, and the looks in it


class Cpu:
    """CPU per task and per look against the bare loop, and that of kie4o against the leanest others."""

    def __init__(self, base: Callable[[Server], str], plan: Plan) -> None:
        self._plan = plan
        self._base = base(plan.server)
        self._took: dict[tuple[int, str, str], Took] = {}

    def steps(self) -> Iterator[Step]:
        quick, tls = self._plan.quick, self._base.startswith("https")
        if not self._base:
            self._plan.skipped["tls"] = "no certificate can be made: trustme is not installed"
            return
        some = IN_FLIGHT[1:2] if quick or tls else IN_FLIGHT
        for number in range(1 if quick else 2):
            for in_flight in some:
                for name in self._plan.ours():
                    # The bare loop against itself is the control.
                    yield self._step(name, "bare", in_flight, number, 8.0 if quick else 10.0)
        for in_flight in some:
            for name in [TUNED] if tls else [TUNED, *self._plan.peers()]:
                if self._plan.has(name) and (in_flight == 20 or not CLIENTS[name].variant):
                    yield self._step(name, "bare", in_flight, 0, 1.0 if quick else 3.0)
        for in_flight in some:
            for other in OPPONENTS[:1] if tls else OPPONENTS:
                if self._plan.has("kie4o") and self._plan.has(other):
                    seconds = 10.0 if other == TUNED else 4.0
                    yield self._step("kie4o", other, in_flight, 0, 0.4 * seconds if quick else seconds)

    def _step(self, name: str, other: str, in_flight: int, number: int, seconds: float) -> Step:
        who = CLIENTS[name].label
        if other != "bare":
            who += f" against {CLIENTS[other].label}"
        owner = name if other == "bare" else other
        wire = "https" if self._base.startswith("https") else "http"
        return Step(
            f"CPU, {wire}: {who}, {in_flight} in flight, round {number + 1}",
            owner,
            seconds + (1.5 if owner in OURS else 4.0),
            lambda: self._measure(name, other, in_flight, seconds),
        )

    def _measure(self, name: str, other: str, in_flight: int, seconds: float) -> None:
        # Looks of other clients are measured at 20 only, since some need seconds for one slice.
        looks = name in OURS or (in_flight == 20 and not self._plan.quick)
        words: list[object] = ["--in-flight", in_flight, "--seconds", seconds]
        words += [] if looks else ["--no-looks"]
        words += [] if not self._plan.quick else ["--least", 2]
        found = ask("turns", name, other, self._base, *words, settings=self._plan.server.trusting)
        merged = self._took.setdefault((in_flight, name, other), {FEW: [], MANY: []})
        for kind, pairs in merged.items():
            pairs += [(a, b) for a, b in found[str(kind)]]

    def results(self) -> dict[str, Any]:
        """By tasks in flight and client: ratios to the bare loop, and under `against` to other clients."""
        found: dict[str, Any] = {}
        for (in_flight, name, other), took in self._took.items():
            place = found.setdefault(str(in_flight), {}).setdefault(name, {})
            if other != "bare":
                place = place.setdefault("against", {}).setdefault(other, {})
            place |= figures(took)
        return found


class Memory:
    """KiB per waiting task, at 1,000 and 10,000 tasks."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._kib: dict[str, dict[str, list[float]]] = {}

    def steps(self) -> Iterator[Step]:
        quick = self._plan.quick
        if not Path("/proc/self/smaps_rollup").exists():
            self._plan.skipped["memory"] = "only Linux reports it exactly"
            return
        for number in range(1 if quick else 2):
            for name in [*self._plan.ours(), *self._plan.peers()]:
                # Some other clients need half a minute for ten thousand submits.
                whole = name in OURS or (number == 0 and not CLIENTS[name].variant)
                yield self._step(name, number, "100,1000,10000" if whole and not quick else "100,1000")

    def _step(self, name: str, number: int, marks: str) -> Step:
        guess = 3.5 if not marks.endswith("10000") else 8.0 if name in OURS else 22.0
        return Step(
            f"memory: {CLIENTS[name].label}, up to {int(marks.rpartition(',')[2]):,}, round {number + 1}",
            name,
            guess,
            lambda: self._measure(name, marks),
        )

    def _measure(self, name: str, marks: str) -> None:
        found = ask("memory", "hold", name, self._plan.base, "--marks", marks)
        for mark, kib in found["kib"].items():
            self._kib.setdefault(name, {}).setdefault(mark, []).append(kib)

    def results(self) -> dict[str, Any]:
        return {
            name: {
                mark: {
                    "median": statistics.median(values),
                    "low": min(values),
                    "high": max(values),
                    "n": len(values),
                }
                for mark, values in marks.items()
            }
            for name, marks in self._kib.items()
        }


class Crowd:
    """CPU of a look among many waiting tasks, relative to one among few.

    Two processes run at the same time and at the same rate of looks, each with its own server, which counts
    them. The rate affects the ratio: the rarer looks are, the colder the caches, and the more it costs that
    the task is one of many. With the same code the ratio was 1.4 at 200 looks per second, 1.3 at 400 and
    1.2 at 600, so do not change the rate to meet a goal.
    """

    FEW = 100
    PER_SECOND = 400

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._many, self._seconds = (2_000, 6) if plan.quick else (10_000, 12)
        self._found: dict[str, tuple[int, Seconds, Seconds]] = {}

    def steps(self) -> Iterator[Step]:
        ours = self._plan.ours()
        yield from (self._step(name, name, self._many) for name in ours[: 1 if self._plan.quick else None])
        if not self._plan.quick:
            yield from (self._step(name, name, self._many) for name in ours[:1])  # a second time
        yield from (self._step("control", name, self.FEW) for name in ours[:1])

    def _step(self, key: str, name: str, many: int) -> Step:
        return Step(
            f"crowd: {CLIENTS[name].label}, {many:,} waiting and {self.FEW} waiting",
            name,
            many / self.PER_SECOND + self._seconds + 4.0,
            lambda: self._measure(key, name, many),
        )

    def _measure(self, key: str, name: str, waiting: int) -> None:
        with Server() as here, Server() as there:
            both = [self._child(name, here.http, waiting), self._child(name, there.http, self.FEW)]
            for child in both:
                assert child.stdout is not None
                child.stdout.readline()  # "ready"
            answers = []
            for child in both:  # start both
                assert child.stdin is not None
                child.stdin.write("\n")
                child.stdin.flush()
            for child in both:
                printed, complained = child.communicate(timeout=60)
                answers.append(answer_of(child.returncode, printed, complained))
        many, few = (list(zip(each["took"], each["looks"], strict=True)) for each in answers)
        _, all_many, all_few = self._found.setdefault(key, (waiting, [], []))
        all_many += many
        all_few += few

    def _child(self, name: str, base: str, waiting: int) -> subprocess.Popen[str]:
        words = ["look", name, base, "--waiting", waiting, "--per-second", self.PER_SECOND]
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.memory", *map(str, words), "--seconds", str(self._seconds)],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def results(self) -> dict[str, Any]:
        return {key: self._result(*found) for key, found in self._found.items()}

    def _result(self, waiting: int, many: Seconds, few: Seconds) -> dict[str, Any]:
        # Sums over all seconds, not medians: a rare, long garbage collection has to count.
        draws = spread(_ratios_of_sums(many, few))
        per_look = [sum(t for t, _ in each) / sum(n for _, n in each) for each in (many, few)]
        return {
            "waiting": [waiting, self.FEW],
            "per_second": self.PER_SECOND,
            "ratio": per_look[0] / per_look[1],
            "low": draws.low,
            "high": draws.high,
            "us": [1e6 * each for each in per_look],
            "looks_per_second": [sum(n for _, n in each) / len(each) for each in (many, few)],
        }


def _ratios_of_sums(many: Seconds, few: Seconds, groups: int = 3) -> list[float]:
    """The ratios of CPU per look, each over a few consecutive seconds."""
    found = []
    for start in range(0, len(many) - groups + 1, groups):
        a, b = many[start : start + groups], few[start : start + groups]
        cost_a, cost_b = (sum(t for t, _ in each) / max(1, sum(n for _, n in each)) for each in (a, b))
        found.append(cost_a / cost_b)
    return found


class Imports:
    """CPU time of imports in milliseconds, beyond bare Python."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        names = [*plan.ours(), *plan.peers()]
        self._programs = imports.codes(names, plan.base)
        self._rounds: list[dict[str, float]] = []

    def steps(self) -> Iterator[Step]:
        for number in range(4 if self._plan.quick else 9):
            warm = ", to warm the caches" * (number == 0)
            yield Step(f"imports: round {number}{warm}", "", 0.4 * len(self._programs), self._measure)

    def _measure(self) -> None:
        set_server(self._plan.base, looks=1)
        found = {}
        for name, code in list(self._programs.items()):
            try:
                found[name] = imports.once(code)
            except ChildError as error:
                del self._programs[name]
                self._plan.skipped[f"import of {name}"] = str(error)
        self._rounds.append(found)

    def results(self) -> dict[str, Any]:
        rounds = self._rounds[1:]
        found: dict[str, Any] = {}
        for name in self._programs:
            if name == imports.NOTHING:
                continue
            net = [each[name] - each[imports.NOTHING] for each in rounds]
            parts = [each[imports.PARTS] - each[imports.NOTHING] for each in rounds]
            ratio = statistics.median(a / b for a, b in zip(net, parts, strict=True))
            found[name] = attrs.asdict(spread(net)) | {"ratio": ratio}
        return found


class Pacing:
    """Lateness and number of looks, simulated by `pacing` if that module exists."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._found: dict[str, Any] = {}

    def steps(self) -> Iterator[Step]:
        if (Path(__file__).parent / "pacing.py").exists():
            yield Step("pacing: simulated", "", 5.0 if self._plan.quick else 30.0, self._measure)

    def _measure(self) -> None:
        pacing = importlib.import_module("benchmarks.pacing")
        self._found = json.loads(json.dumps(pacing.results(self._plan.quick)))

    def results(self) -> dict[str, Any]:
        return self._found


Measure = Cpu | Memory | Crowd | Imports | Pacing | Jobs
MEASURES: dict[str, Callable[[Plan], Measure]] = {
    "cpu": partial(Cpu, lambda server: server.http),
    "tls": partial(Cpu, lambda server: server.tls),
    "memory": Memory,
    "crowd": Crowd,
    "imports": Imports,
    "makespan": partial(Jobs, makespan),
    "batch": partial(Jobs, batch),
    "stores": partial(Jobs, stores),
    "latency": partial(Jobs, latency),
    "transfers": partial(Jobs, transfers),
    "pacing": Pacing,
}
