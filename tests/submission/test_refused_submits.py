"""A refusal costs nothing and binds nothing, also on a store that fails; and resends have an end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import pytest
from clients import MakeStore, client_of, until
from clocks import run_scaled
from faults import Connection, FaultServer, answer, http, unused_port
from held import HeldServer
from paths import TLS

import kie4o
from kie4o import APIConnectionError, ImageTask, RateLimit, StoreError
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore

SPEED = 50  # loop seconds per second
FAST = 300  # for delays of minutes
AMPLE = RateLimit(100, per=1.0)
# Seconds that pass at least between the first refusal with this code and the next attempt. For 550 they are
# doubled each time. The limit's window is one second.
SHORTEST = {429: 0.9, 430: 0.9, 455: 59.0, 550: 29.0}


async def outcome_of(call: Coroutine[Any, Any, Any], limit: float = 5.0) -> Any:
    """What the call returns or raises; a call that goes on fails the test."""
    task = asyncio.create_task(call)
    await asyncio.wait([task], timeout=limit)
    assert task.done()
    return task.exception() or task.result()


# -- what is no refusal ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": "A poster that says: not enough credits"},
        {"prompt": "Balance\n is  TOO low, a tightrope walker"},
        {"prompt": "x", "extra": {"caption": "credits exhausted"}},
    ],
)
async def test_words_that_kie_quotes_refuse_nothing(store: MakeStore, asked: dict[str, Any]) -> None:
    """An error that repeats the request says nothing about the balance: it may have been charged."""
    said = asked.get("extra", {}).get("caption") or asked["prompt"]
    body = json.dumps({"code": 500, "msg": f"Internal error while processing {said}", "data": None})
    kept = store()
    async with FaultServer(answer(body.encode())) as server, client_of(server.url, kept) as client:
        for _ in range(2):
            with pytest.raises(kie4o.SubmissionUnknownError):
                await client.submit(key="a", **asked)
    assert server.posts == 1


async def test_control_words_of_kies_own_refuse(store: MakeStore) -> None:
    body = json.dumps({"code": 500, "msg": "Your credits are insufficient", "data": None}).encode()
    async with FaultServer(answer(body)) as server, client_of(server.url, store()) as client:
        for _ in range(2):
            with pytest.raises(kie4o.InsufficientCreditsError):
                await client.submit("A poster that says: 100 credits", key="a")
    assert server.posts == 2


# -- what a refused request leaves behind ------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("code", [400, 402, 422])
async def test_a_key_whose_request_was_refused_is_free_for_another(
    store: MakeStore, code: int, restart: bool, api_key: str
) -> None:
    """A refused request may be corrected under its key; the correction is then what the key stands for."""
    async with Emulator(duration=0.0) as kie:
        kie.plan("wrong", answer=code)
        client = client_of(kie.url, store(), api_key=api_key)
        with pytest.raises(kie4o.APIStatusError) as refused:
            await client.submit("wrong", key="a")
        assert refused.value.code == code
        if restart:
            await client.aclose()
            client = client_of(kie.url, store(), api_key=api_key)
        task = await outcome_of(client.submit("right", key="a"))
        assert isinstance(task, ImageTask), task
        assert [each.request["prompt"] for each in kie.tasks.values()] == ["right"]
        assert (await client.submit("right", key="a")).id == task.id
        with pytest.raises(kie4o.KeyConflictError):
            await client.submit("wrong", key="a")
        assert (len(kie.submits), kie.paid) == (2, 1)
        await client.aclose()


class CannotForget(MemoryStore):
    """Every `forget` fails."""

    async def forget(self, key: str) -> None:
        raise StoreError("the disk is full")


@pytest.mark.parametrize("verb", ["submit", "generate"])
async def test_a_refusal_is_raised_though_it_cannot_be_deleted_from_the_store(
    verb: str, api_key: str
) -> None:
    """The caller gets Kie's refusal: the failure of the store does not hide that nothing was charged."""
    async with Emulator() as kie, client_of(kie.url, CannotForget(), api_key=api_key) as client:
        kie.plan("x", answer=402)
        error = await outcome_of(getattr(client, verb)("x"))
        assert isinstance(error, kie4o.InsufficientCreditsError), error
        assert (len(kie.submits), kie.paid) == (1, 0)


