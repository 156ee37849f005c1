"""Recorded and documented answers, and their other spellings, are read as their manifest says."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from paths import FIXTURES

from kie4o.callbacks import parse_callback, sign_callback
from kie4o.details import TaskDetails, TaskState
from kie4o.errors import ERROR_OF_CODE, APIStatusError, InvalidSignatureError, worth_repeating
from kie4o.submission.resending import RESENDS
from kie4o.submission.verdict import REFUSING_CODES, Verdict, judge
from kie4o.wire.answers import credits_of, link_of, uploaded_of
from kie4o.wire.envelope import envelope_of
from kie4o.wire.record_info import details_of
from kie4o.wire.requests import CREDITS, DETAILS

MANIFEST = json.loads((FIXTURES / "manifest.json").read_text("utf-8"))
TASK_ID = "5fd1000000000000000000000000a1ea"
SUBMIT, DETAILS, CALLBACK = "POST /api/v1/gpt4o-image/generate", DETAILS.path, "callback POST (inbound)"
LINKS = ("/api/v1/gpt4o-image/download-url", "/api/v1/common/download-url")
STATES = {
    "generating": TaskState.RUNNING,
    "succeeded": TaskState.SUCCEEDED,
    "failed": TaskState.FAILED,
    "missing": TaskState.MISSING,
}
Reader = Callable[[int, bytes], Any]


def content(name: str) -> bytes:
    return (FIXTURES / name).read_bytes()


def details(status: int, body: bytes) -> TaskDetails:
    """The details of the task that the answer is about."""
    envelope = envelope_of(body)
    data = envelope.data if envelope is not None else None
    task_id = data.get("taskId") if isinstance(data, dict) else None
    return details_of(task_id or TASK_ID, status, body)


def assert_same_details(body: bytes, base: TaskDetails, why: str) -> None:
    """An answer gives the same details, except for Kie's own status."""
    other = details_of(base.task_id, 200, body)
    assert attrs.evolve(other, status=None) == attrs.evolve(base, status=None), why


def readers(entry: dict[str, Any]) -> list[Reader]:
    """The readers for an answer to a free call."""
    every: dict[str, Reader] = {
        DETAILS: details,
        CREDITS.path: credits_of,
        "/api/file-": uploaded_of,
    } | dict.fromkeys(LINKS, link_of)
    return [read for path, read in every.items() if path in entry["endpoint"] or entry["endpoint"] == "any"]


def of_kind(*kinds: str) -> list[Any]:
    return [pytest.param(one, id=one["file"]) for one in MANIFEST if one["expect"]["kind"] in kinds]


def submit_errors() -> list[Any]:
    return [one for one in of_kind("error") if one.values[0]["endpoint"] in (SUBMIT, "any")]


def read_errors() -> list[Any]:
    return [one for one in of_kind("error") if one.values[0]["endpoint"] != SUBMIT]


def test_every_fixture_is_used() -> None:
    """Every file is in the manifest, and a test below reads every kind and endpoint of it."""
    files = {file.name for file in FIXTURES.iterdir() if file.is_file()}
    assert {one["file"] for one in MANIFEST} | {"manifest.json"} == files
    seen = of_kind("accepted", "record", "url", "credit", "upload", "callback", "vectors", "sequence")
    read = [one.values[0]["file"] for one in seen + submit_errors() + read_errors()]
    assert sorted(set(read)) == sorted(one["file"] for one in MANIFEST)
    assert len(MANIFEST) == 69
    for entry in MANIFEST:
        if entry["expect"]["kind"] in ("record", "url", "credit", "upload"):
            assert len(readers(entry)) == 1, entry["file"]


# -- the paid call -----------------------------------------------------------------------------


@pytest.mark.parametrize("entry", of_kind("accepted"))
def test_an_accepted_submit(entry: dict[str, Any]) -> None:
    """The verdict is ACCEPTED, with the task id."""
    judgement = judge(sent=True, status=entry["http_status"], body=content(entry["file"]))
    assert (judgement.verdict, judgement.task_id) == (Verdict.ACCEPTED, entry["expect"]["task_id"])


