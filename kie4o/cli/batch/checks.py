"""What is checked before anything is sent: the file and its lines, local files, and where output goes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from ...gallery.folder import PAGE_NAME
from ...gallery.records import FILE_NAME
from ..inputs import check_file, read_stdin
from ..messages import message_of
from ..options import OPTIONS
from ..terminal import STDIN, Terminal, UsageError, command_line
from . import lines
from .lines import FORMATS, SUFFIXES, Format, Line, Table, listed
from .plan import Item, Plan, items_of

# Environment variable that `kie4o demo` sets for its batch. Its Kie ends with it: no command can go on later.
DEMO = "KIE4O_DEMO"


@attrs.frozen(kw_only=True)
class Options:
    """What was typed, and what is checked of it."""

    file: Path
    out: Path
    store: Path | str  # a file, or the URL of a database that other processes use too
    kind: Format
    failed: Path | None
    limit: int | None
    max_credits: float | None
    retry_failed: bool
    every: float
    is_demo: bool

    @property
    def title(self) -> str:
        return f"{'standard input' if self.is_stdin else self.file} → {self.out}"

    @property
    def is_stdin(self) -> bool:
        return self.file == Path(STDIN)


def contents_of(file: Path, kind: Format | None, terminal: Terminal) -> tuple[bytes, Format]:
    """What is in the file, and its format."""
    if file == Path(STDIN):
        data = read_stdin(terminal)
        return data, kind or lines.guessed_format(data)
    found = kind or SUFFIXES.get(file.suffix.lower())
    if found is None:
        expected = f"{', '.join(sorted(SUFFIXES))}, or --format {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise UsageError(f"the format of '{file}' is not known: expected {expected}")
    try:
        return file.expanduser().read_bytes(), found
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise UsageError(f"cannot read '{file}': {reason}")


def table_of(data: bytes, options: Options, request: Any) -> Table:
    """The lines, with paths that are relative to the folder of the file."""
    defaults = {option.field: getattr(request, option.field) for option in OPTIONS}
    given = {name: value for name, value in defaults.items() if value is not None}
    return lines.read(data, options.kind, given)


def checked_items(table: Table, options: Options, terminal: Terminal) -> list[Item]:
    """The items of the lines; their local files are read. Raises `UsageError` once all problems are said."""
    folder = Path() if options.is_stdin else options.file.expanduser().parent
    table.lines = [_located(line, folder) for line in table.lines]
    digests: dict[str, str] = {}
    problems = list(table.problems)
    for line in table.lines:
        for source in line.local:
            if source not in digests:
                try:
                    check_file(source, "file")
                    with Path(source).expanduser().open("rb") as file:
                        digests[source] = hashlib.file_digest(file, "sha256").hexdigest()
                except (UsageError, OSError) as error:
                    problems.append((line.number, message_of(error)))
    for text, numbers in table.warnings.items():
        more = f" and {len(numbers) - 1:,} more" if len(numbers) > 1 else ""
        terminal.note(f"line {numbers[0]}{more}: {text}")
    report_problems(sorted(problems), options, terminal)
    if not table.lines:
        raise UsageError(f"no request in '{options.file}': expected at least one line")
    return items_of(table.lines, digests)


def _located(line: Line, folder: Path) -> Line:
    """The line with its local files as seen from here."""
    local = set(line.local)
    files = tuple(str(folder / Path(each).expanduser()) if each in local else each for each in line.files)
    mask = (
        str(folder / Path(line.mask).expanduser())
        if line.mask is not None and line.mask in local
        else line.mask
    )
    return attrs.evolve(line, files=files, mask=mask)


def report_problems(problems: Sequence[tuple[int, str]], options: Options, terminal: Terminal) -> None:
    """Say all problems, each with the number of its line, and end. Does nothing if there are none."""
    for number, text in problems:
        if terminal.json:
            terminal.show("", event="problem", line=number, message=text)
        terminal.error(f"line {number}: {text}")
    if problems:
        lines = "1 bad line" if len(problems) == 1 else f"{len(problems)} bad lines"
        raise UsageError(f"{lines} in '{options.file}'; nothing was sent")


def check_store(plan: Plan, options: Options, terminal: Terminal) -> None:
    """Prove that the store knows what was submitted, as the results of the folder say: with another one it
    would be paid for again. Images that are saved need no store."""
    store = command_line([str(options.store)])
    again = [item for item in plan.of("to submit") if item.lost]
    lost = [item.line.number for item in again if item.record is None or item.record.state != "failed"]
    if lost:
        them = "it" if len(lost) == 1 else "them"
        raise UsageError(
            f"'{options.out / FILE_NAME}' has {listed(lost)} as submitted, and the store {store} does not "
            f"know {them}: expected the --store of that run; nothing was sent. To submit {them} again, which "
            f"may pay twice, remove {them} from that file"
        )
    saved = [item.line.number for item in plan.of("saved") if item.lost]
    if saved:
        terminal.note(
            f"the store {store} does not know {listed(saved)}, whose images are saved: they were submitted "
            "with another --store, or it was pruned"
        )


def check_paths(options: Options) -> None:
    """Prove that no two files of a run are one, and that the failed lines can be written."""
    paths = {
        "FILE": None if options.is_stdin else options.file.expanduser(),
        FILE_NAME: options.out / FILE_NAME,
        PAGE_NAME: options.out / PAGE_NAME,
        "--store": options.store if isinstance(options.store, Path) else None,
        "--failed": options.failed,
    }
    names: dict[Path, str] = {}
    for name, path in paths.items():
        if path is not None and (first := names.setdefault(path.resolve(), name)) != name:
            raise UsageError(f"{name} '{path}' is {first} itself: expected another file")
    if options.failed is None:
        return
    try:
        options.failed.open("ab").close()
        return
    except OSError as error:
        reason = error.strerror or str(error)
    raise UsageError(f"cannot write to --failed '{options.failed}': {reason}")
