"""Which process polls a task that several wait for, so that many replicas poll no more often than one.

One row per task names the process, which polls at its own pace and writes nothing per poll. The others ask
once a second for all their tasks, and when they are told of one. A dead process is replaced by the one
that asks next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from ...details import TaskDetails
from ...errors import StoreError
from ..packing import checksum, packed_details, unpacked, unpacked_details
from .database import Database, Row
from .process import Process

_SWEEP = 600.0  # seconds between two times that old rows are dropped
_LEAD = "SELECT * FROM kie4o.lead(%s, %s, %s)"
_LEAVE = "SELECT kie4o.leave_tasks(%s, %s, %s, %s::bytea[], %s::bytea[])"
_TURN = "SELECT * FROM kie4o.take_turn(%s, %s, make_interval(secs => %s))"


class Watches:
    """The tasks of one account that are waited for."""

    def __init__(self, database: Database, process: Process, account: bytes) -> None:
        self._database = database
        self._process = process
        self._account = account
        self._swept_at = float("-inf")

    async def lead(self, task_ids: Collection[str]) -> Mapping[str, TaskDetails | None]:
        """The tasks that this process has to poll from now on, and the details of those that have ended."""
        rows = await self._database.rows(_LEAD, self._process.id, self._account, list(task_ids))
        led: dict[str, TaskDetails | None] = {}
        for task_id, mine, *end in rows:
            details = _end_of(end)
            if mine or details is not None:
                led[task_id] = details
        return led

    async def leave(self, ends: Mapping[str, TaskDetails | None]) -> None:
        """Nobody waits for these tasks here any more; with the details of those that have ended."""
        packed = [None if details is None else packed_details(details) for details in ends.values()]
        checksums = [None if body is None else checksum(body) for body in packed]
        await self._database.rows(_LEAVE, self._process.id, self._account, list(ends), packed, checksums)
        now = asyncio.get_running_loop().time()
        if now > self._swept_at + _SWEEP:
            self._swept_at = now
            await self._database.rows("SELECT kie4o.drop_watches()")

    async def turn(self, task_id: str, gap: float) -> float | TaskDetails:
        """Seconds until this process may poll the task once, 0 for now, or how it has ended."""
        [(seconds, body, check)] = await self._database.rows(_TURN, self._account, task_id, gap)
        details = unpacked_details(body, check)
        return max(0.0, float(seconds)) if details is None else details


def _end_of(row: Row | list[object]) -> TaskDetails | None:
    body, check, entry_body, entry_check = row
    details = unpacked_details(body, check)
    if details is None and entry_body is not None:
        try:
            return unpacked(entry_body, entry_check).details
        except StoreError:
            return None  # it is polled
    return details
