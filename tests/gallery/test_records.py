"""The lines of results.jsonl: what is written is read back, and whatever bytes are in the file do no harm."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie4o.gallery.records import STATES, Record, line, parse, read

texts = st.none() | st.text(st.characters())
numbers = st.none() | st.integers(0, 10**9) | st.floats(0, 10**9, allow_nan=False)
any_record = st.builds(
    Record,
    st.text(),
    line=st.none() | st.integers(1),
    name=texts,
    prompt=texts,
    size=texts,
    n_variants=st.sampled_from([None, 1, 2, 4]),
    task_id=texts,
    state=st.sampled_from(STATES),
    files=st.lists(st.text()),
    urls=st.lists(st.text()),
    credits=numbers,
    seconds=numbers,
    submitted_at=numbers,
    replayed=st.booleans(),
    error=texts,
    error_type=texts,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(any_record)
def test_a_record_is_read_back(record: Record) -> None:
    """Each is one line of ASCII, whatever its texts hold."""
    written = line(record)
    assert written.isascii()
    assert written.endswith("\n")
    assert written.count("\n") == 1
    assert parse(written) == record


@given(st.binary() | st.text())
def test_any_bytes_are_no_record(data: str | bytes) -> None:
    """What is no record is None, and raises nothing."""
    assert parse(data) is None


@given(st.dictionaries(st.sampled_from([field.name for field in attrs.fields(Record)]), json_values))
def test_any_object_is_survived(found: dict[str, Any]) -> None:
    """Fields of a wrong type count as missing."""
    parse(json.dumps(found))


@pytest.mark.parametrize(
    "name", ["line", "prompt", "files", "credits", "submitted_at", "replayed", "task_id"]
)
@given(value=json_values)
def test_a_field_of_any_type_is_survived(name: str, value: Any) -> None:
    """It has its own type or counts as missing, and can be written again."""
    record = parse(json.dumps({"key": "k", "state": "done", name: value}))
    assert record is not None
    assert parse(line(record)) == record


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '"text"',
        '{"key": "a"}',
        '{"state": "done"}',
        '{"key": 1, "state": "done"}',
        '{"key": "a", "state": "do',
        "[" * 100_000,
        '{"key": "a", "state": "done", "credits": ' + "9" * 5000 + "}",
    ],
    ids=["empty", "null", "list", "text", "no state", "no key", "key", "cut", "deep", "digits"],
)
def test_what_is_no_record(text: str) -> None:
    """Such a line counts as missing."""
    assert parse(text) is None


def test_numbers_are_finite() -> None:
    """NaN and infinity, which only Python's JSON has, are left out; decimals are numbers."""
    record = parse(
        '{"key": "a", "state": "done", "credits": NaN, "seconds": 1e999, "new": Infinity, "newer": [-1e999]}'
    )
    assert record is not None
    assert (record.credits, record.seconds, record.extra) == (None, None, {"new": None, "newer": [None]})
    assert parse(line(record)) == record
    assert Record("a", state="done", credits=Decimal(6)).credits == 6
    assert Record("a", state="done", credits=Decimal("1.5")).credits == 1.5


def test_fields_of_a_later_version_are_kept() -> None:
    """They are written as they were read."""
    record = parse('{"key": "a", "state": "done", "colour": {"name": "blue"}}')
    assert record is not None
    assert json.loads(line(record))["colour"] == {"name": "blue"}


def test_the_last_line_of_a_key_counts(tmp_path: Path) -> None:
    """Keys stay in the order in which they first appeared; a line that was cut off counts as missing."""
    path = tmp_path / "results.jsonl"
    assert read(path) == []
    first, second = Record("a", state="failed"), Record("b", state="done")
    path.write_text(
        line(first) + line(second) + line(Record("a", state="done")) + '{"key": "b", "sta', "utf-8"
    )
    assert [(record.key, record.state) for record in read(path)] == [("a", "done"), ("b", "done")]
