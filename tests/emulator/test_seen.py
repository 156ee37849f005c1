"""What the emulator saw and charged: submits, looks, windows, prices, caps and accounts."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession, ServerDisconnectedError
from clients import client_of, passed
from paths import IMPORT_ROOT
from portable import PATIENCE

import kie4o
from kie4o.emulator import Account, Arrival, Emulator, Fault

LAKE = {"prompt": "A calm lake", "size": "1:1"}
SUBMIT, LOOK, CREDIT = (
    f"/api/v1/{path}" for path in ("gpt4o-image/generate", "gpt4o-image/record-info", "chat/credit")
)


class Caller:
    """A plain HTTP client for one emulator."""

    def __init__(self, kie: Emulator, session: ClientSession) -> None:
        self.kie, self.session = kie, session

    async def submit(self, key: str = "k", headers: dict[str, str] | None = None, **body: Any) -> Any:
        headers = {"Authorization": f"Bearer {key}", **(headers or {})}
        url = self.kie.url + SUBMIT
        async with self.session.post(url, json=LAKE | body, headers=headers) as response:
            return await response.json()

    async def get(self, path: str, key: str = "k", **query: str) -> Any:
        headers = {"Authorization": f"Bearer {key}"}
        async with self.session.get(self.kie.url + path, params=query, headers=headers) as response:
            return await response.json()


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


# What was sent ------------------------------------------------------------------------------------


async def test_a_submit_is_recorded_as_sent(session: ClientSession, api_key: str) -> None:
    """Its request, headers, task and answer are there, and its API key is not."""
    async with Emulator() as kie:
        answer = await Caller(kie, session).submit(api_key, {"X-Trace": "1", "Cookie": "a=b"}, nVariants=2)
        [submit] = kie.submits
    assert submit.request == LAKE | {"nVariants": 2}
    assert json.loads(submit.body) == submit.request
    assert (submit.code, submit.task_id) == (200, answer["data"]["taskId"])
    assert submit.answer is not None
    assert submit.answer.data == answer["data"]
    assert (submit.headers["x-trace"], submit.headers["CONTENT-TYPE"]) == ("1", "application/json")
    assert "Authorization" not in submit.headers
    assert "Cookie" not in submit.headers
    assert api_key not in f"{submit!r} {submit.body!r} {dict(submit.headers)!r} {kie!r}"


async def test_every_submit_is_recorded(session: ClientSession) -> None:
    """Also what is refused, what is no JSON, and one whose answer is lost."""
    async with Emulator(api_key="right", limit=1) as kie:
        caller = Caller(kie, session)
        await caller.submit("wrong")
        await caller.submit("right", size="7:1")
        await caller.submit("right")
        await caller.submit("right")
        kie.plan("lost", answer="dropped")
        await passed(kie, 10)
        with pytest.raises(ServerDisconnectedError):
            await caller.submit("right", prompt="lost")
        key = {"Authorization": "Bearer right", "Content-Type": "application/json"}
        async with session.post(kie.url + SUBMIT, data=b"[1", headers=key):
            pass
    assert [submit.code for submit in kie.submits] == [401, 422, 200, 429, None, 400]
    assert [submit.task_id is not None for submit in kie.submits] == [False, False, True, False, True, False]
    assert kie.paid == len(kie.tasks) == 2
    assert (kie.submits[-1].request, kie.submits[-1].body) == ({}, b"[1")
    assert kie.answers() == {401: 1, 422: 1, 200: 1, 429: 1, None: 1, 400: 1}


async def test_an_answer_that_is_still_to_come() -> None:
    """The task is there before the answer."""
    async with Emulator(latency=0.4) as kie, ClientSession() as session:
        submit = asyncio.create_task(Caller(kie, session).submit())
        await asyncio.sleep(0.2)
        assert (kie.submits[0].answer, kie.paid) == (None, 1)
        assert "no answer yet" in repr(kie)
        await submit
        assert kie.submits[0].code == 200


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://me.example/kie?kie4o_ref={ref}", True),
        ("https://me.example/kie/{ref}", True),
        ("https://me.example/{ref}/end?x={ref}", True),
        ("https://me.example/kie", False),
        ("https://[", False),
        (None, False),
    ],
)
async def test_ref(session: ClientSession, url: str | None, found: bool) -> None:
    """The ref stands in the callback URL, as a parameter or as a part of its path."""
    ref = "q4vU-0sRkQyXn2_fPpBvXg"
    async with Emulator(callback="never") as kie:
        await Caller(kie, session).submit(callBackUrl=url and url.format(ref=ref))
    assert kie.submits[0].ref == (ref if found else None)


@pytest.mark.parametrize("template", ["https://me.example/kie/{ref}", "https://me.example/kie"])
async def test_the_ref_of_the_client(template: str) -> None:
    """It is the one that an error names if the answer is lost."""
    async with Emulator(callback="never") as kie:
        kie.next(answer=500)
        async with client_of(kie.url, callback_url=template) as client:
            with pytest.raises(kie4o.SubmissionUnknownError) as caught:
                await client.submit("x")
    assert kie.submits[0].ref == caught.value.ref


async def test_looks(session: ClientSession) -> None:
    """Each status check of a task, with its answer; unknown ids are recorded too."""
    async with Emulator(duration=5.0, looks_per_second=1) as kie:
        caller = Caller(kie, session)
        task_id = (await caller.submit())["data"]["taskId"]
        for delay in (1.0, 0.001, 9.0):
            await passed(kie, delay)
            await caller.get(LOOK, taskId=task_id)
        await caller.get(LOOK, taskId="other")
    first, *others = kie.looks(task_id)
    assert (first.task_id, first.code, first.status) == (task_id, 200, "GENERATING")
    assert [(look.code, look.status) for look in others] == [(429, None), (200, "SUCCESS")]
    assert 9.0 <= others[-1].at - first.at < 12.0
    assert [look.task_id for look in kie.looks()] == [task_id] * 3 + ["other"]
    assert kie.looks("never asked") == []
    assert (kie.answers("look")[429], kie.windows("look")) == (1, 2)


def _too_many(arrival: Arrival) -> dict[str, int]:
    return {"code": 429}


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault("look", code=500), 500),
        (Fault("look", page="bad_gateway"), None),
        (Fault("look", reset="after"), None),
        (Fault("look", cut=10), None),
        (Fault("look", drip=1.0), 200),
        (Fault("look", record="no_status"), 200),
        (Fault("look", record="vanish"), 422),
        (Fault("submit", code=455), 455),
        (Fault("submit", code=500, charged=True), 500),
        (Fault("submit", stall="forever"), None),
        (Fault("submit", stall=1.0), 200),
        (Fault("submit", by=_too_many), 429),
    ],
    ids=lambda value: value.effect if isinstance(value, Fault) else str(value),
)
async def test_what_a_fault_sent_is_recorded(session: ClientSession, fault: Fault, code: int | None) -> None:
    """The code that reached the client, beside Kie's true answer; none if there was none."""
    async with Emulator() as kie:
        caller = Caller(kie, session)
        task_id = (await caller.submit())["data"]["taskId"]
        kie.fault(fault)
        with contextlib.suppress(ClientError, TimeoutError, ValueError):
            async with asyncio.timeout(PATIENCE):
                await (caller.submit() if fault.kind == "submit" else caller.get(LOOK, taskId=task_id))
    every = kie.submits if fault.kind == "submit" else kie.looks()
    [seen] = [one for one in every if one.fault is not None]  # aiohttp may have sent a GET once more
    assert (seen.code, kie.answers(fault.kind)[code] >= 1) == (code, True)
    assert (seen.answer is None) == (fault.kind == "submit" and not fault.charges)
    assert (str(seen.fault) in seen.outcome()) == (code is None)
    assert kie.paid == 1 + (fault.kind == "submit" and fault.charges)


