"""A store whose process dies at one of its writes, and a process that settles with it:
`python dying.py RUN`, with the fields of `Run` as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import attrs

import kie4o
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.store import Entry

SURVIVED = 7  # the exit code of a process that settled, so that no further write is left to die at


@attrs.frozen
class Run:
    """Settle the entry of `ref`, and die before or after write number `at`."""

    url: str
    path: str
    ref: str
    task_id: str | None  # None: it was not charged
    at: int
    after: bool


class DyingStore(SQLiteStore):
    """Kills its process (SIGKILL) before write number `at`, or when it is on the disk."""

    def __init__(self, path: Path, at: int, *, after: bool) -> None:
        super().__init__(path)
        self.at, self.after = at, after

    def _die(self, *, after: bool) -> None:
        self.at -= not after
        if self.at == 0 and after is self.after:
            os.kill(os.getpid(), signal.SIGKILL)

    async def save(self, entry: Entry) -> None:
        self._die(after=False)
        await super().save(entry)
        self._die(after=True)

    async def begin(self, entry: Entry, superseded: Entry | None = None) -> None:
        self._die(after=False)
        await super().begin(entry, superseded)
        self._die(after=True)


async def settle(run: Run) -> None:
    store = DyingStore(Path(run.path), run.at, after=run.after)
    async with kie4o.AsyncKieClient("k-123", base_url=run.url, store=store) as client:
        await client.settle(run.ref, task_id=run.task_id, charged=False if run.task_id is None else None)


if __name__ == "__main__":
    asyncio.run(settle(Run(**json.loads(sys.argv[1]))))
    sys.exit(SURVIVED)
