"""Whether sweeps have their whole size, and how many positions a test has tried, for the report of
`nox -s proof`.

A position is one place at which something was made to happen: a kill, a fault, a cancel, a cut, a state of a
model, a simulated world.
"""

from __future__ import annotations

import os

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
_counts: list[int] = [0]


def tried(number: int = 1) -> None:
    """Count positions of the test that runs."""
    _counts[0] += number


def taken() -> int:
    """How many there were since the last call."""
    number, _counts[0] = _counts[0], 0
    return number
