"""What every test has: a clean environment, a Hypothesis profile, and a canary for the API key."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from canary import CANARY_KEY, WATCH
from clients import MakeStore
from hypothesis import HealthCheck, settings

from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore
from kie4o.stores.sqlite import SQLiteStore

settings.register_profile("fast", max_examples=50, deadline=None)
settings.register_profile(
    "deep",
    max_examples=5_000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or "fast")


def pytest_configure() -> None:
    WATCH.start()


@pytest.fixture(autouse=True)
def no_leaked_key() -> Iterator[None]:
    """Law 7 in every test: no error and no log record of it holds the key."""
    WATCH.leaks()
    yield
    leaks = WATCH.leaks()
    assert not leaks, "\n".join(dict.fromkeys(leaks))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine reaches a test."""
    for name in list(os.environ):
        if name.upper().startswith("KIE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def api_key() -> str:
    """The key to use wherever one is needed; it is searched for afterwards."""
    return CANARY_KEY


@pytest.fixture
async def kie() -> AsyncIterator[Emulator]:
    """A Kie on localhost."""
    async with Emulator() as emulator:
        yield emulator


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    """Each call gives a store for one more client; all of them have the same memory."""
    memory = MemoryStore()
    return lambda: memory if request.param == "memory" else SQLiteStore(tmp_path / "run.db")
