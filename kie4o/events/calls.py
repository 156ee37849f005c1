"""Calls of a client, from their beginning to their end."""

from __future__ import annotations

import logging
from typing import ClassVar, Literal

from .base import Event

CallName = Literal["generate", "submit", "wait", "download", "fetch", "upload"]


class CallStarted(Event):
    """A call of the client has begun, in the task of its caller. An item of a batch is a "generate", one of
    `resume` a "wait". `number` is the same when it ends."""

    level: ClassVar[int] = logging.DEBUG
    texts: ClassVar[tuple[str, ...]] = ("a call of %(call)s has begun",)
    call: CallName
    number: int
    key: str | None
    task_id: str | None
    trace: str | None


class CallEnded(Event):
    """A call of the client has ended after `seconds`. `error` is the class of what it raised, or None."""

    level: ClassVar[int] = logging.DEBUG
    texts: ClassVar[tuple[str, ...]] = (
        "a call of %(call)s has ended after %(seconds).1f s",
        "a call of %(call)s has ended after %(seconds).1f s: %(error)s",
    )
    call: CallName
    number: int
    key: str | None
    task_id: str | None
    seconds: float
    error: str | None

    def _text(self) -> str:
        return self.texts[self.error is not None]
