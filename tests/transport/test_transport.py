"""The transport: what a request carries, how much of an answer is taken, which connections are kept."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from canary import CANARY_KEY
from clients import client_of
from faults import GOOD_BODY, TASK_ID, Connection, FaultServer, accepting, http
from proxies import Proxy

from kie4o import APIConnectionError, AsyncKieClient, KieError, SubmissionUnknownError
from kie4o.transport.transport import MAX_BODY, USER_AGENT


def keyed(url: str, **more: Any) -> AsyncKieClient:
    return client_of(url, api_key=CANARY_KEY, **more)


# -- requests ----------------------------------------------------------------------------------------


def headers_of(head: bytes) -> dict[str, list[str]]:
    headers: dict[str, list[str]] = {}
    for line in head.decode().split("\r\n")[1:]:
        if line:
            name, _, value = line.partition(": ")
            headers.setdefault(name.lower(), []).append(value)
    return headers


async def sets_a_cookie(connection: Connection) -> None:
    await connection.request()
    body = b'{"code":200,"data":{"taskId":"%032d"}}' % len(connection.server.heads)
    await connection.send(http(body, "200 OK", "Set-Cookie: session=1; Path=/"))


async def test_no_cookie_is_sent_back() -> None:
    """Neither with a free call nor with a submit. The host has a name, since cookies of addresses are
    ignored anyway."""
    async with FaultServer(sets_a_cookie) as server:
        async with keyed(server.url.replace("127.0.0.1", "localhost")) as client:
            for _ in range(2):
                await client.submit("x")
                with pytest.raises(KieError):
                    await client.details("another")
    assert len(server.heads) == 4
    assert not [head for head in server.heads if b"cookie" in head.lower()]


async def test_every_request_has_its_headers() -> None:
    """The key, a user agent that Cloudflare accepts, and a wish for plain bytes, once each."""
    async with FaultServer(sets_a_cookie) as server, keyed(server.url) as client:
        await client.submit("x")
        for call in (client.details("another"), client.upload(b"x"), client.upload_from_url("https://a.b/c")):
            with pytest.raises(KieError):
                await call
    paths = [head.split(b" ")[1].partition(b"?")[0].rpartition(b"/")[2] for head in server.heads]
    assert {*paths} == {b"generate", b"record-info", b"file-stream-upload", b"file-url-upload"}
    for head in server.heads:
        headers = headers_of(head)
        assert headers["authorization"] == [f"Bearer {CANARY_KEY}"]
        assert headers["user-agent"] == [USER_AGENT]
        assert headers["accept-encoding"] == ["identity"]


@pytest.mark.usefixtures("any_certificate")
@pytest.mark.parametrize("credentials", ["", "me:hunter2@"])
async def test_no_proxy_is_shown_the_key(credentials: str) -> None:
    """Not even one without credentials, for which aiohttp takes those of the session."""
    async with FaultServer(accepting, tls=True) as server, Proxy() as proxy:
        async with keyed(server.url, proxy=f"http://{credentials}{proxy.address}") as client:
            await client.submit("x")
            with pytest.raises(KieError):
                await client.credits()
    assert all(f"Bearer {CANARY_KEY}".encode() in head for head in server.heads)
    assert len(proxy.heads) == len(server.heads) > 1
    assert not [head for head in proxy.heads if CANARY_KEY.encode() in head or b"Bearer" in head]
    assert all((b"Proxy-Authorization: Basic " in head) is bool(credentials) for head in proxy.heads)


# -- answers -----------------------------------------------------------------------------------------


class Flood(FaultServer):
    """Answers with 64 MiB, which it counts as they are taken."""

    def __init__(self, body: bytes = b"") -> None:
        super().__init__(self._flood)
        self.body = body
        self.taken = 0

    async def _flood(self, connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + self.body)
        for _ in range(1024):
            await connection.send(b" " * 65536)
            self.taken += 65536


async def test_no_more_of_an_answer_is_taken_than_is_of_use() -> None:
    """A call that costs nothing fails; little more than `MAX_BODY` bytes leave the server."""
    async with Flood() as server, keyed(server.url) as client:
        with pytest.raises(KieError, match=f"more than {MAX_BODY} bytes"):
            await client.details(TASK_ID)
        await asyncio.sleep(0.05)
        assert server.taken < 16 * MAX_BODY


@pytest.mark.parametrize("body", [b"", GOOD_BODY])
async def test_no_more_of_the_answer_to_a_submit_is_taken(body: bytes) -> None:
    """A submit is unknown, unless its id had arrived by then."""
    async with Flood(body) as server, keyed(server.url) as client:
        if body:
            assert (await client.submit("x")).id == TASK_ID
        else:
            with pytest.raises(SubmissionUnknownError, match=f"more than {MAX_BODY} bytes"):
                await client.submit("x")
        await asyncio.sleep(0.05)
        assert server.taken < 16 * MAX_BODY


# -- connections -------------------------------------------------------------------------------------


class Impatient(FaultServer):
    """Closes a connection that was idle for a while, and what arrives in that moment is lost with it."""

    def __init__(self, idle: float) -> None:
        super().__init__(self._serve_patiently)
        self.idle = idle

    async def _serve_patiently(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        answered = loop.time()
        while True:
            await connection.request()
            if loop.time() - answered > self.idle:
                return
            body = b'{"code":200,"data":{"taskId":"%032d"}}' % self.posts
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            answered = loop.time()


async def test_as_shipped_a_submit_does_not_use_a_connection_that_servers_close() -> None:
    """After 2.5 s a submit has a connection of its own. aiohttp reads the clock of the system, so this
    takes the time that it takes."""
    async with Impatient(idle=2.2) as server, keyed(server.url) as client:
        await client.submit("x")
        await client.submit("x")
        assert server.connections == 1
        await asyncio.sleep(2.5)
        [late] = await asyncio.gather(client.submit("x"), return_exceptions=True)
        assert not isinstance(late, Exception), late
        assert (server.posts, server.connections) == (3, 2)


# -- threads -----------------------------------------------------------------------------------------


async def test_a_host_that_cannot_be_looked_up_for_lack_of_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A submit is not sent, and a free call fails; the error says what to do."""

    async def no_thread(*_: Any, **__: Any) -> None:
        raise RuntimeError("can't start new thread")

    async with keyed("http://localhost:9") as client:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", no_thread)
        with pytest.raises(APIConnectionError, match=r"no thread can be started.*; the request was not sent"):
            await client.submit("x")
        with pytest.raises(APIConnectionError, match="raise the limit of processes"):
            await client.details("another")
