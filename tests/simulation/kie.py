"""An emulated Kie on a socket of loopback, with exact books of what it was asked and what it answered.

Each fault is drawn from the seed, the prompt and how often that was submitted, or how often the task was
polled: a world that is shrunk keeps the faults of what is left.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import hmac
import json
import random
import re
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs

from simulation.loop import EPOCH, WorldLoop
from simulation.plan import Plan

KEY = "sk-canary-0f7d3be59a1c4426"  # what the tests search errors, logs and files for

# What may become of a submit besides its answer, and how often if there are as many faults as possible.
FATES = {
    "refused": 0.16,
    "reset": 0.08,
    "closed": 0.05,
    "cut": 0.08,
    "stalled": 0.05,
    "late": 0.05,
    "error": 0.10,
}
REFUSALS = [429, 429, 455, 550, 402]
FORGERIES = ["ref", "id", "failure", "urls", "early", "sibling", "sibling", "stranger"]
RESET_AT_ACCEPT = 0.06
CALLBACK_PATIENCE = 15.0  # seconds that Kie waits for the answer to a callback (callbacks page)
CALLBACK_DELAYS = [5.0, 15.0, 45.0]

Receiver = Callable[[dict[str, str], bytes, str], Awaitable[int]]  # headers, body, ref: the status


@attrs.define(eq=False)
class Task:
    """A task of Kie's."""

    id: str
    prompt: str
    ref: str | None
    created: float
    ends: float
    good: bool
    hidden_until: float = 0.0  # nobody finds its record before
    lag: float = 0.0  # by which the record is late
    empty: int = 0  # how often its record has no URLs yet
    denied: bool = False  # a poll was answered with 404
    looks: list[tuple[float, int]] = attrs.field(factory=list)  # when, and by which life

    @property
    def urls(self) -> tuple[str, ...]:
        return (f"https://files.kie.ai/{self.id}/0.png",)


@attrs.define(eq=False)
class Post:
    """A submit that arrived, complete."""

    at: float
    prompt: str
    nth: int  # of this prompt
    life: int
    ref: str | None
    fate: str = "answered"
    task: Task | None = None
    answered_at: float | None = None  # its whole answer was written to an open connection
    answered_turn: int = 0
    id_arrived_at: float | None = None  # of an answer that was cut after the id, and not reset at once

    @property
    def refused(self) -> bool:
        return self.fate == "refused"

    def __str__(self) -> str:
        task = f" task {self.task.id[:6]}" if self.task else ""
        return f"POST {self.prompt} #{self.nth} of life {self.life}, {self.fate}{task}"


@attrs.frozen
class CallbackSent:
    at: float
    task: Task
    forged: str  # how, or "" if it is true
    status: int | None


