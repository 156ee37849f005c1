"""Connections that are opened ahead: when, how many, for whom, and that none is left or used twice."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import subprocess
import sys

import aiohttp
import pytest
from cancelling import cancelled_after, cancelled_at
from clients import client_of, until
from clocks import run_scaled, run_virtual
from faults import open_sockets, unused_port
from keeping import Keeping, held, id_for, look, opened, pay, prepared, transport_to
from proxies import Proxy

from kie4o import RateLimit
from kie4o.submission.verdict import Verdict
from kie4o.transport.ahead import Ahead

# -- when and how many -------------------------------------------------------------------------------


def test_a_burst_that_waited_finds_a_connection_for_each() -> None:
    """They are opened a little before the slots are free, and each is used once. In virtual time, as a busy
    machine may be later than the 0.2 s."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with Keeping() as server, client_of(server.url, rate_limit=RateLimit(4, per=10.0)) as client:
            times: list[float] = []
            server.on_accept = lambda _: times.append(loop.time() - start)
            start = loop.time()
            await asyncio.gather(*(client.submit(f"{number}") for number in range(12)))
        assert len(times) == 12
        for number, time in enumerate(times):
            due = 10.0 * (number // 4)
            assert due - 0.35 <= time <= due + 0.2, times
        assert sorted(connection for _, connection in server.carried) == list(range(12))

    run_virtual(run())


def test_what_is_proven_is_not_opened() -> None:
    """While looks keep connections proven, fewer are opened: as many as there are slots without one."""

    async def run() -> None:
        async with Keeping() as server:
            transport = transport_to(server.url)
            server.go.clear()
            looks = [asyncio.create_task(look(transport)) for _ in range(3)]
            await until(lambda: len(server.heads) == 3)
            server.go.set()
            await asyncio.gather(*looks)
            transport.prepare(5)
            await opened(transport)
            transport.prepare(5)
            await opened(transport)
            assert (held(transport), server.connections) == (2, 5)
            posts = await asyncio.gather(*(pay(transport, f"{number}") for number in range(5)))
            assert [judgement.task_id for _, judgement in posts] == [id_for(f"{n}") for n in range(5)]
            assert server.connections == 5
            await transport.aclose()

    run_scaled(run(), 10)


def test_a_post_leaves_the_connections_of_the_reads() -> None:
    """That are too old for it, and not for the next reads."""

    async def run() -> None:
        async with Keeping() as server:
            transport = transport_to(server.url)
            for _ in range(3):
                server.go.clear()
                earlier = len(server.heads)
                looks = [asyncio.create_task(look(transport)) for _ in range(3)]
                await until(lambda earlier=earlier: len(server.heads) == earlier + 3)
                server.go.set()
                await asyncio.gather(*looks)
                await asyncio.sleep(5)
                await pay(transport, f"{earlier}")
            assert server.connections == 3 + 3
            await transport.aclose()

    run_scaled(run(), 10)


def test_what_nobody_uses_is_closed_at_two_seconds() -> None:
    """The submits were cancelled, or all were held back."""

    async def run() -> None:
        async with Keeping() as server:
            transport = transport_to(server.url)
            transport.prepare(3)
            await opened(transport)
            await asyncio.sleep(1.8)
            assert (held(transport), server.open) == (3, 3)
            await asyncio.sleep(0.4)
            assert held(transport) == 0
            await until(lambda: server.open == 0)
            await transport.aclose()

    run_scaled(run(), 10)


def test_what_is_too_old_by_then_is_held_and_another_is_opened() -> None:
    """A connection of the pool of the POST that will be 2 s old when the slot is free."""

    async def run() -> None:
        async with Keeping() as server:
            transport = transport_to(server.url)
            await prepared(transport, "kept")
            await asyncio.sleep(1.8)
            transport.prepare(1)
            await opened(transport)
            assert (held(transport), server.connections) == (2, 2)
            await asyncio.sleep(0.4)
            assert held(transport) == 1
            await pay(transport, "x")
            assert server.carried == [("first", 0), ("x", 1)]
            await transport.aclose()

    run_scaled(run(), 10)


def test_the_lead_follows_the_slowest_of_late_and_is_bounded() -> None:
    """1.5 times what opening took: more at once, less little by little, and never half of the 2 s."""
    ahead = Ahead(2.0)
    assert ahead.lead() == pytest.approx(0.3)
    ahead.took(0.4)
    assert ahead.lead() == pytest.approx(0.6)
    ahead.took(0.1)
    assert ahead.lead() == pytest.approx(0.48)
    for _ in range(20):
        ahead.took(0.1)
    assert ahead.lead() == pytest.approx(0.15)
    ahead.took(5.0)
    assert ahead.lead() == 1.0


async def test_a_client_that_has_not_opened_anything_has_a_lead() -> None:
    """The slots of an earlier run may make its first submit wait."""
    transport = transport_to("http://127.0.0.1:1")
    assert transport.lead() == 0.3
    await transport.aclose()


# -- one that is being opened ------------------------------------------------------------------------


async def test_a_post_waits_for_one_that_is_being_opened() -> None:
    """It opens none of its own."""
    async with Keeping() as server:
        transport = transport_to(server.url)
        transport.prepare(1)
        await pay(transport, "x")
        assert server.carried == [("x", 0)]
        assert server.connections == 1
        await transport.aclose()


async def test_a_post_does_not_wait_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """If opening takes longer than usual, it opens its own."""

    async def stuck() -> None:
        await asyncio.sleep(3600)

    async with Keeping() as server:
        transport = transport_to(server.url)
        transport.prepare(0)
        pool = transport._paid_pool
        assert pool is not None
        monkeypatch.setattr(pool.ahead, "usual", 0.05)
        pool.ahead.open(1, stuck)
        start = asyncio.get_running_loop().time()
        _, judgement = await asyncio.wait_for(pay(transport, "x"), 2)
        assert asyncio.get_running_loop().time() - start >= 0.04
        assert judgement.task_id == id_for("x")
        await transport.aclose()


def test_a_post_does_not_wait_for_long_because_one_took_long() -> None:
    """A lost packet may make opening take many seconds, once. It says little about the next time."""

    async def run() -> None:
        async with Keeping() as server:
            transport = transport_to(server.url, timeout=30.0)
            transport.prepare(0)
            pool = transport._paid_pool
            assert pool is not None
            pool.ahead.took(25.0)
            pool.ahead.open(1, lambda: asyncio.sleep(3600))
            start = asyncio.get_running_loop().time()
            await pay(transport, "x")
            assert asyncio.get_running_loop().time() - start < 2.5
            await transport.aclose()

    run_scaled(run(), 10)


async def test_if_opening_fails_the_post_opens_its_own() -> None:
    """The failure is no error of anyone; the verdict of the POST tells."""
    transport = transport_to(f"http://127.0.0.1:{unused_port()}")
    transport.prepare(3)
    await opened(transport)
    assert held(transport) == 0
    transport.prepare(1)
    attempt, judgement = await pay(transport, "x")
    assert judgement.verdict is Verdict.NOT_SENT
    assert "refused" in attempt.fault or "connect" in attempt.fault.lower()
    await transport.aclose()


@pytest.mark.parametrize("mode", ["pending", "done", "turn"])
async def test_a_cancel_loses_no_connection_that_is_being_opened(mode: str) -> None:
    """Wherever a POST is cancelled, the next one gets the connection, unless the first has taken it."""
    ended = ""
    for at in range(100):
        async with Keeping() as server:
            transport = transport_to(server.url)
            transport.prepare(1)
            first = pay(transport, "first")
            if mode == "turn":
                ended, _ = await cancelled_after(first, at)
            else:
                ended, _ = await cancelled_at(first, at, "pending" if mode == "pending" else "done")
            _, judgement = await pay(transport, "second")
            assert judgement.task_id == id_for("second")
            assert sorted(server.prompts) in (["second"], ["first", "second"])
            assert server.connections <= 2
            await transport.aclose()
            await until(lambda server=server: server.open == 0)
        if ended == "over":
            break
    assert at > 1
    assert ended == "over"


async def test_of_two_that_wait_the_next_gets_what_a_cancelled_one_was_told_of() -> None:
    """The cancel comes in the turn in which the connection was opened."""
    async with Keeping() as server:
        transport = transport_to(server.url)
        transport.prepare(2)
        posts = [asyncio.create_task(pay(transport, f"{number}")) for number in range(2)]
        pool = transport._paid_pool
        assert pool is not None
        while not pool.ahead.ready:
            await asyncio.sleep(0)
        posts[0].cancel()
        _, judgement = await posts[1]
        assert judgement.task_id == id_for("1")
        await opened(transport)
        assert server.connections <= 2
        await asyncio.gather(*posts, return_exceptions=True)
        await transport.aclose()


# -- closing -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("any_certificate", "collected")
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 4, 8, 12, 20])
async def test_closing_leaves_no_socket_and_no_task(turns: int, tls: bool) -> None:
    """With some unused, some being opened, some claimed."""
    gc.collect()
    async with Keeping(tls=tls) as server:
        before = open_sockets()
        transport = transport_to(server.url)
        transport.prepare(4)
        await opened(transport)
        server.go.clear()
        posts = [asyncio.create_task(pay(transport, f"{number}")) for number in range(2)]
        transport.prepare(8)
        posts.append(asyncio.create_task(pay(transport, "2")))
        for _ in range(turns):
            await asyncio.sleep(0)
        await transport.aclose()
        await asyncio.gather(*posts)
        transport.prepare(3)
        assert held(transport) == 0
        server.go.set()
        await until(lambda: server.open == 0)
        ours = [task for task in asyncio.all_tasks() if task.get_name().startswith("kie4o")]
        assert ours == []
        gc.collect()  # an unclosed connection would warn now
        await until(lambda: open_sockets() == before)


