"""What happens in a client, as values: `AsyncKieClient(on_event=hook)` calls the hook with each of them.

The lines of the log are made from the same values, so this module is the list of all that can happen.
docs/operating.md shows it as a table. No event has a prompt, a URL of an image or of a callback, or a key of
Kie's; idempotency keys, task ids and Kie's own messages do occur.

Attributes that several events have:

    task_id   The id of the task, or None while it is not known.
    ref_hash  A hash of the token in the callback URL: it names a submit that has no task id, and reveals
              nothing. The same submit has the same one in every process.
    key       The caller's idempotency key, or None.
    seconds   How long it took, or will take.
    credits   What it is priced at, or None if that is not known. Kie does not say what it charges.
    cause     The reason, in brief words.
    error     The class of the error that a caller gets, or None.
    trace     The W3C traceparent of the call that has submitted it, if there was one; see `kie4o.otel`.
"""

from __future__ import annotations

from .base import Event, OfSubmit
from .calls import CallEnded, CallStarted
from .stores import (
    ClosedLate,
    Misattributed,
    NeverSaved,
    NotReleased,
    NotSaved,
    OutcomeNotSaved,
    StoreAwaited,
    StoreChecked,
    StoreTrouble,
    StoreWarned,
    TransferLeft,
    Unfinished,
)
from .submits import (
    AnswerAwaited,
    CalledOff,
    Exchanged,
    Named,
    NotSent,
    Orphaned,
    Paused,
    Recalled,
    Refused,
    Resent,
    Retried,
    Settled,
    SubmitEnded,
    SubmitJoined,
    SubmitStarted,
    Submitted,
    Unknown,
    Waited,
)
from .tasks import (
    BatchStopped,
    CallbackReceived,
    CallbackRefused,
    CallbacksMissing,
    CallbackUnconfirmed,
    Completed,
    Finished,
    Polled,
    PollFailed,
    Saved,
)

__all__ = [
    "AnswerAwaited",
    "BatchStopped",
    "CallEnded",
    "CallStarted",
    "CallbackReceived",
    "CallbackRefused",
    "CallbackUnconfirmed",
    "CallbacksMissing",
    "CalledOff",
    "ClosedLate",
    "Completed",
    "Event",
    "Exchanged",
    "Finished",
    "Misattributed",
    "Named",
    "NeverSaved",
    "NotReleased",
    "NotSaved",
    "NotSent",
    "OfSubmit",
    "Orphaned",
    "OutcomeNotSaved",
    "Paused",
    "PollFailed",
    "Polled",
    "Recalled",
    "Refused",
    "Resent",
    "Retried",
    "Saved",
    "Settled",
    "StoreAwaited",
    "StoreChecked",
    "StoreTrouble",
    "StoreWarned",
    "SubmitEnded",
    "SubmitJoined",
    "SubmitStarted",
    "Submitted",
    "TransferLeft",
    "Unfinished",
    "Unknown",
    "Waited",
]
