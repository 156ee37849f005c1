"""What the figures say: the goals, the printed tables, docs/performance.md and the figures in the README.

Nothing is measured here. `results` is the content of results.json. A figure that was not measured is left
out everywhere. In the results a poll is called a look, as in the code of kie4o's poller.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from . import imports
from .clients import CLIENTS, LEANEST, OPPONENTS, TUNED
from .jobs import IN_BATCH

Results = dict[str, Any]
Rows = list[list[str]]

Marks = tuple[str, str]

PAGE = "docs/performance.md"
TABLE: Marks = ("<!-- benchmarks -->", "<!-- /benchmarks -->")  # in the page
FIGURES: Marks = ("<!-- figures -->", "<!-- /figures -->")  # in the README
PICTURE = "../benchmarks/results/figures.svg"  # as seen from the page
WORD_OF_KIND = {"task": "task", "look": "poll"}


@attrs.frozen
class Goal:
    """A figure, by its path in the results, and the bounds it must stay within.

    One with `than` is a ratio to that, and a row of the page. Without bounds it is only reported.
    """

    name: str
    path: tuple[str, ...]
    most: float = float("inf")
    least: float = float("-inf")
    than: str = ""

    def figure(self, results: Results) -> float | None:
        found: Any = results
        for name in self.path:
            found = found.get(name) if isinstance(found, dict) else None
        return None if found is None else float(found)

    def verdict(self, figure: float) -> str:
        return "holds" if self.least <= figure <= self.most else "MISSED"

    @property
    def label(self) -> str:
        return f"{self.name}, to {self.than}" if self.than else self.name

    @property
    def bounds(self) -> str:
        if self.most == float("inf"):
            return ""
        if self.least == float("-inf"):
            return f"at most {self.most:g}"
        return f"{self.least:g} to {self.most:g}"


_WIDE, _NARROW = "lognormal 40 s, sigma 0.5", "lognormal 40 s, sigma 0.25"
_SAME, _TWO = "constant 30 s, +-0.5 s", "25 s (3 of 5) or 90 s, sigma 0.1"
_PLAIN = "kie4o exponential, 2 s x1.5 to 5 s"


_BY_HAND, _TUNED = CLIENTS["bare"].label, CLIENTS[TUNED].label
_TLS, _TRIP, _ANY = "tls.20.kie4o", "one round trip", float("inf")

# What users feel, as rows of the page: the path of a figure with dots, and the most that it may be.
FELT = tuple(
    Goal(name, tuple(path.split(".")), most, than=than)
    for name, than, path, most in (
        ("CPU per task over TLS", _BY_HAND, f"{_TLS}.task.median", 1.0),
        ("CPU per task over TLS", _TUNED, f"{_TLS}.against.{TUNED}.task.median", 1.25),
        ("CPU per poll over TLS", _BY_HAND, f"{_TLS}.look.median", 1.0),
        ("CPU per poll over TLS", _TUNED, f"{_TLS}.against.{TUNED}.look.median", 1.25),
        *(
            (f"CPU per item of a batch, {many:,} in flight", f"100 in flight, {store} store", path, 1.15)
            for store in ("memory", "sqlite")
            for many in IN_BATCH
            for path in [f"batch.{store} {many}.ratio.median"]
        ),
        ("CPU per item of a batch, SQLite store", "memory store", "batch.stores.ratio.median", 1.5),
        # Half and a third of what these were while items were searched for twice and rows were packed again.
        ("CPU per item of a finished batch", "sqlite3, by hand", "stores.replay.ratio.median", 14.0),
        ("CPU per entry to open a store", "sqlite3, by hand", "stores.open.ratio.median", 6.4),
        ("a submit among 40 polls/s", _TRIP, "latency.submit.among polls.median", 1.15),
        ("slowest of 20 submits that waited for the limit", _TRIP, "latency.submit.waited.median", 1.3),
        ("slowest of 20 submits of a new client", _TRIP, "latency.submit.first burst.high", _ANY),
        ("CPU to receive a callback", "a handler that reads it", "transfers.receive.ratio.median", 2.0),
        ("CPU to save an image", "a loop that writes it", "transfers.download.ratio.median", _ANY),
    )
)

# A line here is a line in the printed table and in the verdict of the run.
GOALS = (
    *FELT,
    Goal("control: a batch against itself", ("batch", "control", "ratio", "median"), 1.05, 0.95),
    Goal("control: the bare loop against itself, TLS", ("tls", "20", "bare", "task", "median"), 1.02, 0.98),
    Goal("control: round trips of a submit by hand", ("latency", "submit", "by hand", "median"), 1.1, 0.98),
    Goal("MB of a batch of a million prompts", ("batch", "million", "mb"), 120),
    Goal("1,000 tasks of an emulator of speed 1000, seconds", ("batch", "emulator", "seconds"), 2.0),
    *(
        Goal(f"control: the bare loop against itself, {many} in flight", path, 1.02, 0.98)
        for many in (4, 20, 100)
        for path in [("cpu", str(many), "bare", "task", "median")]
    ),
    Goal("control: a poll among 100 against one among 100", ("crowd", "control", "ratio"), 1.05, 0.95),
    *(
        Goal(f"CPU per {WORD_OF_KIND[kind]} against the bare loop, {many} in flight", path, 1.02)
        for kind in ("task", "look")
        for many in (4, 20, 100)
        for path in [("cpu", str(many), "kie4o", kind, "median")]
    ),
    *(
        Goal(f"CPU per {WORD_OF_KIND[kind]} against {CLIENTS[peer].label}, {many} in flight", path, most)
        for peer, most in zip(LEANEST, (0.75, 0.25), strict=True)
        for kind in ("task", "look")
        for many in (4, 20, 100)
        for path in [("cpu", str(many), "kie4o", "against", peer, kind, "median")]
    ),
    Goal("KiB per waiting task at 10,000", ("memory", "kie4o", "10000", "median"), 2.2),
    Goal("CPU of a poll among thousands of waiting tasks against 100", ("crowd", "kie4o", "ratio"), 1.25),
    Goal("import kie4o, ms over bare Python", ("imports", "kie4o", "median"), 30),
    Goal("import kie4o.callbacks, ms", ("imports", "kie4o.callbacks", "median"), 110),
    Goal(
        "a client ready to send, against aiohttp, attrs and cattrs", ("imports", imports.READY, "ratio"), 1.1
    ),
    *(
        Goal(f"cost of learned polls after {seen} tasks, {tasks}", path, most)
        for seen, tasks, most in (
            (50, _WIDE, 1.10),
            (50, _NARROW, 1.10),
            (50, _SAME, 1.10),
            (50, _TWO, 1.15),
            (0, _WIDE, 1.65),
            (0, _NARROW, 1.65),
            (0, _TWO, 1.65),
        )
        for path in [("pacing", tasks, f"kie4o learned, after {seen}", "ratio")]
    ),
    Goal("exponential polls, 40 s: polls", ("pacing", _WIDE, _PLAIN, "looks"), 12),
    Goal("exponential polls, 40 s: seconds late", ("pacing", _WIDE, _PLAIN, "lateness"), 2.6),
    Goal(
        "many tasks under the account's limit: time against the ideal", ("makespan", "kie4o", "ratio"), 1.03
    ),
    Goal("many tasks under the limit: submits refused", ("makespan", "kie4o", "refused"), 0),
)


def judged(results: Results) -> list[dict[str, Any]]:
    """The verdict on every goal whose figure was measured."""
    found = []
    for goal in GOALS:
        figure = goal.figure(results)
        if figure is not None:
            verdict = goal.verdict(figure)
            found.append({"goal": goal.label, "figure": figure, "bounds": goal.bounds, "verdict": verdict})
    return found


# -- the printed tables --------------------------------------------------------------------------


def aligned(rows: Rows) -> str:
    """Rows as columns of text, numbers to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def ratio(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return ""
    return f"{figure['median']:.2f} ({figure['low']:.2f}-{figure['high']:.2f})"


def tables(results: Results) -> str:
    """Everything that was measured, for a terminal."""
    parts = [f"{title}\n{aligned(rows)}" for title, rows in _tables(results) if len(rows) > 1]
    if results.get("skipped"):
        parts.append("Skipped\n" + "\n".join(f"{name}: {why}" for name, why in results["skipped"].items()))
    goals = [
        [each["goal"], f"{each['figure']:.3g}", each["bounds"], each["verdict"]] for each in judged(results)
    ]
    if goals:
        parts.append("Goals\n" + aligned([["", "figure", "goal", ""], *goals]))
    return "\n\n".join(parts)


def _tables(results: Results) -> Iterator[tuple[str, Rows]]:
    for wire, cpu in (("http", results.get("cpu", {})), ("TLS", results.get("tls", {}))):
        for kind in ("task", "look"):
            name = {"task": "task (1 submit + 4 polls)", "look": "poll"}[kind]
            yield (
                f"Client CPU per {name}, {wire}, as a ratio to the bare aiohttp loop; median and 90 %",
                [["", *(f"{many} in flight" for many in cpu)], *_cpu_rows(cpu, kind)],
            )
        yield (
            f"Client CPU of kie4o, {wire}, as a ratio to one other client that takes turns with it",
            [["", *(f"{many} in flight" for many in cpu)], *_against_rows(cpu)],
        )
    yield "Memory per waiting task, KiB; median (range)", _memory_rows(results)
    yield (
        "CPU of a poll among many waiting tasks, as a ratio to one among few, at the same polls per second",
        [
            ["", "waiting", "polls/s", "ratio"],
            *(
                [
                    name if name == "control" else CLIENTS[name].label,
                    "{:,} / {:,}".format(*each["waiting"]),
                    str(each["per_second"]),
                    f"{each['ratio']:.2f} ({each['low']:.2f}-{each['high']:.2f})",
                ]
                for name, each in results.get("crowd", {}).items()
            ),
        ],
    )
    yield (
        "Import, ms of CPU over bare Python; as a ratio to aiohttp, attrs and cattrs",
        [
            ["", "ms", "ratio"],
            *(
                [name, f"{each['median']:.0f} ({each['low']:.0f}-{each['high']:.0f})", f"{each['ratio']:.2f}"]
                for name, each in results.get("imports", {}).items()
            ),
        ],
    )
    yield (
        "Tasks under the account's limit, as a ratio to the ideal time",
        [
            ["", "tasks", "ratio", "refused"],
            *(
                [CLIENTS[name].label, str(each["tasks"]), f"{each['ratio']:.3f}", str(each["refused"])]
                for name, each in results.get("makespan", {}).items()
            ),
        ],
    )
    yield (
        "Two that take turns, or one among many and one among few: CPU of a unit, and units per second",
        [["", "ratio", "us", "us", "per second", "per second"], *_pair_rows(results)],
    )
    yield (
        "Submits over TLS at 50 ms, in round trips",
        [
            ["", "median", "least", "most"],
            *(
                [name, *(f"{each[kind]:.2f}" for kind in ("median", "low", "high"))]
                for name, each in results.get("latency", {}).get("submit", {}).items()
                if isinstance(each, dict)
            ),
        ],
    )
    for distribution, policies in pacing_of(results):
        yield (
            f"When to poll (simulated), {distribution}",
            [
                ["", "polls", "seconds late", "ratio"],
                *(
                    [policy, f"{each['looks']:.1f}", f"{each['lateness']:.2f}", f"{each['ratio']:.2f}"]
                    for policy, each in policies.items()
                ),
            ],
        )


def _cpu_rows(cpu: dict[str, Any], kind: str) -> Rows:
    named = [name for name in CLIENTS if any(name in clients for clients in cpu.values())]
    rows = []
    for name in named:
        cells = [ratio(clients.get(name, {}).get(kind)) for clients in cpu.values()]
        label = f"{CLIENTS[name].label} (control)" if name == "bare" else CLIENTS[name].label
        if any(cells):
            rows.append([label, *cells])
    return rows


def _pair_rows(results: Results) -> Iterator[list[str]]:
    for measure in ("batch", "stores", "transfers"):
        for name, each in results.get(measure, {}).items():
            if "us" in each:
                rates = [f"{rate:,.0f}" for rate in each["per_second"]]
                yield [
                    f"{measure}: {name}",
                    ratio(each["ratio"]),
                    *(f"{us:.0f}" for us in each["us"]),
                    *rates,
                ]


def _against_rows(cpu: dict[str, Any]) -> Rows:
    pairs = [clients.get("kie4o", {}).get("against", {}) for clients in cpu.values()]
    rows = []
    for other in OPPONENTS:
        for kind in ("task", "look"):
            cells = [ratio(against.get(other, {}).get(kind)) for against in pairs]
            if any(cells):
                rows.append([f"{CLIENTS[other].label}, per {WORD_OF_KIND[kind]}", *cells])
    return rows


def _memory_rows(results: Results) -> Rows:
    memory = results.get("memory", {})
    marks = [mark for mark in ("1000", "10000") if any(mark in each for each in memory.values())]
    rows = [["", *(f"of {int(mark):,}" for mark in marks), "to the bare loop"]]
    for name, each in memory.items():
        last = next((mark for mark in reversed(marks) if mark in each and mark in memory.get("bare", {})), "")
        cells = [
            f"{each[mark]['median']:.1f} ({each[mark]['low']:.1f}-{each[mark]['high']:.1f})"
            if mark in each
            else ""
            for mark in marks
        ]
        against = f"{each[last]['median'] / memory['bare'][last]['median']:.2f}" if last else ""
        rows.append([CLIENTS[name].label, *cells, against])
    return rows


def pacing_of(results: Results) -> list[tuple[str, dict[str, dict[str, float]]]]:
    """The distributions and their policies."""
    found = results.get("pacing", {})
    return [(name, each) for name, each in found.items() if isinstance(each, dict)]


# -- the page and the README ---------------------------------------------------------------------


def section(results: Results) -> str:
    """What docs/performance.md has between its markers."""
    python, minutes = results["machine"]["python"], results["minutes"]
    return "\n".join(
        [
            f"Measured on {results['date']} with Python {python}, in {minutes:.0f} minutes.",
            "",
            *_markdown(
                ["client", "CPU per task", "CPU per poll", "KiB per waiting task", "import, ms"],
                [*_clients(results)],
            ),
            "",
            *_sentences(results),
            "",
            *_felt(results),
            f"![CPU, memory, import, and lateness against polls]({PICTURE})",
        ]
    )


def summary(results: Results) -> str:
    """What the README has between its markers: three figures, a line each."""
    lines = []
    wire, where = ("tls", ", over TLS") if "20" in results.get("tls", {}) else ("cpu", "")
    look, kib = _figure(results, wire, "20", "kie4o", "look", "median"), _kib(results)
    if look is not None and kib is not None:
        lines.append(
            f"- Waiting: a poll takes {look:.2f} times the CPU of one in a loop written by hand{where}; "
            f"a waiting task takes {kib:.1f} KiB"
        )
    time = _figure(results, "makespan", "kie4o", "ratio")
    if time is not None:
        tasks = results["makespan"]["kie4o"]["tasks"]
        lines.append(f"- Kie's rate limit: {tasks} tasks take {time:.2f} times the shortest possible time")
    million = _figure(results, "batch", "million", "per_second")
    if million is not None:
        lines.append(
            f"- A batch of a million prompts with a SQLite store: {_rounded(million)} items per second"
        )
    return "\n".join(lines)


def _kib(results: Results) -> float | None:
    return _figure(results, "memory", "kie4o", "10000", "median")


def _rounded(figure: float) -> str:
    """To two digits: more depend on the machine."""
    return f"{float(f'{figure:.2g}'):,.0f}"


def _felt(results: Results) -> Iterator[str]:
    """A table of what users feel, and what of it is not better than what it is compared with."""
    rows, worse = [], []
    for goal in FELT:
        figure = goal.figure(results)
        if figure is None:
            continue
        rows.append([goal.name, f"{figure:.2f}", goal.than])
        if figure > 1.02:
            worse.append(f"{goal.name} ({figure:.2f} times {goal.than})")
    if not rows:
        return
    yield from _markdown(["", "ratio", "to"], rows)
    yield ""
    if worse:
        yield "Not better than what it is compared with:"
        yield ""
        yield from (f"- {each}" for each in worse)
        yield ""


def _figure(results: Results, *path: str) -> float | None:
    return Goal("", path, 0).figure(results)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def _clients(results: Results) -> Iterator[list[str]]:
    cpu, memory = results.get("cpu", {}).get("20", {}), results.get("memory", {})
    times = results.get("imports", {})
    for name, entry in CLIENTS.items():
        figures = cpu.get(name)
        if figures is None:
            continue
        kib = memory.get(name, {}).get("10000")
        loaded = times.get(imports.name_of(name))
        label = f"**{entry.label}**" if name == "kie4o" else entry.label
        yield [
            label,
            "1" if name == "bare" else f"{figures['task']['median']:.2f}",
            "1" if name == "bare" else f"{figures['look']['median']:.2f}" if "look" in figures else "",
            f"{kib['median']:.1f}" if kib else "",
            f"{loaded['median']:.0f}" if loaded else "",
        ]


def _sentences(results: Results) -> Iterator[str]:
    """The figures that are not in the table, a line each."""
    for words, paths, form in (
        (
            "CPU per task with 4, 20 and 100 in flight",
            [("cpu", many, "kie4o", "task", "median") for many in ("4", "20", "100")],
            ".2f",
        ),
        (
            "The same against the tuned loop",
            [("cpu", many, "kie4o", "against", TUNED, "task", "median") for many in ("4", "20", "100")],
            ".2f",
        ),
        (
            "CPU of a poll with 10,000 tasks waiting, against 100, both at 400 polls/s",
            [("crowd", "kie4o", "ratio")],
            ".2f",
        ),
        (
            "200 tasks under Kie's rate limit, against the shortest possible time",
            [("makespan", "kie4o", "ratio")],
            ".3f",
        ),
        *(
            (
                f"Simulated cost of polling against the optimum, {how}",
                [("pacing", _WIDE, policy, "ratio")],
                ".2f",
            )
            for how, policy in (
                ("learned from 50 tasks", "kie4o learned, after 50"),
                ("learned from none", "kie4o learned, after 0"),
                ("exponential", _PLAIN),
            )
        ),
        ("MB by which a batch of a million prompts grows the process", [("batch", "million", "mb")], ".0f"),
        (
            "Items per second of that batch, with its SQLite store",
            [("batch", "million", "per_second")],
            ".0f",
        ),
        ("1,000 tasks of an emulator of speed 1000, seconds", [("batch", "emulator", "seconds")], ".1f"),
        ("`import kie4o` alone, ms", [("imports", "kie4o", "median")], ".0f"),
        ("`import kie4o.callbacks` alone, ms", [("imports", "kie4o.callbacks", "median")], ".0f"),
    ):
        figures = [_figure(results, *path) for path in paths]
        if None not in figures:
            yield f"- {words}: {', '.join(f'{figure:{form}}' for figure in figures)}"


def rewrite(readme: Path, results: Results) -> None:
    """Put the tables into the page beside the README and, where it has markers, three figures into that."""
    _replace(readme.parent / PAGE, TABLE, section(results))
    if FIGURES[0] in readme.read_text("utf-8"):
        _replace(readme, FIGURES, summary(results))


def _replace(file: Path, marks: Marks, new: str) -> None:
    text = file.read_text("utf-8")
    begin, end = marks
    found = re.search(rf"^{re.escape(begin)}$(.*?)^{re.escape(end)}$", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"{file.name} needs a line {begin} and, after it, a line {end}")
    file.write_text(f"{text[: found.start(1)]}\n\n{new}\n\n{text[found.end(1) :]}", "utf-8")
