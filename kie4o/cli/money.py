"""`kie4o credits` and `spent`: what is left, and what was spent."""

from __future__ import annotations

from typing import Any

from .clients import existing_store, opened
from .parameters import CONNECTED, Connected, Store

_STATES = ("succeeded", "submitted", "unknown", "failed")


async def credits(*, terminal: Connected = CONNECTED) -> None:  # noqa: A001  # the name of the command
    """Print the balance of the account of KIE_API_KEY."""
    async with opened(terminal) as client:
        balance = await client.credits()
    terminal.show(f"{balance}", credits=float(balance))


async def spent(*, store: Store, terminal: Connected = CONNECTED) -> None:
    """Print what the requests in a store have cost, or may have cost, by state. Sends nothing."""
    async with opened(terminal, offline=True, store=existing_store(store)) as client:
        sums = await client.spent()
    rows = {state: getattr(sums, state) for state in _STATES} | {"total": sums}
    fields: dict[str, Any] = {
        state: {"tasks": row.tasks, "credits": float(row.credits)} for state, row in rows.items()
    }
    lines = [f"{state:<10} {row.tasks:>7} tasks {row.credits:>10} credits" for state, row in rows.items()]
    terminal.show("\n".join(lines), **fields, unpriced=sums.unpriced)
    if sums.unpriced:
        terminal.note(f"{sums.unpriced} of them have no known price, and are missing in the credits")
