"""A canary for law 7: whatever a test makes kie4o write, raise or send is searched for the API key.

A `Watch` sees
- every record of every logger;
- every `KieError` that is created: its message, repr and pickle, the whole chain of causes and contexts, and
  the local variables in frames of the package, which error reporters send;
- the repr of every object of the package that a client has when it closes, and the pickle of public ones;
- every file in the folders of a test, in temporary ones before they are deleted;
- every row that a test has left in the shared database;
- what servers of tests receive: the key is in its header, and nowhere else.

After each test `leaks()` says what was found.
"""

import contextlib
import functools
import gc
import logging
import pickle
import tempfile
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
from paths import PACKAGE

import kie4o
from kie4o import AsyncKieClient
from kie4o.errors import KieError

CANARY_KEY = "sk-canary-0f7d3be59a1c4426"
BATCH = 200  # records or errors that are searched together
EVERY = 10  # of the clients of one test the first, and then every tenth, is searched: it takes 2 ms
PARTS = 2000  # objects of a client that are searched, at most
_KEY = CANARY_KEY.encode()
_IN_ITS_PLACE = b"Bearer " + _KEY
_PACKAGE = str(PACKAGE)
_RECORD_FIELDS = frozenset(vars(logging.makeLogRecord({})))
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)


class Watch(logging.Handler):
    """Collects what may hold the key, and finds what does."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: deque[logging.LogRecord] = deque()
        self.errors: deque[KieError] = deque()
        self._found: dict[str, None] = {}  # in order, each once
        self._searches = False
        self._clients = 0  # of the test

    def start(self) -> None:
        root = logging.getLogger()
        root.addHandler(self)
        root.setLevel(logging.DEBUG)
        for name in ("kie4o", "aiohttp", "asyncio"):
            logging.getLogger(name).setLevel(logging.DEBUG)
        self._watch_errors()
        self._watch_clients()
        self._watch_folders()

    def leaks(self) -> list[str]:
        """A sentence for each leak in what was seen since the last call."""
        self._search(self.records, 0, _leaks_of_record)
        self._search(self.errors, 0, _leaks_of_error)
        found, self._found, self._clients = list(self._found), {}, 0
        return found

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        if len(self.records) > BATCH:
            self._search(self.records, 0, _leaks_of_record)

    def search_client(self, client: AsyncKieClient) -> None:
        """The reprs of what it has, and the pickles of values; of one in ten clients of a test."""
        if self._clients % EVERY == 0:
            self.note(_leaks_of_parts(client))
        self._clients += 1

    def search_folder(self, folder: Path) -> None:
        """Every file in it."""
        for file in folder.rglob("*"):
            with contextlib.suppress(OSError):  # a socket, or what another process has just deleted
                if file.is_file() and _KEY in file.read_bytes():
                    self.note([f"the file {file.name} holds the key"])

    def search_sent(self, data: bytes) -> None:
        """A part of what was sent: the key is in its header, and nowhere else."""
        if data.count(_KEY) != data.count(_IN_ITS_PLACE):
            self.note([f"the key was sent in a wrong place: {data[:80]!r}"])

    def search_raised(self, error: BaseException) -> None:
        """An exception that is no error of ours, such as a cancellation."""
        self.note(_leaks_of_chain(error))

    def note(self, leaks: Iterable[str]) -> None:
        self._found.update(dict.fromkeys(leaks))

    def _search(self, found: deque[Any], keep: int, leaks_of: Callable[[Any], Iterator[str]]) -> None:
        """All but the last ones. What a search itself logs and creates is not searched."""
        if self._searches:
            return
        self._searches = True
        try:
            while len(found) > keep:
                self.note(leaks_of(found.popleft()))
        finally:
            self._searches = False

    def _watch_errors(self) -> None:
        original = KieError.__init__

        @functools.wraps(original)
        def recorded(error: KieError, *args: Any, **facts: Any) -> None:
            original(error, *args, **facts)
            if not self._searches:  # else it comes out of a pickle
                self.errors.append(error)
            if len(self.errors) > 2 * BATCH:  # the last ones may not have been raised yet
                self._search(self.errors, BATCH, _leaks_of_error)

        KieError.__init__ = recorded  # type: ignore[method-assign]  # to see every error

    def _watch_clients(self) -> None:
        original = AsyncKieClient.aclose

        @functools.wraps(original)
        async def aclose(client: AsyncKieClient) -> None:
            self.search_client(client)
            await original(client)

        AsyncKieClient.aclose = aclose  # type: ignore[method-assign]  # to see every client

    def _watch_folders(self) -> None:
        original = tempfile.TemporaryDirectory.cleanup

        def cleanup(folder: tempfile.TemporaryDirectory[str]) -> None:
            self.search_folder(Path(folder.name))
            original(folder)

        tempfile.TemporaryDirectory.cleanup = cleanup  # type: ignore[method-assign]  # to see every file


def _leaks_of_parts(client: AsyncKieClient) -> Iterator[str]:
    seen: dict[int, Any] = {}
    todo: list[Any] = [client]
    while todo and len(seen) < PARTS:
        part = todo.pop()
        ours = type(part).__module__.startswith("kie4o")
        if id(part) in seen or not (ours or isinstance(part, _CONTAINERS)):
            continue
        seen[id(part)] = part
        todo += gc.get_referents(part)
        if ours:
            yield from _leaks_of_part(part)


def _leaks_of_part(part: Any) -> Iterator[str]:
    name = type(part).__name__
    if CANARY_KEY in repr(part):
        yield f"the repr of a {name} holds the key"
    if name in kie4o.__all__ and attrs.has(type(part)):
        with contextlib.suppress(Exception):  # it has none
            if _KEY in pickle.dumps(part):
                yield f"the pickle of a {name} holds the key"


def _leaks_of_record(record: logging.LogRecord) -> Iterator[str]:
    extra = {name: value for name, value in vars(record).items() if name not in _RECORD_FIELDS}
    trace = traceback.format_exception(record.exc_info[1]) if record.exc_info else []
    text = "\n".join([record.getMessage(), repr(record.args), repr(extra), *trace])
    if CANARY_KEY in text:
        yield f"a log record of {record.name} holds the key: {record.msg!r}"


def _leaks_of_chain(error: BaseException) -> Iterator[str]:
    name = type(error).__name__
    for link in _chain(error):
        if CANARY_KEY in f"{link!s}\n{link!r}\n{link.args!r}\n{vars(link)!r}":
            yield f"{name}: {type(link).__name__} in its chain holds the key"
        frames = [
            (frame, line)
            for frame, line in traceback.walk_tb(link.__traceback__)
            if frame.f_code.co_filename.startswith(_PACKAGE)
        ]
        for summary in traceback.StackSummary.extract(iter(frames), capture_locals=True, lookup_lines=False):
            for variable, value in (summary.locals or {}).items():
                if CANARY_KEY in value:
                    yield f"{name}: {variable} in {summary.name} ({summary.filename}) holds the key"


def _leaks_of_error(error: KieError) -> Iterator[str]:
    yield from _leaks_of_chain(error)
    name = type(error).__name__
    data = pickle.dumps(error)
    if CANARY_KEY.encode() in data:
        yield f"{name}: its pickle holds the key"
    again = pickle.loads(data)
    if (type(again), again.args, vars(again)) != (type(error), error.args, vars(error)):
        yield f"{name}: is changed by a pickle round trip"


def _chain(error: BaseException) -> list[BaseException]:
    """The error with its causes and contexts, including those hidden by `raise ... from None`."""
    found: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        link = todo.pop()
        if link is not None and all(link is not one for one in found):
            found.append(link)
            todo += [link.__cause__, link.__context__]
    return found


WATCH = Watch()
