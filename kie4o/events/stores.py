"""What a store could not do, and what is left when a client is closed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Literal

from .base import Event, OfSubmit

_NOT_SAVED: Mapping[str, str] = MappingProxyType(
    {
        "submitted": "task %(task_id)s is paid but could not be saved: %(cause)s; it is kept in memory and "
        "will be saved again",
        "planned": "a submit was not charged and could not be saved as such: %(cause)s",
        "unknown": "a submit has an unknown outcome and could not be saved as such: %(cause)s",
    }
)
_NEVER_SAVED: Mapping[str, str] = MappingProxyType(
    {
        "submitted": "%(subject)s is paid and was never saved; keep its id for client.wait()",
        "planned": "%(subject)s was not charged, which was never saved; the next run may take it for unknown",
        "unknown": "%(subject)s has an unknown outcome, which was never saved; the next run will take it so",
    }
)
_STORE: Mapping[str, str] = MappingProxyType(
    {
        "full": "the store in memory is full (%(detail)s entries): it forgets unfinished tasks, the oldest "
        "first",
        "no locks": "the store %(detail)s is on a file system without locks of open files; do not copy it "
        "while it is open, and do not open it twice",
        "lease lost": "this process was taken for dead by others on its store: it stood still, or was cut "
        "off from the database, for longer than its lease",
        "lease kept": "the lease of this process could not be ended and will run out: %(detail)s",
        "deaf": "the database %(detail)s delivers no notifications, as behind a pooler of transactions; "
        "asking it every second instead. Add ?listen= to the URL of the store, a URL past the pooler",
        "clock set": "the clock of the database moved by %(detail)s s against that of this machine",
        "replicas": "the database has replicas for which commits do not wait: if one takes over, what was "
        "submitted in the last moments may be paid twice. Set synchronous_standby_names",
        "promoted": "a replica has taken over as the database of the store",
    }
)
StoreTrouble = Literal[
    "full", "no locks", "lease lost", "lease kept", "deaf", "clock set", "replicas", "promoted"
]


class NotSaved(OfSubmit):
    """The store could not save what is known of a submit, in a `state` as those of `Saved`. It is kept in
    memory and saved again."""

    level: ClassVar[int] = logging.ERROR
    failed: ClassVar[str] = "store"
    texts: ClassVar[tuple[str, ...]] = tuple(_NOT_SAVED.values())
    state: str
    task_id: str | None
    cause: str

    def _text(self) -> str:
        return _NOT_SAVED[self.state]


class OutcomeNotSaved(Event):
    """The store could not save how a task ended. It is saved again, or the next run polls it again."""

    level: ClassVar[int] = logging.ERROR
    failed: ClassVar[str] = "store"
    texts: ClassVar[tuple[str, ...]] = ("the outcome of task %(task_id)s could not be saved: %(cause)s",)
    task_id: str
    state: str
    cause: str


class NeverSaved(OfSubmit):
    """The client was closed before the store could save what is known of a submit."""

    level: ClassVar[int] = logging.ERROR
    texts: ClassVar[tuple[str, ...]] = tuple(_NEVER_SAVED.values())
    state: str
    task_id: str | None

    def _text(self) -> str:
        return _NEVER_SAVED.get(self.state, _NEVER_SAVED["submitted"])


class Misattributed(OfSubmit):
    """The task id that a submit had belongs to another: its outcome is unknown."""

    level: ClassVar[int] = logging.ERROR
    failed: ClassVar[str] = "submit"
    texts: ClassVar[tuple[str, ...]] = ("the outcome of a submit is unknown after all: %(cause)s",)
    cause: str


class NotReleased(OfSubmit):
    """A key could not be released, so that other processes have to wait for it for a while."""

    level: ClassVar[int] = logging.ERROR
    failed: ClassVar[str] = "store"
    texts: ClassVar[tuple[str, ...]] = ("a key could not be released: %(cause)s",)
    cause: str


class Unfinished(OfSubmit):
    """The client was closed, and its store with it, while a submit is paid, or may be, and not finished."""

    level: ClassVar[int] = logging.WARNING
    texts: ClassVar[tuple[str, ...]] = (
        "%(subject)s may be paid; check kie.ai/logs",
        "%(subject)s is paid and not finished: `await client.wait(%(task_id)r)` resumes it, with any client",
    )
    task_id: str | None

    def _text(self) -> str:
        return self.texts[self.task_id is not None]


class StoreAwaited(Event):
    """Another client or process has the store open; this one waits for `seconds` at most."""

    texts: ClassVar[tuple[str, ...]] = ("%(cause)s. Waiting up to %(seconds)g s",)
    cause: str
    seconds: float


class StoreChecked(Event):
    """A large store is being opened: `done` of its `total` entries are checked."""

    texts: ClassVar[tuple[str, ...]] = ("the store %(path)s is being checked: %(done)s of %(total)s entries",)
    path: str
    done: int
    total: int

    def _words(self) -> dict[str, object]:
        return {"done": f"{self.done:,}", "total": f"{self.total:,}"}


class StoreWarned(Event):
    """Something is wrong with the store, or with the database of several processes."""

    level: ClassVar[int] = logging.WARNING
    texts: ClassVar[tuple[str, ...]] = tuple(_STORE.values())
    what: StoreTrouble
    detail: str = ""

    def _text(self) -> str:
        return _STORE[self.what]


class ClosedLate(Event):
    """A part of the client did not end in time when it was closed."""

    level: ClassVar[int] = logging.ERROR
    texts: ClassVar[tuple[str, ...]] = ("the client was closed, but %(part)s did not end in time",)
    part: str


class TransferLeft(Event):
    """A transfer could not be stopped, since the disk did not answer for `seconds`."""

    level: ClassVar[int] = logging.WARNING
    texts: ClassVar[tuple[str, ...]] = (
        "a transfer is left behind: the disk did not answer for %(seconds)g s",
    )
    seconds: float
