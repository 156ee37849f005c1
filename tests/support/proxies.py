"""A proxy on loopback, on raw sockets: it tunnels what it is asked to, or answers CONNECT with a refusal."""

from __future__ import annotations

import asyncio
import contextlib

from serving import LoopbackServer

_REASONS = {
    403: "Forbidden",
    405: "Method Not Allowed",
    407: "Proxy Authentication Required",
    502: "Bad Gateway",
    503: "Service Unavailable",
}
REFUSALS = {
    status: f"HTTP/1.1 {status} {reason}\r\nContent-Length: 0\r\n\r\n".encode()
    for status, reason in _REASONS.items()
}


class Proxy(LoopbackServer):
    """`async with Proxy(refusal)`: without a refusal it connects to the address that CONNECT names."""

    def __init__(self, refusal: bytes = b"") -> None:
        self._refusal = refusal
        self.heads: list[bytes] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://me:hunter2@{self.address}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        if self._refusal:
            writer.write(self._refusal)
            await writer.drain()
        else:
            host, port = head.split()[1].decode().split(":")
            there = await asyncio.open_connection(host, int(port))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(_copied(reader, there[1]), _copied(there[0], writer))


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
