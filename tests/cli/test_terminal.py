"""What a person sees in a terminal: progress that is true, why nothing happens, and how Ctrl-C ends."""

import asyncio
import re
import signal
from pathlib import Path

import pytest
from programs import (
    AGAIN,
    FAST,
    against,
    in_terminal,
    outcome_of,
    paid,
    polls,
    read_until,
    submits,
    was_asked,
)

from kie4o.emulator import Emulator

pytestmark = [pytest.mark.once, pytest.mark.posix("pseudo-terminals and SIGINT for a child process")]
HINT = f"to go on: {AGAIN} wait"


# -- progress --------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [40, 80])
async def test_it_is_running_once_the_task_is_paid(tmp_path: Path, columns: int) -> None:
    """The line says "waiting" until Kie has answered and "running" from then on, not after the first poll. No
    line is wider than the terminal."""
    async with Emulator(clock="real", duration=1000.0, latency=0.5) as kie:
        command = against(kie, tmp_path, "generate", "A long lake of many words in the north of Finland")
        async with in_terminal(command, columns=columns) as screen:
            await screen.until("waiting")
            await screen.until("running")
            assert paid(kie) == 1
            assert polls(kie) == 0
            drawn = [line for line in screen.drawn if re.match(r" *\d+ s  ", line)]
            assert drawn
            assert max(map(len, drawn)) <= columns
            screen.press_ctrl_c()
            assert await screen.status() == 130


async def test_the_screen_is_left_clean(tmp_path: Path) -> None:
    """The progress goes when it ends; the paths stay, whole, in a terminal of 40 columns."""
    async with Emulator(clock="real", **FAST) as kie:
        command = against(kie, tmp_path, "generate", "A lake", "A hill", "--name", "a picture of it")
        async with in_terminal(command, columns=40) as screen:
            assert await screen.status() == 0
            assert "0 of 2 done" in screen.text
            assert str(tmp_path / "a picture of it-1.png") in screen.text
            assert str(tmp_path / "a picture of it-2.png") in screen.text
            assert "\x1b[?25h" in screen.raw  # the cursor is back


@pytest.mark.parametrize("columns", [40, 100])
async def test_what_is_said_stays_on_the_screen(tmp_path: Path, columns: int) -> None:
    """Progress that is drawn again below a path or an error erases nothing of it."""
    prompts = ("A lake", "A hill [[kie:policy]]", "A valley")
    async with Emulator(clock="real", **FAST) as kie:
        command = against(kie, tmp_path, "generate", *prompts, "--name", "it")
        async with in_terminal(command, columns=columns) as screen:
            assert await screen.status() == 3
    left = "".join(line.rstrip() if len(line) < columns else line for line in screen.left)
    assert "A hill [[kie:policy]]: task" in left
    assert all(str(tmp_path / f"it-{number}.png") in left for number in (1, 3))
    assert "of 3 done" not in left


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
async def test_no_colour_where_none_is_wanted(tmp_path: Path, variables: dict[str, str]) -> None:
    """NO_COLOR turns colours off, and a dumb terminal gets plain lines."""
    async with Emulator(clock="real", **FAST) as kie:
        async with in_terminal(against(kie, tmp_path, "generate", "A lake", **variables)) as screen:
            assert await screen.status() == 0
            assert not re.search(r"\x1b\[[0-9;]*m", screen.raw.replace("\x1b[0m", ""))
            if "TERM" in variables:
                assert "\x1b" not in screen.raw
                assert "A lake: running" in screen.text


async def test_quiet_says_only_what_matters(tmp_path: Path) -> None:
    """With --quiet neither notes nor progress: the path alone; errors are still said."""
    async with Emulator(clock="real", **FAST) as kie:
        async with in_terminal(against(kie, tmp_path, "generate", "A lake", "--quiet")) as screen:
            assert await screen.status() == 0
            [line] = screen.text.split()
            assert line.endswith(".png")
        outcome = await against(kie, tmp_path, "generate", "A [[kie:policy]] lake", "--quiet").run()
        assert outcome.status == 1
        assert len(outcome.err.splitlines()) == 1


