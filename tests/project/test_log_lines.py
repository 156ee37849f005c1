"""The table of docs/logging.md is what the code logs: each call of the logger, found in the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache

import attrs
import pytest
from pages import table
from paths import PACKAGE, REPOSITORY

pytestmark = pytest.mark.once

LEVELS = {"debug", "info", "warning", "error"}
SILENT = {"isEnabledFor"}
CONVERSION = re.compile(r"%(?:\.\d)?[sdrgf]")
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
    """What a module logs. A call that cannot be read fails: its line would be missing from the table."""
    tree = ast.parse(source)
    values = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, of = node.func.attr, ast.unparse(node.func.value)
        if of == "logging":
            assert name not in LEVELS, f"{where}: the root logger"
            assert name != "getLogger" or ast.unparse(node) == "logging.getLogger('kie4o')", (
                f"{where}: another"
            )
        if of == "logger" and name not in SILENT:
            assert name in LEVELS, f"{where}: logger.{name}"
            for text in texts_of(node.args[0], values, where):
                assert letters_of(text), f"{where}: {text}"
                yield Line(name.upper(), text)


def texts_of(node: ast.expr, values: dict[str, ast.expr], where: str) -> Iterator[str]:
    """The texts that an expression may be: a constant, or one of a mapping of constants."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Name) and node.id in values:
        yield from texts_of(values[node.id], values, where)
    elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in values:
        [mapping] = [each for each in ast.walk(values[node.value.id]) if isinstance(each, ast.Dict)]
        for value in mapping.values:
            yield from texts_of(value, values, where)
    else:
        raise AssertionError(f"{where}: cannot read what is logged: {ast.unparse(node)}")


@cache
def all_lines() -> frozenset[Line]:
    sources = {path: path.read_text("utf-8") for path in PACKAGE.rglob("*.py")}
    return frozenset(
        line
        for path, source in sources.items()
        if "logg" in source
        for line in lines_of(source, path.relative_to(REPOSITORY).as_posix())
    )


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
        "logger.exception('x is over and done')",
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
