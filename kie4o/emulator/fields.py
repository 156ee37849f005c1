"""Settings and plans as TOML and JSON write them: mappings whose names and types are checked.

Where Python takes a value such as an `Outcome`, they have a name or a mapping with its fields. Scripts and
the control over HTTP read their fields here; what Python refuses is refused in its own words.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from .account import Account
from .callbacks import Call
from .faults import parse_fault
from .tasks import Outcome
from .values import invalid, is_number

Kinds = tuple[type, ...]
Fields = Mapping[str, Any]

NUMBER: Kinds = (float, int)  # a whole number is one too
_NAMED: Kinds = (str, dict)  # a name, or the fields of the value
_TASK: dict[str, Kinds] = {
    "duration": NUMBER,
    "looks": (int,),
    "outcome": _NAMED,
    "progress": (str,),
    "callback": _NAMED,
}
ACCOUNT: dict[str, Kinds] = _TASK | {
    "seed": (int,),
    "limit": (int,),
    "per": NUMBER,
    "status_429": (int,),
    "looks_per_second": (int,),
    "record_delay": NUMBER,
    "credits": NUMBER,
    "prices": (dict,),
    "caps": (dict,),
}
SETTINGS: dict[str, Kinds] = ACCOUNT | {
    "magic": (bool,),
    "accounts": (dict,),
    "api_key": (str,),
    "speed": NUMBER,
    "latency": NUMBER,
    "look_latency": NUMBER,
    "pictures": (bool,),
    "webhook_key": (str,),
    "callback_timeout": NUMBER,
}  # where it listens and for whom is said on the command line
PLAN: dict[str, Kinds] = {"prompt": (str,), "answer": (int, str, dict)} | _TASK
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "a table"}


def read_fields(table: Any, allowed: Mapping[str, Kinds]) -> dict[str, Any]:
    """A table whose fields are known and have the right types; tables within it become values.

    Raises:
        ValueError: A field is unknown, has another type, or no value that is allowed.
    """
    if not isinstance(table, dict):
        raise ValueError(f"expected a table, not {table!r}")
    check_names(table, allowed)
    for name, value in table.items():
        if not _is_one_of(allowed[name], value):
            kinds = allowed[name][:1] if float in allowed[name] else allowed[name]
            raise invalid(name, value, " or ".join(_WORDS[kind] for kind in kinds))
    return {name: _value(name, value) for name, value in table.items()}


def check_names(table: Fields, allowed: Collection[str], what: str = "field") -> None:
    """Refuse names that are not allowed."""
    unknown = next((name for name in table if name not in allowed), None)
    if unknown is not None:
        expected = f"one of {', '.join(allowed)}" if allowed else "none"
        raise ValueError(f"unknown {what} {unknown!r}: expected {expected}")


def _is_one_of(kinds: Kinds, value: Any) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if isinstance(value, bool):
        return bool in kinds
    return is_number(value) if float in kinds else isinstance(value, kinds)


def _value(name: str, value: Any) -> Any:
    return _VALUES[name](value) if isinstance(value, dict) else value


def _made(kind: Callable[..., Any], name: str, fields: Fields) -> Any:
    parameters = inspect.signature(kind).parameters
    check_names(fields, parameters, f"field of {name}")
    first, parameter = next(iter(parameters.items()))
    if first not in fields and parameter.default is parameter.empty:
        raise invalid(name, dict(fields), f"at least {first}")
    return kind(**fields)


def _prices(fields: Fields) -> dict[Any, Any]:
    """Prices by number of variants; the names of fields are texts."""
    return {int(name) if name.isdecimal() else name: price for name, price in fields.items()}


def _accounts(tables: Fields) -> dict[str, Account]:
    accounts: dict[str, Account] = {}
    for number, (key, table) in enumerate(tables.items(), 1):
        try:
            accounts[key] = Account(**read_fields(table, ACCOUNT))
        except ValueError as error:
            raise ValueError(f"account {number} of accounts: {error}") from None  # without its key
    return accounts


_VALUES: dict[str, Callable[[Fields], Any]] = {
    "outcome": lambda fields: _made(Outcome, "outcome", fields),
    "callback": lambda fields: _made(Call, "callback", fields),
    "answer": lambda fields: parse_fault({"kind": "submit"} | dict(fields)),
    "prices": _prices,
    "caps": dict,
    "accounts": _accounts,
}
