"""The lines of `results.jsonl`: what became of each request of a batch. Only `read` touches a file.

One JSON object a line. A later line of the same key replaces the earlier one, so a file is only ever
appended to. A line that was cut off, or that is no such object, counts as missing. Fields that this version
does not know are kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs

FILE_NAME = "results.jsonl"
STATES = ("done", "failed", "unknown", "not_submitted")
_LATEST = 253_402_300_799  # the last second that a datetime can have


def _number(value: object) -> int | float | None:
    """A finite number as JSON has it; None for anything else."""
    if isinstance(value, Decimal) and value.is_finite():
        value = int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def _texts(value: Iterable[str]) -> tuple[str, ...]:
    return tuple(value)


def _finite(digits: str) -> float | None:
    """The number that JSON's digits stand for; None for one that Python takes as infinite."""
    return _number(float(digits))


@attrs.frozen(kw_only=True)
class Record:
    """What became of one request.

    Attributes:
        key: The idempotency key.
        line: Its line in the input file, from 1.
        name: The name that its files were to have.
        prompt: What was asked for, or None without a prompt.
        size: The aspect ratio.
        n_variants: How many images were requested.
        task_id: The id of its task, if it has one.
        ref: The ref of the submit, if its outcome is unknown.
        state: ``"done"``, ``"failed"``, ``"unknown"`` or ``"not_submitted"``.
        files: Its images, relative to the folder of the file, with ``/`` between folders.
        urls: Where they came from.
        credits: What it cost.
        seconds: How long the task took, by the clock of Kie.
        submitted_at: Unix time of the submit.
        replayed: Whether an earlier run had its result.
        error: What went wrong.
        error_type: The name of the error's class.
        extra: Fields that this version does not know.
    """

    key: str = attrs.field(kw_only=False)
    line: int | None = None
    name: str | None = None
    prompt: str | None = None
    size: str | None = None
    n_variants: int | None = None
    task_id: str | None = None
    ref: str | None = None
    state: str
    files: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    urls: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    credits: int | float | None = attrs.field(default=None, converter=_number)
    seconds: int | float | None = attrs.field(default=None, converter=_number)
    submitted_at: int | float | None = attrs.field(default=None, converter=_number)
    replayed: bool = False
    error: str | None = None
    error_type: str | None = None
    extra: Mapping[str, Any] = attrs.field(factory=dict, eq=False, repr=False)


_FIELDS = [field.name for field in attrs.fields(Record) if field.name != "extra"]
_TEXTS = {"name", "prompt", "size", "task_id", "ref", "error", "error_type"}
_COUNTS = {"line", "n_variants"}
_LISTS = {"files", "urls"}


def parse(line: str | bytes) -> Record | None:
    """The record that a line holds. A field of a wrong type counts as missing; without a key or a state there
    is no record."""
    try:
        found = json.loads(line, parse_float=_finite, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not all(isinstance(found.get(name), str) for name in ("key", "state")):
        return None
    fields: dict[str, Any] = {name: _checked(name, found.pop(name)) for name in _FIELDS if name in found}
    return Record(fields.pop("key"), **fields, extra=found)


def _checked(name: str, value: Any) -> Any:
    if name in _TEXTS:
        return value if isinstance(value, str) else None
    if name in _COUNTS:
        return value if type(value) is int else None
    if name in _LISTS:
        return [each for each in value if isinstance(each, str)] if isinstance(value, list) else ()
    if name == "replayed":
        return value is True
    if name == "submitted_at":
        number = _number(value)
        return number if number is not None and 0 <= number <= _LATEST else None
    return value


def line(record: Record) -> str:
    """The line of a record, with its end. It is plain ASCII, whatever the prompt holds."""
    known = {name: getattr(record, name) for name in _FIELDS}
    return json.dumps({**known, **record.extra}, allow_nan=False) + "\n"


def latest(records: Iterable[Record]) -> list[Record]:
    """The last record of each key, in the order in which the keys first appeared."""
    return list({record.key: record for record in records}.values())


def read(path: Path) -> list[Record]:
    """The records of a file, the last one of each key; empty if there is no such file."""
    try:
        with path.open("rb") as file:
            return latest(record for each in file if (record := parse(each)) is not None)
    except FileNotFoundError:
        return []
