"""The progress of a batch: a few lines that say what is true, and cost next to nothing."""

import asyncio
import io
import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.live import Live
from rich.table import Table

from kie4o.cli.batch.progress import MOST, Progress
from kie4o.cli.drawing import TICK, Drawing

COUNTS = st.integers(0, 10**7)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=400)


@given(st.integers(20, 300), *[COUNTS] * 7, *[TEXTS] * 4, st.floats(0, 1e6))
def test_a_few_lines_that_fit(
    width: int,
    total: int,
    done: int,
    failed: int,
    unknown: int,
    running: int,
    saving: int,
    credits_: int,
    title: str,
    failure: str,
    stopping: str,
    pause: str,
    now: float,
) -> None:
    """At most 12, none wider than the terminal, whatever the counts and texts."""
    progress = Progress(
        title=title,
        total=total,
        done=done,
        failed=failed,
        unknown=unknown,
        running=running,
        saving=saving,
        credits=Decimal(credits_),
        stopping=stopping,
        failure=failure,
    )
    progress.begin(0.0)
    progress.ended(now, 4)
    progress.pause(pause, 60.0, now)
    lines = progress.lines(now, width)
    assert len(lines) <= MOST
    assert max(map(len, lines)) <= width
    assert "\n" not in "".join(lines) + progress.line(now)
    assert progress.facts(now)["waiting"] >= 0


def test_what_it_says() -> None:
    """Counts that add up, the pace of the last two minutes, and the time that is left at that pace."""
    progress = Progress(title="prompts.txt → images", total=100, done=20, running=5)
    progress.begin(1000.0)
    for second in range(10):
        progress.ended(1000.0 + second, 2)
        progress.done += 1
    progress.credits = Decimal(60)
    facts = progress.facts(1010.0)
    assert (facts["waiting"], facts["images_per_minute"], facts["seconds_left"]) == (65, 120.0, 70)
    assert progress.line(1010.0) == (
        "30 of 100 · 65 waiting · 5 running · 30 done · 0 failed · 0 unknown · 60 credits · 120 images/min"
        " · 1 min left"
    )
    assert "images/min" not in progress.line(2000.0)  # nothing has ended lately
    assert progress.lines(1010.0, 80)[1] == "━━━━━━──────────────  30 %  30/100"


def test_a_pause_counts_down_and_passes() -> None:
    """The same pause of many tasks is news once."""
    progress = Progress(title="", total=1)
    assert progress.pause("Kie is under maintenance (455)", 60.0, 0.0)
    assert not progress.pause("Kie is under maintenance (455)", 60.0, 2.0)
    assert progress.lines(4.0, 80)[-1] == "Kie is under maintenance (455); next try in 58 s"
    assert "maintenance" not in progress.line(70.0)
    assert progress.pause("Kie is under maintenance (455)", 60.0, 70.0)


def test_a_pause_is_over_once_something_was_submitted() -> None:
    """But not one that began after that."""
    progress = Progress(title="", total=1)
    progress.pause("Kie is under maintenance (455)", 60.0, 10.0)
    progress.resumed(since=5.0)
    assert "maintenance" in progress.line(20.0)
    progress.resumed(since=15.0)
    assert "maintenance" not in progress.line(20.0)


def test_after_a_stop_there_is_no_next_try_and_no_pace() -> None:
    """Nothing more is submitted: what waits is left, and what ends says nothing about it."""
    progress = Progress(title="", total=30, running=18)
    progress.begin(0.0)
    for second in (1.0, 2.0):
        progress.ended(second, 1)
        progress.done += 1
    progress.pause("the limit of 20 in 10 s is used up", 60.0, 3.0)
    assert progress.line(4.0).endswith(
        " · 30 images/min · 56 s left · the limit of 20 in 10 s is used up; next try in 59 s"
    )
    progress.stop("stopping")
    assert progress.line(4.0) == (
        "2 of 30 · 10 not submitted · 18 running · 2 done · 0 failed · 0 unknown · 0 credits"
    )
    assert (progress.facts(4.0)["images_per_minute"], progress.facts(4.0)["seconds_left"]) == (None, None)


def test_one_that_has_ended_before_it_was_counted() -> None:
    """The counts add up all the same, and none is negative."""
    progress = Progress(title="", total=3, running=-1, done=1)
    assert progress.line(0.0).startswith("1 of 3 · 2 waiting · 0 running · 1 done")
    assert progress.facts(0.0)["running"] == 0


# -- what it costs ---------------------------------------------------------------------------------

TASKS = 2000


def console() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, height=50)


async def cpu_of_a_second() -> float:
    """How much CPU this process uses in one second: the least of four, since a machine that does other things
    charges some of them with more."""
    used = []
    for _ in range(4):
        cpu = time.process_time()
        await asyncio.sleep(1.0)
        used.append(time.process_time() - cpu)
    return min(used)


async def advance(progress: Progress) -> None:
    """A batch in which something changes all the time."""
    progress.begin(time.monotonic())
    while True:
        progress.done += 1
        progress.running = 100 - progress.done % 7
        progress.ended(time.monotonic(), 1)
        await asyncio.sleep(0.1)


def cpu_of_rows() -> float:
    """The control: a table with a row for each task, as often as in one second; the least of three."""
    used = []
    with Live(console=console(), auto_refresh=False, vertical_overflow="visible") as live:
        for _ in range(3):
            cpu = time.process_time()
            for _ in range(round(1 / TICK)):
                table = Table("task", "state")
                for number in range(TASKS):
                    table.add_row(f"Lake {number}", "running")
                live.update(table, refresh=True)
            used.append(time.process_time() - cpu)
    return min(used)


@pytest.mark.paced
async def test_it_costs_little(capsys: pytest.CaptureFixture[str]) -> None:
    """With 2,000 tasks some 1 % of a core, and at most a thirtieth of what a row for each task costs."""
    progress = Progress(title="prompts.txt → images", total=TASKS)
    advancing = asyncio.create_task(advance(progress))
    async with Drawing(lambda width: progress.lines(time.monotonic(), width), console()):
        share = await cpu_of_a_second()
    advancing.cancel()
    control = cpu_of_rows()
    with capsys.disabled():
        print(f" {share:.1%} of a core, {control:.1%} with a row for each task ", end="")
    assert 30 * share < control
