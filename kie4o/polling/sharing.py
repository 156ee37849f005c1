"""Tasks that other processes wait for as well: of all that wait for one, a single process polls it."""

from __future__ import annotations

from typing import Protocol

from ..details import TaskDetails


class Sharing(Protocol):
    """What the poller tells of its tasks; `TaskPoller.lead`, `follow` and `found` are the answers."""

    def joined(self, task_id: str) -> None:
        """A task is waited for from now on. It is not polled before the answer."""

    def left(self, task_id: str, details: TaskDetails | None) -> None:
        """Nobody waits for it any more. The details are given if it has ended."""

    async def turn(self, task_id: str) -> TaskDetails | None:
        """Wait until a task that is polled elsewhere may be polled once; its details if it has ended."""
        ...
