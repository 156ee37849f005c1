"""All submits of one client: who owns them, how one proceeds, what happens when the client closes.

The package docstring explains how a submit works. What is sent again, and how often, is the table
`RESENDS`; what is not in it is never sent again.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable

import attrs

from .. import events
from ..errors import (
    APIConnectionError,
    APITimeoutError,
    KieError,
    StoreError,
    client_closed,
    key_conflict,
)
from ..events.reporter import LOG, Reporter
from ..image_request import ImageRequest, images_asked
from ..pricing import PUBLISHED, PriceList
from ..stores.ledger import Ledger
from ..stores.shared import Limiter, Slot
from ..stores.store import DuplicateTaskError, Entry, EntryState, KeyInUseError, fingerprint
from ..transport.paid_body import PaidAttempt
from ..transport.transport import Transport
from ..wire.envelope import retry_after_of, status_error
from ..wire.requests import body_of, with_ref
from ..wire.words import cause_of
from . import reports
from .pending import PendingSubmit, Submitted, planned_entry, unknown_error
from .permit import Permit
from .reports import cause_in, report_accepted, report_resend, report_unpaid
from .resending import NO_RESUBMIT, WINDOW_CODES, Resend, Resubmit, resend_after
from .verdict import Judgement, Verdict, judge

DRAIN = 25.0  # seconds that closing waits for the responses to requests that were sent
_LONGEST_RETRY_AFTER = 30.0  # seconds by which a Retry-After may lengthen our own delay
_SHORTEST_WAIT = 0.001  # seconds; a shorter one for a slot is not reported


class Submissions:
    """All submits of one client."""

    def __init__(
        self,
        transport: Transport,
        limiter: Limiter,
        ledger: Ledger,
        *,
        callback_url: str | None = None,
        prices: PriceList = PUBLISHED,
        knew: Callable[[str, float], bool] = lambda task_id, before: False,
        chance: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        reporter: Reporter = LOG,
    ) -> None:
        self._transport = transport
        self._limiter = limiter
        self._ledger = ledger
        self._callback_url = callback_url
        self._prices = prices
        self._knew = knew  # whether a task was already asked about before this loop time
        self._chance = chance
        self._sleep = sleep
        self._reporter = reporter
        self._live: dict[str, PendingSubmit] = {}  # by key
        self._closing = False
        self._drained = False

    @property
    def live(self) -> int:
        """How many submits are under way."""
        return len(self._live)

    def is_live(self, key: str) -> bool:
        """Whether a submit of this key is under way."""
        return key in self._live

    async def submit(
        self,
        request: ImageRequest,
        key: str | None,
        permit: Permit,
        resubmit: Resubmit = NO_RESUBMIT,
        *,
        wait: bool,
    ) -> Submitted:
        """Pay for the request once.

        Returns its entry with a task id, or what the store knows under the key, or an entry without a task
        id if the response to this very submit was lost. Raises the refusal, `KeyConflictError`, or
        `SubmissionUnknownError` for an earlier submit. While another process has the key in hand it waits, or
        raises `KeyInUseError` if `wait` is False.
        """
        while True:
            submit = await self._joined(request, key, permit, resubmit, wait)
            try:
                return await self._outcome_of(submit)
            except KeyInUseError:
                if submit.waits or not wait:
                    raise  # otherwise the submit was that of another caller, who does not wait

    async def _joined(
        self, request: ImageRequest, key: str | None, permit: Permit, resubmit: Resubmit, wait: bool
    ) -> PendingSubmit:
        """The submit that is under way under the key, or a new one."""
        name = key or ""  # which is no key
        submit = self._live.get(name)
        while submit is not None and submit.called_off:
            await asyncio.wait([submit.task])  # until its INTENT is undone
            submit = self._live.get(name)
        if submit is None:
            submit = self._start(request, key, permit, resubmit, wait)
        elif submit.entry.fingerprint != fingerprint(request):
            raise key_conflict(submit.entry.key)
        else:
            self._reporter(events.SubmitJoined(ref_hash=submit.entry.ref_hash, key=submit.key))
        return submit

    async def _outcome_of(self, submit: PendingSubmit) -> Submitted:
        """Its outcome. A submit for which no caller waits any more is called off."""
        outcome: asyncio.Future[Submitted] = submit.task.get_loop().create_future()
        submit.callers.append(outcome)
        submit.resendable = not self._closing
        try:
            return await outcome
        finally:
            submit.callers.remove(outcome)
            if not submit.callers:
                self._call_off(submit, "the caller was cancelled")

    def call_off(self, key: str, reason: str) -> bool:
        """Call off the submit of a key; False if its request was sent or other callers wait for it too."""
        submit = self._live.get(key)
        return submit is not None and len(submit.callers) <= 1 and self._call_off(submit, reason)

    async def drain(self) -> None:
        """Start nothing more, call off what was not sent, and await the responses to what was."""
        self._closing = True
        for submit in self._live.values():
            self._call_off(submit, "the client was closed")
        tasks = [submit.task for submit in self._live.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=DRAIN)

    async def aclose(self) -> None:
        """Cut short what is still under way, and record what is known of it."""
        self._closing = self._drained = True
        tasks = [submit.task for submit in self._live.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- ownership -------------------------------------------------------------------------------

    def _start(
        self, request: ImageRequest, key: str | None, permit: Permit, resubmit: Resubmit, wait: bool
    ) -> PendingSubmit:
        if self._closing:
            raise client_closed()
        entry = planned_entry(request, key, self._prices.find(images_asked(request)))
        submit = PendingSubmit(entry, permit.hold(), waits=wait)
        submit.task = asyncio.create_task(self._run(submit, resubmit), name="kie4o submit")
        submit.task.add_done_callback(functools.partial(self._on_done, submit))
        self._live[submit.entry.key] = submit
        return submit

    def _on_done(self, submit: PendingSubmit, task: asyncio.Task[Submitted]) -> None:
        error = None if task.cancelled() else task.exception()
        if events.SubmitEnded in self._reporter.wanted:
            self._reporter(reports.ended(submit, task))
        self._settle(submit, task)
        if error is not None and not submit.callers and not submit.called_off:
            entry = submit.entry
            self._reporter(
                events.Orphaned(ref_hash=entry.ref_hash, key=entry.callers_key, cause=cause_of(error)),
                str(error),
            )

    def _settle(self, submit: PendingSubmit, outcome: Submitted | asyncio.Task[Submitted]) -> None:
        """The submit is over. It is called once with the outcome and once when the task is done:

        1. The permit is released, unless `generate` holds it on.
        2. The key is free: the next caller starts a new submit.
        3. The callers that do not know the outcome yet are notified.
        """
        if submit.permit is not None:
            submit.permit.release()
            submit.permit = None
        if self._live.get(submit.entry.key) is submit:
            del self._live[submit.entry.key]
        submit.notify(outcome)

    def _call_off(self, submit: PendingSubmit, reason: str) -> bool:
        """Only before the request is sent; after that it runs to its verdict."""
        submit.resendable = False
        if submit.called_off:
            return True  # another cancel would interrupt the undoing
        if submit.task.done() or not submit.attempt.withdraw():
            return False
        submit.called_off, entry = reason, submit.entry
        self._reporter(events.CalledOff(ref_hash=entry.ref_hash, key=entry.callers_key, cause=reason))
        submit.task.cancel()
        return True

    # -- one submit ------------------------------------------------------------------------------

    async def _run(self, submit: PendingSubmit, resubmit: Resubmit) -> Submitted:
        """From the claim of the key to the outcome. Three cases:

        1. The key has an outcome that the caller does not want to pay for again: it is returned or raised.
        2. The request is sent, until its verdict is final.
        3. The task is cancelled: called off before the request was sent, or cut short by the end of `DRAIN`
           or of the loop. What is known by then is recorded.
        """
        if events.SubmitStarted in self._reporter.wanted:
            self._reporter(reports.started(submit.entry))
            trace = self._reporter.trace()
            submit.entry = submit.entry if trace is None else submit.entry.traced(trace)
        try:
            stored = await self._claim(submit, resubmit) if submit.entry.keyed else submit.entry
            if not resubmit.allows(stored.state):
                if events.Recalled in self._reporter.wanted:
                    self._reporter(reports.recalled(stored), stored.name)
                if stored.task_id is None:
                    raise unknown_error(stored, "that of an earlier submit under this key is")
                return Submitted(stored)
            submitted = await self._attempts(submit)
            self._settle(submit, submitted)  # now; the done callback of the task runs a turn later
            return submitted
        except asyncio.CancelledError:
            submit.task.uncancel()  # unless it is raised again below
            outcome = await self._cut_short(submit)
            if not self._drained:
                raise
        finally:
            if submit.claimed:
                await self._ledger.release(submit.entry)
        if isinstance(outcome, Submitted):
            return outcome
        raise outcome

    async def _claim(self, submit: PendingSubmit, resubmit: Resubmit) -> Entry:
        """What is stored under the caller's key. Raises `KeyConflictError` if it is for another request."""
        submit.claimed = True  # perhaps, also if this is cancelled
        stored = await self._ledger.claim(submit.entry, resubmit.states, wait=submit.waits)
        submit.claimed = resubmit.allows(stored.state)
        if stored.state is not EntryState.PLANNED:
            if stored.fingerprint != submit.entry.fingerprint:
                raise key_conflict(stored.key)
            submit.previous = stored
        return stored

    async def _cut_short(self, submit: PendingSubmit) -> Submitted | KieError:
        """Record what is known of a submit that was cancelled, and return it."""
        judgement = _judged(submit.attempt, submit.entry.request)
        if submit.entry.state is not EntryState.PLANNED:  # otherwise there is nothing to record
            submitted = await self._record(submit, judgement)
            if submitted is not None:
                return submitted
        return submit.called_off_error() if submit.called_off else _refusal(judgement, submit)

    async def _attempts(self, submit: PendingSubmit) -> Submitted:
        """Send the request until its verdict is final. Three cases after each attempt:

        1. ACCEPTED: the task id is saved and returned.
        2. UNKNOWN: it may have been charged, so it is never sent again.
        3. NOT_SENT or REFUSED: nothing was charged. It is sent again as `RESENDS` says, or the error is
           raised.
        """
        resent: dict[Verdict | int, int] = {}  # how often, by cause
        while True:
            slot = await self._slot(front=bool(resent))
            try:
                stored = await self._named_meanwhile(submit)
                if stored is not None:
                    return Submitted(stored)
                submit.attempt.good_until = slot.good_until
                judgement = await self._attempt(submit)
            finally:
                slot.release(counted=submit.attempt.sent)
            submitted = await self._record(submit, judgement)
            if submitted is not None:
                return submitted
            cause, resend = resend_after(judgement)
            count = resent.get(cause, 0)
            useless = submit.attempt.permanent or not submit.resendable
            if resend is None or count >= resend.times or useless:
                raise _refusal(judgement, submit)
            resent[cause] = count + 1
            retry_after, submit.attempt = submit.attempt.retry_after, PaidAttempt()
            delay = self._delay_before_resend(resend, count, retry_after)
            report_resend(self._reporter, submit, judgement, delay, count + 1, resend.times)
            await self._sleep(delay)

    async def _record(self, submit: PendingSubmit, judgement: Judgement) -> Submitted | None:
        """Save what one attempt came to; None if nothing was charged, and the INTENT is undone.

        A task id that another submit has, or that was asked about before this request was sent, is no
        acceptance: the answer was to an earlier request on the same connection. The task of this one, if any,
        is not known.
        """
        reason = judgement.message
        if judgement.task_id is not None and self._knew(judgement.task_id, submit.attempt.sent_at):
            reason = (
                f"the answer was not its own: task {judgement.task_id} was known before the request was sent"
            )
        elif judgement.task_id is not None:
            now = submit.task.get_loop().time()
            try:
                await self._accepted(submit, judgement.task_id, now)
                return Submitted(submit.entry, since=now)
            except DuplicateTaskError as error:
                reason = f"the answer was not its own: {error}"
        elif judgement.verdict is not Verdict.UNKNOWN:  # and nothing was charged
            if submit.is_news():
                report_unpaid(self._reporter, submit, judgement)
            submit.entry = await self._ledger.unpaid(submit.entry, submit.previous)
            return None
        entry = submit.give_up()
        if submit.is_news():
            cause = cause_in(attrs.evolve(judgement, message=reason), entry)
            unknown = events.Unknown(ref_hash=entry.ref_hash, key=entry.callers_key, cause=cause)
            self._reporter(unknown, entry.name)
        await self._ledger.unknown(entry)
        return Submitted(submit.entry, reason=reason)

    async def _accepted(self, submit: PendingSubmit, task_id: str, now: float) -> None:
        """Save the task id that arrived, and report it unless it is another submit's."""
        seconds = now - submit.attempt.sent_at
        try:
            await self._ledger.submitted(submit.accept(task_id))
        except DuplicateTaskError:
            raise
        except StoreError:  # it is paid all the same
            report_accepted(self._reporter, submit.entry, seconds)
            raise
        report_accepted(self._reporter, submit.entry, seconds)

    async def _slot(self, *, front: bool) -> Slot:
        """A slot of the account's limit."""
        if events.Waited not in self._reporter.wanted:
            return await self._limiter.acquire(front=front)
        loop = asyncio.get_running_loop()
        began = loop.time()
        slot = await self._limiter.acquire(front=front)
        waited = loop.time() - began
        if waited >= _SHORTEST_WAIT:
            self._reporter(events.Waited(what="slot", seconds=waited))
        return slot

    async def _named_meanwhile(self, submit: PendingSubmit) -> Entry | None:
        """The entry if a callback named its task while a resubmit after an unknown outcome waited."""
        previous = submit.previous
        if previous is None or previous.state is not EntryState.UNKNOWN:
            return None
        stored = await self._ledger.claim(submit.entry, (EntryState.UNKNOWN,))
        return stored if stored.task_id is not None else None

    async def _attempt(self, submit: PendingSubmit) -> Judgement:
        """One INTENT, one POST, one verdict."""
        entry = submit.begin()
        await self._ledger.begin(entry, submit.previous)
        callback_url = entry.request.callback_url or self._callback_url
        if callback_url is not None:
            callback_url = with_ref(callback_url, entry.ref)
        attempt = submit.attempt
        await self._transport.pay(body_of(entry.request, callback_url=callback_url), attempt)
        judgement = _judged(attempt, entry.request)
        if judgement.verdict is Verdict.REFUSED and judgement.code in WINDOW_CODES:
            held = self._limiter.hold_all()  # before the slot is granted to the next request
            submit.held_until = submit.task.get_loop().time() + held
        return judgement

    def _delay_before_resend(self, resend: Resend, count: int, retry_after: str | None) -> float:
        """With `resend.window` only what Kie asks for: acquiring the next slot waits for the window."""
        own = 0.0 if resend.window else resend.delay(count, self._chance())
        return min(max(own, retry_after_of(retry_after) or 0.0), own + _LONGEST_RETRY_AFTER)


