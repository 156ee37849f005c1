"""The callbacks of the emulator, received in this process, and submits whose answer is lost."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import ClientSession, ClientTimeout, ServerDisconnectedError, web
from paths import FIXTURES
from portable import PATIENCE, running_tasks
from serving import LoopbackServer

from kie4o.callbacks import parse_callback
from kie4o.emulator import Call, CallRecord, Emulator, Fault
from kie4o.emulator.callbacks import CALLS, CONTENTS, REPEAT_DELAYS, sign
from kie4o.emulator.magic import as_fault
from kie4o.emulator.sender import CANCELLED, NOT_SENT, loopback_url
from kie4o.errors import InvalidSignatureError

API = "/api/v1/gpt4o-image"
LAKE = {"prompt": "A calm lake", "size": "1:1"}
KEY = "example-webhook-key-not-a-secret"
EARLY = time.get_clock_info("monotonic").resolution  # asyncio calls a timer up to this many seconds early
EVIL = ["https://evil.example/x.png"]
Reply = Callable[[web.Request], Awaitable[web.StreamResponse]]


def fixture(name: str) -> Any:
    return json.loads((FIXTURES / name).read_text("utf-8"))


def shape(value: Any) -> Any:
    """Keys and JSON types, recursively."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return type(value).__name__


class Receiver:
    """Keeps what is posted to it, and answers with the next of `statuses`; the last one repeats."""

    def __init__(self) -> None:
        self.statuses = [200]
        self.reply: Reply | None = None
        self.posts: list[tuple[dict[str, str], bytes]] = []
        self.times: list[float] = []
        self.methods: set[str] = set()
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.methods.add(f"{request.method} {request.path_qs}")
        self.times.append(time.monotonic())
        self.posts.append((dict(request.headers), await request.read()))
        if self.reply:
            return await self.reply(request)
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return web.Response(status=status, headers={"Location": "/elsewhere"} if status == 307 else None)

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, body in self.posts]


@asynccontextmanager
async def receiving(handler: Reply) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.01, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def hook() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    async with receiving(receiver.handle) as url:
        receiver.url = f"{url}/kie?ref=abc%2Bd"
        yield receiver


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession(timeout=ClientTimeout(20), headers={"Authorization": "Bearer k"}) as session:
        yield session


def emulator(**settings: Any) -> Emulator:
    """A fast emulator, which still gives receivers three real seconds to answer."""
    return Emulator(**{"speed": 100.0, "duration": 0.0, "callback_timeout": 300.0} | settings)


@pytest.fixture
async def kie() -> AsyncIterator[Emulator]:
    async with emulator() as kie:
        yield kie


async def submit(kie: Emulator, session: ClientSession, url: object, **body: Any) -> Any:
    async with session.post(f"{kie.url}{API}/generate", json=LAKE | {"callBackUrl": url} | body) as response:
        return await response.json()


async def task(kie: Emulator, session: ClientSession, url: object, **body: Any) -> str:
    return str((await submit(kie, session, url, **body))["data"]["taskId"])


async def look(kie: Emulator, session: ClientSession, task_id: str) -> Any:
    async with session.get(f"{kie.url}{API}/record-info", params={"taskId": task_id}) as response:
        return (await response.json())["data"]


async def calls(kie: Emulator, number: int) -> list[CallRecord]:
    """Waits for this number of records, then checks that five emulated seconds bring no more."""
    async with asyncio.timeout(PATIENCE):
        while len(kie.callbacks) < number:
            await asyncio.sleep(0.005)
    await asyncio.sleep(5.0 / kie.speed)
    assert len(kie.callbacks) == number
    return kie.callbacks


# What Kie sends -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "name"),
    [("success", "success"), ("policy", "failure_400"), ("input", "failure_451"), ("failed", "failure_500")],
)
async def test_a_callback_is_shaped_as_documented(
    kie: Emulator, session: ClientSession, hook: Receiver, outcome: str, name: str
) -> None:
    """A task that ends is posted: a success with snake_case URLs, a failure with `info` null."""
    kie.next(outcome=outcome)
    task_id = await task(kie, session, hook.url)
    (record,) = await calls(kie, 1)
    ((headers, body),) = hook.posts
    posted, documented = json.loads(body), fixture(f"callback_{name}.json")
    assert shape(posted) == shape(documented)
    assert (posted["code"], posted["data"]["taskId"]) == (documented["code"], task_id)
    assert hook.methods == {"POST /kie?ref=abc%2Bd"}
    assert headers["Content-Type"] == "application/json"
    assert headers["User-Agent"] == "kie4o-emulator"
    assert not {"Authorization", "Cookie", "X-Webhook-Signature"} & headers.keys()
    assert (record.task_id, record.url, record.status, record.error) == (task_id, hook.url, 200, None)
    assert (record.attempt, record.sent, record.message) == (1, True, posted)
    assert record.headers.items() <= headers.items()


