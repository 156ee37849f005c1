"""The answers to free calls: what is read, and that from any bytes only our errors arise."""

import itertools
import json
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie4o.details import TaskDetails, TaskState
from kie4o.errors import APIStatusError, KieError, UnexpectedResponseError
from kie4o.image_request import UploadedFile
from kie4o.wire.answers import credits_of, link_of, uploaded_of
from kie4o.wire.record_info import details_of
from kie4o.wire.structuring import RecordInfo, structured

TASK_ID = "5fd1000000000000000000000000a1ea"
URLS = ["https://files.example.com/a.png"]


def body(value: object) -> bytes:
    return json.dumps(value).encode()


def details(status: int, content: bytes) -> TaskDetails:
    return details_of(TASK_ID, status, content)


READERS: dict[str, Callable[[int, bytes], Any]] = {
    "details": details,
    "link": link_of,
    "credits": credits_of,
    "upload": uploaded_of,
}

GOOD: dict[str, Any] = {
    "details": {
        "taskId": TASK_ID,
        "paramJson": '{"size":"1:1"}',
        "createTime": 1774788500000,
        "completeTime": 1774788518000,
        "response": {"resultUrls": URLS},
        "successFlag": 1,
        "status": "SUCCESS",
        "errorCode": 200,
        "errorMessage": "e",
        "progress": "1.00",
    },
    "link": "https://r2.example.com/a.png?X-Amz-Expires=1200",
    "credits": 5916.25,
    "upload": {
        "success": True,
        "downloadUrl": "https://tempfile.example.com/a.png",
        "fileName": "a.png",
        "filePath": "kieai/1/a.png",
        "fileSize": 70,
        "mimeType": "image/png",
        "uploadedAt": "2026-08-06T10:00:00.000Z",
    },
}

JUNK = [
    b"",
    b" ",
    b"\x00",
    b"\xff\xfe\x00",
    b"<!DOCTYPE html><html><body>502</body></html>",
    b"null",
    b"true",
    b"5",
    b'"text"',
    b"[]",
    b"{}",
    b"NaN",
    b"{",
    b'{"code":200',
    b'{"code":NaN,"data":1}',
    b'{"code":200,"data":NaN}',
    b'{"code":200,"data":Infinity}',
    b'{"code":200,"data":{"progress":-Infinity}}',
    b'{"code":200,"data":1e400}',
    b'{"code":200,"data":-1e400}',
    b'{"code":200,"data":' + b"9" * 5000 + b"}",
    b'{"code":200,"data":{"createTime":' + b"9" * 4000 + b',"successFlag":' + b"9" * 4000 + b"}}",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"code":200,"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'\xef\xbb\xbf{"code":200,"data":[]}',
    b'\xff\xfe{"code":200}',
    '{"code":200,"data":{}}'.encode("utf-16"),
    b'{"code":200,"data":"\\ud800"}',
    b'{"code":200,"msg":"\\ud800","data":{"status":"\\ud800","taskId":"\\udfff","downloadUrl":"\\ud800"}}',
    b'{"code":500,"msg":"\\ud800\\n\\u0000\\u001b[31m"}',
    b'{"code":200,"code":500,"data":{}}',
]


def assert_well_typed(value: object) -> None:
    """Every field of a value has the type that its class promises."""
    if isinstance(value, Decimal):
        assert value.is_finite()
    elif isinstance(value, str):
        assert value.startswith(("http://", "https://"))
    elif isinstance(value, TaskDetails):
        assert value.task_id == TASK_ID
        assert type(value.state) is TaskState
        assert value.status is None or type(value.status) is str
        assert type(value.urls) is tuple
        assert all(type(url) is str and url.strip() for url in value.urls)
        assert value.progress is None or (type(value.progress) is float and 0 <= value.progress <= 1)
        assert value.error_code is None or type(value.error_code) is int
        assert value.error_message is None or type(value.error_message) is str
        for moment in (value.created_at, value.completed_at):
            assert moment is None or (type(moment) is datetime and moment.utcoffset() is not None)
        assert isinstance(value.raw, dict)
        assert isinstance(value.params, dict)
    else:
        assert isinstance(value, UploadedFile)
        assert {type(value.url), type(value.name), type(value.path), type(value.mime_type)} == {str}
        assert type(value.size) is int
        assert value.uploaded_at is None or value.uploaded_at.utcoffset() is not None


