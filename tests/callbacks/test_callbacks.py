"""Callbacks: every shape of them, every way to forge one, and only our errors from junk."""

import email.message
import http.client
import io
import json
import random
import time
import wsgiref.headers
import wsgiref.util
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import starlette.datastructures
import werkzeug.datastructures
from django.http.request import HttpHeaders
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy, MultiDict
from paths import FIXTURES
from proving import DEEP

from kie4o import CallbackError, ConfigurationError, InvalidSignatureError, MalformedCallbackError, TaskState
from kie4o.callbacks import (
    MAX_BODY,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    TOLERANCE,
    parse_callback,
    sign_callback,
)

VECTORS = json.loads((FIXTURES / "webhook_vectors.json").read_text("utf-8"))
KEY = "example-webhook-key-not-a-secret"
TASK_ID = "0123456789abcdef0123456789abcdef"
NOW = 1769670760
URL = "https://files.example.com/s/a.png"
MESSAGE: dict[str, Any] = {
    "code": 200,
    "msg": "success",
    "data": {"taskId": TASK_ID, "info": {"result_urls": [URL]}},
}
BODY = json.dumps(MESSAGE).encode()


def signed(task_id: str = TASK_ID, key: str | bytes = KEY, timestamp: int | str = NOW) -> dict[str, str]:
    return sign_callback(task_id, key=key, timestamp=timestamp)


def body(**data: Any) -> bytes:
    return json.dumps({"code": 200, "msg": "success", "data": data}).encode()


# -- contents --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given_",
    [BODY, bytearray(BODY), memoryview(BODY), BODY.decode(), MESSAGE, b"\xef\xbb\xbf" + BODY],
    ids=["bytes", "bytearray", "memoryview", "text", "object", "BOM"],
)
def test_any_form_of_the_body(given_: Any) -> None:
    """Bytes, text or the decoded object give the same callback."""
    callback = parse_callback(given_, ref="r")
    assert (callback.task_id, callback.code, callback.message) == (TASK_ID, 200, "success")
    assert callback.urls == callback.details.urls == (URL,)
    assert callback.details.state is TaskState.SUCCEEDED
    assert callback.details.raw == MESSAGE["data"]
    assert (callback.ref, callback.verified) == ("r", False)


@pytest.mark.parametrize("code", [400, 451, 500, "500"])
def test_a_failure(code: object) -> None:
    """The codes of Kie's page are failures with their message; URLs beside it are ignored."""
    callback = parse_callback(json.dumps(MESSAGE | {"code": code, "msg": "flagged\n\x1b[31m"}))
    assert callback.urls == callback.details.urls == ()
    assert callback.details.state is TaskState.FAILED
    assert callback.code == callback.details.error_code == int(str(code))
    assert callback.details.error_message == callback.message
    assert callback.message.startswith("flagged")
    assert callback.message.isprintable()


@pytest.mark.parametrize("code", [501, 0, -1, 402, 404, 429, "505"])
def test_an_unlisted_code_is_a_reason_to_poll(code: object) -> None:
    """It ends no task, since Kie lists other codes for callbacks."""
    callback = parse_callback(json.dumps(MESSAGE | {"code": code}))
    assert (callback.code, callback.urls) == (int(str(code)), ())
    assert callback.details.state is TaskState.RUNNING


@pytest.mark.parametrize("code", [None, "", "abc", True, 200.0, [200], {}], ids=repr)
def test_an_unreadable_code_is_not_a_success(code: object) -> None:
    """Only the number 200 is a success."""
    callback = parse_callback(json.dumps(MESSAGE | {"code": code}))
    assert callback.code is None
    assert callback.details.state is not TaskState.SUCCEEDED
    assert callback.urls == ()


