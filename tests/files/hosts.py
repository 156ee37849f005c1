"""A file host on localhost, and other helpers that the tests of this folder share."""

import asyncio
import functools
import io
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from canary import CANARY_KEY
from PIL import Image
from serving import LoopbackServer

from kie4o import settings
from kie4o.errors import DownloadError
from kie4o.files.transfers import Files
from kie4o.transport.transport import Transport

KEY = CANARY_KEY
TASK = "3f1c0d2e4b5a69788796a5b4c3d2e1f0"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@functools.cache
def picture(kind: str = "PNG", side: int = 60) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 90).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


PNG = picture()
Reply = Callable[["Request", asyncio.StreamWriter], Awaitable[None]]


class Request:
    def __init__(self, head: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.method, self.target, _ = lines[0].split(" ")
        self.headers = {n.lower(): v for n, _, v in (line.partition(": ") for line in lines[1:] if line)}
        self.text = head.decode("latin-1")


class Host(LoopbackServer):
    """A file host that sends raw bytes: one reply per request, and the last one again after that."""

    def __init__(self, *replies: bytes | Reply) -> None:
        self.replies = list(replies)
        self.requests: list[Request] = []
        self.connections = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        request = Request(await reader.readuntil(b"\r\n\r\n"))
        self.requests.append(request)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, bytes):
            writer.write(reply)
            await writer.drain()
        else:
            await reply(request, writer)


def answer(body: bytes = b"", status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def open_ended(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body


def chunked(body: bytes) -> bytes:
    size = f"{len(body):x}".encode()
    return (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        + size
        + b"\r\n"
        + body
        + b"\r\n0\r\n\r\n"
    )


async def no_renewal(url: str) -> str:
    raise AssertionError("no link has expired")


class RecordedSleep(list[float]):
    """A sleep that returns at once and records the delay."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


@asynccontextmanager
async def files_for(url: str | None, **options: Any) -> AsyncIterator[Files]:
    """The `Files` of a client with this base URL."""
    checked = settings.resolve(api_key=KEY, base_url=url, upload_url=None, webhook_key=None, environment={})
    transport = Transport(checked, timeout=5.0)
    files = Files(transport, checked, **{"timeout": 5.0, "sleep": RecordedSleep(), "jitter": float} | options)
    try:
        yield files
    finally:
        await files.aclose()
        await transport.aclose()


async def fails(files: Files, folder: Path, url: str, **how: Any) -> DownloadError:
    """The error of a failed download, checked: it has the task id, leaks nothing and leaves no file."""
    how = {"renew": no_renewal} | how
    with pytest.raises(DownloadError) as caught:
        await files.download([url], folder, task_id=TASK, **how)
    error = caught.value
    assert error.task_id == TASK
    assert error.__cause__ is None
    assert error.__context__ is None
    assert KEY not in repr(error) + str(error)
    assert pickle.loads(pickle.dumps(error)).task_id == TASK
    assert not folder.exists() or not names(folder)
    return error
