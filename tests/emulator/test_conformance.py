"""Every answer of the emulator looks like a recorded one, or is on the list of those without a recording.

The witness is `tests/support/witness.py`, which knows neither the parser nor the emulator; the requests are
written by hand and sent by `http.client`.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import attrs
import pytest
import witness
from routes import routes_of
from serving import Serving
from witness import CALLBACK, Sent

from kie4o.emulator import Emulator, Fault
from kie4o.emulator.callbacks import CALLS
from kie4o.emulator.tasks import MESSAGES, OUTCOMES, Answer
from kie4o.emulator.variants import PAGES, RECORDS

API = "/api/v1/gpt4o-image"
GENERATE, LOOK, LINK = f"POST {API}/generate", f"GET {API}/record-info", f"POST {API}/download-url"
CREDIT, COMMON = "GET /api/v1/chat/credit", "POST /api/v1/common/download-url"
BASE64, STREAM, URL = (f"POST /api/file-{kind}-upload" for kind in ("base64", "stream", "url"))
LAKE = {"prompt": "A calm lake", "size": "1:1"}
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
)

pytestmark = pytest.mark.once

GUESSED_RECORDS = """
    dict_error empty_error fewer_fields flag_4 json_list_text json_text lag list lower_case more_fields
    no_status stale_flag stale_status text_numbers text_times unknown_status
