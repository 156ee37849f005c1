"""docs/command-line.md: every command on the page runs, in its order, and the tables are true."""

import re
import shlex
from pathlib import Path

import pytest
from pages import pages
from programs import FAST, Command, against

from kie4o.cli.terminal import Status
from kie4o.emulator import Emulator

pytestmark = pytest.mark.once

PAGE = pages()["docs/command-line.md"]
LINES = [line for block in PAGE.blocks if block.language == "sh" for line in block.code.splitlines()]
UNTIL_CTRL_C = ("listen", "emulator")


async def test_every_command_on_the_page_runs(tmp_path: Path) -> None:
    """One after the other in one folder, with a task id and a key where the page has TASK_ID and KEY."""
    (tmp_path / "prompts.txt").write_text("A hill\nA valley\n")
    async with Emulator(clock="real", **FAST) as kie:
        for line in LINES:
            words = shlex.split(line)
            assert words[0] == "kie4o"
            if words[1] in UNTIL_CTRL_C:
                words = [*words, "--help"]
            if words[1] == "settle":
                outcome = "[[kie:dropped]]" if "--not-charged" in words else "[[kie:stuck]]"
                await _with_an_unknown_outcome(kie, tmp_path, outcome)
            stdin = (tmp_path / words.pop()).read_text() if "<" in words else ""
            tasks = [*kie.tasks]
            filled = [
                {"TASK_ID": tasks[-1] if tasks else "", "KEY": "k9", "<": ""}.get(word, word)
                for word in words
            ]
            environment = {"HOME": str(tmp_path), "SHELL": "/bin/bash", "stdin": stdin}
            outcome = await against(kie, tmp_path, *filter(None, filled[1:]), **environment).run()
            assert outcome.status == 0, (line, outcome)


async def _with_an_unknown_outcome(kie: Emulator, folder: Path, outcome: str) -> None:
    """A request under the key k9 whose answer was lost; with a task, or without one."""
    if "stuck" in outcome:
        kie.fault("submit", cut=0, charged=True)
    words = (
        "generate",
        f"A lost lake {outcome}" if "dropped" in outcome else "A lost lake",
        "--store",
        "run.db",
    )
    (folder / "run.db").unlink(missing_ok=True)
    assert (await against(kie, folder, *words, "--key", "k9").run()).status == Status.UNKNOWN


def test_the_exit_statuses_are_those_of_the_program() -> None:
    """Every status has a row."""
    [table] = [each for each in PAGE.tables if each.head[0] == "status"]
    assert [int(row[0]) for row in table.rows] == [int(status) for status in Status]


async def test_the_page_names_every_command(tmp_path: Path) -> None:
    """Whatever the help lists is on the page."""
    help_ = (await Command(tmp_path, "--help").run()).out
    names = re.findall(r"^│ (--install-completion|[a-z]+) ", help_, re.MULTILINE)
    assert "generate" in names
    assert [name for name in names if not re.search(rf"\bkie4o {name}\b", PAGE.text)] == []
