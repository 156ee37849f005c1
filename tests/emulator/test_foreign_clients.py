"""Clients that do not know kie4o: over httpx in the same loop, over urllib in a process of its own, and curl.

They are written from Kie's documentation. What works with Kie works with the emulator.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import httpx2 as httpx
import pytest
from portable import environment

from kie4o.emulator import Emulator

pytestmark = pytest.mark.once

PNG = b"\x89PNG\r\n\x1a\n"


class Refused(Exception):
    """Kie's code and words."""


@attrs.frozen
class HttpxClient:
    """A client as the pages of Kie and httpx suggest it."""

    http: httpx.AsyncClient

    async def images(self, prompt: str, **fields: Any) -> list[bytes]:
        """Submit, poll every five seconds, and download."""
        while True:
            try:
                data = await self.call("POST", "/generate", json={"prompt": prompt, "size": "1:1"} | fields)
                break
            except Refused as refusal:
                if refusal.args[0] != 429:
                    raise
                await asyncio.sleep(10)
        urls = await self.wait(data["taskId"])
        return [(await self.http.get(url, headers={"Authorization": ""})).content for url in urls]

    async def wait(self, task_id: str) -> list[str]:
        while True:
            record = await self.call("GET", "/record-info", params={"taskId": task_id})
            if record["successFlag"] in (2, 3):
                raise Refused(record["errorCode"], record["errorMessage"])
            if record["successFlag"] == 1:
                return list(record["response"]["resultUrls"])
            await asyncio.sleep(5)

    async def call(self, method: str, path: str, **how: Any) -> Any:
        answer = (await self.http.request(method, f"/api/v1/gpt4o-image{path}", **how)).json()
        if answer["code"] != 200:
            raise Refused(answer["code"], answer["msg"])
        return answer["data"]


@pytest.fixture
async def kie() -> AsyncIterator[Emulator]:
    async with Emulator(duration=300.0, pictures=False, api_key="k-123") as kie:
        yield kie


@pytest.fixture
async def client(kie: Emulator) -> AsyncIterator[HttpxClient]:
    headers = {"Authorization": "Bearer k-123"}
    async with httpx.AsyncClient(base_url=kie.url, headers=headers, trust_env=False) as http:
        yield HttpxClient(http)


async def test_httpx_generates_images(kie: Emulator, client: HttpxClient) -> None:
    """Two images of a task of five minutes, without a second of real time."""
    start = time.monotonic()
    images = await client.images("A calm lake", nVariants=2)
    assert [image[:8] for image in images] == [PNG, PNG]
    assert (kie.paid, kie.credits) == (1, 988)
    [task] = kie.tasks.values()
    assert len(kie.looks(task.id)) == 61
    assert time.monotonic() - start < 5


async def test_httpx_meets_the_limit_of_kie(kie: Emulator, client: HttpxClient) -> None:
    """Thirty at once are more than Kie takes: some are refused with 429, and are sent again."""
    kie.duration = 20.0
    every = await asyncio.gather(*(client.images(f"Lake {number}") for number in range(30)))
    assert all(images[0].startswith(PNG) for images in every)
    assert kie.paid == 30
    assert kie.windows() > 20
    assert kie.answers()[429] >= 10


async def test_httpx_sees_failures(kie: Emulator, client: HttpxClient) -> None:
    """A refusal and a failed task are what the pages of Kie say."""
    kie.plan("A forbidden lake", outcome="policy")
    with pytest.raises(Refused, match="content policies"):
        await client.images("A forbidden lake")
    kie.next(answer=455)
    with pytest.raises(Refused, match="455"):
        await client.images("A calm lake")
    with pytest.raises(Refused, match="422"):
        await client.images("A calm lake", size="16:9")
    client.http.headers["Authorization"] = "Bearer wrong"
    with pytest.raises(Refused, match="401"):
        await client.images("A calm lake")


STRANGER = """
import json, sys, time, urllib.request
base, out = sys.argv[1:]

def call(path, body=None):
    headers = {"Authorization": "Bearer k-123", "User-Agent": "stranger/1"}
    headers["Content-Type"] = "application/json"
    request = urllib.request.Request(base + path, body and json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        envelope = json.load(answer)
    assert envelope["code"] == 200, envelope
    return envelope["data"]

task_id = call("/api/v1/gpt4o-image/generate", {"prompt": "A calm lake", "size": "1:1"})["taskId"]
while not (record := call("/api/v1/gpt4o-image/record-info?taskId=" + task_id))["successFlag"]:
    time.sleep(0.05)
[url] = record["response"]["resultUrls"]
signed = call("/api/v1/gpt4o-image/download-url", {"taskId": task_id, "url": url})
with urllib.request.urlopen(signed) as image, open(out, "wb") as file:
    file.write(image.read())
assert "kie4o" not in sys.modules
print(call("/api/v1/chat/credit"))
"""


async def output_of(*program: str, folder: Path) -> str:
    """What another process prints. A proxy of this machine is not for it."""
    process = await asyncio.create_subprocess_exec(
        *program,
        cwd=folder,
        env=environment(PATH=str(Path(program[0]).parent)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, err) == (0, b"")
    return out.decode()


async def test_urllib_in_another_process(tmp_path: Path) -> None:
    """A program of the standard library alone; the clock of the emulator is real, and fast."""
    async with Emulator(speed=100, duration=20.0, api_key="k-123", pictures=False) as kie:
        printed = await output_of(sys.executable, "-I", "-c", STRANGER, kie.url, "a.png", folder=tmp_path)
        [task] = kie.tasks.values()
        assert 2 <= len(kie.looks(task.id)) < 10
        assert "stranger/1" in kie.user_agents
    assert printed == "994\n"
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_curl(tmp_path: Path) -> None:
    """Submit, look, download and upload from a shell."""
    curl = [str(shutil.which("curl")), "--silent", "--show-error", "--noproxy", "*"]
    key, kind = ["-H", "Authorization: Bearer k-123"], ["-H", "Content-Type: application/json"]
    async with Emulator(clock="real", duration=0.0, pictures=False) as kie:
        api, lake = f"{kie.url}/api/v1/gpt4o-image", json.dumps({"prompt": "A calm lake", "size": "1:1"})

        async def run(*arguments: str) -> Any:
            return json.loads(await output_of(*curl, *arguments, folder=tmp_path))

        task_id = (await run(*key, *kind, "-d", lake, f"{api}/generate"))["data"]["taskId"]
        record = (await run(*key, f"{api}/record-info?taskId={task_id}"))["data"]
        assert record["status"] == "SUCCESS"
        await output_of(*curl, "-o", "a.png", record["response"]["resultUrls"][0], folder=tmp_path)
        assert (tmp_path / "a.png").read_bytes().startswith(PNG)
        fields = ["-F", "file=@a.png", "-F", "uploadPath=images"]
        stored = (await run(*key, *fields, f"{kie.url}/api/file-stream-upload"))["data"]
        assert stored["mimeType"] == "image/png"
        await output_of(*curl, "-o", "b.png", stored["downloadUrl"], folder=tmp_path)
        assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()
        assert (await run(f"{kie.url}/api/v1/chat/credit"))["code"] == 401