async def test_a_callback_agrees_with_the_record(session: ClientSession, hook: Receiver) -> None:
    """A callback is posted once the record shows the outcome, with the same URLs in the same order."""
    records: list[Any] = []

    async def reply(request: web.Request) -> web.Response:
        records.append(await look(kie, session, json.loads(await request.read())["data"]["taskId"]))
        return web.Response()

    hook.reply = reply
    async with emulator(duration=20.0) as kie:
        task_id = await task(kie, session, hook.url, nVariants=4)
        (record,) = await calls(kie, 1)
        assert record.at - kie.tasks[task_id].created >= 20.0
        assert records[0]["status"] == "SUCCESS"
        assert record.message["data"]["info"]["result_urls"] == records[0]["response"]["resultUrls"]
        assert len(record.message["data"]["info"]["result_urls"]) == 4


@pytest.mark.parametrize(("outcome", "images"), [("partial", 3), ("no_images", 0)])
async def test_fewer_images(
    kie: Emulator, session: ClientSession, hook: Receiver, outcome: str, images: int
) -> None:
    """A success with fewer images, or none, is reported as that success."""
    kie.next(outcome=outcome)
    await task(kie, session, hook.url, nVariants=4)
    (record,) = await calls(kie, 1)
    assert (record.message["code"], len(record.message["data"]["info"]["result_urls"])) == (200, images)


@pytest.mark.parametrize("vector", fixture("webhook_vectors.json")["vectors"])
def test_signature_vectors(vector: dict[str, str]) -> None:
    """The signature matches the worked examples: base64 of HMAC-SHA256 over id, dot and timestamp."""
    for key in (vector["key"], vector["key"].encode()):
        headers = sign(vector["task_id"], key=key, timestamp=int(vector["timestamp"]))
        assert headers["X-Webhook-Signature"] == vector["signature"]
        assert headers["X-Webhook-Timestamp"] == vector["timestamp"]


async def test_a_signed_callback(session: ClientSession, hook: Receiver) -> None:
    """With a key callbacks are signed at the wall-clock time, and `parse_callback` verifies them."""
    async with emulator(webhook_key=KEY) as kie:
        await task(kie, session, hook.url)
        await calls(kie, 1)
    ((headers, body),) = hook.posts
    assert parse_callback(body, headers, key=KEY, tolerance=30.0).verified
    with pytest.raises(InvalidSignatureError):
        parse_callback(body, headers, key="another")
    assert KEY not in repr(kie)


async def test_unsigned_on_demand(session: ClientSession, hook: Receiver) -> None:
    """`Call(signed=False)` sends no signature even with a key."""
    async with emulator(webhook_key=KEY, callback=Call(signed=False)) as kie:
        await task(kie, session, hook.url)
        await calls(kie, 1)
    assert not [name for name in hook.posts[0][0] if name.startswith("X-Webhook")]


@pytest.mark.parametrize("url", [None, ""])
async def test_no_url_no_call(kie: Emulator, session: ClientSession, url: str | None) -> None:
    """A task without a callBackUrl posts nothing, and a planned early callback does not end it at once."""
    kie.next(duration=30.0, callback="early")
    await task(kie, session, url)
    await calls(kie, 0)
    assert [one.duration for one in kie.tasks.values()] == [30.0]


@pytest.mark.parametrize("outcome", ["stuck", "missing"])
@pytest.mark.parametrize("callback", ["end", "early"])
async def test_no_end_no_call(
    kie: Emulator, session: ClientSession, hook: Receiver, outcome: str, callback: str
) -> None:
    """A task that never ends posts nothing, and `call_back` refuses it."""
    kie.next(outcome=outcome, callback=callback)
    task_id = await task(kie, session, hook.url)
    await calls(kie, 0)
    with pytest.raises(ValueError, match="never ends"):
        await kie.call_back(task_id)


# Repeats --------------------------------------------------------------------------------------------


