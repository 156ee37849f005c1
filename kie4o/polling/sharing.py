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


class Leadership:
    """Which of the tasks that are waited for here are polled here: all, unless the processes share them."""

    def __init__(self) -> None:
        self.sharing: Sharing | None = None
        self._leads: dict[str, bool] = {}

    def leads(self, task_id: str) -> bool:
        """Whether this process polls a task, and no other."""
        return self.sharing is None or self._leads.get(task_id, False)

    def joined(self, task_id: str) -> None:
        """A task is waited for. Another process polls it until `lead`."""
        if self.sharing is not None and task_id not in self._leads:
            self._leads[task_id] = False
            self.sharing.joined(task_id)

    def left(self, task_id: str, details: TaskDetails | None) -> None:
        """It is not waited for any more; its details if it has ended, and others may not know."""
        if self.sharing is not None and self._leads.pop(task_id, None) is not None:
            self.sharing.left(task_id, details)

    def lead(self, task_id: str) -> bool:
        """Poll a task from now on. Whether it was polled elsewhere."""
        followed = self._leads.get(task_id) is False
        if followed:
            self._leads[task_id] = True
        return followed

    def follow(self, task_id: str) -> bool:
        """Leave the polls of a task to another process. Whether it was polled here."""
        led = self._leads.get(task_id, False)
        if led:
            self._leads[task_id] = False
        return led

    async def turn(self, task_id: str) -> TaskDetails | None:
        """Wait until a task may be polled, wherever it is; its details if it has ended."""
        return None if self.sharing is None or self.leads(task_id) else await self.sharing.turn(task_id)
