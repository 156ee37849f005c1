"""`kie4o credits` and `spent`: what is left, and what was spent."""

from __future__ import annotations

from .clients import opened
from .parameters import OUTPUT, Output


async def credits(*, terminal: Output = OUTPUT) -> None:  # noqa: A001  # the name of the command
    """Print the balance of the account of KIE_API_KEY."""
    async with opened(terminal) as client:
        balance = await client.credits()
    terminal.show(f"{balance}", credits=float(balance))
