"""The benchmark suite measures what it claims to: its server, its turns, its verdicts, its picture."""

import copy
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from canary import CANARY_KEY
from paths import REPOSITORY

from kie4o import AsyncKieClient, PollPolicy

sys.path.append(str(REPOSITORY))  # at the end: kie4o is the one under test

from benchmarks import imports, measures, picture, processes, report
from benchmarks.clients import PROMPT
from benchmarks.processes import Server, ask, call, counts, set_server
from benchmarks.turns import FEW, MANY, figures, spread

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    """The suite's server, in a process of its own."""
    with Server() as url:
        yield url


def results() -> dict[str, Any]:
    """The figures of an invented run."""
    spread_of = {"low": 0.9, "high": 1.1, "n": 3}
    cpu = {
        name: {"task": {"median": value, **spread_of}, "look": {"median": value, **spread_of}}
        for name, value in {"kie4o": 0.95, "bare": 1.0, "httpx": 13.0}.items()
    }
    cpu["kie4o"]["against"] = {
        peer: {kind: {"median": value, **spread_of} for kind in ("task", "look")}
        for peer, value in {"runware": 0.7, "google-genai": 0.2}.items()
    }
    memory = {
        name: {mark: {"median": value, **spread_of} for mark in ("1000", "10000")}
        for name, value in {"kie4o": 2.1, "bare": 8.2}.items()
    }
    loads = {"kie4o": 9.0, "kie4o.callbacks": 40.0, imports.READY: 210.0, "aiohttp": 190.0}
    return {
        "date": "2026-01-02",
        "minutes": 11.0,
        "machine": {"python": "3.11.7"},
        "cpu": {"20": cpu},
        "memory": memory,
        "crowd": {"kie4o": {"waiting": [10_000, 100], "per_second": 400, "ratio": 1.1, **spread_of}},
        "imports": {name: {"median": value, "ratio": 0.1, **spread_of} for name, value in loads.items()},
        "makespan": {"kie4o": {"ratio": 1.01, "refused": 0, "tasks": 200}},
        "pacing": {
            "lognormal": {
                "kie4o <new>": {"looks": 5.0, "lateness": 1.6, "ratio": 1.1},
                "every 0.1 s": {"looks": 454.0, "lateness": 0.05, "ratio": 20.0},
            },
            "following": [1.3, 1.1],
        },
        "skipped": {"replicate": "No module named 'replicate'"},
    }


# -- the server and the turns --------------------------------------------------------------------


async def test_the_server_speaks_as_kie_does(base: str) -> None:
    """kie4o gets its image from it after the number of polls that was set."""
    set_server(base, looks=2)
    every = PollPolicy(first=0.34, factor=1.0, maximum=0.34, jitter=False)
    async with AsyncKieClient(CANARY_KEY, base_url=base, poll=every) as client:
        result = await client.generate(PROMPT)
    assert result.task_id in result.urls[0]
    assert result.details.params["prompt"] == PROMPT
    seen = counts(base)
    assert (seen["submits"], seen["looks"], seen["ended"], seen["unknown"]) == (1, 2, 1, 0)


def test_the_server_counts_the_window(base: str) -> None:
    """With a limit of two, the third submit within the window is refused with 429."""
    set_server(base, limit=2, window=3600.0)
    codes = [call(base, "/api/v1/gpt4o-image/generate", {"prompt": PROMPT})["code"] for _ in range(3)]
    assert codes == [200, 200, 429]
    assert counts(base)["refused"] == 1


def turns(name: str, base: str) -> float:
    """The ratio of CPU per task against the bare loop, from a few short slices."""
    words = ["--in-flight", 4, "--seconds", 1.5, "--no-looks", "--least", 8]
    took = {int(kind): pairs for kind, pairs in ask("turns", name, "bare", base, *words).items()}
    assert not took[MANY]
    return float(figures(took)["task"]["median"])


@pytest.mark.paced
def test_a_client_against_itself_is_one(base: str) -> None:
    """Taking turns gives the client that is named first no advantage."""
    assert turns("bare", base) == pytest.approx(1.0, abs=0.15)


RECEIVES = """
import resource, socket
here, there = socket.socketpair()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
for _ in range(200):
    there.send(b"x" * 700)
    here.recv(256 * 1024)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_a_settled_process_keeps_its_blocks() -> None:
    """There asyncio's reads touch no new memory; in a new process each one does."""

    def faults(settings: Mapping[str, str]) -> int:
        command = [sys.executable, "-I", "-c", RECEIVES]
        kept = processes.environment() | settings
        return int(subprocess.run(command, env=kept, capture_output=True, text=True, check=True).stdout)

    assert faults(measures._SETTLED) < 50
    assert faults({}) >= 200


