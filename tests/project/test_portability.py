"""Every module of the project, its tests and its benchmarks can be imported on Windows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import BENCHMARKS, PACKAGE, TESTS

pytestmark = pytest.mark.once

# "Availability" in the documentation of the standard library.
NOT_ON_WINDOWS = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty", "uvloop"}
SIGNALS_OF_WINDOWS = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"}


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """What is executed when the module is imported, on every platform."""
    if isinstance(node, ast.If) and (
        "sys.platform" in (test := ast.unparse(node.test)) or "__main__" in test
    ):
        return
    if isinstance(node, ast.Try) and "ImportError" in ast.unparse(node):
        return
    parts: list[ast.AST]
    if isinstance(node, ast.Lambda):
        parts = [node.args]
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        parts = [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]
    else:
        yield node
        parts = list(ast.iter_child_nodes(node))
    for part in parts:
        yield from at_import(part)


def missing_on_windows(source: str) -> list[str]:
    """The names that the import of this module would fail of."""
    missing = []
    for node in at_import(ast.parse(source)):
        if isinstance(node, ast.Import):
            missing += [alias.name for alias in node.names if alias.name in NOT_ON_WINDOWS]
        elif isinstance(node, ast.ImportFrom) and node.module in NOT_ON_WINDOWS:
            missing.append(node.module)
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("signal.SIG"):
            missing += [f"signal.{node.attr}"] * (node.attr not in SIGNALS_OF_WINDOWS)
    return missing


@pytest.mark.parametrize("folder", [PACKAGE, TESTS, BENCHMARKS], ids=lambda folder: folder.name)
def test_nothing_that_windows_lacks_is_imported(folder: Path) -> None:
    """It is imported where it is used, by what runs on POSIX alone."""
    faults = {}
    for file in sorted(folder.rglob("*.py")):
        if missing := missing_on_windows(file.read_text("utf-8")):
            faults[str(file.relative_to(folder.parent))] = missing
    assert faults == {}


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("import resource", ["resource"]),
        ("from fcntl import flock", ["fcntl"]),
        ("KILLED = -signal.SIGKILL", ["signal.SIGKILL"]),
        ("def kill(by=signal.SIGKILL): pass", ["signal.SIGKILL"]),
        ("class Lane:\n    by = signal.SIGSTOP", ["signal.SIGSTOP"]),
        ("def limit():\n    import resource", []),
        ("if sys.platform != 'win32':\n    import fcntl", []),
        ("STOP = signal.SIGINT", []),
    ],
)
def test_control_what_is_found(source: str, missing: list[str]) -> None:
    """Only what is executed at the import."""
    assert missing_on_windows(source) == missing
