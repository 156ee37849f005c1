"""The events of a submit."""

from __future__ import annotations

import asyncio

from ..events import NotSent, Recalled, Refused, Resent, SubmitEnded, SubmitStarted, Submitted
from ..events.reporter import Reporter
from ..stores.store import Entry
from ..wire.decoding import shown
from ..wire.words import in_brief
from . import pending
from .verdict import Judgement, Verdict

_QUOTED = 20  # characters of the prompt that no event may repeat


def started(entry: Entry) -> SubmitStarted:
    return SubmitStarted(ref_hash=entry.ref_hash, key=entry.callers_key)


def recalled(entry: Entry) -> Recalled:
    """For an entry of an earlier call, or of another process, that a call continues with."""
    return Recalled(ref_hash=entry.ref_hash, key=entry.callers_key, task_id=entry.task_id, trace=entry.trace)


def ended(submit: pending.PendingSubmit, outcome: asyncio.Task[pending.Submitted]) -> SubmitEnded:
    """For a submit whose task has ended like this."""
    entry, raised, error = submit.entry, _raised(submit, outcome), None
    if raised is not None:
        task_id, error = getattr(raised, "task_id", None), type(raised).__name__
    else:
        task_id = outcome.result().task_id
        error = None if task_id is not None else "SubmissionUnknownError"
    return SubmitEnded(ref_hash=entry.ref_hash, key=entry.callers_key, task_id=task_id, error=error)


def _raised(submit: pending.PendingSubmit, outcome: asyncio.Task[pending.Submitted]) -> BaseException | None:
    if not outcome.cancelled():
        return outcome.exception()
    return submit.called_off_error() if submit.called_off else asyncio.CancelledError()


# -- one attempt -----------------------------------------------------------------------------------


def report_accepted(reporter: Reporter, entry: Entry, seconds: float) -> None:
    if Submitted in reporter.wanted:
        accepted = Submitted(
            ref_hash=entry.ref_hash,
            key=entry.callers_key,
            task_id=entry.task_id or "",
            seconds=seconds,
            credits=entry.price,
        )
        reporter(accepted)


def report_unpaid(reporter: Reporter, submit: pending.PendingSubmit, judgement: Judgement) -> None:
    """One attempt has cost nothing."""
    entry = submit.entry
    cause = cause_in(judgement, entry)
    if judgement.verdict is Verdict.REFUSED:
        refused = Refused(
            ref_hash=entry.ref_hash,
            key=entry.callers_key,
            code=judgement.code or 0,
            cause=cause,
            seconds=asyncio.get_running_loop().time() - submit.attempt.sent_at,
        )
        reporter(refused)
    elif not submit.called_off:
        reporter(NotSent(ref_hash=entry.ref_hash, key=entry.callers_key, cause=cause))


def report_resend(
    reporter: Reporter,
    submit: pending.PendingSubmit,
    judgement: Judgement,
    delay: float,
    attempt: int,
    most: int,
) -> None:
    """When it is sent again: after the delay and the hold of the limiter."""
    entry, held = submit.entry, submit.held_until - asyncio.get_running_loop().time()
    resent = Resent(
        ref_hash=entry.ref_hash,
        key=entry.callers_key,
        seconds=max(delay, held),
        attempt=attempt,
        most=most,
        cause=cause_in(judgement, entry),
    )
    reporter(resent)


def cause_in(judgement: Judgement, entry: Entry) -> str:
    """The reason for a verdict in brief words, without those that quote the prompt."""
    prompt, words = shown(entry.request.prompt or ""), judgement.message
    if prompt and prompt[:_QUOTED] in words:
        words = ""
    return in_brief(judgement.code, words) or judgement.verdict.value
