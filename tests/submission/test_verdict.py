"""The table of verdicts: what one attempt to submit came to, for any answer."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from proving import tried

from kie4o.submission.verdict import Judgement, Verdict, judge
from kie4o.wire.envelope import envelope_of

TASK_ID = "5fd1000000000000000000000000a1ea"
# Written out, not imported.
REFUSED = {400, 401, 402, 403, 404, 405, 409, 413, 422, 429, 430, 433, 451, 455, 505, 550}


def body(value: object) -> bytes:
    return json.dumps(value).encode()


def judged(content: bytes, status: int | None = 200, fault: str = "") -> Judgement:
    tried()
    return judge(sent=True, status=status, body=content, fault=fault)


@pytest.mark.parametrize("status", [200, 429, 500])
def test_verdict_of_every_code(status: int) -> None:
    """Sixteen codes refuse and all others leave the outcome unknown, whatever the HTTP status."""
    refused = set()
    for code in range(-1, 1000):
        judgement = judged(body({"code": code, "msg": "m", "data": None}), status)
        assert judgement.verdict in (Verdict.REFUSED, Verdict.UNKNOWN)
        assert (judgement.code, judgement.task_id) == (code, None)
        assert judgement.message == "m" or '"msg": "m"' in judgement.message  # an excerpt of what is unknown
        if judgement.verdict is Verdict.REFUSED:
            refused.add(code)
    assert refused == REFUSED


@pytest.mark.parametrize("code", [500, 501, 0, -1, 1001])
def test_an_empty_balance_refuses_under_any_code(code: int) -> None:
    """Nothing is charged where there is nothing to charge: after a top-up a batch goes on."""
    content = body({"code": code, "msg": "Credits insufficient : please top up", "data": None})
    assert judged(content).verdict is Verdict.REFUSED
    success = body({"code": 200, "msg": "Credits insufficient : please top up", "data": None})
    assert judged(success).verdict is Verdict.UNKNOWN
    assert judged(body({"code": 200, "msg": "Credits insufficient", "data": {"taskId": "a"}})).task_id == "a"


@pytest.mark.parametrize("content", [b"", b"<html>", b'{"error":"Not Found"}', b"[]", b"null"])
def test_verdict_of_every_bare_status(content: bytes) -> None:
    """Without an envelope an HTTP 4xx refuses, except 408; every other status is unknown."""
    refused = {status for status in range(-1, 1000) if judged(content, status).verdict is Verdict.REFUSED}
    assert refused == set(range(400, 500)) - {408}
    unknown = {status for status in range(-1, 1000) if judged(content, status).verdict is Verdict.UNKNOWN}
    assert refused | unknown == set(range(-1, 1000))


@pytest.mark.parametrize("status", [404, 502])
def test_an_answer_without_an_envelope_is_shown(status: int) -> None:
    """What a proxy wrote is the only trace of what became of a request; nothing is said to be nothing."""
    assert judged(b"<h1>Bad\nGateway</h1>", status).message == "<h1>Bad Gateway</h1>"
    assert judged(b"", status).message == "the answer is empty"
    assert judged(b"", None) == Judgement(Verdict.UNKNOWN, message="the answer is empty")


@pytest.mark.parametrize("status", [None, 200, 302, 307, 400, 404, 500, 502])
def test_a_broken_off_answer_refuses_nothing(status: int | None) -> None:
    """An answer that breaks off before its envelope is complete is unknown, even with HTTP 4xx."""
    judgement = judged(b'{"code":4', status, fault="the connection broke")
    assert judgement == Judgement(Verdict.UNKNOWN, code=status, message="the connection broke")


def test_nothing_was_sent() -> None:
    """An attempt that was not sent has its own verdict, without a look at the answer."""
    judgement = judge(sent=False, fault="cannot connect")
    assert judgement == Judgement(Verdict.NOT_SENT, message="cannot connect")


UNREADABLE_CODES = [
    *("", " ", "abc", "4e2", "0x190", "400.0", "9" * 30),
    *(True, False, None, 400.0, 200.0, 1e400, [], [400], {}),
]


@pytest.mark.parametrize("code", UNREADABLE_CODES, ids=repr)
def test_a_code_of_another_type(code: object) -> None:
    """A code that is not a number makes no envelope: HTTP decides, and 200 is unknown."""
    content = body({"code": code, "msg": "m", "data": None}).replace(b"Infinity", b"1e400")
    assert envelope_of(content) is None
    assert judged(content, 200).verdict is Verdict.UNKNOWN
    assert judged(content, 422).verdict is Verdict.REFUSED


@pytest.mark.parametrize("code", [400, "400", " 400 "])
def test_a_code_as_text(code: object) -> None:
    """Digits in a string are a code."""
    assert judged(body({"code": code})) == Judgement(Verdict.REFUSED, code=400)


@pytest.mark.parametrize("code", [10**17, -(10**17), 10**4000])
def test_a_huge_code(code: int) -> None:
    """A number of any size is read, and is unknown."""
    content = b'{"code":1' + b"0" * (len(str(code)) - 1) + b"}"
    assert judged(content).verdict is Verdict.UNKNOWN


def test_a_number_beyond_pythons_limit() -> None:
    """A number of 5000 digits is not read as JSON, and the verdict is unknown."""
    assert judged(b'{"code":' + b"9" * 5000 + b"}").verdict is Verdict.UNKNOWN


NO_IDS = [None, "", " ", "a b", "a.b", "ü", "x" * 129, 5, 5.0, True, [], ["abc"], {"id": "abc"}, "None\n"]


@pytest.mark.parametrize("value", NO_IDS, ids=repr)
def test_success_without_an_id(value: object) -> None:
    """Code 200 with an unusable id is unknown; null does not become "None"."""
    judgement = judged(body({"code": 200, "msg": "success", "data": {"taskId": value}}))
    assert (judgement.verdict, judgement.task_id) == (Verdict.UNKNOWN, None)


@pytest.mark.parametrize("data", [None, {}, [], "abc", 5, True, [{"taskId": "a b"}]], ids=repr)
def test_success_without_data(data: object) -> None:
    """Code 200 without an object that holds an id is unknown."""
    assert judged(body({"code": 200, "msg": "success", "data": data})).verdict is Verdict.UNKNOWN
    assert judged(body({"code": 200, "msg": "success"})).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("name", ["taskId", "task_id"])
def test_an_id_is_taken_whatever_the_code(name: str) -> None:
    """A task id in the body means accepted, even with a code that refuses or HTTP 500."""
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
    """The id is saved once its closing quote has arrived; before that the outcome is unknown."""
    whole = answer.index(TASK_ID.encode()) + len(TASK_ID) + 1
    for end in range(len(answer) + 1):
        judgement = judged(answer[:end], status, fault="the connection broke")
        if end < whole:
            assert (judgement.verdict, judgement.task_id) == (Verdict.UNKNOWN, None), end
        else:
            assert (judgement.verdict, judgement.task_id) == (Verdict.ACCEPTED, TASK_ID), end


def test_two_ids_in_a_cut_answer() -> None:
    """If a cut answer contains two ids, neither is used."""
    answer = b'{"code":200,"data":{"taskId":"abc","task_id":"def"'
    assert judged(answer, fault="cut").verdict is Verdict.UNKNOWN
    assert judged(answer.replace(b"def", b"abc"), fault="cut").task_id == "abc"


def test_an_id_in_a_message_does_not_count() -> None:
    """An id that a message quotes is ignored, in a complete answer and in every cut of it."""
    content = body({"code": 400, "msg": 'bad body {"taskId":"abc"}', "data": None})
    for end in range(len(content) + 1):
        assert judged(content[:end], fault="cut").task_id is None


@given(st.binary(max_size=300), st.one_of(st.none(), st.integers(-1, 999)), st.text(max_size=20))
@example(b"[" * 100_000, 200, "")
@example(b'{"code":NaN}', 200, "")
@example(b'{"code":400,"msg":"\\ud800"}', 200, "")
def test_any_bytes_have_a_verdict(content: bytes, status: int | None, fault: str) -> None:
    """Any bytes have a verdict and raise nothing; junk is never accepted."""
    judgement = judged(content, status, fault)
    assert judgement.verdict in (Verdict.REFUSED, Verdict.UNKNOWN, Verdict.ACCEPTED)
    assert (judgement.verdict is Verdict.ACCEPTED) == (judgement.task_id is not None)
    judgement.message.encode()
    assert not set(judgement.message) & set("\r\n\x1b") or judgement.message == fault
