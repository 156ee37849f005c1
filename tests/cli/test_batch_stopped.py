"""A batch that is watched, interrupted or killed, in a pseudo-terminal and without one."""

import asyncio
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from image_folders import Folder, fetches
from programs import AGAIN, Command, against, in_terminal, outcome_of, paid, read_until, submits

from kie4o import AsyncKieClient
from kie4o.emulator import Emulator

pytestmark = pytest.mark.once

terminal = pytest.mark.posix("pseudo-terminals and SIGINT for a child process")
SPEED = 50.0
WORDS = ("batch", "prompts.txt", "--out", "images", "--speed", f"{SPEED:g}")
GO_ON = f"to go on: {AGAIN} {' '.join(WORDS)}"


def kie_of(**settings: Any) -> Emulator:
    return Emulator(clock="real", **{"speed": SPEED, "credits": 1e6, "pictures": False} | settings)


def batch(kie: Emulator, folder: Path, *more: str, words: tuple[str, ...] = WORDS) -> Command:
    return against(kie, folder, *words, *more)


def folder_of(tmp_path: Path, count: int) -> Folder:
    """The folder that the images of so many prompts go to."""
    (tmp_path / "prompts.txt").write_text("".join(f"Lake {number}\n" for number in range(count)))
    return Folder(tmp_path / "images")


def check_complete(kie: Emulator, folder: Folder, count: int) -> None:
    """One paid task, one whole image and one line for each prompt, and nothing half written."""
    assert paid(kie) == submits(kie) == len(folder.images) == count
    assert not folder.unfinished_files
    folder.check_images()
    assert len(folder.latest) == len(folder.records) == count
    assert {record["state"] for record in folder.records} == {"done"}
    assert {task.request["prompt"] for task in kie.tasks.values()} == {
        record["prompt"] for record in folder.records
    }


# -- on the screen ---------------------------------------------------------------------------------


@terminal
@pytest.mark.parametrize("columns", [40, 100])
async def test_progress_in_a_terminal(tmp_path: Path, columns: int) -> None:
    """Counts, credits, pace and a bar, in lines that fit; afterwards only the summary is left."""
    folder = folder_of(tmp_path, 60)
    async with kie_of() as kie, in_terminal(batch(kie, tmp_path), columns=columns) as screen:
        await screen.until("images/min")
        assert await screen.status() == 0
        drawn = [line for line in screen.drawn if "·" in line or "━" in line]
        assert max(map(len, drawn)) <= columns
        for words in ("waiting", "running", " done", "0 failed", "0 unknown", "credits", "min", "/60"):
            assert any(words in line for line in screen.drawn), words
        assert "60 of 60 done" in screen.text
        assert "\x1b[?25h" in screen.raw  # the cursor is back
    check_complete(kie, folder, 60)


@terminal
@pytest.mark.parametrize("columns", [40, 100])
async def test_it_says_why_it_pauses(tmp_path: Path, columns: int) -> None:
    """While Kie is under maintenance the screen says so, and counts down to the next try: 60 s, at this speed
    three."""
    folder_of(tmp_path, 3)
    words = tuple("20" if word == f"{SPEED:g}" else word for word in WORDS)
    async with kie_of(speed=20.0, duration=60.0) as kie:
        kie.fault("submit", code=455, times=3)
        async with in_terminal(batch(kie, tmp_path, words=words), columns=columns) as screen:
            await screen.until("Kie is under maintenance")
            assert await screen.status() == 0
            text = " ".join(screen.text.split())
            told = re.findall(r"Kie is under maintenance \(455\); next try in (\d+) s", text)
            assert told == sorted(told, reverse=True)
            assert {*told} <= {"3", "2", "1"}
            assert told
            assert "under maintenance" not in screen.text[screen.text.rindex("3 running") :]


async def test_a_pause_is_one_line_where_nothing_can_be_drawn(tmp_path: Path) -> None:
    """However many requests it affects."""
    folder_of(tmp_path, 10)
    words = tuple("20" if word == f"{SPEED:g}" else word for word in WORDS)
    async with kie_of(speed=20.0) as kie:
        kie.fault("submit", code=455, times=10)
        outcome = await batch(kie, tmp_path, words=words).run()
    assert outcome.status == 0
    assert len([line for line in outcome.notes if "under maintenance" in line]) == 1


# -- Ctrl-C ----------------------------------------------------------------------------------------