async def test_three_repeats(session: ClientSession, hook: Receiver) -> None:
    """A callback that is not answered with 200 is repeated after 5, 10 and 20 s, each time signed anew."""
    hook.statuses = [500, 204, 307]  # another 2xx does not count, and redirects are not followed
    moments = iter(range(1_000, 100_000, 1_000))
    async with emulator(webhook_key=KEY, wall=lambda: next(moments)) as kie:
        await task(kie, session, hook.url)
        records = await calls(kie, 4)
    assert [record.status for record in records] == [500, 204, 307, 307]
    assert [record.attempt for record in records] == [1, 2, 3, 4]
    gaps = [later.at - earlier.at for earlier, later in pairwise(records)]
    assert all(gap >= least - 100.0 * EARLY for gap, least in zip(gaps, REPEAT_DELAYS, strict=True))
    stamps = [int(headers["X-Webhook-Timestamp"]) for headers, _ in hook.posts]
    assert sorted(set(stamps)) == stamps
    assert len({body for _, body in hook.posts}) == 1
    for stamp, (headers, body) in zip(stamps, hook.posts, strict=True):
        assert parse_callback(body, headers, key=KEY, now=stamp).verified


@pytest.mark.parametrize(("repeats", "statuses"), [(3, [503, 200]), (1, [503]), (0, [503])])
async def test_repeats_stop(
    kie: Emulator, session: ClientSession, hook: Receiver, repeats: int, statuses: list[int]
) -> None:
    """Repeats stop after a 200, and after `repeats` of them."""
    hook.statuses = list(statuses)
    kie.next(callback=Call(repeats=repeats))
    await task(kie, session, hook.url)
    await calls(kie, 2 if repeats else 1)
    assert len(hook.posts) == (2 if repeats else 1)


async def test_a_late_answer_does_not_count(session: ClientSession, hook: Receiver) -> None:
    """An answer after 15 s does not count: the callback is sent again."""

    async def reply(request: web.Request) -> web.Response:
        if len(hook.posts) == 1:
            await asyncio.sleep(2.0)
        return web.Response()

    hook.reply = reply
    async with Emulator(speed=50.0, duration=0.0) as kie:  # 15 s in 0.3 s
        await task(kie, session, hook.url)
        late, taken = await calls(kie, 2)
    assert (late.status, late.error, taken.status) == (None, "no answer within 15 s", 200)
    assert taken.at - late.at >= 15.0 + REPEAT_DELAYS[0] - 2 * 50.0 * EARLY


class Odd(LoopbackServer):
    """A receiver that sends these bytes, and the last ones again and again."""

    def __init__(self, *pieces: bytes, forever: bytes = b"") -> None:
        self.pieces = pieces
        self.forever = forever

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.writelines(self.pieces)
        while self.forever:
            writer.write(self.forever)
            await writer.drain()
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("pieces", "forever", "status", "error"),
    [
        ((), b"", None, "ServerDisconnectedError"),
        ((b"hello\r\n\r\n",), b"", None, "ClientResponseError"),
        ((b"HTTP/1.1 200 OK\r\n",), b"X: y\r\n", None, "no answer within|ClientResponseError"),
        ((b"HTTP/1.1 100 Continue\r\n\r\n",), b"HTTP/1.1 100 Continue\r\n\r\n", None, "no answer within"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",), b"x" * 65536, 200, None),
    ],
)
async def test_odd_receivers(
    session: ClientSession, pieces: tuple[bytes, ...], forever: bytes, status: int | None, error: str | None
) -> None:
    """Receivers that close the connection, send garbage or never finish are recorded, in bounded time."""
    odd = Odd(*pieces, forever=forever)
    async with odd, emulator(callback_timeout=100.0, callback=Call(repeats=0)) as kie:
        await task(kie, session, odd.url)
        (record,) = await calls(kie, 1)
    assert record.status == status
    assert record.error == error or any(str(record.error).startswith(one) for one in str(error).split("|"))


async def test_a_refused_connection(session: ClientSession) -> None:
    """A refused connection is recorded and repeated like any failed attempt."""
    async with Odd() as closed:
        pass
    async with emulator(callback=Call(repeats=1)) as kie:
        await task(kie, session, closed.url)
        records = await calls(kie, 2)
    assert [record.status for record in records] == [None, None]
    assert all("ClientConnectorError" in str(record.error) for record in records)


