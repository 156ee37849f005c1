"""Every test of this folder connects to loopback only."""

import asyncio
import contextlib
import socket
from typing import Any

import pytest
from clocks import new_loop


def loop_classes() -> set[type[asyncio.AbstractEventLoop]]:
    """The classes of the loops that these tests run on: asyncio's for selectors, and what the run uses."""
    with contextlib.closing(new_loop()) as loop:
        return {asyncio.SelectorEventLoop, type(loop)}


@pytest.fixture(autouse=True)
def connects(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that sockets connect to. Any address but loopback fails the test."""
    seen: list[str] = []

    def spy_on(kind: type[asyncio.AbstractEventLoop]) -> None:
        original = kind.sock_connect

        async def sock_connect(self: Any, sock: socket.socket, address: Any) -> None:
            seen.append(address[0])
            assert address[0] in ("127.0.0.1", "::1"), f"traffic to {address}"
            await original(self, sock, address)

        monkeypatch.setattr(kind, "sock_connect", sock_connect)

    for kind in loop_classes():
        spy_on(kind)
    return seen
