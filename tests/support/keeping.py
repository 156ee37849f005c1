"""A server that keeps its connections, and the four kinds of connection that a paid POST can get.

Each answer says which request it is for, so that a test can tell its own POSTs from others: a submit has the
prompt in its task id.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Literal

from canary import CANARY_KEY
from faults import Connection, FaultServer, http

from kie4o.settings import resolve
from kie4o.submission.verdict import Judgement, judge
from kie4o.transport.paid_body import PaidAttempt
from kie4o.transport.transport import Transport
from kie4o.wire.requests import CREDITS

Kind = Literal["new", "ahead", "kept", "proven"]
KINDS: tuple[Kind, ...] = ("new", "ahead", "kept", "proven")


def kept(body: bytes, status: str = "200 OK") -> bytes:
    """An answer after which the connection stays open."""
    return http(body, status).replace(b"Connection: close\r\n", b"")


def accepted(task_id: str) -> bytes:
    return kept(json.dumps({"code": 200, "msg": "success", "data": {"taskId": task_id}}).encode())


def running(task_id: str) -> bytes:
    data = {"taskId": task_id, "status": "GENERATING", "successFlag": 0, "progress": "0.10"}
    return kept(json.dumps({"code": 200, "msg": "success", "data": data}).encode())


def id_for(prompt: str) -> str:
    return f"{prompt:0>32}"


class Keeping(FaultServer):
    """Answers everything on every connection, unless it is told to be silent.

    `links` are its connections, and `carried` the prompts of the submits by the index of their connection.
    """

    def __init__(self, *, tls: bool = False) -> None:
        super().__init__(self._answers, tls=tls)
        self.links: list[Connection] = []
        self.carried: list[tuple[str, int]] = []
        self.on_accept: Callable[[Connection], object] = lambda _: None
        self.silent_until = 0  # connections with a smaller index swallow what arrives
        self.go = asyncio.Event()  # answers wait for it
        self.go.set()

    @property
    def prompts(self) -> list[str]:
        return [prompt for prompt, _ in self.carried]

    async def _answers(self, connection: Connection) -> None:
        index = len(self.links)
        self.links.append(connection)
        self.on_accept(connection)
        while True:
            body = await connection.request()
            head = self.heads[-1]
            if head.startswith(b"POST "):
                self.carried.append((json.loads(body)["prompt"], index))
            if index < self.silent_until:
                await asyncio.sleep(3600)
            await self.go.wait()
            await connection.send(self.answer(head, body))

    def answer(self, head: bytes, body: bytes) -> bytes:
        if head.startswith(b"POST "):
            return accepted(id_for(json.loads(body)["prompt"]))
        _, asked, rest = head.partition(b"taskId=")
        return running(rest.split()[0].decode()) if asked else kept(b'{"code":200,"msg":"","data":100}')


def transport_to(
    url: str, timeout: float = 5.0, *, proxy: str | None = None, upload_url: str | None = None
) -> Transport:
    settings = resolve(
        api_key=CANARY_KEY, base_url=url, upload_url=upload_url, webhook_key=None, environment={}
    )
    return Transport(settings, timeout=timeout, proxy=proxy)


async def pay(transport: Transport, prompt: str) -> tuple[PaidAttempt, Judgement]:
    attempt = PaidAttempt()
    await transport.pay(json.dumps({"prompt": prompt}).encode(), attempt)
    fault = attempt.fault or ("" if attempt.complete else "incomplete")
    return attempt, judge(sent=attempt.sent, status=attempt.status, body=attempt.body, fault=fault)


async def look(transport: Transport) -> None:
    await transport.read(CREDITS, lambda status, body, retry_after: None)


async def prepared(transport: Transport, kind: Kind) -> None:
    """Bring the transport to where its next POST gets a connection of this kind."""
    if kind in ("ahead", "kept"):
        transport.prepare(1)
        await opened(transport)
    if kind == "kept":
        assert (await pay(transport, "first"))[0].complete
    if kind == "proven":
        await look(transport)


async def opened(transport: Transport) -> None:
    """Until nothing is being opened ahead any more."""
    pool = transport._paid_pool
    assert pool is not None
    while pool.ahead.opening:
        await asyncio.sleep(0)


def held(transport: Transport) -> int:
    """How many connections were opened ahead and not used yet."""
    pool = transport._paid_pool
    return 0 if pool is None else len(pool.ahead.ready)
