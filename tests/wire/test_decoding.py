"""From bytes to plain values: every reader returns its type, None or a ValueError."""

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kie4o.wire import decoding

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_json_round_trip(value: Any) -> None:
    """Any JSON is read from text, bytes and views, with and without a BOM."""
    text = json.dumps(value)
    for form in (text, text.encode(), bytearray(text.encode()), memoryview(text.encode())):
        assert decoding.json_value(form) == value
    assert decoding.json_value(b"\xef\xbb\xbf" + text.encode()) == value


@given(st.binary(max_size=200) | st.text(max_size=200))
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example("[" * 100_000 + "]" * 100_000)
@example(b"9" * 5000)
@example("NaN")
@example(b'{"a":-Infinity}')
@example("\ud800")
@example(b"\xed\xa0\x80")
def test_json_or_value_error(body: Any) -> None:
    """Any bytes and any text give a value or ValueError, even with absurd depth, absurd digits or NaN."""
    try:
        value = decoding.json_value(body)
    except ValueError:
        return
    assert value is None or isinstance(value, bool | int | float | str | list | dict)
    assert not (isinstance(value, float) and math.isnan(value))


@pytest.mark.parametrize("text", ["[" * 100_000, "", "{", "nan", "{]", "'a'", "{}x"])
def test_text_that_is_not_json(text: str) -> None:
    """Absurd depth, on which Python's json fails with an error of its own, is said of nothing else."""
    for form in (text, text.encode()):
        with pytest.raises(ValueError, match=r".") as caught:
            decoding.json_value(form)
        assert (str(caught.value) == "nested too deeply") is (len(text) > 3)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        *(
            (b"NaN", None),
            (b"[Infinity,-Infinity]", [None, None]),
            (b'{"a":NaN,"b":"\t"}', {"a": None, "b": "\t"}),
        ),
        (b'{"a":"caf\xe9"}', {"a": "caf\N{REPLACEMENT CHARACTER}"}),
        ('{"a":"\u5185"}'.encode("gbk"), {"a": "\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"}),
        (b'{"a":"b\nc\td\x00"}', {"a": "b\nc\td\x00"}),
        (b"\xef\xbb\xbf[1]", [1]),
        ("\ufeff[1]", [1]),
        (b" \n{} \n", {}),
    ],
    ids=repr,
)
def test_one_bad_character_hides_nothing(body: bytes | str, value: Any) -> None:
    """What JSON does not have is read as far as it can be: the rest may be about a paid task."""
    assert decoding.json_value(body) == value


@given(ANYTHING)
def test_whole_numbers(value: Any) -> None:
    """An int is returned unchanged and at most 18 ASCII digits are read; nothing else is, and no bool."""
    number = decoding.whole_number(value)
    if type(value) is int:
        assert number == value
    elif number is not None:
        assert isinstance(value, str)
        assert type(number) is int
        assert value.strip().isascii()


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *(("200", 200), (" 200\n", 200), ("-1", -1), ("007", 7), ("9" * 18, 10**18 - 1), ("9" * 19, None)),
        *(("+1", None), ("1_0", None), ("1.0", None), ("٢", None), ("", None), ("-", None), (True, None)),
    ],
)
def test_whole_numbers_by_example(value: Any, number: int | None) -> None:
    """Decimal digits may have a minus sign and space around them."""
    assert decoding.whole_number(value) == number


@given(ANYTHING)
@example("nan")
@example("inf")
@example(10**4000)
def test_fractions(value: Any) -> None:
    """Anything gives a float from 0 to 1 or None."""
    fraction = decoding.fraction(value)
    assert fraction is None or (type(fraction) is float and 0 <= fraction <= 1)


