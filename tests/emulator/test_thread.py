"""An emulator in a thread: who can use it, in which time, and that nothing is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clients import QUICK
from paths import IMPORT_ROOT

from kie4o import AsyncKieClient, ContentPolicyError
from kie4o.emulator import Emulator, HangError, ThreadedEmulator

needs_signals = pytest.mark.posix("a signal that another thread can send")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No thread and no socket."""
    threads, files = {*threading.enumerate()}, open_files()
    yield
    assert {*threading.enumerate()} == threads
    assert open_files() == files


def open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()]) if sys.platform == "linux" else 0


def post(kie: Emulator, prompt: str = "a lake") -> Any:
    """A submit of a client that knows nothing of kie4o or asyncio."""
    body = json.dumps({"prompt": prompt, "size": "1:1"}).encode()
    headers = {"Authorization": "Bearer any", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{kie.url}/api/v1/gpt4o-image/generate", body, headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


async def generate(kie: Emulator, prompt: str = "a lake", **more: Any) -> tuple[str, ...]:
    async with AsyncKieClient("any-key", base_url=kie.url, **more) as client:
        return (await client.generate(prompt)).urls


def test_a_synchronous_test_can_use_it() -> None:
    """Over HTTP from this thread; what happened can be read at once."""
    with Emulator.in_thread() as kie:
        assert isinstance(kie, Emulator)
        kie.plan("a sea", answer=455)
        assert [post(kie)["code"], post(kie, "a sea")["code"]] == [200, 455]
        assert (kie.paid, len(kie.submits), kie.credits) == (1, 2, 994)
        assert [task.request["prompt"] for task in kie.tasks.values()] == ["a lake"]
    assert kie.paid == 1  # also when it is closed


def test_a_coroutine_runs_in_virtual_time() -> None:
    """Five minutes take no time, again and again; errors of the coroutine are raised here."""
    start = time.monotonic()
    with Emulator.in_thread(clock="virtual", duration=300) as kie:
        kie.plan("forbidden", outcome="policy")
        for _ in range(3):
            assert len(kie.run(generate(kie))) == 1
        with pytest.raises(ContentPolicyError):
            kie.run(generate(kie, "forbidden"))
        assert kie.now() > 4 * 300
    assert time.monotonic() - start < 10


def test_between_two_runs_time_is_real() -> None:
    """Nothing jumps, and nothing hangs, while the emulator waits for requests."""
    with Emulator.in_thread(clock="virtual", duration=300) as kie:
        kie.run(generate(kie))
        before = kie.now()
        time.sleep(0.1)
        post(kie)
        assert 0.1 <= kie.now() - before < 60


@pytest.mark.parametrize("settings", [{"speed": 100}, {"clock": "real", "looks": 2}])
def test_any_loop_can_use_it(settings: dict[str, Any]) -> None:
    """One of another thread, and one after the other here; the time is real."""
    with Emulator.in_thread(**settings) as kie:
        other = threading.Thread(target=lambda: asyncio.run(generate(kie, poll=QUICK)))
        other.start()
        for _ in range(2):
            asyncio.run(generate(kie, poll=QUICK))
        other.join()
        assert kie.paid == 3


def test_a_coroutine_that_hangs_is_named() -> None:
    """The thread goes on after it, and so do other coroutines."""

    async def stuck(kie: Emulator) -> None:
        await generate(kie, wait_timeout=None)

    with Emulator.in_thread(clock="virtual", time_limit=3600, outcome="stuck") as kie:
        for _ in range(2):
            with pytest.raises(HangError, match=r"3600 s of virtual time are over"):
                kie.run(stuck(kie))
        kie.plan("a bird", outcome="success")
        assert kie.run(generate(kie, "a bird"))


def test_what_is_read_is_a_copy() -> None:
    """It does not change while a test walks through it."""
    with Emulator.in_thread(limit=1000, credits=10_000) as kie:
        post(kie)
        tasks, requests = kie.tasks, kie.requests
        post(kie)
        assert (len(tasks), len(kie.tasks)) == (1, 2)
        assert sum(requests.values()) == 1


def test_methods_are_called_in_the_loop() -> None:
    """Of another thread; in the loop itself they are called at once."""
    seen = []

    class Watched(ThreadedEmulator):
        def expire(self, task_id: str) -> None:
            seen.append((threading.current_thread().name, task_id))

    with Emulator.in_thread() as kie:
        kie.__class__ = Watched
        kie.expire("1")

        async def inside() -> None:
            kie.expire("2")

        kie.run(inside())
    assert seen == [("kie4o emulator", "1"), ("kie4o emulator", "2")]


def test_errors_at_the_start_are_raised_here() -> None:
    """Of its arguments, and of an address that is taken."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(OSError, match="address already in use"):
            with Emulator.in_thread(port=taken.getsockname()[1]):
                pass
    with pytest.raises(TypeError, match="colour"):
        with Emulator.in_thread(colour="red"):
            pass
    with pytest.raises(ValueError, match="speed"):
        with Emulator.in_thread(speed=0):
            pass


def test_an_error_of_the_test_closes_it() -> None:
    """Also with callbacks that are not delivered yet."""
    with pytest.raises(ZeroDivisionError), Emulator.in_thread() as kie:
        post(kie)
        1 / 0  # noqa: B018  # the error


def test_it_cannot_run_anything_when_it_is_closed() -> None:
    """Nor in its own thread, where it would wait for itself."""
    with Emulator.in_thread() as kie:

        async def inside() -> None:
            with pytest.raises(RuntimeError, match="other threads"):
                kie.run(asyncio.sleep(0))

        kie.run(inside())
    with pytest.raises(RuntimeError, match="while it is open"):
        kie.run(asyncio.sleep(0))
    with pytest.raises(RuntimeError, match="while it is open"):
        ThreadedEmulator().run(asyncio.sleep(0))


@pytest.mark.parametrize("use", ["read", "run"])
def test_who_uses_it_while_it_closes_waits_for_nothing(use: str) -> None:
    """A thread that reads, or waits for a coroutine, gets an error instead of an answer."""
    closed, errors = threading.Event(), list[type[BaseException]]()

    def work(kie: ThreadedEmulator) -> None:
        try:
            while not closed.is_set():
                kie.run(asyncio.sleep(3600)) if use == "run" else kie.paid
        except BaseException as error:
            errors.append(type(error))

    with Emulator.in_thread(clock="real") as kie:
        users = [threading.Thread(target=work, args=[kie], daemon=True) for _ in range(3)]
        for user in users:
            user.start()
        time.sleep(0.02)
    closed.set()
    for user in users:
        user.join(5)
    assert not any(user.is_alive() for user in users)
    assert {*errors} <= {RuntimeError}


@needs_signals
@pytest.mark.parametrize("when", ["start", "run", "body"])
def test_an_interrupt_leaves_nothing(
    when: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Wherever it strikes, it is raised here; what ran in the loop is cancelled and cleans up."""
    ended = []

    async def long(*_: object) -> None:
        interrupt()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    def interrupt() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    # A shell that starts pytest in the background lets it ignore SIGINT.
    request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if when == "start":
        monkeypatch.setattr(Emulator, "start", long)
    with pytest.raises(KeyboardInterrupt), Emulator.in_thread(clock="real") as kie:
        if when == "run":
            kie.run(long())
        with contextlib.suppress(RuntimeError):
            interrupt()
            time.sleep(10)
    assert ended == [True] * (when != "body")


def test_another_process_can_use_it() -> None:
    """With a client of its own, and variables that point here."""
    program = (
        "import asyncio\nfrom kie4o import AsyncKieClient\n"
        "async def main():\n"
        "    async with AsyncKieClient() as client:\n"
        "        print(*await client.generate('a lake'))\n"
        "asyncio.run(main())"
    )
    with Emulator.in_thread(clock="real", looks=1) as kie:
        settings = {
            **os.environ,
            "KIE_BASE_URL": kie.url,
            "KIE_API_KEY": "any",
            "PYTHONPATH": str(IMPORT_ROOT),
        }
        out = subprocess.run(
            [sys.executable, "-c", program], env=settings, capture_output=True, text=True, check=True
        ).stdout
        assert out.startswith(kie.url)
        assert kie.paid == 1