async def test_verbose_prints_the_log(tmp_path: Path) -> None:
    """With --verbose every line of the log is on stderr."""
    async with Emulator(clock="real", **FAST) as kie:
        outcome = await against(kie, tmp_path, "generate", "A lake", "--verbose").run()
    assert outcome.status == 0
    assert any(re.search(r"INFO task \w+ succeeded after", line) for line in outcome.notes)
    assert any("DEBUG POST /api/v1/gpt4o-image/generate: 200" in line for line in outcome.notes)


# -- pauses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [40, 100])
async def test_a_pause_is_said_while_it_lasts(tmp_path: Path, columns: int) -> None:
    """Under maintenance the next try is in 60 s: a terminal counts down, and nothing is paid meanwhile."""
    async with Emulator(clock="real") as kie:
        command = against(kie, tmp_path, "generate", "A lake [[kie:455]]")
        async with in_terminal(command, columns=columns) as screen:
            await screen.until("Kie is under maintenance (455); next try")
            await screen.until("59 s")
            await screen.until("58 s")
            screen.press_ctrl_c()
            assert await screen.status() == 130
            assert screen.lines == ["kie4o: interrupted"]
        assert (submits(kie), paid(kie)) == (1, 0)


async def test_a_pause_is_a_line_in_a_pipe(tmp_path: Path) -> None:
    """Where nothing can be drawn, one line says why and for how long."""
    async with Emulator(clock="real") as kie:
        process = await against(kie, tmp_path, "generate", "A lake [[kie:550]]").start()
        stderr = await read_until(process, b"next try")
        process.send_signal(signal.SIGINT)
        outcome = await outcome_of(process, stderr)
    assert outcome.status == 130
    assert outcome.notes == ["Kie's queue is full (550); next try in 30 s", "interrupted"]


# -- Ctrl-C ----------------------------------------------------------------------------------------


async def test_ctrl_c_names_the_command_that_goes_on(tmp_path: Path) -> None:
    """The whole of it, as it was typed; typed again it saves the image where it was wanted."""
    async with Emulator(clock="real", duration=3.0) as kie:
        words = ("A calm lake", "--out", "my images", "--name", "lake", "--exists", "rename", "--json")
        async with in_terminal(against(kie, tmp_path, "generate", *words), columns=40) as screen:
            await screen.until("running")
            screen.press_ctrl_c()
            assert await screen.status() == 130
        [task] = kie.tasks
        rest = f"{task} --out 'my images' --exists rename --name lake --json"
        assert screen.lines[-2:] == [
            f"kie4o: {HINT} {rest}",
            "kie4o: interrupted",
        ]
        outcome = await against(kie, tmp_path, "wait", task, "--out", "my images", "--name", "lake").run()
        assert outcome.out == f"{tmp_path / 'my images' / 'lake.png'}\n"
        assert paid(kie) == 1


async def test_ctrl_c_before_the_answer_waits_for_it(tmp_path: Path) -> None:
    """The request was sent: its answer is awaited, that is said, and the paid task is named."""
    async with Emulator(clock="real", duration=1000.0, latency=2.0) as kie:
        async with in_terminal(against(kie, tmp_path, "generate", "A calm lake")) as screen:
            while not was_asked(kie):
                await asyncio.sleep(0.01)
            screen.press_ctrl_c()
            await screen.until(
                "stopping: waiting for the answers to what was sent; Ctrl-C again stops at once"
            )
            assert await screen.status() == 130
        [task] = kie.tasks
    assert screen.lines[-2:] == [f"kie4o: {HINT} {task}", "kie4o: interrupted"]


