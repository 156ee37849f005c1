"""The listening sockets of an emulator, which can refuse connections for some time and keep their port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Any

import attrs
from aiohttp import web

BACKLOG = 4096  # a connection that the kernel refuses is tried again after a real second


@attrs.define(eq=False)
class Listener:
    """Accepts connections for a runner that is set up."""

    _runner: web.AppRunner
    _servers: list[asyncio.Server] = attrs.field(factory=list, init=False)
    _reopening: asyncio.Task[None] | None = attrs.field(default=None, init=False)

    async def open(self, host: str, port: int) -> int:
        """Listen, and return the port."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self._protocol, host, port, backlog=BACKLOG)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    def refuse(self, seconds: float) -> None:
        """Refuse connections from now on, for so many seconds of the loop.

        Idle connections are closed, and others once their answer is sent.
        """
        addresses = [one.getsockname() for server in self._servers for one in server.sockets]
        if not addresses:  # it refuses already
            return
        self._stop()
        reserved = [_bound(address) for address in addresses]
        for connection in self._runner.server.connections if self._runner.server else ():
            connection.close()
        self._reopening = asyncio.create_task(self._reopen(reserved, seconds))

    async def aclose(self) -> None:
        """Stop listening. Connections that are open stay so."""
        if self._reopening is not None:
            self._reopening.cancel()
            await asyncio.gather(self._reopening, return_exceptions=True)
        self._stop()

    async def _reopen(self, reserved: list[socket.socket], seconds: float) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            for one in reserved:
                stack.enter_context(one)
            await asyncio.sleep(seconds)
            for one in reserved:
                self._servers.append(await loop.create_server(self._protocol, sock=one, backlog=BACKLOG))
            stack.pop_all()  # they belong to the servers now

    def _stop(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    def _protocol(self) -> asyncio.BaseProtocol:
        server = self._runner.server
        if server is None:
            raise RuntimeError("the runner is not set up")
        return server()


def _bound(address: Any) -> socket.socket:
    """A socket that keeps an address for later and does not listen, so that connections are refused."""
    family = socket.AF_INET6 if len(address) == 4 else socket.AF_INET
    reserved = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # connections that were just closed keep the address busy otherwise
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            reserved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        reserved.setblocking(False)
        reserved.bind(address)
    except BaseException:
        reserved.close()
        raise
    return reserved
