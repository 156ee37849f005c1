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
import inspect
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

from .callbacks import Call
from .faults import Fault, parse_fault
from .server import Emulator
from .tasks import Outcome

_T = TypeVar("_T")
Kinds = tuple[type, ...]
Table = dict[str, Any]

_NUMBER: Kinds = (float, int)  # a whole number is one too
_NAMED: Kinds = (str, dict)  # a name, or the fields of the value
_PLAN: dict[str, Kinds] = {
    "duration": _NUMBER,
    "outcome": _NAMED,
    "progress": (str,),
    "callback": _NAMED,
}
SETTINGS: dict[str, Kinds] = _PLAN | {
    "magic": (bool,),
    "seed": (int,),
    "limit": (int,),
    "per": _NUMBER,
    "status_429": (int,),
    "looks_per_second": (int,),
    "record_delay": _NUMBER,
    "credits": _NUMBER,
    "api_key": (str,),
    "speed": _NUMBER,
    "latency": _NUMBER,
    "look_latency": _NUMBER,
    "pictures": (bool,),
    "webhook_key": (str,),
    "callback_timeout": _NUMBER,
}  # where it listens and for whom is said on the command line
PLAN: dict[str, Kinds] = {"prompt": (str,), "answer": (int, str, dict)} | _PLAN
TABLES = ("settings", "plan", "fault")
_VALUES: dict[str, Callable[..., Any]] = {"outcome": Outcome, "callback": Call}
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "a table"}


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
        _check_names(tables, TABLES, "table")
    with _place(path.name, "[settings]"):
        settings = _fields(tables.get("settings", {}), SETTINGS)
    plans = _each(path.name, "plan", tables, lambda table: _fields(table, PLAN))
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
    except (ValueError, TypeError) as error:  # the second is for fields that are missing
        said = str(error.args[0] if error.args else error)  # attrs has more for programs in `args`
        raise ValueError(f"{', '.join(names)}: {said}") from error


def _each(file: str, name: str, tables: Table, parse: Callable[[Any], _T]) -> list[_T]:
    """What the tables of this name say."""
    found, parsed = tables.get(name, []), []
    if not isinstance(found, list):
        raise ValueError(f"{file}: [{name}] must be written [[{name}]]; there may be several")
    for number, table in enumerate(found, 1):
        with _place(file, f"[[{name}]] {number}"):
            parsed.append(parse(table))
    return parsed


def _fields(table: Any, allowed: Mapping[str, Kinds]) -> Table:
    """A table whose fields are known and have the right types; tables within it become values."""
    if not isinstance(table, dict):
        raise ValueError(f"expected a table, not {table!r}")
    _check_names(table, allowed, "field")
    for name, value in table.items():
        if not _is_one_of(allowed[name], value):
            kinds = allowed[name][:1] if float in allowed[name] else allowed[name]
            expected = " or ".join(_WORDS[kind] for kind in kinds)
            raise ValueError(f"invalid {name}={value!r}: expected {expected}")
    return {name: _value(name, value) for name, value in table.items()}


def _is_one_of(kinds: Kinds, value: Any) -> bool:
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def _value(name: str, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if name == "answer":
        return parse_fault({"kind": "submit"} | value)
    kind = _VALUES[name]
    _check_names(value, inspect.signature(kind).parameters, f"field of {name}")
    return kind(**value)


def _check_names(table: Mapping[str, Any], allowed: Collection[str], what: str) -> None:
    unknown = next((name for name in table if name not in allowed), None)
    if unknown is not None:
        raise ValueError(f"unknown {what} {unknown!r}: expected one of {', '.join(allowed)}")
