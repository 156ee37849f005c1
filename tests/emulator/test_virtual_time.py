"""Virtual time in a running loop: what takes part, what holds the clock, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from clients import QUICK
from clocks import KIND
from proving import DEEP

import kie4o.clock
from kie4o import AsyncKieClient
from kie4o.emulator import Emulator
from kie4o.emulator.clock import HangError, VirtualTime

needs_asyncio = pytest.mark.skipif(KIND != "asyncio", reason="virtual time needs a loop of asyncio")


@contextlib.asynccontextmanager
async def client_on(kie: Emulator, **more: Any) -> AsyncIterator[AsyncKieClient]:
    async with AsyncKieClient("any-key", base_url=kie.url, **more) as client:
        yield client


async def elapsed(work: Coroutine[Any, Any, object]) -> float:
    """The loop time that the work took."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    await work
    return loop.time() - start


@needs_asyncio
async def test_a_task_of_five_minutes_takes_no_time() -> None:
    """The client, aiohttp, the sockets and the emulator all follow the clock of the loop."""
    wall = time.monotonic()
    with VirtualTime():
        async with Emulator(duration=300) as kie, client_on(kie) as client:
            took = await elapsed(client.generate("a lake"))
    assert 300 <= took < 310
    assert time.monotonic() - wall < 5  # usually a hundredth of that


@needs_asyncio
@pytest.mark.parametrize(("code", "delay"), [(429, 10), (455, 60), (550, 30)])
async def test_delays_of_the_client_are_virtual_too(code: int, delay: float) -> None:
    """A submit that is refused is sent again after the delay that the documentation names."""
    with VirtualTime():
        async with Emulator(duration=20) as kie, client_on(kie) as client:
            kie.next(answer=code)
            took = await elapsed(client.generate("a lake"))
    assert 20 + delay <= took < 20 + delay + 10
    assert kie.paid == 1


@needs_asyncio
@pytest.mark.once
async def test_the_same_run_gives_the_same_requests() -> None:
    """Three times the sequence of a batch with a refusal: each request at the same moment, to a nanosecond.

    HYPOTHESIS_PROFILE=deep takes it ten times.
    """

    async def run() -> list[tuple[float, str, str]]:
        loop, seen, prompts = asyncio.get_running_loop(), [], {}

        class Logged(Emulator):
            def create_task(self, body: dict[str, Any], now: float, *, key: str = "") -> Any:
                answer, task = super().create_task(body, now, key=key)
                seen.append((round(loop.time() - start, 9), "submit", body["prompt"]))
                if task is not None:
                    prompts[task.id] = body["prompt"]
                return answer, task

            def look(self, task_id: str, now: float, *, url: str) -> Any:
                seen.append((round(loop.time() - start, 9), "look", prompts[task_id]))
                return super().look(task_id, now, url=url)

        with VirtualTime():
            start = loop.time()
            async with Logged(duration=30) as kie, client_on(kie, poll=QUICK, max_in_flight=4) as client:
                kie.next(answer=429)
                async for done in client.generate_many([f"p{number}" for number in range(8)]):
                    assert done.ok, done.error
        return seen

    first = await run()
    assert len(first) > 100
    for _ in range(9 if DEEP else 2):
        assert await run() == first


@needs_asyncio
async def test_the_thread_of_a_store_holds_the_clock(tmp_path: Path) -> None:
    """A batch takes as long with a SQLite file as in memory."""
    took = []
    for store in (None, tmp_path / "run.db"):
        with VirtualTime():
            async with Emulator(duration=20) as kie, client_on(kie, store=store) as client:

                async def batch(client: AsyncKieClient = client) -> None:
                    async for done in client.generate_many([f"p{number}" for number in range(60)]):
                        assert done.ok, done.error

                took.append(await elapsed(batch()))
    assert took[1] == pytest.approx(took[0], abs=5)


@needs_asyncio
async def test_control_a_thread_that_is_not_announced_is_overtaken(tmp_path: Path) -> None:
    """Control: without its line in the store, minutes pass while the disk works."""
    silent = mock.patch.object(kie4o.clock, "working_thread", return_value=contextlib.nullcontext())
    with silent, VirtualTime():
        async with Emulator(duration=20) as kie:
            with pytest.raises(kie4o.StoreError, match="did not respond within"):
                async with client_on(kie, store=tmp_path / "run.db"):
                    pass


