"""Why nothing happens for a while, said while it lasts and in words of the terminal."""

from __future__ import annotations

from ..events import Event, Paused, PollFailed, Resent, Retried, StoreAwaited
from ..submission.resending import WINDOW_CODES
from ..wire.decoding import shown

_SHORTEST = 1.0  # seconds; a shorter pause is not worth a line
_CODES = {"429": "Kie refused a request for too many calls", "455": "Kie is under maintenance"}
_WORDS = {"Kie refused one for too many calls": _CODES["429"]}
_LIMITED = frozenset(map(str, WINDOW_CODES))
_CODES |= {"430": _CODES["429"], "550": "Kie's queue is full"}


def pause_of(event: Event, speed: float = 1.0) -> tuple[str, float] | None:
    """Why nothing happens, and for how many seconds; None if the event is about something else.

    What a client waits for before it repeats a call passes at its speed; the limiter of submits counts real
    seconds.
    """
    if not isinstance(event, Resent | Paused | PollFailed | Retried):
        return None
    reason = shown(event.cause, 200)
    code, _, _ = reason.partition(" ")
    limited = isinstance(event, Paused) or (isinstance(event, Resent) and code in _LIMITED)
    seconds = event.seconds if limited else event.seconds / speed
    if round(seconds, 1) < _SHORTEST:
        return None
    return f"{_CODES[code]} ({code})" if code in _CODES else _WORDS.get(reason, reason), seconds


def wait_for_store(event: Event) -> str | None:
    """That a store is waited for, which another process has open; None for other events."""
    if not isinstance(event, StoreAwaited):
        return None
    return f"{shown(event.cause.partition(';')[0], 200)}; waiting up to {event.seconds:g} s for it"
