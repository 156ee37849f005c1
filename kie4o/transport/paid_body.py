"""The body of the paid POST, which records whether any of it may have been sent.

That is the only sound evidence that a submit cost nothing: Kie cannot act on a request whose body was
never written. It is separate from `transport` because `submission` reads and withdraws attempts.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import aiohttp
import attrs

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter


JSON = "application/json"
# Turns of the loop until it has told the protocol of a reset that had arrived before, over TLS too. Three are
# enough before Python 3.12, with which aiohttp starts the write one turn earlier.
_TURNS = 4


@attrs.define(kw_only=True)
class PaidAttempt:
    """One attempt at the paid POST, filled in while it runs.

    `sent` is set as soon as the body is handed to aiohttp for writing. `status` and `body` hold what
    arrived of the answer, even if `fault` says that it broke off.
    """

    good_until: float = float("inf")  # loop time after which the body must not be written
    sent: bool = False
    sent_at: float = float("inf")  # loop time
    withdrawn: bool = False  # the body will not be written any more
    status: int | None = None
    body: bytes = attrs.field(default=b"", repr=False)
    complete: bool = False  # the whole body has arrived
    fault: str = ""
    cause: str | None = None  # the class and words of the exception behind `fault`, if it is not of kie4o
    timed_out: bool = False
    permanent: bool = (
        False  # the same attempt would fail again: a certificate, a proxy's refusal, a closed session
    )
    retry_after: str | None = None  # the header

    def withdraw(self) -> bool:
        """Prevent the body from being written. Returns False if it may have been.

        The task that runs the attempt has to be cancelled as well.
        """
        self.withdrawn = not self.sent
        return self.withdrawn


class PaidBody(aiohttp.Payload):
    """The only source of the body's bytes: reading them sets `sent`, unless the attempt is withdrawn.

    Cancelling is not enough to withdraw, because aiohttp writes bodies in a task of its own, which may
    start after the cancellation.

    That nothing was sent is equally certain on every connection, new or used, since `sent` is set by the body
    and not by the connection. How often the outcome is unknown does depend on it. Between the last sign of
    life from the server and the write, a new connection has half a round trip, any other up to 2 s. A close
    that has reached this machine by then is seen here and costs nothing. One that is under way, or that no
    one announces, as when a router has forgotten the connection, leaves the outcome unknown.

    What has arrived before the write is no answer, and is seen here too. What arrives after it and answers
    an earlier request cannot be told from an answer to this one, except by its task id: see
    `Submissions._record`. A refusal has none, and counts. The one answer that servers send unasked, a 408,
    refuses nothing.
    """

    def __init__(self, body: bytes, attempt: PaidAttempt, *, keep_connection: bool = True) -> None:
        super().__init__(None, content_type=JSON)
        self._keep_connection = keep_connection
        self._body = body
        self._attempt = attempt

    @property
    def size(self) -> int:
        return len(self._body)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self._take().decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        protocol = cast(Any, writer).protocol  # aiohttp's own; the abstract writer does not declare it
        if protocol.should_close or not protocol.is_connected():
            # The connection just broke, or holds a stale response that would be mistaken for ours.
            raise aiohttp.ClientConnectionResetError("the connection cannot be reused")
        if asyncio.get_running_loop().time() > self._attempt.good_until:
            raise aiohttp.ClientConnectionResetError("the slot of the account's limit has expired")
        if not self._keep_connection:
            protocol.force_close()  # after the response, whatever the server says about it
        await writer.write(self._take())

    def _take(self) -> bytes:
        if self._attempt.withdrawn:
            raise asyncio.CancelledError
        self._attempt.sent, self._attempt.sent_at = True, asyncio.get_running_loop().time()
        return self._body
