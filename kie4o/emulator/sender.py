"""Posts callbacks, and owns every delivery until it is over.

This module alone keeps the emulator from posting to other machines, as a test suite must not reach a real
address. A URL is opened only if its host is a loopback address or `localhost`, which is resolved without a
name server. Redirects are not followed.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Protocol

import attrs
from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from .callbacks import CONTENTS, REPEAT_DELAYS, Call, CallbackRequest, CallRecord

LOCALHOST = "localhost"
NOT_SENT = "not sent: the emulator posts callbacks only to http and https on loopback addresses"
CANCELLED = "cancelled: the emulator was closed"


def loopback_url(text: str) -> URL | None:
    """The URL to post to, without its login; None unless it is certainly on this machine."""
    try:
        url = URL(text)
        host = url.host or ""
        if url.scheme not in ("http", "https") or not (host == LOCALHOST or ip_address(host).is_loopback):
            return None
        return url.with_user(None)  # aiohttp would turn a login into an Authorization header
    except ValueError:
        return None


Due = Callable[[], float]


class _LoopbackResolver(AbstractResolver):
    """Resolves `localhost` to the loopback addresses, whatever the hosts file says, and nothing else."""

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
        """Nothing to close."""


class Clock(Protocol):
    """What the sender needs of an emulator. Both the timeout and `now` are in emulated seconds."""

    speed: float
    callback_timeout: float

    def now(self) -> float: ...


@attrs.define(eq=False)
class CallbackSender:
    """The callbacks of one emulator, and the records of those that are over."""

    clock: Clock
    records: list[CallRecord] = attrs.field(factory=list, init=False)
    _deliveries: set[asyncio.Task[None]] = attrs.field(factory=set, init=False)
    _changed: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)

    def schedule(self, build: Callable[[], CallbackRequest], call: Call, *, due: Due) -> asyncio.Event:
        """Deliver a callback when it is due, with its repeats; each attempt builds its request anew.

        `due` is asked again after `time_changed`. The event is set once the first attempts are answered or
        have failed.
        """
        first = asyncio.Event()
        task = asyncio.create_task(self._deliver(build, call, due, first))
        self._deliveries.add(task)
        task.add_done_callback(self._deliveries.discard)
        task.add_done_callback(lambda _: first.set())
        return first

    def time_changed(self) -> None:
        """What is due has changed, or the time has been moved on."""
        self._changed.set()
        self._changed = asyncio.Event()

    def reset(self) -> None:
        """Call off every delivery, and forget the records."""
        for delivery in self._deliveries:
            delivery.cancel()
        self.records = []

    async def aclose(self) -> None:
        """Cancel every delivery that is not over."""
        deliveries = list(self._deliveries)
        for delivery in deliveries:
            delivery.cancel()
        await asyncio.gather(*deliveries, return_exceptions=True)

    async def send(self, request: CallbackRequest, call: Call, *, attempt: int = 1) -> CallRecord:
        """Make one attempt, and the replays that follow it if it is answered with 200."""
        record = await self._post(request, attempt)
        if record.status == 200:
            for _ in range(CONTENTS[call.content].replays):
                await self._post(request, attempt)
        return record

    async def _deliver(
        self, build: Callable[[], CallbackRequest], call: Call, due: Due, first: asyncio.Event
    ) -> None:
        while (left := due() - self.clock.now()) > 0:  # also since a timer may fire slightly early
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left / self.clock.speed):
                    await self._changed.wait()
        copies = call.copies
        for attempt, delay in enumerate((call.delay, *REPEAT_DELAYS[: call.repeats]), 1):
            await self._sleep(delay)
            records = await asyncio.gather(
                *(self.send(build(), call, attempt=attempt) for _ in range(copies))
            )
            first.set()
            copies = len([record for record in records if record.sent and record.status != 200])
            if not copies:
                return

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self.clock.speed)

    async def _post(self, request: CallbackRequest, attempt: int) -> CallRecord:
        url, records = loopback_url(request.url), self.records
        record = CallRecord(
            **attrs.asdict(request, recurse=False),
            attempt=attempt,
            at=self.clock.now(),
            sent=url is not None,
            error=CANCELLED if url else NOT_SENT,
        )
        try:
            if url:
                record = attrs.evolve(record, status=await self._status_of(url, request), error=None)
        except TimeoutError:
            record = attrs.evolve(record, error=f"no answer within {self.clock.callback_timeout:g} s")
        except (ClientError, OSError, ValueError) as error:
            record = attrs.evolve(record, error=f"{type(error).__name__}: {error}")
        finally:
            records.append(record)
        return record

    async def _status_of(self, url: URL, request: CallbackRequest) -> int:
        """Post the request. Only the status of the answer counts; its body is not read."""
        # One session per request: no connection kept open, no cookie, no proxy, no pool to wait for.
        async with (
            asyncio.timeout(self.clock.callback_timeout / self.clock.speed),
            ClientSession(
                connector=TCPConnector(resolver=_LoopbackResolver(), force_close=True),
                cookie_jar=DummyCookieJar(),
                timeout=ClientTimeout(total=None),
                auto_decompress=False,
            ) as session,
            session.post(url, data=request.body, headers=request.headers, allow_redirects=False) as response,
        ):
            return response.status
