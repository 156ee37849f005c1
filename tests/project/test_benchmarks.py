"""The benchmark suite measures what it claims to: its server, its turns, its verdicts, its picture."""

import asyncio
import copy
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import aiohttp
import pytest
from canary import CANARY_KEY
from paths import REPOSITORY
from PIL import Image
from serving import Serving

from kie4o import AsyncKieClient, PollPolicy

sys.path.append(str(REPOSITORY))  # at the end: kie4o is the one under test

from benchmarks import imports, measures, pairs, picture, report
from benchmarks.clients import PROMPT
from benchmarks.plan import Plan
from benchmarks.processes import Server, ask, call, counts, set_server
from benchmarks.relay import relay
from benchmarks.server import ROUND_TRIP, png
from benchmarks.turns import FEW, MANY, figures, spread

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The suite's server, in a process of its own."""
    with Server() as running:
        yield running


@pytest.fixture
def base(server: Server) -> str:
    return server.http


def results() -> dict[str, Any]:
    """The figures of an invented run."""
    spread_of = {"low": 0.9, "high": 1.1, "n": 3}
    cpu = {
        name: {"task": {"median": value, **spread_of}, "look": {"median": value, **spread_of}}
        for name, value in {"kie4o": 0.95, "bare": 1.0, "httpx": 13.0}.items()
    }
    cpu["kie4o"]["against"] = {
        peer: {kind: {"median": value, **spread_of} for kind in ("task", "look")}
        for peer, value in {"tuned": 1.2, "runware": 0.7, "google-genai": 0.2}.items()
    }

    def pair(ratio: float = 1.1) -> dict[str, Any]:
        return {"ratio": {"median": ratio, **spread_of}, "us": [4e2, 3e2], "per_second": [2059.0, 3019.0]}

    trips = {"median": 1.05, "low": 1.0, "high": 3.5, "n": 6}
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
        "tls": {"20": copy.deepcopy(cpu)},
        "batch": {
            "control": pair(1.0),
            "memory 1000": pair(),
            "stores": pair(),
            "million": {"items": 10**6, "mb": 80.0, "per_second": 1900.0},
            "emulator": {"items": 1000, "seconds": 1.5},
        },
        "stores": {"replay": pair(), "open": pair()},
        "latency": {
            "submit": {name: dict(trips) for name in ("by hand", "among polls", "waited", "first burst")}
        },
        "transfers": {"receive": pair(), "download": pair()},
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


def test_a_client_that_does_twice_the_work_is_seen(base: str) -> None:
    """The control: with every poll made twice, at four polls per submit, the ratio is far above one."""
    assert turns("twice", base) > 1.5


async def test_slices_take_turns() -> None:
    """The order alternates, and the ratio is of the first to the second."""
    order: list[str] = []

    def slice_of(name: str, seconds: float) -> pairs.Slice:
        async def once() -> pairs.Took:
            order.append(name)
            return pairs.Took(seconds, 2 * seconds)

        return once

    found = pairs.figures(await pairs.alternate((slice_of("a", 3.0), slice_of("b", 2.0)), 2))
    assert order == ["a", "b", "b", "a"]
    assert found["ratio"]["median"] == 1.5
    assert found["per_second"] == [1 / 6, 1 / 4]


def test_a_poll_is_what_more_polls_add() -> None:
    """The cost of a poll does not include the cost of the submit."""
    submit, look = (5.0, 1.0), (2.0, 1.0)
    took = {looks: [(submit[0] + looks * look[0], submit[1] + looks * look[1])] * 3 for looks in (FEW, MANY)}
    found = figures(took)
    assert found["look"]["median"] == pytest.approx(2.0)
    assert found["task"]["median"] == pytest.approx(13 / 5)


def test_a_pair_without_the_bare_loop_is_kept_apart(server: Server) -> None:
    """A ratio to a peer is not reported as a ratio to the bare loop."""
    clients = ["kie4o", "bare", "tuned", "runware"]
    cpu = measures.Cpu(lambda server: server.http, Plan(False, server, clients, ["cpu"], {}))
    names = [step.name for step in cpu.steps() if "against" in step.name]
    assert names == [
        f"CPU, http: kie4o against {other}, {many} in flight, round 1"
        for many in (4, 20, 100)
        for other in ("aiohttp, tuned by hand", "runware-sdk")
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


# -- the measures of one child each --------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("batches.growth", "memory", "20:60", "10:30"), id="growth"),
        pytest.param(("batches.stores", "40"), id="stores"),
        pytest.param(("stores.replay", "300"), id="replay"),
        pytest.param(("stores.opening", "300"), id="opening"),
        pytest.param(("receivers.pair",), id="receivers"),
        pytest.param(("downloads.pair",), id="downloads"),
    ],
)
def test_a_pair_is_measured(base: str, words: tuple[str, ...]) -> None:
    """Both sides do their work, which they check themselves."""
    name, *arguments = words
    found = ask("pairs", name, base, *arguments, "--rounds", 1)
    assert found["ratio"]["median"] > 0
    assert min(found["us"]) > 0


