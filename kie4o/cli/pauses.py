"""Why nothing happens for a while, said while it lasts and in words of the terminal."""

from __future__ import annotations

from ..events import Event, Paused, PollFailed, Resent, Retried, StoreAwaited
from ..wire.decoding import shown

_SHORTEST = 1.0  # seconds; a shorter pause is not worth a line
_CODES = {"429": "Kie refused a request for too many calls", "455": "Kie is under maintenance"}
_WORDS = {"Kie refused one for too many calls": _CODES["429"]}
_CODES |= {"430": _CODES["429"], "550": "Kie's queue is full"}


def pause_of(event: Event) -> tuple[str, float] | None:
    """Why nothing happens, and for how many seconds; None if the event is about something else."""
    if not isinstance(event, Resent | Paused | PollFailed | Retried | StoreAwaited):
        return None
    if round(event.seconds, 1) < _SHORTEST:
        return None
    cause = event.cause.partition(";")[0] if isinstance(event, StoreAwaited) else event.cause
    reason = shown(cause, 200)
    code, _, _ = reason.partition(" ")
    return f"{_CODES[code]} ({code})" if code in _CODES else _WORDS.get(reason, reason), event.seconds