@pytest.mark.parametrize("entry", submit_errors())
def test_a_submit_that_was_not_accepted(entry: dict[str, Any]) -> None:
    """The outcome is refused or unknown, and is resent only where the manifest says that waiting helps."""
    expect = entry["expect"]
    judgement = judge(sent=True, status=entry["http_status"], body=content(entry["file"]))
    verdicts = {
        "refused": Verdict.REFUSED,
        "ambiguous": Verdict.UNKNOWN,
        "task_failed": Verdict.UNKNOWN,  # a code of a sibling endpoint
    }
    assert judgement.verdict is verdicts[expect["submit"]]
    assert judgement.task_id is None
    assert judgement.code == (expect["code"] or entry["http_status"])
    resend = RESENDS.get(judgement.code or 0) if judgement.verdict is Verdict.REFUSED else None
    assert (resend is not None) == (expect["retry"] == "after_wait")
    if resend is not None and not resend.window:  # otherwise the limiter holds all submits for a window
        assert resend.delay(0, 0.0) >= expect["wait_s"]


def test_nothing_else_is_resent() -> None:
    """The table of resends has what was not sent and the four refusals that pass with time."""
    assert set(RESENDS) == {Verdict.NOT_SENT, 429, 430, 455, 550}
    assert {code for code in RESENDS if isinstance(code, int)} <= REFUSING_CODES
    waits = {one["expect"]["code"] for one in MANIFEST if one["expect"].get("retry") == "after_wait"}
    assert waits == {429, 455, 550}


# -- the free calls ----------------------------------------------------------------------------


@pytest.mark.parametrize("entry", of_kind("record"))
def test_a_record(entry: dict[str, Any]) -> None:
    """A record gives the state, images, progress and error code."""
    expect = entry["expect"]
    look = details(entry["http_status"], content(entry["file"]))
    assert look.state is STATES[expect["state"]]
    assert look.state.ended is expect["terminal"]
    assert look.urls == tuple(expect.get("urls", ()))
    assert look.progress == expect.get("progress")
    if "error_code" in expect:
        assert look.error_code == expect["error_code"]
        assert look.error_message


@pytest.mark.parametrize("entry", of_kind("url", "credit", "upload"))
def test_another_answer(entry: dict[str, Any]) -> None:
    """Signed links, balances and uploaded files are read."""
    expect = entry["expect"]
    (read,) = readers(entry)
    value = read(entry["http_status"], content(entry["file"]))
    if expect["kind"] == "upload":
        assert (value.url, value.size, value.mime_type) == (expect["url"], expect["size"], expect["mime"])
        assert value.name
        assert value.path
        assert value.uploaded_at.tzinfo is not None
    else:
        assert value == (expect["url"] if expect["kind"] == "url" else expect["value"])


@pytest.mark.parametrize("entry", read_errors())
def test_a_failed_read(entry: dict[str, Any]) -> None:
    """The code has its error class, and the read is worth retrying only where the manifest says so.

    A page without Kie's envelope says nothing about a task, so polling goes on in any case.
    """
    expect = entry["expect"]
    assert readers(entry)
    for read in readers(entry):
        with pytest.raises(APIStatusError) as caught:
            read(entry["http_status"], content(entry["file"]))
        error = caught.value
        assert error.code == (expect["code"] or entry["http_status"])
        assert error.http_status == entry["http_status"]
        assert type(error) is ERROR_OF_CODE.get(error.code, type(error))
        page_of_a_proxy = expect["code"] is None and read is details
        assert worth_repeating(error) is (expect["retry"] != "never" or page_of_a_proxy)


# -- callbacks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", of_kind("callback"))
def test_a_callback(entry: dict[str, Any]) -> None:
    """A callback gives the task id, outcome, code and images."""
    expect = entry["expect"]
    callback = parse_callback(content(entry["file"]))
    assert callback.task_id == callback.details.task_id == expect["task_id"]
    assert callback.details.state is (TaskState.SUCCEEDED if expect["ok"] else TaskState.FAILED)
    assert callback.code == expect.get("code", 200)
    assert callback.urls == callback.details.urls == tuple(expect["urls"])
    assert callback.details.error_code == expect.get("code")
    assert not callback.verified


