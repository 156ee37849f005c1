"""The process whose disk is full: a submit while its files may not grow, and another one after that.

A soft limit on the size of files stands in for the disk: a write beyond it fails in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from canary import CANARY_KEY
from clocks import run_scaled
from faults import Connection, FaultServer, http

from kie4o import AsyncKieClient, KieError
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.store import Entry

SPEED = 20.0


class FillingStore(SQLiteStore):
    """A store whose disk fills up just before one state is saved."""

    def __init__(self, path: Path, state: str) -> None:
        super().__init__(path)
        self._state = state

    async def claim(self, entry: Entry, **options: Any) -> Entry | None:
        self._fill("claim")
        return await super().claim(entry, **options)

    async def begin(self, entry: Entry, superseded: Entry | None = None) -> None:
        self._fill(entry.state.value)
        await super().begin(entry, superseded)

    async def save(self, entry: Entry) -> None:
        self._fill(entry.state.value)
        await super().save(entry)

    def _fill(self, state: str) -> None:
        if state == self._state:
            self._state = ""
            may_grow_to(0)  # existing bytes too: the log is overwritten from its start now and then


def may_grow_to(size: int) -> None:
    """-1 stands for any size."""
    import resource  # not on Windows

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


async def pay(connection: Connection) -> None:
    await connection.request()
    task_id = f"task-{connection.server.posts}"
    await connection.send(http(json.dumps({"code": 200, "data": {"taskId": task_id}}).encode()))


@contextlib.asynccontextmanager
async def client_of(server: FaultServer, store: FillingStore) -> AsyncIterator[AsyncKieClient]:
    async with AsyncKieClient(CANARY_KEY, base_url=server.url, store=store) as client:
        yield client


async def outcome_of(client: AsyncKieClient) -> dict[str, Any]:
    try:
        task = await client.submit("draw", key="order-1")
    except KieError as error:
        return {"error": type(error).__name__, "task_id": error.task_id, "key": error.key}
    return {"error": None, "task_id": task.id}


async def main(path: Path, state: str) -> dict[str, Any]:
    state, _, forever = state.partition(" ")
    store = FillingStore(path, state)
    async with FaultServer(pay) as server, client_of(server, store) as client:
        seen = await outcome_of(client)
        seen["posts"] = server.posts
        seen["while_full"] = (await outcome_of(client))["task_id"]
        if forever:
            return seen
        may_grow_to(-1)
        if state == "submitted":
            seen["saved"] = await saved(store)
        seen["again"] = (await outcome_of(client))["task_id"]
        seen["posts_after"] = server.posts
    return seen


async def saved(store: FillingStore) -> str | None:
    """Wait until the file holds the task id."""
    async with asyncio.timeout(60):
        while True:
            entry = await store.find(key="order-1")
            if entry is not None and entry.task_id is not None:
                return entry.task_id
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # Python's default: the write fails instead
    logging.basicConfig(format="%(levelname)s %(message)s")
    print(json.dumps(run_scaled(main(Path(sys.argv[1]), sys.argv[2]), SPEED)))
