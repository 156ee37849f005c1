"""From untrusted bytes to plain values: the reading rules that answers and callbacks share.

JSON is not trusted to have the right type. Every function here returns a value of exactly the
promised type, or `None`, or raises `ValueError`. Nothing here knows endpoints, errors or models.
"""

from __future__ import annotations

import functools
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

# Kie documents ids as opaque; real ones are 32 hex digits. A dot is not allowed, because the signed
# text of a callback joins id and timestamp with one (webhook verification page).
TASK_ID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)
_TASK_ID_IN_TEXT = re.compile(rb'"task(?:Id|_id)"\s*:\s*"([A-Za-z0-9_-]{1,128})"')
_DIGITS = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_EXCERPT = 200  # characters
# `fromtimestamp` on Windows knows no moment before 1970 or after 3000.
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# Lenient, since an answer about a paid task must not be lost for one bad character: raw control characters in
# strings are read, and NaN and Infinity, which JSON does not have, as null.
_DECODER = json.JSONDecoder(parse_constant=lambda name: None, strict=False)


def json_value(body: bytes | bytearray | memoryview | str) -> Any:
    """The value of a JSON text. Bytes that are not UTF-8 are replaced, a BOM is left out, NaN reads as null.

    Raises `ValueError` for anything that is not JSON, and for absurd nesting.
    """
    try:
        text = body if isinstance(body, str) else bytes(body).decode(errors="replace")
        text = text.removeprefix("\ufeff")
        if text[:1] != "{":
            return _DECODER.decode(text)
        # `decode` also searches for white space around the value. That is 3 us of a status check of
        # 105 us, and as much of a submit (`python -m benchmarks --only cpu`).
        value, end = _DECODER.raw_decode(text)
        return value if end == len(text) else _DECODER.decode(text)
    except RecursionError:
        problem = "nested too deeply"
    raise ValueError(problem)


def task_id(value: object) -> str | None:
    """The value if it is a usable task id."""
    return value if isinstance(value, str) and TASK_ID.fullmatch(value) else None


def salvaged_task_id(body: bytes) -> str | None:
    """The task id in an answer that broke off after it; None if there are several."""
    found = set(_TASK_ID_IN_TEXT.findall(body))
    return found.pop().decode("ascii") if len(found) == 1 else None


def whole_number(value: object) -> int | None:
    """An integer, or one written as a string. A bool is not a number."""
    if type(value) is int:
        return value
    if isinstance(value, str) and _DIGITS.fullmatch(value.strip()):
        return int(value)
    return None


def fraction(value: object) -> float | None:
    """A progress: a number, or one written as a string, from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number <= 1 else None


def moment(value: object) -> datetime | None:
    """An aware datetime from epoch milliseconds, ISO 8601, or Kie's text without a zone (taken as UTC)."""
    try:
        milliseconds = whole_number(value)
        if milliseconds is not None:
            return _at(milliseconds)
        if not isinstance(value, str):
            return None
        when = datetime.fromisoformat(value)
        return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


@functools.lru_cache(maxsize=128)
def _at(milliseconds: int) -> datetime:
    """Kept for the tasks that usually run: each poll repeats the time of creation, which takes 1 % of it."""
    return _EPOCH + timedelta(milliseconds=milliseconds)


def shown(text: object, limit: int = _EXCERPT) -> str:
    """Untrusted text made safe for a message or a log: one short line without control characters."""
    most = 4 * (limit + 1)  # a character has up to four bytes, and one more than the limit shows a cut
    if isinstance(text, (bytes, bytearray)):
        text = bytes(text[:most]).decode("utf-8", "replace")
    line = " ".join(str(text)[:most].split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    return line if len(line) <= limit else line[: limit - 1] + "…"
