"""Every recorded and documented answer, cut at every byte, and with each of its values replaced by odd ones.

A cut answer is whole or nothing: it has the outcome of the whole, or none. An odd value in a field that says
nothing about the outcome changes nothing; in one that does, it may hide the outcome, never turn it into
another.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from paths import FIXTURES
from proving import tried

from kie4o import KieError
from kie4o.callbacks import parse_callback
from kie4o.details import TaskState
from kie4o.submission.verdict import Verdict, judge
from kie4o.wire.answers import credits_of, link_of, uploaded_of
from kie4o.wire.record_info import details_of

TASK_ID = "5fd1000000000000000000000000a1ea"
CUT = "the connection broke"
ODD: list[Any] = [None, True, -1, 10**30, 1.5, "", "x", "\ud800", [], {}]
MANIFEST = [
    one
    for one in json.loads((FIXTURES / "manifest.json").read_text("utf-8"))
    if one["expect"]["kind"] not in ("vectors", "sequence")
]
Outcome = tuple[object, ...] | None  # None: the answer says nothing
Reader = Callable[[int, bytes, str], Outcome]


# -- what an answer says ---------------------------------------------------------------------------


def of_submit(status: int, body: bytes, fault: str) -> Outcome:
    judgement = judge(sent=True, status=status, body=body, fault=fault)
    said = judgement.verdict is not Verdict.UNKNOWN
    return (judgement.verdict, judgement.task_id) if said else None


def of_record(status: int, body: bytes, fault: str) -> Outcome:
    """The state and the images of a task that is over; another one says nothing yet."""
    details = details_of(task_id_in(body), status, body)
    over = details.state in (TaskState.SUCCEEDED, TaskState.FAILED)
    return (details.state, details.urls) if over else None


def of_callback(status: int, body: bytes, fault: str) -> Outcome:
    callback = parse_callback(body)
    over = callback.details.state in (TaskState.SUCCEEDED, TaskState.FAILED)
    return (callback.task_id, callback.details.state, callback.urls) if over else None


def of_upload(status: int, body: bytes, fault: str) -> Outcome:
    return (uploaded_of(status, body).url,)


def of_link(status: int, body: bytes, fault: str) -> Outcome:
    return (link_of(status, body),)


def of_credits(status: int, body: bytes, fault: str) -> Outcome:
    return (credits_of(status, body),)


READERS: dict[str, Reader] = {
    "/generate": of_submit,
    "/record-info": of_record,
    "callback": of_callback,
    "/api/file-": of_upload,
    "/download-url": of_link,
    "/credit": of_credits,
}
# The last name on the way to a value that says something about the outcome.
TELLING: dict[Reader, set[str]] = {
    of_submit: {"code", "data", "taskId"},
    of_record: {"code", "data", "taskId", "status", "successFlag", "response", "resultUrls", "result_urls"},
    of_callback: {"code", "data", "taskId", "task_id", "info", "result_urls"},
    of_upload: {"code", "data", "fileUrl", "downloadUrl"},
    of_link: {"code", "data"},
    of_credits: {"code", "data"},
}


def task_id_in(body: bytes) -> str:
    """The id that the record names, so that it is the one that was asked for."""
    data = json.loads(body).get("data") if body.rstrip().endswith(b"}") and whole(body) else None
    named = data.get("taskId") if isinstance(data, dict) else None
    return named if isinstance(named, str) and named else TASK_ID


def whole(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body), dict)
    except ValueError:
        return False


def said(read: Reader, status: int, body: bytes, fault: str = "") -> Outcome:
    """What an answer says; nothing if our error is raised. Any other error fails the test."""
    tried()
    try:
        return read(status, body, fault)
    except KieError:
        return None


def cases() -> Iterator[Any]:
    for entry in MANIFEST:
        for part, read in READERS.items():
            if part in entry["endpoint"] or entry["endpoint"] == "any":
                yield pytest.param(entry, read, id=f"{entry['file']}-{read.__name__}")


# -- cuts ------------------------------------------------------------------------------------------


def assert_cuts_say_nothing_else(read: Reader, status: int, body: bytes) -> None:
    complete = said(read, status, body)
    for end in range(len(body)):
        found = said(read, status, body[:end], CUT)
        assert found is None or found == complete, body[:end]
        if found is not None and found[0] is not Verdict.ACCEPTED:
            assert whole(body[:end])


@pytest.mark.parametrize(("entry", "read"), list(cases()))
def test_a_cut_answer_is_whole_or_nothing(entry: dict[str, Any], read: Reader) -> None:
    """Of a submit, the id counts once its closing quote has arrived, and a refusal only as a whole."""
    body = (FIXTURES / entry["file"]).read_bytes()
    assert_cuts_say_nothing_else(read, entry["http_status"], body)


@pytest.mark.parametrize(
    ("name", "read"),
    [("record_success_4_variants.json", of_record), ("callback_success.json", of_callback)],
)
def test_control_what_repairs_a_cut_answer_is_found(name: str, read: Reader) -> None:
    """Control: a reader that closes what is open returns the first images as if they were all."""

    def repairing(status: int, body: bytes, fault: str) -> Outcome:
        for end in ('"]}}}', '"]}}', "]}}}", "]}}", "}}", "}"):
            if whole(body + end.encode()):
                return read(status, body + end.encode(), fault)
        return read(status, body, fault)

    with pytest.raises(AssertionError):
        assert_cuts_say_nothing_else(repairing, 200, (FIXTURES / name).read_bytes())


# -- odd values ------------------------------------------------------------------------------------


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value inside, of any depth."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield (*at, name)
        yield from paths(inner, (*at, name))


def replaced(answer: Any, path: tuple[Any, ...], odd: object) -> Any:
    changed = copy.deepcopy(answer)
    at = changed
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = odd
    return changed


def assert_odd_values_mislead_nobody(read: Reader, status: int, answer: dict[str, Any]) -> None:
    complete = said(read, status, json.dumps(answer).encode())
    for path in paths(answer):
        name = next(name for name in reversed(path) if isinstance(name, str))
        for odd in ODD:
            if name == "successFlag" and odd is True:
                continue  # which is 1 in other words
            found = said(read, status, json.dumps(replaced(answer, path, odd)).encode())
            if name not in TELLING[read]:
                assert found == complete, (path, odd)
            else:
                assert not opposite(found, complete), (path, odd)


def opposite(found: Outcome, complete: Outcome) -> bool:
    """Whether it says another end than the whole answer. A success without an id may get one by a value that
    looks like it."""
    ends = [
        next((word for word in outcome or () if isinstance(word, (TaskState, Verdict))), None)
        for outcome in (found, complete)
    ]
    return ends[0] not in (None, ends[1]) and ends != [Verdict.ACCEPTED, None]


@pytest.mark.parametrize(("entry", "read"), list(cases()))
def test_an_odd_value_misleads_nobody(entry: dict[str, Any], read: Reader) -> None:
    """A side field never hides the end, and no field turns one end into another."""
    body = (FIXTURES / entry["file"]).read_bytes()
    if whole(body):
        assert_odd_values_mislead_nobody(read, entry["http_status"], json.loads(body))


@pytest.mark.parametrize("field", ["completeTime", "progress", "errorCode"])
def test_control_a_strict_reader_hides_the_end(field: str) -> None:
    """Control: a reader that wants the documented type of a side field does not see a finished task."""
    answer = json.loads((FIXTURES / "record_success_resultUrls_real.json").read_bytes())
    kind = type(answer["data"][field])

    def strict(status: int, body: bytes, fault: str) -> Outcome:
        data = json.loads(body)["data"]
        if isinstance(data, dict) and type(data.get(field)) is not kind:
            raise KieError("not as documented")
        return of_record(status, body, fault)

    TELLING[strict] = TELLING[of_record]
    with pytest.raises(AssertionError):
        assert_odd_values_mislead_nobody(strict, 200, answer)
