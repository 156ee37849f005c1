"""Answers in broken framing: a whole one counts, for submits and for free calls, a cut one never."""

from __future__ import annotations

import asyncio
import gzip
import re
import zlib
from collections.abc import Awaitable, Callable

import pytest
from clients import client_of
from faults import GOOD_BODY, TASK_ID, Connection, FaultServer, raw

from kie4o import APIConnectionError, AsyncKieClient, KieError, SubmissionUnknownError, TaskState
from kie4o.transport.transport import MAX_BODY

DATA = b'{"taskId":"%s","status":"GENERATING","successFlag":0,"progress":"0.50"}' % TASK_ID.encode()
RECORD = b'{"code":200,"msg":"success","data":%s}' % DATA
CREDITS = b'{"code":200,"msg":"success","data":12}'
LINK = b'{"code":200,"msg":"success","data":"https://files.example/a.png"}'
FILE = b'{"success":true,"code":200,"msg":"ok","data":{"downloadUrl":"https://files.example/a.png"}}'

Call = Callable[[AsyncKieClient], Awaitable[object]]


async def submits(client: AsyncKieClient) -> None:
    assert (await client.submit("x")).id == TASK_ID


async def looks(client: AsyncKieClient) -> None:
    details = await client.details(TASK_ID)
    assert (details.state, details.progress) == (TaskState.RUNNING, 0.5)


async def asks_for_credits(client: AsyncKieClient) -> None:
    assert await client.credits() == 12


async def asks_for_a_link(client: AsyncKieClient) -> None:
    assert await client.download_url(TASK_ID, "https://files.example/b.png") == "https://files.example/a.png"


async def uploads(client: AsyncKieClient) -> None:
    assert (await client.upload(b"x")).url == "https://files.example/a.png"


CALLS = {
    submits: GOOD_BODY,
    looks: RECORD,
    asks_for_credits: CREDITS,
    asks_for_a_link: LINK,
    uploads: FILE,
}
calls = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)


def head(*fields: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", "Content-Type: application/json", *fields, "", ""]).encode()


def sized(body: bytes, *fields: str, more: int = 0, status: str = "200 OK") -> bytes:
    return head(f"Content-Length: {len(body) + more}", *fields, status=status) + body


def chunked(body: bytes, *fields: str, end: bytes = b"0\r\n\r\n") -> bytes:
    return head("Transfer-Encoding: chunked", *fields) + b"%x\r\n%s\r\n" % (len(body), body) + end


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


WHOLE: dict[str, Callable[[bytes], bytes]] = {
    "the last chunk is missing": lambda body: chunked(body, end=b""),
    "the last chunk is cut": lambda body: chunked(body, end=b"0\r"),
    "Content-Length too long": lambda body: sized(body, more=7),
    "a line end after the body": lambda body: sized(body) + b"\r\n",
    "neither a length nor chunks": lambda body: head() + body,
    **{
        f"{name} announced, not used": lambda body, name=name: sized(body, f"Content-Encoding: {name}")
        for name in ("gzip", "GZIP", "x-gzip", "deflate", "br", "zstd", "identity", "utf-8", "gzip, br", "x")
    },
    "gzip announced, not used, no last chunk": lambda body: chunked(body, "Content-Encoding: gzip", end=b""),
    "gzip": lambda body: sized(gzip.compress(body), "Content-Encoding: gzip"),
    "gzip in chunks": lambda body: chunked(gzip.compress(body), "Content-Encoding: gzip"),
    "gzip without its check sum": lambda body: sized(gzip.compress(body)[:-8], "Content-Encoding: gzip"),
    "gzip, Content-Length too long": lambda body: sized(
        gzip.compress(body), "Content-Encoding: gzip", more=9
    ),
    "deflate": lambda body: sized(zlib.compress(body), "Content-Encoding: deflate"),
    "raw deflate": lambda body: sized(raw_deflate(body), "Content-Encoding: deflate"),
}


@calls
@pytest.mark.parametrize("framing", WHOLE)
async def test_a_whole_answer_counts_in_any_framing(call: Call, framing: str) -> None:
    """On the first request: nothing is sent twice."""
    async with FaultServer(raw(WHOLE[framing](CALLS[call]))) as server:
        async with client_of(server.url) as client:
            await call(client)
    assert len(server.heads) == 1


CUT: dict[str, Callable[[bytes], bytes]] = {
    "chunks": lambda body: chunked(body[:-1], end=b""),
    "Content-Length too long": lambda body: sized(body[:-1], more=1),
    "Content-Length too short": lambda body: sized(body[:-1]) + body[-1:],
    "gzip announced, not used": lambda body: sized(body[:-1], "Content-Encoding: gzip"),
    "deflate announced, not used": lambda body: sized(body[:-1], "Content-Encoding: deflate"),
    "gzip": lambda body: sized(gzip.compress(body[:-1])[:-8], "Content-Encoding: gzip"),
    "gzip that breaks off": lambda body: sized(gzip.compress(body)[:-12], "Content-Encoding: gzip"),
    "raw deflate": lambda body: sized(raw_deflate(body)[:-4], "Content-Encoding: deflate"),
    "a number": lambda body: sized(b"20", more=1),
}


# What leaves no id of a submit: aiohttp drops an answer that arrives together with bytes that are not HTTP.
LOST = {"Content-Length too short", "gzip that breaks off", "raw deflate", "a number"}


@pytest.mark.parametrize("framing", CUT)
async def test_a_cut_answer_never_counts(framing: str) -> None:
    """The control: what is missing may be the rest of a number, so a look fails, and may be repeated."""
    async with FaultServer(raw(CUT[framing](RECORD))) as server, client_of(server.url) as client:
        with pytest.raises(KieError) as caught:
            await client.details(TASK_ID)
    assert type(caught.value).__name__ in ("APIConnectionError", "UnexpectedResponseError")


@pytest.mark.parametrize("framing", [each for each in CUT if each not in LOST])
async def test_the_id_in_a_cut_answer_to_a_submit_is_kept(framing: str) -> None:
    """It names a paid task."""
    async with FaultServer(raw(CUT[framing](GOOD_BODY))) as server, client_of(server.url) as client:
        assert (await client.submit("x")).id == TASK_ID


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"\x0b\x1e\x80not brotli", "br"),
        (b"\x28\xb5\x2f\xfdnot zstd", "zstd"),
        (b"\x1f\x8bnot gzip", "gzip"),
        (gzip.compress(b"<html>" * 200, mtime=0)[:-20], "gzip"),
        (b"plain text", "deflate"),
    ],
)
async def test_an_answer_that_cannot_be_decoded_refuses_nothing(body: bytes, name: str) -> None:
    """It may hold an id, so the outcome of a submit is unknown, also with a status that would refuse. A
    call that costs nothing fails."""
    answer = sized(body, f"Content-Encoding: {name}", status="403 Forbidden")
    async with FaultServer(raw(answer)) as server, client_of(server.url) as client:
        with pytest.raises(SubmissionUnknownError, match=re.escape(f"Content-Encoding {name!r}") + "|is "):
            await client.submit("x")
        with pytest.raises(APIConnectionError, match="its Content-Encoding"):
            await client.details(TASK_ID)
    assert server.posts == 1


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (gzip.compress(gzip.compress(GOOD_BODY, mtime=0), mtime=0), "gzip, gzip"),
        (gzip.compress(GOOD_BODY[:20], mtime=0) + gzip.compress(GOOD_BODY[20:], mtime=0), "gzip"),
        (b"\x1f\x9d not compress", "compress"),
    ],
)
async def test_what_cannot_be_decoded_is_not_sent_again(body: bytes, name: str) -> None:
    """Two of these hold the id of a paid task, whatever their status says."""
    answer = sized(body, f"Content-Encoding: {name}", status="429 Too Many Requests")
    async with FaultServer(raw(answer)) as server, client_of(server.url) as client:
        with pytest.raises(SubmissionUnknownError):
            await client.submit("x")
    assert server.posts == 1


