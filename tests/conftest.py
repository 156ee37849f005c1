"""What every test has: a clean environment, a Hypothesis profile, a time limit, a canary for the API key."""

import asyncio
import faulthandler
import functools
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import postgres
import proving
import pytest
from aiohttp import web, web_app
from canary import CANARY_KEY, WATCH
from clients import MakeStore
from clocks import KIND, new_loop
from hypothesis import HealthCheck, settings

from kie4o import pytest_plugin
from kie4o.emulator import Emulator
from kie4o.emulator.routes import Routes
from kie4o.stores.memory import MemoryStore
from kie4o.stores.sqlite import SQLiteStore
from kie4o.transport.pools import Pool

STDERR = pytest.StashKey[int]()
PROFILE = os.environ.get("HYPOTHESIS_PROFILE") or "fast"
# Seconds for one test; `timeout` in pyproject.toml is for all others.
SWEEP_TIMEOUT = 600
DEEP_TIMEOUT = 3600

settings.register_profile("fast", max_examples=50, deadline=None)
settings.register_profile(
    "deep",
    max_examples=5_000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
settings.load_profile(PROFILE)


if KIND != "asyncio":  # no other loop has virtual time
    Emulator.__init__ = functools.partialmethod(Emulator.__init__, clock="real")


def watch_emulators() -> None:
    """What an emulator receives is searched for the key."""
    original = Routes._count_request

    @functools.wraps(original)
    async def count_request(routes: Routes, request: web.Request, handler: Any) -> web.StreamResponse:
        headers = b"\n".join(b"%b: %b" % each for each in request.raw_headers)
        WATCH.search_sent(b"%b %b" % (request.raw_path.encode(), headers))
        return await original(routes, request, handler)

    Routes._count_request = count_request  # type: ignore[method-assign]  # to see every request


def pytest_configure(config: pytest.Config) -> None:
    config.stash[STDERR] = os.dup(2)  # output is not captured now
    WATCH.start()
    watch_emulators()
    if not config.pluginmanager.is_registered(pytest_plugin):  # as the entry point of an installed kie4o does
        config.pluginmanager.register(pytest_plugin, "kie4o")


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    """The interpreter's watchdog ends the process with every stack, as the thread of pytest-timeout does. To
    start and to end such a thread took a third of the 2.5 ms of a short test."""
    faulthandler.dump_traceback_later(settings.timeout, exit=True, file=item.config.stash[STDERR])
    return True


def pytest_timeout_cancel_timer() -> bool:
    faulthandler.cancel_dump_traceback_later()
    return True


def pytest_report_header() -> str:
    return f"event loop: {KIND}"


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop of every test that is a coroutine."""
    return {KIND: new_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give sweeps, and every test of the deep profile, more time; leave out what cannot run here.

    Those of the shared window come first: they mostly wait, and as the last ones would leave the cores idle.
    """
    items.sort(key=lambda item: item.path.name != "test_postgres_window.py")
    for item in items:
        posix = item.get_closest_marker("posix")
        if posix and sys.platform == "win32":
            item.add_marker(pytest.mark.skip(reason=f"needs {posix.args[0]}"))
        if item.get_closest_marker("timeout"):
            continue
        if PROFILE == "deep":
            item.add_marker(pytest.mark.timeout(DEEP_TIMEOUT))
        elif item.get_closest_marker("sweep"):
            item.add_marker(pytest.mark.timeout(SWEEP_TIMEOUT))


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Say how many positions the test has tried.

    A test that looks at log records has those of every level. Others go without a line for each DEBUG record:
    these were 4 % of the CPU time of all tests.
    """
    caplog = getattr(item, "funcargs", {}).get("caplog")
    if isinstance(caplog, pytest.LogCaptureFixture):
        caplog.handler.setLevel(logging.DEBUG)
    proving.taken()
    try:
        return (yield)
    finally:
        item.user_properties.append(("positions", proving.taken()))


def pytest_collection_finish() -> None:
    """Spare the garbage collector what lives as long as the run: else many tests spend most of their time
    on that."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def collected() -> None:
    """For a module that collects garbage many times: not among what other modules have left."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def forgotten_apps() -> Iterator[None]:
    """aiohttp keeps the last thousand handlers with middlewares, and by them hundreds of closed emulators: in
    the sweep of cancellation four fifths of the CPU time went to collecting garbage among them."""
    yield
    web_app._cached_build_middleware.cache_clear()


@pytest.fixture(autouse=True)
def no_leaked_key(request: pytest.FixtureRequest) -> Iterator[None]:
    """Law 7 in every test: what `canary.Watch` sees does not hold the key."""
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    WATCH.leaks()
    yield
    if folder is not None:
        WATCH.search_folder(folder)
    WATCH.note(f"a row of {table} holds the key" for table in postgres.rows_with(CANARY_KEY))
    assert not (leaks := WATCH.leaks()), "\n".join(leaks)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the settings of this machine."""
    for name in list(os.environ):
        if name.upper().startswith("KIE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def any_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connections of clients are made to servers with the test's certificate too."""
    monkeypatch.setattr(Pool, "__init__", functools.partialmethod(Pool.__init__, ssl=False))


@pytest.fixture
def api_key() -> str:
    """The key to use wherever one is needed; `no_leaked_key` searches for it."""
    return CANARY_KEY


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    """A factory: each call returns a store for one more client, and all of them share their contents."""
    memory = MemoryStore()
    return lambda: memory if request.param == "memory" else SQLiteStore(tmp_path / "run.db")
