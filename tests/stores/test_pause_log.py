"""What is told of a pause of all submits."""

from __future__ import annotations

from kie4o import RateLimit
from kie4o.events import Event, Paused
from kie4o.events.reporter import Reporter
from kie4o.stores.pauses import REFUSED, PauseLog


def test_a_pause_is_told_once_in_a_window_and_a_hold_when_it_is_longer() -> None:
    """From a second on; a hold from a tenth of a second longer than what was told."""
    heard: list[Paused] = []

    def hear(event: Event) -> None:
        if isinstance(event, Paused):
            heard.append(event)

    log = PauseLog(RateLimit(20, per=10.0), Reporter([(hear, (Paused,))]))
    used_up = "the limit of 20 in 10 s is used up"
    for now, until, hold, told in [
        (0.0, 0.75, None, None),
        (0.0, 1.0, None, (used_up, 1.0)),
        (0.5, 10.75, None, None),
        (0.5, 11.0, None, (used_up, 10.5)),
        (5.0, 11.0625, REFUSED, None),
        (5.0, 11.1, REFUSED, (REFUSED, 11.1 - 5.0)),
        (11.0, 11.75, REFUSED, None),
        (11.0, 12.0, REFUSED, (REFUSED, 1.0)),
    ]:
        heard.clear()
        log.pause(now, until, hold)
        assert [(event.cause, event.seconds) for event in heard] == ([] if told is None else [told])
