"""Entries as text: what is written, and how any damage is detected when it is read."""

import json
import warnings
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import attrs
import pytest
from entries import ENTRIES, ended, plain, submitted
from hypothesis import example, given
from hypothesis import strategies as st

from kie4o import ImageRequest, StoreError, TaskDetails, TaskState
from kie4o.stores.packing import checksum, packed, packed_details, unpacked, unpacked_details
from kie4o.stores.store import Entry, EntryState

CREATED = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
DETAILS = TaskDetails(
    "task-1",
    state=TaskState.FAILED,
    status="GENERATE_FAILED",
    urls=("https://a.example/1.png", "https://a.example/2.png"),
    progress=0.5,
    error_code=400,
    error_message="half a pair: \ud800",
    created_at=CREATED,
    completed_at=CREATED.astimezone(timezone(timedelta(hours=-7))),
    raw={"taskId": "task-1", "nested": [{"a": None}, 1.5, "ü"]},
)
FULL = Entry(
    "order-1",
    request=ImageRequest("x", size="3:2", files_url=["https://a.example/f.png"], n_variants=4),
    ref="ref-1",
    keyed=False,
    state=EntryState.FAILED,
    task_id="task-1",
    submitted_at=1767323045.25,
    price=Decimal("24.50"),
    details=DETAILS,
).traced("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


def read(fields: Any) -> Entry:
    body = json.dumps(fields).encode()
    return unpacked(body, checksum(body))


def test_every_field_comes_back() -> None:
    """Enums, aware times, tuples, and `raw`, which equality leaves out; the text is ASCII."""
    body = packed(FULL)
    assert body.isascii()
    entry = unpacked(body, checksum(body))
    assert entry == FULL
    assert entry.details is not None
    assert entry.details.raw == DETAILS.raw
    assert type(entry.details.urls) is tuple
    assert entry.details.completed_at is not None
    assert entry.details.completed_at.utcoffset() is not None


def test_a_text_of_an_earlier_version_is_read() -> None:
    """The form of the text and of its checksum is that of the files that users have."""
    body = b'{"key":"order-1","request":{"prompt":"x"},"ref":"ref-1"}'
    entry = Entry("order-1", request=ImageRequest("x"), ref="ref-1")
    assert checksum(body) == bytes.fromhex("480fecf6d2ddbc55")
    assert packed(entry) == body
    assert unpacked(body, bytes.fromhex("480fecf6d2ddbc55")) == entry


def test_a_time_may_be_a_whole_number() -> None:
    """A caller's store may have written it as one."""
    fields = json.loads(packed(FULL)) | {"submitted_at": 1_700_000_000}
    assert read(fields).submitted_at == 1_700_000_000


def test_defaults_are_left_out() -> None:
    """A planned entry is its key, its ref and what was asked for."""
    entry = Entry("order-1", request=ImageRequest("x"), ref="ref-1")
    assert json.loads(packed(entry)) == {"key": "order-1", "ref": "ref-1", "request": {"prompt": "x"}}


@pytest.mark.parametrize("value", [Decimal(1), CREATED, {1}, b"x"], ids=repr)
def test_raw_that_is_no_json_is_dropped(value: object) -> None:
    """Callers may pass a decoded callback with any values in it; all else is kept."""
    details = TaskDetails("task-1", state=TaskState.SUCCEEDED, urls=DETAILS.urls, raw={"a": [value]})
    body = packed(Entry("k", request=ImageRequest("x"), ref="r", details=details))
    kept = unpacked(body, checksum(body)).details
    assert kept == details
    assert kept.raw == {}


@pytest.mark.parametrize(("value", "raw"), [(1, {"a": [1]}), (b"x", {})], ids=repr)
def test_details_come_back_alone(value: object, raw: object) -> None:
    """Without an entry, and without a `raw` that is no JSON."""
    details = attrs.evolve(DETAILS, raw={"a": [value]})
    body = packed_details(details)
    read = unpacked_details(body, checksum(body))
    assert read == details
    assert read.raw == raw


@pytest.mark.parametrize("body", [None, b"[]", b"{", b'{"task_id": 1}'])
def test_details_that_are_damaged_are_none(body: bytes | None) -> None:
    """They can be had again from Kie."""
    assert unpacked_details(body, None if body is None else checksum(body)) is None
    assert unpacked_details(packed_details(DETAILS), checksum(b"another")) is None


def test_raw_without_end_is_dropped() -> None:
    """The same for an object that holds itself, and for one that is nested too deeply."""
    circle: dict[str, Any] = {}
    circle["a"] = circle
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for raw in (circle, {"a": deep}):
        details = TaskDetails("task-1", state=TaskState.SUCCEEDED, raw=raw)
        body = packed(Entry("k", request=ImageRequest("x"), ref="r", details=details))
        assert unpacked(body, checksum(body)).details == details


def test_reading_does_not_warn() -> None:
    """Deprecated and ignored fields warned when the request was created."""
    with pytest.warns(DeprecationWarning, match="fileUrl"), pytest.warns(UserWarning, match="mask_url"):
        request = ImageRequest(
            files_url=["https://a.example/1.png", "https://a.example/2.png"],
            mask_url="https://a.example/m.png",
            file_url="https://a.example/f.png",
        )
    body = packed(Entry("k", request=request, ref="r"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert unpacked(body, checksum(body)).request == request
    with pytest.warns(DeprecationWarning, match="fileUrl"):
        ImageRequest("x", file_url="https://a.example/f.png")  # the control: it is off while reading only


WRONG: list[Any] = [None, True, 5, 1.5, "", "x", [], ["x"], {}, {"x": 1}]


def of_type(*kinds: type) -> list[Any]:
    return [value for value in WRONG if type(value) not in kinds]


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("key", of_type(str)),
        ("ref", of_type(str)),
        ("keyed", of_type(bool)),
        ("state", WRONG),
        ("task_id", of_type(str)),
        ("submitted_at", of_type(int, float)),
        ("trace", of_type(str)),
        ("price", [*WRONG, "NaN", "sNaN", "Infinity", "-1", "-Infinity"]),
        ("request", WRONG),
        ("request.prompt", [True, 5, "", [], {}]),
        ("request.size", WRONG),
        ("request.files_url", of_type(list, type(None))),
        ("request.n_variants", WRONG),
        ("details", WRONG),
        ("details.task_id", of_type(str)),
        ("details.state", WRONG),
        ("details.status", of_type(str)),
        ("details.urls", [None, True, 5, 1.5, [5], ["x", 5], {"x": 1}]),
        ("details.progress", of_type(int, float)),
        ("details.error_code", of_type(int)),
        ("details.error_message", of_type(str)),
        ("details.created_at", WRONG),
        ("details.raw", of_type(dict)),
    ],
)
def test_a_wrong_type_is_damage(path: str, values: list[Any]) -> None:
    """A text with a fitting checksum in which one field has another type is an error."""
    assert values
    for value in values:
        fields = json.loads(packed(FULL))
        *homes, name = path.split(".")
        home = fields
        for each in homes:
            home = home[each]
        home[name] = value
        with pytest.raises(StoreError, match="damaged"):
            read(fields)


@pytest.mark.parametrize("home", ["", "request", "details"])
def test_an_unknown_field_is_damage(home: str) -> None:
    """A field that this kie4o does not know is not dropped: it may change what was asked for."""
    fields = json.loads(packed(FULL))
    assert read(fields) == FULL
    (fields[home] if home else fields)["new"] = 1
    with pytest.raises(StoreError, match="damaged"):
        read(fields)


@given(entry=ENTRIES, data=st.data())
@example(entry=ended(submitted("k")), data=None)
def test_any_flipped_bit_is_detected(entry: Entry, data: Any) -> None:
    """One flipped bit, in the body or in the checksum, is an error and never another entry."""
    body = packed(entry)
    check = checksum(body)
    assert plain(unpacked(body, check)) == plain(entry)
    whole = body + check
    at = range(len(whole) * 8) if data is None else [data.draw(st.integers(0, len(whole) * 8 - 1))]
    for bit in at:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StoreError, match="damaged"):
            unpacked(bytes(flipped[: len(body)]), bytes(flipped[len(body) :]))


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{}", b'{"key":"k"}', b"\xff", b"[" * 100_000, b'{"details":5,"request":{}}'],
    ids=lambda body: str(body[:12]),
)
def test_a_body_that_is_no_entry_is_an_error(body: bytes) -> None:
    """A matching checksum alone does not make an entry."""
    with pytest.raises(StoreError, match="damaged"):
        unpacked(body, checksum(body))


@pytest.mark.parametrize("body", [None, 5, '{"key":"k"}'])
def test_a_body_that_is_no_bytes_is_an_error(body: object) -> None:
    """A column of SQLite may hold anything."""
    with pytest.raises(StoreError, match="damaged"):
        unpacked(body, checksum(b"x"))