def test_a_client_that_does_twice_the_work_is_seen(base: str) -> None:
    """The control: with every poll made twice, at four polls per submit, the ratio is far above one."""
    assert turns("twice", base) > 1.5


def test_a_poll_is_what_more_polls_add() -> None:
    """The cost of a poll does not include the cost of the submit."""
    submit, look = (5.0, 1.0), (2.0, 1.0)
    took = {looks: [(submit[0] + looks * look[0], submit[1] + looks * look[1])] * 3 for looks in (FEW, MANY)}
    found = figures(took)
    assert found["look"]["median"] == pytest.approx(2.0)
    assert found["task"]["median"] == pytest.approx(13 / 5)


def test_a_pair_without_the_bare_loop_is_kept_apart(base: str) -> None:
    """A ratio to a peer is not reported as a ratio to the bare loop."""
    cpu = measures.Cpu(measures.Plan(False, base, ["kie4o", "bare", "runware"], ["cpu"], {}))
    names = [step.name for step in cpu.steps() if "against" in step.name]
    assert names == [
        f"cpu: kie4o against {other}, {many} in flight, round 1"
        for many in (4, 20, 100)
        for other in ("bare, settled", "runware-sdk")
    ]
    cpu._took[20, "kie4o", "runware"] = {FEW: [(1.0, 2.0)], MANY: []}
    cpu._took[20, "kie4o", "bare"] = {FEW: [(1.0, 1.0)], MANY: []}
    found = cpu.results()["20"]["kie4o"]
    assert found["task"]["median"] == 1.0
    assert found["against"]["runware"]["task"]["median"] == 0.5


def test_a_spread_holds_its_median() -> None:
    """The interval contains the median, and one outlier does not move it far."""
    found = spread([1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 9.0])
    assert found.low <= found.median <= found.high
    assert found.median == 1.0
    assert found.high < 2.0


# -- the report ----------------------------------------------------------------------------------


def test_a_goal_that_is_met_holds() -> None:
    """Every goal with a figure has a verdict, and no other."""
    verdicts = {each["goal"]: each["verdict"] for each in report.judged(results())}
    assert set(verdicts.values()) == {"holds"}
    measured = [goal for goal in report.GOALS if goal.figure(results()) is not None]
    assert list(verdicts) == [goal.name for goal in measured]


def missed() -> Iterator[Any]:
    for goal in report.GOALS:
        if goal.figure(results()) is not None:
            yield pytest.param(goal, goal.most + 0.3, id=f"{goal.name}: too much")
            if goal.least > float("-inf"):
                yield pytest.param(goal, goal.least - 0.3, id=f"{goal.name}: too little")


@pytest.mark.parametrize(("goal", "figure"), list(missed()))
def test_a_goal_that_is_not_met_is_marked(goal: report.Goal, figure: float) -> None:
    """The control: a figure outside its bounds is MISSED, in the line of that goal only."""
    found = copy.deepcopy(results())
    at = found
    for name in goal.path[:-1]:
        at = at[name]
    at[goal.path[-1]] = figure
    lines = [line for line in report.tables(found).splitlines() if "MISSED" in line]
    assert len(lines) == 1
    assert lines[0].startswith(goal.name)


def test_a_skipped_client_is_reported() -> None:
    """The tables name a peer that could not run, with the reason."""
    assert "replicate: No module named 'replicate'" in report.tables(results())


def pages(tmp_path: Path, page: str, readme: str) -> tuple[Path, Path]:
    """The page and the README of a project with these texts."""
    files = tmp_path / report.PAGE, tmp_path / "README.md"
    files[0].parent.mkdir()
    for file, text in zip(files, (page, readme), strict=True):
        file.write_text(text, "utf-8")
    return files


PAGE = "# Performance\n\n<!-- benchmarks -->\n<!-- /benchmarks -->\n\n## How to read it\n\nthe end\n"
README = "# name\n\ntext\n\n<!-- figures -->\n\n- old\n\n<!-- /figures -->\n\n## Next\n\nthe end\n"


def test_the_tables_are_written_between_the_markers_of_the_page(tmp_path: Path) -> None:
    """The next run replaces them, and nothing else in the page changes."""
    page, readme = pages(tmp_path, PAGE, README)
    report.rewrite(readme, results())
    once = page.read_text("utf-8")
    report.rewrite(readme, results() | {"date": "2026-02-03"})
    text = page.read_text("utf-8")
    assert text == once.replace("2026-01-02", "2026-02-03")
    begin, end = report.TABLE
    assert text.startswith(f"# Performance\n\n{begin}\n\nMeasured on 2026-02-03 ")
    assert text.endswith(f"\n\n{end}\n\n## How to read it\n\nthe end\n")
    assert report.section(results()) in once
    assert max(map(len, text.splitlines())) <= 110


