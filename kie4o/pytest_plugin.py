"""The pytest plugin: the fixtures `kie`, `kie_client` and `kie_session`, and the marker `kie`.

pytest loads it wherever kie4o is installed, so it imports nothing else of kie4o before a fixture is used.

The emulator has to run in the event loop of the test, which belongs to the plugin that runs async tests. So
`kie` is an ordinary fixture that asks for a second one, registered as that plugin documents it; there is one
for each. Without such a plugin, and for tests that are no coroutines, the emulator runs in a thread.
"""

from __future__ import annotations

import contextlib
import inspect
import random
import types
import zlib
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from .client import AsyncKieClient
    from .emulator import Emulator, Fault, ThreadedEmulator

SPEED = 100.0  # of an emulator in a thread, which shares no clock with its clients
KEY = "any-key"

_ASYNCIO = ("asyncio", "pytest_asyncio.plugin")  # the names of plugins: as installed, and after `-p`
_ANYIO = ("anyio", "anyio.pytest_plugin")
_LOOP_SCOPES = ("function", "class", "module", "package", "session")  # of pytest-asyncio
_VARIABLES = ("KIE_API_KEY", "KIE_AI_API_KEY", "KIE_BASE_URL", "KIE_UPLOAD_URL", "KIE_WEBHOOK_KEY")
_LISTED = 20  # tasks and callbacks in a report
_EMULATOR = pytest.StashKey["Emulator"]()
_T = TypeVar("_T")


# -- fixtures --------------------------------------------------------------------------------------


@pytest.fixture
def kie(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """An emulator of Kie, and the environment variables that make clients use it.

    In an async test it shares the event loop of the test, whose time is virtual. In any other it runs in a
    thread, a hundred times as fast as real time. `@pytest.mark.kie(...)` takes its settings. A plan or fault
    that did not happen fails the test.
    """
    seed = zlib.crc32(request.node.nodeid.encode())
    with _seeded(seed), pytest.MonkeyPatch.context() as patch:
        emulator: Emulator = request.getfixturevalue(f"_kie_{_runner_of(request)}")
        _seed_refs(patch, seed)
        _point_to(patch, emulator)
        request.node.stash[_EMULATOR] = emulator
        yield emulator


@pytest.fixture
def kie_client(request: pytest.FixtureRequest, kie: Emulator) -> AsyncKieClient:
    """An `AsyncKieClient` of the emulator `kie`, closed after the test."""
    client: AsyncKieClient = request.getfixturevalue(f"_kie_client_{_runner_of(request)}")
    return client


@pytest.fixture(scope="session")
def kie_session() -> Iterator[ThreadedEmulator]:
    """One emulator for all tests, in a thread, a hundred times as fast as real time."""
    from .emulator import Emulator

    with Emulator.in_thread(speed=SPEED) as emulator:
        yield emulator


@pytest.fixture
def _kie_thread(request: pytest.FixtureRequest) -> Iterator[ThreadedEmulator]:
    from .emulator import Emulator

    settings = _settings_of(request.node)
    if not settings.keys() & {"clock", "speed"}:
        settings["speed"] = SPEED
    faults = settings.pop("faults", ())
    with Emulator.in_thread(**settings) as emulator:
        _arrange(emulator, faults)
        yield emulator


@pytest.fixture
def _kie_client_thread(kie: ThreadedEmulator) -> Iterator[AsyncKieClient]:
    client = _client_of(kie)
    yield client
    kie.run(client.aclose())


def _async_fixtures(fixture: Callable[..., Any], runner: str) -> types.ModuleType:
    """A plugin with the fixtures that another plugin runs, which `fixture` declares."""

    async def emulator(request: pytest.FixtureRequest) -> AsyncIterator[Emulator]:
        from .emulator import Emulator

        settings = _settings_of(request.node)
        faults = settings.pop("faults", ())
        async with Emulator(**settings) as kie:
            _arrange(kie, faults)
            yield kie

    async def client(kie: Emulator) -> AsyncIterator[AsyncKieClient]:
        async with _client_of(kie) as client:
            yield client

    plugin = types.ModuleType(f"kie4o fixtures for {runner}")
    plugin.__dict__["emulator"] = fixture(name=f"_kie_{runner}")(emulator)
    plugin.__dict__["client"] = fixture(name=f"_kie_client_{runner}")(client)
    return plugin


def _runner_of(request: pytest.FixtureRequest) -> str:
    """Who runs this test: pytest-asyncio, in a loop of some scope; anyio's plugin; or neither."""
    item, config = request.node, request.config
    function = getattr(item, "function", None)
    function = getattr(getattr(function, "hypothesis", None), "inner_test", function)
    if not inspect.iscoroutinefunction(function):
        return "thread"
    marker = item.get_closest_marker("asyncio")  # in its auto mode, pytest-asyncio marks every async test
    if marker is not None and _has(config, _ASYNCIO):
        scope = marker.kwargs.get("loop_scope") or marker.kwargs.get("scope")
        return f"asyncio_{scope or config.getini('asyncio_default_test_loop_scope')}"
    if "anyio_backend" in request.fixturenames and _has(config, _ANYIO):
        backend = request.getfixturevalue("anyio_backend")
        if (backend if isinstance(backend, str) else backend[0]) == "asyncio":
            return "anyio"
    return "thread"


def _has(config: pytest.Config, names: tuple[str, ...]) -> bool:
    return any(map(config.pluginmanager.hasplugin, names))


def _client_of(kie: Emulator) -> AsyncKieClient:
    from .client import AsyncKieClient

    return AsyncKieClient(speed=kie.speed)


def _arrange(kie: Emulator, faults: Iterable[Fault]) -> None:
    for fault in faults:
        kie.fault(fault)


def _point_to(patch: pytest.MonkeyPatch, kie: Emulator) -> None:
    """Make clients that are created without arguments use this emulator."""
    for name in _VARIABLES:
        patch.delenv(name, raising=False)
    patch.setenv("KIE_BASE_URL", kie.url)
    patch.setenv("KIE_API_KEY", kie.api_key or KEY)
    if kie.webhook_key is not None:
        key = kie.webhook_key
        patch.setenv("KIE_WEBHOOK_KEY", key if isinstance(key, str) else key.decode())


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The same jitter in every run."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _seed_refs(patch: pytest.MonkeyPatch, seed: int) -> None:
    """The same refs in every run, different ones in each test: tests may share a store."""
    chance = random.Random(seed)
    patch.setattr("kie4o.submission.pending.new_ref", lambda: f"{chance.getrandbits(144):036x}")


# -- the marker ------------------------------------------------------------------------------------


def _marked(item: pytest.Item) -> dict[str, Any]:
    """The arguments of its markers; those of the nearest one win. An unknown one is an error."""
    found: dict[str, Any] = {}
    for marker in item.iter_markers("kie"):
        if marker.args:
            pytest.fail(f"@pytest.mark.kie takes no positional arguments, got {marker.args!r}", pytrace=False)
        found = {**marker.kwargs, **found}
    if not found:
        return found
    from .emulator import Emulator, Fault, parse_fault

    allowed = {*inspect.signature(Emulator).parameters, "faults", "unused_ok"}
    if unknown := found.keys() - allowed:
        expected = ", ".join(sorted(allowed))
        pytest.fail(
            f"@pytest.mark.kie: unknown {', '.join(sorted(unknown))}; expected {expected}", pytrace=False
        )
    given = found.get("faults", ())
    if not isinstance(given, (list, tuple)):
        pytest.fail(f"@pytest.mark.kie: invalid faults={given!r}: expected a list", pytrace=False)
    try:
        faults = [each if isinstance(each, Fault) else parse_fault(each) for each in given]
    except ValueError as error:
        pytest.fail(f"@pytest.mark.kie: {error}", pytrace=False)
    return found | {"faults": faults}


def _settings_of(item: pytest.Item) -> dict[str, Any]:
    """The arguments of the emulator of a test, and `faults`."""
    settings = {"seed": zlib.crc32(item.nodeid.encode())} | _marked(item)
    settings.pop("unused_ok", None)
    return settings


def _unused(item: pytest.Item) -> list[str]:
    """What was arranged and did not happen."""
    marked = _marked(item)
    if marked.get("unused_ok"):
        return []
    kie = item.stash.get(_EMULATOR, None)
    if kie is None:
        own = any(marker.name == "kie" for marker in item.own_markers)
        return ["@pytest.mark.kie: the test has no fixture kie or kie_client"] if own else []
    unused = kie.unused()
    if "outcome" in marked and not kie.tasks:
        unused.append(f"@pytest.mark.kie(outcome={marked['outcome']!r}): there was no task")
    return unused


# -- hooks -----------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "kie(duration=..., outcome=..., faults=[...], unused_ok=False, ...): what the emulator in the "
        "fixture kie does; the other arguments are those of kie4o.emulator.Emulator",
    )
    plugins = config.pluginmanager
    plugins.register(_async_fixtures(pytest.fixture, "anyio"), "kie4o anyio")
    if _has(config, _ASYNCIO):
        import pytest_asyncio

        for scope in _LOOP_SCOPES:
            runner = f"asyncio_{scope}"
            declare = _with_loop_scope(pytest_asyncio.fixture, scope)
            plugins.register(_async_fixtures(declare, runner), f"kie4o {runner}")


