"""The calls to Kie that cost nothing: details, balance, signed links.

One look is one call, since the poller paces looks and rides out their failures. The others are made
a few times if a read fails.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import TypeVar

from . import wire
from .models import TaskDetails
from .retrying import repeated
from .transport import Transport, task_query
from .wire import Endpoint

_T = TypeVar("_T")
_Reader = Callable[[int, bytes, float | None], _T]


class Reads:
    """Reads over one transport. All raise the errors of a free call."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def details(self, task_id: str) -> TaskDetails:
        answer = await self._transport.read(wire.DETAILS, query=task_query(task_id))
        return wire.details_of(task_id, answer.status, answer.body, wire.retry_after_of(answer.retry_after))

    async def credits(self) -> Decimal:
        return await self._repeated(wire.CREDITS, None, wire.credits_of)

    async def download_url(self, task_id: str, url: str) -> str:
        body = wire.json_body({"taskId": task_id, "url": url})
        return await self._repeated(wire.DOWNLOAD_URL, body, wire.link_of)

    async def _repeated(self, endpoint: Endpoint, body: bytes | None, read: _Reader[_T]) -> _T:
        async def call() -> _T:
            answer = await self._transport.read(endpoint, body=body)
            return read(answer.status, answer.body, wire.retry_after_of(answer.retry_after))

        return await repeated(call)
