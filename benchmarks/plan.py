"""What a run of the suite measures, and the steps that it consists of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from .clients import OURS, TUNED
from .processes import Server


@attrs.frozen
class Plan:
    """What to measure, and how much."""

    quick: bool
    server: Server
    clients: Sequence[str]
    only: Sequence[str]
    skipped: dict[str, str]

    @property
    def base(self) -> str:
        return self.server.http

    def has(self, name: str) -> bool:
        return name in self.clients and name not in self.skipped

    def peers(self) -> list[str]:
        return [name for name in self.clients if name not in (*OURS, TUNED) and name not in self.skipped]

    def ours(self) -> list[str]:
        return [name for name in OURS if self.has(name)]


@attrs.frozen
class Step:
    """`owner` is the client that is responsible for a failure; `seconds` estimates the duration."""

    name: str
    owner: str
    seconds: float
    run: Callable[[], None]
