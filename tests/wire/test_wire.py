"""Answers to values: the verdict table, the state table, and readers that junk cannot break."""

import itertools
import json
import math
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kie4o.details import TaskDetails, TaskState
from kie4o.errors import (
    ERROR_OF_CODE,
    APIStatusError,
    InternalServerError,
    KieError,
    NotFoundError,
    PermissionDeniedError,
    UnexpectedResponseError,
)
from kie4o.models import ImageRequest, UploadedFile
from kie4o.submission.verdict import Judgement, Verdict, judge
from kie4o.wire import record_info as wire
from kie4o.wire import requests
from kie4o.wire.answers import credits_of, link_of, uploaded_of
from kie4o.wire.envelope import envelope_of, retry_after_of
from kie4o.wire.requests import Endpoint, body_of, json_body, with_ref

TASK_ID = "5fd1000000000000000000000000a1ea"
REFUSED = {
    400,
    401,
    402,
    403,
    404,
    405,
    409,
    413,
    422,
    429,
    430,
    433,
    451,
    455,
    505,
    550,
}  # written out, not imported


def body(value: object) -> bytes:
    return json.dumps(value).encode()


def judged(content: bytes, status: int | None = 200, fault: str = "") -> Judgement:
    return judge(sent=True, status=status, body=content, fault=fault)


# -- the verdict on the paid call --------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 429, 500])
def test_verdict_of_every_code(status: int) -> None:
    """The sixteen codes of the table refuse, all others leave it unknown, whatever the HTTP status."""
    refused = set()
    for code in range(-1, 1000):
        judgement = judged(body({"code": code, "msg": "m", "data": None}), status)
        assert judgement.verdict in (Verdict.REFUSED, Verdict.UNKNOWN)
        assert (judgement.code, judgement.message, judgement.task_id) == (code, "m", None)
        if judgement.verdict is Verdict.REFUSED:
            refused.add(code)
    assert refused == REFUSED


@pytest.mark.parametrize("content", [b"", b"<html>", b'{"error":"Not Found"}', b"[]", b"null"])
def test_verdict_of_every_bare_status(content: bytes) -> None:
    """Without an envelope HTTP 4xx refuses except 408; all others leave it unknown."""
    refused = {status for status in range(-1, 1000) if judged(content, status).verdict is Verdict.REFUSED}
    assert refused == set(range(400, 500)) - {408}
    unknown = {status for status in range(-1, 1000) if judged(content, status).verdict is Verdict.UNKNOWN}
    assert refused | unknown == set(range(-1, 1000))


@pytest.mark.parametrize("status", [None, 200, 302, 307, 400, 404, 500, 502])
def test_a_broken_off_answer_refuses_nothing(status: int | None) -> None:
    """An answer that broke off before its envelope was whole leaves it unknown, also a 4xx."""
    judgement = judged(b'{"code":4', status, fault="the connection broke")
    assert judgement == Judgement(Verdict.UNKNOWN, code=status, message="the connection broke")


def test_nothing_was_sent() -> None:
    """The latch alone decides that nothing was sent."""
    judgement = judge(sent=False, fault="cannot connect")
    assert judgement == Judgement(Verdict.NOT_SENT, message="cannot connect")


UNREADABLE_CODES = [
    *(
        "",
        " ",
        "abc",
        "4e2",
        "0x190",
        "400.0",
        "9" * 30,
        True,
        False,
        None,
        400.0,
        200.0,
        1e400,
        [],
        [400],
        {},
    ),
]


@pytest.mark.parametrize("code", UNREADABLE_CODES, ids=repr)
def test_a_code_that_is_none(code: object) -> None:
    """A code of another type is no envelope: HTTP decides, and 200 leaves it unknown."""
    content = body({"code": code, "msg": "m", "data": None}).replace(b"Infinity", b"1e400")
    assert envelope_of(content) is None
    assert judged(content, 200).verdict is Verdict.UNKNOWN
    assert judged(content, 422).verdict is Verdict.REFUSED


@pytest.mark.parametrize("code", [400, "400", " 400 "])
def test_a_code_as_text(code: object) -> None:
    """Digits in a text are a code."""
    assert judged(body({"code": code})) == Judgement(Verdict.REFUSED, code=400)


