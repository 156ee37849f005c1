"""What is sent again: after a refusal (`RESENDS`), and under a key (`Again`). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import attrs
import backoff

from ..stores.store import EntryState
from .verdict import Verdict


@attrs.frozen(kw_only=True)
class Resubmit:
    """Which ends of an earlier submit under the same key the caller wants paid anew."""

    after_unknown: bool = False  # perhaps pays twice
    after_failure: bool = False

    def allows(self, state: EntryState) -> bool:
        """Whether a submit goes out when the key stands like this."""
        return (
            state is EntryState.PLANNED
            or (state is EntryState.UNKNOWN and self.after_unknown)
            or (state is EntryState.FAILED and self.after_failure)
        )


NO_RESUBMIT = Resubmit()


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

    def delay(self, sent: int, chance: float) -> float:
        """Before the resend number `sent` (from 0)."""
        generator = backoff.expo(base=self.factor, factor=self.first, max_value=self.maximum)
        next(generator)  # backoff's first one is None
        for _ in range(sent):
            next(generator)
        delay = float(next(generator))
        return delay * chance if self.jitter else delay


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


WINDOW_CODES = frozenset(cause for cause, resend in RESENDS.items() if resend.window)
