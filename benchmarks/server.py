"""A fast loopback server that answers for Kie and for the other services, in its own process.

    python -m benchmarks.server [--core N]

A plain asyncio.Protocol for HTTP/1.1 with keep-alive, on uvloop if installed: it has to cost far less than
any client, and must not share an interpreter with one. It prints its addresses as a line of JSON and serves
until its standard input is closed, so that it ends with its parent. With `trustme` installed it also serves
TLS, with a certificate that it makes at the start and that is gone with it, and behind a relay that adds a
round trip.

`POST /__settings` sets the fields of `Settings` from a JSON object; `GET /__counts` returns what happened
since. A task is forgotten once a look has found it ended. The progress of a task changes at each look.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import ssl
import struct
import sys
import tempfile
import time
import zlib
from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import cast

import attrs

from . import formats
from .formats import BASE, ID, PROGRESS, Format
from .relay import relay

Answer = tuple[int, bytes]
ROUND_TRIP = 0.05  # seconds that the relay adds
PICTURE = b"/picture"  # the path of an image is anything that begins so
_WIDTH, _HEIGHT = 1024, 512  # of incompressible pixels: 1.5 MB

_REASONS = {200: b"200 OK", 404: b"404 Not Found", 429: b"429 Too Many Requests", 500: b"500 Server Error"}
# Typical headers of an API behind a CDN, which every client has to parse.
_HEAD = (
    b"Date: Fri, 02 Jan 2026 03:04:05 GMT\r\nContent-Type: application/json; charset=utf-8\r\n"
    b"Connection: keep-alive\r\nServer: cloudflare\r\nCache-Control: no-cache, no-store, max-age=0\r\n"
    b"X-Content-Type-Options: nosniff\r\ncf-cache-status: DYNAMIC\r\nCF-RAY: 9b1f6f3c2d4e5a6b-AMS\r\n"
)


@attrs.frozen(kw_only=True)
class Settings:
    """`looks`: a task ends at its n-th look; 0 means never. `seconds`: if set, it ends this long after its
    submit instead. `limit`: new tasks in any `window` seconds, counted on arrival; 0 means no limit.
    `latency`: seconds until an answer is sent."""

    looks: int = 4
    seconds: float = 0.0
    limit: int = 0
    window: float = 10.0
    latency: float = 0.0


class Task:
    __slots__ = ("at", "looks")

    def __init__(self, at: float) -> None:
        self.at = at
        self.looks = 0


class Desk:
    """The tasks of all services, and the answers to all requests."""

    def __init__(self, base: bytes) -> None:
        self._base = base
        self._tasks: dict[bytes, Task] = {}
        self._submits = 0
        self._routes: dict[bytes, Callable[[bytes, bytes], Answer]] = {}
        self._looks: list[tuple[bytes, Format]] = []
        self.set(Settings())
        for kind in (formats.KIE, formats.FAL, formats.REPLICATE, formats.OPENAI, formats.RUNWAYML):
            self._add(_with_base(kind, base))
        self._add_genai(_with_base(formats.GENAI, base))
        self._add_runware(_with_base(formats.RUNWARE, base))

    def set(self, settings: Settings) -> None:
        """Apply settings from now on; counts restart, existing tasks stay."""
        self.settings = settings
        self._admitted: deque[float] = deque()
        self.counts = {"submits": 0, "refused": 0, "looks": 0, "ended": 0, "connections": 0, "unknown": 0}

    def answer(self, method: bytes, path: bytes, body: bytes) -> Answer:
        if method == b"GET":
            for prefix, kind in self._looks:
                if path.startswith(prefix):
                    return self._read(kind, path[len(prefix) :])
            if path == b"/__counts":
                return 200, json.dumps(self.counts).encode()
            if path.startswith(PICTURE):
                return 200, png()
        elif method == b"POST":
            route = self._routes.get(path.partition(b"?")[0])
            if route is not None:
                return route(path, body)
            if path == b"/__settings":
                self.set(Settings(**json.loads(body)))
                return 200, b"{}"
        self.counts["unknown"] += 1
        return 404, formats.UNKNOWN

    # -- what all services have in common --------------------------------------------------------

    def _submit(self, kind: Format, task_id: bytes | None = None) -> Answer:
        now, settings = time.monotonic(), self.settings
        if settings.limit:
            while self._admitted and self._admitted[0] <= now - settings.window:
                self._admitted.popleft()
            if len(self._admitted) >= settings.limit:
                self.counts["refused"] += 1
                return 429, formats.TOO_MANY
            self._admitted.append(now)
        self._submits += 1
        self.counts["submits"] += 1
        task_id = task_id or b"5fd1%028x" % self._submits
        self._tasks[task_id] = Task(now)
        return 200, kind.accepted.replace(ID, task_id)

    def _look(self, kind: Format, task_id: bytes) -> Answer:
        task = self._tasks.get(task_id)
        if task is None:
            self.counts["unknown"] += 1
            return 404, formats.UNKNOWN
        self.counts["looks"] += 1
        task.looks += 1
        settings = self.settings
        if settings.seconds:
            ready = time.monotonic() >= task.at + settings.seconds
        else:
            ready = bool(settings.looks) and task.looks >= settings.looks
        if not ready:
            progress = b"%d" % (10 + task.looks % 90)  # two digits
            return 200, kind.running.replace(ID, task_id).replace(PROGRESS, progress)
        del self._tasks[task_id]
        self.counts["ended"] += 1
        return 200, kind.ended.replace(ID, task_id)

    def _read(self, kind: Format, rest: bytes) -> Answer:
        task_id = rest.partition(b"?")[0]
        if not kind.after:
            return self._look(kind, task_id)
        if task_id.endswith(kind.after):
            return self._look(kind, task_id.removesuffix(kind.after))
        return 200, kind.result.replace(ID, task_id)

    # -- what differs between services -----------------------------------------------------------

    def _add(self, kind: Format) -> None:
        self._routes[kind.submit] = lambda path, body: self._submit(kind)
        self._looks.append((kind.look, kind))

    def _add_genai(self, kind: Format) -> None:
        """A look is a POST with the name of the operation in its body."""

        def look(path: bytes, body: bytes) -> Answer:
            return self._look(kind, body.partition(kind.named)[2].partition(b'"')[0])

        self._routes[kind.submit] = lambda path, body: self._submit(kind)
        self._routes[kind.look] = look

    def _add_runware(self, kind: Format) -> None:
        """One path for submits and looks; the client chooses the id."""

        def either(path: bytes, body: bytes) -> Answer:
            [item] = json.loads(body)
            act = self._look if item["taskType"] == kind.named.decode() else self._submit
            return act(kind, item["taskUUID"].encode())

        self._routes[kind.submit] = either


@cache
def png() -> bytes:
    """A whole image of a usual size."""
    noise = random.Random(1).randbytes
    rows = b"".join(b"\0" + noise(3 * _WIDTH) for _ in range(_HEIGHT))
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", _WIDTH, _HEIGHT, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 0)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def _with_base(kind: Format, base: bytes) -> Format:
    bodies = {
        name: getattr(kind, name).replace(BASE, base) for name in ("accepted", "running", "ended", "result")
    }
    return attrs.evolve(kind, **bodies)


class Connection(asyncio.Protocol):
    """Reads complete requests, one after another, and answers each."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # that of uvloop is not a subclass
        self._desk.counts["connections"] += 1

    def data_received(self, data: bytes) -> None:
        data, answers = self._rest + data, []
        while (end := data.find(b"\r\n\r\n")) >= 0:
            method, path, _ = data[:end].split(b" ", 2)
            start = end + 4
            stop = start + (_length(data[:end]) if method == b"POST" else 0)
            if len(data) < stop:
                break
            try:
                status, body = self._desk.answer(method, path, data[start:stop])
            except Exception as error:  # a bug in this server must be visible, not hang the client
                status, body = 500, repr(error).encode()
            answers.append(
                b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (_REASONS[status], _HEAD, len(body), body)
            )
            data = data[stop:]
        self._rest = data
        if answers:
            latency = self._desk.settings.latency
            if latency:
                asyncio.get_running_loop().call_later(latency, self._transport.write, b"".join(answers))
            else:
                self._transport.write(b"".join(answers))