"""
# Answers that are neither recorded nor documented for their endpoint. Those with an envelope still have one
# that was recorded for another code or endpoint of the same host; "nothing" looks like the others.
WITHOUT_RECORDING = {
    **dict.fromkeys(
        [f"generate {code}" for code in (408, 430, 451)]
        + [f"generate {code} in its HTTP status" for code in (402, 455)]
        + [f"look {code}" for code in (400, 401, 402, 404, 408, 430, 433, 451, 455, 501, 505, 531, 550)]
        + ["look 429", "record null", "record odd_progress", "record old_error_code"]
        + ["credit fraction", "base64 empty", "stream empty", "stream no path"]
        + [f"callback {content}" for content in ("altered", "forged", "unknown task")],  # foreign images
        "envelope",
    ),
    **dict.fromkeys(["no such path", "no such method", "callback of no_images"], "nothing"),
    # What only a fault sends, guessed from public code that guards against it.
    **dict.fromkeys(
        [f"page {name}" for name in PAGES.keys() - {"bad_gateway", "cloudflare_1010"}], "nothing"
    ),
    **dict.fromkeys([f"record {name}" for name in GUESSED_RECORDS.split()], "nothing"),
}
# Recorded or documented answers that the emulator does not give by itself: other spellings of old pages, what
# stands in front of Kie, and failures whose cause is unknown.
NOT_GIVEN = {
    "callback_task_id_sample",
    "download_url_451",
    "record_failed_flag2_quickstart",
    "record_failed_flag3_no_code",
    "record_generating_048",
    "record_generating_quickstart",
    "record_progress_number",
    "record_success_errorCode_400_old",
    "record_success_minimal",
    "upload_500",
    "upload_success_reference",
}


class Client:
    """Plain requests to one emulator, each on a connection of its own.

    What is entered into `stack` outlives the emulator, which may send more callbacks until it is closed.
    """

    def __init__(self, kie: Emulator, stack: AsyncExitStack | None = None) -> None:
        self.kie = kie
        self.stack = stack or AsyncExitStack()

    async def __call__(
        self, endpoint: str, body: Any = None, *, key: str | None = "k-123", query: str = "", **headers: str
    ) -> Sent:
        method, path = endpoint.split()
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        if body is not None and not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json"} | headers
        return await asyncio.to_thread(self._send, method, path + query, body, headers)

    async def submit(self, **fields: Any) -> Sent:
        return await self(GENERATE, LAKE | fields)

    async def task(self, **fields: Any) -> str:
        return str(json.loads((await self.submit(**fields)).body)["data"]["taskId"])

    async def look(self, task_id: str) -> Sent:
        return await self(LOOK, query=f"?taskId={task_id}")

    async def image(self, task_id: str) -> str:
        return str(json.loads((await self.look(task_id)).body)["data"]["response"]["resultUrls"][0])

    def _send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Sent:
        connection = http.client.HTTPConnection(self.kie.host, self.kie.port, timeout=20)
        try:
            connection.request(
                method, path, body, {name.replace("_", "-"): headers[name] for name in headers}
            )
            answer = connection.getresponse()
            return Sent(answer.status, answer.headers["Content-Type"], answer.read())
        finally:
            connection.close()


Ask = Callable[[Client], Awaitable[Sent]]


@attrs.frozen
class Case:
    """How to get one answer of the emulator."""

    endpoint: str
    ask: Ask
    settings: dict[str, Any] = attrs.field(factory=dict)


CASES: dict[str, Case] = {}


def case(name: str, endpoint: str, **settings: Any) -> Callable[[Ask], Ask]:
    """Add a case; the settings are those of the emulator."""

    def add(ask: Ask) -> Ask:
        assert name not in CASES
        CASES[name] = Case(endpoint, ask, settings)
        return ask

    return add


# -- submits -------------------------------------------------------------------------------------


case("generate", GENERATE)(lambda call: call.submit())
case("generate four", GENERATE)(lambda call: call.submit(nVariants=4))
case("generate no task id", GENERATE)(lambda call: answered(call, Fault("submit", code=200)))
case("generate no JSON", GENERATE)(lambda call: call(GENERATE, b"{", Content_Type="application/json"))
case("generate no object", GENERATE)(lambda call: call(GENERATE, []))
case("generate bad size", GENERATE)(lambda call: call.submit(size="16:9"))
case("generate no key", GENERATE)(lambda call: call(GENERATE, LAKE, key=None))
case("generate wrong key", GENERATE, api_key="right")(lambda call: call.submit())
case("generate no content type", GENERATE)(lambda call: call(GENERATE, b"{}", Content_Type="text/plain"))
case("generate no money", GENERATE, credits=5)(lambda call: call.submit())


async def answered(call: Client, answer: Fault | int) -> Sent:
    call.kie.next(answer=answer)
    return await call.submit()


@case("generate too many", GENERATE, limit=1)
@case("generate too many in 200", GENERATE, limit=1, status_429=200)
async def too_many(call: Client) -> Sent:
    await call.submit()
    return await call.submit()


def coded(code: int, http_status: int) -> Ask:
    return lambda call: answered(call, Fault("submit", code=code, http_status=http_status))


def paged(name: str) -> Ask:
    return lambda call: answered(call, Fault("submit", page=name))


for each in sorted(MESSAGES.keys() - {200}):
    documented = 500 if each in (501, 505) else 200
    case(f"generate {each}", GENERATE)(coded(each, documented))
for each in (402, 455):
    case(f"generate {each} in its HTTP status", GENERATE)(coded(each, each))
case("generate 500 in its HTTP status", GENERATE)(coded(500, 500))
for name in PAGES:
    case(f"page {name}", GENERATE)(paged(name))


# -- looks ---------------------------------------------------------------------------------------


def ended(outcome: str) -> Ask:
    async def ask(call: Client) -> Sent:
        call.kie.next(outcome=outcome)
        return await call.look(await call.task())

    return ask


for name in OUTCOMES:
    case(f"look {name}", LOOK)(ended(name))


@case("look half", LOOK, progress="linear", duration=20.0)
async def half(call: Client) -> Sent:
    task_id = await call.task()
    await asyncio.sleep(10 / call.kie.speed)
    return await call.look(task_id)


@case("look before it is known", LOOK, record_delay=60.0)
@case("look four images", LOOK)
async def four(call: Client) -> Sent:
    return await call.look(await call.task(nVariants=4))


@case("look too often", LOOK)
async def too_often(call: Client) -> Sent:
    return [await call.look("0" * 32) for _ in range(4)][-1]


def failing(code: int) -> Ask:
    async def ask(call: Client) -> Sent:
        call.kie.fault("look", code=code)
        return await call.look("0" * 32)

    return ask


for each in sorted(MESSAGES.keys() - {200}):
    case(f"look {each}", LOOK)(failing(each))


def recorded(name: str) -> Ask:
    async def ask(call: Client) -> Sent:
        call.kie.fault("look", record=name)
        return await call.look(await call.task())

    return ask


for name in RECORDS:
    case(f"record {name}", LOOK)(recorded(name))


# -- links and credits ---------------------------------------------------------------------------


async def link(call: Client, *, of: int = 0, **plan: Any) -> Sent:
    """Ask for a signed link to an image; `of` has another image in mind."""
    call.kie.next(**plan)
    task_id = await call.task()
    url = f"{call.kie.url}/s/{task_id}_{of}_1774788517_4321.png" if plan or of else await call.image(task_id)
    return await call(LINK, {"taskId": task_id, "url": url})


case("link", LINK)(lambda call: link(call))
case("link no task", LINK)(lambda call: call(LINK, {"taskId": "0" * 32, "url": call.kie.url}))
case("link failed", LINK)(lambda call: link(call, outcome="failed"))
case("link empty", LINK)(lambda call: link(call, outcome="no_images"))
case("link other image", LINK)(lambda call: link(call, of=3))
case("link parameters", LINK)(lambda call: call(LINK, {"taskId": ""}))


@case("link old", LINK)
async def old(call: Client) -> Sent:
    task_id = await call.task()
    url = await call.image(task_id)
    call.kie.tasks[task_id].created -= 14 * 86_400
    return await call(LINK, {"taskId": task_id, "url": url})


@case("common link", COMMON)
async def common(call: Client) -> Sent:
    return await call(COMMON, {"url": await call.image(await call.task())})


case("common link elsewhere", COMMON)(lambda call: call(COMMON, {"url": "https://example.com/a.png"}))
case("credit", CREDIT)(lambda call: call(CREDIT))
case("credit fraction", CREDIT, credits=5916.25)(lambda call: call(CREDIT))
case("credit no key", CREDIT)(lambda call: call(CREDIT, key=None))


# -- uploads -------------------------------------------------------------------------------------


PLACE = {"uploadPath": "images/sdk", "fileName": "sample.png"}
ENCODED = base64.b64encode(PIXEL).decode()
DATA_URL = f"data:image/png;base64,{ENCODED}"


def form(**fields: str | bytes) -> Ask:
    async def ask(call: Client) -> Sent:
        parts = b""
        for name, value in fields.items():
            more, text = ('; filename="a.png"', value) if isinstance(value, bytes) else ("", value.encode())
            parts += (
                f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode()
                + text
                + b"\r\n"
            )
        return await call(STREAM, parts + b"--b--\r\n", Content_Type="multipart/form-data; boundary=b")

    return ask


case("base64", BASE64)(lambda call: call(BASE64, PLACE | {"base64Data": ENCODED}))
case("base64 data URL", BASE64)(
    lambda call: call(BASE64, PLACE | {"base64Data": f"data:image/png;base64,{ENCODED}"})
)
case("base64 no path", BASE64)(lambda call: call(BASE64, {"base64Data": ENCODED}))
case("base64 empty", BASE64)(lambda call: call(BASE64, PLACE))
case("base64 broken", BASE64)(lambda call: call(BASE64, PLACE | {"base64Data": "?"}))
case("base64 no key", BASE64)(lambda call: call(BASE64, PLACE, key=None))
case("stream", STREAM)(form(file=PIXEL, **PLACE))
case("stream no path", STREAM)(form(file=PIXEL))
case("stream empty", STREAM)(form(**PLACE))
case("url", URL)(lambda call: call(URL, PLACE | {"fileUrl": "https://example.com/a.png"}))
case("url missing", URL)(lambda call: call(URL, PLACE))
case("url unreachable", URL)(lambda call: call(URL, PLACE | {"fileUrl": f"{call.kie.url}/s/no.png"}))


# -- everything else -----------------------------------------------------------------------------


case("no such path", "GET /nowhere")(lambda call: call("GET /nowhere"))
case("no such method", f"GET {API}/generate")(lambda call: call(f"GET {API}/generate"))


def called(content: str, outcome: str = "success") -> Ask:
    """The callback of a task, caught by a server that answers it with 200."""

    async def ask(call: Client) -> Sent:
        caught: asyncio.Future[Sent] = asyncio.get_running_loop().create_future()

        async def catch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
            body = await reader.readexactly(int(fields["content-length"]))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            writer.close()
            if not caught.done():
                assert head.startswith("post ")
                caught.set_result(Sent(200, fields["content-type"], body))

        server = await call.stack.enter_async_context(Serving(catch))
        call.kie.next(outcome=outcome, callback=content)
        await call.submit(callBackUrl=server.url)
        return await asyncio.wait_for(caught, 60)

    return ask


for name in CALLS.keys() - {"never"}:
    case(f"callback {name}", CALLBACK)(called(name))
for name in ("failed", "policy", "input", "create_failed", "no_images"):
    case(f"callback of {name}", CALLBACK)(called("end", name))


# -- the tests -----------------------------------------------------------------------------------


def verdict(endpoint: str, sent: Sent) -> str:
    """Whether this answer was recorded, or only its envelope, or nothing like it."""
    if witness.same_as(endpoint, sent):
        return "recorded"
    return "envelope" if witness.enveloped_as(endpoint, sent) else "nothing"


async def answer_of(case: Case) -> Sent:
    settings = {"duration": 0.0, "pictures": False} | case.settings
    async with AsyncExitStack() as stack, Emulator(**settings) as kie:
        return await case.ask(Client(kie, stack))


@pytest.mark.parametrize("name", sorted(CASES))
async def test_an_answer_looks_like_a_recorded_one(name: str) -> None:
    """Status, content type, keys, JSON types, forms of strings, and the values of codes and states."""
    case = CASES[name]
    sent = await answer_of(case)
    assert verdict(case.endpoint, sent) == WITHOUT_RECORDING.get(name, "recorded"), sent


async def test_what_was_recorded_is_given() -> None:
    """Each recorded answer is one that the emulator can give, or is on the list of the others."""
    given = {
        name for case in CASES.values() for name in witness.same_as(case.endpoint, await answer_of(case))
    }
    assert {one.name for one in witness.recordings()} - given == NOT_GIVEN


def test_the_cases_are_all_there_are() -> None:
    """Every code, outcome, callback and route of the emulator has a case, and every exception is a case."""
    wanted = [f"{what} {code}" for what in ("generate", "look") for code in MESSAGES if code != 200]
    wanted += [f"look {name}" for name in OUTCOMES] + [
        f"callback {name}" for name in CALLS if name != "never"
    ]
    assert [name for name in (*wanted, *WITHOUT_RECORDING) if name not in CASES] == []
    asked = {case.endpoint for case in CASES.values()}
    assert {f"{method} {path}" for method, path in routes_of(Emulator()) if path.startswith("/api/")} <= asked


# -- the controls --------------------------------------------------------------------------------


def change(alter: Callable[[Any], Any]) -> Callable[[Sent], Sent]:
    return lambda sent: attrs.evolve(sent, body=json.dumps(alter(json.loads(sent.body))).encode())


def within(key: str, value: Any) -> Callable[[Any], Any]:
    return lambda body: body | {"data": body["data"] | {key: value}}


CHANGES: dict[str, Callable[[Sent], Sent]] = {
    "status": lambda sent: attrs.evolve(sent, status=201),
    "content type": lambda sent: attrs.evolve(sent, content_type="application/json"),
    "no JSON": lambda sent: attrs.evolve(sent, body=sent.body[:-1]),
    "code": change(lambda body: body | {"code": 201}),
    "a code in text": change(lambda body: body | {"code": "200"}),
    "a new key": change(lambda body: body | {"success": True}),
    "a missing key": change(lambda body: {"code": body["code"], "msg": body["msg"]}),
    "a null": change(within("createTime", None)),
    "no null": change(within("errorMessage", "")),
    "another type": change(within("progress", 1)),
    "another form": change(within("progress", "1.0")),
    "another time": change(within("createTime", "2024-01-15 10:30:00")),
    "another spelling": change(within("response", {"result_urls": []})),
    "another state": change(within("successFlag", 2)),
    "other parameters": change(within("paramJson", '{"prompt": "A calm lake", "size": "1:1"}')),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_control_a_changed_answer_is_seen(name: str) -> None:
    """One change to a true answer, and it looks like no recorded one."""
    sent = await answer_of(CASES["look success"])
    assert verdict(LOOK, sent) == "recorded"
    assert verdict(LOOK, CHANGES[name](sent)) != "recorded"


async def test_control_an_emulator_that_differs_is_seen() -> None:
    """An emulator that has lost one field of a record, asked over its socket."""

    class Careless(Emulator):
        def look(self, task_id: str, now: float, *, url: str) -> Answer:
            answer = super().look(task_id, now, url=url)
            del answer.data["progress"]
            return answer

    async with Careless(duration=0.0) as kie:
        call = Client(kie)
        assert verdict(LOOK, await call.look(await call.task())) == "nothing"