@pytest.mark.parametrize(
    "message",
    [
        {"data": {"taskId": "a"}, "taskId": "b"},
        {"data": {"taskId": "a", "task_id": "b"}},
        {"data": {"task_id": "a"}, "task_id": "b"},
        {"taskId": "a", "task_id": "b"},
        {"data": {"taskId": None}},
        {"data": None},
        {"data": {}},
        {},
        *(
            {"data": {"taskId": value}}
            for value in ("", "a.b", "a b", "ü", "a\n", "x" * 129, 5, True, ["a"], {})
        ),
    ],
    ids=json.dumps,
)
def test_a_callback_has_exactly_one_id(message: dict[str, Any]) -> None:
    """No id, an unusable one (a dot would make the signed text ambiguous) or two different ones are
    refused."""
    with pytest.raises(MalformedCallbackError):
        parse_callback(json.dumps(message | {"code": 200}))


def test_the_same_id_twice_is_one() -> None:
    """The sample on Kie's page "callbacks" has the id at the root and in data."""
    message = {
        "code": 200,
        "taskId": "a",
        "task_id": "a",
        "data": {"taskId": "a", "task_id": "a", "info": None},
    }
    assert parse_callback(json.dumps(message)).task_id == "a"


JUNK: list[Any] = [
    *(b"", b" ", b"\x00", b"\xff\xfe", b"<html>", b"null", b"5", b"[]", b'"x"', b"{", b"NaN"),
    *(b'{"code":NaN}', b"[" * 60_000, b'{"a":' * 10_000, b"{" + b" " * MAX_BODY + b"}"),
    *(b'{"data":{"taskId":' + b"9" * 5000 + b"}}", BODY[:-1], BODY + b"x"),
    *("", "\ufeff", "\ud800", '{"data":"\\ud800"}', None, 5, NotImplemented, ["{}"]),
]


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: ascii(junk)[:30])
def test_junk_is_malformed(junk: Any) -> None:
    """HTML, nothing, NaN, extreme depth, length and digits raise `MalformedCallbackError` without a
    context."""
    with pytest.raises(MalformedCallbackError) as caught:
        parse_callback(junk)
    assert caught.value.__context__ is None


def test_a_body_of_more_than_64_kib_is_refused_unread() -> None:
    """A true callback is read up to that size; with one byte more it is refused, as bytes and as text."""
    padded = BODY + b" " * (MAX_BODY - len(BODY))
    assert parse_callback(padded).task_id == TASK_ID
    for longer in (padded + b" ", padded.decode() + " "):
        with pytest.raises(MalformedCallbackError, match="larger than 65536 bytes"):
            parse_callback(longer)


# -- signatures ------------------------------------------------------------------------------------


def test_a_signed_callback() -> None:
    """The worked example of Kie's page "webhook verification" verifies."""
    assert VECTORS["vectors"][0]["signature"] == signed()[SIGNATURE_HEADER]
    callback = parse_callback(BODY, signed(), key=KEY, now=NOW)
    assert callback.verified
    assert callback.urls == (URL,)


def test_without_a_key_headers_are_ignored() -> None:
    """Without a key unsigned callbacks pass, and are not called verified."""
    assert not parse_callback(BODY, signed(key="another"), now=NOW).verified
    assert not parse_callback(BODY).verified


def test_the_body_is_not_signed() -> None:
    """Kie signs only the id and the time, so altered URLs still verify: a callback is only a hint."""
    altered = BODY.replace(URL.encode(), b"https://evil.example/x.png")
    assert altered != BODY
    assert parse_callback(altered, signed(), key=KEY, now=NOW).verified


@pytest.mark.parametrize("offset", [-299, -300, 0, 299, 300])
def test_within_the_tolerance(offset: int) -> None:
    """Five minutes early or late pass, compared with `now`."""
    assert TOLERANCE == 300
    assert parse_callback(BODY, signed(), key=KEY, now=NOW + offset).verified


@pytest.mark.parametrize("offset", [-301, 301, -86_400, 86_400])
def test_outside_the_tolerance(offset: int) -> None:
    """A replay, or a clock that is ahead, is refused."""
    with pytest.raises(InvalidSignatureError):
        parse_callback(BODY, signed(), key=KEY, now=NOW + offset)
    assert parse_callback(BODY, signed(), key=KEY, now=NOW + offset, tolerance=abs(offset)).verified


