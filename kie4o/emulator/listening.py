"""The listening sockets of an emulator, which can refuse connections for some time and keep their port."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import attrs
from aiohttp import web

BACKLOG = 4096  # a connection that the kernel refuses is tried again after a real second
_TURNS = 3  # of the loop, until its server knows a connection that was made before


@attrs.define(eq=False)
class Listener:
    """Accepts connections for a runner that is set up."""

    _runner: web.AppRunner
    _servers: list[asyncio.Server] = attrs.field(factory=list, init=False)
    _reserved: list[socket.socket] = attrs.field(factory=list, init=False)
    _tasks: set[asyncio.Task[None]] = attrs.field(factory=set, init=False)

    async def open(self, host: str, port: int) -> int:
        """Listen, and return the port."""
        server = await self._listening(host=host, port=port)
        return int(server.sockets[0].getsockname()[1])

    def refuse(self, seconds: float) -> None:
        """Refuse connections from now on, for so many seconds of the loop.

        Idle connections are closed, and others once their answer is sent.
        """
        addresses = [one.getsockname() for server in self._servers for one in server.sockets]
        if not addresses:  # it refuses already
            return
        self._stop()
        for address in addresses:
            self._reserved.append(_bound(address))
        connections = self._runner.server.connections if self._runner.server else []
        for work in (self._reopen(seconds), *(map(_close, connections))):
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Stop listening. Connections that are open stay so, and the runner knows all of them.

        CPython (3.11 to 3.13) never closes a connection that it accepts in the turn in which a server closes.
        """
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        self._stop()

    async def _listening(self, **where: Any) -> asyncio.Server:
        """A server that `aclose` closes, also if this is cancelled: creating one that accepts at once would
        then lose its sockets."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self._protocol, backlog=BACKLOG, start_serving=False, **where)
        self._servers.append(server)
        await server.start_serving()
        return server

    async def _reopen(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        while self._reserved:
            await self._listening(sock=self._reserved[0])  # which owns it now
            self._reserved.pop(0)

    def _stop(self) -> None:
        for server in self._servers:
            server.close()
        for one in self._reserved:
            one.close()
        self._servers.clear()
        self._reserved.clear()

    def _protocol(self) -> asyncio.BaseProtocol:
        server = self._runner.server
        if server is None:
            raise RuntimeError("the runner is not set up")
        return server()


async def _close(connection: web.RequestHandler) -> None:
    """Close a connection: now if it is idle, or else once its answer is sent, however long that takes."""
    connection.close()
    await connection.shutdown(None)


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
