"""A server that notes when each request arrives, and processes that send to it within one shared window."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import attrs
from paths import IMPORT_ROOT
from serving import LoopbackServer
from window_child import Run

_CHILD = Path(__file__).with_name("window_child.py")


class CountingServer(LoopbackServer):
    """Answers every line `delay` seconds after it has arrived. Whoever is granted a slot because another was
    answered comes later than that one was noted, however late it was."""

    def __init__(self, delay: float = 0.03) -> None:
        self.delay = delay
        self.arrivals: list[float] = []  # loop times
        self.senders: list[int] = []  # of each, as the line says

    def most(self, per: float) -> int:
        """The most requests in any window. One that opens with a request and ends with another is shorter."""
        times, first, most = self.arrivals, 0, 0
        for last, time in enumerate(times):
            while time - times[first] >= per:
                first += 1
            most = max(most, last - first + 1)
        return most

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                self.senders.append(int(line))
                self.arrivals.append(asyncio.get_running_loop().time())
                await asyncio.sleep(self.delay)
                writer.write(b"y\n")
        writer.close()


class Child:
    """`async with Child(run)`: a process that takes slots. `lines` are what it has written so far."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.lines: list[str] = []
        self._news = asyncio.Event()

    async def __aenter__(self) -> Child:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(_CHILD),
            json.dumps(attrs.asdict(self.run)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(IMPORT_ROOT)},
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is None and self.process.returncode is None:
            self.process.stdin.close()  # type: ignore[union-attr]
        elif self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reading

    async def says(self, word: str) -> str:
        """The rest of the first line that begins with this word, once there is one."""
        while True:
            for line in self.lines:
                if line.startswith(word):
                    return line.removeprefix(word).strip()
            assert not self._reading.done(), f"it ended without {word!r}: {self.lines}"
            self._news.clear()
            await self._news.wait()

    async def go(self) -> None:
        """Let it send what it has slots for."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        await self.process.stdin.drain()

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().strip())
            self._news.set()
        self._news.set()


def through(url: str, cutter: ReplyCutter) -> str:
    """The URL of a database behind it."""
    return url.replace(f":{urlsplit(url).port}/", f":{cutter.port}/")


class ReplyCutter(LoopbackServer):
    """A proxy before a database. While `cuts` is above 0, it swallows what the server answers and breaks that
    connection, which the server notices after its commit. While it `stalls`, it swallows that alone. While it
    is `away`, it refuses connections, and notes when."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.cuts = 0
        self.stalls = False
        self.away = False
        self.refused: list[float] = []  # loop times
        self.done = asyncio.Event()  # after each cut, and what was swallowed

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.away:
            self.refused.append(asyncio.get_running_loop().time())
            writer.transport.abort()
            return
        theirs, to_them = await asyncio.open_connection("127.0.0.1", self._target)
        there = asyncio.create_task(self._copy(reader, to_them))
        try:
            while data := await theirs.read(65536):
                if self.cuts > 0:
                    self.cuts -= 1
                    self.done.set()
                    break
                if self.stalls:
                    self.done.set()
                else:
                    writer.write(data)
        finally:
            there.cancel()
            for each in (to_them, writer):
                each.transport.abort()

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