# This machine only ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["https://example.com/hook", "http://10.0.0.1/", "http://0.0.0.0/", "http://127.0.0.1.example.com/",
     "http://127.1/", "http://2130706433/", "http://localhost.example.com/", "http://[::2]/",
     "http://127.0.0.1@example.com/", "http://example.com#127.0.0.1", "ftp://127.0.0.1/", "file:///etc/passwd",
     "//127.0.0.1/", "127.0.0.1", "localhost", "http://", "http://127.0.0.1:99999/", "http://[::1",
     "?", "\ud800"],
)  # fmt: skip
async def test_other_machines_are_not_contacted(kie: Emulator, session: ClientSession, url: str) -> None:
    """No URL leads to another machine: the record says that nothing was sent."""
    assert loopback_url(url) is None
    await task(kie, session, url)
    (record,) = await calls(kie, 1)
    assert (record.sent, record.status, record.error, record.url) == (False, None, NOT_SENT, url)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://127.8.9.1:8000/a", "https://localhost/", "HTTP://LOCALHOST/", "http://[::1]:1/"],
)  # fmt: skip
def test_this_machine(url: str) -> None:
    """IPv4 and IPv6 loopback addresses are accepted, and `localhost`."""
    assert loopback_url(url) is not None


async def test_a_name_and_a_login(kie: Emulator, session: ClientSession, hook: Receiver) -> None:
    """`localhost` needs no name server, and a login in the URL sends no Authorization header."""
    url = hook.url.replace("127.0.0.1", "user:pass@localhost")
    await task(kie, session, url)
    (record,) = await calls(kie, 1)
    assert (record.status, record.url) == (200, url)
    assert "Authorization" not in hook.posts[0][0]


# When, and how often --------------------------------------------------------------------------------


async def test_never_and_twice(kie: Emulator, session: ClientSession, hook: Receiver) -> None:
    """A plan is for one task: the first calls back never, the second twice, the third once."""
    kie.plan(LAKE["prompt"], callback="never")
    kie.plan(LAKE["prompt"], callback="twice")
    ids = [await task(kie, session, hook.url) for _ in range(3)]
    await calls(kie, 3)
    called_back = [body["data"]["taskId"] for body in hook.bodies]
    assert [called_back.count(task_id) for task_id in ids] == [0, 2, 1]


async def test_each_copy_is_repeated_alone(kie: Emulator, session: ClientSession, hook: Receiver) -> None:
    """Of three copies only the refused one is repeated."""
    hook.statuses = [200, 503, 200]
    kie.next(callback=Call(copies=3))
    await task(kie, session, hook.url)
    records = await calls(kie, 4)
    assert sorted(record.attempt for record in records) == [1, 1, 1, 2]


async def test_late(session: ClientSession, hook: Receiver) -> None:
    """A late callback is posted 30 s after the task ended."""
    async with emulator(duration=10.0, callback="late") as kie:
        task_id = await task(kie, session, hook.url)
        (record,) = await calls(kie, 1)
        assert record.at - kie.tasks[task_id].created >= 40.0 - 2 * 100.0 * EARLY


async def test_early(session: ClientSession, hook: Receiver) -> None:
    """An early callback is answered before its submit, and its task has ended whatever its duration."""
    answered: list[float] = []

    async def reply(request: web.Request) -> web.Response:
        await asyncio.sleep(0.05)
        answered.append(time.monotonic())
        return web.Response()

    hook.reply = reply
    async with emulator(duration=1e6, callback="early") as kie:
        task_id = await task(kie, session, hook.url)
        submitted = time.monotonic()
        (record,) = await calls(kie, 1)
        assert answered[0] < submitted
        assert record.message["data"]["taskId"] == task_id
        assert (await look(kie, session, task_id))["status"] == "SUCCESS"


async def test_early_copies_and_replays(session: ClientSession, hook: Receiver) -> None:
    """All copies and replays of an early callback are posted before the submit is answered."""
    async with emulator(webhook_key=KEY) as kie:
        kie.next(callback=Call("early", copies=3, content="replayed"))
        await task(kie, session, hook.url)
        assert len(hook.posts) == 12
        await calls(kie, 12)


async def test_early_delays_its_submit_for_15_s_at_most(session: ClientSession, hook: Receiver) -> None:
    """A submit waits 15 s at most for its early callback, and not for repeats after a refusal."""

    async def hang(request: web.Request) -> web.Response:
        await asyncio.sleep(3600)
        raise AssertionError

    async with Emulator(speed=50.0, duration=0.0) as kie:
        hook.statuses = [503, 200]
        kie.next(callback="early")
        await task(kie, session, hook.url)
        assert len(hook.posts) == 1
        assert len(await calls(kie, 2)) == 2
        hook.reply = hang
        kie.next(callback="early")
        start = kie.now()
        await task(kie, session, hook.url)
        assert 15.0 <= kie.now() - start < 300.0


