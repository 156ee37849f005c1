"""What becomes of tasks: polls, callbacks, and the items of a batch."""

from __future__ import annotations

import logging
from decimal import Decimal
from typing import ClassVar

from .base import Event, OfSubmit


class Polled(Event):
    """A poll has shown that a task is in a state; `progress` is from 0 to 1, or None."""

    level: ClassVar[int] = logging.DEBUG
    texts: ClassVar[tuple[str, ...]] = ("task %(task_id)s is %(state)s",)
    task_id: str
    state: str
    progress: float | None


class PollFailed(Event):
    """A poll has failed; the next one is in `seconds`. `others` have failed too since the last such event."""

    failed: ClassVar[str] = "poll"
    texts: ClassVar[tuple[str, ...]] = (
        "task %(task_id)s is polled again in %(seconds).1f s: %(cause)s",
        "task %(task_id)s is polled again in %(seconds).1f s: %(cause)s (and %(others)s failed polls before "
        "it)",
    )
    task_id: str
    cause: str
    seconds: float
    others: int = 0

    def _text(self) -> str:
        return self.texts[self.others > 0]


class Finished(Event):
    """A task has ended.

    Attributes:
        state: "succeeded" or "failed".
        source: Who found it: "poll", "callback" or "store".
        seconds: Since the submit; None if that is not known.
    """

    texts: ClassVar[tuple[str, ...]] = (
        "task %(task_id)s %(state)s, found by %(source)s",
        "task %(task_id)s %(state)s after %(seconds).1f s, found by %(source)s",
    )
    task_id: str
    state: str
    source: str
    seconds: float | None

    def _text(self) -> str:
        return self.texts[self.seconds is not None]


class Saved(OfSubmit):
    """The store has what is known of a submit: its `state` is "intent" before the request is sent,
    then one of "submitted", "unknown", "succeeded", "failed", or "planned" if it was not charged."""

    level: ClassVar[int] = logging.DEBUG
    texts: ClassVar[tuple[str, ...]] = ("%(subject)s is saved as %(state)s",)
    state: str
    task_id: str | None
    credits: Decimal | None


class CallbackReceived(Event):
    """A callback has arrived and is kept. What it says is believed once Kie's record says the same."""

    level: ClassVar[int] = logging.DEBUG
    texts: ClassVar[tuple[str, ...]] = ("a callback says that task %(task_id)s is %(state)s",)
    task_id: str
    state: str
    verified: bool
    """Whether its signature was checked."""
    trace: str | None = None


class CallbackRefused(Event):
    """A receiver has answered with this HTTP status. At INFO, since anyone can post."""

    failed: ClassVar[str] = "callback"
    texts: ClassVar[tuple[str, ...]] = ("a callback was answered with %(status)s: %(cause)s",)
    status: int
    cause: str


class CallbackUnconfirmed(Event):
    """What a callback says could not be confirmed: for an hour, or for this cause, such as a record that
    lists no images."""

    level: ClassVar[int] = logging.WARNING
    failed: ClassVar[str] = "callback"
    texts: ClassVar[tuple[str, ...]] = (
        "the callback for task %(task_id)s could not be confirmed in an hour; client.wait(%(task_id)r) polls "
        "the task",
        "the callback for task %(task_id)s could not be confirmed: %(cause)s; client.wait(%(task_id)r) polls "
        "the task",
    )
    task_id: str
    cause: str | None = None

    def _text(self) -> str:
        return self.texts[self.cause is not None]


class CallbacksMissing(Event):
    """A task has ended without the callback that was expected, or one for a task submitted elsewhere has
    arrived (`stray`): polls return to their usual pace until callbacks arrive."""

    level: ClassVar[int] = logging.WARNING
    texts: ClassVar[tuple[str, ...]] = (
        "task %(task_id)s finished without a callback; polling at the usual pace until callbacks arrive. "
        "Check that callback_url reaches this process",
        "the callback of task %(task_id)s, submitted elsewhere, arrived here; polling at the usual pace "
        "until callbacks arrive. Check that callback_url reaches this process",
    )
    task_id: str
    stray: bool

    def _text(self) -> str:
        return self.texts[self.stray]


class Completed(Event):
    """An item of a batch is done; `earlier` if the store already knew how it ended.

    Attributes:
        index: The place of the item in its source.
        outcome: "succeeded", or the name of the class of its error.
        images: How many images it has.
        earlier: Whether the store already knew how it ended.
    """

    level: ClassVar[int] = logging.DEBUG
    texts: ClassVar[tuple[str, ...]] = ("item %(index)s of a batch %(outcome)s (task %(task_id)s)",)
    index: int
    key: str | None
    task_id: str | None
    outcome: str
    images: int
    earlier: bool


class BatchStopped(Event):
    """A batch submits nothing more."""

    texts: ClassVar[tuple[str, ...]] = ("a batch submits nothing more: %(cause)s",)
    cause: str
