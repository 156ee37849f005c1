"""Scripts: a TOML file with the settings of an emulator and with what happens to its submits.

    [settings]                        # arguments of `Emulator`
    credits = 60

    [[plan]]                          # arguments of `Emulator.plan`; without a prompt, of `Emulator.next`
    prompt = "A forbidden lake"
    outcome = "policy"

    [[fault]]                         # arguments of `Emulator.fault`
    kind = "submit"
    code = 455
    times = 2

An error names the file, the table and the fields that are allowed.
"""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import attrs

from .faults import Fault, parse_fault
from .fields import PLAN, SETTINGS, check_names, read_fields
from .server import Emulator

_T = TypeVar("_T")
Table = dict[str, Any]
TABLES = ("settings", "plan", "fault")


@attrs.frozen
class Script:
    """What a file says; `settings` are arguments of `Emulator`."""

    name: str = ""
    settings: Table = attrs.field(factory=dict)
    plans: list[Table] = attrs.field(factory=list)
    faults: list[Fault] = attrs.field(factory=list)

    def arrange(self, kie: Emulator) -> None:
        """Plan what the file plans."""
        for number, plan in enumerate(self.plans, 1):
            with _place(self.name, f"[[plan]] {number}"):
                kie.plan(**plan) if "prompt" in plan else kie.next(**plan)
        for fault in self.faults:
            kie.fault(fault)


def read(path: Path) -> Script:
    """Read a file. Raises `OSError` if it cannot be read, and `ValueError` if it says something wrong."""
    with _place(path.name):
        tables = tomllib.loads(path.read_text("utf-8"))
        check_names(tables, TABLES, "table")
    with _place(path.name, "[settings]"):
        settings = read_fields(tables.get("settings", {}), SETTINGS)
    plans = _each(path.name, "plan", tables, lambda table: read_fields(table, PLAN))
    script = Script(path.name, settings, plans, _each(path.name, "fault", tables, parse_fault))
    with _place(path.name, "[settings]"):
        kie = Emulator(**settings)
    script.arrange(kie)  # what is wrong is said here, and not when it is used
    return script


@contextlib.contextmanager
def _place(*names: str) -> Iterator[None]:
    """Put the file and the table in front of what an error says."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{', '.join(names)}: {error}") from error


def _each(file: str, name: str, tables: Table, parse: Callable[[Any], _T]) -> list[_T]:
    """What the tables of this name say."""
    found, parsed = tables.get(name, []), []
    if not isinstance(found, list):
        raise ValueError(f"{file}: [{name}] must be written [[{name}]]; there may be several")
    for number, table in enumerate(found, 1):
        with _place(file, f"[[{name}]] {number}"):
            parsed.append(parse(table))
    return parsed