@terminal
async def test_ctrl_c_once_stops_and_drains(tmp_path: Path) -> None:
    """Nothing more is submitted, what is paid is saved, the page is written; the same command goes on."""
    folder = folder_of(tmp_path, 200)
    async with kie_of() as kie:
        async with in_terminal(batch(kie, tmp_path), columns=200) as screen:
            await screen.until("images/min")
            screen.press_ctrl_c()
            await screen.until("stopping: nothing more is submitted; Ctrl-C again stops at once")
            assert await screen.status() == 130
            assert screen.text.count(GO_ON) == 2  # at once, and at the end
        assert 0 < paid(kie) == len(folder.images) == len(folder.records) < 200
        assert (folder.path / "index.html").is_file()
        images = folder.identities()
        outcome = await batch(kie, tmp_path).run()
        assert outcome.status == 0
        assert outcome.notes[0].startswith(
            f"{len(images)} done, 0 under way, 0 unknown, {200 - len(images)} to"
        )
    assert images.items() <= folder.identities().items()
    assert fetches(kie) == 200
    check_complete(kie, folder, 200)


@terminal
async def test_after_ctrl_c_the_counts_stay_true(tmp_path: Path) -> None:
    """What is not submitted stays so while the rest ends, whenever one looks."""
    folder_of(tmp_path, 30)
    async with kie_of() as kie:
        for number in range(30):
            kie.plan(f"Lake {number}", duration=60.0 + 4 * number)
        command = batch(kie, tmp_path, "--max-in-flight", "20")
        async with in_terminal(command, columns=200) as screen:
            await screen.until("20 running")
            screen.press_ctrl_c()
            assert await screen.status() == 130
    drawn = [line for line in screen.drawn if " running · " in line]
    after = [line for line in drawn if "not submitted" in line]
    assert len(after) > 3
    assert drawn[-len(after) :] == after
    assert {line.partition(" · ")[0] for line in after} == {"10 not submitted"}
    assert "images/min" not in "".join(after)


@terminal
async def test_ctrl_c_twice_stops_at_once(tmp_path: Path) -> None:
    """Long tasks are not waited for, and not paid again by the command that goes on."""
    folder = folder_of(tmp_path, 30)
    async with kie_of(duration=2000.0) as kie:
        async with in_terminal(batch(kie, tmp_path), columns=200) as screen:
            await screen.until("30 running")
            screen.press_ctrl_c()
            await screen.until("stopping")
            began = time.monotonic()
            screen.press_ctrl_c()
            assert await screen.status() == 130
            assert time.monotonic() - began < 5
            assert screen.lines[-2:] == [f"kie4o: {GO_ON}", "kie4o: interrupted"]
        count = paid(kie)
        assert count == 30
        for task in kie.tasks.values():
            task.duration = 1.0
        outcome = await batch(kie, tmp_path, "--limit", "0").run()
        assert outcome.notes[0].startswith(f"0 done, {count} under way, 0 unknown, 0 to submit")
    assert paid(kie) == len(folder.images) == count


@pytest.mark.posix("signals for a child process")
async def test_sigterm_drains_too(tmp_path: Path) -> None:
    """As a container is stopped. Without a terminal the line with the command is there too."""
    folder = folder_of(tmp_path, 200)
    async with kie_of() as kie:
        process = await batch(kie, tmp_path, "--progress-every", "0.2").start()
        err = await read_until(process, b"running \xc2\xb7 ")
        process.send_signal(signal.SIGTERM)
        outcome = await outcome_of(process, err)
    assert outcome.status == 130
    assert any(line.startswith("stopping: nothing more is submitted") for line in outcome.notes)
    assert f"{AGAIN} {' '.join(WORDS)}" in outcome.err
    assert paid(kie) == len(folder.images) < 200


@pytest.mark.posix("signals for a child process")
async def test_sigterm_twice_stops_a_background_job_at_once(tmp_path: Path) -> None:
    """It ignores Ctrl-C, as shells without job control start it; the first SIGTERM drains all the same."""
    folder_of(tmp_path, 30)
    async with kie_of(duration=2000.0) as kie:
        ignore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
        process = await batch(kie, tmp_path, "--progress-every", "0.2").start(**ignore)
        err = await read_until(process, b"30 running \xc2\xb7 ")
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        err += await read_until(process, b"stopping: nothing more is submitted")
        process.send_signal(signal.SIGTERM)
        outcome = await outcome_of(process, err)
    assert outcome.status == 130
    assert outcome.notes[-1] == "interrupted"


