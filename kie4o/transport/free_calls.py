"""The calls that cost nothing: task details, balance, signed links.

`details` makes a single call, because the poller decides when to poll and handles failures. The
others are repeated a few times if a read fails.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, TypeVar

from ..details import TaskDetails
from ..wire.answers import credits_of, link_of
from ..wire.record_info import details_of
from ..wire.requests import CREDITS, DETAILS, DOWNLOAD_URL, Endpoint, json_body
from .retrying import Sleep, repeated
from .transport import Reader, Transport

if TYPE_CHECKING:
    from decimal import Decimal


_T = TypeVar("_T")

# A running task often answers with the same bytes, which are then read once: that saves 9 us of a status
# check of 105 us (`python -m benchmarks --only cpu`).
_REMEMBERED = 128  # answers; as many as tasks are usually in flight
_LONGEST_REMEMBERED = 16 * 1024  # bytes of a body, so 2 MiB of them at most; real ones have less than 2 KiB


class FreeCalls:
    """The free calls over one transport. All raise `APIConnectionError`, `APIStatusError` or
    `UnexpectedResponseError`."""

    def __init__(self, transport: Transport, *, sleep: Sleep = asyncio.sleep) -> None:
        self._transport = transport
        self._sleep = sleep
        self._remembered = functools.lru_cache(maxsize=_REMEMBERED)(details_of)

    async def details(self, task_id: str) -> TaskDetails:
        """The details of a task, by one call without a timeout: the poller has its own."""
        query = f"?taskId={task_id}"  # a task id needs no quoting (`decoding.TASK_ID`)
        status, body, retry_after = await self._transport.exchange(DETAILS, query=query, timeout=None)
        read = self._remembered if len(body) <= _LONGEST_REMEMBERED else details_of
        return read(task_id, status, body, retry_after)

    async def credits(self) -> Decimal:
        """The balance of the account."""
        return await self._repeated(CREDITS, credits_of)

    async def download_url(self, task_id: str, url: str) -> str:
        """A signed link to one of a task's images."""
        body = json_body({"taskId": task_id, "url": url})
        return await self._repeated(DOWNLOAD_URL, link_of, body)

    async def _repeated(self, endpoint: Endpoint, reader: Reader[_T], body: bytes | None = None) -> _T:
        return await repeated(
            lambda: self._transport.read(endpoint, reader, body=body),
            sleep=self._sleep,
            reporter=self._transport.reporter,
        )