def _with_loop_scope(fixture: Callable[..., Any], scope: str) -> Callable[..., Any]:
    return lambda name: fixture(name=name, loop_scope=scope)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse wrong markers before anything is opened."""
    _marked(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, _T, _T]:
    """Fail a test that passed although something that was arranged did not happen."""
    result = yield
    if unused := _unused(item):
        pytest.fail("\n".join([*unused, "@pytest.mark.kie(unused_ok=True) allows that"]), pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the emulator saw below the error of a test."""
    report = yield
    kie = item.stash.get(_EMULATOR, None)
    if report.failed and kie is not None:
        report.sections.append(("emulator of Kie", _seen(kie)))
    return report


def _seen(kie: Emulator) -> str:
    """What the emulator saw, as text."""
    submits, callbacks = list(kie.submits), kie.callbacks
    lines = [f"{kie.url}: {kie.paid} of {len(submits)} submits paid, {kie.credits:g} credits left"]
    lines += [f"  {count:4} {path}" for path, count in kie.requests.items()]
    for submit in submits[:_LISTED]:
        task = kie.all_tasks().get(submit.task_id or "")
        became = f", {task.outcome.kind}, {len(kie.looks(task.id))} status checks" if task else ""
        lines.append(f"at {submit.at - submits[0].at:.3f} s: {submit.summary()}{became}")
    for call in callbacks[:_LISTED]:
        answer = f"HTTP {call.status}" if call.error is None else call.error
        lines.append(f"callback of {call.task_id} to {call.url}: {answer}")
    more = max(0, len(submits) - _LISTED) + max(0, len(callbacks) - _LISTED)
    return "\n".join([*lines, f"and {more} more"] if more else lines)