def test_the_default_of_now_is_the_wall_clock() -> None:
    """Without `now`, a callback signed this moment verifies and an old one does not."""
    assert parse_callback(BODY, signed(timestamp=int(time.time())), key=KEY).verified
    with pytest.raises(InvalidSignatureError):
        parse_callback(BODY, signed(), key=KEY)


@pytest.mark.parametrize("tolerance", [0, -1, float("nan")])
def test_a_tolerance_is_above_zero(tolerance: float) -> None:
    """One that would refuse every callback is a `ConfigurationError`; half a second is one."""
    with pytest.raises(ConfigurationError, match="tolerance"):
        parse_callback(BODY, signed(), key=KEY, now=NOW, tolerance=tolerance)
    assert parse_callback(BODY, signed(), key=KEY, now=NOW + 0.5, tolerance=0.5).verified


TIMES = [
    *("", " ", "abc", "1769670760.0", "+1769670760", "-1", "1e9", "9" * 12),
    *("١٧٦٩٦٧٠٧٦٠", "１７６９６７０７６０", "²"),  # digits, but not ASCII
]


@pytest.mark.parametrize("timestamp", TIMES, ids=ascii)
def test_a_timestamp_is_ascii_digits(timestamp: str) -> None:
    """Anything but at most eleven ASCII digits is refused, even with a valid signature."""
    with pytest.raises(InvalidSignatureError):
        parse_callback(BODY, signed(timestamp=timestamp), key=KEY, now=NOW)


def wrong_signatures() -> list[str]:
    good = signed()[SIGNATURE_HEADER]
    cases = [case["signature"] for case in VECTORS["must_reject"]["cases"]]
    cases += ["", " ", "=", good[:-1], good[:-2], good + "=", good + "A", good.lower(), good.swapcase()]
    cases += [f"v1,{good}", f"sha256={good}", good[:10] + " " + good[10:], f"{good},{good}", "ü", "\ud800"]
    return [*cases, signed(key=KEY + " ")[SIGNATURE_HEADER], signed("another")[SIGNATURE_HEADER]]


@pytest.mark.parametrize("signature", wrong_signatures(), ids=ascii)
def test_a_wrong_signature(signature: str) -> None:
    """Only the exact text of the signature is accepted: no hex, no other padding, no list."""
    headers = {TIMESTAMP_HEADER: str(NOW), SIGNATURE_HEADER: signature}
    with pytest.raises(InvalidSignatureError) as caught:
        parse_callback(BODY, headers, key=KEY, now=NOW)
    assert signed()[SIGNATURE_HEADER] not in str(caught.value)
    assert KEY not in str(caught.value)
    assert caught.value.__context__ is None


def test_another_task_or_time() -> None:
    """A signature is valid for one task and one time."""
    headers = signed()
    with pytest.raises(InvalidSignatureError):
        parse_callback(body(taskId="another"), headers, key=KEY, now=NOW)
    with pytest.raises(InvalidSignatureError):
        parse_callback(BODY, headers | {TIMESTAMP_HEADER: str(NOW + 1)}, key=KEY, now=NOW)
    with pytest.raises(InvalidSignatureError):
        parse_callback(BODY, headers | {TIMESTAMP_HEADER: f"0{NOW}"}, key=KEY, now=NOW)


def test_rotation() -> None:
    """With several keys any of them verifies, in any order, and no other."""
    for keys in (["new", KEY], [KEY, "new"], (b"new", KEY.encode()), ["a", "b", KEY]):
        assert parse_callback(BODY, signed(), key=keys, now=NOW).verified
    with pytest.raises(InvalidSignatureError):
        parse_callback(BODY, signed(), key=["new", "newer"], now=NOW)


@pytest.mark.parametrize("key", ["schlüssel-钥匙-🔑", b"\x00\xff\x80", "x" * 1000, " spaced "])
def test_any_key_signs(key: str | bytes) -> None:
    """A key is text, encoded as UTF-8, or bytes."""
    assert parse_callback(BODY, signed(key=key), key=key, now=NOW).verified
    if isinstance(key, str):
        assert signed(key=key) == signed(key=key.encode())


