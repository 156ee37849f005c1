"""What a batch leaves alone: files of others in its folder, images of other lines, and credits that buy
nothing that can be saved; and what it tells a program."""

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from image_folders import Folder, fetches
from programs import Command, against, in_terminal, outcome_of, paid, was_asked

from kie4o.emulator import Emulator

pytestmark = pytest.mark.once

SPEED = 50.0
WORDS = ("batch", "prompts.txt", "--speed", f"{SPEED:g}")


def kie_of(**settings: Any) -> Emulator:
    return Emulator(clock="real", **{"speed": SPEED, "credits": 1e6, "pictures": False} | settings)


def batch(kie: Emulator, folder: Path, *more: str, **environment: str) -> Command:
    return against(kie, folder, *WORDS, "--out", "images", *more, **environment)


def folder_of(tmp_path: Path, *prompts: str) -> Folder:
    """The folder that the images of these prompts go to."""
    (tmp_path / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in prompts), "utf-8")
    return Folder(tmp_path / "images")


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "path", "other"),
    [
        ("--store", "images/index.html", "index.html"),
        ("--store", "images/results.jsonl", "results.jsonl"),
        ("--store", "prompts.txt", "FILE"),
        ("--failed", "images/kie4o.db", "--store"),
        ("--failed", "images/results.jsonl", "results.jsonl"),
        ("--failed", "prompts.txt", "FILE"),
    ],
)
async def test_no_two_files_of_a_run_are_one(tmp_path: Path, option: str, path: str, other: str) -> None:
    """One would replace the other, such as the store that knows what was paid."""
    folder_of(tmp_path, "A lake")
    async with kie_of() as kie:
        outcome = await batch(kie, tmp_path, option, path).run()
        assert not was_asked(kie)
    assert outcome.status == 2
    assert outcome.notes == [f"{option} '{Path(path)}' is {other} itself: expected another file"]
    assert (tmp_path / "prompts.txt").read_text("utf-8") == "A lake\n"


async def test_files_of_others_stay(tmp_path: Path) -> None:
    """A page that kie4o has not written, and the last line of results that it has not written."""
    folder = folder_of(tmp_path, "A lake")
    folder.path.mkdir()
    (folder.path / "index.html").write_text("<p>mine</p>")
    (folder.path / "results.jsonl").write_text('{"mine": 1}')
    async with kie_of() as kie:
        outcome = await batch(kie, tmp_path).run()
    assert outcome.status == 0
    page = folder.path / "index.html"
    assert outcome.notes[-1] == (
        f"the gallery was not written: '{page}' is not a page of kie4o, and is kept; move it to another name"
    )
    assert page.read_text() == "<p>mine</p>"
    assert folder.records[0] == {"mine": 1}
    assert folder.images == ["0001.png"]


async def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    """Incomplete thumbnails too, once nobody can be writing them any more."""
    folder = folder_of(tmp_path, "A lake")
    thumbnails = folder.path / ".thumbs"
    thumbnails.mkdir(parents=True)
    for name, age in ((".kie4o-old", 3600), (".kie4o-new", 10)):
        (thumbnails / name).write_bytes(b"half")
        os.utime(thumbnails / name, (time.time() - age, time.time() - age))
    async with kie_of() as kie:
        assert (await batch(kie, tmp_path).run()).status == 0
    assert sorted(path.name for path in thumbnails.glob(".kie4o-*")) == [".kie4o-new"]


async def test_an_image_of_another_line_is_not_taken(tmp_path: Path) -> None:
    """A killed run has saved lines 1 and 2 without records of them. Then lines move: the file of a number is
    not the image of the line that has the number now."""
    folder = folder_of(tmp_path, "A hill", "A lake", "A harbour")
    async with kie_of() as kie:
        assert (await batch(kie, tmp_path).run()).status == 0
        (folder.path / "results.jsonl").unlink()
        (folder.path / "0003.png").unlink()
        lake = (folder.path / "0002.png").stat()
        folder_of(tmp_path, "A boat", "A harbour", "A hill", "A lake")
        assert (await batch(kie, tmp_path, "--limit", "0").run()).status == 5
    files = {record["prompt"]: record["files"] for record in folder.records}
    assert files["A harbour"] == ["0002-2.png"]
    assert files["A lake"] == ["0004.png"]
    assert (folder.path / "0002.png").stat() == lake
    assert paid(kie) == 3


# -- a folder that takes no image ------------------------------------------------------------------


