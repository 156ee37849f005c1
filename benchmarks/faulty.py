"""Emulators of Kie that misbehave, in their own process, and what they know about the tasks that they sold.

    python -m benchmarks.faulty [--accounts 2] [--load all|steady] [--seed 1]

Each account is an emulator without a limit of its own: it judges afterwards whether a client kept to one.
The process prints its addresses as one line of JSON, the accounts' first, and serves until its standard input
is closed. `GET /__facts?account=0` returns the counts of an account and its tasks, each once, when it is old
enough to be settled; with `&settled=0` at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import struct
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, cast

import attrs
from aiohttp import web

from kie4o.emulator import Call, Emulator, Outcome
from kie4o.emulator.envelopes import api_envelope
from kie4o.emulator.routes import GENERATE
from kie4o.emulator.tasks import Answer, Task

WEBHOOK_KEY = "webhook-key-of-the-soak"
TIMEOUT = 5.0  # seconds that the clients wait for an answer
LATE = 7.0  # so that an answer comes after that
IN_TIME = 3.0  # an answer that was sent within this time is certainly received
SETTLED = 20.0  # seconds after which an answered task has to be stored, although writes fail
ENOUGH = 10**9

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Told = Literal["answered", "lost", "perhaps"]  # whether the answer to the submit reached the client

PAGE = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
CODES = {"429": 429, "455": 455, "500": 500, "550": 550}
# Of a thousand requests so many get each of these in place of a good answer.
FAULTS = {"reset before": 8, "reset after": 8, "cut": 8, "page": 8, "late": 3, "slow": 30, "trickle": 15}
FAULTS |= {"429": 3, "455": 8, "500": 8, "550": 4}

OUTCOMES = {
    "success": 930,
    "partial": 20,
    "no_images": 10,
    "failed": 15,
    "policy": 10,
    "input": 10,
    "stuck": 5,
}
CALLS: dict[Call, int] = {
    Call(): 60,
    Call("never"): 10,
    Call(copies=2): 5,
    Call(delay=3.0): 5,
    Call("early"): 4,
    Call("together"): 4,
    Call(content="altered"): 3,
    Call(content="false failure"): 3,
    Call(content="forged", repeats=1): 3,
    Call(content="replayed"): 2,
    Call(content="unknown task", repeats=1): 1,
}


@attrs.frozen
class Load:
    """What becomes of a thousand requests, a thousand tasks and a hundred callbacks."""

    faults: Mapping[str, int]
    outcomes: Mapping[str, int]
    calls: Mapping[Call, int]


LOADS = {
    "all": Load(FAULTS, OUTCOMES, CALLS),
    # Five of a hundred go wrong.
    "steady": Load(
        {"page": 12, "reset before": 8, "reset after": 8, "cut": 4, "late": 2, "slow": 10, "trickle": 6},
        {"success": 950, "failed": 30, "policy": 10, "no_images": 10},
        {Call(): 95, Call("never"): 5},
    ),
}


@attrs.define(kw_only=True, eq=False)
class Faulty(Emulator):
    """One account. `sold` has the tasks that are no facts yet, `told` what their client knows."""

    load: Load
    chance: random.Random
    sold: deque[Task] = attrs.field(factory=deque, init=False)
    told: dict[str, Told] = attrs.field(factory=dict, init=False)
    twice: int = attrs.field(default=0, init=False)
    most: int = attrs.field(default=0, init=False)  # tasks in any window
    _asked: set[object] = attrs.field(factory=set, init=False)
    _latest: deque[float] = attrs.field(factory=deque, init=False)

    def _draw(self, weights: Mapping[Any, int]) -> Any:
        return self.chance.choices(list(weights), list(weights.values()))[0]

    def create_task(self, body: dict[str, Any], now: float, *, key: str = "") -> tuple[Answer, Task | None]:
        self.outcome, self.callback = Outcome(self._draw(self.load.outcomes)), self._draw(self.load.calls)
        answer, task = super().create_task(body, now, key=key)
        if task is not None:
            self.sold.append(task)
            self._count(task, now)
            self.told[task.id] = "lost"  # until its answer was sent
        return answer, task

    def _count(self, task: Task, now: float) -> None:
        """As it comes: to count tens of thousands afterwards would stall the server for seconds."""
        prompt = task.request.get("prompt")
        self.twice += prompt in self._asked
        self._asked.add(prompt)
        self._latest.append(now)
        while now - self._latest[0] >= self.per:
            self._latest.popleft()
        self.most = max(self.most, len(self._latest))

    def _app(self) -> web.Application:
        app = super()._app()
        app.middlewares.append(self._misbehave)
        return app

    @web.middleware
    async def _misbehave(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        fault = self._draw({**self.load.faults, "": 1000 - sum(self.load.faults.values())})
        began = self.now()
        if fault == "reset before":
            return _reset(request)
        if fault == "page":
            return web.Response(status=502, body=PAGE, content_type="text/html")
        if fault in CODES:
            return api_envelope(Answer(CODES[fault], http_status=200))
        answer = cast(web.Response, await handler(request))
        if fault == "reset after":
            return _reset(request)
        body = bytes(cast(bytes, answer.body or b""))
        task_id = _task_id(body) if request.path == GENERATE else None
        await asyncio.sleep({"late": LATE, "slow": 1.0}.get(fault, 0.0))
        if fault == "cut":
            await _send(request, answer, [body[: len(body) // 2]])
            return _reset(request)
        sent = await _send(request, answer, _pieces(body) if fault == "trickle" else [body])
        if task_id is not None and fault != "late":
            # A client that saw no answer for so long may have given up by itself, on a machine under load.
            self.told[task_id] = "answered" if self.now() - began < IN_TIME else "perhaps"
        elif task_id is not None:
            self.told[task_id] = "perhaps"
        return sent

    def facts(self, settled: float) -> dict[str, Any]:
        """The counts, and the tasks that are older than `settled` seconds and were not returned before."""
        tasks = []
        while self.sold and self.sold[0].created < self.now() - settled:
            task = self.sold.popleft()
            tasks.append([task.id, task.request.get("prompt"), self.told.pop(task.id)])
        return {
            "posts": len(self.submits),
            "tasks": self.paid,
            "twice": self.twice,
            "most": self.most,
            "looks": self.windows("look"),
            "settled": tasks,
        }


def _task_id(body: bytes) -> str | None:
    return (json.loads(body).get("data") or {}).get("taskId")


def _pieces(body: bytes) -> list[bytes]:
    return [body[at : at + 1 + len(body) // 8] for at in range(0, len(body), 1 + len(body) // 8)]


async def _send(request: web.Request, answer: web.Response, pieces: list[bytes]) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.content_length = len(cast(bytes, answer.body or b""))
    await response.prepare(request)
    for piece in pieces:
        await response.write(piece)
        if len(pieces) > 1:
            await asyncio.sleep(0.02)
    return response


def _reset(request: web.Request) -> web.Response:
    """RST instead of an answer."""
    if request.transport is not None:
        sock = request.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response()  # discarded


async def serve(accounts: int, per: float, seed: int, load: Load) -> None:
    chance = random.Random(seed)
    emulators = [
        Faulty(
            load=load,
            chance=chance,
            clock="real",
            duration=lambda: chance.uniform(0.2, 3.0),
            limit=ENOUGH,
            per=per,
            credits=float(ENOUGH),
            pictures=False,
            webhook_key=WEBHOOK_KEY,
            latency=lambda: chance.uniform(0.0, 0.05),
        )
        for _ in range(accounts)
    ]

    async def facts(request: web.Request) -> web.Response:
        emulator = emulators[int(request.query["account"])]
        return web.json_response(emulator.facts(float(request.query.get("settled", SETTLED))))

    app = web.Application()
    app.router.add_get("/__facts", facts)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    for emulator in emulators:
        await emulator.start()
    addresses = [emulator.url for emulator in emulators]
    print(json.dumps([*addresses, f"http://127.0.0.1:{runner.addresses[0][1]}"]), flush=True)
    await asyncio.to_thread(sys.stdin.buffer.read)  # until it is closed, at the latest by the parent's end
    await asyncio.gather(*(each.aclose() for each in (*emulators,)), runner.cleanup())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--accounts", type=int, default=2)
    parser.add_argument("--load", choices=LOADS, default="all")
    parser.add_argument("--per", type=float, default=1.0, help="seconds of the window that is judged")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.accounts, arguments.per, arguments.seed, LOADS[arguments.load]))


if __name__ == "__main__":
    main()
