"""What people and programs see of a command: results on stdout, notes on stderr, and the exit status.

With `--json` each result, and the error that ends a command, is one line with a JSON object. A reader of
stdout that goes away ends nothing: what is paid is still waited for and saved. Every start of the program
needs this module, so it imports little.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

import attrs

STDIN = "/dev/stdin"  # what a `-` among the arguments becomes, which cyclopts would take for an option
_PASSWORD = re.compile(r"(postgres(?:ql)?://(?:[^/@:]*:|[^?]*\?(?:.*&)?password=))[^/@&]*")
_GONE = (errno.EPIPE, errno.EINVAL)  # the second is how Windows says that a reader has gone


class Status(enum.IntEnum):
    """Exit statuses. Any other is a failure too."""

    OK = 0
    ERROR = 1
    USAGE = 2  # what was typed or set cannot be used; nothing was sent
    SOME_FAILED = 3
    UNKNOWN = 4  # a request was sent and may have been charged
    LIMIT = 5  # requests are left: --limit or --max-credits is reached
    STORE_IN_USE = 6
    INTERRUPTED = 130


class UsageError(Exception):
    """What was typed cannot be used: the message names the option, its value and what is allowed."""


class Progress(Protocol):
    """What is drawn over and over; `hidden` removes it while something else is written."""

    def hidden(self) -> contextlib.AbstractContextManager[None]:
        """Nothing is drawn inside of it."""
        ...

    def pause(self, text: str, seconds: float) -> None:
        """Show why nothing happens for that long."""
        ...


@attrs.define(kw_only=True, eq=False)
class Terminal:
    """How a command talks. Its first fields are options of every command."""

    json: bool = False
    verbose: bool = False
    quiet: bool = False
    speed: float = attrs.field(init=False, default=1.0)  # an option of those that talk to Kie
    arguments: Sequence[str] = attrs.field(init=False, factory=tuple)  # as they were typed
    events: bool = attrs.field(init=False, default=False)  # whether each object names its `event`
    progress: Progress | None = attrs.field(init=False, default=None)
    going_on: Callable[[], Iterable[str]] = attrs.field(init=False, default=tuple)
    """The lines that Ctrl-C ends with: which commands go on with what is paid."""

    def show(self, text: str, **fields: Any) -> None:
        """Print a result: its text, or the fields as one JSON object. Either is left out if it is empty."""
        line = _json(fields) if self.json else text
        if line:
            self._write(sys.stdout, line)

    def note(self, message: str) -> None:
        """Say something in passing, as one line on stderr."""
        if not self.quiet:
            self.error(message)

    def error(self, message: str) -> None:
        """The same, also with `--quiet`. Nothing is cut off, since it may name a command."""
        self._write(sys.stderr, f"kie4o: {_printable(message)}")

    def progress_line(self, line: str) -> None:
        """Say how far a command is, where nothing can be drawn."""
        if not self.quiet:
            self._write(sys.stderr, line)

    def fail(self, message: str, *, error: str, task_id: str | None = None, **more: Any) -> None:
        """Say what failed, to people and with `--json` to programs too."""
        if self.json:
            event = {"event": "error"} if self.events else {}
            self.show("", **event, error=error, message=message, task_id=task_id, **more)
        self.error(message)

    def pause(self, text: str, seconds: float) -> None:
        """Say why nothing happens for some seconds."""
        if self.progress is not None:
            self.progress.pause(text, seconds)
        else:
            self.note(pause_line(text, seconds))

    def again(self, *more: str) -> str:
        """This command as it was typed, with further arguments."""
        return command_line([*program(), *self.arguments, *more])

    def command(self, verb: str, *words: str, **options: object) -> str:
        """Another command, with the options of every command as they were typed."""
        common = {"--json": self.json, "--verbose": self.verbose, "--quiet": self.quiet}
        return command_line([*program(), verb, *words, *_typed(options | common)])

    def _write(self, stream: TextIO, line: str) -> None:
        hidden = contextlib.nullcontext() if self.progress is None else self.progress.hidden()
        with hidden:
            write(stream, line)


def pause_line(reason: str, seconds: float) -> str:
    """Why nothing happens, and for how long."""
    return f"{reason}; next try in {math.ceil(seconds)} s"


def _json(fields: Mapping[str, Any]) -> str:
    """Plain ASCII: stdout may lack a character, and U+2028 ends a line for some readers."""
    import json  # 2 ms, which the help does not need

    return json.dumps(fields, default=str)


def _printable(text: str) -> str:
    """The text without what would steer a terminal."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def write(stream: TextIO, line: str) -> None:
    """Print a line. If its reader has gone, nothing is written to the stream any more."""
    with quiet_pipe(stream):
        print(line, file=stream, flush=True)


@contextlib.contextmanager
def quiet_pipe(stream: TextIO) -> Iterator[None]:
    """Ignore that the reader of a stream has gone. Any other failure to write is raised once."""
    try:
        yield
    except OSError as error:
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123  # a device
            os.dup2(nothing.fileno(), stream.fileno())
        if error.errno not in _GONE:
            raise


def program() -> list[str]:
    """How this program was called: `kie4o`, the path of it, or `python -m kie4o`."""
    started = sys.argv[0]
    if Path(started).name == "__main__.py":
        return [sys.orig_argv[0], "-m", "kie4o"]
    return ["kie4o"] if os.sep not in started or _is_on_path(started) else [started]


def _is_on_path(started: str) -> bool:
    folders = os.environ.get("PATH", "").split(os.pathsep)
    return str(Path(started).parent) in folders


def command_line(words: Sequence[str]) -> str:
    """Words as they are typed in a shell of this system, without the password of a database."""
    words = [_PASSWORD.sub(r"\1***", word) for word in words]
    if sys.platform == "win32":
        import subprocess

        return subprocess.list2cmdline(words)
    return " ".join(shlex.quote(word) if word.isprintable() else _escaped(word) for word in words)


def _escaped(word: str) -> str:
    """A word with line ends or control characters, as bash and zsh read it."""
    plain = (each.isprintable() and each not in "\\'" for each in word)
    escaped = ("".join(f"\\x{byte:02x}" for byte in os.fsencode(each)) for each in word)
    return "$'" + "".join(c if ok else e for c, ok, e in zip(word, plain, escaped, strict=True)) + "'"


def _typed(options: Mapping[str, object]) -> list[str]:
    """The words of `{"--out": "images", "--json": True}`. None and False are left out."""
    words: list[str] = []
    for name, value in options.items():
        if value is True:
            words.append(name)
        elif value is not None and value is not False:
            words += [name, str(value)]
    return words
