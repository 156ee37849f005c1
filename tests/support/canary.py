"""A canary for law 7: every error and log record of the test run is searched for the API key.

`Watch` collects the log records of every logger and every `KieError` that is created. After each test
`leaks()` searches their messages, reprs and pickles, the whole chain of causes and contexts, and the local
variables in frames of the package, which error reporters send.
"""

import functools
import logging
import pickle
import traceback
from collections import deque
from collections.abc import Iterator
from typing import Any

from paths import PACKAGE

from kie4o.errors import KieError

CANARY_KEY = "sk-canary-0f7d3be59a1c4426"
KEPT = 200  # the last ones of each test: property tests create thousands
_PACKAGE = str(PACKAGE)
_RECORD_FIELDS = frozenset(vars(logging.makeLogRecord({})))


class Watch(logging.Handler):
    """Collects errors and log records, and finds those that hold the key."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: deque[logging.LogRecord] = deque(maxlen=KEPT)
        self.errors: deque[KieError] = deque(maxlen=KEPT)

    def start(self) -> None:
        root = logging.getLogger()
        root.addHandler(self)
        root.setLevel(logging.DEBUG)
        for name in ("kie4o", "aiohttp", "asyncio"):
            logging.getLogger(name).setLevel(logging.DEBUG)
        original, errors = KieError.__init__, self.errors

        @functools.wraps(original)
        def recorded(error: KieError, *args: Any, **facts: Any) -> None:
            original(error, *args, **facts)
            errors.append(error)

        KieError.__init__ = recorded  # type: ignore[method-assign]  # to see every error

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def leaks(self) -> list[str]:
        """A sentence for each leak in what was collected since the last call."""
        records, errors = list(self.records), list(self.errors)
        found = [leak for record in records for leak in _leaks_of_record(record)]
        found += [leak for error in errors for leak in _leaks_of_error(error)]
        self.records.clear()
        self.errors.clear()  # unpickling has added more
        return found


def _leaks_of_record(record: logging.LogRecord) -> Iterator[str]:
    extra = {name: value for name, value in vars(record).items() if name not in _RECORD_FIELDS}
    trace = traceback.format_exception(record.exc_info[1]) if record.exc_info else []
    text = "\n".join([record.getMessage(), repr(record.args), repr(extra), *trace])
    if CANARY_KEY in text:
        yield f"a log record of {record.name} holds the key: {record.msg!r}"


def _leaks_of_error(error: KieError) -> Iterator[str]:
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
    if CANARY_KEY in "".join(traceback.format_exception(error)):
        yield f"{name}: its traceback holds the key"
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
