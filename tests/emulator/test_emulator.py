"""The emulator agrees with the recorded answers: the same keys, JSON types and limits."""

import asyncio
import base64
import contextlib
import json
import signal
import socket
import struct
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import ClientConnectionError, ClientSession, ClientTimeout, FormData
from faults import open_sockets
from paths import FIXTURES, IMPORT_ROOT
from portable import PATIENCE, interruptible

from kie4o.emulator import Emulator, Fault, Outcome, pictures
from kie4o.emulator.account import Account
from kie4o.emulator.tasks import MESSAGES, Window, is_valid, most_within

API = "/api/v1/gpt4o-image"
LAKE = {"prompt": "A calm lake", "size": "1:1"}
PNG = pictures.BLANK


def fixture(name: str) -> Any:
    return json.loads((FIXTURES / f"{name}.json").read_text("utf-8"))


def shape(value: Any) -> Any:
    """Keys and JSON types, recursively; JSON has one kind of number."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    return type(value).__name__


class Client:
    """A plain HTTP client for one emulator."""

    def __init__(self, kie: Emulator, session: ClientSession) -> None:
        self.kie, self.session = kie, session

    async def __call__(self, method: str, path: str, *, key: str | None = "k", **how: Any) -> tuple[int, Any]:
        headers = how.pop("headers", {}) | ({"Authorization": f"Bearer {key}"} if key else {})
        async with self.session.request(method, self.kie.url + path, headers=headers, **how) as response:
            return response.status, json.loads(await response.read())

    async def submit(self, **body: Any) -> tuple[int, Any]:
        return await self("POST", f"{API}/generate", json=LAKE | body)

    async def task(self, **body: Any) -> str:
        _, answer = await self.submit(**body)
        return str(answer["data"]["taskId"])

    async def look(self, task_id: str) -> Any:
        status, answer = await self("GET", f"{API}/record-info", params={"taskId": task_id})
        assert status == 200
        return answer

    async def images(self, task_id: str) -> list[str]:
        return list((await self.look(task_id))["data"]["response"]["resultUrls"])

    async def sign(self, task_id: str, url: str) -> Any:
        return (await self("POST", f"{API}/download-url", json={"taskId": task_id, "url": url}))[1]

    async def fetch(self, url: str, **how: Any) -> tuple[int, bytes]:
        async with self.session.get(url, **how) as response:
            return response.status, await response.read()


class ClockedEmulator(Emulator):
    """An emulator whose time passes only when the test sets it."""

    moment = 0.0

    def now(self) -> float:
        return self.moment


async def until(true: Callable[[], bool]) -> None:
    for _ in range(5000):
        if true():
            return
        await asyncio.sleep(0.001)
    raise TimeoutError


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession(timeout=ClientTimeout(10)) as session:
        yield session


@pytest.fixture
async def kie() -> AsyncIterator[Emulator]:
    """An emulator whose tasks end at once, without drawn pictures."""
    async with Emulator(duration=0.0, pictures=False) as kie:
        yield kie


@pytest.fixture
def call(kie: Emulator, session: ClientSession) -> Client:
    return Client(kie, session)


# Time, passed in ------------------------------------------------------------------------------------


def test_window_is_exact() -> None:
    """The 21st of 20 per 10 s is refused until exactly 10 s after the first, and does not count."""
    window = Window(20, 10.0)
    assert all(window.admit(index * 0.1) for index in range(20))
    assert not window.admit(5.0)
    assert not window.admit(9.999)
    assert window.admit(10.0)
    assert not window.admit(10.05)
    assert window.admit(10.1)
    assert len(window.arrivals) == 25
    assert most_within(window.admitted, 10.0) == 20


def test_window_agrees_with_counting() -> None:
    """The window admits what `most_within` counts, for floats with rounding errors too."""
    window = Window(3, 0.3)
    times = [index * 0.1 for index in range(200)]
    for now in times:
        recent = sum(now - earlier < 0.3 for earlier in window.admitted)
        assert window.admit(now) == (recent < 3)
    assert most_within(window.admitted, 0.3) == 3
    assert most_within([], 1.0) == 0


def test_refused_submits_are_not_counted() -> None:
    """Bodies that Kie refuses do not count against the limit and cost nothing."""
    kie = Account(limit=1)
    assert kie.submit({}, 0.0).code == 422
    assert kie.submit(dict(LAKE), 0.0).code == 200
    assert kie.submit(dict(LAKE), 9.9).code == 429
    assert kie.submit(dict(LAKE), 10.0).code == 200
    assert (kie.paid, kie.credits) == (2, 988.0)


def test_looks_are_limited_per_task() -> None:
    """The 4th look at one task within a second is refused; other tasks are not affected."""
    kie = Account()
    first, second = (kie.submit(dict(LAKE), 0.0).data["taskId"] for _ in range(2))
    codes = [kie.look(first, now, url="").code for now in (5.0, 5.1, 5.2, 5.9, 6.0, 6.05)]
    assert codes == [200, 200, 200, 429, 200, 429]
    assert kie.look(second, 5.9, url="").code == 200
    assert kie.tasks[first].looks == [5.0, 5.1, 5.2, 5.9, 6.0, 6.05]


def test_life_of_a_task() -> None:
    """As recorded: GENERATING at 0.00 until the task ends, then SUCCESS at 1.00; times are whole seconds."""
    kie = Account(duration=18.0)
    kie.epoch = 1774788499.2
    task_id = kie.submit(dict(LAKE), 0.0).data["taskId"]
    running, done = (kie.look(task_id, now, url="https://x").data for now in (17.9, 18.0))
    assert (running["status"], running["progress"], running["completeTime"]) == ("GENERATING", "0.00", None)
    assert (done["status"], done["progress"]) == ("SUCCESS", "1.00")
    assert (done["createTime"], done["completeTime"]) == (1774788500000, 1774788518000)
    assert done["response"]["resultUrls"][0].startswith(f"https://x/s/{task_id}_0_1774788518_")


def test_linear_progress() -> None:
    """With progress="linear" the progress grows evenly and is 1.00 only when the task has ended."""
    kie = Account(duration=10.0, progress="linear")
    task_id = kie.submit(dict(LAKE), 0.0).data["taskId"]
    seen = [kie.look(task_id, now, url="").data["progress"] for now in (0.0, 5.0, 9.999, 10.0)]
    assert seen == ["0.00", "0.50", "0.99", "1.00"]


def test_record_delay() -> None:
    """During `record_delay` the record does not exist yet, for looks and for links."""
    kie = Account(record_delay=2.0, duration=0.0)
    task_id = kie.submit(dict(LAKE), 0.0).data["taskId"]
    assert [kie.look(task_id, now, url="").code for now in (0.0, 1.9, 2.0)] == [422, 422, 200]
    assert kie.may_sign(task_id, "", 1.9).msg == "record is null"


def test_plans() -> None:
    """A plan is for one task; that of a prompt goes before `next`; refusals do not use it up."""
    kie = Emulator(limit=1, duration=lambda: 7.0)
    kie.next(duration=1.0)
    kie.plan("A calm lake", outcome="policy", progress="linear")
    kie.plan("A calm lake", duration=2.0)
    for start in range(0, 40, 10):
        assert kie.submit(dict(LAKE), start).code == 200
        assert kie.submit(dict(LAKE), start + 1).code == 429
    tasks = list(kie.tasks.values())
    assert [task.duration for task in tasks] == [7.0, 2.0, 1.0, 7.0]
    assert [task.outcome.kind for task in tasks] == ["policy", "success", "success", "success"]
    assert [task.submits for task in tasks] == [4] * 4


def test_wrong_settings() -> None:
    """A misspelt outcome or progress and a limit of 0 are refused at once."""
    with pytest.raises(ValueError, match="invalid outcome='sucess'"):
        Emulator(outcome="sucess")
    with pytest.raises(ValueError, match="invalid outcome='sucess'"):
        Emulator().next(outcome="sucess")
    with pytest.raises(ValueError, match="progress"):
        Emulator().next(progress="linaer")
    with pytest.raises(ValueError, match="limit"):
        Emulator(limit=0)
    with pytest.raises(ValueError, match="speed"):
        Emulator(speed=0.0)


# generate -------------------------------------------------------------------------------------------


async def test_generate_is_shaped_as_recorded(call: Client) -> None:
    """A submit is answered with a task id of 32 lower-case hex digits."""
    status, answer = await call.submit()
    assert (status, shape(answer)) == (200, shape(fixture("generate_success")))
    assert len(answer["data"]["taskId"]) == 32
    assert set(answer["data"]["taskId"]) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "change",
    [
        {"size": None},
        {"size": "16:9"},
        {"size": ["1:1"]},
        {"prompt": None},
        {"prompt": ""},
        {"prompt": 7},
        {"nVariants": 3},
        {"nVariants": True},
        {"nVariants": "2"},
        {"nVariants": 2.0},
        {"filesUrl": "https://example.com/a.png"},
        {"filesUrl": ["https://example.com/a.png"] * 6},
        {"fallbackModel": "DALLE"},
    ],
)
async def test_generate_refuses(call: Client, change: dict[str, Any]) -> None:
    """A body that Kie does not accept is 422 in HTTP 200, costs nothing and creates nothing."""
    status, answer = await call.submit(**change)
    assert (status, answer) == (200, fixture("generate_err_422"))
    assert (len(call.kie.submits), call.kie.paid, call.kie.tasks) == (1, 0, {})


@pytest.mark.parametrize(
    "body",
    [
        {"size": "3:2", "filesUrl": ["https://example.com/a.png"] * 5},
        {"size": "2:3", "fileUrl": "https://example.com/a.png"},
        LAKE | {"nVariants": 4, "fallbackModel": "GPT_IMAGE_1", "filesUrl": None},
    ],
)
def test_valid_bodies(body: dict[str, Any]) -> None:
    """A file replaces the prompt, and five files are allowed."""
    assert is_valid(body)


@pytest.mark.parametrize("text", ["{", "[]", "\xff", "[" * 100_000])
async def test_not_json(call: Client, text: str) -> None:
    """A body that is not a JSON object is 400."""
    how: dict[str, Any] = {"data": text.encode("latin-1"), "headers": {"Content-Type": "application/json"}}
    assert await call("POST", f"{API}/generate", **how) == (200, fixture("generate_err_400_format"))


async def test_content_type(call: Client) -> None:
    """Without a JSON Content-Type Kie answers 401, whatever the body."""
    answer = await call("POST", f"{API}/generate", data=json.dumps(LAKE))
    assert answer == (200, fixture("generate_err_401_new"))


async def test_wrong_key(session: ClientSession) -> None:
    """A wrong or missing key is code 401 in HTTP 200 without `data`; for uploads it is HTTP 401."""
    async with Emulator(api_key="right") as kie:
        call = Client(kie, session)
        for key in ("wrong", None):
            assert await call("GET", "/api/v1/chat/credit", key=key) == (200, fixture("generate_err_401_new"))
            upload = await call("POST", "/api/file-base64-upload", key=key, json={})
            assert upload == (401, fixture("upload_401"))
        await call("POST", f"{API}/generate", key="wrong", json=LAKE)
        assert (len(kie.submits), kie.paid) == (1, 0)
        assert (await call("GET", "/api/v1/chat/credit", key="right"))[1]["code"] == 200


async def test_any_key_but_none(call: Client) -> None:
    """Without `api_key` every key is accepted, but a request without a key is not."""
    assert (await call("GET", "/api/v1/chat/credit", key="anything"))[1]["code"] == 200
    assert (await call("GET", "/api/v1/chat/credit", key=None))[1]["code"] == 401


@pytest.mark.parametrize("http_status", [200, 429])
async def test_too_many_submits(session: ClientSession, http_status: int) -> None:
    """Of 30 submits at once 20 are accepted and 10 get 429, with the HTTP status of `status_429`."""
    async with Emulator(status_429=http_status) as kie:
        call = Client(kie, session)
        answers = await asyncio.gather(*(call.submit() for _ in range(30)))
        refusal = (http_status, fixture("generate_err_429_http200"))
        assert sum(answer == refusal for answer in answers) == 10
        assert (len(kie.submits), kie.paid, kie.answers()[429], kie.windows()) == (30, 20, 10, 30)


async def test_window_passes_with_speed(session: ClientSession) -> None:
    """The window is in emulated seconds too: ten of them later a submit is accepted again."""
    async with Emulator(speed=1000.0, limit=1) as kie:
        call = Client(kie, session)
        await call.task()
        opens = kie.now() + 10.0
        await until(lambda: kie.now() >= opens)
        await call.task()
        assert (kie.paid, kie.windows()) == (2, 1)


async def test_credits(call: Client) -> None:
    """An image costs 6 credits; a submit that costs more than the balance is refused."""
    call.kie.credits = 20.5
    assert await call("GET", "/api/v1/chat/credit") == (200, {"code": 200, "msg": "success", "data": 20.5})
    assert await call.submit(nVariants=4) == (200, fixture("generate_err_402"))
    await call.task(nVariants=2)
    assert call.kie.credits == 8.5
    call.kie.credits = 100.0
    assert (await call("GET", "/api/v1/chat/credit"))[1] == fixture("credit_int")


@pytest.mark.parametrize(
    ("code", "name"),
    [(404, "404"), (433, "433"), (455, "455"), (500, "500_docs"), (501, "501"), (505, "505"), (531, "531"),
     (550, "550"), (400, "400_format"), (401, "401_new"), (402, "402"), (422, "422")],
)  # fmt: skip
async def test_messages(call: Client, code: int, name: str) -> None:
    """A planned code has the text that Kie sends with it, and applies to one submit."""
    call.kie.plan(LAKE["prompt"], answer=code)
    assert await call.submit() == (200, fixture(f"generate_err_{name}"))
    assert (await call.submit())[1]["code"] == 200


async def test_planned_answers(call: Client) -> None:
    """A planned answer creates no task; with `charged` the task is created and paid for."""
    kie, words = call.kie, "Creating a build task failed"
    kie.next(answer=429)
    kie.next(answer=Fault("submit", code=500, message=words, http_status=500, charged=True))
    assert await call.submit() == (429, fixture("generate_err_429_http200"))
    assert (kie.paid, kie.answers()[429], kie.credits) == (0, 1, 1000.0)
    assert await call.submit() == (500, {"code": 500, "msg": words, "data": None})
    assert (kie.paid, len(kie.tasks), kie.credits) == (1, 1, 994.0)
    assert (await call.submit())[1]["code"] == 200


async def test_latency_starts_after_the_task(session: ClientSession) -> None:
    """The task is created before the latency: a client that times out has still paid."""
    async with Emulator(latency=lambda: 60.0) as kie:
        call = Client(kie, session)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await call.submit()
        assert (len(kie.submits), kie.paid) == (1, 1)


async def test_latencies_are_emulated_seconds(session: ClientSession) -> None:
    """Latencies are emulated seconds; `look_latency` applies to looks only."""
    async with Emulator(speed=1000.0, latency=50.0, look_latency=50.0) as kie:
        call = Client(kie, session)
        start = kie.now()
        task_id = await call.task()
        assert kie.now() - start >= 50.0
        start = kie.now()
        await call.look(task_id)
        assert kie.now() - start >= 50.0


async def test_half_a_post_is_none(kie: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """A POST whose client disconnects within the body is not counted, not accepted and not an error."""
    _, writer = await asyncio.open_connection("127.0.0.1", kie.port)
    head = f"POST {API}/generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    writer.write(head.encode() + json.dumps(LAKE).encode())
    await writer.drain()
    await until(lambda: bool(kie.requests))  # the head has arrived
    writer.close()
    await writer.wait_closed()
    await asyncio.sleep(0.02)
    assert (len(kie.submits), kie.paid, caplog.records) == (0, 0, [])


# record-info ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "name"),
    [
        ("success", "record_success_resultUrls_real"),
        ("failed", "record_failed_flag3_internal_error"),
        ("policy", "record_failed_generate_failed_cn"),
        ("input", "record_failed_451"),
        ("create_failed", "record_create_task_failed"),
        ("no_images", "record_success_empty_urls"),
        ("stuck", "record_generating_real"),
        ("missing", "record_not_found_422"),
    ],
)
async def test_outcomes(call: Client, outcome: str, name: str) -> None:
    """Each outcome gives the record that was recorded for it, texts included."""
    call.kie.next(outcome=outcome)
    answer, recorded = await call.look(await call.task()), fixture(name)
    assert shape(answer) == shape(recorded)
    assert (answer["code"], answer["msg"]) == (recorded["code"], recorded["msg"])
    if recorded["data"]:
        same = ("paramJson", "successFlag", "status", "errorCode", "errorMessage", "progress")
        assert {key: answer["data"][key] for key in same} == {key: recorded["data"][key] for key in same}
        assert answer["data"]["createTime"] % 1000 == 0


async def test_variants_and_partial(call: Client) -> None:
    """Four variants are four URLs with indices from 0; a partial success has one fewer."""
    whole = await call.look(await call.task(nVariants=4))
    assert shape(whole) == shape(fixture("record_success_4_variants"))
    urls = whole["data"]["response"]["resultUrls"]
    assert [url.split("_")[1] for url in urls] == list("0123")
    call.kie.next(outcome="partial")
    assert len(await call.images(await call.task(nVariants=4))) == 3


async def test_outcome_with_another_message(call: Client) -> None:
    """An `Outcome` may replace the code and the message of its kind."""
    call.kie.outcome = Outcome("failed", code=400, message="invalid_image_format")
    data = (await call.look(await call.task()))["data"]
    assert (data["errorCode"], data["errorMessage"], data["successFlag"]) == (400, "invalid_image_format", 3)


async def test_running(session: ClientSession) -> None:
    """While the task runs its record is GENERATING, without images, and repeats the request."""
    async with Emulator() as kie:
        call = Client(kie, session)
        task_id = await call.task(callBackUrl="https://example.com/hook", enableFallback=True)
        answer = await call.look(task_id)
        assert shape(answer) == shape(fixture("record_generating_real"))
        params = json.loads(answer["data"]["paramJson"])
        assert list(params) == sorted(params)
        assert params["callBackUrl"] == kie.tasks[task_id].request["callBackUrl"]
        assert params["enableFallback"] is True


async def test_odd_text(session: ClientSession) -> None:
    """Any text that JSON can hold is kept, a lone surrogate too, and its picture is served."""
    async with Emulator(duration=0.0) as kie:
        call = Client(kie, session)
        task_id = await call.task(prompt="\u6e56 \ud800\x00")
        assert kie.tasks[task_id].request["prompt"] == "\u6e56 \ud800\x00"
        (url,) = await call.images(task_id)
        assert (await call.fetch(url))[0] == 200


async def test_unknown_task(call: Client) -> None:
    """Kie answers 422 in HTTP 200 for a task that it does not know, and without a task id."""
    assert await call.look("0" * 32) == fixture("record_not_found_422")
    assert (await call("GET", f"{API}/record-info"))[1] == fixture("record_not_found_422")


async def test_too_many_looks(session: ClientSession) -> None:
    """The 4th look within a second gets 429 in HTTP 200; a second later looks are answered again."""
    async with ClockedEmulator() as kie:
        call = Client(kie, session)
        task_id = await call.task()
        answers = [await call.look(task_id) for _ in range(4)]
        assert [answer["code"] for answer in answers] == [200, 200, 200, 429]
        assert shape(answers[3]) == shape(fixture("record_429"))
        assert (kie.answers("look")[429], kie.windows("look")) == (1, 4)
        kie.moment += 1.0
        assert (await call.look(task_id))["code"] == 200


async def test_failing_looks(call: Client) -> None:
    """A code applies to the given number of looks."""
    task_id = await call.task()
    call.kie.fault("look", code=500)
    assert await call.look(task_id) == fixture("record_500")
    call.kie.fault("look", code=455, http_status=503)
    status, answer = await call("GET", f"{API}/record-info", params={"taskId": task_id})
    assert (status, answer) == (503, fixture("generate_err_455"))
    assert (await call.look(task_id))["code"] == 200


# Files ----------------------------------------------------------------------------------------------


def chunks(png: bytes) -> dict[bytes, bytes]:
    """The chunks of a PNG, each with a checked CRC; IDAT is joined."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    found: dict[bytes, bytes] = {}
    at = 8
    while at < len(png):
        size, kind = struct.unpack_from(">I4s", png, at)
        data = png[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", png, at + 8 + size)[0] == zlib.crc32(kind + data)
        found[kind] = found.get(kind, b"") + data
        at += size + 12
    assert list(found)[-1] == b"IEND"
    return found


@pytest.mark.parametrize("size", list(pictures.PIXELS))
@pytest.mark.parametrize("prompt", ["A calm lake", "", "long " * 500, "\u6e56 \ud800\x00", "x" * 900])
def test_drawn_pictures(size: str, prompt: str) -> None:
    """Any prompt becomes a valid PNG of the right size, the same one each time."""
    pytest.importorskip("PIL")
    pictures.draw.cache_clear()
    png = pictures.draw(prompt, size, 0)
    assert struct.unpack(">II", chunks(png)[b"IHDR"][:8]) == pictures.PIXELS[size]
    pictures.draw.cache_clear()
    assert pictures.draw(prompt, size, 0) == png
    assert pictures.draw(prompt, size, 1) != png


def test_pictures_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Pillow the standard library makes a smaller PNG in the same ratio."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    pictures.draw.cache_clear()
    found = chunks(pictures.draw("A calm lake", "3:2", 0))
    pictures.draw.cache_clear()
    assert struct.unpack(">II", found[b"IHDR"][:8]) == (96, 64)
    assert len(zlib.decompress(found[b"IDAT"])) == 64 * (1 + 96 * 3)


async def test_result_files(session: ClientSession) -> None:
    """A result URL serves a PNG once the task has ended; an invented one is 404."""
    async with Emulator(duration=0.0) as kie:
        call = Client(kie, session)
        (url,) = await call.images(await call.task(size="2:3"))
        status, png = await call.fetch(url)
        assert status == 200
        assert chunks(png)[b"IHDR"]
        assert (await call.fetch(url.replace("_0_", "_1_")))[0] == 404


async def test_leaked_keys(call: Client) -> None:
    """A key that is sent with a file request is recorded; one that is sent to the API is not a leak."""
    (url,) = await call.images(await call.task())
    await call.fetch(url)
    assert call.kie.leaked_keys == []
    await call.fetch(url, headers={"Authorization": "Bearer k"})
    assert call.kie.leaked_keys == [url.removeprefix(call.kie.url)]


async def test_expired_task(call: Client) -> None:
    """After `expire` the result URL is 404 and a signed link still opens it."""
    task_id = await call.task()
    (url,) = await call.images(task_id)
    call.kie.expire(task_id)
    assert (await call.fetch(url))[0] == 404
    answer = await call.sign(task_id, url)
    assert shape(answer) == shape(fixture("download_url_success"))
    assert await call.fetch(answer["data"]) == (200, PNG)


async def test_signed_links_expire(session: ClientSession) -> None:
    """A signed link is good for 20 emulated minutes and for its own file only; then it is 403."""
    async with ClockedEmulator(duration=0.0, pictures=False) as kie:
        call = Client(kie, session)
        task_id = await call.task(nVariants=2)
        urls = await call.images(task_id)
        link = str((await call.sign(task_id, urls[0]))["data"])
        assert await call.fetch(link) == (200, PNG)
        assert (await call.fetch(link.replace("_0_", "_1_")))[0] == 403
        kie.moment += 1199.9
        assert await call.fetch(link) == (200, PNG)
        kie.moment += 0.1
        assert (await call.fetch(link))[0] == 403
        assert (await call.fetch(urls[0]))[0] == 200


async def test_no_link_to_sign(call: Client) -> None:
    """download-url refuses with Kie's own text for each reason."""
    url = call.kie.url + "/s/x.png"
    assert await call.sign("0" * 32, url) == fixture("download_url_422_record_null")
    call.kie.next(outcome="failed")
    assert await call.sign(await call.task(), url) == fixture("download_url_422_not_success")
    call.kie.next(outcome="no_images")
    assert await call.sign(await call.task(), url) == fixture("download_url_422_result_empty")
    task_id = await call.task()
    assert (await call.sign(task_id, url))["msg"] == "record result data not exist"
    assert (await call.sign("", url))["code"] == 422
    assert (await call("POST", f"{API}/download-url", data=b""))[1]["code"] == 401


def test_images_are_kept_for_14_days() -> None:
    """After 14 days no link is signed."""
    kie = Account(duration=0.0)
    task_id = kie.submit(dict(LAKE), 0.0).data["taskId"]
    (path,) = kie.tasks[task_id].files(1.0)
    assert kie.may_sign(task_id, path, 14 * 86_400 - 1).code == 200
    late = kie.may_sign(task_id, path, 14 * 86_400)
    assert late.msg == fixture("download_url_422_14_days")["msg"]


async def test_common_download_url(call: Client) -> None:
    """Only URLs of the emulator's files are signed."""
    path = "/api/v1/common/download-url"
    (url,) = await call.images(await call.task())
    status, answer = await call("POST", path, json={"url": url})
    assert (status, shape(answer)) == (200, shape(fixture("common_download_success")))
    assert await call.fetch(answer["data"]) == (200, PNG)
    for wrong in ("https://example.com/a.png", call.kie.url + "/s/other.png", None):
        assert await call("POST", path, json={"url": wrong}) == (200, fixture("common_download_422"))


# Faults, in real time: see test_faults.py, test_fault_delivery.py and test_faults_in_the_client.py -----


@pytest.mark.parametrize("options", [{"reset": "before"}, {"reset": "after"}, {"cut": 20}, {"drip": 0.1}])
async def test_faults_of_the_connection(session: ClientSession, options: dict[str, Any]) -> None:
    """On any event loop and in real time a connection breaks, or is slow, once."""
    async with Emulator(clock="real") as kie:
        call = Client(kie, session)
        kie.fault("submit", **options)  # type: ignore[arg-type]  # from a table
        start = kie.now()
        if "drip" in options:
            assert (await call.submit())[1]["code"] == 200
            assert kie.now() - start >= 0.09
        else:
            with pytest.raises(ClientConnectionError):
                await call.submit()
        assert kie.unused() == []
        assert (await call.submit())[1]["code"] == 200


async def test_connections_are_refused_in_real_time(session: ClientSession) -> None:
    """The emulator comes back on the same port, after emulated seconds."""
    async with Emulator(speed=100.0) as kie:
        call, url = Client(kie, session), kie.url
        kie.fault("credits", refuse=20.0)
        with pytest.raises(ClientConnectionError):
            await call("GET", "/api/v1/chat/credit")
        await asyncio.sleep(0.3)
        assert (await call("GET", "/api/v1/chat/credit"))[1]["data"] == 1000
        assert kie.url == url


# Uploads --------------------------------------------------------------------------------------------


def form(**fields: str | bytes) -> FormData:
    data = FormData()
    for name, value in fields.items():
        data.add_field(name, value, filename="local.png" if isinstance(value, bytes) else None)
    return data


@pytest.mark.parametrize("kind", ["base64", "stream", "url"])
async def test_uploads(call: Client, kind: str) -> None:
    """Each kind of upload is answered as recorded, and its downloadUrl serves the file."""
    where = {"uploadPath": "images/sdk", "fileName": f"sample-{kind}.png"}
    how: dict[str, dict[str, Any]] = {
        "base64": {"json": {"base64Data": base64.b64encode(PNG).decode(), **where}},
        "stream": {"data": form(file=PNG, **where)},
        "url": {"json": {"fileUrl": "https://example.com/a.png", **where}},
    }
    status, answer = await call("POST", f"/api/file-{kind}-upload", **how[kind])
    recorded = fixture(f"upload_{kind}_success_real")
    assert (status, shape(answer)) == (200, shape(recorded))
    same = ("success", "fileName", "filePath", "fileSize", "mimeType")
    assert {key: answer["data"][key] for key in same} == {key: recorded["data"][key] for key in same}
    assert len(answer["data"]["uploadedAt"]) == len(recorded["data"]["uploadedAt"])
    assert await call.fetch(answer["data"]["downloadUrl"]) == (200, PNG)


async def test_upload_details(call: Client) -> None:
    """Data URLs are decoded, missing names are generated, spaces are kept, the same name overwrites."""
    data = {"base64Data": "data:image/png;base64," + base64.b64encode(PNG).decode(), "uploadPath": "/a b/"}
    _, answer = await call("POST", "/api/file-base64-upload", json=data)
    assert answer["data"]["fileName"].endswith(".png")
    assert answer["data"]["filePath"].startswith("kieai/10001/a b/")
    assert await call.fetch(answer["data"]["downloadUrl"]) == (200, PNG)
    data["uploadPath"] = "\ud800"
    assert (await call("POST", "/api/file-base64-upload", json=data))[0] == 200
    for content in (b"old", b"new"):
        how = form(file=content, uploadPath="a", fileName="notes.txt")
        _, answer = await call("POST", "/api/file-stream-upload", data=how)
    assert answer["data"]["mimeType"] == "text/plain"
    assert await call.fetch(answer["data"]["downloadUrl"]) == (200, b"new")


async def test_upload_from_own_url(session: ClientSession) -> None:
    """A URL of the emulator is read from its own files; one without a file is an error."""
    async with Emulator(duration=0.0) as kie:
        call = Client(kie, session)
        (url,) = await call.images(await call.task())
        how = {"fileUrl": url, "uploadPath": "a", "fileName": "b.png"}
        _, answer = await call("POST", "/api/file-url-upload", json=how)
        assert (await call.fetch(answer["data"]["downloadUrl"])) == await call.fetch(url)
        _, answer = await call("POST", "/api/file-url-upload", json=how | {"fileUrl": kie.url + "/s/x.png"})
        assert shape(answer) == shape(fixture("upload_400_missing_fileUrl"))


async def test_upload_refusals(call: Client) -> None:
    """A missing uploadPath is HTTP 400; a missing fileUrl is code 400 in HTTP 200, as recorded."""
    for kind in ("base64", "url"):
        answer = await call("POST", f"/api/file-{kind}-upload", json={"base64Data": "AA==", "fileUrl": "x"})
        assert answer == (400, fixture("upload_400_missing_uploadPath"))
    answer = await call("POST", "/api/file-stream-upload", data=form(file=PNG))
    assert answer == (400, fixture("upload_400_missing_uploadPath"))
    answer = await call("POST", "/api/file-url-upload", json={"uploadPath": "a"})
    assert answer == (200, fixture("upload_400_missing_fileUrl"))
    answer = await call("POST", "/api/file-base64-upload", json={"uploadPath": "a", "base64Data": "?"})
    assert answer == (400, fixture("upload_400_bad_base64"))
    assert (await call("POST", "/api/file-stream-upload", data=form(uploadPath="a")))[1]["code"] == 400
    how: dict[str, Any] = {"data": b"?", "headers": {"Content-Type": "multipart/form-data"}}
    assert (await call("POST", "/api/file-stream-upload", **how))[0] == 400


@pytest.mark.parametrize("field", ['name="\x17"', 'name="a"\r\nContent-Transfer-Encoding: zip'])
async def test_a_broken_form_is_refused(call: Client, field: str) -> None:
    """A form that cannot be read has no fields: it is refused, and is no error of the server."""
    form = f"--b\r\nContent-Disposition: form-data; {field}\r\n\r\nx\r\n--b--\r\n".encode()
    how: dict[str, Any] = {"data": form, "headers": {"Content-Type": "multipart/form-data; boundary=b"}}
    answer = await call("POST", "/api/file-stream-upload", **how)
    assert answer == (400, fixture("upload_400_missing_uploadPath"))


# The server -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", f"{API}/generate", 405)]
)
async def test_unknown_path(call: Client, method: str, path: str, status: int) -> None:
    """An unknown path is answered as Spring does, without `code` and `msg`."""
    answered, body = await call(method, path)
    assert answered == status
    assert body.keys() == {"timestamp", "status", "error", "path"}
    assert len(call.kie.submits) == 0