def test_a_request_is_sent_again_though_its_refusal_cannot_be_deleted(api_key: str) -> None:
    """What Kie refused for now is sent again, whatever the store makes of the refusal."""

    async def run() -> None:
        async with Emulator() as kie:
            kie.plan("x", answer=429)
            limit = RateLimit(5, per=1.0)
            async with client_of(kie.url, CannotForget(), api_key=api_key, rate_limit=limit) as client:
                task = await outcome_of(client.submit("x"), limit=100.0)
                assert isinstance(task, ImageTask), task
                assert [task.id] == list(kie.tasks)
                assert (len(kie.submits), kie.paid) == (2, 1)

    run_scaled(run(), SPEED)


async def test_a_call_that_is_called_off_ends_though_it_cannot_be_deleted(api_key: str) -> None:
    """A call that was not sent says so, though its INTENT cannot be deleted."""
    client = client_of(f"http://127.0.0.1:{unused_port()}", CannotForget(), api_key=api_key)
    call = asyncio.create_task(client.submit("x"))
    await asyncio.sleep(0.05)  # in the delay before it is sent again
    await client.aclose()
    await asyncio.wait([call], timeout=5)
    assert call.done()
    assert "nothing was charged" in str(call.exception())


# -- resends ---------------------------------------------------------------------------------------


class Alternating(FaultServer):
    """Refuses each submit with the next of these codes, and accepts when a client does not give up."""

    def __init__(self, *codes: int, patience: int = 25) -> None:
        super().__init__(self._refuse)
        self._codes = codes
        self._patience = patience
        self.answers: list[int] = []
        self.times: list[float] = []

    async def _refuse(self, connection: Connection) -> None:
        await connection.request()
        code = self._codes[len(self.answers) % len(self._codes)]
        data = None
        if len(self.answers) >= self._patience:
            code, data = 200, {"taskId": "0" * 32}
        self.answers.append(code)
        self.times.append(asyncio.get_running_loop().time())
        await connection.send(http(json.dumps({"code": code, "msg": "later", "data": data}).encode()))


@pytest.mark.parametrize(
    ("codes", "posts"),
    [((455, 550), 7), ((550, 455), 8), ((429, 455), 8), ((429, 430), 11)],
)
def test_resends_have_an_end_also_if_the_causes_change(
    codes: tuple[int, ...], posts: int, api_key: str
) -> None:
    """Each cause has its own number of resends, and another cause in between does not give it new ones.

    The last refusal is raised: of 455 the fourth, of 550 the fifth, of 429 and 430 the sixth.
    """

    async def run() -> None:
        limit = RateLimit(5, per=1.0)
        async with Alternating(*codes) as kie:
            async with client_of(kie.url, api_key=api_key, rate_limit=limit, timeout=10_000) as client:
                with pytest.raises(kie4o.APIStatusError) as caught:
                    await client.submit("x", key="a")
        assert caught.value.code == kie.answers[-1]
        assert len(kie.answers) == posts
        seen: Counter[int] = Counter()
        for code, before, after in zip(kie.answers, kie.times, kie.times[1:], strict=False):
            assert after - before > SHORTEST[code] * (2 ** seen[code] if code == 550 else 1)
            seen[code] += 1

    run_scaled(run(), FAST)


@pytest.mark.parametrize("header", ["Retry-After: 7", "X-Other: 7"])
async def test_a_refusal_has_the_retry_after_that_kie_sent(header: str, api_key: str) -> None:
    """For a caller that repeats the call of its own accord."""
    body = b'{"code":402,"msg":"no","data":null}'
    async with FaultServer(answer(body, "402 Payment Required", header)) as kie:
        async with client_of(kie.url, api_key=api_key) as client:
            error = await outcome_of(client.submit("x"))
            assert isinstance(error, kie4o.InsufficientCreditsError)
            assert error.retry_after == (7.0 if header.startswith("Retry") else None)


def test_a_retry_after_of_a_day_does_not_keep_the_caller_for_a_day(api_key: str) -> None:
    """It lengthens the delay by half a minute at most."""

    async def run() -> None:
        body = b'{"code":429,"msg":"later","data":null}'
        async with FaultServer(answer(body, "429 Later", "Retry-After: 86400"), answer()) as kie:
            limit = RateLimit(5, per=1.0)
            async with client_of(kie.url, api_key=api_key, rate_limit=limit) as client:
                task = await outcome_of(client.submit("x"), limit=60.0)
                assert isinstance(task, ImageTask), task
            assert kie.posts == 2

    run_scaled(run(), SPEED)


