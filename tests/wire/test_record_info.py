"""The record of a task: its state by the full table, and the spellings of its fields."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie4o.details import TaskState
from kie4o.errors import (
    ERROR_OF_CODE,
    APIStatusError,
    BadRequestError,
    InternalServerError,
    KieError,
    NotFoundError,
    PermissionDeniedError,
    UnexpectedResponseError,
    worth_repeating,
)
from kie4o.wire.record_info import details_of

TASK_ID = "5fd1000000000000000000000000a1ea"


def body(value: object) -> bytes:
    return json.dumps(value).encode()


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
    """The state for every status, flag, list of images, error code and spelling. Error code and times
    decide nothing."""
    rows = 0
    for (flag, expected), urls, error, completed in itertools.product(
        zip(FLAGS, TABLE[status], strict=True), ([], URLS), (None, 200, 400, 500), (None, 1774788518000)
    ):
        for spelling in {status, status and status.lower(), status and f" {status.title()}"}:
            data = {"taskId": TASK_ID, "status": spelling, "successFlag": flag, "errorCode": error}
            data |= {"response": {"resultUrls": urls}, "completeTime": completed}
            details = details_of(TASK_ID, 200, body({"code": 200, "msg": "m", "data": data}))
            only_images = bool(urls) and flag is None and not spelling
            assert details.state is (SUCCEEDED if only_images else expected), data
            assert details.urls == tuple(urls)
            assert details.error_code == error
            rows += 1
    assert rows >= 128


def test_a_record_of_another_task() -> None:
    """An answer about another task than the one asked for is refused."""
    content = body({"code": 200, "data": {"taskId": "other", "status": "SUCCESS"}})
    with pytest.raises(UnexpectedResponseError) as caught:
        details_of(TASK_ID, 200, content)
    assert "taskId" in (caught.value.path or "")


def test_a_failed_read_says_nothing_about_the_task() -> None:
    """Codes other than 200, 404 and 422 are errors of the read, with the class that the table names."""
    for code in range(-1, 1000):
        content = body({"code": code, "msg": "m", "data": {"status": "GENERATE_FAILED"}})
        if code in (200, 404, 422):
            details = details_of(TASK_ID, 200, content)
            assert details.state is (FAILED if code == 200 else TaskState.MISSING)
            assert details.error_code == (None if code == 200 else code)
            continue
        with pytest.raises(APIStatusError) as caught:
            details_of(TASK_ID, 200, content, 7.0)
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
        (399, b"", UnexpectedResponseError),
        (400, b"<html>Bad request</html>", BadRequestError),
    ],
)
def test_answers_without_an_envelope(status: int, content: bytes, kind: type[KieError]) -> None:
    """From 400 on HTTP decides; below that nothing can be read. Neither says anything about the task."""
    with pytest.raises(kind) as caught:
        details_of(TASK_ID, status, content)
    assert worth_repeating(caught.value)
    assert getattr(caught.value, "http_status", None) == status
    assert content.decode()[:8] in str(caught.value)


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
def test_a_missing_field_reads_like_null(name: str) -> None:
    """A running record without one of its nulls gives the same details."""
    details = details_of(TASK_ID, 200, body({"code": 200, "msg": "m", "data": QUIET}))
    rest = {key: value for key, value in QUIET.items() if key != name}
    assert details_of(TASK_ID, 200, body({"code": 200, "msg": "m", "data": rest})) == details
    assert (details.state, details.progress, details.created_at is not None) == (RUNNING, 0.4, True)


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
def test_a_flag_as_text_reads_like_a_number(
    response: object, created: object, completed: object, progress: object
) -> None:
    """A success whose flag is a string gives the same details, whatever its images and times are like."""
    done = QUIET | {"status": "SUCCESS", "successFlag": 1, "response": response, "completeTime": completed}
    done |= {"createTime": created, "progress": progress}
    number, text = (
        details_of(TASK_ID, 200, body({"code": 200, "msg": "m", "data": data}))
        for data in (done, done | {"successFlag": "1"})
    )
    assert number == text
    assert number.state is SUCCEEDED


@pytest.mark.parametrize(
    ("flag", "state"),
    [
        *(
            (True, SUCCEEDED),
            (1.0, SUCCEEDED),
            (" 1 ", SUCCEEDED),
            (3.0, FAILED),
            (False, RUNNING),
            (0.0, RUNNING),
        ),
        *(
            ("", RUNNING),
            ("x", RUNNING),
            ([1], RUNNING),
            ({"a": 1}, RUNNING),
            (1.5, RUNNING),
            (1e300, RUNNING),
        ),
    ],
)
def test_a_flag_of_another_type(flag: object, state: TaskState) -> None:
    """What equals a flag is read as one, anything else is left out: the record is read all the same."""
    data = QUIET | {"status": "", "successFlag": flag}
    assert details_of(TASK_ID, 200, body({"code": 200, "msg": "m", "data": data})).state is state


DONE = {"taskId": TASK_ID, "status": "SUCCESS", "successFlag": 1, "response": {"resultUrls": URLS}}
ODD = ["", "x", "CONTENT_POLICY", 5, 200.0, True, [], ["a"], {}, {"a": 1}, "NaN", None]


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize(
    "name",
    ["taskId", "progress", "errorCode", "errorMessage", "createTime", "completeTime", "paramJson", "new"],
)
def test_what_only_informs_hides_nothing(name: str, value: object) -> None:
    """A success keeps its images, and a failure its end, whatever else the record says."""
    if name == "taskId" and value in ("x", "CONTENT_POLICY", "NaN"):
        return  # another task, which is refused: see above
    done = details_of(TASK_ID, 200, body({"code": 200, "data": DONE | {name: value}}))
    assert (done.state, done.urls) == (SUCCEEDED, tuple(URLS))
    failed = DONE | {"status": "GENERATE_FAILED", "successFlag": 3, "response": None, name: value}
    details = details_of(TASK_ID, 200, body({"code": 200, "data": failed}))
    assert (details.state, details.urls) == (FAILED, ())
    assert type(details.error_code) in (int, type(None))
    assert type(details.error_message) in (str, type(None))


@pytest.mark.parametrize(
    "name", ["info", "resultJson", "resultUrls", "resultUrl", "resultImageUrl", "url", "data"]
)
def test_images_are_found_elsewhere_in_the_record(name: str) -> None:
    data = DONE | {"response": None, name: URLS[0] if "Url" in name else json.dumps({"resultUrls": URLS})}
    assert details_of(TASK_ID, 200, body({"code": 200, "data": data})).urls == tuple(URLS)


@pytest.mark.parametrize("name", ["resultUrls", "url"])
def test_the_images_of_the_response_come_first(name: str) -> None:
    """They are where Kie's page has them; what is beside it may be of an input."""
    data = DONE | {name: "https://other.example/b.png"}
    assert details_of(TASK_ID, 200, body({"code": 200, "data": data})).urls == tuple(URLS)