async def test_what_is_counted(call: Client) -> None:
    """Requests are counted by route, and the User-Agents are recorded."""
    await call.images(await call.task())
    await call("GET", "/api/v1/chat/credit", headers={"User-Agent": "kie4o/1"})
    assert call.kie.requests == {f"{API}/generate": 1, f"{API}/record-info": 1, "/api/v1/chat/credit": 1}
    assert "kie4o/1" in call.kie.user_agents
    assert call.kie.url == f"http://127.0.0.1:{call.kie.port}"


@pytest.mark.parametrize("turns", range(6))
async def test_closing_closes_what_was_just_accepted(turns: int) -> None:
    """Whatever the turn of the loop in which the emulator closes, it ends a connection made before."""
    connection = socket.socket()
    with connection:
        connection.setblocking(False)
        async with Emulator() as kie:
            connection.connect_ex((kie.host, kie.port))
            for _ in range(turns):
                await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""  # BlockingIOError if it is still open


async def test_closing_is_quick(session: ClientSession) -> None:
    """Closing does not wait for open requests; the port is closed until the emulator is started again."""
    kie = Emulator(latency=600.0)
    async with kie:
        slow = asyncio.create_task(Client(kie, session).submit())
        await until(lambda: kie.paid == 1)
        start = time.monotonic()
    assert time.monotonic() - start < 1.0
    with pytest.raises(ClientConnectionError):
        await slow
    url = kie.url
    with pytest.raises(ClientConnectionError):
        await Client(kie, session)("GET", "/api/v1/chat/credit")
    await kie.start()
    assert (kie.url, (await Client(kie, session)("GET", "/api/v1/chat/credit"))[1]["data"]) == (url, 994)
    await kie.aclose()
    await kie.aclose()