@pytest.mark.parametrize("entry", of_kind("vectors"))
def test_signature_vectors(entry: dict[str, Any]) -> None:
    """Signing gives the recorded signatures; verifying accepts them and refuses forged ones."""
    vectors = json.loads(content(entry["file"]))
    for vector in vectors["vectors"]:
        headers = sign_callback(vector["task_id"], key=vector["key"], timestamp=vector["timestamp"])
        assert list(headers) == vectors["headers"]
        assert list(headers.values()) == [vector["timestamp"], vector["signature"]]
    key, sample = vectors["must_reject"]["key"], vectors["sample_request"]
    body, now = json.dumps(sample["body"]), float(vectors["must_reject"]["timestamp"])
    assert parse_callback(body, sample["headers"], key=key, now=now).verified
    assert vectors["must_reject"]["cases"]
    for case in vectors["must_reject"]["cases"]:
        headers = sample["headers"] | {"X-Webhook-Signature": case["signature"]}
        with pytest.raises(InvalidSignatureError):
            parse_callback(body, headers, key=key, now=now)


@pytest.mark.parametrize("entry", of_kind("sequence"))
def test_a_recorded_task(entry: dict[str, Any]) -> None:
    """One task is followed from its submit to its images, in the recorded order."""
    submit, *looks = json.loads(content(entry["file"]))
    assert submit["call"] == "generate"
    task_id = judge(sent=True, status=200, body=content(submit["fixture"])).task_id
    assert task_id == TASK_ID
    states = [details_of(task_id, 200, content(look["fixture"])).state for look in looks]
    assert states == [TaskState.RUNNING] * 4 + [TaskState.SUCCEEDED]


# -- other spellings ---------------------------------------------------------------------------


def record_spellings(data: dict[str, Any], look: TaskDetails) -> Iterator[tuple[str, dict[str, Any]]]:
    """The `data` of a record in every spelling of Kie's pages and of public clients."""

    def with_(**fields: Any) -> dict[str, Any]:
        return data | fields

    urls = list(look.urls)
    responses: list[Any] = (
        [
            {"resultUrls": urls},
            {"result_urls": urls},
            {"resultUrls": None, "result_urls": urls},
            {"resultUrls": [], "result_urls": urls},
            {"resultUrls": ["", None, *urls, " "]},
            {"resultUrls": json.dumps(urls)},
            {"resultUrls": urls, "more": 1},
            urls,
            json.dumps({"resultUrls": urls}),
            json.dumps({"result_urls": urls}),
            json.dumps(urls),
        ]
        if urls
        else [
            None,
            {},
            [],
            "",
            "{}",
            "[]",
            "null",
            {"resultUrls": None},
            {"result_urls": []},
            {"resultUrls": ""},
        ]
    )
    if len(urls) == 1:
        responses += [{"resultUrl": urls[0]}, {"url": urls[0]}, {"resultUrls": urls[0]}]
    for response in responses:
        yield f"response {json.dumps(response)[:40]}", with_(response=response)
    if look.progress is not None:
        for progress in (look.progress, str(look.progress), f"{look.progress:.2f}", f" {look.progress} "):
            yield f"progress {progress!r}", with_(progress=progress)
    if look.status is not None:
        for status in (look.status.lower(), look.status.title(), f" {look.status} "):
            yield f"status {status!r}", with_(status=status)
    for name in ("successFlag", "errorCode"):
        if data.get(name) is not None:
            yield f"{name} as text", with_(**{name: str(data[name])})
    for name, moment in (("createTime", look.created_at), ("completeTime", look.completed_at)):
        if moment is None:
            yield f"{name} null", with_(**{name: None})
            continue
        stamp = round(moment.timestamp() * 1000)
        iso = moment.isoformat()
        for time in (
            stamp,
            str(stamp),
            moment.strftime("%Y-%m-%d %H:%M:%S"),
            iso,
            iso.replace("+00:00", "Z"),
        ):
            yield f"{name} {time!r}", with_(**{name: time})
    if look.error_message is None:
        yield "errorMessage empty", with_(errorMessage="")
        yield "errorMessage null", with_(errorMessage=None)
    yield "new fields", with_(newField={"deep": [1, None]}, another=None)
    yield "no id", {name: value for name, value in data.items() if name != "taskId"}
    yield "no paramJson", {name: value for name, value in data.items() if name != "paramJson"}


