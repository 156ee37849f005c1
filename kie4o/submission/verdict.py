"""What one attempt to submit came to: the table that decides whether it may be sent again. Pure.

The rule is that a request counts as paid unless the opposite is certain. Only a request that was
never sent, or that Kie refused with a code from the table, may be sent again.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import attrs

from ..wire import decoding
from ..wire.envelope import envelope_of
from ..wire.words import say_credits_are_insufficient

# Codes that mean that no task was started and nothing was charged (generate page; 405: file upload
# page; 451: download-url page; 409, 413, 430, 433: pages of sibling endpoints; 403: Cloudflare). With
# any other code, or with a 5xx of a proxy, the request may have been charged.
REFUSING_CODES = frozenset({400, 401, 402, 403, 404, 405, 409, 413, 422, 429, 430, 433, 451, 455, 505, 550})
_REQUEST_TIMEOUT = 408  # the one HTTP 4xx that refuses nothing: the server behind may have done the work


class Verdict(enum.Enum):
    """What an attempt to submit came to."""

    NOT_SENT = "not sent"
    REFUSED = "refused"
    ACCEPTED = "accepted"
    UNKNOWN = "unknown"


@attrs.frozen(kw_only=True)
class Judgement:
    """The verdict on one attempt, and what it is based on."""

    verdict: Verdict = attrs.field(kw_only=False)
    task_id: str | None = None
    code: int | None = None
    message: str = ""


def judge(
    *,
    sent: bool,
    status: int | None = None,
    body: bytes = b"",
    fault: str = "",
    asked: Callable[[], str] = str,
) -> Judgement:
    """The verdict on one attempt.

    Args:
        sent: Whether any part of the request's body may have been sent.
        status: The HTTP status; None without an answer.
        body: What arrived of the answer, even if it broke off.
        fault: Why the answer is missing or incomplete; "" if it is complete.
        asked: Returns the texts of the request. Kie may quote them, so words that are in them refuse nothing.
    """
    if not sent:
        return Judgement(Verdict.NOT_SENT, message=fault)
    envelope = envelope_of(body)
    task_id = envelope.task_id if envelope is not None else decoding.salvaged_task_id(body)
    if task_id is not None:
        return Judgement(Verdict.ACCEPTED, task_id=task_id, code=envelope.code if envelope else None)
    if envelope is not None:
        # An empty balance also comes as code 500. A success without an id stays unknown, whatever it says.
        empty = envelope.code != 200 and say_credits_are_insufficient(envelope.message)
        empty = empty and not say_credits_are_insufficient(asked())
        if envelope.code in REFUSING_CODES or empty:
            return Judgement(Verdict.REFUSED, code=envelope.code, message=envelope.message)
        message = f"Kie returned code {envelope.code} without a task id: {decoding.shown(body)}"
        return Judgement(Verdict.UNKNOWN, code=envelope.code, message=message)
    message = fault or decoding.shown(body) or "the answer is empty"
    refused = status is not None and not fault and 400 <= status < 500 and status != _REQUEST_TIMEOUT
    return Judgement(Verdict.REFUSED if refused else Verdict.UNKNOWN, code=status, message=message)
