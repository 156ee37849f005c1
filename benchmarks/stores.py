"""A SQLite store of many finished items: replaying them, and opening it. Both are for `pairs`.

The baseline is a table written by hand with sqlite3: a key, and the rest as JSON. Replaying is
compared with fetching 200 keys at a time and decoding each, opening with fetching and decoding every row.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import attrs

from kie4o import AsyncKieClient, Entry, ImageRequest
from kie4o.stores.sqlite import SQLiteStore

from .clients.kie4o import unpaced
from .pairs import Slice, sliced
from .processes import set_server

_AT_ONCE = 1000  # entries written at once
_KEYS = 200


def requests(items: int) -> dict[str, str]:
    return {f"item-{number}": f"a lighthouse, number {number}" for number in range(items)}


async def filled(base: str, path: Path, items: int) -> None:
    """Write a store as a batch of `items` leaves it: one is run, the others are made of its entry."""
    set_server(base, looks=1)
    names = list(requests(items).items())
    async with AsyncKieClient("key", base_url=base, store=path, poll=unpaced(0.0)) as client:
        [task_id] = [each.unwrap().task_id async for each in client.generate_many(dict(names[:1]))]
    store = SQLiteStore(path)
    await store.open()
    first = await store.find(task_id=task_id)
    assert first is not None
    for start in range(1, items, _AT_ONCE):
        chunk = enumerate(names[start : start + _AT_ONCE], start)
        await asyncio.gather(*(store.claim(_like(first, *each)) for each in chunk))
    await store.aclose()


def _like(first: Entry, number: int, item: tuple[str, str]) -> Entry:
    task_id = f"5fd2{number:028x}"
    assert first.details is not None
    return attrs.evolve(
        first,
        key=first.key.replace("item-0", item[0]),
        request=ImageRequest(item[1]),
        ref=f"{number:032x}",
        task_id=task_id,
        details=attrs.evolve(first.details, task_id=task_id),
    )


def by_hand(path: Path, items: int) -> None:
    def rows() -> Iterator[tuple[str, str]]:
        for number, (key, prompt) in enumerate(requests(items).items()):
            body = {
                "request": {"prompt": prompt, "size": "1:1"},
                "state": "succeeded",
                "task_id": f"5fd2{number:028x}",
                "urls": [f"https://files.example.com/s/5fd2{number:028x}_0_1774788517_4321.png"],
                "submitted_at": 1774788500.25,
                "completed_at": 1774788518.0,
            }
            yield key, json.dumps(body)

    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE item (key TEXT PRIMARY KEY, body TEXT)")
        connection.executemany("INSERT INTO item VALUES (?, ?)", rows())


@asynccontextmanager
async def replay(base: str, count: str) -> AsyncIterator[tuple[Slice, Slice]]:
    """Asking again for a batch that is finished, to the end of the iteration."""
    items = int(count)
    asked = requests(items)
    keys = list(asked)

    async def theirs() -> None:
        with closing(sqlite3.connect(folder / "hand.db")) as connection:
            for start in range(0, items, _KEYS):
                chunk = keys[start : start + _KEYS]
                marks = ",".join("?" * len(chunk))
                found = dict(connection.execute(f"SELECT key, body FROM item WHERE key IN ({marks})", chunk))
                assert all(json.loads(found[key])["urls"] for key in chunk)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        await filled(base, folder / "run.db", items)
        by_hand(folder / "hand.db", items)
        async with AsyncKieClient("key", base_url=base, store=folder / "run.db") as client:

            async def ours() -> None:
                seen = 0
                async for completion in client.generate_many(asked):
                    assert completion.replayed
                    seen += 1
                assert seen == items

            yield sliced(ours, items), sliced(theirs, items)


@asynccontextmanager
async def opening(base: str, count: str) -> AsyncIterator[tuple[Slice, Slice]]:
    """Opening a store, which checks every entry."""
    items = int(count)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        await filled(base, folder / "run.db", items)
        by_hand(folder / "hand.db", items)

        async def ours() -> None:
            store = SQLiteStore(folder / "run.db")
            await store.open()
            await store.aclose()

        async def theirs() -> None:
            with closing(sqlite3.connect(folder / "hand.db")) as connection:
                for _, body in connection.execute("SELECT key, body FROM item"):
                    assert json.loads(body)["urls"]

        yield sliced(ours, items), sliced(theirs, items)
