"""What a batch may spend: a request reserves its price before it can be sent.

A reservation is kept once the request was charged or may have been, and given back if it certainly was not.
A request that does not fit waits for what may still be given back, and so do all behind it. Once it can no
longer fit, the limit is reached, and nothing more is reserved.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from decimal import Decimal
from types import TracebackType

from ..errors import CreditLimitError, KieError
from ..image_request import ImageRequest, images_asked
from ..pricing import ZERO, PriceList, total

logger: logging.Logger = logging.getLogger("kie4o")


class Stopped(KieError):
    """Raised for an item of a batch that submits nothing more; callers never see it."""


class Budget:
    """The credits of one batch; without a limit there is always room."""

    def __init__(self, limit: Decimal | None, prices: PriceList) -> None:
        self._limit = limit
        self._prices = prices
        self._spent = ZERO  # charged, or perhaps
        self._open = ZERO  # reserved by submits without an outcome
        self._waiting: deque[tuple[Decimal, asyncio.Future[None]]] = deque()
        self._too_much: Decimal | None = None  # the price of the first request that did not fit

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self._limit is not None

    @property
    def waiting(self) -> bool:
        """Whether requests wait for what may be given back."""
        return bool(self._waiting)

    @property
    def reached(self) -> bool:
        """Whether a request did not fit."""
        return self._too_much is not None

    def error(self) -> CreditLimitError | None:
        """What to raise once everything in flight is over; None if the limit was not reached."""
        if self._limit is None or self._too_much is None:
            return None
        error = CreditLimitError(
            f"max_credits={self._limit:f} is reached: this run has submitted requests for {self._spent:f} "
            f"credits, and the next one costs {self._too_much:f}. Run the same batch again to continue, with "
            "a higher max_credits if one run is to do more"
        )
        error.spent, error.limit, error.price = self._spent, self._limit, self._too_much
        return error

    async def reserve(self, request: ImageRequest) -> Reservation:
        """Wait until the request fits, in order. Raises `Stopped` if the limit is reached before."""
        if self._limit is None:
            return self.nothing()
        price = self._prices.price(images_asked(request))
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((price, granted))
        self._grant()
        await granted  # cancelled only with the whole batch, so that what was reserved is of no interest
        return Reservation(self, price)

    def nothing(self) -> Reservation:
        """The reservation of a request that costs nothing, since it is paid already."""
        return Reservation(self, ZERO)

    def settle(self, price: Decimal, *, charged: bool) -> None:
        """The outcome of the submit of a reservation is known."""
        self._open = total((self._open, price.copy_negate()))
        if charged:
            self._spent = total((self._spent, price))
        self._grant()

    def _grant(self) -> None:
        """Look at those that wait, in order. Three cases:

        1. It fits.
        2. It may fit if what is reserved is given back: it waits, and those behind it.
        3. It cannot fit: neither it nor anything behind it is submitted.
        """
        while self._waiting:
            price, granted = self._waiting[0]
            if not self.reached and self._fits(self._spent, self._open, price):
                self._open = total((self._open, price))
                if not granted.done():
                    granted.set_result(None)
            elif not self.reached and self._fits(self._spent, price):
                return
            else:
                self._reach(price)
                if not granted.done():
                    granted.set_exception(Stopped("max_credits is reached"))
            self._waiting.popleft()

    def _reach(self, price: Decimal) -> None:
        if not self.reached:
            self._too_much = price
            logger.info("a batch submits nothing more: %s", "max_credits is reached")

    def _fits(self, *amounts: Decimal) -> bool:
        return self._limit is None or total(amounts) <= self._limit


class Reservation:
    """The price of one request: `with await budget.reserve(request) as reservation:`.

    An error that leaves the block without a task id shows that nothing was charged. Whatever else interrupts
    it, the request may have been.
    """

    __slots__ = ("_budget", "_price", "_settled")

    def __init__(self, budget: Budget, price: Decimal) -> None:
        self._budget = budget
        self._price = price
        self._settled = False

    def settle(self, *, charged: bool) -> None:
        """The first call counts."""
        if not self._settled:
            self._settled = True
            self._budget.settle(self._price, charged=charged)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        unpaid = isinstance(error, KieError) and error.task_id is None
        self.settle(charged=not unpaid)