def read_safely(name: str, status: int, content: bytes) -> KieError | None:
    """Read an answer and return our error, if there is one. A value is well typed; an error was raised
    outside any other and is safe to show."""
    try:
        value = READERS[name](status, content)
    except KieError as error:
        problem = error
    else:
        assert_well_typed(value)
        return None
    assert isinstance(problem, APIStatusError | UnexpectedResponseError)
    assert problem.__context__ is None
    sentence = str(problem)
    sentence.encode()
    assert "\n" not in sentence
    assert "\x1b" not in sentence
    assert len(sentence) < 800
    return problem


@pytest.mark.parametrize("name", READERS)
def test_good_answers_are_read(name: str) -> None:
    """The control for the tests below: an undamaged answer is read."""
    assert read_safely(name, 200, body({"code": 200, "msg": "m", "data": GOOD[name]})) is None


@pytest.mark.parametrize("status", [200, 204, 302, 404, 500])
@pytest.mark.parametrize("name", READERS)
def test_junk_gives_our_errors_only(name: str, status: int) -> None:
    """HTML, nothing, absurd depth and digits, BOMs and lone surrogates give our errors only."""
    refused = [content for content in JUNK if read_safely(name, status, content) is not None]
    # `details` reads five: `data` that is no number, and records whose values cannot be read.
    assert len(JUNK) - len(refused) == (5 if name == "details" else 0)


WRONG = [
    *(True, False, None, 0, -1, 5, 1.5, -0.0, 10**30),
    *("", "x", "None", "\ud800", [], [None], ["x"], {}, {"a": 1}),
]


@pytest.mark.parametrize("name", ["details", "upload"])
def test_wrong_types_in_every_field(name: str) -> None:
    """A field of the wrong type is left out, or refused with its path; it is not converted."""
    for field, value in itertools.product(GOOD[name], WRONG):
        content = body({"code": 200, "msg": "m", "data": GOOD[name] | {field: value}})
        error = read_safely(name, 200, content)
        if error is not None:
            assert isinstance(error, UnexpectedResponseError)
            assert error.path is not None
            assert f"data.{field}" in error.path


@pytest.mark.parametrize("name", READERS)
def test_wrong_types_of_data(name: str) -> None:
    """`data` of the wrong type is an error, or a missing task."""
    for value in WRONG:
        content = body({"code": 200, "msg": "m", "data": value})
        error = read_safely(name, 200, content)
        if error is None and name == "details":
            assert value is None or isinstance(value, dict)
        if error is None and name in ("link", "upload"):
            pytest.fail(f"{value!r} was read")
        if error is None and name == "credits":
            assert type(value) in (int, float)


@pytest.mark.parametrize("name", ["details", "upload"])
def test_missing_fields(name: str) -> None:
    """Any field may be missing, except the URL of an upload."""
    for field in GOOD[name]:
        data = {key: value for key, value in GOOD[name].items() if key != field}
        error = read_safely(name, 200, body({"code": 200, "msg": "m", "data": data}))
        assert (error is not None) == (field == "downloadUrl")


def test_the_path_to_a_wrong_field() -> None:
    """The error names the field without which there is no result, without its value."""
    data = GOOD["upload"] | {"downloadUrl": ["secret"], "fileName": ["other"]}
    with pytest.raises(UnexpectedResponseError) as caught:
        uploaded_of(200, body({"code": 200, "data": data}))
    assert caught.value.path == "data.downloadUrl"


def test_of_an_upload_the_url_is_enough() -> None:
    """What else Kie leaves out is empty, and the size 0."""
    read = uploaded_of(200, body({"code": 200, "data": {"downloadUrl": "https://x/y"}}))
    assert read == UploadedFile("https://x/y", name="", path="", size=0, mime_type="", uploaded_at=None)


