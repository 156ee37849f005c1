"""The `store=` argument: one row per scheme, and objects that are no store are refused at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from canary import CANARY_KEY

from kie4o import AsyncKieClient, ConfigurationError
from kie4o.settings import Secret
from kie4o.stores import choosing
from kie4o.stores.choosing import SCHEMES, is_shared, store_of
from kie4o.stores.memory import MemoryStore
from kie4o.stores.sqlite import SQLiteStore

KEY = Secret(CANARY_KEY)


@pytest.mark.parametrize("given", ["run.db", "sqlite:///run.db", Path("run.db")], ids=str)
def test_a_path_is_a_sqlite_file(given: str | os.PathLike[str]) -> None:
    store = store_of(given, KEY)
    assert isinstance(store, SQLiteStore)
    assert store.path == Path("run.db")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_a_database_is_shared_by_account(scheme: str) -> None:
    """Nothing is connected yet, and no repr holds the password or the key."""
    store = store_of(f"{scheme}://kie:s3cret@db.example/images", KEY)
    assert repr(store) == "PostgresStore('db.example/images')"
    assert store.shared is not None
    with pytest.raises(ConfigurationError, match="schema= is not a name") as caught:
        store_of(f"{scheme}://kie:s3cret@db.example/images?schema=No", KEY)
    assert "s3cret" not in str(caught.value)


def test_what_is_shared_is_known_from_its_address() -> None:
    """Without a store that is opened, or a driver."""
    for given in ("postgresql://db.example/images", "postgres://db.example/images"):
        assert is_shared(given)
    for given in ("run.db", "sqlite:///run.db", Path("run.db"), None, MemoryStore()):
        assert not is_shared(given)


def test_a_driver_that_is_missing_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install '\.\[postgres\]'"):
        store_of("postgresql://db.example/images", KEY)


def test_none_is_memory_and_a_store_is_itself() -> None:
    assert isinstance(store_of(None, KEY), MemoryStore)
    own = MemoryStore()
    assert store_of(own, KEY) is own


@pytest.mark.parametrize(
    "given",
    [
        *("", "  ", ":memory:", "sqlite:///", "sqlite://run.db", 5, b"run.db"),
        *("runs/", "sqlite:///runs/", ".", "..", "runs/.", "/", Path(), Path("/")),  # folders
    ],
    ids=repr,
)
def test_what_is_no_store_is_refused_with_what_is_expected(given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^invalid store=.*: expected None for memory, a path"):
        store_of(given, KEY)


def test_an_unknown_scheme_is_refused_without_its_password() -> None:
    """Nothing after the scheme is shown."""
    assert "redis://" not in SCHEMES
    with pytest.raises(ConfigurationError) as caught:
        store_of("redis://user:secret@localhost/0", KEY)
    assert "redis://" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        Path("postgresql://kie:secret@localhost/images"),
        "postgresql:/kie:secret@localhost/images",
        "Postgres:kie:secret@localhost",
        "host=localhost dbname=images password=secret",
        "postgresql+psycopg://kie:secret@localhost/images",
    ],
    ids=["path", "one slash", "no slash", "words", "driver"],
)
def test_a_database_that_is_misspelt_is_no_file(given: Any) -> None:
    """A file with the password in its name would be shared by nobody."""
    with pytest.raises(ConfigurationError, match="'postgresql://user@host/database'") as caught:
        store_of(given, KEY)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("missing", ["save", "begin", "release", "unfinished", "shared"])
def test_an_object_that_lacks_a_method_is_refused_by_name(missing: str) -> None:
    """In the constructor of the client; it would fail after a request was paid for otherwise."""

    class Lacking:
        def __getattr__(self, name: str) -> Any:
            if name == missing:
                raise AttributeError(name)
            return getattr(MemoryStore(), name)

    with pytest.raises(
        ConfigurationError, match=f"^Lacking is not a Store: it lacks {missing}; see kie4o.Store$"
    ):
        AsyncKieClient(CANARY_KEY, store=Lacking())