async def test_ctrl_c_twice_stops_at_once(tmp_path: Path) -> None:
    """The second one does not wait for answers; what is known to be paid is still named."""
    async with Emulator(clock="real", duration=1000.0) as kie:
        kie.fault("submit", stall=20.0, after=1)
        async with in_terminal(against(kie, tmp_path, "generate", "One", "Two")) as screen:
            await screen.until("is paid")
            while submits(kie) < 2:
                await asyncio.sleep(0.01)
            screen.press_ctrl_c()
            await screen.until("Ctrl-C again stops at once")
            screen.press_ctrl_c()
            assert await asyncio.wait_for(screen.status(), 5) == 130
        [task, *_] = kie.tasks
    assert f"kie4o: {HINT} {task}" in screen.lines[-3:]
    assert screen.lines[-1] == "kie4o: interrupted"


async def test_ctrl_c_names_every_task_that_is_paid(tmp_path: Path) -> None:
    """However many there are: with --quiet it is the only line that has their ids."""
    async with Emulator(clock="real", duration=1000.0, limit=100) as kie:
        words = ("generate", *(f"Lake {number}" for number in range(50)), "--quiet")
        process = await against(kie, tmp_path, *words).start()
        while paid(kie) < 50:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        process.send_signal(signal.SIGINT)
        outcome = await outcome_of(process)
        assert outcome.notes[0].startswith(f"{HINT} ")
        assert set(kie.tasks) <= set(outcome.notes[0].split())


async def test_ctrl_c_with_a_key_names_the_command_itself(tmp_path: Path) -> None:
    """With --store and --key the same command goes on, and keeps what it has saved already."""
    words = ("generate", "One lake", "Two", "--store", "run.db", "--key", "k", "--name", "it")
    async with Emulator(clock="real", duration=1.0) as kie:
        kie.plan("Two", duration=5.0)
        command = against(kie, tmp_path, *words)
        async with in_terminal(command) as screen:
            await screen.until(str(tmp_path / "it-1.png"))
            screen.press_ctrl_c()
            assert await screen.status() == 130
        typed = "generate 'One lake' Two --store run.db --key k --name it --exists keep"
        assert screen.lines[-2:] == [f"kie4o: to go on: {AGAIN} {typed}", "kie4o: interrupted"]
        outcome = await against(kie, tmp_path, *words, "--exists", "keep").run()
        assert outcome.status == 0
        assert paid(kie) == 2
    assert sorted(path.name for path in tmp_path.glob("it*")) == ["it-1.png", "it-2.png"]


async def test_sigterm_is_like_ctrl_c(tmp_path: Path) -> None:
    """What ends a container or a session names the command that goes on too."""
    async with Emulator(clock="real", duration=1000.0) as kie:
        process = await against(kie, tmp_path, "generate", "A calm lake").start()
        stderr = await read_until(process, b"is paid")
        process.send_signal(signal.SIGTERM)
        outcome = await outcome_of(process, stderr)
        [task] = kie.tasks
    assert outcome.status == 130
    assert outcome.notes == [f"task {task} is paid", f"{HINT} {task}", "interrupted"]
    assert not list(tmp_path.iterdir())


async def test_sigterm_ends_a_background_job(tmp_path: Path) -> None:
    """Which ignores Ctrl-C, as shells without job control start it."""
    async with Emulator(clock="real", duration=1000.0) as kie:
        ignore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
        process = await against(kie, tmp_path, "generate", "A calm lake").start(**ignore)
        stderr = await read_until(process, b"is paid")
        process.terminate()
        outcome = await outcome_of(process, stderr)
        [task] = kie.tasks
    assert outcome.status == 130
    assert outcome.notes == [f"task {task} is paid", f"{HINT} {task}", "interrupted"]


async def test_a_store_in_use_is_status_6(tmp_path: Path) -> None:
    """Another process has the store: that is said while it is waited for, then it is an error of its own."""
    async with Emulator(clock="real", duration=1000.0) as kie:
        first = await against(kie, tmp_path, "generate", "A lake", "--store", "run.db").start()
        stderr = await read_until(first, b"is paid")
        outcome = await against(kie, tmp_path, "unfinished", "--store", "run.db").run()
        assert outcome.status == 6
        assert "has the store" in outcome.notes[0]
        first.send_signal(signal.SIGINT)
        await outcome_of(first, stderr)