@pytest.mark.parametrize(
    ("value", "fraction"),
    [
        *(("0.00", 0.0), ("0.48", 0.48), ("1.00", 1.0), (0.5, 0.5), (1, 1.0), (0, 0.0), (" 0.5 ", 0.5)),
        *(("1.01", None), (-0.1, None), (True, None), (False, None), (None, None), ("", None)),
        *(("half", None), ("50%", None), ([], None), (math.nan, None), (math.inf, None)),
    ],
)
def test_fractions_by_example(value: Any, fraction: float | None) -> None:
    """Numbers and numeric strings are read, as record-info sends them."""
    assert decoding.fraction(value) == fraction


@given(ANYTHING)
@example(10**4000)
@example(-(10**18))
@example("9999-12-31T23:59:59-23:59")
@example("0001-01-01T00:00:00+23:59")
@example("253402300800000")
def test_moments(value: Any) -> None:
    """Anything gives an aware UTC datetime or None."""
    moment = decoding.moment(value)
    assert moment is None or (type(moment) is datetime and moment.tzinfo is UTC)


@given(st.integers(86_400, 220_000_000_000), st.integers(-23, 23))
def test_spellings_of_a_moment(seconds: int, hours: int) -> None:
    """Epoch milliseconds, their digits, Kie's text without a zone and ISO 8601 in any zone are the same."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    stamp = 1000 * seconds
    there = moment.astimezone(timezone(timedelta(hours=hours)))
    spellings = [stamp, str(stamp), f"{moment:%Y-%m-%d %H:%M:%S}", moment.isoformat(), there.isoformat()]
    assert {decoding.moment(one) for one in [*spellings, f"{moment:%Y-%m-%dT%H:%M:%S.000Z}"]} == {moment}


@given(ANYTHING)
def test_task_ids(value: Any) -> None:
    """An id is returned unchanged; anything else gives None."""
    task_id = decoding.task_id(value)
    assert task_id is None or (task_id is value and task_id.isascii() and 1 <= len(task_id) <= 128)


@given(st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True), st.binary(max_size=30))
def test_salvaged_task_ids(task_id: str, rest: bytes) -> None:
    """A complete id in a broken answer is found, whatever follows; an incomplete one is not."""
    start = b'{"code":200,"data":{"taskId":"' + task_id.encode()
    assert decoding.salvaged_task_id(start + b'"' + rest.replace(b"task", b"")) == task_id
    assert decoding.salvaged_task_id(start) is None


@given(st.binary(max_size=300))
def test_nothing_is_salvaged_from_noise(body: bytes) -> None:
    """Any bytes give an id that they contain, or None."""
    found = decoding.salvaged_task_id(body)
    assert found is None or found.encode() in body


@given(st.text() | st.binary(), st.integers(1, 300))
@example("\ud800\n\x00\x1b[31m\u202e", 200)
@example("x" * 100_000, 200)
def test_shown_text_is_harmless(text: Any, limit: int) -> None:
    """The result is one printable line of at most `limit` characters that can be encoded."""
    shown = decoding.shown(text, limit)
    shown.encode()
    assert shown.isprintable()
    assert len(shown) <= limit


def test_shown_text_stays_readable() -> None:
    """Printable text does not change, white space becomes one blank, and a cut is marked."""
    assert decoding.shown("schön – 好") == decoding.shown("schön – 好".encode()) == "schön – 好"
    assert decoding.shown(" a\r\n\tb ") == "a b"
    assert decoding.shown("x" * 200) == "x" * 200
    for letter in ("x", "好", "😀"):
        for text in (letter * 201, letter * 500):
            assert decoding.shown(text) == decoding.shown(text.encode()) == letter * 199 + "…"
    assert decoding.shown("a\x00b") == "a\N{REPLACEMENT CHARACTER}b"


def test_bytes_with_gaps_are_read_too() -> None:
    """A memoryview that is not contiguous is read like any other."""
    spread = bytes(byte for letter in b'{"a":1}' for byte in (letter, 0))
    assert decoding.json_value(memoryview(spread)[::2]) == {"a": 1}