@pytest.mark.parametrize("latency", [0.0, 20.0])
async def test_together(session: ClientSession, hook: Receiver, latency: float) -> None:
    """The callback is posted at the moment the submit is answered; neither waits for the other."""
    async with emulator(duration=1e6, callback="together", latency=latency) as kie:
        task_id = await task(kie, session, hook.url)
        answered = kie.now()
        (record,) = await calls(kie, 1)
        assert record.at - kie.tasks[task_id].created >= latency
        assert record.at - answered < 300.0
        assert (await look(kie, session, task_id))["status"] == "SUCCESS"


async def test_a_callback_before_a_slow_answer(session: ClientSession, hook: Receiver) -> None:
    """A task that ends before its submit is answered calls back before that."""
    async with emulator(duration=1.0, latency=100.0) as kie:
        submitting = asyncio.create_task(task(kie, session, hook.url))
        (record,) = await calls(kie, 1)
        assert not submitting.done()
        assert await submitting == record.task_id


# Forged and other contents --------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["success", "failed"])
@pytest.mark.parametrize("content", CONTENTS)
async def test_contents(session: ClientSession, hook: Receiver, content: str, outcome: str) -> None:
    """Each content has the images, the task id and the signature that its name says."""
    async with emulator(webhook_key=KEY, callback=content) as kie:
        kie.next(outcome=outcome)
        task_id = await task(kie, session, hook.url)
        records = await calls(kie, 4 if content == "replayed" else 1)
    assert {record.task_id for record in records} == {task_id}
    headers, body = hook.posts[0]
    posted = json.loads(body)
    info = posted["data"]["info"]
    urls = {200: info and info["result_urls"], 500: info}[posted["code"]]
    true = outcome == "success" and content in ("true", "replayed")
    assert (urls == EVIL) == (content in ("altered", "forged", "unknown task"))
    assert bool(urls and task_id in urls[0]) == true
    assert (posted["data"]["taskId"] == task_id) == (content != "unknown task")
    if content == "forged":
        with pytest.raises(InvalidSignatureError):
            parse_callback(body, headers, key=KEY)
    else:
        assert parse_callback(body, headers, key=KEY).verified
    assert all(post == hook.posts[0] for post in hook.posts)  # a replay, to the byte


async def test_forged_is_signed_without_a_key(kie: Emulator, session: ClientSession, hook: Receiver) -> None:
    """Without `webhook_key` true callbacks are unsigned; forged ones are signed with another key."""
    for number, content in enumerate(("true", "forged"), 1):
        kie.next(callback=content)
        await task(kie, session, hook.url)
        await calls(kie, number)
    assert ["X-Webhook-Signature" in headers for headers, _ in hook.posts] == [False, True]


async def test_by_hand(session: ClientSession, hook: Receiver) -> None:
    """`call_back` posts any content at any time, to the task's URL or another, and does not repeat it."""
    hook.statuses = [503, 200]
    async with emulator(duration=1e6) as kie:
        task_id = await task(kie, session, hook.url)
        record = await kie.call_back(task_id, "false failure")
        assert (record.status, record.message["code"]) == (503, 500)
        assert (await look(kie, session, task_id))["status"] == "GENERATING"
        true = await kie.call_back(task_id, url=f"{hook.url}&other=1")
        assert true.message["data"]["info"]["result_urls"][0].startswith(kie.url)
        assert "POST /kie?ref=abc%2Bd&other=1" in hook.methods
        assert await calls(kie, 2) == [record, true]
        assert not (await kie.call_back(task_id, url="https://example.com/")).sent
        alone = await task(kie, session, None)
        with pytest.raises(ValueError, match="callBackUrl"):
            await kie.call_back(alone)
        with pytest.raises(ValueError, match="content"):
            await kie.call_back(task_id, "misspelt")
        with pytest.raises(KeyError):
            await kie.call_back("0" * 32)


# Answers that do not arrive -------------------------------------------------------------------------


@pytest.mark.parametrize("callback", ["end", "early", "together"])
async def test_a_lost_answer(
    kie: Emulator, session: ClientSession, hook: Receiver, caplog: pytest.LogCaptureFixture, callback: str
) -> None:
    """The task is created, charged and called back; its submit receives no byte, and nothing is logged."""
    kie.next(answer="dropped", callback=callback)
    with pytest.raises(ServerDisconnectedError):
        await submit(kie, session, hook.url)
    (record,) = await calls(kie, 1)
    assert (len(kie.submits), kie.paid, kie.credits) == (1, 1, 994.0)
    assert [record.task_id] == list(kie.tasks)
    assert (await submit(kie, session, None))["code"] == 200
    assert not [one for one in caplog.records if one.levelname != "DEBUG"]