@pytest.mark.parametrize("code", [10**17, -(10**17), 10**4000])
def test_a_huge_code(code: int) -> None:
    """No number is too large to be read as unknown."""
    content = b'{"code":1' + b"0" * (len(str(code)) - 1) + b"}"
    assert judged(content).verdict is Verdict.UNKNOWN


def test_a_number_beyond_pythons_limit() -> None:
    """A number of 5000 digits is not JSON that we read; the verdict is unknown."""
    assert judged(b'{"code":' + b"9" * 5000 + b"}").verdict is Verdict.UNKNOWN


NO_IDS = [None, "", " ", "a b", "a.b", "ü", "x" * 129, 5, 5.0, True, [], ["abc"], {"id": "abc"}, "None\n"]


@pytest.mark.parametrize("value", NO_IDS, ids=repr)
def test_success_without_an_id(value: object) -> None:
    """Code 200 with an unusable id is unknown, and null never becomes "None"."""
    judgement = judged(body({"code": 200, "msg": "success", "data": {"taskId": value}}))
    assert (judgement.verdict, judgement.task_id) == (Verdict.UNKNOWN, None)


@pytest.mark.parametrize("data", [None, {}, [], "abc", 5, True, [{"taskId": "abc"}]], ids=repr)
def test_success_without_data(data: object) -> None:
    """Code 200 without an object that holds an id is unknown."""
    assert judged(body({"code": 200, "msg": "success", "data": data})).verdict is Verdict.UNKNOWN
    assert judged(body({"code": 200, "msg": "success"})).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("name", ["taskId", "task_id"])
def test_an_id_is_taken_whatever_the_code(name: str) -> None:
    """A task id in the body means accepted, also beside a code that refuses or under HTTP 500."""
    for code in (*range(-1, 1000, 7), *REFUSED, "505", None, True, 5.5):
        for status in (200, 429, 500):
            judgement = judged(body({"code": code, "msg": "m", "data": {name: "abc-1_Z"}}), status)
            assert (judgement.verdict, judgement.task_id) == (Verdict.ACCEPTED, "abc-1_Z")


GOOD_ANSWERS = [
    b'{"code":200,"msg":"success","data":{"taskId":"%b"}}' % TASK_ID.encode(),
    b'{"data": {"task_id" :\n "%b"}, "msg": "success", "code": 200}' % TASK_ID.encode(),
]


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("answer", GOOD_ANSWERS)
def test_every_cut_of_a_good_answer(answer: bytes, status: int) -> None:
    """The id is saved as soon as its closing quote has arrived; before that it is unknown."""
    whole = answer.index(TASK_ID.encode()) + len(TASK_ID) + 1
    for end in range(len(answer) + 1):
        judgement = judged(answer[:end], status, fault="the connection broke")
        if end < whole:
            assert (judgement.verdict, judgement.task_id) == (Verdict.UNKNOWN, None), end
        else:
            assert (judgement.verdict, judgement.task_id) == (Verdict.ACCEPTED, TASK_ID), end


def test_two_ids_in_a_cut_answer() -> None:
    """If a cut answer names two tasks, neither is taken."""
    answer = b'{"code":200,"data":{"taskId":"abc","task_id":"def"'
    assert judged(answer, fault="cut").verdict is Verdict.UNKNOWN
    assert judged(answer.replace(b"def", b"abc"), fault="cut").task_id == "abc"


def test_an_id_in_a_quotation_is_none() -> None:
    """What a message quotes is not an id, whole or cut."""
    content = body({"code": 400, "msg": 'bad body {"taskId":"abc"}', "data": None})
    for end in range(len(content) + 1):
        assert judged(content[:end], fault="cut").task_id is None


@given(st.binary(max_size=300), st.one_of(st.none(), st.integers(-1, 999)), st.text(max_size=20))
@example(b"[" * 100_000, 200, "")
@example(b'{"code":NaN}', 200, "")
@example(b'{"code":400,"msg":"\\ud800"}', 200, "")
def test_any_bytes_have_a_verdict(content: bytes, status: int | None, fault: str) -> None:
    """Whatever arrives, there is a verdict and never an exception; junk is never accepted."""
    judgement = judged(content, status, fault)
    assert judgement.verdict in (Verdict.REFUSED, Verdict.UNKNOWN, Verdict.ACCEPTED)
    assert (judgement.verdict is Verdict.ACCEPTED) == (judgement.task_id is not None)
    judgement.message.encode()
    assert not set(judgement.message) & set("\r\n\x1b") or judgement.message == fault


