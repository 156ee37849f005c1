"""When to look at a task by a fixed rule: exponential back-off.

Pure arithmetic without clock, randomness or network: a random number from 0 to 1 is passed in as
`chance`. Ages and delays are seconds.
"""

from __future__ import annotations

from types import NoneType

import attrs
import backoff

from ..errors import invalid_setting

GAP = 0.34  # between two looks at one task: Kie's record-info page allows 3 queries per second per task
# The first looks while a callback is expected, if it does not arrive. Kie's callbacks page advises to
# check every 30 s; most tasks have finished within a minute.
SAFETY_NET = (60.0, 30.0)
_JITTER = 0.1  # share of the delay, both ways, so that tasks submitted together spread out
_HIGHEST = 1e9  # of any setting
_HIGHEST_PRICE = 3600.0
_DELAYS = 64  # computed in advance; the last one is repeated


class DefaultLimit(float):
    """A limit that nobody chose, so that it need not hold on loopback. Also after a copy or a pickle."""

    __slots__ = ()


_LOOKS_PER_SECOND = DefaultLimit(100.0)  # the account admits 2 new tasks per second


@attrs.frozen(kw_only=True)
class PollPolicy:
    """When to poll a task: by exponential back-off, or learned from earlier tasks (see `adaptive`).

    Two status checks of one task are never closer than 0.34 s, because Kie's record-info page allows
    3 queries per second per task.

    Args:
        first: Seconds from the submit to the first status check; at least 0.34.
        factor: Each delay is this many times the one before; at least 1.
        maximum: The longest delay, in seconds; at least 0.34.
        jitter: Whether each delay is made up to a tenth shorter or longer, at random.
        looks_per_second: The most status checks per second over all tasks together; None for no limit.
            Kie names no such limit, but ten thousand tasks that are waited for again, after a restart or
            an outage, would otherwise all be polled at once. At the pace at which an account may submit,
            2 tasks per second, the default is not reached. On loopback only a limit that you pass holds.
            Tasks that have to wait for their turn get it in the order in which they became due.
        price: The seconds of delay in seeing a result that one status check is worth, up to 3600. If
            it is set, delays are learned from finished tasks; None uses plain back-off.

    Raises:
        ConfigurationError: A value is not a number or is out of range.
    """

    first: float = 2.0
    factor: float = 1.5
    maximum: float = 5.0
    jitter: bool = True
    looks_per_second: float | None = _LOOKS_PER_SECOND
    price: float | None = None
    _delays: tuple[float, ...] = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        per_second = self.looks_per_second
        if isinstance(per_second, (DefaultLimit, NoneType)):
            per_second = 1.0
        for name, value, least in (
            ("first", self.first, GAP),
            ("factor", self.factor, 1.0),
            ("maximum", self.maximum, GAP),
            ("looks_per_second", per_second, 0.01),
        ):
            if type(value) not in (int, float) or not least <= value <= _HIGHEST:
                none = ", or None for no limit" if name == "looks_per_second" else ""
                expected = f"a number from {least} to {_HIGHEST:,.0f}{none}"
                raise invalid_setting(f"PollPolicy.{name}", value, expected)
        price = self.price
        if price is not None and (type(price) not in (int, float) or not 0 < price <= _HIGHEST_PRICE):
            expected = f"a number of seconds above 0, at most {_HIGHEST_PRICE:g}"
            raise invalid_setting("PollPolicy.price", price, expected)
        object.__setattr__(self, "_delays", self._back_off())

    @classmethod
    def adaptive(
        cls,
        *,
        price: float = 0.5,
        first: float = 2.0,
        factor: float = 1.5,
        maximum: float = 5.0,
        jitter: bool = True,
        looks_per_second: float | None = _LOOKS_PER_SECOND,
    ) -> PollPolicy:
        """A policy that learns from finished tasks when to poll.

        It minimises the total of status checks, at `price` seconds each, and of the seconds by which
        results are seen late. The first status check is never before `first`. For a task that takes
        longer than all before it, delays grow by `factor` from `maximum` to three times that, or to a
        tenth of the task's age. The other arguments are those of `PollPolicy`.
        """
        return cls(
            first=first,
            factor=factor,
            maximum=maximum,
            jitter=jitter,
            looks_per_second=looks_per_second,
            price=price,
        )

    def delay(self, looks: int, chance: float = 0.5, *, safety_net: bool = False) -> float:
        """Seconds until the next look.

        Args:
            looks: How many looks there have been at this task.
            chance: A random number from 0 to 1 that picks the jitter.
            safety_net: A callback is expected, and looks are only needed if it does not arrive.
        """
        delays = SAFETY_NET if safety_net else self._delays
        delay = delays[min(looks, len(delays) - 1)]
        if self.jitter:
            delay *= 1 + _JITTER * (2 * chance - 1)
        return max(delay, GAP)

    def _back_off(self) -> tuple[float, ...]:
        generator = backoff.expo(base=self.factor, factor=self.first, max_value=self.maximum)
        next(generator)  # the first value of backoff's generators is None
        delays = [next(generator)]
        while len(delays) < _DELAYS and delays[-1] < self.maximum:
            delays.append(next(generator))
        return tuple(delays)