@terminal
async def test_ctrl_c_after_the_last_submit_is_no_failure(tmp_path: Path) -> None:
    """If nothing is left after it, the batch is complete."""
    folder = folder_of(tmp_path, 5)
    async with kie_of(duration=100.0) as kie:
        async with in_terminal(batch(kie, tmp_path)) as screen:
            await screen.until("5 running")
            screen.press_ctrl_c()
            assert await screen.status() == 0
    check_complete(kie, folder, 5)


# -- kill -9 ---------------------------------------------------------------------------------------


async def settle_unknown(kie: Emulator, store: Path) -> None:
    """What a person does with requests that were cut off before their answer: look for them at Kie."""
    found = {task.request["prompt"]: task.id for task in kie.tasks.values()}
    async with AsyncKieClient("k", base_url=kie.url, store=store) as client:
        for entry in [entry async for entry in client.unfinished() if entry.task_id is None]:
            task_id = found.get(entry.request.prompt)
            await client.settle(entry.key, task_id=task_id, charged=None if task_id else False)


async def killed_and_run_again(tmp_path: Path, count: int, speed: float) -> None:
    """Kill a batch at three moments, and run it again each time."""
    folder = folder_of(tmp_path, count)
    words = tuple(f"{speed:g}" if word == f"{SPEED:g}" else word for word in WORDS)
    results = folder.path / "results.jsonl"

    async def run() -> int | None:
        process = await batch(kie, tmp_path, words=words).start()
        await asyncio.wait_for(process.communicate(), 300)
        return process.returncode

    async with kie_of(speed=speed) as kie:
        for share in (0.15, 0.45, 0.75):
            process = await batch(kie, tmp_path, words=words).start()
            async with asyncio.timeout(300):
                while not results.is_file() or results.read_bytes().count(b"\n") < share * count:
                    await asyncio.sleep(0.01)
            process.kill()
            await process.communicate()
            folder.check_images()  # none is half written, and none that is recorded is missing
        saved, fetched = folder.identities(), fetches(kie)
        assert paid(kie) == submits(kie)
        status = await run()
        unknown = [record["key"] for record in folder.records if record["state"] == "unknown"]
        assert status == (4 if unknown else 0)
        if unknown:
            await settle_unknown(kie, folder.path / "kie4o.db")
            assert await run() == 0
        assert saved.items() <= folder.identities().items()
        assert fetches(kie) - fetched == count - len(saved)  # what is on the disk is not fetched
    assert paid(kie) == submits(kie) == len(folder.images) == count
    folder.check_images()
    assert len({task.request["prompt"] for task in kie.tasks.values()}) == count
    assert len(folder.records) == count + len(unknown)
    assert len(folder.latest) == count
    assert {record["state"] for record in folder.latest.values()} == {"done"}


async def test_killed_at_three_moments_it_goes_on(tmp_path: Path) -> None:
    """Every prompt is paid once, and no image is half written or fetched although it is there."""
    await killed_and_run_again(tmp_path, 120, SPEED)


@pytest.mark.sweep
@pytest.mark.proof
async def test_two_thousand_lines_killed_at_three_moments(tmp_path: Path) -> None:
    """The same with 2,000 prompts."""
    await killed_and_run_again(tmp_path, 2000, 100.0)


async def test_a_line_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    """The results stay valid if the machine dies within a write."""
    folder = folder_of(tmp_path, 3)
    async with kie_of() as kie:
        assert (await batch(kie, tmp_path).run()).status == 0
        results = folder.path / "results.jsonl"
        data = results.read_bytes()
        results.write_bytes(data[:-30])
        assert (await batch(kie, tmp_path).run()).status == 0
        assert results.read_bytes().endswith(b"}\n")
    assert fetches(kie) == 3
    check_complete(kie, folder, 3)


async def test_what_a_killed_download_left_is_removed(tmp_path: Path) -> None:
    """Once no download can be writing it any more."""
    folder = folder_of(tmp_path, 1)
    folder.path.mkdir()
    for name, age in (("old", 3600), ("new", 10)):
        path = folder.path / f".kie4o-{name}"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age, time.time() - age))
    async with kie_of() as kie:
        assert (await batch(kie, tmp_path).run()).status == 0
    assert folder.unfinished_files == [".kie4o-new"]
