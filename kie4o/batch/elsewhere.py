"""The items of a batch that another process has in hand, where several work through one list.

Such an item is passed over. It takes no permit and none of the `max_in_flight` of the batch: otherwise all
processes would wait for the same tasks. Once a second the store is asked about all of them. One that is in
nobody's hands any more has ended, or is taken over from a process that is gone.
"""

from __future__ import annotations

import asyncio

from ..stores.store import Store
from .items import Item

ASK = 1.0  # seconds between two questions


class Elsewhere:
    """Items that were passed over; there are none on a store that no other process uses."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._items: list[Item] = []

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: Item) -> None:
        self._items.append(item)

    async def released(self) -> list[Item]:
        """Wait for the first that are in nobody's hands any more, and return them."""
        while True:
            await asyncio.sleep(ASK)
            asked, shared = self._items.copy(), self._store.shared
            held = () if shared is None else await shared.held({item.key for item in asked})
            free = [item for item in asked if item.key not in held]
            if free:
                self._items = [item for item in asked if item.key in held] + self._items[len(asked) :]
                return free
