"""What requests cost: credits by how many images they ask for, and what has been spent. Pure.

Kie has published one rate, for one image. What 2 and 4 images cost is not known, so prices are a setting.
Amounts are decimals, added without loss, and rounded up where that is impossible: a limit is never passed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from decimal import ROUND_UP, Context, Decimal
from types import MappingProxyType

import attrs

from .errors import InvalidRequestError, KieError
from .plain import plain

Credits = int | float | Decimal
Prices = int | float | Decimal | Mapping[int, int | float | Decimal]
"""Credits for one image, or a mapping from the number of images of a request to its credits."""

ZERO = Decimal(0)
PER_IMAGE = Decimal(6)  # 0.03 USD, the only published rate (notes on Kie's pricing page, November 2026)
VARIANTS = (1, 2, 4)  # the numbers of images that a request may ask for (generate page)
_MOST = 10**9  # credits; no limit of Kie's, but what larger numbers are is a mistake
_ADDING = Context(prec=60, rounding=ROUND_UP)
_EXPECTED = "credits for one image, or a mapping such as {1: 6, 2: 12, 4: 24}"
_AMOUNT = f"a number of credits from 0 to {_MOST:,}"


@attrs.frozen
class PriceList:
    """Checked prices: a rate for any number of images, or a price for each number."""

    per_image: Decimal | None = PER_IMAGE
    by_variants: Mapping[int, Decimal] = MappingProxyType({})

    def find(self, images: object) -> Decimal | None:
        """The price of a request for so many images, or None if it is not known."""
        if type(images) is not int or images < 1:
            return None
        if self.per_image is None:
            return self.by_variants.get(images)
        # One object for all requests for one image: a decimal of its own takes 104 bytes of each entry.
        return self.per_image if images == 1 else times(self.per_image, images)

    def price(self, images: object) -> Decimal:
        """The same; raises `InvalidRequestError` if it is not known."""
        price = self.find(images)
        if price is None:
            raise InvalidRequestError(f"no price is known for {images!r:.40} variants: pass it in prices=")
        return price


PUBLISHED = PriceList()


def price_list(prices: Prices | None, fail: Callable[[str, object, str], KieError]) -> PriceList:
    """Checked prices; None is the published rate. `fail` makes the error of an argument or a setting."""
    if prices is None:
        return PUBLISHED
    if not isinstance(prices, Mapping):
        return PriceList(amount("prices", prices, lambda name, value, _: fail(name, value, _EXPECTED)))
    by_variants: dict[int, Decimal] = {}
    for variants, price in prices.items():
        number = plain(variants)
        if type(number) is not int or not 1 <= number <= _MOST:
            raise fail("prices", prices, "numbers of images as keys, such as 1, 2 and 4")
        by_variants[number] = amount(f"prices[{number}]", price, fail)
    missing = [str(number) for number in VARIANTS if number not in by_variants]
    if missing:
        raise fail("prices", prices, f"{_EXPECTED}; the price of {' and '.join(missing)} variants is missing")
    return PriceList(None, MappingProxyType(by_variants))


def amount(name: str, value: object, fail: Callable[[str, object, str], KieError]) -> Decimal:
    """A number of credits as it was written: 0.1 is a tenth."""
    number = plain(value)
    if isinstance(number, float):
        number = Decimal(float.__repr__(number))
    elif type(number) is int:
        number = Decimal(number)
    if isinstance(number, Decimal) and number.is_finite() and 0 <= number <= _MOST:
        return number.copy_abs()  # without the sign of -0
    raise fail(name, value, _AMOUNT)


def times(price: Decimal, count: int) -> Decimal:
    """The price of so many."""
    return _ADDING.multiply(price, count)


def total(amounts: Iterable[Decimal]) -> Decimal:
    """The sum, whatever precision the caller's decimal context has."""
    return functools.reduce(_ADDING.add, amounts, ZERO)


@attrs.frozen(kw_only=True)
class Subtotal:
    """The tasks in one state: how many there are, and their price in credits."""

    credits: Decimal = ZERO
    tasks: int = 0


@attrs.frozen(kw_only=True)
class Spent:
    """What the submits of a store have cost, or may have cost, by their prices when they were submitted.

    It counts every task that was accepted, also those that nobody waits for any more. What was refused or
    not sent is not in it. Each attribute but the last has `credits` and `tasks`.

    Attributes:
        submitted: Tasks that have not finished, as far as the store knows.
        succeeded: Tasks that have succeeded.
        failed: Tasks that have failed. Whether Kie charges for them is not certain: see kie.ai/logs.
        unknown: Submits whose outcome is unknown, until `settle` says otherwise; also those that are being
            sent at this moment.
        unpriced: How many of all these have no known price, and are missing in the credits.
    """

    submitted: Subtotal = Subtotal()
    succeeded: Subtotal = Subtotal()
    failed: Subtotal = Subtotal()
    unknown: Subtotal = Subtotal()
    unpriced: int = 0

    @property
    def credits(self) -> Decimal:
        """All credits."""
        return total(part.credits for part in self._parts)

    @property
    def tasks(self) -> int:
        """All tasks, and submits that may have become one."""
        return sum(part.tasks for part in self._parts)

    @property
    def _parts(self) -> tuple[Subtotal, ...]:
        return (self.submitted, self.succeeded, self.failed, self.unknown)