def test_a_request_that_was_refused_goes_before_those_that_wait(api_key: str) -> None:
    """It has waited longer than they have."""

    async def run() -> None:
        async with HeldServer() as kie:
            limit = RateLimit(1, per=2.0)
            async with client_of(kie.url, api_key=api_key, rate_limit=limit) as client:
                calls = [asyncio.create_task(client.submit("first"))]
                await until(lambda: kie.posts == 1)
                calls += [asyncio.create_task(client.submit("second"))]
                await until(lambda: client._runtime.limiter.waiting == 1)
                kie.refuse("first", 429)
                await until(lambda: kie.posts == 2)
                assert kie.prompts == ["first", "first"]
                kie.accept("first")
                await until(lambda: kie.posts == 3)
                kie.accept("second")
                done, _ = await asyncio.wait(calls, timeout=10)
                assert len({call.result().id for call in done}) == 2

    run_scaled(run(), SPEED)


async def test_requests_that_cannot_connect_do_not_all_come_back_at_the_same_moment(api_key: str) -> None:
    """Of twenty that failed together, the first comes back well before half a second has passed."""
    loop = asyncio.get_running_loop()
    arrivals: list[float] = []

    async def hang_up(connection: Connection) -> None:
        arrivals.append(loop.time())

    async with FaultServer(hang_up) as server:  # plain sockets on the server, TLS from the client
        url = server.url.replace("http:", "https:")
        async with client_of(url, api_key=api_key, rate_limit=AMPLE, timeout=5) as client:
            calls = [asyncio.create_task(client.submit(f"{number}")) for number in range(20)]
            await until(lambda: len(arrivals) > 20)
            assert arrivals[20] - arrivals[0] < 0.45
            for call in calls:
                call.cancel()
            await asyncio.wait(calls, timeout=5)


async def test_a_certificate_that_is_not_accepted_is_asked_for_once(api_key: str) -> None:
    """Sending again would not help: the error comes after one connection, on which nothing was sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")

    async def secure(connection: Connection) -> None:
        with contextlib.suppress(ssl.SSLError):
            await connection.writer.start_tls(context)

    async with FaultServer(secure) as server:
        url = server.url.replace("http:", "https:")
        async with client_of(url, api_key=api_key, timeout=5) as client:
            with pytest.raises(APIConnectionError, match="certificate"):
                await client.submit("x")
        assert (server.connections, server.posts) == (1, 0)


async def test_the_error_of_a_refused_request_names_its_key(api_key: str) -> None:
    """Also if it was not sent at all; without a key of the caller's it names none."""
    async with client_of(f"http://127.0.0.1:{unused_port()}", api_key=api_key) as client:
        calls = [asyncio.create_task(client.submit("x", key=key)) for key in ("a", None)]
        done, _ = await asyncio.wait(calls, timeout=5)
        assert len(done) == 2
        assert [call.exception().key for call in calls] == ["a", None]


async def test_an_unknown_outcome_says_what_kie_said(api_key: str) -> None:
    """The reason is in the message, for a look into kie.ai/logs."""
    async with HeldServer() as kie, client_of(kie.url, api_key=api_key) as client:
        call = asyncio.create_task(client.submit("x"))
        await until(lambda: kie.posts == 1)
        kie.refuse("x", 500, "Server exception, please try again later")
        await asyncio.wait([call], timeout=5)
        assert isinstance(call.exception(), kie4o.SubmissionUnknownError)
        assert "Server exception" in str(call.exception())


async def test_an_unknown_outcome_is_no_refusal(api_key: str) -> None:
    """Control: after a lost answer the key stands for its request, and another one is a conflict."""
    async with HeldServer() as kie, client_of(kie.url, api_key=api_key) as client:
        call = asyncio.create_task(client.submit("x", key="a"))
        await until(lambda: kie.posts == 1)
        kie.lose("x")
        await asyncio.wait([call], timeout=5)
        assert isinstance(call.exception(), kie4o.SubmissionUnknownError)
        with pytest.raises(kie4o.KeyConflictError):
            await client.submit("y", key="a")
        assert kie.posts == 1