async def test_a_dropped_connection_without_a_task(kie: Emulator, session: ClientSession) -> None:
    """With `charged=False` the answer is lost and no task is created."""
    kie.next(answer=Fault("submit", cut=0, charged=False))
    with pytest.raises(ServerDisconnectedError):
        await submit(kie, session, None)
    assert (len(kie.submits), kie.paid, kie.credits) == (1, 0, 1000.0)


@pytest.mark.parametrize("task_created", [True, False])
async def test_an_answer_without_an_envelope(
    kie: Emulator, session: ClientSession, task_created: bool
) -> None:
    """A raw answer replaces the envelope, whether a task was created or not."""
    page = (FIXTURES / "html_502.html").read_bytes()
    kie.next(answer=Fault("submit", body=page, http_status=502, charged=task_created))
    async with session.post(f"{kie.url}{API}/generate", json=LAKE) as response:
        assert (response.status, response.content_type) == (502, "text/html")
        assert await response.read() == page
    assert kie.paid == task_created


# Closing, and wrong settings ------------------------------------------------------------------------


async def test_nothing_is_left_over(session: ClientSession, hook: Receiver) -> None:
    """Closing cancels every callback: scheduled, being posted, waiting for a repeat, or delaying a submit."""

    async def hang(request: web.Request) -> web.Response:
        await asyncio.sleep(3600)
        raise AssertionError

    before = running_tasks()
    async with Emulator(callback=Call(repeats=3)) as kie:
        kie.next(duration=3600.0)
        await task(kie, session, hook.url)
        hook.statuses = [503]
        kie.next(duration=0.0)
        await task(kie, session, hook.url)
        while not kie.callbacks:
            await asyncio.sleep(0.005)
        hook.reply = hang
        kie.next(callback="early")
        held = asyncio.create_task(submit(kie, session, hook.url))
        while len(hook.posts) < 2:
            await asyncio.sleep(0.005)
        start = time.monotonic()
    assert time.monotonic() - start < 1.0
    with pytest.raises(ServerDisconnectedError):
        await held
    assert [record.error for record in kie.callbacks] == [None, CANCELLED]
    left = {one for one in running_tasks() - before if "web_protocol" not in repr(one)}
    assert not left
    await kie.aclose()


async def test_callbacks_do_not_wait_for_one_another(session: ClientSession, hook: Receiver) -> None:
    """While 150 callbacks hang, one more is answered at once."""

    async def reply(request: web.Request) -> web.Response:
        if len(hook.posts) <= 150:
            await asyncio.sleep(3600)
        return web.Response()

    hook.reply = reply
    async with Emulator(
        clock="real", duration=0.0
    ) as kie:  # connects to more than the backlog of the receiver
        kie.next(callback=Call(copies=150))
        await task(kie, session, hook.url)
        async with asyncio.timeout(PATIENCE):
            while len(hook.posts) < 150:
                await asyncio.sleep(0.005)
            await task(kie, session, hook.url)
            while not kie.callbacks:
                await asyncio.sleep(0.005)
        assert [record.status for record in kie.callbacks] == [200]


def test_wrong_settings() -> None:
    """A misspelt name or a number out of range is refused at once."""
    with pytest.raises(ValueError, match="invalid callback='sometimes': expected a Call"):
        Emulator(callback="sometimes")
    with pytest.raises(ValueError, match="callback='progress'"):
        Emulator().next(callback="progress")
    with pytest.raises(ValueError, match="invalid answer='lost': expected a Fault"):
        Emulator().plan("A calm lake", answer="lost")
    for wrong in ({"when": "soon"}, {"copies": 0}, {"repeats": 4}, {"delay": -1.0}, {"content": "x"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Call(**wrong)
    with pytest.raises(ValueError, match="callback_timeout"):
        Emulator(callback_timeout=0.0)


def test_names_of_common_calls() -> None:
    """Every content is the name of a call too; a code names an answer, and so does "dropped"."""
    assert CALLS.keys() == {"end", "never", "twice", "late", "early", "together", *CONTENTS}
    assert CALLS["end"] == CALLS["true"] == Call()
    assert as_fault("dropped") == Fault("submit", cut=0)
    assert as_fault(429) == Fault("submit", code=429)
    assert as_fault(None) is None