def _judged(attempt: PaidAttempt, request: ImageRequest) -> Judgement:
    cut_short = "" if attempt.complete else "the response was not awaited to its end"
    fault = attempt.fault or cut_short
    asked = functools.partial(_texts_of, request)
    return judge(sent=attempt.sent, status=attempt.status, body=attempt.body, fault=fault, asked=asked)


def _texts_of(request: ImageRequest) -> str:
    return " ".join(f"{request.prompt} {' '.join(map(str, request.extra.values()))}".split())


def _refusal(judgement: Judgement, submit: PendingSubmit) -> KieError:
    """The error of a request that was not sent, or that Kie refused."""
    attempt = submit.attempt
    error: KieError
    if judgement.verdict is Verdict.NOT_SENT:
        kind = APITimeoutError if attempt.timed_out else APIConnectionError
        error = unsent = kind(f"{judgement.message}; the request was not sent and nothing was charged")
        unsent.cause, unsent.retryable = attempt.cause, not attempt.permanent
    else:
        error = refusal = status_error(
            judgement.code or 0,
            judgement.message,
            http_status=attempt.status,
            retry_after=retry_after_of(attempt.retry_after),
        )
        refusal.retryable = refusal.retryable and resend_after(judgement)[1] is not None
    error.key = submit.key
    return error