# -- the state of a task -----------------------------------------------------------------------

RUNNING, SUCCEEDED, FAILED = TaskState.RUNNING, TaskState.SUCCEEDED, TaskState.FAILED
FLAGS = [None, -1, 0, 1, 2, 3, 4, 99]
BY_FLAG = [RUNNING, RUNNING, RUNNING, SUCCEEDED, FAILED, FAILED, RUNNING, RUNNING]
STRANGE = [
    *(None, "", "PROCESSING", "WAITING", "QUEUING", "PENDING", "FAILED", "FAIL", "DONE", "OK"),
    *("NONE", "SUCCEEDED", "GENERATED", "CANCELLED", "TIMEOUT", "SUCCESS_", "完成", "\ud800"),
]
# One row for each status, one column for each flag: written out, not imported.
TABLE: dict[str | None, list[TaskState]] = dict.fromkeys(STRANGE, BY_FLAG) | {
    "GENERATING": [RUNNING, RUNNING, RUNNING, RUNNING, FAILED, FAILED, RUNNING, RUNNING],
    "SUCCESS": [SUCCEEDED] * 8,
    "CREATE_TASK_FAILED": [FAILED] * 8,
    "GENERATE_FAILED": [FAILED] * 8,
}
URLS = ["https://files.example.com/a.png"]


@pytest.mark.parametrize("status", TABLE, ids=ascii)
def test_state_table(status: str | None) -> None:
    """The full product of status, flag, images, error code and spelling; codes and times decide nothing."""
    rows = 0
    for (flag, expected), urls, error, completed in itertools.product(
        zip(FLAGS, TABLE[status], strict=True), ([], URLS), (None, 200, 400, 500), (None, 1774788518000)
    ):
        for spelling in {status, status and status.lower(), status and f" {status.title()}"}:
            data = {"taskId": TASK_ID, "status": spelling, "successFlag": flag, "errorCode": error}
            data |= {"response": {"resultUrls": urls}, "completeTime": completed}
            details = wire.details_of(TASK_ID, 200, body({"code": 200, "msg": "m", "data": data}))
            assert details.state is expected, data
            assert details.urls == tuple(urls)
            assert details.error_code == error
            rows += 1
    assert rows >= 128


def test_a_look_at_another_task() -> None:
    """An answer about another task than the one asked for is not believed."""
    content = body({"code": 200, "data": {"taskId": "other", "status": "SUCCESS"}})
    with pytest.raises(UnexpectedResponseError) as caught:
        wire.details_of(TASK_ID, 200, content)
    assert "taskId" in (caught.value.path or "")


def test_a_read_that_failed_says_nothing_of_the_task() -> None:
    """Codes other than 200, 404 and 422 are errors of the read; the table names their classes."""
    for code in range(-1, 1000):
        content = body({"code": code, "msg": "m", "data": {"status": "GENERATE_FAILED"}})
        if code in (200, 404, 422):
            state = wire.details_of(TASK_ID, 200, content).state
            assert state is (FAILED if code == 200 else TaskState.MISSING)
            continue
        with pytest.raises(APIStatusError) as caught:
            wire.details_of(TASK_ID, 200, content, 7.0)
        error = caught.value
        expected = ERROR_OF_CODE.get(code, InternalServerError if 500 <= code < 600 else APIStatusError)
        assert type(error) is expected
        assert (error.code, error.http_status, error.message, error.retry_after) == (code, 200, "m", 7.0)


@pytest.mark.parametrize(
    ("status", "content", "kind"),
    [
        (404, b'{"timestamp":1,"status":404,"error":"Not Found"}', NotFoundError),
        (403, b"error code: 1010", PermissionDeniedError),
        (502, b"<html>Bad gateway</html>", InternalServerError),
        (200, b"<html>hello</html>", UnexpectedResponseError),
        (302, b"", UnexpectedResponseError),
    ],
)
def test_answers_without_an_envelope(status: int, content: bytes, kind: type[KieError]) -> None:
    """HTTP decides from 400 on; below that the answer cannot be read, and an excerpt is shown."""
    with pytest.raises(kind) as caught:
        wire.details_of(TASK_ID, status, content)
    assert getattr(caught.value, "http_status", None) == status
    assert content.decode()[:8] in str(caught.value)