async def test_closing_while_the_server_accepts_nothing() -> None:
    """What is being opened is cancelled at once."""
    async with Keeping() as server:
        transport = transport_to(server.url.replace("http://", "https://"), timeout=60)
        transport.prepare(3)  # its handshakes are not answered
        await until(lambda: server.connections == 3)
        await asyncio.wait_for(transport.aclose(), 2)


# -- proxies, and sessions that were passed ----------------------------------------------------------


@pytest.mark.usefixtures("any_certificate")
async def test_a_tunnel_that_was_opened_ahead_is_used() -> None:
    """aiohttp adds to the headers for the proxy as it connects, and their hash is a part of the key."""
    async with Keeping(tls=True) as server, Proxy() as proxy:
        transport = transport_to(server.url, proxy=proxy.url)
        transport.prepare(2)
        await opened(transport)
        for number in range(3):
            await pay(transport, f"{number}")
        assert (held(transport), server.connections, len(proxy.heads)) == (0, 2, 2)
        await look(transport)
        await pay(transport, "proven")
        assert server.connections == 3
        await transport.aclose()


@pytest.mark.usefixtures("any_certificate")
def test_over_a_proxy_there_are_as_many_tunnels_as_submits() -> None:
    """CONNECT is a part of what is opened ahead."""

    async def run() -> None:
        async with Keeping(tls=True) as server, Proxy() as proxy:
            async with client_of(server.url, proxy=proxy.url, rate_limit=RateLimit(2, per=10.0)) as client:
                await asyncio.gather(*(client.submit(f"{number}") for number in range(4)))
            assert len(server.carried) == 4
            assert len(proxy.heads) == server.connections == 4
            assert all(b"hunter2" not in head and b"CONNECT" in head for head in proxy.heads)

    run_scaled(run(), 10)


