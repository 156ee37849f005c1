"""What arguments, and the fields of scripts and faults, may be: each with the words of its error. Pure."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from typing import Any

import attrs


def invalid(name: str, value: object, expected: str) -> ValueError:
    """An argument that cannot be used; `expected` completes "expected ..."."""
    return ValueError(f"invalid {name}={value!r}: expected {expected}")


@attrs.frozen
class Value:
    """What a field may be; `expected` completes "expected ...". It is a validator of attrs, too."""

    expected: str
    accepts: Callable[[Any], bool]

    def __call__(self, instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not self.accepts(value):
            raise invalid(attribute.alias or attribute.name, value, self.expected)


def is_number(value: Any) -> bool:
    """Whether it is a number that a float can be; also an infinite one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max or abs(value) == math.inf


def whole(low: int, high: float = math.inf, expected: str = "") -> Value:
    """An integer."""
    text = expected or f"an integer from {low} to {high}"
    return Value(text, lambda value: type(value) is int and low <= value <= high)


def one_of(names: Iterable[str]) -> Value:
    """One of some texts."""
    known = tuple(names)
    return Value(f"one of {', '.join(known)}", lambda value: isinstance(value, str) and value in known)


NUMBER = Value("a number", lambda value: is_number(value) and abs(value) < math.inf)
AMOUNT = Value("a number, 0 or more", lambda value: NUMBER.accepts(value) and value >= 0)
NOT_NEGATIVE = Value("a number, 0 or more", lambda value: is_number(value) and value >= 0)
POSITIVE = Value("a number above 0", lambda value: is_number(value) and value > 0)
COUNT = whole(1, expected="an integer, 1 or more")
DURATION = Value(
    "a number of seconds, 0 or more, or a function",
    lambda value: callable(value) or NOT_NEGATIVE.accepts(value),
)
TEXT = Value("text", lambda value: isinstance(value, str))
TRUE_OR_FALSE = Value("true or false", lambda value: isinstance(value, bool))
STATUS = whole(200, 599)