@pytest.mark.posix("a folder with open files that is renamed")
async def test_nothing_more_is_paid_for_once_the_folder_takes_no_image(tmp_path: Path) -> None:
    """What is paid is still waited for, all of it counts as paid, and the next run saves it."""
    folder = folder_of(tmp_path, *(f"Lake {number}" for number in range(30)))
    words = ("--store", "run.db", "--max-in-flight", "2")
    async with kie_of() as kie:
        process = await batch(kie, tmp_path, *words, "--json").start()
        while not fetches(kie):
            await asyncio.sleep(0.01)
        folder.path.rename(tmp_path / "away")
        folder.path.write_text("a file")
        outcome = await outcome_of(process)
        spent = paid(kie)
        assert outcome.status == 1
        assert outcome.notes[-1].startswith(f"stopped: cannot write to --out '{folder.path.name}': ")
        [summary] = [each for each in outcome.records if each["event"] == "summary"]
        assert spent < 12
        assert summary["not_submitted"] == 30 - spent
        folder.path.unlink()
        (tmp_path / "away").rename(folder.path)
        again = await batch(kie, tmp_path, *words, "--limit", "0").run()
    assert again.status == 5, again.err
    assert len(folder.images) == spent


@pytest.mark.posix("/dev/full")
async def test_nothing_more_is_paid_for_once_nothing_can_be_printed(tmp_path: Path) -> None:
    """A full disk under stdout is one line and status 1; the images that are paid are saved all the same."""
    folder = folder_of(tmp_path, *(f"Lake {number}" for number in range(30)))
    with Path("/dev/full").open("wb") as full:
        async with kie_of() as kie:
            process = await batch(kie, tmp_path, "--json", "--max-in-flight", "2").start(stdout=full)
            outcome = await outcome_of(process)
    assert (outcome.status, outcome.notes[-1]) == (1, "No space left on device")
    assert len(folder.images) == paid(kie) < 12


# -- what a program reads --------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--nonsense"], ["--size", "9:9"], ["--store", "prompts.txt"]])
async def test_every_object_is_an_event(tmp_path: Path, words: list[str]) -> None:
    """Wrong usage too, whoever finds it."""
    folder_of(tmp_path, "A lake")
    async with kie_of() as kie:
        outcome = await batch(kie, tmp_path, "--json", *words).run()
    assert outcome.status == 2
    [record] = outcome.records
    assert (record["event"], record["error"]) == ("error", "UsageError")


@pytest.mark.posix("pseudo-terminals")
@pytest.mark.parametrize("command", ["batch", "generate"])
async def test_ctrl_c_ends_reading_at_once(tmp_path: Path, command: str) -> None:
    """Nothing was sent, so there is nothing to wait for; before that it is said what is waited for."""
    words = (command, "-", "--out", "images", "--json")
    async with kie_of() as kie, in_terminal(against(kie, tmp_path, *words), columns=1000) as screen:
        await screen.until("reading standard input; Ctrl-D ends it")
        screen.press_ctrl_c()
        assert await screen.status() == 130
    [line] = [line for line in screen.text.splitlines() if "{" in line]
    record = json.loads(line[line.index("{") :])
    assert record.get("event") == ("error" if command == "batch" else None)
    assert (record["error"], record["message"]) == ("KeyboardInterrupt", "interrupted")


async def test_output_is_json_in_any_encoding(tmp_path: Path) -> None:
    """Where stdout lacks a character, and for a reader that takes U+2028 as the end of a line."""
    folder_of(tmp_path, "A caf\N{LATIN SMALL LETTER E WITH ACUTE}\N{LINE SEPARATOR}\N{GRINNING FACE}")
    async with kie_of() as kie:
        outcome = await batch(kie, tmp_path, "--json", PYTHONIOENCODING="ascii").run()
    item = next(each for each in outcome.records if each["event"] == "item")
    assert item["prompt"] == "A caf\N{LATIN SMALL LETTER E WITH ACUTE}\N{LINE SEPARATOR}\N{GRINNING FACE}"


@pytest.mark.parametrize("option", ["--out", "--store", "--failed"])
async def test_a_home_that_is_not_there(tmp_path: Path, option: str) -> None:
    """`~nobody` is an option that cannot be used, and no folder of that name."""
    folder_of(tmp_path, "A lake")
    out = () if option == "--out" else ("--out", "images")
    async with kie_of() as kie:
        outcome = await against(kie, tmp_path, *WORDS, *out, option, "~nobody-of-this-name/x").run()
        assert not was_asked(kie)
    assert outcome.status == 2
    assert outcome.notes[0].startswith(f"invalid {option} '~nobody-of-this-name")


async def test_a_warning_names_its_line(tmp_path: Path) -> None:
    """What costs credits for nothing is said once, with its first line and how many more there are."""
    lines = [{"prompt": "A lake", "mask": "https://example.com/m.png"}] * 3
    (tmp_path / "requests.jsonl").write_text('{"prompt": "A hill"}\n' + "\n".join(map(json.dumps, lines)))
    async with kie_of() as kie:
        words = ("batch", "requests.jsonl", "--out", "images", "--dry-run")
        outcome = await against(kie, tmp_path, *words).run()
    assert outcome.status == 0
    assert outcome.notes == ["line 2 and 2 more: mask has no effect without a file: pass file"]