async def test_over_a_proxy_to_plain_http_nothing_is_opened_ahead() -> None:
    """Its password is written into the request as it connects, so the request would lack it."""
    async with Keeping() as proxy:  # it answers itself
        address = proxy.url.removeprefix("http://")
        limit = RateLimit(1, per=0.5)
        async with client_of(
            "http://127.0.0.1:9", proxy=f"http://me:hunter2@{address}", rate_limit=limit
        ) as client:
            await asyncio.gather(*(client.submit(f"{number}") for number in range(3)))
            assert held(client._runtime.transport) == 0
        assert len(proxy.carried) == 3
        assert all(b"\r\nproxy-authorization: basic " in head.lower() for head in proxy.heads)


async def test_nor_is_anything_that_does_not_wait_for_a_slot() -> None:
    """A call to open ahead opens nothing either, and sends nothing."""
    async with Keeping() as proxy:
        transport = transport_to("http://127.0.0.1:9", proxy=proxy.url)
        transport.prepare(1)
        await opened(transport)
        assert (held(transport), proxy.connections) == (0, 0)
        await transport.aclose()


async def test_over_a_session_that_was_passed_nothing_is_opened_ahead() -> None:
    """Its connector is not ours: every POST has a new connection, opened for it."""
    async with Keeping() as server, aiohttp.ClientSession() as lent:
        async with client_of(server.url, session=lent, rate_limit=RateLimit(2, per=0.5)) as client:
            first = asyncio.gather(*(client.submit(f"{number}") for number in range(4)))
            await until(lambda: server.posts == 2)
            await asyncio.sleep(0.25)
            assert server.connections == 2
            await first
        assert server.connections == 4


# -- files -------------------------------------------------------------------------------------------

FEW = """
import asyncio, json, os, resource, sys
from kie4o import AsyncKieClient, RateLimit

async def main(url):
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
    held, used = [], set()
    async with AsyncKieClient("k" * 20, base_url=url, rate_limit=RateLimit(8, per=2.5)) as client:
        await asyncio.gather(*(client.submit(f"{n}") for n in range(8)))
        second = asyncio.gather(*(client.submit(f"{n}") for n in range(8, 16)))
        await asyncio.sleep(0)
        try:
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        for file in held[:3]:
            os.close(file)
        tasks = await second
    print(json.dumps(sorted(task.id for task in tasks)))

asyncio.run(main(sys.argv[1]))
"""


def test_without_files_nothing_is_opened_for_a_moment() -> None:
    """Those that are left are for who needs one now."""

    async def run() -> list[float]:
        loop, tried = asyncio.get_running_loop(), list[float]()
        start, ahead = loop.time(), Ahead(2.0)

        async def full() -> None:
            tried.append(round(loop.time() - start, 1))
            raise OSError(errno.EMFILE, "Too many open files")

        for _ in range(5):
            ahead.open(1, full)
            await asyncio.sleep(0.2)
        return tried

    assert run_virtual(run()) == [0.0, 0.4, 0.8]


@pytest.mark.posix("resource")
async def test_without_files_to_open_ahead_the_submits_succeed() -> None:
    """Over the few connections that there are: what was opened ahead is used, and no error is shown."""
    async with Keeping() as server:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", FEW, server.url, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        output, errors = await process.communicate()
        assert b"Traceback" not in errors
        assert json.loads(output) == sorted(id_for(f"{number}") for number in range(8, 16))
        assert sorted(server.prompts, key=int) == [f"{number}" for number in range(16)]
