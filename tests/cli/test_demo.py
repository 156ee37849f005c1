"""`kie4o demo`, as a newcomer runs it: in a terminal and in a pipe, without a key."""

import asyncio
import json
import os
import re
import shlex
import signal
import sys
from pathlib import Path

import pytest
from image_folders import Folder
from portable import PATIENCE
from programs import FAST, Command, Screen, against, in_terminal, outcome_of, was_asked

from kie4o.emulator import Emulator

pytestmark = pytest.mark.once

terminal = pytest.mark.posix("pseudo-terminals and SIGINT for a child process")
processes = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="/proc lists the processes")
SPEED = ("--speed", "10")
KILLED = "killed it; running the same command again"
COUNTED = "the emulator has counted 12 paid tasks for 12 requests: nothing was paid twice; "
REMEDY = "in a checkout of kie4o, run: pip install '.[cli]'"


def demo(folder: Path, *more: str, **environment: str) -> Command:
    return Command(folder, "demo", *SPEED, *more, **environment)


def check_images(folder: Path) -> None:
    """Twelve whole images of eleven requests, a record of each and of the refused one, and the page."""
    images = Folder(folder)
    assert len(images.images) == 12
    images.check_images()
    records = images.latest.values()
    assert sorted(record["state"] for record in records) == ["done"] * 11 + ["failed"]
    assert sorted(name for record in records for name in record["files"]) == images.images
    page = (folder / "index.html").read_text("utf-8")
    assert all(name in page for name in images.images)


def joined(screen: Screen) -> str:
    """What is left on the screen, in lines that are not wrapped."""
    return "".join(f"{line}\n" if len(line) < screen.columns else line for line in screen.left)


def children(process: int) -> list[int]:
    """The processes that this one has started, and that have not ended."""
    return [
        int(status.parent.name)
        for status in Path("/proc").glob("[0-9]*/stat")
        if status.exists() and status.read_text().rpartition(")")[2].split()[1] == str(process)
    ]


def is_alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


async def test_it_shows_a_rate_limit_a_failure_a_crash_and_the_gallery(tmp_path: Path) -> None:
    """In a pipe every line is plain. No settings are used, Kie is not asked, and no key is needed."""
    async with Emulator(clock="real", **FAST) as kie:
        environment = {"KIE_BASE_URL": kie.url, "KIE_UPLOAD_URL": kie.url, "KIE_SPEED": "x"}
        outcome = await demo(tmp_path, "--out", "here", **environment).run()
        assert not was_asked(kie)
    assert outcome.status == 0
    assert "\x1b" not in outcome.out + outcome.err
    said = outcome.err
    assert said.index("too many calls") < said.index(KILLED)
    assert "line 6: task " in said
    again = re.search(
        r"(\d+) done, (\d+) under way, 0 unknown, .*(\d+) to submit", said[said.index(KILLED) :]
    )
    assert again is not None
    assert int(again[1]) >= 3
    assert outcome.out.splitlines()[0].startswith(
        "11 of 12 done, 1 failed, 0 unknown, 0 not submitted; 12 im"
    )
    assert COUNTED in outcome.out
    assert f"open {tmp_path / 'here' / 'index.html'}\n" in outcome.out
    page = (tmp_path / "here" / "index.html").read_text("utf-8")
    assert "to submit" not in outcome.out  # its Kie has ended
    assert '<code id="retry">' not in page
    assert re.search(
        r"; \d+ attempts were refused because of the rate limit, and cost nothing\n", outcome.out
    )
    for said_by_one in said.split(KILLED):
        assert said_by_one.count("too many calls") <= 1
    check_images(tmp_path / "here")


@pytest.mark.posix("the quotes of its shells")
async def test_its_last_line_works_as_typed(tmp_path: Path) -> None:
    """Without a key it tells a price; with a key and without --dry-run it generates the same requests."""
    outcome = await demo(tmp_path, "--out", "a demo").run()
    last = shlex.split(outcome.out.splitlines()[-1])
    assert last[:2] == [sys.executable, "-m"]
    plain = Command(tmp_path, *last[3:], program=("-m", last[2]))
    outcome = await plain.run()
    assert outcome.status == 0
    assert outcome.out == "0 done, 0 under way, 0 unknown, 12 to submit for 78 credits; nothing was sent\n"
    assert not (tmp_path / "images").exists()
    async with Emulator(clock="real", **FAST) as kie:
        words = [word for word in last[3:] if word != "--dry-run"]
        outcome = await against(kie, tmp_path, *words).run()
        assert outcome.status == 0
        assert kie.paid == 12


@terminal
@pytest.mark.parametrize("columns", [40, 100])
async def test_in_a_terminal(tmp_path: Path, columns: int) -> None:
    """Progress is drawn, what is said stays, and the cursor that the killed process had hidden is back."""
    async with in_terminal(demo(tmp_path), columns=columns) as screen:
        assert await screen.status() == 0
    assert "━" in screen.text
    assert max(len(line) for line in screen.drawn if "━" in line or "·" in line) <= columns
    assert "too many" in screen.text
    left = joined(screen)
    for words in ("it takes 4 new tasks", "12 to submit", "line 6: task", KILLED, COUNTED, "--dry-run"):
        assert words in left, words
    assert left.count("kie4o: line 6: task") == 1
    assert re.findall(r"\x1b\[\?25[lh]", screen.raw)[-1] == "\x1b[?25h"
    killed = screen.raw.index(KILLED)
    assert screen.raw.rindex("\x1b[?25h", 0, killed) > screen.raw.rindex("\x1b[?25l", 0, killed)
    check_images(tmp_path / "kie4o-demo")