@pytest.mark.parametrize("key", ["", " ", b"", b"\n", [], (), [KEY, ""], [" "]], ids=repr)
def test_a_blank_key_does_not_switch_checking_off(key: Any) -> None:
    """A blank key, as from an unset variable, is refused: it must not let unsigned callbacks pass."""
    with pytest.raises(InvalidSignatureError, match="blank"):
        parse_callback(BODY, signed(), key=key, now=NOW)


T, S = TIMESTAMP_HEADER, SIGNATURE_HEADER


def message_of(pairs: list[tuple[str, str]], kind: Any = email.message.Message) -> Any:
    message = kind()
    for name, value in pairs:
        message[name] = value
    return message


def environ_of(timestamp: str, signature: str) -> dict[str, Any]:
    environ: dict[str, Any] = {"REQUEST_METHOD": "POST", "CONTENT_TYPE": "application/json"}
    wsgiref.util.setup_testing_defaults(environ)
    return environ | {"HTTP_X_WEBHOOK_TIMESTAMP": timestamp, "HTTP_X_WEBHOOK_SIGNATURE": signature}


SHAPES: dict[str, Callable[[str, str], Any]] = {
    "dict": lambda t, s: {T: t, S: s},
    "lower case": lambda t, s: {T.lower(): t, S.lower(): s},
    "upper case": lambda t, s: {T.upper(): t, S.upper(): s},
    "pairs": lambda t, s: [(T, t), (S, s)],
    "lists": lambda t, s: ([T, t], [S, s]),
    "bytes pairs": lambda t, s: [(T.lower().encode(), t.encode()), (S.lower().encode(), s.encode())],
    "bytes dict": lambda t, s: {T.encode(): t.encode(), S.encode(): s.encode()},
    "lists of values": lambda t, s: {T: [t], S: [s]},
    "multidict": lambda t, s: MultiDict([(T, t), (S, s)]),
    "case-blind multidict": lambda t, s: CIMultiDict(
        [(T.upper(), t), (S, s), ("Cookie", "a"), ("Cookie", "b")]
    ),
    "padded": lambda t, s: {T: f" {t} ", S: f"\t{s}"},
    "http.client, http.server": lambda t, s: http.client.parse_headers(
        io.BytesIO(f"Host: h\r\n{T}: {t}\r\n{S.lower()}: {s}\r\n\r\n".encode())
    ),
    "email.message.Message": lambda t, s: message_of([(T, t), ("Via", "a"), ("Via", "b"), (S, s)]),
    "email.message.EmailMessage": lambda t, s: message_of([(T, t), (S, s)], email.message.EmailMessage),
    "wsgiref": lambda t, s: wsgiref.headers.Headers([("Via", "a"), ("Via", "b"), (T, t), (S, s)]),
    "WSGI environ, request.META of Django": lambda t, s: environ_of(t, s),
    "Django": lambda t, s: HttpHeaders(environ_of(t, s)),
    "Werkzeug": lambda t, s: werkzeug.datastructures.Headers([("Via", "a"), ("Via", "b"), (T, t), (S, s)]),
    "Werkzeug's environ": lambda t, s: werkzeug.datastructures.EnvironHeaders(environ_of(t, s)),
    "aiohttp's proxy": lambda t, s: CIMultiDictProxy(CIMultiDict([(T, t), (S, s)])),
    "Starlette": lambda t, s: starlette.datastructures.Headers({T: t, S: s}),
    "Starlette's raw": lambda t, s: starlette.datastructures.Headers({T: t, S: s}).raw,
    "ASGI scope": lambda t, s: [[T.lower().encode(), t.encode()], [S.lower().encode(), s.encode()]],
    "among others": lambda t, s: {"Host": "h", T: t, "X": b"\xff", S: s, 5: None},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape_of_headers(shape: str) -> None:
    """The headers of any framework are accepted."""
    good = signed()
    headers = SHAPES[shape](good[T], good[S])
    assert parse_callback(BODY, headers, key=KEY, now=NOW).verified


GOOD = signed()
NOT_ONCE: list[Any] = [
    None,
    {},
    [],
    "",
    b"headers",
    5,
    [None],
    [("a",)],
    {T: GOOD[T]},
    {S: GOOD[S]},
    {T: None, S: None},
    {T: 1769670760, S: GOOD[S]},
    {T: [GOOD[T], GOOD[T]], S: GOOD[S]},
    {T: GOOD[T], S: []},
    {T: GOOD[T], T.lower(): GOOD[T], S: GOOD[S]},
    [(T, GOOD[T]), (S, GOOD[S]), (S, GOOD[S])],
    [(T, GOOD[T]), (S, "wrong"), (S.encode(), GOOD[S])],
    CIMultiDict([(T, GOOD[T]), (T.lower(), "1"), (S, GOOD[S])]),
    message_of([*GOOD.items(), (T, GOOD[T])]),
    message_of([*GOOD.items(), (S.lower(), "wrong")]),
    wsgiref.headers.Headers([*GOOD.items(), (S, GOOD[S])]),
    werkzeug.datastructures.Headers([*GOOD.items(), (T, "1")]),
    starlette.datastructures.Headers(raw=[(S.lower().encode(), b"x"), (S.lower().encode(), b"y")]),
    {"HTTP_X_WEBHOOK_TIMESTAMP": GOOD[T], "HTTP_X_WEBHOOK_SIGNATURE": f"{GOOD[S]},{GOOD[S]}"},
    GOOD | {"X_WEBHOOK_TIMESTAMP": GOOD[T]},
    list(GOOD),
    io.BytesIO(b"a"),
    dict,  # not an instance
]


@pytest.mark.parametrize("headers", NOT_ONCE, ids=lambda headers: type(headers).__name__)
def test_each_header_once(headers: Any) -> None:
    """A missing, mistyped or repeated header is refused: of two values neither is trusted."""
    with pytest.raises(InvalidSignatureError):
        parse_callback(BODY, headers, key=KEY, now=NOW)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        (None, "cannot be read.*got NoneType"),
        (list(GOOD), "cannot be read.*got list"),
        ("X-Webhook-Signature: x", "cannot be read.*got str"),
        (dict, "cannot be read.*got type"),
        ({}, f"not signed: it has no header {T}"),
        ({T: GOOD[T]}, f"not signed: it has no header {S}"),
        (message_of([*GOOD.items(), (S, "x")]), f"header {S} is repeated"),
    ],
)
def test_the_reason_is_named(headers: Any, reason: str) -> None:
    """Headers that cannot be read are not called unsigned: the mistake is in the receiver then."""
    with pytest.raises(InvalidSignatureError, match=reason):
        parse_callback(BODY, headers, key=KEY, now=NOW)