async def test_windows_count_what_kie_counts(session: ClientSession) -> None:
    """Tasks, and submits that were one too many; not those that were refused for another reason."""
    async with Emulator(limit=2) as kie:
        caller = Caller(kie, session)
        kie.next(answer=455)
        for _ in range(4):
            await caller.submit()
        await passed(kie, 10)
        await caller.submit()
        assert (kie.windows(), kie.answers()) == (3, {455: 1, 200: 3, 429: 1})
    with pytest.raises(ValueError, match="expected 'submit' or 'look'"):
        kie.windows("looks")  # type: ignore[arg-type]  # which is the point


FAILING = """
from kie4o import AsyncKieClient
from kie4o.emulator import Emulator

async def test_money():
    async with Emulator(clock="real") as kie:
        kie.plan("A forbidden lake", answer=422)
        async with AsyncKieClient("secret-key", base_url=kie.url) as client:
            await client.submit("A lake")
            try:
                await client.submit("A forbidden lake")
            except Exception:
                pass
        assert kie.paid == 2
"""


@pytest.mark.once
def test_a_failing_assertion_shows_what_was_sent(tmp_path: Path) -> None:
    """`assert kie.paid == 2` names the submits and their answers, and no key."""
    (tmp_path / "test_it.py").write_text(FAILING)
    options = ["-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "--rootdir", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_it.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(IMPORT_ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    [line] = [line for line in run.stdout.splitlines() if "where 1 =" in line]
    assert "1 paid of 2, 994 credits left; 'A lake' -> 200, 'A forbidden lake' -> 422>.paid" in line
    assert "secret-key" not in line


def test_repr_is_short() -> None:
    """It shows the last few submits, whatever their number and length."""
    kie = Emulator()
    assert repr(kie) == "<Emulator not started: 0 paid of 0, 1000 credits left; no submit>"


# Money --------------------------------------------------------------------------------------------


async def test_prices(session: ClientSession) -> None:
    """The price depends on the number of variants; what is not given costs 6 an image."""
    async with Emulator(prices={2: 11, 4: 20.5}, credits=38) as kie:
        caller = Caller(kie, session)
        for variants, left in ((1, 32), (2, 21), (4, 0.5)):
            assert (await caller.submit(nVariants=variants))["code"] == 200
            assert (await caller.get(CREDIT))["data"] == left
        assert (await caller.submit())["code"] == 402
        kie.credits = 6
        assert (await caller.submit())["code"] == 200
        assert (await caller.submit())["code"] == 402
    assert (kie.credits, kie.paid, kie.spent) == (0, 4, 43.5)
    assert [task.price for task in kie.tasks.values()] == [6, 11, 20.5, 6]


@pytest.mark.parametrize("prices", [{3: 1}, {1: -1}, {1: True}, {1: float("nan")}])
def test_wrong_prices(prices: dict[int, float]) -> None:
    """A number of variants that does not exist, or a price that is none, is refused."""
    with pytest.raises(
        ValueError, match=r"invalid prices=.*: expected credits, 0 or more, for 1, 2, 4 variants"
    ):
        Emulator(prices=prices)


@pytest.mark.parametrize("caps", [{"": 1}, {"secret": -1}])
def test_wrong_caps(caps: dict[str, float]) -> None:
    """A cap needs a key and a number; the error does not name the key."""
    with pytest.raises(ValueError, match="invalid caps: expected credits") as caught:
        Emulator(caps=caps)
    assert "secret" not in str(caught.value)


async def test_caps(session: ClientSession) -> None:
    """A key that has spent its cap gets 433, while other keys of the account go on."""
    async with Emulator(api_key="main", caps={"team": 12}) as kie:
        caller = Caller(kie, session)
        assert [(await caller.submit("team"))["code"] for _ in range(3)] == [200, 200, 433]
        assert [(await caller.submit(key))["code"] for key in ("main", "other")] == [200, 401]
        assert (await caller.get(CREDIT, "team"))["data"] == 982
    assert (kie.paid, kie.spent) == (3, 18)


async def test_a_cap_in_the_client() -> None:
    """It is a `KeyLimitError`, and nothing is paid."""
    async with Emulator(caps={"k": 0}) as kie, kie4o.AsyncKieClient("k", base_url=kie.url) as client:
        with pytest.raises(kie4o.KeyLimitError):
            await client.submit("x")
    assert (kie.paid, kie.credits) == (0, 1000)


async def test_accounts(session: ClientSession) -> None:
    """Each has its own credits, limit and tasks; plans, files and records of submits are shared."""
    other = Account(credits=20, limit=1, prices={1: 10}, duration=0.0)
    async with Emulator(api_key="a", accounts={"b": other, "b2": other}, duration=0.0) as kie:
        caller = Caller(kie, session)
        kie.plan("A calm lake", outcome="policy")
        mine = (await caller.submit("a"))["data"]["taskId"]
        theirs = (await caller.submit("b"))["data"]["taskId"]
        assert (await caller.submit("b2"))["code"] == 429
        await passed(kie, 10)
        assert (await caller.submit("b2"))["code"] == 200
        assert (await caller.submit("c"))["code"] == 401
        assert [(await caller.get(CREDIT, key))["data"] for key in "ab"] == [994, 0]
        assert (await caller.get(LOOK, "a", taskId=theirs))["code"] == 422
        record = (await caller.get(LOOK, "b", taskId=theirs))["data"]
        assert (await caller.get(LOOK, "a", taskId=mine))["data"]["errorCode"] == 400
        async with session.get(record["response"]["resultUrls"][0]) as image:
            assert image.status == 200
    assert (kie.paid, kie.spent, other.paid, other.spent) == (1, 6, 2, 20)
    assert (kie.windows(), other.windows()) == (1, 2)
    assert len(kie.submits) == 5
    assert abs(other.epoch - kie.epoch) < 1e-6


async def test_a_wrong_key_takes_no_plan(session: ClientSession) -> None:
    """It is refused whatever is planned, so that a test sees that it is wrong; the plan is for the next."""
    async with Emulator(api_key="right", duration=0.0) as kie:
        caller = Caller(kie, session)
        kie.plan(LAKE["prompt"], answer=422)
        assert [(await caller.submit(key))["code"] for key in ("wrong", "right")] == [401, 422]


async def test_each_account_reads_prompts_in_its_own_way(session: ClientSession) -> None:
    """`magic` is that of the account whose key it is, for answers as for outcomes."""
    literal, magic = Account(magic=False, duration=0.0), Account(duration=0.0)
    async with Emulator(api_key="a", magic=False, accounts={"l": literal, "m": magic}) as kie:
        caller = Caller(kie, session)
        codes = [(await caller.submit(key, prompt="[[kie:455]]"))["code"] for key in "alm"]
    assert codes == [200, 200, 455]


async def test_reset(session: ClientSession) -> None:
    """Everything seen and planned is forgotten, and the credits are those of the beginning."""
    account = Account(credits=6)
    async with Emulator(limit=1, caps={"k": 6}, credits=50, accounts={"b": account}) as kie:
        caller = Caller(kie, session)
        task_id = (await caller.submit())["data"]["taskId"]
        await caller.submit("b")
        await caller.get(LOOK, taskId=task_id)
        kie.credits = 3
        kie.next(answer=455)
        kie.fault("look", code=500)
        kie.reset()
        assert (kie.paid, kie.credits, kie.submits, kie.looks(), kie.windows()) == (0, 50, [], [], 0)
        assert (account.paid, account.credits, kie.requests) == (0, 6, {})
        assert [(await caller.submit(key))["code"] for key in ("k", "b")] == [200, 200]
