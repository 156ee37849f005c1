"""Every effect and every variant of a fault, with the options that a test of it needs.

A new row of the emulator's tables has to be added here, and the tests that walk through these cases then ask
for what is seen of it on the wire and through the client.
"""

from __future__ import annotations

from typing import Any

from kie4o.emulator.effects import EFFECTS
from kie4o.emulator.variants import FRAMINGS, IMAGES, PAGES, RECORDS

VARIANTS: dict[str, dict[str, Any]] = {"page": PAGES, "record": RECORDS, "image": IMAGES, "framing": FRAMINGS}


def rows() -> set[str]:
    """The names of all effects, such as "cut", and of all variants, such as "page=empty"."""
    plain = EFFECTS.keys() - VARIANTS.keys()
    return plain | {f"{effect}={name}" for effect, table in VARIANTS.items() for name in table}


def row_of(options: dict[str, Any]) -> str:
    """Which row a case is about: the first of its options."""
    effect, value = next(iter(options.items()))
    return f"{effect}={value}" if effect in VARIANTS else effect
