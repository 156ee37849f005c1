"""The one call that costs money: gate, intent, send, verdict, record.

A submit belongs to the client, not to its caller: it runs in a task of its own, and a caller who
is cancelled only stops listening. Before the request has left (waiting for a slot, pausing,
connecting) the last listener to go calls it off; from the moment the request is written it runs to
its end and is recorded, so that no task id that reaches the process is lost.

What is sent again, and how often, is the table `RESENDS`; everything that is not in it never is.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import logging
import random
import secrets
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

import attrs
import backoff

from . import wire
from .errors import (
    APIConnectionError,
    APITimeoutError,
    KeyConflictError,
    KieError,
    SubmissionUnknownError,
)
from .limiting import Place, RateLimiter
from .models import ImageRequest
from .record import Record
from .store import NEVER_AGAIN, Again, Entry, EntryState, Store, fingerprint
from .transport import PaidAttempt, Transport
from .wire import Judgement, Verdict

logger = logging.getLogger("kie4o")

DRAIN = 30.0  # seconds that closing waits for answers to requests that have left
_REF_BYTES = 18  # 144 random bits: it authenticates callbacks, and 128 are asked for
_ASKED_AT_MOST = 30.0  # seconds beyond our own pause that a Retry-After may add


@attrs.frozen
class Resend:
    """How often one cause is answered by sending again, and after which pauses (seconds).

    `window` means that the rate limiter pauses everybody for a whole window instead.
    """

    times: int
    first: float = 0.0
    factor: float = 2.0
    maximum: float | None = None
    jitter: bool = False
    window: bool = False

    def pause(self, sent: int, chance: float) -> float:
        """Before the resend number `sent` (from 0)."""
        generator = backoff.expo(base=self.factor, factor=self.first, max_value=self.maximum)
        next(generator)  # backoff's first one is None
        for _ in range(sent):
            next(generator)
        pause = float(next(generator))
        return pause * chance if self.jitter else pause


# Nothing was started and nothing charged in any of these. Causes: the verdict, or Kie's code.
RESENDS: Mapping[Verdict | int, Resend] = MappingProxyType(
    {
        Verdict.NOT_SENT: Resend(2, first=0.5, maximum=8.0, jitter=True),
        429: Resend(5, window=True),  # refused, not queued (generate page)
        430: Resend(5, window=True),
        455: Resend(3, first=60.0, factor=1.0),  # maintenance takes minutes
        550: Resend(4, first=30.0),  # a full queue empties slowly
    }
)


_WINDOW_CODES = frozenset(cause for cause, resend in RESENDS.items() if resend.window)


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
class _Submission:
    """One submit under way, and who listens to it."""

    entry: Entry
    stood: Entry | None = None  # what stood under the key before
    listeners: list[asyncio.Future[Submitted]] = attrs.field(factory=list)
    called_off: str = ""  # why, once it is
    unwanted: bool = False  # nobody wants it sent again, should what has left be refused
    attempt: PaidAttempt = attrs.field(factory=PaidAttempt)
    place: Place | None = None  # held until it is over
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


class Submissions:
    """All submits of one client."""

    def __init__(
        self,
        transport: Transport,
        limiter: RateLimiter,
        store: Store,
        *,
        callback_url: str | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._transport = transport
        self._limiter = limiter
        self._record = Record(store)
        self._callback_url = callback_url
        self._chance = chance
        self._live: dict[str, _Submission] = {}
        self._closing = False
        self._drained = False

    @property
    def live(self) -> int:
        """How many submits are under way."""
        return len(self._live)

    async def submit(
        self, request: ImageRequest, key: str | None, place: Place, again: Again = NEVER_AGAIN
    ) -> Submitted:
        """Pay for the request once and return its entry with a task id, or what the store knows
        under the key, or an entry without one if the answer of this very submit was lost. Raises
        the refusal, `KeyConflictError`, or `SubmissionUnknownError` for an earlier one."""
        submission = self._live.get(key) if key is not None else None
        while submission is not None and submission.called_off and key is not None:
            await asyncio.wait([submission.task])  # it is being taken back: begin anew after that
            submission = self._live.get(key)
        if submission is None:
            submission = self._start(request, key, place, again)
        elif submission.entry.fingerprint != fingerprint(request):
            raise _conflict(submission.entry.key)
        outcome: asyncio.Future[Submitted] = submission.task.get_loop().create_future()
        submission.listeners.append(outcome)
        submission.unwanted = self._closing
        try:
            return await outcome
        finally:
            submission.listeners.remove(outcome)
            if not submission.listeners:
                self._call_off(submission, "nobody waited for it any more")

    def call_off(self, key: str, reason: str) -> bool:
        """Call off the submit of a key unless its request has left or others listen to it too;
        whether that was possible."""
        submission = self._live.get(key)
        return (
            submission is not None and len(submission.listeners) <= 1 and self._call_off(submission, reason)
        )

    async def aclose(self) -> None:
        """Call off what has not left, wait for the answers of what has, record the rest as unknown."""
        self._closing = True
        for submission in list(self._live.values()):
            self._call_off(submission, "the client was closed")
        tasks = [submission.task for submission in self._live.values()]
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=DRAIN)
        finally:
            self._drained = True
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                await self._record.aclose()

    # -- ownership -------------------------------------------------------------------------------

    def _start(self, request: ImageRequest, key: str | None, place: Place, again: Again) -> _Submission:
        if self._closing:
            raise KieError("the client is closed: make a new one")
        ref = secrets.token_urlsafe(_REF_BYTES)
        entry = Entry(key if key is not None else ref, request=request, ref=ref, keyed=key is not None)
        submission = _Submission(entry)
        submission.task = asyncio.create_task(self._run(submission, again), name="kie4o submit")
        self._live[entry.key] = submission
        submission.place = place.hold()
        submission.task.add_done_callback(functools.partial(self._ended, submission))
        return submission

    def _ended(self, submission: _Submission, task: asyncio.Task[Submitted]) -> None:
        error = None if task.cancelled() else task.exception()
        self._settle(submission, task)
        if error is not None and not submission.listeners and not submission.called_off:
            logger.warning("a submit that nobody waits for any more failed: %s", error)

    def _settle(self, submission: _Submission, outcome: Submitted | asyncio.Task[Submitted]) -> None:
        """It is over: its place is free, and whoever comes with the key now begins anew."""
        if submission.place is not None:
            submission.place.let_go()
            submission.place = None
        if self._live.get(submission.entry.key) is submission:
            del self._live[submission.entry.key]
        submission.tell(outcome)

    def _call_off(self, submission: _Submission, reason: str) -> bool:
        """Only before the request has left: from then on it runs to its verdict."""
        submission.unwanted = True
        if submission.called_off:
            return True  # it is being taken back: another cancel would cut that short
        if submission.task.done() or not submission.attempt.withdraw():
            return False
        submission.called_off = reason
        submission.task.cancel()
        return True

    # -- one submit ------------------------------------------------------------------------------

    async def _run(self, submission: _Submission, again: Again) -> Submitted:
        try:
            stands = entry = submission.entry
            if entry.keyed:  # without a key of the caller's nothing can stand there
                stands = submission.stood = await self._record.claim(entry)
            paid_for = stands.state is not EntryState.PLANNED
            if paid_for and stands.fingerprint != entry.fingerprint:
                raise _conflict(stands.key)
            if not again.pays(stands.state):
                if stands.task_id is None:
                    raise unknown_error(stands, "an earlier submit under this key")
                return Submitted(stands)
            submitted = await self._attempts(submission)
            self._settle(submission, submitted)  # now, not when the loop gets round to the end of this task
            return submitted
        except asyncio.CancelledError:
            await self._cut_short(submission)
            if not submission.called_off and not self._drained:
                raise
        if not submission.called_off:  # closed after the request had left
            return Submitted(submission.entry, lost="the client was closed before the answer came")
        raise submission.not_sent()

    async def _cut_short(self, submission: _Submission) -> None:
        """Cancelled: called off before the request left, or the loop is being torn down."""
        judgement = _judged(submission.attempt, "cut short")
        if submission.entry.state is EntryState.INTENT and judgement.verdict is Verdict.ACCEPTED:
            submission.entry = _accepted(submission.entry, judgement.task_id)
        if submission.entry.state is EntryState.SUBMITTED:
            await self._record.paid(submission.entry)
        elif submission.attempt.sent:
            submission.entry = _given_up(submission.entry)
            await self._record.note(submission.entry)
        elif submission.entry.state is EntryState.INTENT:
            await self._record.unpaid(submission.entry, submission.stood)

    async def _attempts(self, submission: _Submission) -> Submitted:
        """Send until the verdict is one that sending again cannot better."""
        resent: dict[Verdict | int, int] = {}
        while not submission.called_off:
            if resent or not self._limiter.take():
                await self._limiter.acquire(again=bool(resent))
            try:
                stands = await self._found_meanwhile(submission)
                if stands is not None:
                    return Submitted(stands)
                judgement = await self._once(submission)
            finally:
                self._limiter.release(counted=submission.attempt.sent)
            entry = submission.entry
            if judgement.verdict is Verdict.ACCEPTED:
                now = submission.task.get_loop().time()
                submission.entry = _accepted(entry, judgement.task_id)
                await self._record.paid(submission.entry)
                return Submitted(submission.entry, since=now)
            if judgement.verdict is Verdict.UNKNOWN:
                submission.entry = _given_up(entry)
                await self._record.note(submission.entry)
                return Submitted(submission.entry, lost=judgement.message)
            cause = judgement.verdict if judgement.verdict is Verdict.NOT_SENT else judgement.code or 0
            resend, count = RESENDS.get(cause), resent.get(cause, 0)
            submission.entry = await self._record.unpaid(entry, submission.stood)
            hopeless = submission.attempt.hopeless or submission.unwanted
            if resend is None or count >= resend.times or hopeless:
                raise _refusal(judgement, submission)
            resent[cause] = count + 1
            asked, submission.attempt = submission.attempt.retry_after, PaidAttempt()
            await self._pause(resend, count, asked)
        raise asyncio.CancelledError

    async def _found_meanwhile(self, submission: _Submission) -> Entry | None:
        """Paying anew for an unknown outcome may have to wait for a slot, and a callback name the task."""
        stood = submission.stood
        if stood is None or stood.state is not EntryState.UNKNOWN:
            return None
        stands = await self._record.claim(submission.entry)
        return stands if stands.task_id is not None else None

    async def _once(self, submission: _Submission) -> Judgement:
        """One intent, one POST, one verdict."""
        entry = submission.entry = submission.entry.become(EntryState.INTENT, submitted_at=time.time())
        await self._record.intent(entry)
        callback_url = entry.request.callback_url or self._callback_url
        if callback_url is not None:
            callback_url = wire.with_ref(callback_url, entry.ref)
        attempt = submission.attempt
        await self._transport.pay(wire.body_of(entry.request, callback_url=callback_url), attempt)
        judgement = _judged(attempt)
        if judgement.verdict is Verdict.REFUSED and judgement.code in _WINDOW_CODES:
            self._limiter.pause()  # before the slot goes to the next one
        logger.debug("submit: %s (code %s)", judgement.verdict, judgement.code)
        return judgement

    async def _pause(self, resend: Resend, count: int, asked: str | None) -> None:
        """Acquiring the next slot waits for a window by itself."""
        own = 0.0 if resend.window else resend.pause(count, self._chance())
        pause = min(max(own, wire.retry_after_of(asked) or 0.0), own + _ASKED_AT_MOST)
        logger.info("a submit that was not taken is sent again in %.1f s", pause)
        await asyncio.sleep(pause)


def _accepted(entry: Entry, task_id: str | None) -> Entry:
    return entry.become(EntryState.SUBMITTED, task_id=task_id, submitted_at=time.time())


def _judged(attempt: PaidAttempt, cut_short: str = "") -> Judgement:
    fault = attempt.fault or cut_short
    return wire.judge(sent=attempt.sent, status=attempt.status, body=attempt.body, fault=fault)


def _given_up(entry: Entry) -> Entry:
    """From now on it counts as a submit whose outcome is unknown."""
    return entry.become(EntryState.UNKNOWN, submitted_at=time.time())


def _refusal(judgement: Judgement, submission: _Submission) -> KieError:
    attempt = submission.attempt
    error: KieError
    if judgement.verdict is Verdict.NOT_SENT:
        kind = APITimeoutError if attempt.timed_out else APIConnectionError
        error = kind(f"{judgement.message}; the request never left and nothing was paid")
    else:
        error = wire.status_error(
            judgement.code or 0,
            judgement.message,
            http_status=attempt.status,
            retry_after=wire.retry_after_of(attempt.retry_after),
        )
    error.key = submission.entry.key if submission.entry.keyed else None
    return error


def unknown_error(entry: Entry, reason: str) -> SubmissionUnknownError:
    return SubmissionUnknownError(
        f"the request left and its outcome is not known ({reason}); it is perhaps paid and is not sent "
        "again: look at kie.ai/logs",
        ref=entry.ref,
        key=entry.key if entry.keyed else None,
    )


def _conflict(key: str) -> KeyConflictError:
    return KeyConflictError(
        f"key {key!r} was used before with another request: use a new key for a new request", key=key
    )
