"""What is sent again: after a verdict (`RESENDS`), and under a key that has an outcome (`Resubmit`). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import attrs
import backoff

from ..stores.store import EntryState
from ..wire.words import say_credits_are_insufficient
from .verdict import Judgement, Verdict


@attrs.frozen(kw_only=True)
class Resubmit:
    """After which outcomes of an earlier submit under the same key the caller wants to pay again."""

    after_unknown: bool = False  # may pay twice
    after_failure: bool = False

    def allows(self, state: EntryState) -> bool:
        """Whether a request is sent while the stored entry is in this state."""
        return (
            state is EntryState.PLANNED
            or (state is EntryState.UNKNOWN and self.after_unknown)
            or (state is EntryState.FAILED and self.after_failure)
        )

    @property
    def states(self) -> tuple[EntryState, ...]:
        """The states from which a request is sent."""
        return tuple(state for state in EntryState if self.allows(state))


NO_RESUBMIT = Resubmit()


@attrs.frozen(kw_only=True)
class Resend:
    """How often a request is sent again after one cause, and after which delays.

    With `window` the rate limiter holds everybody for a whole window instead.
    """

    times: int = attrs.field(kw_only=False)
    first: float = 0.0
    factor: float = 2.0
    maximum: float | None = None
    jitter: bool = False
    window: bool = False

    def delay(self, sent: int, chance: float) -> float:
        """Seconds before resend number `sent`, counted from 0. `chance` from 0 to 1 picks the jitter."""
        delays = backoff.expo(base=self.factor, factor=self.first, max_value=self.maximum)
        next(delays)  # the first value of backoff's generators is None
        for _ in range(sent):
            next(delays)
        delay = float(next(delays))
        return delay * chance if self.jitter else delay


# Causes after which nothing was started and nothing charged: the verdict, or Kie's code (generate page).
RESENDS: Mapping[Verdict | int, Resend] = MappingProxyType(
    {
        Verdict.NOT_SENT: Resend(2, first=0.5, maximum=8.0, jitter=True),
        429: Resend(5, window=True),  # too many requests: refused, not queued
        430: Resend(5, window=True),
        455: Resend(3, first=60.0, factor=1.0),  # maintenance takes minutes
        550: Resend(4, first=30.0),  # a full queue empties slowly
    }
)
WINDOW_CODES = frozenset(cause for cause, resend in RESENDS.items() if resend.window)


def resend_after(judgement: Judgement) -> tuple[Verdict | int, Resend | None]:
    """What one attempt came to, as resends are counted, and how it is sent again; None for never."""
    if judgement.verdict is Verdict.NOT_SENT:
        return Verdict.NOT_SENT, RESENDS[Verdict.NOT_SENT]
    code = judgement.code or 0
    # An empty balance is no reason to try again, whatever the code.
    never = judgement.verdict is not Verdict.REFUSED or say_credits_are_insufficient(judgement.message)
    return code, None if never else RESENDS.get(code)
