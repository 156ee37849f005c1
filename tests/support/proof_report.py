"""Makes the table of docs/reliability.md from what `nox -s proof` has run.

    python tests/support/proof_report.py proof/*.xml proof/worlds.json [--write] [--small]

An argument is a report of pytest (`--junitxml`), or of the simulation (`--report`). A row is a file of tests:
what it says of itself, how many positions its tests have tried (`proving.tried`), how many tests and controls
passed, and how long they took. `--small` says that the run had the sizes of `nox -s tests thorough`.
"""

from __future__ import annotations

import ast
import datetime
import json
import platform
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import attrs

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "reliability.md"
SCORE = REPOSITORY / "tests" / "mutation" / "score.json"
MARKS = ("<!-- proof -->", "<!-- /proof -->")


@attrs.define
class Row:
    """The tests of one file."""

    positions: int = 0
    tests: int = 0
    controls: int = 0
    failed: int = 0
    seconds: float = 0.0


def rows_of(paths: list[Path]) -> dict[str, Row]:
    """What the reports say, by file: a later report of a file replaces an earlier one."""
    rows: dict[str, Row] = {}
    for path in paths:
        rows |= _rows_in(path)
    return {name: row for name, row in sorted(rows.items()) if row.positions}


def _rows_in(path: Path) -> dict[str, Row]:
    """What one report says, by file. Tests that were skipped are not in it."""
    rows: dict[str, Row] = defaultdict(Row)
    for case in ElementTree.parse(path).iter("testcase"):
        if case.find("skipped") is not None:
            continue
        row = rows[case.get("classname", "").replace(".", "/") + ".py"]
        row.tests += 1
        row.controls += "control" in case.get("name", "")
        row.failed += case.find("failure") is not None or case.find("error") is not None
        row.seconds += float(case.get("time", 0))
        found = case.findall("./properties/property[@name='positions']")
        row.positions += sum(int(each.get("value", 0)) for each in found)
    return rows


def sentence_of(name: str) -> str:
    """The first sentence of the docstring of a file of tests."""
    text = ast.get_docstring(ast.parse((REPOSITORY / name).read_text("utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split()).rstrip(".")


def table(rows: dict[str, Row], small: bool) -> str:
    """The part of the page between the marks."""
    sizes = "the small sizes of that day" if small else "whole sizes"
    today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    lines = [
        f"Run on {today} with Python {platform.python_version()}, with {sizes}.",
        "",
        "| tests | what they do | positions | tests, controls | failed | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        counts = f"{row.tests:,}, {row.controls:,}"
        lines.append(
            f"| `{name.removeprefix('tests/')}` | {sentence_of(name)} | {row.positions:,} | {counts} "
            f"| {row.failed} | {row.seconds / 60:.1f} |"
        )
    positions, failed = sum(row.positions for row in rows.values()), sum(row.failed for row in rows.values())
    lines += ["", f"Together {positions:,} positions; {failed or 'none'} of the tests failed."]
    return "\n".join(lines)


def sentence_of_worlds(path: Path) -> str:
    """What the simulation reports."""
    figures = json.loads(path.read_text("utf-8"))
    counts, failed = figures["counts"], figures["failed"]
    did = ", ".join(f"{counts[what]:,} {what}" for what in ("submits", "polls", "callbacks", "kills"))
    time = f"{figures['seconds'] / 60:.1f} minutes of {figures['jobs']} processes"
    broken = f"a law was broken {failed} times" if failed else "no law was broken"
    return f"Beside these {counts['worlds']:,} simulated worlds, with {did}, in {time}: {broken}."


def sentence_of_mutants(path: Path = SCORE) -> str:
    """What `nox -s mutants -- --write` has kept."""
    scores = json.loads(path.read_text("utf-8")).values()  # one for each module that was tried
    mutants, killed, equivalent = (
        sum(score[what] for score in scores) for what in ("mutants", "killed", "equivalent")
    )
    seen = "all" if killed == mutants else f"{killed:,}"
    return (
        f"Of {mutants:,} mutants of the {len(scores)} modules in `tests/mutation/score.json` "
        f"the tests see {seen}; {equivalent:,} more change nothing that anyone can see."
    )


def main() -> None:
    """Print the table, and write it if asked to. The status is 1 if anything has failed."""
    paths = [Path(each) for each in sys.argv[1:] if not each.startswith("-")]
    rows = rows_of([path for path in paths if path.suffix == ".xml"])
    worlds = [path for path in paths if path.suffix == ".json"]
    made = "\n\n".join(
        [table(rows, "--small" in sys.argv), *map(sentence_of_worlds, worlds), sentence_of_mutants()]
    )
    print(made)
    if "--write" in sys.argv:
        before, _, rest = PAGE.read_text("utf-8").partition(MARKS[0])
        _, _, after = rest.partition(MARKS[1])
        PAGE.write_text(f"{before}{MARKS[0]}\n\n{made}\n\n{MARKS[1]}{after}", "utf-8")
    broken = [path for path in worlds if json.loads(path.read_text("utf-8"))["failed"]]
    sys.exit(bool(broken) or any(row.failed for row in rows.values()))


if __name__ == "__main__":
    main()
