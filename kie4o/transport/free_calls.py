"""The calls to Kie that cost nothing: details, balance, signed links.

One look is one call, since the poller paces looks and rides out their failures. The others are made
a few times if a read fails.
"""

from __future__ import annotations

import functools
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from ..details import TaskDetails
from ..wire.answers import credits_of, link_of
from ..wire.record_info import details_of
from ..wire.requests import CREDITS, DETAILS, DOWNLOAD_URL, Endpoint, json_body
from .retrying import repeated
from .transport import Reader, Transport, task_query

if TYPE_CHECKING:
    from decimal import Decimal


_T = TypeVar("_T")


# A running task answers with the same bytes again and again: they are read once. As many are kept
# as tasks are usually in flight.
_details_of = functools.lru_cache(maxsize=128)(details_of)


class FreeCalls:
    """Reads over one transport. All raise the errors of a free call."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def details(self, task_id: str) -> Coroutine[Any, Any, TaskDetails]:
        """One look, as long as it takes: the poller bounds its looks."""
        reader = functools.partial(_details_of, task_id)
        return self._transport.read(DETAILS, reader, query=task_query(task_id), timeout=None)

    async def credits(self) -> Decimal:
        return await self._repeated(CREDITS, credits_of)

    async def download_url(self, task_id: str, url: str) -> str:
        body = json_body({"taskId": task_id, "url": url})
        return await self._repeated(DOWNLOAD_URL, link_of, body)

    async def _repeated(self, endpoint: Endpoint, reader: Reader[_T], body: bytes | None = None) -> _T:
        return await repeated(lambda: self._transport.read(endpoint, reader, body=body))