async def test_it_runs_again_in_the_same_folder(tmp_path: Path) -> None:
    """The images of the earlier demo are replaced, which is said; what else is in the folder is kept."""
    assert (await demo(tmp_path).run()).status == 0
    mine = tmp_path / "kie4o-demo" / "notes.txt"
    mine.write_text("mine")
    outcome = await demo(tmp_path).run()
    assert outcome.status == 0
    assert outcome.notes[0] == "replacing the images of an earlier demo in 'kie4o-demo'"
    assert COUNTED in outcome.out
    assert mine.read_text() == "mine"
    check_images(tmp_path / "kie4o-demo")


async def test_it_replaces_no_other_batch(tmp_path: Path) -> None:
    """A folder with the results of a batch is left as it is."""
    async with Emulator(clock="real", **FAST) as kie:
        (tmp_path / "prompts.txt").write_text("A lake\n")
        assert (await against(kie, tmp_path, "batch", "prompts.txt", "--out", "mine").run()).status == 0
    before = {path: path.read_bytes() for path in (tmp_path / "mine").iterdir() if path.is_file()}
    outcome = await demo(tmp_path, "--out", "mine").run()
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.notes == ["--out 'mine' has the images of a batch: expected a new folder"]
    assert before == {path: path.read_bytes() for path in (tmp_path / "mine").iterdir() if path.is_file()}


async def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """One line, status 2, and nothing is run."""
    (tmp_path / "file").write_text("")
    outcome = await demo(tmp_path, "--out", "file").run()
    assert (outcome.status, outcome.out) == (2, "")
    [line] = outcome.notes
    assert line.startswith("cannot write to --out 'file': ")


@pytest.mark.parametrize(("module", "name"), [("PIL", "Pillow"), ("jinja2", "Jinja2")])
async def test_without_a_package_it_says_what_to_install(tmp_path: Path, module: str, name: str) -> None:
    """Before anything is run or written."""
    program = f"import sys; sys.modules['{module}'] = None; from kie4o.cli import main; main()"
    outcome = await Command(tmp_path, "demo", program=("-c", program)).run()
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.notes == [f"the demo needs {name}; {REMEDY}"]
    assert not [*tmp_path.iterdir()]


@terminal
@processes
@pytest.mark.parametrize("moment", ["running: ", "running ·", KILLED])
async def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, moment: str) -> None:
    """One line and status 130; the batch has ended too, and the cursor is back. It can be run again."""
    command = Command(tmp_path, "demo", "--speed", "5")
    async with in_terminal(command) as screen:
        await screen.until(moment)
        started = children(screen.process.pid)
        screen.press_ctrl_c()
        assert await screen.status() == 130
        assert screen.text.splitlines()[-1].endswith("kie4o: interrupted")  # after the ^C of the terminal
        assert not [process for process in started if is_alive(process)]
    assert "stopping" not in screen.text  # the batch has not seen it
    assert re.findall(r"\x1b\[\?25[lh]", screen.raw)[-1:] in ([], ["\x1b[?25h"])
    outcome = await demo(tmp_path).run()
    assert outcome.status == 0
    check_images(tmp_path / "kie4o-demo")


@processes
@pytest.mark.posix("signals for a child process")
async def test_sigterm_ends_the_batch_too(tmp_path: Path) -> None:
    """As when a session ends."""
    process = await Command(tmp_path, "demo", "--speed", "1").start()
    async with asyncio.timeout(PATIENCE):
        while not (started := children(process.pid)):
            await asyncio.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    outcome = await outcome_of(process)
    assert outcome.status == 130
    assert not [child for child in started if is_alive(child)]


async def test_for_a_program_every_line_is_an_object(tmp_path: Path) -> None:
    """With --json stdout has the events of the batch, and at the end what the emulator has counted."""
    outcome = await demo(tmp_path, "--json").run()
    assert outcome.status == 0
    events = [json.loads(line) for line in outcome.out.splitlines()]
    assert [event["event"] for event in events].count("plan") == 2
    last = events[-1]
    assert last["event"] == "demo"
    assert (last["requests"], last["paid"], last["paid_twice"]) == (12, 12, 0)
    assert last["refused"] > 0
    assert last["gallery"] == str(tmp_path / "kie4o-demo" / "index.html")


async def test_it_is_the_same_program_as_a_script(tmp_path: Path) -> None:
    """Started by the path of a script, as pip installs it, the batch is that script too."""
    script = tmp_path / "kie4o"
    script.write_text(
        "import sys\nfrom kie4o.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
    )
    outcome = await Command(tmp_path, "demo", *SPEED, program=(os.fspath(script),)).run()
    assert outcome.status == 0
    assert f"running: {script} batch " in outcome.err
    assert outcome.out.splitlines()[-1].startswith(f"{script} batch ")
