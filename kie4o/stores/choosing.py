"""The `store=` argument of the client, turned into a store: one row per scheme."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from types import MappingProxyType

from ..errors import ConfigurationError, invalid_setting
from ..plain import expanded, plain
from ..settings import Secret
from .memory import MemoryStore
from .store import Store

EXPECTED = (
    "None for memory, a path to a file, 'sqlite:///run.db', 'postgresql://user@host/database', or an object "
    "with the methods of Store"
)
_SQLITE = "sqlite:///"
# What was meant as a database: a URL that lacks a slash, as one in a `Path` does, or words for libpq.
_DATABASE = re.compile(r"postgres(ql)?[:+]|(host|hostaddr|port|dbname|user|password|service)=", re.IGNORECASE)
_NO_FILE = ("", os.curdir, os.pardir)  # "runs/" is a folder; `Path` would make a file "runs" of it


def _sqlite(address: str, api_key: Secret) -> Store:
    path = address.removeprefix(_SQLITE)
    if not path.strip() or path == ":memory:" or os.path.split(path)[1] in _NO_FILE:
        raise invalid_setting("store", path, EXPECTED)
    from .sqlite import SQLiteStore  # loads sqlite3, which a client without a file never needs

    return SQLiteStore(expanded(path))


def _postgres(address: str, api_key: Secret) -> Store:
    if find_spec("psycopg") is None:
        raise ConfigurationError(
            "a store in PostgreSQL needs psycopg; in a checkout of kie4o, run: pip install '.[postgres]'"
        )
    from .postgres import PostgresStore

    return PostgresStore(address, api_key)


# By the prefix of the address.
SCHEMES: Mapping[str, Callable[[str, Secret], Store]] = MappingProxyType(
    {_SQLITE: _sqlite, "postgresql://": _postgres, "postgres://": _postgres}
)
_SHARED = ("postgresql://", "postgres://")
_MEMBERS = sorted(name for name in {*vars(Store), *Store.__annotations__} if not name.startswith("_"))


def store_of(store: Store | str | os.PathLike[str] | None, api_key: Secret) -> Store:
    """A store that is not open yet. The API key tells accounts apart in a store that several use.

    Raises `ConfigurationError`.
    """
    if store is None:
        return MemoryStore()
    if not isinstance(store, (str, os.PathLike)):
        return _checked(store)
    address: str = os.fspath(plain(store))
    for prefix, store_at in SCHEMES.items():
        if address.startswith(prefix):
            return store_at(address, api_key)
    scheme, separator, _ = address.partition("://")
    if separator:
        raise invalid_setting("store", f"{scheme}://...", EXPECTED)  # the rest may hold a password
    if found := _DATABASE.match(address):
        raise invalid_setting("store", f"{found[0]}...", EXPECTED)
    return _sqlite(address, api_key)


def is_shared(store: object) -> bool:
    """Whether this is the address of a database that several processes may use at a time."""
    return isinstance(store, str) and store.startswith(_SHARED)


def _checked(store: Store) -> Store:
    """A store of the caller's. One that lacks a method would otherwise fail after a request was paid for."""
    missing = [name for name in _MEMBERS if not hasattr(store, name)]
    if "claim" in missing:
        raise invalid_setting("store", store, EXPECTED)
    if missing:
        raise ConfigurationError(
            f"{type(store).__name__} is not a Store: it lacks {', '.join(missing)}; see kie4o.Store"
        )
    return store
