"""From untrusted bytes to plain values: the reading rules that answers and callbacks share.

JSON is not trusted to have the right type. Every function here either gives a value of exactly
the promised type or says so (`None`, or `ValueError` where there is nothing to go on with), and
knows nothing of endpoints, errors or models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

# Kie's ids are 32 hex digits in practice and opaque by the documents. No dot: the signed text of
# a callback joins id and timestamp with one.
TASK_ID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)
_TASK_ID_IN_TEXT = re.compile(rb'"task(?:Id|_id)"\s*:\s*"([A-Za-z0-9_-]{1,128})"')
_DIGITS = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_EXCERPT = 200  # characters of an unreadable answer that are shown


def _no_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def json_value(body: bytes | bytearray | memoryview | str) -> Any:
    """The value of a JSON text; `ValueError` for anything else, also for NaN and absurd nesting."""
    try:
        text = body if isinstance(body, str) else bytes(body).decode().removeprefix("\ufeff")
        if text[:1] != "{":
            return _DECODER.decode(text)
        value, end = _DECODER.raw_decode(text)  # spares two searches for white space
        return value if end == len(text) else _DECODER.decode(text)
    except RecursionError:
        problem = "nested too deeply"
    raise ValueError(problem)


def task_id(value: object) -> str | None:
    """The value if it is a usable task id."""
    return value if isinstance(value, str) and TASK_ID.fullmatch(value) else None


def salvaged_task_id(body: bytes) -> str | None:
    """The task id in an answer that was cut off after it: what reached us is not lost."""
    found = set(_TASK_ID_IN_TEXT.findall(body))
    return found.pop().decode("ascii") if len(found) == 1 else None


def whole_number(value: object) -> int | None:
    """An integer, or one written as text; a bool is not a number."""
    if type(value) is int:
        return value
    if isinstance(value, str) and _DIGITS.fullmatch(value.strip()):
        return int(value)
    return None


def fraction(value: object) -> float | None:
    """Progress: a number or a numeric text from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number <= 1 else None


def moment(value: object) -> datetime | None:
    """Epoch milliseconds, ISO 8601, or Kie's zoneless text (read as UTC), as an aware datetime."""
    try:
        milliseconds = whole_number(value)
        if milliseconds is not None:
            return datetime.fromtimestamp(milliseconds / 1000, UTC)
        if not isinstance(value, str):
            return None
        when = datetime.fromisoformat(value)
        return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return None


def image_urls(response: object) -> tuple[str, ...]:
    """The URLs of a `response` or `info`: an object, a list, or JSON text of either: all were met."""
    if response is None:
        return ()
    if isinstance(response, str):
        try:
            response = json_value(response)
        except ValueError:
            return ()
    if isinstance(response, Mapping):
        for name in ("resultUrls", "result_urls", "resultUrl", "url"):
            if urls := _strings(response.get(name)):
                return urls
        return ()
    return _strings(response) if isinstance(response, list) else ()


def _strings(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        if not value.startswith("["):
            value = [value]
        else:
            try:
                value = json_value(value)
            except ValueError:
                return ()
    if not isinstance(value, list):
        return ()
    return tuple(url for url in value if isinstance(url, str) and url.strip())


def shown(text: object, limit: int = _EXCERPT) -> str:
    """Foreign text made safe for a message or a log: one line, short, nothing that controls."""
    if isinstance(text, (bytes, bytearray)):
        text = bytes(text[: 4 * limit]).decode("utf-8", "replace")
    words = " ".join(str(text)[: 4 * limit].split())
    if not words.isprintable():
        words = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
    return words if len(words) <= limit else words[: limit - 1] + "…"
