"""The one call that costs money: gate, intent, send, verdict, record.

A submit belongs to the client, not to its caller: it runs in a task of its own, and a caller who
is cancelled only stops listening. Before the request has left (waiting for a slot, pausing,
connecting) the last listener to go calls it off; from the moment the request is written it runs to
its end and is recorded, so that no task id that reaches the process is lost.

What is sent again, and how often, is the table `RESENDS`; everything that is not in it never is.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import secrets
import time
from collections.abc import Callable

from ..errors import APIConnectionError, APITimeoutError, KieError
from ..models import ImageRequest
from ..stores.ledger import Ledger
from ..stores.store import Entry, EntryState, Store, fingerprint
from ..transport.paid_body import PaidAttempt
from ..transport.transport import Transport
from ..wire.envelope import retry_after_of, status_error
from ..wire.requests import body_of, with_ref
from .pending import PendingSubmit, Submitted, key_conflict, unknown_error
from .permit import Permit
from .rate_limit import RateLimiter
from .resending import NO_RESUBMIT, RESENDS, WINDOW_CODES, Resend, Resubmit
from .verdict import Judgement, Verdict, judge

logger = logging.getLogger("kie4o")

DRAIN = 30.0  # seconds that closing waits for answers to requests that have left
_REF_BYTES = 18  # 144 random bits: it authenticates callbacks, and 128 are asked for
_ASKED_AT_MOST = 30.0  # seconds beyond our own pause that a Retry-After may add


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
        self._ledger = Ledger(store)
        self._callback_url = callback_url
        self._chance = chance
        self._live: dict[str, PendingSubmit] = {}
        self._closing = False
        self._drained = False

    @property
    def live(self) -> int:
        """How many submits are under way."""
        return len(self._live)

    async def submit(
        self, request: ImageRequest, key: str | None, permit: Permit, again: Resubmit = NO_RESUBMIT
    ) -> Submitted:
        """Pay for the request once and return its entry with a task id, or what the store knows
        under the key, or an entry without one if the answer of this very submit was lost. Raises
        the refusal, `KeyConflictError`, or `SubmissionUnknownError` for an earlier one."""
        submission = self._live.get(key) if key is not None else None
        while submission is not None and submission.called_off and key is not None:
            await asyncio.wait([submission.task])  # it is being taken back: begin anew after that
            submission = self._live.get(key)
        if submission is None:
            submission = self._start(request, key, permit, again)
        elif submission.entry.fingerprint != fingerprint(request):
            raise key_conflict(submission.entry.key)
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
                await self._ledger.aclose()

    # -- ownership -------------------------------------------------------------------------------

    def _start(
        self, request: ImageRequest, key: str | None, permit: Permit, again: Resubmit
    ) -> PendingSubmit:
        if self._closing:
            raise KieError("the client is closed: make a new one")
        ref = secrets.token_urlsafe(_REF_BYTES)
        entry = Entry(key if key is not None else ref, request=request, ref=ref, keyed=key is not None)
        submission = PendingSubmit(entry)
        submission.task = asyncio.create_task(self._run(submission, again), name="kie4o submit")
        self._live[entry.key] = submission
        submission.permit = permit.hold()
        submission.task.add_done_callback(functools.partial(self._ended, submission))
        return submission

    def _ended(self, submission: PendingSubmit, task: asyncio.Task[Submitted]) -> None:
        error = None if task.cancelled() else task.exception()
        self._settle(submission, task)
        if error is not None and not submission.listeners and not submission.called_off:
            logger.warning("a submit that nobody waits for any more failed: %s", error)

    def _settle(self, submission: PendingSubmit, outcome: Submitted | asyncio.Task[Submitted]) -> None:
        """It is over: its place is free, and whoever comes with the key now begins anew."""
        if submission.permit is not None:
            submission.permit.release()
            submission.permit = None
        if self._live.get(submission.entry.key) is submission:
            del self._live[submission.entry.key]
        submission.tell(outcome)

    def _call_off(self, submission: PendingSubmit, reason: str) -> bool:
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

    async def _run(self, submission: PendingSubmit, again: Resubmit) -> Submitted:
        try:
            stands = entry = submission.entry
            if entry.keyed:  # without a key of the caller's nothing can stand there
                stands = submission.stood = await self._ledger.claim(entry)
            paid_for = stands.state is not EntryState.PLANNED
            if paid_for and stands.fingerprint != entry.fingerprint:
                raise key_conflict(stands.key)
            if not again.allows(stands.state):
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

    async def _cut_short(self, submission: PendingSubmit) -> None:
        """Cancelled: called off before the request left, or the loop is being torn down."""
        judgement = _judged(submission.attempt, "cut short")
        if submission.entry.state is EntryState.INTENT and judgement.verdict is Verdict.ACCEPTED:
            submission.entry = _accepted(submission.entry, judgement.task_id)
        if submission.entry.state is EntryState.SUBMITTED:
            await self._ledger.paid(submission.entry)
        elif submission.attempt.sent:
            submission.entry = _given_up(submission.entry)
            await self._ledger.note(submission.entry)
        elif submission.entry.state is EntryState.INTENT:
            await self._ledger.unpaid(submission.entry, submission.stood)

    async def _attempts(self, submission: PendingSubmit) -> Submitted:
        """Send until the verdict is one that sending again cannot better."""
        resent: dict[Verdict | int, int] = {}
        while not submission.called_off:
            if resent or not self._limiter.take():
                await self._limiter.acquire(front=bool(resent))
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
                await self._ledger.paid(submission.entry)
                return Submitted(submission.entry, since=now)
            if judgement.verdict is Verdict.UNKNOWN:
                submission.entry = _given_up(entry)
                await self._ledger.note(submission.entry)
                return Submitted(submission.entry, lost=judgement.message)
            cause = judgement.verdict if judgement.verdict is Verdict.NOT_SENT else judgement.code or 0
            resend, count = RESENDS.get(cause), resent.get(cause, 0)
            submission.entry = await self._ledger.unpaid(entry, submission.stood)
            hopeless = submission.attempt.hopeless or submission.unwanted
            if resend is None or count >= resend.times or hopeless:
                raise _refusal(judgement, submission)
            resent[cause] = count + 1
            asked, submission.attempt = submission.attempt.retry_after, PaidAttempt()
            await self._pause(resend, count, asked)
        raise asyncio.CancelledError

    async def _found_meanwhile(self, submission: PendingSubmit) -> Entry | None:
        """Paying anew for an unknown outcome may have to wait for a slot, and a callback name the task."""
        stood = submission.stood
        if stood is None or stood.state is not EntryState.UNKNOWN:
            return None
        stands = await self._ledger.claim(submission.entry)
        return stands if stands.task_id is not None else None

    async def _once(self, submission: PendingSubmit) -> Judgement:
        """One intent, one POST, one verdict."""
        entry = submission.entry = submission.entry.become(EntryState.INTENT, submitted_at=time.time())
        await self._ledger.intent(entry)
        callback_url = entry.request.callback_url or self._callback_url
        if callback_url is not None:
            callback_url = with_ref(callback_url, entry.ref)
        attempt = submission.attempt
        await self._transport.pay(body_of(entry.request, callback_url=callback_url), attempt)
        judgement = _judged(attempt)
        if judgement.verdict is Verdict.REFUSED and judgement.code in WINDOW_CODES:
            self._limiter.hold_all()  # before the slot goes to the next one
        logger.debug("submit: %s (code %s)", judgement.verdict, judgement.code)
        return judgement

    async def _pause(self, resend: Resend, count: int, asked: str | None) -> None:
        """Acquiring the next slot waits for a window by itself."""
        own = 0.0 if resend.window else resend.delay(count, self._chance())
        pause = min(max(own, retry_after_of(asked) or 0.0), own + _ASKED_AT_MOST)
        logger.info("a submit that was not taken is sent again in %.1f s", pause)
        await asyncio.sleep(pause)


def _accepted(entry: Entry, task_id: str | None) -> Entry:
    return entry.become(EntryState.SUBMITTED, task_id=task_id, submitted_at=time.time())


def _judged(attempt: PaidAttempt, cut_short: str = "") -> Judgement:
    fault = attempt.fault or cut_short
    return judge(sent=attempt.sent, status=attempt.status, body=attempt.body, fault=fault)


def _given_up(entry: Entry) -> Entry:
    """From now on it counts as a submit whose outcome is unknown."""
    return entry.become(EntryState.UNKNOWN, submitted_at=time.time())


def _refusal(judgement: Judgement, submission: PendingSubmit) -> KieError:
    attempt = submission.attempt
    error: KieError
    if judgement.verdict is Verdict.NOT_SENT:
        kind = APITimeoutError if attempt.timed_out else APIConnectionError
        error = kind(f"{judgement.message}; the request never left and nothing was paid")
    else:
        error = status_error(
            judgement.code or 0,
            judgement.message,
            http_status=attempt.status,
            retry_after=retry_after_of(attempt.retry_after),
        )
    error.key = submission.entry.key if submission.entry.keyed else None
    return error