async def test_control_a_plain_page_refuses() -> None:
    """With the same status, and an encoding that could be undone."""
    answer = sized(gzip.compress(b"<html>"), "Content-Encoding: gzip", status="403 Forbidden")
    async with FaultServer(raw(answer)) as server, client_of(server.url) as client:
        with pytest.raises(KieError, match="403"):
            await client.submit("x")


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, raw_deflate], ids=lambda pack: pack.__name__)
async def test_a_decompression_bomb_does_not_go_off(pack: Callable[[bytes], bytes]) -> None:
    """Little more than `MAX_BODY` bytes come out of it. A submit finds its id if it is among them."""
    name = "gzip" if pack is gzip.compress else "deflate"
    bomb = pack(GOOD_BODY[:-1] + b" " * (64 * MAX_BODY) + b"}")
    async with FaultServer(raw(sized(bomb, f"Content-Encoding: {name}"))) as server:
        async with client_of(server.url) as client:
            assert (await client.submit("x")).id == TASK_ID
            with pytest.raises(APIConnectionError, match=f"more than {MAX_BODY} bytes"):
                await client.details(TASK_ID)


@calls
async def test_what_follows_a_whole_answer_does_not_matter(call: Call) -> None:
    """If it arrives in a later packet."""

    async def script(connection: Connection) -> None:
        await raw(sized(CALLS[call]))(connection)
        await asyncio.sleep(0.05)
        await connection.send(b" }\r\n\x00")

    async with FaultServer(script) as server, client_of(server.url) as client:
        await call(client)
    assert len(server.heads) == 1


async def test_a_whole_answer_counts_although_its_end_never_comes() -> None:
    """The timeout is the end of it."""

    async def script(connection: Connection) -> None:
        await raw(chunked(CREDITS, end=b""))(connection)
        await connection.reader.read(1)  # until the client has nothing more to send

    async with FaultServer(script) as server, client_of(server.url, timeout=0.3) as client:
        await asks_for_credits(client)
    assert len(server.heads) == 1
