"""One submit: its entry, its attempt, the callers that wait for it, and who is told of its outcome."""

from __future__ import annotations

import asyncio
import copy
import secrets
from decimal import Decimal

import attrs

from .. import clock
from ..errors import KieError, SubmissionUnknownError
from ..image_request import ImageRequest
from ..stores.store import Entry, EntryState
from ..transport.paid_body import PaidAttempt
from .permit import Permit

NO_ANSWER = "no response to it is stored"  # why the outcome of an entry of the store is unknown
_REF_BYTES = 18  # 144 random bits; a ref authenticates callbacks, for which 128 are recommended


@attrs.frozen
class Submitted:
    """The outcome of a submit.

    `since` is the loop time of the response, or None if the store knew the entry. Without a task id the
    outcome is unknown, and `reason` says why.
    """

    entry: Entry
    since: float | None = None
    reason: str = ""

    @property
    def task_id(self) -> str | None:
        """The id of the task, if it is known."""
        return self.entry.task_id

    def unknown_error(self) -> SubmissionUnknownError:
        """What to raise if there is no task id."""
        return unknown_error(self.entry, self.reason)


class Observer:
    """Is told how a `generate` goes on. One object with two methods, since it is held until the result."""

    __slots__ = ()

    def admitted(self) -> None:
        """There is a permit. What this raises ends the call."""

    def submitted(self, submitted: Submitted) -> None:
        """The submit has an outcome, and the wait begins."""


NOBODY = Observer()


@attrs.define(eq=False)
class PendingSubmit:
    """One submit under way."""

    entry: Entry
    permit: Permit | None  # held until the submit is over
    waits: bool  # for another process that has the key in hand
    previous: Entry | None = None  # the earlier submit of the key, which is submitted again
    claimed: bool = False  # the store holds the key
    callers: list[asyncio.Future[Submitted]] = attrs.field(factory=list)
    called_off: str = ""  # the reason, once it is called off
    resendable: bool = attrs.field(init=False)  # False: no caller wants it sent again if it is refused
    held_until: float = float("-inf")  # loop time: the limiter sends nothing before, after a refusal
    attempt: PaidAttempt = attrs.field(factory=PaidAttempt)
    reported: PaidAttempt | None = None  # the latest attempt whose verdict was reported
    task: asyncio.Task[Submitted] = attrs.field(init=False)

    @property
    def key(self) -> str | None:
        """The caller's key."""
        return self.entry.key if self.entry.keyed else None

    # -- states of the entry; each is saved by the ledger afterwards -------------------------------

    def begin(self) -> Entry:
        """The request is about to be sent."""
        now, previous = clock.unix_time(), self.previous
        earlier = () if previous is None else (*previous.earlier, previous.ref)
        self.entry = self.entry.become(EntryState.INTENT, sent_at=now, submitted_at=now, earlier=earlier)
        return self.entry

    def accept(self, task_id: str) -> Entry:
        """The task id arrived. The slot counts against the account's limit from now on."""
        self.entry = self.entry.become(EntryState.SUBMITTED, task_id=task_id, submitted_at=clock.unix_time())
        return self.entry

    def give_up(self) -> Entry:
        """The request was sent and its outcome will not be known."""
        self.entry = attrs.evolve(
            self.entry, state=EntryState.UNKNOWN, task_id=None, submitted_at=clock.unix_time()
        )
        return self.entry

    def is_news(self) -> bool:
        """Whether the verdict of the attempt was not reported yet; it is considered as reported from now on.

        A submit that is cut short records its verdict again.
        """
        is_news, self.reported = self.reported is not self.attempt, self.attempt
        return is_news

    # -- callers ---------------------------------------------------------------------------------

    def called_off_error(self) -> KieError:
        """What to raise if it was called off."""
        message = f"{self.called_off} before the request was sent; nothing was charged"
        return KieError(f"{message}, and it is safe to submit again", key=self.key)

    def notify(self, outcome: Submitted | asyncio.Task[Submitted]) -> None:
        """Pass the outcome to the callers that still wait. Each raises an error of its own."""
        for caller in self.callers:
            if caller.done():
                continue
            if isinstance(outcome, Submitted):
                caller.set_result(outcome)
            elif outcome.cancelled():
                if self.called_off:  # before its task had begun
                    caller.set_exception(self.called_off_error())
                else:
                    caller.cancel()
            elif (error := outcome.exception()) is not None:
                caller.set_exception(copy.copy(error) if isinstance(error, KieError) else error)
            else:
                caller.set_result(outcome.result())


def planned_entry(request: ImageRequest, key: str | None, price: Decimal | None) -> Entry:
    """A new entry with a ref of its own, under the caller's key or under that ref."""
    ref = new_ref()
    return Entry(ref if key is None else key, request=request, ref=ref, keyed=key is not None, price=price)


def new_ref() -> str:
    """The token in a callback URL: unguessable, and never used twice."""
    return secrets.token_urlsafe(_REF_BYTES)


def unknown_error(entry: Entry, reason: str) -> SubmissionUnknownError:
    """Says what is needed to find the request in Kie's logs, and what to do then."""
    settle = f"client.settle({entry.key!r}, "  # its ref if the caller gave no key
    return SubmissionUnknownError(
        f"the request was sent but its outcome is unknown: {reason.rstrip('.')}. It may have been charged "
        f"and will not be sent again. It is {entry.label}: check kie.ai/logs, then call "
        f"{settle}task_id='...'), or {settle}charged=False) if it is not there",
        ref=entry.ref,
        key=entry.callers_key,
    )


def not_charged(entry: Entry) -> SubmissionUnknownError:
    """For a call that waits for a callback while `client.settle` says that none will come."""
    again = "returns the outcome of the submit before it, or submits it" if entry.earlier else "submits it"
    return SubmissionUnknownError(
        "the outcome of the request was unknown, and client.settle has said since that it was not charged: "
        f"the same call {again}. It is {entry.label}",
        ref=entry.ref,
        key=entry.callers_key,
    )
