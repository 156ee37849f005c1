"""The program `kie4o` as a person runs it: in its own process, with its own environment, in pipes or in a
pseudo-terminal. Warnings are errors there, which reveals anything that a command leaves open."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import portable
from paths import IMPORT_ROOT
from portable import PATIENCE

from kie4o.emulator import Emulator

MODULE = ("-m", "kie4o.cli")
AGAIN = f"{sys.executable} -m kie4o"  # how the program names itself in a hint
PYTHON = (
    "await ",
    "client.",
    "=...",
    "_url",
    "rate_limit",
    "wait_timeout",
    "or None",
    "()",
)  # not for a terminal
KEY = "k-123"
FAST = {"speed": 20.0, "duration": 10.0}  # a task takes half a second
TASK = "0" * 31 + "1"


def paid(kie: Emulator) -> int:
    """How many tasks were paid for."""
    return len(kie.tasks)


def submits(kie: Emulator) -> int:
    """How many submits arrived, paid or not."""
    return _requests(kie, "/generate")


def polls(kie: Emulator) -> int:
    """How many polls arrived."""
    return _requests(kie, "/record-info")


def _requests(kie: Emulator, route: str) -> int:
    return sum(count for path, count in kie.requests.items() if path.endswith(route))


def was_asked(kie: Emulator) -> bool:
    """Whether any request arrived."""
    return bool(kie.requests)


@attrs.frozen
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def notes(self) -> list[str]:
        """The lines of stderr, without the progress and without the name of the program."""
        lines = (line for line in self.err.splitlines() if not line.startswith("   "))
        return [line.removeprefix("kie4o: ") for line in lines]

    @property
    def records(self) -> list[dict[str, Any]]:
        """The JSON objects on stdout."""
        return [json.loads(line) for line in self.out.splitlines()]


class Command:
    """One run of the command line, in this folder and with only this environment."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        program: Sequence[str] = MODULE,
        stdin: str = "",
        **environment: str,
    ) -> None:
        self.folder, self.arguments, self.stdin = folder, arguments, stdin
        self.words = (sys.executable, "-W", "error", *program, *arguments)
        self.environment = portable.environment(PYTHONPATH=str(IMPORT_ROOT), PATH="", **environment)

    async def start(self, **streams: Any) -> asyncio.subprocess.Process:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE)
        options = {"cwd": self.folder, "env": self.environment} | portable.interruptible()
        return await asyncio.create_subprocess_exec(*self.words, **(options | pipes | streams))

    async def run(self) -> Outcome:
        return await outcome_of(await self.start(), stdin=self.stdin)


def against(kie: Emulator, folder: Path, *arguments: str, key: str = KEY, **more: str) -> Command:
    """A command that talks to an emulator."""
    return Command(folder, *arguments, KIE_BASE_URL=kie.url, KIE_API_KEY=key, **more)


async def outcome_of(process: asyncio.subprocess.Process, stderr: bytes = b"", stdin: str = "") -> Outcome:
    """The outcome of a process that ends in time; a traceback or a word of Python fails the test."""
    try:
        sent = stdin.encode() if process.stdin else None
        out, err = await asyncio.wait_for(process.communicate(sent), PATIENCE)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    shown, said = (text.decode().replace("\r\n", "\n") for text in (out or b"", stderr + (err or b"")))
    outcome = Outcome(process.returncode or 0, shown, said)
    assert "Traceback" not in outcome.err
    assert "Warning" not in outcome.err
    assert not [words for words in PYTHON if words in outcome.err]
    return outcome


async def read_until(process: asyncio.subprocess.Process, words: bytes) -> bytes:
    """The lines of stderr, up to one with these words."""
    assert process.stderr is not None
    stderr = b""
    while words not in stderr:
        line = await asyncio.wait_for(process.stderr.readline(), PATIENCE)
        assert line, stderr
        stderr += line
    return stderr


class Screen:
    """A program in a pseudo-terminal: what it writes, and the keys that are pressed."""

    def __init__(self, master: int, process: subprocess.Popen[bytes], columns: int) -> None:
        self.process = process
        self.columns = columns
        self.raw = ""
        self._master = master
        self._read = asyncio.create_task(self._follow())

    @property
    def text(self) -> str:
        """All that was written, without colours and movements of the cursor."""
        return _plain(self.raw).replace("\r", "")

    @property
    def drawn(self) -> list[str]:
        """Every line that was on the screen at some time, those that were drawn over included."""
        return re.split(r"[\r\n]+", _plain(self.raw))

    @property
    def lines(self) -> list[str]:
        """What is said and shown once, not what is drawn over."""
        return [line for line in self.text.splitlines() if line.startswith("kie4o: ")]

    @property
    def left(self) -> list[str]:
        """The lines that are on the screen now, scrolled ones included: what was erased is not."""
        return _displayed(self.raw, self.columns)

    async def until(self, words: str) -> None:
        """Wait until something was written."""
        end = time.monotonic() + PATIENCE
        while words not in self.text:
            assert time.monotonic() < end, self.text
            assert not self._read.done() or words in self.text, self.text
            await asyncio.sleep(0.02)

    def press_ctrl_c(self) -> None:
        """As a person does: the terminal makes a signal of it."""
        os.write(self._master, b"\x03")

    async def status(self) -> int:
        """The exit status, once the program has ended."""
        status = await asyncio.to_thread(self.process.wait, PATIENCE)
        await asyncio.wait_for(self._read, PATIENCE)
        assert "Traceback" not in self.text
        return status

    async def _follow(self) -> None:
        while True:
            try:
                data = await asyncio.to_thread(os.read, self._master, 65_536)
            except OSError:  # the other end is closed: how Linux says so
                return
            if not data:
                return
            self.raw += data.decode("utf-8", "replace")


def _displayed(raw: str, columns: int) -> list[str]:
    """What a terminal makes of returns, line feeds, movements up and erased lines. Others are ignored."""
    lines, row, column = [""], 0, 0
    for up, erased, character in re.findall(
        r"\x1b\[(\d*)A|\x1b\[(2)K|(?:\x1b\[[0-9;?]*[A-Za-z])|(.)", raw, re.DOTALL
    ):
        if up:
            row = max(0, row - int(up))
        elif erased:
            lines[row] = ""
        elif character == "\r":
            column = 0
        elif character == "\n" or (character and column == columns):
            row, column = row + 1, column if character == "\n" else 0
            lines += [""] * (row + 1 - len(lines))
        if character and character not in "\r\n":
            lines[row] = f"{lines[row][:column]:{column}}{character}{lines[row][column + 1 :]}"
            column += 1
    return lines


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@contextlib.asynccontextmanager
async def in_terminal(command: Command, *, columns: int = 80) -> AsyncIterator[Screen]:
    """Run a command in a pseudo-terminal of this width."""
    import fcntl  # not on Windows
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def take_terminal() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    command.environment.setdefault("TERM", "xterm-256color")
    process = subprocess.Popen(  # not one of the loop: uvloop calls `preexec_fn` before stdin is there
        command.words,
        cwd=command.folder,
        env=command.environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(slave)
    screen = Screen(master, process, columns)
    try:
        yield screen
    finally:
        if process.poll() is None:
            process.kill()
            await asyncio.to_thread(process.wait)
        await asyncio.wait_for(screen._read, PATIENCE)
        os.close(master)
