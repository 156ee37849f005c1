"""One submit under way: who listens to it, and what it came to."""

from __future__ import annotations

import asyncio
import copy

import attrs

from ..errors import KeyConflictError, KieError, SubmissionUnknownError
from ..stores.store import Entry
from ..transport.paid_body import PaidAttempt
from .permit import Permit


@attrs.frozen
class Submitted:
    """What stands under the key after a submit; `since` is the loop time of the answer, None if
    the store knew it. Without a task id the outcome is unknown, and `lost` says why."""

    entry: Entry
    since: float | None = None
    lost: str = ""

    def error(self) -> SubmissionUnknownError:
        """What to raise if there is no task id."""
        return unknown_error(self.entry, self.lost)


@attrs.define(eq=False)
class PendingSubmit:
    """One submit under way, and who listens to it."""

    entry: Entry
    stood: Entry | None = None  # what stood under the key before
    listeners: list[asyncio.Future[Submitted]] = attrs.field(factory=list)
    called_off: str = ""  # why, once it is
    unwanted: bool = False  # nobody wants it sent again, should what has left be refused
    attempt: PaidAttempt = attrs.field(factory=PaidAttempt)
    permit: Permit | None = None  # held until it is over
    task: asyncio.Task[Submitted] = attrs.field(init=False)

    def not_sent(self) -> KieError:
        """What to raise if it was called off."""
        reason = f"{self.called_off} before the request left; nothing was paid"
        return KieError(reason, key=self.entry.key if self.entry.keyed else None)

    def tell(self, outcome: Submitted | asyncio.Task[Submitted]) -> None:
        """What it came to, to all who listen and do not know yet; each raises its own error."""
        for listener in self.listeners:
            if listener.done():
                continue
            if isinstance(outcome, Submitted):
                listener.set_result(outcome)
            elif outcome.cancelled():
                if self.called_off:  # before it had begun
                    listener.set_exception(self.not_sent())
                else:
                    listener.cancel()
            elif (error := outcome.exception()) is not None:
                listener.set_exception(copy.copy(error) if isinstance(error, KieError) else error)
            else:
                listener.set_result(outcome.result())


def unknown_error(entry: Entry, reason: str) -> SubmissionUnknownError:
    return SubmissionUnknownError(
        f"the request left and its outcome is not known ({reason}); it is perhaps paid and is not sent "
        "again: look at kie.ai/logs",
        ref=entry.ref,
        key=entry.key if entry.keyed else None,
    )


def key_conflict(key: str) -> KeyConflictError:
    return KeyConflictError(
        f"key {key!r} was used before with another request: use a new key for a new request", key=key
    )
