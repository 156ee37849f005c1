"""The clocks of the tests are right; tests of time rely on them."""

import asyncio
import time

import pytest
from clocks import KIND, run_scaled, run_timelapse, run_virtual, timelapse_loop
from serving import Serving


def test_a_virtual_day_passes_at_once() -> None:
    """A virtual day of sleep moves the loop's clock by a day and takes almost no time."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        start = loop.time()
        await asyncio.sleep(86_400)
        return loop.time() - start

    wall = time.monotonic()
    assert run_virtual(main()) == pytest.approx(86_400, abs=1e-6)
    assert time.monotonic() - wall < 2


def test_virtual_timers_fire_in_order_at_their_times() -> None:
    """Timers fire in the order of their times, each at its own time."""

    async def main() -> list[tuple[float, str]]:
        loop = asyncio.get_running_loop()
        start, seen = loop.time(), []

        async def after(seconds: float, name: str) -> None:
            await asyncio.sleep(seconds)
            seen.append((round(loop.time() - start, 6), name))

        await asyncio.gather(after(3, "c"), after(0.34, "a"), after(2, "b"))
        return seen

    assert run_virtual(main()) == [(0.34, "a"), (2, "b"), (3, "c")]


def test_virtual_time_stands_still_while_there_is_work() -> None:
    """A thousand turns of the loop without a timer take no virtual time."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        start = loop.time()
        for _ in range(1000):
            await asyncio.sleep(0)
        return loop.time() - start

    assert run_virtual(main()) == 0


def test_a_virtual_timeout_ends_what_never_ends() -> None:
    """`asyncio.timeout` follows the virtual clock."""

    async def main() -> None:
        async with asyncio.timeout(900):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        run_virtual(main())


def test_waiting_forever_is_seen() -> None:
    """A program that nothing can wake fails at once instead of hanging."""

    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="no timer"):
        run_virtual(main())


def test_scaled_time_is_faster_than_the_wall_clock() -> None:
    """At speed 50, five seconds of the loop take a tenth of a second."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, timelapse_loop)
        start = loop.time()
        await asyncio.sleep(5)
        return loop.time() - start

    wall = time.monotonic()
    elapsed = run_timelapse(main(), 50)
    wall = time.monotonic() - wall
    assert elapsed >= 4.999  # in floating point
    assert 0.099 <= wall < 2.5


def test_sockets_work_in_scaled_time() -> None:
    """A real connection works, and a timeout on it follows the scaled clock."""

    async def main() -> tuple[bytes, float]:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            await reader.read()
            writer.close()

        async with Serving(echo) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"hello\n")
            line = await reader.readline()
            wall = time.monotonic()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(), 10)
            waited = time.monotonic() - wall
            writer.close()
            await writer.wait_closed()
            return line, waited

    line, waited = run_timelapse(main(), 100)
    assert line == b"hello\n"
    assert 0.099 <= waited < 2.5  # uvloop counts whole milliseconds


def kind_of_running_loop() -> str:
    """By a difference that mattered: uvloop has no timer for a delay that it rounds to 0 ms."""
    handle = asyncio.get_running_loop().call_later(0, int)
    handle.cancel()
    return "asyncio" if hasattr(handle, "when") else "uvloop"


@pytest.fixture
async def kind_in_fixture() -> str:
    return kind_of_running_loop()


async def test_coroutines_run_on_the_kind_of_loop_that_was_chosen(kind_in_fixture: str) -> None:
    """Tests and their fixtures; otherwise a run on uvloop would prove nothing about uvloop."""
    assert kind_of_running_loop() == kind_in_fixture == KIND


def test_scaled_time_runs_on_the_kind_of_loop_that_was_chosen() -> None:
    """The time-lapse loop as well."""

    async def main() -> str:
        return kind_of_running_loop()

    assert run_scaled(main(), 20) == KIND