@pytest.mark.parametrize("entry", [one for one in of_kind("record") if "422" not in one.id])
def test_other_spellings_of_a_record(entry: dict[str, Any]) -> None:
    """Every other spelling of a record gives the same details."""
    answer = json.loads(content(entry["file"]))
    base = details(200, content(entry["file"]))
    count = 0
    for name, data in record_spellings(answer["data"], base):
        assert_same_details(json.dumps(answer | {"data": data}).encode(), base, name)
        count += 1
    assert count >= 15
    for name, other in envelope_spellings(answer):
        assert details(200, other) == base, name


def envelope_spellings(answer: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    yield "code as text", json.dumps(answer | {"code": str(answer["code"])}).encode()
    yield "msg null", json.dumps(answer | {"msg": None}).encode()
    yield "msg missing", json.dumps({name: value for name, value in answer.items() if name != "msg"}).encode()
    yield "new fields", json.dumps(answer | {"success": True, "traceId": [1]}).encode()
    yield "other order", json.dumps(dict(reversed(answer.items()))).encode()
    yield "a BOM", b"\xef\xbb\xbf" + json.dumps(answer).encode()
    yield "UTF-8 unescaped, indented", json.dumps(answer, ensure_ascii=False, indent=4).encode()


@pytest.mark.parametrize(
    "answer",
    [
        {"code": 422, "msg": "recordInfo is null", "data": None},
        {"code": 422, "msg": "The record does not exist"},
        {"code": "422", "msg": None, "data": {}},
        {"code": 404, "msg": "no such task"},
        {"code": 200, "msg": "success", "data": None},
        {"code": 200, "msg": "success"},
    ],
    ids=json.dumps,
)
def test_other_spellings_of_a_missing_record(answer: dict[str, Any]) -> None:
    """A task that Kie does not know is missing, which is not final."""
    look = details(200, json.dumps(answer).encode())
    assert look.state is TaskState.MISSING
    assert look.error_code == (None if answer["code"] == 200 else int(answer["code"]))
    assert not look.state.ended
    assert look.urls == ()


@pytest.mark.parametrize("entry", [*of_kind("accepted"), *submit_errors()])
def test_other_spellings_of_a_submit_answer(entry: dict[str, Any]) -> None:
    """The verdict does not depend on the HTTP status, the message or the type of the code."""
    body = content(entry["file"])
    if entry["expect"].get("envelope") is False:
        padded = judge(sent=True, status=entry["http_status"], body=b"\n " + body + b"\n")
        assert padded == judge(sent=True, status=entry["http_status"], body=body)
        return
    answer = json.loads(body)
    base = judge(sent=True, status=entry["http_status"], body=body)
    for name, other in envelope_spellings(answer):
        for status in (200, 400, 429, 500, 502):
            judgement = judge(sent=True, status=status, body=other)
            assert attrs.evolve(judgement, message=base.message) == base, name


@pytest.mark.parametrize("entry", of_kind("callback"))
def test_other_spellings_of_a_callback(entry: dict[str, Any]) -> None:
    """The place of the id, the name of the images and the type of the code do not matter."""
    answer = json.loads(content(entry["file"]))
    base = parse_callback(content(entry["file"]))
    info = (answer["data"] or {}).get("info")
    mutants = [answer | {"code": str(answer["code"])}, answer | {"traceId": 1}, copy.deepcopy(answer)]
    for home in ("data", "root"):
        for name in ("taskId", "task_id"):
            data = {key: value for key, value in answer["data"].items() if key not in ("taskId", "task_id")}
            mutant = {key: value for key, value in answer.items() if key not in ("taskId", "task_id")}
            mutant["data"] = data | {name: base.task_id} if home == "data" else data
            mutants.append(mutant if home == "data" else mutant | {name: base.task_id})
    for spelling in (
        {"resultUrls": list(base.urls)},
        {"result_urls": list(base.urls)},
        list(base.urls),
        json.dumps({"result_urls": list(base.urls)}),
    ):
        mutants.append(answer | {"data": answer["data"] | {"info": spelling if base.urls else info}})
    for mutant in mutants:
        assert parse_callback(json.dumps(mutant)) == base
        assert parse_callback(mutant) == base