# -- readers and junk --------------------------------------------------------------------------


def details(status: int, content: bytes) -> TaskDetails:
    return wire.details_of(TASK_ID, status, content)


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
    """Every field of a value has a type that its class promises."""
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
    """A well-typed value or one of our errors, made outside any other and fit to be shown."""
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
    """The control of the tests below: unharmed answers are read."""
    assert read_safely(name, 200, body({"code": 200, "msg": "m", "data": GOOD[name]})) is None


@pytest.mark.parametrize("status", [200, 204, 302, 404, 500])
@pytest.mark.parametrize("name", READERS)
def test_junk_gives_our_errors_only(name: str, status: int) -> None:
    """HTML, nothing, NaN, absurd depth and digits, BOMs, lone surrogates."""
    refused = [content for content in JUNK if read_safely(name, status, content) is not None]
    # A look takes one: a record with absurdly large numbers, which is read as running.
    assert len(refused) >= len(JUNK) - 1


WRONG = [
    True,
    False,
    None,
    0,
    -1,
    5,
    1.5,
    -0.0,
    10**30,
    "",
    "x",
    "None",
    "\ud800",
    [],
    [None],
    ["x"],
    {},
    {"a": 1},
]


@pytest.mark.parametrize("name", ["details", "upload"])
def test_wrong_types_in_every_field(name: str) -> None:
    """A field of the wrong type is left out or refused with its path; never turned into another type."""
    for field, value in itertools.product(GOOD[name], WRONG):
        content = body({"code": 200, "msg": "m", "data": GOOD[name] | {field: value}})
        error = read_safely(name, 200, content)
        if error is not None:
            assert isinstance(error, UnexpectedResponseError)
            assert error.path is not None
            assert f"data.{field}" in error.path


@pytest.mark.parametrize("name", READERS)
def test_wrong_types_of_data(name: str) -> None:
    """`data` of another type than the endpoint's is not believed: an error, or a missing task."""
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
    """Any field may be missing except an upload's URL."""
    for field in GOOD[name]:
        data = {key: value for key, value in GOOD[name].items() if key != field}
        error = read_safely(name, 200, body({"code": 200, "msg": "m", "data": data}))
        assert (error is not None) == (field == "downloadUrl")


def test_the_path_to_several_wrong_fields() -> None:
    """The error names every wrong field, without its value."""
    data = GOOD["details"] | {"status": ["secret"], "errorCode": {}}
    with pytest.raises(UnexpectedResponseError) as caught:
        details(200, body({"code": 200, "data": data}))
    assert caught.value.path is not None
    assert "data.status" in caught.value.path
    assert "data.errorCode" in caught.value.path
    assert "secret" not in caught.value.path


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
    """Any JSON in any field of any answer."""
    good = GOOD[name]
    value = data.draw(JSON)
    if isinstance(good, dict) and data.draw(st.booleans()):
        value = good | {data.draw(st.sampled_from(sorted(good))): value}
    read_safely(
        name, status, body({"code": data.draw(st.sampled_from([200, "200", 0, None])), "data": value})
    )


@given(st.sampled_from(list(READERS)), st.integers(100, 599), st.binary(max_size=400))
def test_any_bytes_give_our_errors_only(name: str, status: int, content: bytes) -> None:
    """Any bytes under any HTTP status."""
    read_safely(name, status, content)


@pytest.mark.parametrize(
    ("data", "amount"),
    [(100, "100"), (5916.25, "5916.25"), (0.1, "0.1"), ("60.62", "60.62"), (0, "0"), (-1.5, "-1.5")],
)
def test_credits_are_exact(data: object, amount: str) -> None:
    """Fractions come as they were written, not as binary floats."""
    assert credits_of(200, body({"code": 200, "data": data})) == Decimal(amount)


@pytest.mark.parametrize(
    "data", ["ftp://x", "javascript:alert(1)", "", "x", {"downloadUrl": 5}, {}, [], None]
)
def test_a_link_is_an_http_url(data: object) -> None:
    """Anything else is refused; the quickstart's object is taken."""
    with pytest.raises(UnexpectedResponseError):
        link_of(200, body({"code": 200, "data": data}))
    assert link_of(200, body({"code": 200, "data": {"downloadUrl": "https://x/y"}})) == "https://x/y"


