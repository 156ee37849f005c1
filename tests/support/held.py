"""A server that leaves the answers to the test, and an address whose connections are never established."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import defaultdict
from collections.abc import Iterator

from faults import Connection, FaultServer, http


class HeldServer(FaultServer):
    """Holds each submit until the test answers it.

    Submits are told apart by their prompts, and each that is accepted gets a task id of its own.
    """

    def __init__(self) -> None:
        super().__init__(self._hold)
        self._held: defaultdict[str, list[asyncio.Future[bytes]]] = defaultdict(list)
        self._accepted = 0

    @property
    def prompts(self) -> list[str]:
        """Of the submits that arrived, in this order."""
        return [json.loads(body)["prompt"] for body in self.bodies]

    def accept(self, prompt: str, task_id: str = "") -> str:
        """Answer the oldest submit of this prompt with this or a new task id, and return the id."""
        self._accepted += 1
        task_id = task_id or f"{self._accepted:032x}"
        self._answer(prompt, http(b'{"code":200,"msg":"success","data":{"taskId":"%s"}}' % task_id.encode()))
        return task_id

    def refuse(self, prompt: str, code: int, message: str = "no") -> None:
        body = json.dumps({"code": code, "msg": message, "data": None}).encode()
        self._answer(prompt, http(body))

    def lose(self, prompt: str) -> None:
        """Close the connection without an answer."""
        self._answer(prompt, b"")

    def _answer(self, prompt: str, data: bytes) -> None:
        self._held[prompt].pop(0).set_result(data)

    async def _hold(self, connection: Connection) -> None:
        while True:
            body = await connection.request()
            answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            self._held[json.loads(body)["prompt"]].append(answer)
            data = await answer
            if not data:
                return
            await connection.send(data)


@contextlib.contextmanager
def never_connects() -> Iterator[str]:
    """The URL of a server that does not accept connections: its backlog is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield f"http://127.0.0.1:{full.getsockname()[1]}"
