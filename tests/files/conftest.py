"""Every test of this folder connects to loopback only."""

import asyncio
import socket
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def connects(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that sockets connect to. Any address but loopback fails the test."""
    seen: list[str] = []
    original = asyncio.SelectorEventLoop.sock_connect

    async def sock_connect(self: Any, sock: socket.socket, address: Any) -> None:
        seen.append(address[0])
        assert address[0] in ("127.0.0.1", "::1"), f"traffic to {address}"
        await original(self, sock, address)

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", sock_connect)
    return seen