@pytest.mark.parametrize("url", ["", "x", "ftp://x/y", "javascript:alert(1)"])
def test_an_uploaded_file_has_an_http_url(url: str) -> None:
    """An upload without a usable URL is refused, since nothing can be done with it."""
    with pytest.raises(UnexpectedResponseError):
        uploaded_of(200, body({"code": 200, "data": GOOD["upload"] | {"downloadUrl": url}}))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        *((None, None), ("7", 7.0), (" 7 ", 7.0), ("0", 0.0), ("-1", None), ("1.5", None), ("", None)),
        *(("Wed, 21 Oct 2026 07:28:00 GMT", None), ("inf", None), ("9" * 30, None), ("٣", None)),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    """Whole seconds; anything else is ignored."""
    assert retry_after_of(header) == seconds


# -- requests to bytes -------------------------------------------------------------------------

FULL = ImageRequest(
    "A calm lake",
    size="3:2",
    files_url=["https://x.example/1.png", "https://x.example/2.png"],
    n_variants=4,
    callback_url="https://y.example/hook",
    is_enhance=True,
    upload_cn=True,
    enable_fallback=True,
    fallback_model="GPT_IMAGE_1",
)


def test_every_field_travels_under_kies_name() -> None:
    """All parameters of the generate page, spelled as there."""
    with pytest.warns(UserWarning, match="mask_url"), pytest.warns(DeprecationWarning, match="fileUrl"):
        request = attrs.evolve(FULL, mask_url="https://x.example/m.png", file_url="https://x.example/f.png")
    assert json.loads(body_of(request)) == {
        "prompt": "A calm lake",
        "size": "3:2",
        "filesUrl": ["https://x.example/1.png", "https://x.example/2.png"],
        "maskUrl": "https://x.example/m.png",
        "nVariants": 4,
        "callBackUrl": "https://y.example/hook",
        "isEnhance": True,
        "uploadCn": True,
        "enableFallback": True,
        "fallbackModel": "GPT_IMAGE_1",
        "fileUrl": "https://x.example/f.png",
    }
    assert len(json.loads(body_of(request))) == len(attrs.fields(ImageRequest))


def test_defaults_are_not_sent() -> None:
    """A field at its default is left out, except `size`, which Kie requires."""
    assert body_of(ImageRequest("A")) == b'{"prompt":"A","size":"1:1"}'
    assert json.loads(body_of(ImageRequest("A", fallback_model="FLUX_MAX", n_variants=1))) == {
        "prompt": "A",
        "size": "1:1",
    }


def test_the_callback_url_with_its_ref_stands_in() -> None:
    """The URL handed in replaces the request's own and is sent also if it has none."""
    for request in (FULL, ImageRequest("A")):
        sent = json.loads(body_of(request, callback_url="https://z.example/?ref=1"))
        assert sent["callBackUrl"] == "https://z.example/?ref=1"


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(
    WORDS,
    st.sampled_from(["1:1", "3:2", "2:3"]),
    st.sampled_from([1, 2, 4]),
    st.lists(st.sampled_from(["https://a.example/ü", "http://b.example/?q=1&r=%20"]), max_size=5),
    st.booleans(),
)
def test_a_body_says_what_the_request_says(prompt: Any, size: Any, count: Any, urls: Any, flag: bool) -> None:
    """Round trip: the JSON holds exactly the given values, in UTF-8, and equal requests give equal bytes."""
    fields: dict[str, Any] = {"size": size, "n_variants": count, "files_url": urls, "is_enhance": flag}
    content = body_of(ImageRequest(prompt, **fields))
    sent = json.loads(content.decode())
    assert sent == {
        "prompt": prompt,
        "size": size,
        **({"nVariants": count} if count != 1 else {}),
        **({"filesUrl": urls} if urls else {}),
        **({"isEnhance": True} if flag else {}),
    }
    assert content == body_of(ImageRequest(prompt, **fields))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://h.example/cb", "https://h.example/cb?ref=R-1"),
        ("https://h.example/cb?a=b", "https://h.example/cb?a=b&ref=R-1"),
        ("https://h.example/cb#f", "https://h.example/cb?ref=R-1#f"),
        ("https://h.example/cb?a=b#f?", "https://h.example/cb?a=b&ref=R-1#f?"),
        ("https://h.example/{ref}/cb", "https://h.example/R-1/cb"),
        ("https://h.example/cb?token={ref}", "https://h.example/cb?token=R-1"),
    ],
)
def test_with_ref(url: str, expected: str) -> None:
    """The ref stands at {ref}, or is one more query parameter; all else stays."""
    assert with_ref(url, "R-1") == expected
    if "{ref}" not in url:
        assert parse_qs(urlsplit(expected).query)["ref"] == ["R-1"]


