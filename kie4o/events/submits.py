"""What becomes of requests, and what they wait for."""

from __future__ import annotations

import logging
from decimal import Decimal
from typing import ClassVar, Literal

from .base import Event, OfSubmit


class SubmitStarted(OfSubmit):
    """A submit has begun, in a task of its own: it claims its key, then it waits for a slot."""

    level: ClassVar[int] = logging.DEBUG
    texts: ClassVar[tuple[str, ...]] = ("a submit has begun",)


class SubmitJoined(OfSubmit):
    """A call waits for a submit that another call under the same key has begun."""

    level: ClassVar[int] = logging.DEBUG
    texts: ClassVar[tuple[str, ...]] = ("a call has joined a submit of its key",)


class SubmitEnded(OfSubmit):
    """A submit is over: it has a task, or `error` is the class of the error that its callers get."""

    level: ClassVar[int] = logging.DEBUG
    texts: ClassVar[tuple[str, ...]] = (
        "a submit is over: task %(task_id)s",
        "a submit is over without a task: %(error)s",
    )
    task_id: str | None
    error: str | None

    def _text(self) -> str:
        return self.texts[self.error is not None]


class Recalled(OfSubmit):
    """A call continues with what was submitted before: by another call or process, or by the same call, whose
    answer was lost."""

    level: ClassVar[int] = logging.DEBUG
    texts: ClassVar[tuple[str, ...]] = ("%(subject)s was submitted before, and is continued",)
    task_id: str | None
    trace: str | None


class Submitted(OfSubmit):
    """Kie has accepted a request: it is paid. `seconds` from the first byte to the answer."""

    level: ClassVar[int] = logging.DEBUG
    texts: ClassVar[tuple[str, ...]] = ("a submit was accepted in %(seconds).1f s: task %(task_id)s",)
    task_id: str
    seconds: float
    credits: Decimal | None


class Refused(OfSubmit):
    """Kie has refused a request. Nothing was charged."""

    level: ClassVar[int] = logging.DEBUG
    failed: ClassVar[str] = "submit"
    texts: ClassVar[tuple[str, ...]] = ("a submit was refused in %(seconds).1f s: %(cause)s",)
    code: int
    cause: str
    seconds: float


class NotSent(OfSubmit):
    """A request could not be sent. Nothing was charged."""

    level: ClassVar[int] = logging.DEBUG
    failed: ClassVar[str] = "submit"
    texts: ClassVar[tuple[str, ...]] = ("a submit was not sent: %(cause)s",)
    cause: str


class CalledOff(OfSubmit):
    """Nobody waits any more for a request that was not sent yet. Nothing was charged."""

    level: ClassVar[int] = logging.DEBUG
    texts: ClassVar[tuple[str, ...]] = ("a submit was called off: %(cause)s",)
    cause: str


class Resent(OfSubmit):
    """A request that was refused or not sent will be sent again after `seconds`."""

    texts: ClassVar[tuple[str, ...]] = (
        "a submit is sent again in %(seconds).1f s (%(attempt)s of %(most)s): %(cause)s",
    )
    seconds: float
    attempt: int
    """Which of the attempts for this cause it will be, from 1."""
    most: int
    """How many there will be at most."""
    cause: str


class Unknown(OfSubmit):
    """A request was sent and its outcome is unknown: it may have been charged, and is not sent again."""

    level: ClassVar[int] = logging.DEBUG
    failed: ClassVar[str] = "submit"
    texts: ClassVar[tuple[str, ...]] = ("%(subject)s has an unknown outcome: %(cause)s",)
    cause: str


class AnswerAwaited(OfSubmit):
    """A submit has an unknown outcome, and its callback is awaited; `seconds` at most, or without limit."""

    texts: ClassVar[tuple[str, ...]] = (
        "the answer to a submit was lost; its callback is awaited without limit",
        "the answer to a submit was lost; its callback is awaited for up to %(seconds).1f s",
    )
    seconds: float | None

    def _text(self) -> str:
        return self.texts[self.seconds is not None]


class Named(OfSubmit):
    """A callback has named the task of a submit whose outcome was unknown."""

    texts: ClassVar[tuple[str, ...]] = (
        "%(subject)s, whose submit response was lost, was found by its callback",
    )
    task_id: str


class Settled(OfSubmit):
    """`client.settle` has saved which task a submit has, or with None that it was not charged."""

    texts: ClassVar[tuple[str, ...]] = (
        "settled: %(subject)s was not charged",
        "settled: %(subject)s was found",
    )
    task_id: str | None

    def _text(self) -> str:
        return self.texts[self.task_id is not None]


class Orphaned(OfSubmit):
    """A submit has failed after its callers were cancelled, so no caller sees its error."""

    level: ClassVar[int] = logging.WARNING
    texts: ClassVar[tuple[str, ...]] = ("a submit whose callers were cancelled failed: %(subject)s",)
    cause: str

    @property
    def name(self) -> str:
        """Why it has failed; the log says more."""
        return self.cause


class Waited(Event):
    """A request has waited `seconds` for a slot of the account's limit, or for one of `max_in_flight`."""

    level: ClassVar[int] = logging.DEBUG
    texts: ClassVar[tuple[str, ...]] = ("waited %(seconds).1f s for a %(what)s",)
    what: Literal["slot", "place"]
    seconds: float


class Paused(Event):
    """All submits pause for `seconds`: the limit is used up, or Kie has refused one for too many calls."""

    texts: ClassVar[tuple[str, ...]] = ("submits pause for %(seconds).1f s: %(cause)s",)
    cause: str
    seconds: float


class Retried(Event):
    """A call that costs nothing has failed and is made again after `seconds`."""

    failed: ClassVar[str] = "free call"
    texts: ClassVar[tuple[str, ...]] = ("a free call is made again in %(seconds).1f s: %(cause)s",)
    cause: str
    seconds: float


class Exchanged(Event):
    """One HTTP exchange: `where` is its path, or the host of an image."""

    level: ClassVar[int] = logging.DEBUG
    texts: ClassVar[tuple[str, ...]] = ("%(method)s %(where)s: %(outcome)s in %(milliseconds).0f ms",)
    method: str
    where: str
    outcome: int | str
    """The HTTP status, or why there is none."""
    seconds: float

    def _words(self) -> dict[str, object]:
        return {"milliseconds": 1000 * self.seconds}
