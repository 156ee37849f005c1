"""The free calls: what is remembered of identical answers, and who may see it."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from canary import CANARY_KEY
from faults import TASK_ID, Connection, FaultServer

from kie4o.settings import resolve
from kie4o.transport.free_calls import FreeCalls
from kie4o.transport.transport import MAX_BODY, Transport


class Looks(FaultServer):
    """Answers each look with this `data`, on connections that stay open."""

    def __init__(self, **data: Any) -> None:
        super().__init__(self._answer)
        self.data = {"taskId": TASK_ID, "status": "GENERATING", **data}

    async def _answer(self, connection: Connection) -> None:
        while True:
            await connection.request()
            body = json.dumps({"code": 200, "data": self.data}).encode()
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


class Calls:
    """`async with Calls(url) as calls`: the free calls of one client."""

    def __init__(self, url: str) -> None:
        settings = resolve(
            api_key=CANARY_KEY, base_url=url, upload_url=None, webhook_key=None, environment={}
        )
        self._transport = Transport(settings, timeout=5.0)

    async def __aenter__(self) -> FreeCalls:
        return FreeCalls(self._transport)

    async def __aexit__(self, *_: object) -> None:
        await self._transport.aclose()


async def test_what_one_client_gets_no_other_sees() -> None:
    """Identical answers to two clients are different objects, down to the last list."""
    async with Looks(response={"resultUrls": ["https://a.example/1.png"]}) as kie:
        async with Calls(kie.url) as first, Calls(kie.url) as second:
            one, same, other = [await calls.details(TASK_ID) for calls in (first, first, second)]
            assert one == same == other
            assert one is same
            assert one.raw is not other.raw
            assert one.raw["response"] is not other.raw["response"]
            with pytest.raises(TypeError, match="read-only"):
                one.raw["response"]["resultUrls"].append("https://evil.example/2.png")
            assert (await second.details(TASK_ID)).raw == (await first.details(TASK_ID)).raw == kie.data


async def test_a_change_of_the_answer_is_seen() -> None:
    """Only the same bytes for the same task are the same answer."""
    async with Looks() as kie, Calls(kie.url) as calls:
        assert (await calls.details(TASK_ID)).progress is None
        kie.data["progress"] = "0.5"
        assert (await calls.details(TASK_ID)).progress == 0.5
        kie.data["taskId"] = None
        assert (await calls.details("one")).task_id == "one"
        assert (await calls.details("two")).task_id == "two"


@pytest.mark.parametrize("size", [15_000, MAX_BODY // 2])
async def test_little_is_remembered(size: int) -> None:
    """After hundreds of different answers at most 128 short ones are kept, whatever their size was."""
    async with Looks(prompt="x" * size) as kie, Calls(kie.url) as calls:
        await calls.details(TASK_ID)
        tracemalloc.start()
        try:
            for number in range(200):
                kie.data["number"] = number
                await calls.details(TASK_ID)
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert kept < 128 * 3 * 16 * 1024
