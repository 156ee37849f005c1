"""When to look at a task: the arithmetic of polling, without clock, chance or network.

Ages and pauses are seconds; chance is handed in as a number from 0 to 1.
"""

from __future__ import annotations

import attrs
import backoff

from ..errors import ConfigurationError

GAP = 0.34  # seconds between two looks at one task: Kie allows 3 per second
NET = (60.0, 30.0)  # seconds: Kie's callback page advises 30; most tasks have ended within a minute
_JITTER = 0.1  # of the pause, both ways, so that tasks submitted together spread out


@attrs.frozen(kw_only=True)
class PollPolicy:
    """When to look: exponential back-off, in seconds. Never closer than 0.34 s for one task.

    The first look comes `first` seconds after the submit; each pause is `factor` times the one
    before, up to `maximum`. `jitter` spreads each pause by a tenth. `looks_per_second` bounds the looks
    at all tasks together; those that wait for a turn get it in the order in which they came due.

    With a `price`, the seconds of lateness that one look is worth, looks are learned from when
    earlier tasks ended; see `adaptive`.
    """

    first: float = 2.0
    factor: float = 1.5
    maximum: float = 5.0
    jitter: bool = True
    looks_per_second: float = 100.0
    price: float | None = None
    _pauses: tuple[float, ...] = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        for name, value, least in (
            ("first", self.first, GAP),
            ("factor", self.factor, 1.0),
            ("maximum", self.maximum, GAP),
            ("looks_per_second", self.looks_per_second, 0.01),
        ):
            if type(value) not in (int, float) or not least <= value <= 1e9:
                raise ConfigurationError(f"PollPolicy({name}={value!r}): use a number from {least} on")
        if self.price is not None and (type(self.price) not in (int, float) or not 0 < self.price <= 3600):
            raise ConfigurationError(f"PollPolicy(price={self.price!r}): use a number of seconds up to 3600")
        generator = backoff.expo(base=self.factor, factor=self.first, max_value=self.maximum)
        next(generator)  # backoff's first one is None
        pauses = [next(generator)]
        while len(pauses) < 64 and pauses[-1] < self.maximum:
            pauses.append(next(generator))
        object.__setattr__(self, "_pauses", tuple(pauses))

    @classmethod
    def adaptive(
        cls,
        *,
        price: float = 0.5,
        first: float = 2.0,
        factor: float = 1.5,
        maximum: float = 5.0,
        jitter: bool = True,
        looks_per_second: float = 100.0,
    ) -> PollPolicy:
        """Looks learned from when earlier tasks ended, so that lateness and looks together cost least.

        `price` is what one look is worth in seconds of lateness. No first look comes before `first`;
        for tasks slower than all before, pauses grow by `factor` from `maximum` to three times that,
        or a tenth of the age.
        """
        return cls(
            first=first,
            factor=factor,
            maximum=maximum,
            jitter=jitter,
            looks_per_second=looks_per_second,
            price=price,
        )

    def delay(self, looks: int, chance: float = 0.5, *, net: bool = False) -> float:
        """Seconds before the next look, after so many; `chance` from 0 to 1 picks the jitter.

        `net`: a callback is expected, and looks are only the safety net under it.
        """
        pauses = NET if net else self._pauses
        delay = pauses[min(looks, len(pauses) - 1)]
        if self.jitter:
            delay *= 1 - _JITTER + 2 * _JITTER * chance
        return max(delay, GAP)
