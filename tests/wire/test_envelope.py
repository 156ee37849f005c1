"""The envelope: where its parts are found, the error of every code, and answers without an envelope."""

import json

import pytest

from kie4o.errors import (
    ERROR_OF_CODE,
    APIStatusError,
    InsufficientCreditsError,
    InternalServerError,
    UnexpectedResponseError,
)
from kie4o.wire.envelope import data_of, envelope_of, retry_after_of, unreadable


def body(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize("code", [422, "422", " 422\n"])
def test_a_code_is_a_number_or_digits(code: object) -> None:
    """The message and the data of an envelope are optional."""
    envelope = envelope_of(body({"code": code}))
    assert envelope is not None
    assert (envelope.code, envelope.message, envelope.data, envelope.task_id) == (422, "", None, None)


@pytest.mark.parametrize(
    "fields",
    [
        {"data": {"taskId": "abc"}},
        {"data": {"task_id": "abc"}},
        {"data": None, "taskId": "abc"},
        {"data": [], "task_id": "abc"},
        {"data": {"taskId": "not an id"}, "task_id": "abc"},
    ],
    ids=json.dumps,
)
def test_the_places_of_a_task_id(fields: dict[str, object]) -> None:
    """Kie's pages show the id in `data` and at the root, in two spellings."""
    envelope = envelope_of(body({"code": 200, **fields}))
    assert envelope is not None
    assert envelope.task_id == "abc"


def test_an_id_deeper_in_the_data_counts_with_success_alone() -> None:
    """What refuses may speak of another task."""
    found = {
        code: envelope_of(body({"code": code, "data": {"task": {"id": "5fd1a1ea"}}}))
        for code in (200, 201, 400)
    }
    assert {code: envelope and envelope.task_id for code, envelope in found.items()} == {
        200: "5fd1a1ea",
        201: None,
        400: None,
    }


@pytest.mark.parametrize(
    ("message", "shown"), [("a\n b\x1b", "a b\N{REPLACEMENT CHARACTER}"), (None, ""), (5, ""), (["a"], "")]
)
def test_a_message_is_safe_to_show(message: object, shown: str) -> None:
    """One line without control characters; anything but a string is no message."""
    envelope = envelope_of(body({"code": 500, "msg": message}))
    assert envelope is not None
    assert envelope.message == shown


def test_the_error_of_every_code() -> None:
    """A code other than 200 is one error, of the class in the table, whatever the data."""
    assert data_of(500, body({"code": 200, "data": [1]})) == [1]
    for code in {*range(-1, 1000)} - {200}:
        with pytest.raises(APIStatusError) as caught:
            data_of(200, body({"code": code, "msg": "m", "data": [1]}), 7.0)
        error = caught.value
        assert type(error) is ERROR_OF_CODE.get(
            code, InternalServerError if 500 <= code < 600 else APIStatusError
        )
        assert (error.code, error.http_status, error.message, error.retry_after) == (code, 200, "m", 7.0)
        assert error.retryable == (code in {408, 429, 430, 451, 455, 550, *range(500, 600)} - {505})


@pytest.mark.parametrize("code", [408, 451, 455, 500])
def test_an_empty_balance_is_not_asked_twice(code: int) -> None:
    """Whatever the code says, a repetition comes to the same."""
    with pytest.raises(InsufficientCreditsError) as caught:
        data_of(200, body({"code": code, "msg": "Credits insufficient : please top up"}))
    assert not caught.value.retryable


def test_what_cannot_be_read_says_where() -> None:
    """The path is in the words and beside them; without one the words speak of the whole answer."""
    error = unreadable(200, b"[1]", "data.state")
    assert error.path == "data.state"
    assert "HTTP status 200 at data.state: '[1]'" in str(error)
    assert "HTTP status 200: '[1]'" in str(unreadable(200, b"[1]"))


@pytest.mark.parametrize("content", [b"", b"<html>hello</html>", b"[]", b'{"code":true}', b'{"error":"x"}'])
def test_without_an_envelope_the_http_status_decides(content: bytes) -> None:
    """From 400 on it is the code of the error; below that the answer is unreadable."""
    for status in range(100, 600):
        with pytest.raises((APIStatusError, UnexpectedResponseError)) as caught:
            data_of(status, content)
        assert isinstance(caught.value, APIStatusError) == (status >= 400)
        assert caught.value.http_status == status


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        *((None, None), ("7", 7.0), (" 7 ", 7.0), ("0", 0.0), ("-1", None), ("1.5", None), ("", None)),
        *(("Wed, 21 Oct 2026 07:28:00 GMT", None), ("inf", None), ("9" * 30, None), ("٣", None)),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    """Whole seconds are read; anything else is ignored."""
    assert retry_after_of(header) == seconds