def test_json_that_cannot_be_written_is_refused() -> None:
    """NaN is not JSON, so it is not sent."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_body({"x": math.nan})


def test_endpoints_are_those_of_the_documentation() -> None:
    """Methods, paths and hosts, as the pages give them."""
    rows = {
        (row.method, row.path, row.uploads) for row in vars(requests).values() if isinstance(row, Endpoint)
    }
    assert rows == {
        ("POST", "/api/v1/gpt4o-image/generate", False),
        ("GET", "/api/v1/gpt4o-image/record-info", False),
        ("POST", "/api/v1/gpt4o-image/download-url", False),
        ("GET", "/api/v1/chat/credit", False),
        ("POST", "/api/file-base64-upload", True),
        ("POST", "/api/file-stream-upload", True),
        ("POST", "/api/file-url-upload", True),
    }


QUIET = {
    "taskId": TASK_ID,
    "paramJson": "{}",
    "completeTime": None,
    "response": None,
    "successFlag": 0,
    "status": "GENERATING",
    "errorCode": None,
    "errorMessage": None,
    "createTime": 1767323045000,
    "progress": "0.40",
}


@pytest.mark.parametrize("name", ["completeTime", "response", "errorCode", "errorMessage"])
def test_the_short_way_to_a_running_record_tells_the_same_as_the_long_one(name: str) -> None:
    """Without one of its nulls a record is read field by field, to an equal value."""
    short = wire.details_of(TASK_ID, 200, body({"code": 200, "msg": "m", "data": QUIET}))
    rest = {key: value for key, value in QUIET.items() if key != name}
    assert wire.details_of(TASK_ID, 200, body({"code": 200, "msg": "m", "data": rest})) == short
    assert (short.state, short.progress, short.created_at is not None) == (TaskState.RUNNING, 0.4, True)


SOME_MOMENTS = (
    st.none()
    | st.integers(-(10**18), 10**18)
    | st.sampled_from(["2026-01-02 03:04:05", "1767323045000", "x"])
)
SOME_URLS = st.lists(st.sampled_from(["https://a.example/1.png", "", " ", 7]), max_size=3)
SOME_RESPONSES = st.one_of(
    st.none(),
    SOME_URLS,
    st.text(max_size=5),
    st.sampled_from(["resultUrls", "result_urls", "url"]).flatmap(
        lambda name: st.fixed_dictionaries({name: SOME_URLS})
    ),
)


@given(
    SOME_RESPONSES,
    SOME_MOMENTS,
    SOME_MOMENTS,
    st.none() | st.floats(0, 2) | st.text(max_size=4) | st.booleans(),
)
def test_the_short_way_to_a_success_tells_the_same_as_the_long_one(
    response: object, created: object, completed: object, progress: object
) -> None:
    """A success that is read at once and the same one read field by field (its flag is a text) are equal,
    whatever is strange about its images and times."""
    done = QUIET | {"status": "SUCCESS", "successFlag": 1, "response": response, "completeTime": completed}
    done |= {"createTime": created, "progress": progress}
    short, long = (
        wire.details_of(TASK_ID, 200, body({"code": 200, "msg": "m", "data": data}))
        for data in (done, done | {"successFlag": "1"})
    )
    assert short == long
    assert short.state is TaskState.SUCCEEDED


@pytest.mark.parametrize(("status", "flag"), [("GENERATING", False), ("GENERATING", 0.0), ("SUCCESS", 1.0)])
def test_what_is_equal_to_a_flag_is_none(status: str, flag: object) -> None:
    """A flag of another type is refused on the short way too."""
    data = QUIET | {"status": status, "successFlag": flag}
    with pytest.raises(UnexpectedResponseError, match="successFlag"):
        wire.details_of(TASK_ID, 200, body({"code": 200, "msg": "m", "data": data}))