def test_headers_that_can_be_read_once() -> None:
    """An iterator of pairs is enough."""
    assert parse_callback(BODY, iter(signed().items()), key=KEY, now=NOW).verified


def test_an_interrupt_is_not_the_fault_of_the_headers() -> None:
    """A Ctrl-C while they are read ends the program, and is not called a wrong signature."""

    def interrupted() -> Iterator[tuple[str, str]]:
        yield from GOOD.items()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parse_callback(BODY, interrupted(), key=KEY, now=NOW)


def test_sign_callback_takes_any_time() -> None:
    """Seconds as a number or as text; fractions are dropped."""
    assert signed() == signed(timestamp=str(NOW)) == sign_callback(TASK_ID, key=KEY, timestamp=NOW + 0.9)


TEXTS = st.one_of(st.text(max_size=30), st.binary(max_size=30), st.none(), st.integers())
NAMES = st.one_of(TEXTS, st.sampled_from([T, S, T.lower(), S.encode()]))
HEADERS = st.one_of(
    st.none(),
    st.integers(),
    st.text(),
    st.binary(),
    st.lists(st.one_of(st.none(), st.tuples(NAMES, TEXTS), st.lists(TEXTS, max_size=3)), max_size=5),
    st.dictionaries(NAMES, st.one_of(TEXTS, st.lists(TEXTS, max_size=2)), max_size=5),
)
BODIES = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200),
    st.none(),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["code", "data", "taskId", "task_id", "info", "msg", "x"]), inner
            )
        ),
        max_leaves=10,
    ),
)


