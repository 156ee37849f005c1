"""Plain values from what callers have in hand: enum members, subclasses of `str` and `int`, secrets of
settings libraries, mappings and sequences that become JSON. Pure.

Values are made plain when they are passed in. So a request compares, pickles and hashes the same whichever
way it was written, and its key in a store is the same too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from enum import Enum
from typing import Any, Protocol

MAX_DEPTH = 32  # levels of lists and objects in a JSON value
_PLAIN = (str, int, bool)  # what nearly every value is
_LARGEST = 2**64  # beyond it, readers of JSON disagree about integers


class SecretText(Protocol):
    """A secret of a settings library, such as pydantic's `SecretStr`."""

    def get_secret_value(self) -> str:
        """The text itself."""
        ...


def plain(value: Any) -> Any:
    """The value of an enum member; a subclass of `str` or `int` as that type; anything else as it is."""
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        return value if type(value) is str else str.__str__(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value if type(value) is int else int.__int__(value)
    return value


def revealed(value: Any) -> Any:
    """The text of a `SecretText`; anything else made plain."""
    reveal = getattr(value, "get_secret_value", None)
    return plain(reveal() if callable(reveal) else value)


def expanded(path: str | os.PathLike[str]) -> str:
    """The path with ``~`` replaced by the home directory. Raises `TypeError` for what is no path."""
    text: str = os.fspath(plain(path))
    return os.path.expanduser(text)  # noqa: PTH111  # that of Path raises if there is no home directory


def json_object(value: object) -> dict[str, Any]:
    """A copy of a mapping that holds nothing but plain JSON, with its keys in order.

    Raises `ValueError` with what is wrong where.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"it is a {type(value).__name__}")
    copy: dict[str, Any] = _json(value, "", 0)
    return copy


def _json(value: Any, path: str, depth: int) -> Any:
    value = plain(value)
    if depth > MAX_DEPTH:
        raise ValueError(f"{path[:40]}... is nested too deeply")
    if isinstance(value, Mapping):
        names = [plain(name) for name in value]
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path or 'it'} has a key that is no string")
        items = sorted(zip(names, value.values(), strict=True), key=lambda item: str(item[0]))
        return {_text(name, path): _json(each, f"{path}[{name!r}]", depth + 1) for name, each in items}
    if isinstance(value, (list, tuple)):
        return [_json(each, f"{path}[{index}]", depth + 1) for index, each in enumerate(value)]
    if isinstance(value, str):
        return _text(value, path)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < _LARGEST:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    kind = "an integer of more than 64 bits" if isinstance(value, int) else repr(value)[:80]
    raise ValueError(f"{path} is {kind}, which not every reader of JSON can hold")


def _text(value: str, path: str) -> str:
    try:
        value.encode()
        return value
    except UnicodeEncodeError as error:
        index = error.start
    raise ValueError(f"character {index} of a text in {path or 'it'} is a lone surrogate")
