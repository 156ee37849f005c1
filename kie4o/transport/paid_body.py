"""The latch: whoever takes the bytes of the paid POST sets it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import aiohttp
import attrs

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter


JSON = "application/json"


@attrs.define
class PaidAttempt:
    """One attempt of the paid POST, filled in while it goes on.

    `sent` is the latch; `withdrawn` says that what has not left never will. `status` and `body` hold
    what arrived, even if `fault` says that it broke off.
    """

    sent: bool = False
    withdrawn: bool = False
    status: int | None = None
    body: bytes = attrs.field(default=b"", repr=False)
    fault: str = ""
    timed_out: bool = False
    hopeless: bool = False  # nothing that time could mend
    retry_after: str | None = None

    def withdraw(self) -> bool:
        """See to it that it never leaves; False if it has left. Who asked for it is still to be cancelled."""
        self.withdrawn = not self.sent
        return self.withdrawn


class PaidBody(aiohttp.Payload):
    """The body of the paid POST. Its bytes can be had from nowhere but here, and whoever takes them
    sets the latch. aiohttp writes in a task of its own, which may begin after a cancel: hence
    `withdrawn`."""

    def __init__(self, body: bytes, attempt: PaidAttempt) -> None:
        super().__init__(None, content_type=JSON)
        self._body = body
        self._attempt = attempt

    @property
    def size(self) -> int:
        return len(self._body)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self._taken().decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        protocol = cast(Any, writer).protocol  # aiohttp's own, of which the abstract writer knows nothing
        if protocol.should_close or not protocol.is_connected():
            # It broke just now, or somebody else's answer waits in it, which would be taken for ours.
            raise aiohttp.ClientConnectionResetError("the connection was not clean")
        await writer.write(self._taken())

    def _taken(self) -> bytes:
        if self._attempt.withdrawn:
            raise asyncio.CancelledError
        self._attempt.sent = True
        return self._body
