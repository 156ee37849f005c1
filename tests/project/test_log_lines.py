"""The table of docs/logging.md is what the code logs: the line of each event, and of hooks that fail."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterable, Iterator
from functools import cache

import attrs
import pytest
from pages import table
from paths import PACKAGE, REPOSITORY

from kie4o.events import Event

pytestmark = pytest.mark.once

LEVELS = {"debug", "info", "warning", "error", "exception"}
SILENT = {"isEnabledFor", "getEffectiveLevel"}
OF_EVENTS = "logger.log(event.level, *event.line(subject), stacklevel=2)"  # in the reporter
CONVERSION = re.compile(r"%(?:\(\w+\))?(?:\.\d)?[sdrgf]")
SHORTEST = 10  # letters of a line that are always the same: with fewer it would match any row


@attrs.frozen
class Line:
    """One line that the code logs, with its text as a format of `logging`."""

    level: str
    text: str

    def fits(self, level: str, row: str) -> bool:
        return level == self.level and pattern_of(self.text).fullmatch(row) is not None


@cache
def pattern_of(text: str) -> re.Pattern[str]:
    """For the rows that show this text. One that is mostly values has to be shown as it is, with "..."."""
    value = ".+" if letters_of(text) >= SHORTEST else re.escape("...")
    return re.compile(value.join(map(re.escape, CONVERSION.split(text))))


def letters_of(text: str) -> int:
    return len(re.findall(r"[a-z]", CONVERSION.sub("", text)))


def lines_of(source: str, where: str) -> Iterator[Line]:
    """What a module logs by itself. Only the reporter does, of hooks that fail: everything else is an event.

    A call that cannot be read fails: its line would be missing from the table.
    """
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, of = node.func.attr, ast.unparse(node.func.value)
        if of == "logging":
            assert name not in LEVELS, f"{where}: the root logger"
            assert name != "getLogger" or ast.unparse(node) == "logging.getLogger('kie4o')", (
                f"{where}: another"
            )
        if of == "logger" and name not in SILENT and ast.unparse(node) != OF_EVENTS:
            assert name in LEVELS, f"{where}: logger.{name}"
            text = node.args[0]
            assert isinstance(text, ast.Constant), f"{where}: what is logged?"
            assert isinstance(text.value, str), f"{where}: {text.value}"
            assert letters_of(text.value), f"{where}: {text.value}"
            yield Line("ERROR" if name == "exception" else name.upper(), text.value)


def events_of(kind: type[Event]) -> Iterator[type[Event]]:
    """The kinds of events that are reported: those that no other kind is based on."""
    kinds = kind.__subclasses__()
    for each in kinds:
        yield from events_of(each)
    if not kinds:
        yield kind


@cache
def all_lines() -> frozenset[Line]:
    sources = {path: path.read_text("utf-8") for path in PACKAGE.rglob("*.py")}
    own = {
        line
        for path, source in sources.items()
        if "logg" in source
        for line in lines_of(source, path.relative_to(REPOSITORY).as_posix())
    }
    assert len(own) == 2
    events = {
        Line(logging.getLevelName(kind.level), text) for kind in events_of(Event) for text in kind.texts
    }
    return frozenset(own | events)


def differences(lines: Iterable[Line], rows: list[tuple[str, str]]) -> list[str]:
    """What is only in the code, and what is only in the table."""
    lines = list(lines)
    unnamed = [f"not in the table: {line}" for line in lines if not any(line.fits(*row) for row in rows)]
    unsaid = [f"never logged: {row}" for row in rows if not any(line.fits(*row) for line in lines)]
    return unnamed + unsaid


def documented() -> list[tuple[str, str]]:
    return [(level, line) for level, line, *_ in table("level", "line").rows]


def test_the_table_of_lines_is_what_the_code_logs() -> None:
    """Each line with its level, in both directions, and each row says what to do."""
    assert differences(all_lines(), documented()) == []
    assert all(remedy for *_, remedy in table("level", "line").rows)


def test_a_table_that_differs_in_any_row_is_seen() -> None:
    """The control, for each row: left out, at another level, in other words; and a row that nothing logs."""
    rows, lines = documented(), all_lines()
    shared = 0  # rows whose lines have another row too
    for at, (level, line) in enumerate(rows):
        others = [*rows[:at], *rows[at + 1 :]]
        shared += not differences(lines, others)
        assert differences(lines, [*others, ("INFO" if level != "INFO" else "DEBUG", line)]), line
        assert differences(lines, [*others, (level, line.swapcase())]), line
    assert shared <= 4
    assert differences(lines, [*rows, ("INFO", "a row that nothing logs")])


@pytest.mark.parametrize(
    "source",
    [
        "logger.warn('x is over and done')",
        "logger.log(20, 'x is over and done')",
        "logger.info(f'x is over {1}')",
        "logger.info(message)",
        "logger.info('%s')",
        "logging.info('x is over and done')",
        "logging.getLogger(__name__)",
        "logging.getLogger()",
    ],
)
def test_what_the_table_could_not_be_held_against_is_refused(source: str) -> None:
    """Another logger, another way to log, and a text that is only known when it is logged."""
    with pytest.raises(AssertionError):
        list(lines_of(source, "x.py"))