async def test_messages_cover_the_codes() -> None:
    """Every code that Kie lists has a text."""
    assert {400, 401, 402, 404, 408, 422, 429, 430, 433, 451, 455, 500, 501, 505, 531, 550} <= MESSAGES.keys()


async def run_main(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "kie4o.emulator", *arguments),
        cwd=IMPORT_ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        **interruptible(),
    )


@pytest.mark.posix("SIGINT for a child process")
async def test_main(session: ClientSession) -> None:
    """The program prints its address and the variables for a client, and Ctrl-C ends it with status 0."""
    async with asyncio.timeout(PATIENCE):
        process = await run_main("--port", "0", "--outcome", "failed", "--duration", "0", "--quiet")
        assert process.stdout
        lines = [(await process.stdout.readline()).decode() for _ in range(2)]
        url = next(word for word in lines[0].split() if word.startswith("http://127.0.0.1:"))
        assert lines[1] == f"export KIE_BASE_URL={url} KIE_UPLOAD_URL={url} KIE_API_KEY=anything\n"
        async with session.get(
            url + "/api/v1/chat/credit", headers={"Authorization": "Bearer k"}
        ) as response:
            assert (await response.json())["data"] == 1000
        process.send_signal(signal.SIGINT)
        assert await process.communicate() == (b"", b"")
        assert process.returncode == 0


async def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    """At each turn of the loop until it is over, also where the socket listens already."""
    before, over = open_sockets(), False
    for turns in range(100):
        kie = Emulator()
        starting = asyncio.create_task(kie.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        over = starting.done()
        starting.cancel()
        await asyncio.wait([starting])
        await kie.aclose()
        assert open_sockets() == before, turns
        if over:
            break
    assert over


@pytest.mark.parametrize("wrong", ["port", "speed"])
async def test_main_says_what_is_wrong(wrong: str) -> None:
    """A port that is in use or a speed of 0 is one line on stderr and status 2."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = {
            "port": ("--port", str(taken.getsockname()[1])),
            "speed": ("--port", "0", "--speed", "0"),
        }
        async with asyncio.timeout(PATIENCE):
            process = await run_main(*arguments[wrong])
            out, err = await process.communicate()
    assert (out, process.returncode) == (b"", 2)
    assert err.startswith(b"kie4o.emulator: ")
    assert err.count(b"\n") == 1
