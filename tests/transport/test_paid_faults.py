"""The four promises of a verdict, on every kind of connection, while the server goes away at every moment.

1. At most one complete POST reaches the server.
2. NOT_SENT: none has.
3. ACCEPTED: one has, and the id is the server's.
4. Everything else is UNKNOWN.

Moments are turns of the loop in which client and server run, before and after the POST begins, so that each
order of events comes up and none depends on the speed of the machine.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Iterator
from typing import Any

import pytest
from faults import Connection
from keeping import KINDS, Keeping, Kind, id_for, pay, prepared, transport_to
from proving import DEEP, tried

from kie4o.submission.verdict import Verdict
from kie4o.transport.paid_body import _TURNS, PaidBody

pytestmark = pytest.mark.usefixtures("any_certificate")

CLOSES = ["FIN", "RST", "half-close"]
BEFORE, AFTER = -6, 40  # turns; over TLS an exchange takes some 30
LATE = 12  # turns, in which a request arrives and the client hears that the server has left
_numbers = iter(range(10**9))


def close(connection: Connection, how: str) -> None:
    """The server goes away. It still counts what it reads after a half-close, and does not answer it."""
    writer = connection.writer
    if how == "RST":
        connection.reset()
    elif how == "half-close" and writer.can_write_eof():
        writer.write_eof()
    else:
        writer.close()


class Leaving(Keeping):
    """Leaves the connections that it has; does not answer what arrives on them afterwards."""

    def __init__(self, *, tls: bool) -> None:
        super().__init__(tls=tls)
        self.left = 0

    def leave(self, how: str) -> None:
        self.left = len(self.links)
        for connection in self.links:
            close(connection, how)

    def answer(self, head: bytes, body: bytes) -> bytes:
        unanswered = self.carried and self.carried[-1][1] < self.left
        return b"" if unanswered else super().answer(head, body)


async def trial(kind: Kind, turn: int, how: str, *, tls: bool) -> Verdict:
    """One POST while the server leaves at this turn, counted from the POST's first one."""
    tried()
    prompt = f"{next(_numbers)}"
    async with Leaving(tls=tls) as server:
        transport = transport_to(server.url)
        await prepared(transport, kind)
        if turn < 0:
            server.leave(how)
            for _ in range(-turn):
                await asyncio.sleep(0)
        posting = asyncio.create_task(pay(transport, prompt))
        for _ in range(turn):
            await asyncio.sleep(0)
        if turn >= 0:
            server.leave(how)
        try:
            _, judgement = await posting
        finally:
            await transport.aclose()
        for _ in range(10):  # what was written before arrives now
            await asyncio.sleep(0)
        posts = server.prompts.count(prompt)  # of this trial, whoever else may have this port
        if posts > 1:
            raise AssertionError("two POSTs")
        if judgement.verdict is Verdict.NOT_SENT and posts:
            raise AssertionError("a request that was not sent is at the server")
        if judgement.verdict is Verdict.ACCEPTED and (posts, judgement.task_id) != (1, id_for(prompt)):
            raise AssertionError("accepted, and not by the server")
        return judgement.verdict


def moments() -> Iterator[tuple[int, str]]:
    """By default every other turn of the loop, for each way by turns."""
    return (
        (turn, how)
        for turn in range(BEFORE, AFTER)
        for number, how in enumerate(CLOSES)
        if DEEP or (turn + number) % 2
    )


@pytest.mark.sweep
@pytest.mark.parametrize("tls", [False, True], ids=["http", "TLS"])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_verdict_is_certain_while_the_server_leaves(kind: Kind, tls: bool) -> None:
    """None is NOT_SENT with a request at the server, and none is there twice."""
    verdicts = collections.Counter([await trial(kind, turn, how, tls=tls) for turn, how in moments()])
    assert set(verdicts) <= {Verdict.NOT_SENT, Verdict.ACCEPTED, Verdict.UNKNOWN}
    assert verdicts[Verdict.ACCEPTED] > 0
    assert verdicts[Verdict.UNKNOWN] > 0


@pytest.mark.parametrize("how", CLOSES)
@pytest.mark.parametrize("tls", [False, True], ids=["http", "TLS"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_close_that_has_arrived_costs_nothing(kind: Kind, how: str, tls: bool) -> None:
    """The POST has another connection."""
    assert await trial(kind, -8, how, tls=tls) is Verdict.ACCEPTED


@pytest.mark.sweep
@pytest.mark.parametrize("tls", [False, True], ids=["http", "TLS"])
@pytest.mark.parametrize("kind", KINDS)
async def test_control_a_latch_that_is_set_late_is_wrong(
    kind: Kind, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: if the body counts as sent after it was written, one that was not "sent" is at the server."""

    async def late(self: PaidBody, writer: Any) -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        await writer.write(self._body)
        for _ in range(LATE):
            await asyncio.sleep(0)
        self._take()

    monkeypatch.setattr(PaidBody, "write", late)
    with pytest.raises(AssertionError, match="is at the server"):
        for turn, how in moments():
            await trial(kind, turn, how, tls=tls)
