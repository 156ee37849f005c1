"""The canary works: the search after every test finds each way to leak a key."""

import asyncio
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from canary import BATCH, WATCH
from paths import IMPORT_ROOT, REPOSITORY, SUPPORT, TESTS

from kie4o import APIConnectionError, APIStatusError, KieError, TaskFailedError
from kie4o.wire.answers import credits_of


class Unpicklable(KieError):
    """An error that loses its facts in a pickle."""

    def __reduce__(self) -> tuple[type[KieError], tuple[str]]:
        return KieError, ("something else",)


def test_a_clean_run_has_no_leaks(api_key: str) -> None:
    """Errors and records without the key are not reported."""
    logging.getLogger("kie4o").debug("a submit with %s", len(api_key))
    TaskFailedError("task t failed", task_id="t")
    assert WATCH.leaks() == []


@pytest.mark.parametrize("name", ["kie4o", "aiohttp.client", "asyncio", "another.library"])
def test_a_key_in_a_log_record_is_seen(api_key: str, name: str) -> None:
    """In the text, in the arguments and in extra fields, at DEBUG of any logger."""
    logging.getLogger(name).debug("key " + api_key)
    assert len(WATCH.leaks()) == 1
    logging.getLogger(name).debug("headers %r", {"Authorization": api_key})
    assert len(WATCH.leaks()) == 1
    logging.getLogger(name).debug("fine", extra={"headers": api_key})
    assert len(WATCH.leaks()) == 1


def test_a_key_in_a_logged_traceback_is_seen(api_key: str) -> None:
    """The exception of a record is searched too."""
    try:
        raise ValueError(api_key)
    except ValueError:
        logging.getLogger("kie4o").exception("it broke")
    assert len(WATCH.leaks()) == 1


def test_a_key_in_a_message_is_seen(api_key: str) -> None:
    """In str, repr, args and pickle."""
    APIConnectionError(f"no answer with {api_key}")
    leaks = WATCH.leaks()
    assert any("chain" in leak for leak in leaks)
    assert any("pickle" in leak for leak in leaks)


def test_a_key_in_an_attribute_is_seen(api_key: str) -> None:
    """Attributes are searched, even those that no message shows."""
    APIStatusError("no").hint = api_key  # type: ignore[attr-defined]  # wrong on purpose
    assert WATCH.leaks()


@pytest.mark.parametrize("hidden", [False, True])
def test_a_key_in_the_context_is_seen(api_key: str, hidden: bool) -> None:
    """Even if `from None` hides it from the traceback."""

    def fail() -> None:
        try:
            raise OSError(api_key)
        except OSError:
            if hidden:
                raise KieError("failed") from None
            raise KieError("failed")  # noqa: B904  # wrong on purpose

    with pytest.raises(KieError):
        fail()
    assert any("OSError" in leak for leak in WATCH.leaks())


def test_a_key_in_a_local_variable_is_seen(api_key: str) -> None:
    """Error reporters send the local variables of each frame, so they are searched."""
    with pytest.raises(KieError):
        credits_of(401, b"nothing to read", retry_after=api_key)  # type: ignore[arg-type]  # wrong on purpose
    assert any("retry_after in credits_of" in leak for leak in WATCH.leaks())


def test_a_key_in_a_cancelled_frame_is_seen(api_key: str) -> None:
    """Reporters send those of a cancellation too."""
    try:
        credits_of(401, b"nothing to read", retry_after=api_key)  # type: ignore[arg-type]  # wrong on purpose
    except KieError as error:
        WATCH.leaks()
        WATCH.search_raised(asyncio.CancelledError().with_traceback(error.__traceback__))
    assert any(leak.startswith("CancelledError: retry_after in") for leak in WATCH.leaks())


def test_an_error_that_a_pickle_changes_is_seen() -> None:
    """A class, an argument or an attribute that is lost in a pickle is reported."""
    Unpicklable("a task", task_id="t")
    assert any("changed" in leak for leak in WATCH.leaks())


def test_of_many_the_first_is_seen(api_key: str) -> None:
    """Sweeps log and raise many thousands."""
    logging.getLogger("kie4o").debug(api_key)
    KieError(api_key)
    for _ in range(3 * BATCH):
        KieError("fine")
        logging.getLogger("kie4o").debug("fine")
    assert len(WATCH.records) <= BATCH
    assert len(WATCH.errors) <= 2 * BATCH
    leaks = WATCH.leaks()
    assert any("record" in leak for leak in leaks)
    assert any("pickle" in leak for leak in leaks)


LEAKING = """
import asyncio, tempfile
from pathlib import Path

import aiohttp, postgres, pytest
from canary import CANARY_KEY, WATCH
from entries import entry_of
from faults import FaultServer, accepting
from kie4o import AsyncKieClient, KieError
from kie4o.emulator import Emulator
from kie4o.stores.sqlite import SQLiteStore
from left_behind import store_of

SHOWN = type("Shown", (), {"__module__": "kie4o.here", "__repr__": lambda self: CANARY_KEY})

async def store_it(store):
    await store.open()
    await store.save(entry_of("k", prompt=CANARY_KEY))
    await store.aclose()

async def ask(url):
    async with aiohttp.ClientSession() as session:
        await session.get(url, params={"key": CANARY_KEY})

async def test_nothing():
    async with Emulator() as kie, AsyncKieClient(CANARY_KEY, base_url=kie.url) as client:
        await client.generate("x")

def test_error():
    KieError(CANARY_KEY)

def test_file(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "log").write_text("key " + CANARY_KEY)

async def test_store_file():
    with tempfile.TemporaryDirectory() as folder:
        await store_it(SQLiteStore(Path(folder) / "run.db"))

async def test_database():
    await store_it(store_of("leaking"))

async def test_url_of_an_emulator():
    async with Emulator() as kie:
        await ask(kie.url + "/client/v1/gpt4o-image/record-info")

async def test_url_of_a_server():
    async with FaultServer(accepting) as server:
        await ask(server.url)

async def test_repr_of_a_part():
    async with AsyncKieClient(CANARY_KEY, base_url="http://127.0.0.1:9") as client:
        client.part = SHOWN()
"""


@pytest.mark.once
@pytest.mark.posix("PostgreSQL")
def test_control_each_way_to_leak_fails_its_test(tmp_path: Path) -> None:
    """Control: tests that pass and leak end with an error, and one that does not passes."""
    (tmp_path / "test_leaking.py").write_text(LEAKING)
    paths = [TESTS, SUPPORT, TESTS / "stores", IMPORT_ROOT]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTEST_ADDOPTS": ""}
    options = ["-c", REPOSITORY / "pyproject.toml", "--rootdir", tmp_path, "-p", "conftest", "-rEp", "-q"]
    command = [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", tmp_path]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    ends = re.findall(r"^(PASSED|ERROR) \S+::test_(\w+)", done.stdout, re.MULTILINE)
    ways = re.findall(r"def test_(\w+)", LEAKING)
    assert {name for end, name in ends if end == "PASSED"} == {*ways}, done.stdout + done.stderr
    assert {name for end, name in ends if end == "ERROR"} == {*ways} - {"nothing"}, done.stdout
