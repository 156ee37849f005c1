"""Who posts the callbacks: it owns every call that is under way, and asks nobody but this machine.

That rule is kept here and nowhere else: an emulator in a test suite must not post to a stranger's
address, so a URL is opened only if its host is a loopback address or `localhost`, which no name server
is asked for, and redirects are not followed.
"""

import asyncio
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Protocol

import attrs
from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from .callbacks import CONTENTS, SPACING, Call, CallRecord, Letter

LOCALHOST = "localhost"
NOT_SENT = "not sent: the emulator calls back to http and https on loopback addresses only"
CUT_OFF = "cut off: the emulator was left"


def loopback(text: str) -> URL | None:
    """The address to post to, without a login; None if it is not certainly this machine."""
    try:
        url = URL(text)
        host = url.host or ""
        if url.scheme not in ("http", "https") or not (host == LOCALHOST or ip_address(host).is_loopback):
            return None
        return url.with_user(None)  # aiohttp would make an Authorization header of it
    except ValueError:
        return None


class _ThisMachine(AbstractResolver):
    """`localhost`, whatever a hosts file or a name server thinks of it; and nothing else."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if host != LOCALHOST:
            raise OSError(NOT_SENT)
        kinds = (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6))
        return [
            ResolveResult(
                hostname=host, host=address, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST
            )
            for address, kind in kinds
        ]

    async def close(self) -> None:
        """Nothing is held."""


class Clock(Protocol):
    """What a caller wants of an emulator; both durations and `now` are in emulated seconds."""

    speed: float
    callback_timeout: float

    def now(self) -> float: ...


@attrs.define(eq=False)
class Caller:
    """The callbacks of one emulator."""

    clock: Clock
    records: list[CallRecord] = attrs.field(factory=list, init=False)
    _calls: set[asyncio.Task[None]] = attrs.field(factory=set, init=False)

    def begin(self, write: Callable[[], Letter], call: Call, *, due: float) -> asyncio.Event:
        """Call at `due` and again as needed; the event says that the first answers are in, or overdue."""
        first = asyncio.Event()
        task = asyncio.create_task(self._call(write, call, due, first))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        task.add_done_callback(lambda _: first.set())
        return first

    async def aclose(self) -> None:
        """Drop what was still to be sent."""
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    async def send(self, letter: Letter, call: Call, *, attempt: int = 1) -> CallRecord:
        """One attempt, with the replays that belong to it once it was taken."""
        record = await self._post(letter, attempt)
        if record.status == 200:
            for _ in range(CONTENTS[call.content].replays):
                await self._post(letter, attempt)
        return record

    async def _call(self, write: Callable[[], Letter], call: Call, due: float, first: asyncio.Event) -> None:
        left = due - self.clock.now()
        while left > 0:  # a timer may go off a little early, and then the task would still run
            await self._pause(left)
            left = due - self.clock.now()
        copies = call.copies
        for attempt, gap in enumerate((call.delay, *SPACING[: call.repeats]), 1):
            await self._pause(gap)
            records = await asyncio.gather(
                *(self.send(write(), call, attempt=attempt) for _ in range(copies))
            )
            first.set()
            copies = sum(record.sent and record.status != 200 for record in records)
            if not copies:
                return

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self.clock.speed)

    async def _post(self, letter: Letter, attempt: int) -> CallRecord:
        address = loopback(letter.url)
        record = CallRecord(
            **attrs.asdict(letter, recurse=False),
            attempt=attempt,
            at=self.clock.now(),
            sent=address is not None,
            error=CUT_OFF if address else NOT_SENT,
        )
        try:
            if address:
                record = attrs.evolve(record, status=await self._exchange(address, letter), error=None)
        except TimeoutError:
            record = attrs.evolve(record, error=f"no answer within {self.clock.callback_timeout:g} s")
        except (ClientError, OSError, ValueError) as error:
            record = attrs.evolve(record, error=f"{type(error).__name__}: {error}")
        finally:
            self.records.append(record)
        return record

    async def _exchange(self, address: URL, letter: Letter) -> int:
        """The status is the answer; what else comes with it is not read."""
        # A session for each: nothing stays open between calls, no cookie, no proxy, no pool to wait for.
        async with (
            asyncio.timeout(self.clock.callback_timeout / self.clock.speed),
            ClientSession(
                connector=TCPConnector(resolver=_ThisMachine(), force_close=True),
                cookie_jar=DummyCookieJar(),
                timeout=ClientTimeout(total=None),
                auto_decompress=False,
            ) as session,
            session.post(
                address, data=letter.body, headers=letter.headers, allow_redirects=False
            ) as response,
        ):
            return response.status
