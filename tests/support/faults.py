"""A server that misbehaves on purpose: raw sockets on loopback, one script per connection.

It counts what matters for payment: the requests that arrived complete, answered or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from paths import TLS
from serving import LoopbackServer

TASK_ID = "5fd1000000000000000000000000a1ea"
GOOD_BODY = b'{"code":200,"msg":"success","data":{"taskId":"%s"}}' % TASK_ID.encode()

Script = Callable[["Connection"], Awaitable[None]]


class Connection:
    """One accepted connection, which a script reads from and may answer."""

    def __init__(
        self, server: FaultServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.server = server
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """Read one complete request and count it."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        body = await self.reader.readexactly(length)
        self.server.heads.append(head)
        self.server.bodies.append(body)
        return body

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """RST instead of FIN."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class FaultServer(LoopbackServer):
    """`async with FaultServer(script, ...)`: the n-th connection gets the n-th script, later ones the
    last. With `tls` it presents the fixture of that name, or the one that is valid."""

    def __init__(self, *scripts: Script, tls: bool | str = False) -> None:
        self._scripts = scripts
        self._tls = tls
        self.connections = 0
        self.open = 0
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []

    @property
    def posts(self) -> int:
        """Complete POSTs."""
        return sum(head.startswith(b"POST ") for head in self.heads)

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def _context(self) -> ssl.SSLContext | None:
        if not self._tls:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        name = self._tls if isinstance(self._tls, str) else "certificate.pem"
        context.load_cert_chain(TLS / name, TLS / "key.pem")
        return context

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = self._scripts[min(self.connections, len(self._scripts) - 1)]
        self.connections += 1
        self.open += 1
        try:
            await script(Connection(self, reader, writer))
        finally:
            self.open -= 1


def answer(body: bytes = GOOD_BODY, status: str = "200 OK", *headers: str) -> Script:
    """Read the request, send an answer with these headers, close."""

    async def script(connection: Connection) -> None:
        await connection.request()
        await connection.send(http(body, status, *headers))

    return script


async def accepting(connection: Connection) -> None:
    """Accept every submit of the connection, each with a task of its own; the first is `TASK_ID`."""
    while True:
        await connection.request()
        await connection.send(http(good_body(connection.server.posts)))


def good_body(number: int) -> bytes:
    """The answer to the submit with this number, counted from 1."""
    return GOOD_BODY.replace(TASK_ID.encode(), task_id_of(number).encode())


def task_id_of(number: int) -> str:
    return TASK_ID if number == 1 else f"{number:032x}"


def http(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "Connection: close", *headers, "", ""]).encode() + body


def raw(data: bytes, *, reset: bool = False) -> Script:
    """Read the request, send exactly these bytes, then FIN or RST."""

    async def script(connection: Connection) -> None:
        await connection.request()
        if data:
            await connection.send(data)
        if reset:
            connection.reset()

    return script


async def stall(connection: Connection) -> None:
    """Read the request and never answer."""
    await connection.request()
    await asyncio.sleep(3600)


async def silent(connection: Connection) -> None:
    """Read nothing and send nothing."""
    await asyncio.sleep(3600)


async def hang_up(connection: Connection) -> None:
    """Close at once, before anything is read."""


async def reset_at_once(connection: Connection) -> None:
    connection.reset()


async def hang_up_in_handshake(connection: Connection) -> None:
    await connection.reader.read(10)


@contextlib.contextmanager
def in_a_thread(body: bytes) -> Iterator[tuple[str, threading.Event]]:
    """A server for one request that works while the loop is blocked.

    Yields its URL and an event for the arrival of the request, which it answers 0.1 s later.
    """
    arrived = threading.Event()

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            arrived.set()
            time.sleep(0.1)
            connection.sendall(http(body))
            connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=serve, daemon=True)
        server.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", arrived
        server.join(5)


@contextlib.contextmanager
def resetting_unread() -> Iterator[tuple[str, list[bytes]]]:
    """A server that resets each connection as soon as a JSON request is complete in it, and reads nothing.

    It is a thread, since the streams of a loop read ahead. Yields its URL, and what it has seen of requests
    without reading them.
    """
    seen: list[bytes] = []

    def serve() -> None:
        while True:
            connection, _ = listening.accept()
            if closing:
                return connection.close()
            while not (data := connection.recv(65536, socket.MSG_PEEK)).endswith(b"}"):
                time.sleep(0.001)
            seen.append(data)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    closing: list[bool] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=serve, daemon=True)
        server.start()
        address = listening.getsockname()
        try:
            yield f"http://127.0.0.1:{address[1]}", seen
        finally:
            closing.append(True)
            socket.create_connection(address).close()
            server.join(5)


def unused_port() -> int:
    """A port on loopback without a listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def open_sockets() -> int:
    """The number of sockets that this process holds; 0 where there is no /proc."""
    fds = Path("/proc/self/fd")
    count = 0
    for fd in fds.iterdir() if fds.exists() else ():
        with contextlib.suppress(OSError):
            count += str(fd.readlink()).startswith("socket:")
    return count
