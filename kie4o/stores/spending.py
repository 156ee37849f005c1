"""What a store adds up for `spent`: its entries by state and price. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from ..pricing import ZERO, Spent, Subtotal, times, total
from .store import EntryState

Count = tuple[EntryState, Decimal | None, int]
"""A state, a price, and how many entries that are `charged`, or may be, have both."""

_STATES = (EntryState.SUBMITTED, EntryState.SUCCEEDED, EntryState.FAILED, EntryState.UNKNOWN)


def spent_of(counts: Iterable[Count]) -> Spent:
    """The sums. What is being sent at this moment may be charged."""
    prices: dict[EntryState, list[Decimal]] = {state: [] for state in _STATES}
    tasks: dict[EntryState, int] = dict.fromkeys(_STATES, 0)
    unpriced = 0
    for state, price, count in counts:
        state = EntryState.UNKNOWN if state is EntryState.INTENT else state
        tasks[state] += count
        prices[state].append(ZERO if price is None else times(price, count))
        unpriced += count if price is None else 0
    parts = {state.value: Subtotal(credits=total(prices[state]), tasks=tasks[state]) for state in _STATES}
    return Spent(**parts, unpriced=unpriced)