def test_an_interrupt_is_no_wrong_value() -> None:
    """What ends the program while an answer is read goes through."""

    class Interrupted(dict[str, Any]):
        def __contains__(self, _: object) -> bool:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        structured(Interrupted(), RecordInfo, 200, b"")


def test_null_is_never_none_as_text() -> None:
    """null in a text field is None or refused, never "None"."""
    for name in ("details", "upload"):
        for field in GOOD[name]:
            content = body({"code": 200, "data": GOOD[name] | {field: None}})
            try:
                value = READERS[name](200, content)
            except KieError:
                continue
            shown = {key: entry for key, entry in attrs.asdict(value).items() if key != "raw"}
            assert "None" not in [entry for entry in shown.values() if isinstance(entry, str)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(list(READERS)), st.integers(100, 599), st.data())
def test_any_json_gives_our_errors_only(name: str, status: int, data: st.DataObject) -> None:
    """Any JSON in any field of any answer gives a value or one of our errors."""
    good = GOOD[name]
    value = data.draw(JSON)
    if isinstance(good, dict) and data.draw(st.booleans()):
        value = good | {data.draw(st.sampled_from(sorted(good))): value}
    read_safely(
        name, status, body({"code": data.draw(st.sampled_from([200, "200", 0, None])), "data": value})
    )


@given(st.sampled_from(list(READERS)), st.integers(100, 599), st.binary(max_size=400))
def test_any_bytes_give_our_errors_only(name: str, status: int, content: bytes) -> None:
    """So do any bytes with any HTTP status."""
    read_safely(name, status, content)


@pytest.mark.parametrize(
    ("data", "amount"),
    [(100, "100"), (5916.25, "5916.25"), (0.1, "0.1"), ("60.62", "60.62"), (0, "0"), (-1.5, "-1.5")],
)
def test_credits_are_exact(data: object, amount: str) -> None:
    """A fraction is read as it was written, not as a binary float."""
    assert credits_of(200, body({"code": 200, "data": data})) == Decimal(amount)


@pytest.mark.parametrize(
    "data", ["ftp://x", "javascript:alert(1)", "", "x", {"downloadUrl": 5}, {}, [], None]
)
def test_a_link_is_an_http_url(data: object) -> None:
    """Anything else is refused; the quickstart's object is accepted."""
    with pytest.raises(UnexpectedResponseError):
        link_of(200, body({"code": 200, "data": data}))
    assert link_of(200, body({"code": 200, "data": {"downloadUrl": "https://x/y"}})) == "https://x/y"


@pytest.mark.parametrize("url", ["", "x", "ftp://x/y", "javascript:alert(1)"])
def test_an_uploaded_file_has_an_http_url(url: str) -> None:
    """An upload without a usable URL is refused, since it cannot be used."""
    with pytest.raises(UnexpectedResponseError):
        uploaded_of(200, body({"code": 200, "data": GOOD["upload"] | {"downloadUrl": url}}))


@pytest.mark.parametrize(
    ("link", "read"),
    [
        ("https://a.example/my cat.png?X-Sig=a%2Bb", "https://a.example/my%20cat.png?X-Sig=a%2Bb"),
        ("https://a.example/a\\b.png", "https://a.example/a%5Cb.png"),
        (" https://a.example/a.png\n", "https://a.example/a.png"),
        ("https://a.example/s\u00fc\u00df.png", "https://a.example/s\u00fc\u00df.png"),
        ("https://a.example/a|b?c=%7E~", "https://a.example/a|b?c=%7E~"),
    ],
)
def test_a_link_is_quoted_where_it_must_be(link: str, read: str) -> None:
    """Kie's own URLs may hold spaces and backslashes. What can be sent stays, since it may be signed."""
    assert link_of(200, body({"code": 200, "data": link})) == read
    assert link_of(200, body({"code": 200, "data": {"downloadUrl": link}})) == read
