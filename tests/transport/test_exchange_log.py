"""The log of exchanges: one line each at DEBUG, without what is private, and nothing above."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path

import pytest
from canary import CANARY_KEY
from clients import client_of
from faults import GOOD_BODY, TASK_ID, FaultServer, answer, http, raw, stall, unused_port

from kie4o import KieError
from kie4o.events.reporter import Reporter
from kie4o.files.transfers import Files
from kie4o.settings import resolve
from kie4o.transport.transport import Transport

API = "/api/v1/gpt4o-image"
LINE = re.compile(r"(?P<exchange>[A-Z]+ \S+: .*) in \d+ ms")


def exchanges(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines of exchanges without their times. Nothing private is in any line at DEBUG."""
    records = [record for record in caplog.records if record.name == "kie4o"]
    found = [(record, match) for record in records if (match := LINE.fullmatch(record.getMessage()))]
    assert {record.levelno for record, _ in found} <= {logging.DEBUG}
    debug = "\n".join(record.getMessage() for record in records if record.levelno == logging.DEBUG)
    for private in ("a harbour", CANARY_KEY, "Signature", "hunter2"):
        assert private not in debug
    return [match["exchange"] for _, match in found]


@pytest.fixture(autouse=True)
def at_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="kie4o")


async def test_each_exchange_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """Method, path with the id of a polled task, status."""
    async with FaultServer(raw(http(GOOD_BODY)), raw(http(b"{}", "503 Busy"))) as server:
        async with client_of(server.url) as client:
            await client.submit("a harbour")
            with pytest.raises(KieError):
                await client.details(TASK_ID)
    assert exchanges(caplog) == [f"POST {API}/generate: 200", f"GET {API}/record-info?taskId={TASK_ID}: 503"]


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
async def test_uploads_and_downloads_have_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, level: int
) -> None:
    """At DEBUG. A download only its host: its URL is signed, and may redirect."""
    caplog.set_level(level, logger="kie4o")
    async with FaultServer(answer(b"", "404 Gone")) as server:
        checked = resolve(
            api_key=CANARY_KEY, base_url=server.url, upload_url=None, webhook_key=None, environment={}
        )
        transport = Transport(checked, timeout=5.0, reporter=Reporter())
        files = Files(transport, checked, timeout=5.0)

        async def renew(url: str) -> str:
            raise KieError("no link")

        with pytest.raises(KieError):
            await files.upload(b"x")
        for url in (server.url, f"http://127.0.0.1:{unused_port()}"):
            task = files.download([f"{url}/a.png?Signature=x"], tmp_path, task_id=TASK_ID, renew=renew)
            with pytest.raises(KieError):
                await task
        await files.aclose()
        await transport.aclose()
    lines = exchanges(caplog)
    if level > logging.DEBUG:
        assert lines == []
        return
    assert lines[:2] == ["POST /api/file-stream-upload: 404", "GET 127.0.0.1: 404"]
    assert lines[-1].startswith("GET 127.0.0.1: cannot connect to 127.0.0.1:")


async def test_what_fails_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """The reason stands in place of the status; a cancelled exchange says so."""
    async with FaultServer(stall) as server, client_of(server.url, timeout=0.1) as client:
        with pytest.raises(KieError):
            await client.submit("a harbour")
        call = asyncio.create_task(client.credits())
        while len(server.heads) < 2:
            await asyncio.sleep(0.001)
        call.cancel()
        await asyncio.wait([call])
    assert exchanges(caplog) == [f"POST {API}/generate: timed out", "GET /api/v1/chat/credit: cancelled"]


async def test_above_debug_there_are_none(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="kie4o")
    async with FaultServer(raw(http(GOOD_BODY)), stall) as server:
        async with client_of(server.url, timeout=0.1) as client:
            await client.submit("a harbour")
            with pytest.raises(KieError):
                await client.credits()
    assert exchanges(caplog) == []