@needs_asyncio
async def test_the_executor_holds_the_clock() -> None:
    """Nothing times out while a thread of `asyncio.to_thread` works; its errors hold nothing back."""
    with VirtualTime():
        async with asyncio.timeout(5):
            await asyncio.to_thread(time.sleep, 0.05)
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        assert await elapsed(asyncio.sleep(3600)) == 3600


@needs_asyncio
async def test_grace_waits_for_another_process() -> None:
    """It answers after 20 real ms: without `grace` a timeout of 5 virtual s strikes first."""
    server = (
        "import socket, time\ns = socket.create_server(('127.0.0.1', 0))\n"
        "print(s.getsockname()[1], flush=True)\n"
        "while True:\n c, _ = s.accept(); c.recv(1); time.sleep(0.02); c.send(b'x'); c.close()\n"
    )
    with subprocess.Popen([sys.executable, "-c", server], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())

        async def ask() -> bytes:
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(b"q")
                    return await reader.read(1)
                finally:
                    writer.close()

        try:
            with VirtualTime(grace=0.5):
                assert await ask() == b"x"
            with VirtualTime(), pytest.raises(TimeoutError):
                await ask()
        finally:
            process.terminate()


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())


def test_the_end_of_time_names_what_waits() -> None:
    """A task that never ends is waited for without a limit: the error names the coroutine that waits."""

    async def stuck() -> None:
        async with Emulator(outcome="stuck") as kie, client_on(kie, wait_timeout=None) as client:
            await client.generate("a lake")

    async def main() -> None:
        with VirtualTime(limit=3600):
            await stuck()

    with pytest.raises(HangError, match=r"(?s)3600 s of virtual time are over.*\n.*main at .*\.py:\d+"):
        run(main)


def test_a_deadlock_names_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is ready and no timer is set. A thread could still call, so the error comes a moment later."""
    monkeypatch.setattr("kie4o.emulator.clock._PATIENCE", 0.05)

    async def main() -> None:
        with VirtualTime():
            await asyncio.Event().wait()

    with pytest.raises(HangError, match=r"no timer is set.*\n.*main at .*test_virtual_time\.py:\d+"):
        run(main)


def test_after_a_hang_time_is_real() -> None:
    """What cleans up after it neither hangs nor raises it again."""
    ended = []

    async def main() -> None:
        try:
            with VirtualTime(limit=60):
                await asyncio.sleep(3600)
        finally:
            start = time.monotonic()
            await asyncio.sleep(0.05)
            ended.append(time.monotonic() - start)

    with pytest.raises(HangError):
        run(main)
    assert ended[0] >= 0.049


@needs_asyncio
async def test_a_thread_that_calls_within_the_patience_is_no_deadlock() -> None:
    """Without a timer there is nothing to jump to."""
    with VirtualTime():
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        threading.Timer(0.05, lambda: loop.call_soon_threadsafe(event.set)).start()
        await event.wait()


@needs_asyncio
async def test_time_never_runs_backwards() -> None:
    """Neither when virtual time ends nor when it begins again; and each block holds on its own."""
    loop = asyncio.get_running_loop()
    times = [loop.time()]
    for _ in range(2):
        with VirtualTime():
            await asyncio.sleep(1000)
            times.append(loop.time())
            with VirtualTime():
                await asyncio.sleep(1000)
            assert await elapsed(asyncio.sleep(1000)) == 1000  # the outer block still holds
            times.append(loop.time())
        times.append(loop.time())
    assert times == sorted(times)
    assert times[-1] >= times[0] + 6000
    start = time.monotonic()
    assert await elapsed(asyncio.sleep(0.05)) >= 0.049
    assert time.monotonic() - start >= 0.049


@needs_asyncio
async def test_the_clocks_of_the_client_follow() -> None:
    """Its wall clock and uptime, by which it remembers submits and checks signatures."""
    with VirtualTime():
        before = kie4o.clock.unix_time(), kie4o.clock.uptime()
        await asyncio.sleep(1000)
        after = kie4o.clock.unix_time(), kie4o.clock.uptime()
    assert [new - old for old, new in zip(before, after, strict=True)] == pytest.approx([1000, 1000])


def test_another_kind_of_loop_is_refused() -> None:
    """uvloop has no place where its clock could be put; the error says what to do instead."""
    if sys.platform == "win32":
        pytest.skip("uvloop does not run on Windows")
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        with pytest.raises(RuntimeError, match="clock='real'"), VirtualTime():
            pass

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