def _length(head: bytes) -> int:
    """The length of the body; no client here sends it in chunks."""
    found = head.lower().partition(b"\r\ncontent-length:")[2]
    return int(found.partition(b"\r\n")[0] or 0)


def certified(folder: Path) -> ssl.SSLContext | None:
    """The context of a new certificate for this machine; its authority is written to `folder`."""
    try:
        import trustme  # pyright: ignore[reportMissingImports]  # optional
    except ImportError:
        return None
    authority, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    return context


async def serve(folder: Path) -> None:
    """Print where it listens: `http`, `tls`, `far`, and the file `authority`; only the first without TLS."""
    async with contextlib.AsyncExitStack() as stack:
        print(json.dumps(await listen(folder, stack)), flush=True)
        await asyncio.to_thread(
            sys.stdin.buffer.read
        )  # until it is closed, at the latest by the parent's end


async def listen(folder: Path, stack: contextlib.AsyncExitStack) -> dict[str, str]:
    loop = asyncio.get_running_loop()
    desk: list[Desk] = []

    async def listening(context: ssl.SSLContext | None = None) -> int:
        server = await loop.create_server(
            lambda: Connection(desk[0]), "127.0.0.1", 0, backlog=4096, ssl=context
        )
        port: int = server.sockets[0].getsockname()[1]
        return port

    port = await listening()
    desk.append(Desk(b"http://127.0.0.1:%d" % port))
    found = {"http": f"http://127.0.0.1:{port}"}
    context = certified(folder)
    if context is not None:
        secure = await listening(context)
        far = await stack.enter_async_context(relay(secure, ROUND_TRIP))
        found |= {"tls": f"https://127.0.0.1:{secure}", "far": f"https://127.0.0.1:{far}"}
        found["authority"] = str(folder / "authority.pem")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--core", type=int, help="the only core to run on")
    core = parser.parse_args().core
    if core is not None:
        os.sched_setaffinity(0, {core})
    factory: Callable[[], asyncio.AbstractEventLoop]
    try:
        import uvloop  # pyright: ignore[reportMissingImports]  # optional

        factory = uvloop.new_event_loop
    except ImportError:
        factory = asyncio.new_event_loop
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(Path(folder)))


if __name__ == "__main__":
    main()
