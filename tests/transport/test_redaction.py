"""The API key is hidden in answers that echo it, however it is escaped there."""

from __future__ import annotations

import json
import pickle
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from canary import CANARY_KEY, WATCH
from clients import client_of
from faults import TASK_ID, FaultServer, answer, http, raw
from hypothesis import given
from hypothesis import strategies as st

from kie4o import APIConnectionError, AuthenticationError, KieError
from kie4o.settings import Secret
from kie4o.stores.memory import MemoryStore
from kie4o.transport.redaction import redactor

ALPHABETS = ("0123456789abcdef", "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in "\\%"))


def escaped(text: str, which: Callable[[], bool] = lambda: True) -> str:
    """The characters of a JSON string, some of them as `\\u` escapes; quotes and backslashes always."""
    return "".join(
        f"\\u{ord(c):04x}" if which() else f"\\{c}" if c in '"\\' or (c == "/" and which()) else c
        for c in text
    )


def percent(text: str) -> str:
    return "".join(f"%{ord(c):02X}" for c in text)


FORMS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "escaped": escaped,
    "one character escaped": lambda key: key.replace("-", "\\u002D"),
    "escaped twice": lambda key: escaped(json.dumps({"key": 0}).replace("0", f'"{escaped(key)}"')),
    "escaped, then its backslashes": lambda key: escaped(key).replace("\\", "\\\\"),
    "escaped, then its backslashes again": lambda key: escaped(key).replace("\\", "\\u005c"),
    "percent-encoded": lambda key: "https://a.example/" + percent(key),
    "percent-encoded, then escaped": lambda key: escaped("https://a.example/" + percent(key)),
}


def readings(text: str) -> set[str]:
    """What a text may be decoded to, by a reader of its escapes."""
    found = {text}
    for _ in range(6):
        text = re.sub(
            r"\\+u00([0-9a-fA-F]{2})|%([0-7][0-9a-fA-F])", lambda m: chr(int(m[1] or m[2], 16)), text
        )
        found |= {text, text.replace("\\", "")}
    return found


def leaves(value: Any) -> list[str]:
    """Every text in a JSON value, in JSON texts within it too."""
    if isinstance(value, dict):
        return [leaf for pair in value.items() for each in pair for leaf in leaves(each)]
    if isinstance(value, list):
        return [leaf for each in value for leaf in leaves(each)]
    if not isinstance(value, str):
        return []
    try:
        return [value, *leaves(json.loads(value))]
    except ValueError:
        return [value]


@given(
    st.integers(), st.sampled_from(ALPHABETS), st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]), st.floats(0, 1)
)
def test_no_encoding_of_the_key_is_left(seed: int, letters: str, share: float, end: float) -> None:
    """A key that any JSON encoder has encoded once or twice is gone; the id beside it stays."""
    chance = random.Random(seed)
    key = "".join(chance.choices(letters, k=32))
    which = lambda: chance.random() < share  # noqa: E731
    once = escaped(f"bad key {key}!", which)
    texts = [once, escaped(f'{{"error": "{once}"}}', which)]
    for text in texts:
        body = f'{{"code":401,"msg":"{text}","data":{{"taskId":"{TASK_ID}"}}}}'.encode()
        assert any(key in leaf for leaf in leaves(json.loads(body))), "the control: the key is there"
        hidden = redactor(Secret(key))(body)
        value = json.loads(hidden)
        assert value["data"]["taskId"] == TASK_ID
        assert not any(key in leaf for leaf in leaves(value))
        cut = body[: int(end * len(body))]
        assert not any(key in each for each in readings(redactor(Secret(key))(cut).decode()))


@given(st.binary(max_size=300) | st.text('\\u0"%41ab/', max_size=200).map(str.encode))
def test_other_bodies_are_left_alone(body: bytes) -> None:
    """A body without the key, escapes and all, is the same afterwards."""
    assert redactor(Secret(CANARY_KEY))(body) == body


def test_a_short_word_is_no_secret() -> None:
    """The key of a test may be part of anything, so it stays."""
    assert redactor(Secret(CANARY_KEY))(b'{"msg":CANARY_KEY}') == b'{"msg":CANARY_KEY}'


def test_a_key_outside_any_text_is_hidden_with_the_body() -> None:
    """A page with the escaped key may be cut anywhere, so nothing of it is kept."""
    page = f"<script>key = {escaped(CANARY_KEY)}</script>".encode()
    assert redactor(Secret(CANARY_KEY))(page) == b"***"


# -- through the client ------------------------------------------------------------------------------


def shows_key(*things: object) -> bool:
    """Whether a thing shows the key, in any reading of its text, repr or pickle."""
    texts = [
        text for thing in things for text in (str(thing), repr(thing), pickle.dumps(thing).decode("latin-1"))
    ]
    return any(CANARY_KEY in reading for text in texts for reading in readings(text))


def logged() -> list[str]:
    return [record.getMessage() for record in WATCH.records]


@pytest.mark.parametrize("form", FORMS)
async def test_a_free_call_does_not_show_an_echoed_key(form: str) -> None:
    """Neither the error, nor its excerpt, nor the details of a task, nor a log record."""
    echo = FORMS[form](CANARY_KEY)
    bodies = {
        "refused": f'{{"code":401,"msg":"no such key: {echo}"}}',
        "page": f'<html><a href="{echo}">',
        "failed": f'{{"code":200,"data":{{"taskId":"{TASK_ID}","successFlag":3,"errorMessage":"{echo}"}}}}',
        "unreadable": f'{{"code":200,"data":["{echo}"]}}',
        "cut off": f'{{"code":401,"msg":"no such key: {echo}',
    }
    for name, body in bodies.items():
        script = answer(body.encode(), "200 OK", f"X-Echo: {CANARY_KEY}")
        async with FaultServer(script) as server, client_of(server.url, api_key=CANARY_KEY) as client:
            if name == "failed":
                details = await client.details(TASK_ID)
                assert not shows_key(details, details.raw)
            else:
                with pytest.raises(KieError) as caught:
                    await client.details(TASK_ID)
                assert not shows_key(caught.value, vars(caught.value))
    assert not shows_key(logged())


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("form", FORMS)
async def test_a_submit_does_not_show_an_echoed_key(form: str, broken: bool) -> None:
    """Neither a refusal nor an unknown outcome nor what is stored of it."""
    echo = FORMS[form](CANARY_KEY)
    body = f'{{"code":401,"msg":"no such key: {echo}"'.encode()
    whole = http(body + b"}", "401 Unauthorized", f"X-Echo: {CANARY_KEY}")
    script = raw(whole[:-1], reset=True) if broken else raw(whole)
    store = MemoryStore()
    async with FaultServer(script) as server, client_of(server.url, store, api_key=CANARY_KEY) as client:
        with pytest.raises(KieError) as caught:
            await client.submit("x", key="k")
        assert isinstance(caught.value, AuthenticationError) is not broken
        assert not shows_key(caught.value, vars(caught.value), await store.find(key="k"))
    assert not shows_key(logged())


async def test_an_answer_that_breaks_off_does_not_show_an_echoed_key() -> None:
    """Nor do the local variables of the call, which error reporters send."""
    whole = http(f'{{"code":401,"msg":"no such key: {CANARY_KEY}"}}'.encode())
    async with FaultServer(raw(whole[:-1])) as server, client_of(server.url, api_key=CANARY_KEY) as client:
        with pytest.raises(APIConnectionError) as caught:
            await client.details(TASK_ID)
        assert not shows_key(caught.value)