@given(BODIES, HEADERS, st.sampled_from([None, KEY, "ü", b"\xff", [KEY, "b"]]), st.booleans())
@example(MESSAGE, {T: str(NOW), S: "\ud800"}, KEY, False)
@example(MESSAGE, {T: "\ud800", S: "\ud800"}, KEY, False)
def test_anything_gives_a_callback_or_our_error(given_: Any, headers: Any, key: Any, as_json: bool) -> None:
    """Any body, any headers, any key: a callback or a `CallbackError`, and never verified by chance."""
    if as_json and not isinstance(given_, bytes):
        given_ = json.dumps(given_)
    try:
        callback = parse_callback(given_, headers, key=key, now=NOW)
    except CallbackError:
        return
    assert callback.verified is False
    assert key is None
    assert callback.details.task_id == callback.task_id


IDS = st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True)


@given(IDS, st.text(min_size=1).filter(str.strip), st.integers(0, 10**11 - 1))
def test_what_is_signed_verifies(task_id: str, key: str, timestamp: int) -> None:
    """Round trip for any id, key and time; with one changed character it does not verify."""
    headers = sign_callback(task_id, key=key.encode("utf-8", "surrogatepass"), timestamp=timestamp)
    assert parse_callback(body(taskId=task_id), headers, key=key, now=timestamp).verified
    flipped = headers[S].replace(headers[S][0], "A" if headers[S][0] != "A" else "B", 1)
    with pytest.raises(InvalidSignatureError):
        parse_callback(body(taskId=task_id), headers | {S: flipped}, key=key, now=timestamp)


# -- 100,000 pairs ---------------------------------------------------------------------------------

PAIRS = 100_000 if DEEP else 10_000
ODD = [b"", b"\x00", b"\xff", b"{", b"}", b'"', b"null", b"NaN", b"1e999", b"\\ud800", b"[" * 50, b"9" * 5000]
NAMES = ["X-Webhook-Timestamp", "x-webhook-signature", "X-WEBHOOK-SIGNATURE", "Content-Type", "\udcff", ""]


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A few random cuts, flips and insertions."""
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(data) + 1)
        data = rng.choice(
            [
                data[:at],
                data[:at] + rng.choice(ODD) + data[at:],
                data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :],
                data[at:] + data[:at],
            ]
        )
    return data


def odd_headers(rng: random.Random, good: dict[str, str]) -> object:
    """The true headers, altered, repeated or in other shapes, or no headers at all."""
    pairs: list[tuple[object, object]] = list(good.items())
    for _ in range(rng.randrange(3)):
        name = rng.choice(NAMES)
        text = mutated(rng, rng.choice(list(good.values())).encode())
        pairs.append((name, rng.choice([text, text.decode("latin-1"), [text], None, 5])))
        rng.shuffle(pairs)
    return rng.choice([dict(pairs), pairs, iter(pairs), None, pairs and dict(pairs[:1])])


def test_many_random_pairs_raise_our_errors_only() -> None:
    """20,000 mutated bodies and headers (100,000 in the deep profile) give callbacks or our errors.

    None verifies whose signature was not made for its id and time.
    """
    rng, seen = random.Random(4), Counter()
    for number in range(PAIRS):
        body, good = mutated(rng, BODY), signed()
        headers = good if number % 5 == 0 else odd_headers(rng, good)
        try:
            callback = parse_callback(body, headers, key=KEY, now=NOW)
        except CallbackError as error:
            seen[type(error).__name__] += 1
        else:
            assert callback.verified
            assert callback.task_id == TASK_ID
            seen["verified"] += 1
    assert set(seen) == {"verified", "MalformedCallbackError", "InvalidSignatureError"}
    assert min(seen.values()) > PAIRS / 1000


@pytest.mark.parametrize("wrong", [{"key": 5}, {"tolerance": "x"}])
def test_a_setting_of_the_wrong_type_is_refused(wrong: dict[str, Any]) -> None:
    """It is a `ConfigurationError`, whatever the body holds."""
    with pytest.raises(ConfigurationError):
        parse_callback(b"{}", **wrong)