def test_an_emulator_and_memory_are_measured(base: str) -> None:
    """The million is asked for in the same way."""
    assert ask("batches", "emulator", "--items", 30)["seconds"] > 0
    if Path("/proc/self/status").exists():
        assert ask("batches", "memory", base, "--items", 100)["per_second"] > 0


async def test_the_picture_is_a_whole_image() -> None:
    """A client that decodes what it saves takes it."""
    with Image.open(io.BytesIO(png())) as image:
        image.load()
        assert image.size == (1024, 512)


async def test_the_relay_adds_a_round_trip(server: Server) -> None:
    """The first request over plain http takes two, since a connection is opened first; the next takes one."""
    loop, times = asyncio.get_running_loop(), []
    there = relay(int(server.http.rpartition(":")[2]), ROUND_TRIP)
    async with there as near, aiohttp.ClientSession() as session:
        for _ in range(2):
            began = loop.time()
            async with session.get(f"http://127.0.0.1:{near}/__counts") as response:
                assert (await response.json())["unknown"] >= 0
            times.append(loop.time() - began)
    assert times[0] >= 1.98 * ROUND_TRIP
    assert 0.98 * ROUND_TRIP <= times[1] < times[0]


async def test_the_relay_passes_a_close_on() -> None:
    """After what was sent before it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"last words")
        writer.close()

    async with Serving(serve) as far, relay(far.port, 0.02) as near:
        reader, writer = await asyncio.open_connection("127.0.0.1", near)
        assert await reader.read() == b"last words"
        writer.close()
        await writer.wait_closed()


def test_tls_is_measured_where_a_certificate_can_be_made(server: Server) -> None:
    """kie4o and the hand-written loop trust the certificate of this run; without trustme both are skipped."""
    plan = Plan(True, server, ["kie4o", "bare", "tuned"], ["tls", "latency"], {})
    steps = [*measures.MEASURES["tls"](plan).steps(), *measures.MEASURES["latency"](plan).steps()]
    if not server.tls:
        assert not steps
        assert "trustme" in plan.skipped["tls"]
        assert "trustme" in plan.skipped["latency"]
        return
    for name in ("kie4o", "tuned"):
        assert ask("probe", name, server.tls, settings=server.trusting)["url"].endswith(".png")
    found = ask("latency", server.far, server.http, "--submits", 0, "--bursts", 1, settings=server.trusting)
    assert found["first burst"]["low"] > 2.5


# -- the report ----------------------------------------------------------------------------------


def test_a_goal_that_is_met_holds() -> None:
    """Every goal with a figure has a verdict, and no other."""
    verdicts = {each["goal"]: each["verdict"] for each in report.judged(results())}
    assert set(verdicts.values()) == {"holds"}
    measured = [goal for goal in report.GOALS if goal.figure(results()) is not None]
    assert list(verdicts) == [goal.label for goal in measured]


def missed() -> Iterator[Any]:
    for goal in report.GOALS:
        if goal.figure(results()) is not None and goal.bounds:
            yield pytest.param(goal, goal.most + 0.3, id=f"{goal.label}: too much")
            if goal.least > float("-inf"):
                yield pytest.param(goal, goal.least - 0.3, id=f"{goal.label}: too little")


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
    assert lines[0].startswith(goal.label)


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
        "- Waiting: a poll takes 0.95 times the CPU of one in a loop written by hand, over TLS; "
        "a waiting task takes 2.1 KiB",
        "- Kie's rate limit: 200 tasks take 1.01 times the shortest possible time",
        "- A batch of a million prompts with a SQLite store: 1,900 items per second",
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
    assert report.summary(some).startswith("- Kie's rate limit: 200 tasks")
    assert len(report.summary(some).splitlines()) == 1


def test_the_tables_have_the_figures() -> None:
    """A row for each client that was measured, with blanks for what was not."""
    text = report.section(results())
    assert "| **kie4o** | 0.95 | 0.95 | 2.1 | 210 |" in text
    assert "| aiohttp, by hand | 1 | 1 | 8.2 | 190 |" in text
    assert "| httpx, by hand | 13.00 | 13.00 |  |  |" in text


def test_what_is_not_better_is_said() -> None:
    """Every ratio above one is named once more below the table, and no other."""
    text = report.section(results())
    assert "| CPU per poll over TLS | 0.95 | aiohttp, by hand |" in text
    assert "| CPU per poll over TLS | 1.20 | aiohttp, tuned by hand |" in text
    _, _, worse = text.partition("Not better than what it is compared with:")
    assert "- CPU per poll over TLS (1.20 times aiohttp, tuned by hand)" in worse
    assert "(0.95 times aiohttp, by hand)" not in worse


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
