"""`store=...` to a store: one row per kind of address."""

from __future__ import annotations

import os

from ..errors import ConfigurationError
from .memory import MemoryStore
from .store import Store

_SQLITE = "sqlite:///"


def store_of(store: Store | str | os.PathLike[str] | None) -> Store:
    """A store: this process's memory, a SQLite file by path or URL, or one of the caller's own."""
    if store is None:
        return MemoryStore()
    if not isinstance(store, (str, os.PathLike)):
        if not hasattr(store, "claim"):
            raise ConfigurationError(f"store={store!r} is not possible: use a path, or an object like Store")
        return store
    place = os.fspath(store)
    if place.startswith(_SQLITE):
        place = place.removeprefix(_SQLITE)
    elif "://" in place:
        raise ConfigurationError(f"store={place.partition(':')[0]}://... is not possible: use a path")
    if not place.strip() or place == ":memory:":
        raise ConfigurationError(f"store={place!r} is not possible: use a path, or None for memory")
    from .sqlite import SQLiteStore

    return SQLiteStore(place)
