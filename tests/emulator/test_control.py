"""The control of an emulator over HTTP: what it shows, what it does, and whom it refuses."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from clients import client_of, passed, until

from kie4o.emulator import Account, Emulator, control

LAKE = {"prompt": "A calm lake", "size": "1:1"}


class Control:
    """A client of the control of one emulator, and of Kie itself."""

    def __init__(self, kie: Emulator, session: ClientSession) -> None:
        self.kie, self.session = kie, session

    async def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        how: dict[str, Any] = {} if method == "GET" else {"json": {} if body is None else body}
        async with self.session.request(method, self.kie.url + path, headers=headers, **how) as response:
            assert "Access-Control-Allow-Origin" not in response.headers
            return response.status, await response.json()

    async def state(self) -> Any:
        status, state = await self("GET", "/-/state")
        assert status == 200
        return state

    async def post(self, path: str, **body: Any) -> Any:
        status, answer = await self("POST", f"/-/{path}", body)
        assert status == 200, answer
        return answer

    async def refused(self, path: str, **body: Any) -> str:
        status, answer = await self("POST", f"/-/{path}", body)
        assert status == 400, answer
        return str(answer["error"])

    async def submit(self, key: str = "k", **body: Any) -> Any:
        headers = {"Authorization": f"Bearer {key}"}
        url = f"{self.kie.url}/api/v1/gpt4o-image/generate"
        async with self.session.post(url, json=LAKE | body, headers=headers) as response:
            return await response.json()

    async def task(self, **body: Any) -> str:
        return str((await self.submit(**body))["data"]["taskId"])


@pytest.fixture
async def kie() -> AsyncIterator[Emulator]:
    async with Emulator(webhook_key="w", pictures=False) as kie:
        yield kie


@pytest.fixture
async def call(kie: Emulator) -> AsyncIterator[Control]:
    async with ClientSession() as session:
        yield Control(kie, session)


@pytest.fixture
async def hook() -> AsyncIterator[tuple[str, list[Any]]]:
    """The URL of a receiver of callbacks, and what it has received."""
    received: list[Any] = []

    async def receive(request: web.Request) -> web.Response:
        received.append(await request.json())
        return web.Response()

    app = web.Application()
    app.router.add_post("/", receive)
    async with TestServer(app) as server:
        yield f"http://127.0.0.1:{server.port}/", received


# -- what it shows ---------------------------------------------------------------------------------


async def test_state(call: Control, hook: tuple[str, list[Any]], api_key: str) -> None:
    """It tells money, windows, tasks, submits with what was asked, callbacks, faults and time; no key."""
    url, _ = hook
    call.kie.fault("submit", code=455, prompt="x", times=2)
    await call.submit(api_key, size="7:7")
    task_id = (await call.submit(api_key, nVariants=2, callBackUrl=f"{url}?kie4o_ref=" + "r" * 22))["data"]
    await passed(call.kie, 21)
    state = await call.state()
    assert (state["paid"], state["spent"], state["credits"]) == (1, 12, 988)
    assert (state["windows"], state["prices"]) == ({"submit": 1, "look": 0}, {"1": 6, "2": 12, "4": 24})
    assert state["answers"] == {"submit": {"200": 1, "422": 1}, "look": {}}
    assert state["faults"] == [
        {"fault": "fault('submit', times=2, prompt='x', code=455)", "seen": 0, "fired": 0}
    ]
    assert (state["time"]["clock"], state["time"]["speed"]) == (call.kie.clock, 1.0)
    refused, accepted = state["submits"]
    assert (refused["request"]["size"], refused["code"], refused["task_id"]) == ("7:7", 422, None)
    assert (accepted["ref"], accepted["task_id"]) == ("r" * 22, task_id["taskId"])
    [task] = state["tasks"]
    assert task["request"] == accepted["request"]
    assert (task["task_id"], task["state"], task["price"]) == (task_id["taskId"], "succeeded", 12)
    assert (len(task["images"]), task["callbacks"]) == (2, [200])
    [sent] = state["callbacks"]
    assert (sent["status"], sent["body"]["data"]["taskId"]) == (200, task_id["taskId"])
    assert api_key not in json.dumps(state)


async def test_what_the_control_does_is_not_recorded(call: Control) -> None:
    """It is no request to Kie."""
    await call.state()
    await call.post("reset")
    assert (call.kie.requests, call.kie.user_agents) == ({}, set())


# -- what it does ----------------------------------------------------------------------------------


async def test_reset_and_credits(call: Control) -> None:
    """The credits can be set, and a reset restores those of the beginning."""
    await call.post("credits", credits=6)
    assert [(await call.submit())["code"] for _ in range(2)] == [200, 402]
    await call.post("reset")
    state = await call.state()
    assert (state["credits"], state["tasks"], state["submits"]) == (1000, [], [])


async def test_plans(call: Control) -> None:
    """A plan is for a prompt, or for the next submit; its settings are names, numbers or objects."""
    await call.post("plans", prompt="A calm lake", answer=455)
    await call.post("plans", duration=3, outcome={"kind": "failed", "code": 501, "message": "no"})
    await call.post("plans", outcome="policy", progress="linear", callback={"when": "end", "copies": 2})
    await call.post("plans", answer={"code": 500, "charged": True})
    assert [(await call.submit())["code"] for _ in range(4)] == [455, 200, 200, 500]
    first, second, third = call.kie.tasks.values()
    assert (first.duration, first.outcome.kind, first.outcome.code) == (3, "failed", 501)
    assert (second.outcome.kind, second.progress, second.call.copies) == ("policy", "linear", 2)
    assert (third.outcome.kind, call.kie.paid) == ("success", 3)


async def test_faults(call: Control) -> None:
    """The fields of a fault, as in Python; the state tells how often it has fired."""
    fault = await call.post("faults", kind="submit", code=455, times=2)
    assert fault == {"fault": "fault('submit', times=2, code=455)"}
    assert [(await call.submit())["code"] for _ in range(3)] == [455, 455, 200]
    state = await call.state()
    assert state["faults"] == [fault | {"seen": 3, "fired": 2}]
    assert [submit["fault"] for submit in state["submits"]] == [fault["fault"], fault["fault"], None]
    assert [submit["answered"] for submit in state["submits"]] == [True, True, True]


@pytest.mark.parametrize("body", [{}, {"outcome": "partial"}])
async def test_end_a_task(call: Control, hook: tuple[str, list[Any]], body: dict[str, str]) -> None:
    """It ends now, and its callback is sent now."""
    url, received = hook
    task_id = await call.task(callBackUrl=url, nVariants=2)
    await passed(call.kie, 1)
    ended = await call.post(f"tasks/{task_id}/end", **body)
    assert (ended["state"], len(ended["images"])) == ("succeeded", 1 if body else 2)
    await until(lambda: received)
    assert [body["code"] for body in received] == [200]
    await passed(call.kie, 60)
    assert len(received) == 1
    assert "has ended already" in await call.refused(f"tasks/{task_id}/end")


@pytest.mark.parametrize("outcome", ["stuck", "missing"])
async def test_end_a_task_that_never_ends(call: Control, hook: tuple[str, list[Any]], outcome: str) -> None:
    """It succeeds, and calls back after all."""
    url, received = hook
    call.kie.next(outcome=outcome)
    task_id = await call.task(callBackUrl=url)
    assert "cannot end later" in await call.refused(f"tasks/{task_id}/delay", seconds=5)
    await passed(call.kie, 100)
    assert (await call.post(f"tasks/{task_id}/end"))["state"] == "succeeded"
    await until(lambda: received)
    assert [body["code"] for body in received] == [200]


@pytest.mark.parametrize(("body", "code"), [({}, 500), ({"outcome": "policy"}, 400)])
async def test_fail_a_task(call: Control, body: dict[str, str], code: int) -> None:
    """A client that waits gets the error."""
    async with client_of(call.kie.url) as client:
        task = await client.submit("x")
        assert (await call.post(f"tasks/{task.id}/fail", **body))["state"] == "failed"
        assert (await client.details(task.id)).error_code == code


async def test_delay_a_task(call: Control, hook: tuple[str, list[Any]]) -> None:
    """It ends later, and so comes its callback."""
    url, received = hook
    task_id = await call.task(callBackUrl=url)
    await call.post(f"tasks/{task_id}/delay", seconds=30)
    await passed(call.kie, 49)
    assert ((await call.state())["tasks"][0]["state"], received) == ("running", [])
    await passed(call.kie, 2)
    assert ((await call.state())["tasks"][0]["state"], len(received)) == ("succeeded", 1)


async def test_send_a_callback_again(call: Control, hook: tuple[str, list[Any]]) -> None:
    """The answer tells what became of it."""
    url, received = hook
    task_id = await call.task(callBackUrl=url)
    await passed(call.kie, 21)
    sent = await call.post(f"tasks/{task_id}/callback")
    assert (sent["status"], sent["task_id"]) == (200, task_id)
    assert received == [sent["body"]] * 2
    await call.post(f"tasks/{task_id}/callback", content="false failure", url=url)
    assert received[-1]["code"] == 500
    assert "no callBackUrl" in await call.refused(f"tasks/{await call.task()}/callback")


async def test_time(call: Control, hook: tuple[str, list[Any]]) -> None:
    """Seconds pass at once: tasks end, callbacks are sent, and the window opens."""
    url, received = hook
    call.kie.next(duration=300)
    task_id = await call.task(callBackUrl=url)
    _, before = await call("GET", "/-/time")
    after = await call.post("time", seconds=300)
    assert after["now"] - before["now"] == pytest.approx(300, abs=1)
    [task] = (await call.state())["tasks"]
    assert (task["task_id"], task["state"]) == (task_id, "succeeded")
    await until(lambda: received)
    assert len(received) == 1


async def test_tasks_of_other_accounts() -> None:
    """The control sees the tasks of every account."""
    accounts = {"b": Account(credits=10)}
    async with Emulator(accounts=accounts) as kie, ClientSession() as session:
        call = Control(kie, session)
        task_id = (await call.submit("b"))["data"]["taskId"]
        await call.post(f"tasks/{task_id}/end")
        state = await call.state()
    assert [task["state"] for task in state["tasks"]] == ["succeeded"]
    assert [account["credits"] for account in state["accounts"]] == [1000, 4]


# -- what is wrong ---------------------------------------------------------------------------------

WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "field of reset": ("reset", {"all": True}, "unknown field 'all': expected none"),
    "field of a plan": (
        "plans",
        {"outcom": "policy"},
        "unknown field 'outcom': expected one of prompt, answer, dur",
    ),
    "outcome": (
        "plans",
        {"outcome": "sucess"},
        "invalid outcome='sucess': expected an Outcome, or one of",
    ),
    "outcome of another type": (
        "plans",
        {"outcome": ["x"]},
        "invalid outcome=['x']: expected text or a table",
    ),
    "kind of an outcome": (
        "plans",
        {"outcome": {"code": 1}},
        "invalid outcome={'code': 1}: expected at least kind",
    ),
    "field of an outcome": (
        "plans",
        {"outcome": {"knd": 1}},
        "unknown field of outcome 'knd': expected one of kind",
    ),
    "kind that is none": ("plans", {"outcome": {"kind": "x"}}, "invalid kind='x': expected one of success"),
    "code of an outcome": (
        "plans",
        {"outcome": {"kind": "failed", "code": "x"}},
        "invalid code='x': expected an integer",
    ),
    "when of a callback": (
        "plans",
        {"callback": {"when": {}}},
        "invalid when={}: expected one of end, early, together, never",
    ),
    "delay of a callback": (
        "plans",
        {"callback": {"delay": "x"}},
        "invalid delay='x': expected a number, 0 or more",
    ),
    "duration without end": ("plans", {"duration": 10**400}, "0: expected a number"),
    "credits without end": ("credits", {"credits": 10**400}, "0: expected a number"),
    "progress": ("plans", {"progress": "fast"}, "invalid progress='fast': expected one of jump, linear"),
    "callback": (
        "plans",
        {"callback": "soon"},
        "invalid callback='soon': expected a Call, or one of end, never",
    ),
    "duration": ("plans", {"duration": -1}, "invalid duration=-1: expected a number of seconds, 0 or more"),
    "duration as text": ("plans", {"duration": "3"}, "invalid duration='3': expected a number"),
    "answer": ("plans", {"answer": "lost"}, "expected a Fault, a code, or one of dropped"),
    "answer of another type": (
        "plans",
        {"answer": [1]},
        "invalid answer=[1]: expected a whole number or text or a table",
    ),
    "prompt": ("plans", {"prompt": 3}, "invalid prompt=3: expected text"),
    "credits": ("credits", {"credits": True}, "invalid credits=True: expected a number"),
    "seconds": ("time", {"seconds": 0}, "invalid seconds=0: expected a number above 0"),
    "seconds without end": ("time", {"seconds": 1e999}, "invalid seconds=inf: expected a number above 0"),
    "fault without kind": (
        "faults",
        {"code": 455},
        "a fault without a kind: expected kind to be one of submit",
    ),
    "kind of a fault": ("faults", {"kind": "submits"}, "invalid kind='submits': expected one of submit"),
    "fault of another type": ("faults", {"kind": 7}, "invalid kind=7: expected one of submit"),
    "content": ("tasks/T/callback", {"content": "x"}, "invalid content='x': expected one of true, altered"),
    "outcome that never ends": ("tasks/T/end", {"outcome": "stuck"}, "expected one that ends"),
    "delay": ("tasks/T/delay", {}, "invalid seconds=None: expected a number above 0"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_what_is_wrong_and_what_is_allowed(call: Control, case: str) -> None:
    """The answer is 400, and a sentence with both; nothing is planned or changed."""
    path, body, sentence = WRONG[case]
    task_id = await call.task()
    before = (await call.state())["tasks"][0]
    assert sentence in await call.refused(path.replace("T", task_id), **body)
    after = (await call.state())["tasks"][0]
    assert (after["outcome"], after["end"]) == (before["outcome"], before["end"])
    assert (await call.submit())["code"] == 200
    assert len((await call.state())["tasks"]) == 2


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b"[" * 100_000])
async def test_a_body_that_is_no_object(call: Control, data: bytes) -> None:
    """The answer is 400."""
    headers = {"Content-Type": "application/json"}
    async with call.session.post(f"{call.kie.url}/-/reset", data=data, headers=headers) as response:
        assert (response.status, await response.json()) == (
            400,
            {"error": "the body is no JSON object, such as {}"},
        )


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/-/"), ("GET", "/-/stat"), ("POST", "/-/state"), ("PUT", "/-/reset")]
)
async def test_unknown_paths(call: Control, method: str, path: str) -> None:
    """The answer lists the paths that exist."""
    status, answer = await call(method, path)
    assert status == 404
    assert answer["error"].startswith(f"unknown {method} {path}: expected one of GET /-/state")


async def test_unknown_task(call: Control) -> None:
    """The answer is 404."""
    for action in ("end", "fail", "delay", "callback"):
        status, answer = await call(
            "POST", f"/-/tasks/abc/{action}", {"seconds": 1} if action == "delay" else {}
        )
        assert (status, answer["error"].partition(":")[0]) == (404, "unknown task 'abc'")


# -- whom it refuses -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/-/state", "/-/reset"])
@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Host": "localhost:1"}, True),
        ({"Host": "[::1]:1"}, True),
        ({"Host": "127.0.0.1"}, True),
        ({"Host": "evil.example"}, False),
        ({"Host": "127.0.0.1.evil.example:80"}, False),
        ({"Host": "kie"}, False),
        ({"Host": "["}, False),
        ({"Host": "localhost@evil.example"}, False),
        ({"Host": "192.0.2.1"}, False),
        ({"Host": "127.0.0.1:1", "Origin": "http://127.0.0.1:1"}, True),
        ({"Host": "127.0.0.1:1", "Origin": "http://127.0.0.1:2"}, False),
        ({"Host": "127.0.0.1:1", "Origin": "https://evil.example"}, False),
        ({"Host": "127.0.0.1:1", "Origin": "null"}, False),
    ],
)
async def test_pages_of_other_origins(
    call: Control, path: str, headers: dict[str, str], allowed: bool
) -> None:
    """A Host that is not this machine, as after DNS rebinding, and a foreign Origin are refused."""
    task_id = await call.task()
    status, _ = await call("GET" if path == "/-/state" else "POST", path, **headers)
    assert status == (200 if allowed else 403)
    assert (task_id in call.kie.tasks) is (path == "/-/state" or not allowed)


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None],
)
async def test_forms_of_other_origins(call: Control, content_type: str | None) -> None:
    """What a browser sends to another origin without asking is refused, whatever its headers."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    await call.task()
    url = f"{call.kie.url}/-/reset"
    skip = {"Content-Type"} if content_type is None else set()
    async with call.session.post(url, data=b"{}", headers=headers, skip_auto_headers=skip) as response:
        assert response.status == 415
        assert "expected 'application/json'" in (await response.json())["error"]
    assert call.kie.paid == 1


async def test_no_preflight_is_answered(call: Control) -> None:
    """A browser that asks for another origin gets no permission."""
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    async with call.session.options(f"{call.kie.url}/-/reset", headers=headers) as response:
        assert response.status == 403
        assert not [name for name in response.headers if name.startswith("Access-Control")]


@pytest.mark.parametrize(
    ("host", "allowed"),
    [("kie:8787", True), ("192.0.2.1", True), ("kie.example", False), ("", False)],
)
async def test_other_machines_where_they_are_allowed(host: str, allowed: bool) -> None:
    """With `allow_remote` they name it by an address, or by a name that no page elsewhere has."""
    async with Emulator(allow_remote=True) as kie, ClientSession() as session:
        status, _ = await Control(kie, session)("GET", "/-/state", Host=host)
        assert status == (200 if allowed else 403)


def test_every_action_is_described() -> None:
    """By the first sentence of its docstring."""
    assert all((action.__doc__ or "").strip().endswith(".") for action in control.ROUTES.values())
