"""What came back from one paid POST, and what that means: the table of verdicts. Pure."""

from __future__ import annotations

import enum

import attrs

from ..wire import decoding
from ..wire.envelope import envelope_of

# -- the paid call -----------------------------------------------------------------------------


class Verdict(enum.Enum):
    """What a submit attempt came to."""

    NOT_SENT = "not sent"
    REFUSED = "refused"
    ACCEPTED = "accepted"
    UNKNOWN = "unknown"


@attrs.frozen
class Judgement:
    """The verdict on one attempt, with what it rests on."""

    verdict: Verdict
    task_id: str | None = None
    code: int | None = None
    message: str = ""


# Codes that say for certain that nothing was started and nothing is charged (Kie's code
# lists). Everything that is not here, and every 5xx of a proxy, may have been paid.
REFUSING_CODES = frozenset({400, 401, 402, 403, 404, 405, 409, 413, 422, 429, 430, 433, 451, 455, 505, 550})
_AMBIGUOUS_4XX = 408  # upstream timed out: it may have worked


def judge(*, sent: bool, status: int | None = None, body: bytes = b"", fault: str = "") -> Judgement:
    """The verdict on one attempt of the paid call.

    `sent` is the latch: whether the request's body can have begun to leave. `status` is None if no
    answer came; `body` is whatever of it arrived, also of one that broke off.
    """
    if not sent:
        return Judgement(Verdict.NOT_SENT, message=fault)
    envelope = envelope_of(body)
    task_id = envelope.task_id if envelope is not None else decoding.salvaged_task_id(body)
    if task_id is not None:
        return Judgement(Verdict.ACCEPTED, task_id=task_id, code=envelope.code if envelope else None)
    if envelope is not None:
        verdict = Verdict.REFUSED if envelope.code in REFUSING_CODES else Verdict.UNKNOWN
        return Judgement(verdict, code=envelope.code, message=envelope.message)
    message = fault or decoding.shown(body) or "an empty answer"
    refused = status is not None and not fault and 400 <= status < 500 and status != _AMBIGUOUS_4XX
    return Judgement(Verdict.REFUSED if refused else Verdict.UNKNOWN, code=status, message=message)
