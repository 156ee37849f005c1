"""The faults that are planned for one emulator, and whose turn it is. Pure: time and chance are passed in."""

from __future__ import annotations

import random
from collections.abc import Callable

import attrs

from .faults import Arrival, Fault


@attrs.define(eq=False)
class Planned:
    """A fault in the queue, and how often it was seen and has fired."""

    fault: Fault
    seen: int = 0
    fired: int = 0
    first: float | None = None  # when it fired first
    error: str | None = None  # of its function

    def turn(self, at: float) -> bool:
        """Whether it is due for the next matching request."""
        if self.seen < self.fault.after:
            return False
        if self.fault.lasting is not None:
            return self.first is None or at - self.first < self.fault.lasting
        return self.fault.times is None or self.fired < self.fault.times

    @property
    def complaint(self) -> str | None:
        """What is wrong if the emulator is not used any more; None if the fault has fired as planned."""
        fault = self.fault
        if self.error is not None:
            return f"{fault} failed: {self.error}"
        if not self.fired:
            return f"{fault} did not fire; matching requests: {self.seen}"
        certain = fault.probability == 1 and fault.lasting is None and fault.by is None
        if certain and fault.times is not None and self.fired < fault.times:
            return f"{fault} fired {self.fired} of {fault.times} times"
        return None


@attrs.define(eq=False)
class Firing:
    """A fault that fires, and the effect: the fault itself, or what its function returned."""

    planned: Planned
    fault: Fault

    def undo(self) -> None:
        """Take it back: the request was refused before the fault could have its effect."""
        self.planned.seen -= 1
        self.planned.fired -= 1


Ready = Callable[[Fault], bool]


@attrs.define(eq=False)
class Faults:
    """The faults of one emulator, in the order in which they were planned.

    Each counts the requests that match it, also those that another one took. So `after` is the number of
    requests before it, whatever else is planned.
    """

    planned: list[Planned] = attrs.field(factory=list, init=False)

    def __bool__(self) -> bool:
        return bool(self.planned)

    def add(self, fault: Fault) -> None:
        """Plan a fault."""
        self.planned.append(Planned(fault))

    def clear(self) -> None:
        """Give up every fault, whether it has fired or not."""
        self.planned.clear()

    def take(
        self, arrival: Arrival, chance: random.Random, ready: Ready = lambda fault: True
    ) -> Firing | None:
        """The first fault that fires for this request, which has been read.

        Those that are not `ready` for its true answer do not count it.
        """
        firing = None
        for planned in self.planned:
            fault = planned.fault
            if fault.reset == "before" or not fault.matches(arrival) or not ready(fault):
                continue
            turn = planned.turn(arrival.at)
            planned.seen += 1
            if firing is None and turn and fault.refuse is None:
                firing = _fire(planned, arrival, chance)
        return firing

    def take_unread(self, arrival: Arrival, chance: random.Random) -> Firing | None:
        """The first reset that fires for this request, whose body is not read.

        It waits for its turn behind every earlier fault that certainly fires.
        """
        firing, blocked = None, False
        for planned in self.planned:
            fault = planned.fault
            if not fault.matches(arrival):
                continue
            turn = planned.turn(arrival.at)
            if fault.reset != "before":
                certain = fault.probability == 1 and fault.by is None and fault.refuse is None
                blocked = blocked or (turn and certain)
                continue
            planned.seen += 1
            if firing is None and turn and not blocked:
                firing = _fire(planned, arrival, chance)
        return firing

    def refusal(self) -> float | None:
        """For how many seconds connections are refused from now on, if a fault says so."""
        due = [planned for planned in self.planned if planned.fault.refuse and planned.turn(0.0)]
        for planned in due:
            planned.fired += 1
        return max((planned.fault.refuse or 0.0 for planned in due), default=None)

    def unused(self) -> list[str]:
        """A sentence for each fault that has not fired as planned."""
        return [complaint for planned in self.planned if (complaint := planned.complaint)]


def _fire(planned: Planned, arrival: Arrival, chance: random.Random) -> Firing | None:
    """Let a fault fire whose turn it is, unless chance or its function is against it."""
    if planned.fault.probability < 1 and chance.random() >= planned.fault.probability:
        return None
    try:
        effect = planned.fault.effect_on(arrival)
    except Exception as error:
        planned.error = f"{type(error).__name__}: {error}"
        raise
    if effect is None:
        return None
    planned.fired += 1
    planned.first = arrival.at if planned.first is None else planned.first
    return Firing(planned, effect)