def test_three_figures_are_written_between_the_markers_of_the_readme(tmp_path: Path) -> None:
    """Three lines of a list, and nothing else in the README changes."""
    _, readme = pages(tmp_path, PAGE, README)
    report.rewrite(readme, results())
    assert readme.read_text("utf-8") == README.replace("- old", report.summary(results()))
    assert report.summary(results()).splitlines() == [
        "- CPU per task: 0.95 times that of a loop written by hand with aiohttp"
        " (other clients: 13.0 to 13.0)",
        "- Memory per waiting task: 2.1 KiB, with 10,000 waiting",
        "- 200 tasks under Kie's rate limit: 1.01 times the shortest possible time",
    ]


def test_a_readme_without_markers_is_left_alone(tmp_path: Path) -> None:
    """The page is written all the same."""
    page, readme = pages(tmp_path, PAGE, "# name\n")
    report.rewrite(readme, results())
    assert readme.read_text("utf-8") == "# name\n"
    assert report.section(results()) in page.read_text("utf-8")


@pytest.mark.parametrize("marker", [*report.TABLE, report.FIGURES[1]])
def test_a_missing_marker_is_an_error(marker: str, tmp_path: Path) -> None:
    """The message names the file and the marker; that file is not changed."""
    page, readme = pages(tmp_path, PAGE.replace(marker, ""), README.replace(marker, ""))
    broken = page if marker in PAGE else readme
    before = broken.read_text("utf-8")
    with pytest.raises(ValueError, match=f"{broken.name} needs a line .*{re.escape(marker)}"):
        report.rewrite(readme, results())
    assert broken.read_text("utf-8") == before


def test_figures_that_were_not_measured_are_left_out() -> None:
    """A run of one measure gives the lines of that measure."""
    some = {name: value for name, value in results().items() if name in ("makespan", "machine")}
    assert report.summary(some).startswith("- 200 tasks")
    assert len(report.summary(some).splitlines()) == 1


def test_the_tables_have_the_figures() -> None:
    """A row for each client that was measured, with blanks for what was not."""
    text = report.section(results())
    assert "| **kie4o** | 0.95 | 0.95 | 2.1 | 210 |" in text
    assert "| aiohttp, by hand | 1 | 1 | 8.2 | 190 |" in text
    assert "| httpx, by hand | 13.00 | 13.00 |  |  |" in text


def test_the_page_shows_the_stored_results() -> None:
    """docs/performance.md and the picture are those of results.json; so is the README where it has
    markers."""
    folder = Path(report.__file__).parent / "results"
    root = folder.parents[1]
    stored = json.loads((folder / "results.json").read_text("utf-8"))
    page = root / report.PAGE
    assert f"\n\n{report.section(stored)}\n\n" in page.read_text("utf-8")
    assert (page.parent / report.PICTURE).resolve() == (folder / "figures.svg").resolve()
    assert (folder / "figures.svg").read_text("utf-8") == picture.svg(stored)
    readme = (root / "README.md").read_text("utf-8")
    if report.FIGURES[0] in readme:
        assert f"\n\n{report.summary(stored)}\n\n" in readme


# -- the picture ---------------------------------------------------------------------------------


def test_the_picture_is_well_formed() -> None:
    """It is XML whatever the names contain, with all four panels, and nothing lies outside it."""
    root = ElementTree.fromstring(picture.svg(results()))
    *_, width, height = map(float, root.attrib["viewBox"].split())
    words = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"kie4o <new>", "13.00", "2.1", "polls per task", "seconds late"} <= set(words)
    for element in root.iter():
        x, y = (element.attrib.get(name) for name in ("x", "y"))
        if x is not None and y is not None:
            assert 0 <= float(x) <= width
            assert 0 <= float(y) + float(element.attrib.get("height", 0)) <= height


def test_a_picture_of_little_is_drawn_too() -> None:
    """Panels without figures are left out."""
    some = {name: value for name, value in results().items() if name in ("cpu", "machine", "date")}
    assert "KiB" not in picture.svg(some)
    ElementTree.fromstring(picture.svg(some))


def test_the_picture_is_for_light_and_dark_pages() -> None:
    """Its colours have a contrast of 3 to 1 on white and on GitHub's dark grey; it has no background."""
    used = set(re.findall(r'(?:fill|stroke)="(#\w+)"', picture.svg(results())))
    assert used == {picture.INK, picture.PALE, picture.OURS}
    for colour in used:
        for page in ("#ffffff", "#0d1117"):
            light, dark = sorted((luminance(colour), luminance(page)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 3


def luminance(colour: str) -> float:
    """Relative luminance as WCAG defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
