"""What the log says of pauses of all submits, whichever limiter makes them."""

from __future__ import annotations

from ..events import Paused
from ..events.reporter import LOG, Reporter
from ..models import RateLimit

REFUSED = "Kie refused one for too many calls"  # why all are held
_LOGGED = 1.0  # seconds; a shorter pause is not logged
_LONGER = 0.1  # seconds by which a hold must be longer than the log says to be logged again


class PauseLog:
    """One line for a pause of all requests. At most one in a window, unless the pause is a hold."""

    def __init__(self, limit: RateLimit, reporter: Reporter = LOG) -> None:
        self._limit = limit
        self._reporter = reporter
        self._logged_until = float("-inf")  # the end of the last logged pause

    def pause(self, now: float, until: float, hold: str | None) -> None:
        """Submits wait until then: because the limit is used up, or for the reason of a hold."""
        longer = self._limit.per if hold is None else _LONGER
        if until < max(now + _LOGGED, self._logged_until + longer):
            return
        self._logged_until = until
        used_up = f"the limit of {self._limit.limit} in {self._limit.per:g} s is used up"
        self._reporter(Paused(cause=hold or used_up, seconds=until - now))