def listening_socket(port: int = 0) -> socket.socket:
    """Without IPPROTO_TCP asyncio sets no TCP_NODELAY, and bytes wait in the kernel while time jumps."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    sock.setblocking(False)
    return sock


class Connection(asyncio.Protocol):
    """One connection to Kie; `dead` once it was closed by either side."""

    transport: asyncio.Transport

    def __init__(self, kie: Kie) -> None:
        self._kie = kie
        self._received = b""
        self.dead = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._kie.accepted(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.dead = True
        self._kie.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self._kie.misplaced += data.count(KEY.encode()) - data.count(b"Bearer " + KEY.encode())
        self._received += data
        head, complete, rest = self._received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        size = int(length[1]) if length else 0
        if complete and len(rest) >= size:
            self._received = rest[size:]
            method, target, _ = head.partition(b"\r\n")[0].decode().split(" ")
            self._kie.requested(self, method, target, rest[:size])

    def write(self, data: bytes) -> bool:
        if self.dead or self.transport.is_closing():
            return False
        self.transport.write(data)
        return True

    def close(self) -> None:
        if not self.dead:
            self.transport.close()

    def reset(self) -> None:
        if not self.dead:
            self.dead = True
            with contextlib.suppress(OSError):
                sock = self.transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()


def http(body: object, status: int = 200) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = "text/html" if isinstance(body, bytes) else "application/json"
    return (
        f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        + content
    )


class Kie:
    """The server and its books: `posts`, `tasks`, `callbacks`."""

    def __init__(
        self, loop: WorldLoop, plan: Plan, *, event: Callable[[str, str], object], note: Callable[..., object]
    ) -> None:
        self.posts: list[Post] = []
        self.tasks: dict[str, Task] = {}
        self.callbacks: list[CallbackSent] = []
        self.misplaced = 0  # how often the key came in anything but its header
        self.connections: set[Connection] = set()
        self.life = 0  # that runs now
        self.resets_at_accept = 0
        self.receivers: dict[str, Receiver] = {}  # by the letter of the client
        self._loop = loop
        self._plan = plan
        self._event = event
        self._note = note
        self._accepted = 0
        self._submits: Counter[str] = Counter()  # by prompt
        self._tasks: set[asyncio.Task[None]] = set()
        # Bound and never listening: while Kie is down, connections are refused and nobody else gets the port.
        self._held = listening_socket()
        self._server: asyncio.Server | None = None

    # -- up and down -----------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        return int(self._held.getsockname()[1])

    async def start(self) -> None:
        sock = listening_socket(self.port)
        self._server = await self._loop.create_server(lambda: Connection(self), sock=sock)

    async def be_down(self, after: float, seconds: float) -> None:
        await asyncio.sleep(after)
        self._note("kie", f"is down for {seconds:g} s")
        self._stop()
        for connection in list(self.connections):
            if self._drawn("down", self._accepted).random() < 0.5:
                connection.reset()
        await asyncio.sleep(seconds)
        await self.start()

    def close(self) -> None:
        self._stop()
        for task in self._tasks:
            task.cancel()
        for connection in list(self.connections):
            connection.transport.abort()
        self._held.close()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine, name="kie")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _drawn(self, *words: object) -> random.Random:
        return random.Random(":".join(map(str, (self._plan.seed, *words))))

    # -- requests --------------------------------------------------------------------------------------

    def accepted(self, connection: Connection) -> None:
        self.connections.add(connection)
        self._accepted += 1
        if self._drawn("accept", self._accepted).random() < RESET_AT_ACCEPT * self._plan.faults:
            self.resets_at_accept += 1
            self._note("kie", "resets a new connection")
            connection.reset()

    def requested(self, connection: Connection, method: str, target: str, body: bytes) -> None:
        url = urlsplit(target)
        if method == "POST" and url.path.endswith("/generate"):
            self._submitted(connection, json.loads(body))
        elif url.path.endswith("/record-info"):
            self._polled(connection, parse_qs(url.query)["taskId"][0])
        else:
            connection.write(http({"code": 404, "msg": "no such page"}, 404))

    def _submitted(self, connection: Connection, body: dict[str, Any]) -> None:
        prompt, callback = body["prompt"], body.get("callBackUrl")
        self._submits[prompt] += 1
        ref = None if callback is None else callback.rsplit("/", 1)[-1]
        post = Post(self._loop.now, prompt, self._submits[prompt], self.life, ref)
        self.posts.append(post)
        self._event("arrival", prompt)
        chance = self._drawn("post", prompt, post.nth)
        delay = chance.choice([0.001, chance.uniform(0, 0.2), chance.uniform(0, 2.0)])
        shares = [share * self._plan.faults for share in FATES.values()]
        post.fate = chance.choices([*FATES, "answered"], [*shares, 1 - sum(shares)])[0]
        if post.fate == "answered" or (post.fate != "refused" and chance.random() < 0.7):
            post.task = self._new_task(post, chance)
        self._note("kie", post)
        later = functools.partial(self._loop.call_later, delay)
        if post.fate == "reset":
            later(connection.reset)
        elif post.fate == "closed":
            later(connection.close)
        elif post.fate == "refused":
            code = chance.choice(REFUSALS)
            later(
                self._answer, connection, post, http({"code": code, "msg": "no"}, chance.choice([200, code]))
            )
        elif post.fate == "error":
            code = chance.choice([500, 408, 501])
            page, answer = (
                http(b"<html>", 502),
                http({"code": code, "msg": "internal"}, chance.choice([200, 500])),
            )
            later(connection.write, chance.choice([page, answer, answer]))
        elif post.fate in ("late", "cut", "answered"):
            named = {"taskId": post.task.id} if post.task else {}
            answer = {"code": 200 if post.task else 500, "msg": ""}
            answer |= named if chance.random() < 0.1 else {"data": named}  # older answers have it at the root
            self._send(connection, post, http(answer), delay, chance)

    def _send(
        self, connection: Connection, post: Post, answer: bytes, delay: float, chance: random.Random
    ) -> None:
        """The answer with the id: too late, cut, in two pieces or as a whole."""
        at = chance.randint(1, len(answer) - 1)
        if post.fate == "late":
            self._loop.call_later(self._plan.timeout + chance.uniform(0.01, 5), connection.write, answer)
        elif post.fate == "cut":
            end = chance.choice(["reset", "close", ""])
            pause = chance.choice([0.0, 0.0, 0.5])
            self._loop.call_later(delay, self._cut, connection, post, answer[:at], end, pause)
        elif chance.random() < 0.3:
            self._loop.call_later(delay, connection.write, answer[:at])
            self._loop.call_later(delay + chance.uniform(0, 0.3), self._answer, connection, post, answer[at:])
        else:
            self._loop.call_later(delay, self._answer, connection, post, answer)

    def _answer(self, connection: Connection, post: Post, rest: bytes) -> None:
        if connection.write(rest):
            post.answered_at, post.answered_turn = self._loop.now, self._loop.turn
            self._note("kie", f"has answered the {post}")
            self._event("answer", post.prompt)
        if self._drawn("close", post.prompt, post.nth).random() < 0.1:
            connection.close()

    def _cut(self, connection: Connection, post: Post, piece: bytes, end: str, pause: float) -> None:
        readable = end != "reset" or pause > 0  # a reset takes away what was not read
        if connection.write(piece) and post.task and f'{post.task.id}"'.encode() in piece and readable:
            post.id_arrived_at = self._loop.now
        if end:
            self._loop.call_later(pause, getattr(connection, end))

    def _new_task(self, post: Post, chance: random.Random) -> Task:
        # Its id depends on the prompt and the count alone, so that it survives the shrinking.
        task_id = hashlib.md5(f"{self._plan.seed}:{post.prompt}:{post.nth}".encode()).hexdigest()
        now, faults = self._loop.now, self._plan.faults
        duration = chance.choice([0.0, chance.uniform(0.2, 3), chance.uniform(1, 30), chance.uniform(5, 60)])
        task = Task(task_id, post.prompt, post.ref, now, now + duration, good=chance.random() < 0.85)
        if chance.random() < 0.2 * faults:
            task.hidden_until = now + chance.uniform(0, 20)
        if chance.random() < 0.2 * faults:
            task.lag = chance.uniform(0, 3)
        if chance.random() < 0.2 * faults:
            task.empty = chance.randint(1, 3)
        self.tasks[task_id] = task
        if post.ref is not None:
            self._plan_callbacks(task, chance)
        return task

    # -- polls -----------------------------------------------------------------------------------------

    def _polled(self, connection: Connection, task_id: str) -> None:
        task = self.tasks.get(task_id)
        if task is None:
            connection.write(http({"code": 422, "msg": "recordInfo is null", "data": None}))
            return
        task.looks.append((self._loop.now, self.life))
        self._note("kie", f"is asked for task {task_id[:6]} of {task.prompt}")
        self._event("look", task.prompt)
        chance, answer = self._drawn("look", task_id, len(task.looks)), http(self._record(task))
        later = functools.partial(
            self._loop.call_later, chance.choice([0.001, chance.uniform(0, 0.3), chance.uniform(0, 2)])
        )
        unlikely = chance.random() / self._plan.faults if self._plan.faults else 1.0
        if unlikely < 0.05:
            later(connection.reset)
        elif unlikely < 0.22:
            later(connection.write, chance.choice([http({}, 500), http({"code": 429}), http({"code": 455})]))
        elif unlikely < 0.26:
            later(connection.write, answer[: len(answer) // 2])
            later(connection.close)
        elif unlikely < 0.27:
            task.denied = True
            later(connection.write, http({"code": 404, "msg": "?"}, 404))
        elif unlikely > 0.30:
            later(connection.write, answer)

    def _record(self, task: Task) -> dict[str, Any]:
        now = self._loop.now
        if now < task.hidden_until:
            return {"code": 422, "msg": "recordInfo is null", "data": None}
        data = {
            "taskId": task.id,
            "status": "GENERATING",
            "successFlag": 0,
            "response": None,
            "errorCode": None,
        }
        data |= {
            "createTime": int((EPOCH + task.created) * 1000),
            "paramJson": json.dumps({"prompt": task.prompt}),
        }
        if now >= task.ends + task.lag:
            data["completeTime"] = int((EPOCH + task.ends) * 1000)
            if task.good:
                urls = task.urls if task.empty == 0 else ()
                task.empty = max(0, task.empty - 1)
                data |= {"status": "SUCCESS", "successFlag": 1, "response": {"resultUrls": urls}}
            else:
                data |= {
                    "status": "GENERATE_FAILED",
                    "successFlag": 3,
                    "errorCode": 400,
                    "errorMessage": "no",
                }
        return {"code": 200, "msg": "success", "data": data}

    # -- callbacks -------------------------------------------------------------------------------------

    def _plan_callbacks(self, task: Task, chance: random.Random) -> None:
        """Some are lost, late or repeated; some are forged."""
        faults = self._plan.faults
        if chance.random() < 0.4 * faults:
            delay, how = (
                chance.choice([0.0, chance.uniform(0, 10), chance.uniform(0, 60)]),
                chance.choice(FORGERIES),
            )
            self.spawn(self._forge(task, delay, how))
        if chance.random() < 0.15 + 0.2 * faults:
            return
        delays = [0.0, chance.uniform(0, 0.5), chance.uniform(0, 5), chance.uniform(0, 60)]
        times = [task.ends + chance.choice(delays)]
        while chance.random() < 0.3 * faults + 0.1:
            times.append(times[-1] + chance.choice([0.0, 0.1, 5.0]))
        for at in times:
            self.spawn(self._call_back(task, at))

    async def _call_back(self, task: Task, at: float) -> None:
        await asyncio.sleep(at - self._loop.now)
        for delay in [*CALLBACK_DELAYS, 0.0]:
            status = await self._post(task.prompt[0], task, task.ref, self.callback_of(task))
            if status == 200:
                return
            await asyncio.sleep(delay)

    async def _forge(self, task: Task, delay: float, how: str) -> None:
        """By somebody who has seen other callbacks, with their signatures."""
        await asyncio.sleep(delay)
        letter, about, ref, urls, good = task.prompt[0], task, task.ref, task.urls, task.good
        if how == "sibling":
            others = [
                each for each in self.tasks.values() if each.prompt[0] == letter and self._is_settled(each)
            ]
            others = [each for each in others if each is not task]
            about = others[-1] if others else task
            good = about.good
        elif how == "stranger":
            letter = next((each for each in self.receivers if each != letter), letter)
        elif how == "urls":
            good, urls = True, ("https://evil.example/0.png",)
        elif how == "failure":
            good = False
        elif how == "ref":
            ref = "x" * 24
        body = self.callback_of(about, good=good, urls=urls)
        if how == "id":
            body = body.replace(about.id.encode(), b"f" * 32)
        await self._post(letter, about, ref, body, forged=how)

    def _is_settled(self, task: Task) -> bool:
        """Whether the client knows whose it is. Otherwise a callback with a true ref may name it."""
        post = next(post for post in self.posts if post.task is task)
        soon = self._loop.now - 4 * self._plan.slow - 0.1
        return post.life == self.life and post.answered_at is not None and post.answered_at < soon

    async def _post(
        self, letter: str, about: Task, ref: str | None, body: bytes, *, forged: str = ""
    ) -> int | None:
        receiver, status = self.receivers.get(letter), None
        if receiver is not None:
            headers = {"Content-Type": "application/json", **self.signature_of(about.id)}
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CALLBACK_PATIENCE):
                    status = await receiver(headers, body, ref or "")
        self.callbacks.append(CallbackSent(self._loop.now, about, forged, status))
        self._note(
            "kie", f"calls back about task {about.id[:6]} of {about.prompt}, {forged or 'true'}: {status}"
        )
        return status

    def callback_of(self, task: Task, *, good: bool | None = None, urls: tuple[str, ...] = ()) -> bytes:
        good = task.good if good is None else good
        info = {"result_urls": urls or task.urls} if good else None
        return json.dumps(
            {"code": 200 if good else 400, "msg": "", "data": {"taskId": task.id, "info": info}}
        ).encode()

    def signature_of(self, task_id: str) -> dict[str, str]:
        if self._plan.webhook_key is None:
            return {}
        stamp = str(int(EPOCH + self._loop.now))
        digest = hmac.new(
            self._plan.webhook_key.encode(), f"{task_id}.{stamp}".encode(), hashlib.sha256
        ).digest()
        return {"X-Webhook-Timestamp": stamp, "X-Webhook-Signature": base64.b64encode(digest).decode()}
