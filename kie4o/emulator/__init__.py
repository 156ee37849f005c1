"""An emulator of Kie on localhost, for tests and for trying things without paying.

It imports nothing else of kie4o. It follows the recorded answers of the service rather than our parser, so
that each can be checked against the other. Its names are loaded on first use, so that the help of the
programs that serve it needs no aiohttp.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .account import Account
    from .callbacks import Call, CallRecord
    from .clock import HangError, VirtualTime
    from .faults import Arrival, Fault, parse_fault
    from .seen import Look, Submit
    from .server import Emulator, ThreadedEmulator
    from .tasks import Outcome

__all__ = [
    "Account",
    "Arrival",
    "Call",
    "CallRecord",
    "Emulator",
    "Fault",
    "HangError",
    "Look",
    "Outcome",
    "Submit",
    "ThreadedEmulator",
    "VirtualTime",
    "parse_fault",
]
_HOMES = {
    "Account": "account",
    "Call": "callbacks",
    "CallRecord": "callbacks",
    "HangError": "clock",
    "VirtualTime": "clock",
    "Arrival": "faults",
    "Fault": "faults",
    "parse_fault": "faults",
    "Look": "seen",
    "Submit": "seen",
    "Emulator": "server",
    "ThreadedEmulator": "server",
    "Outcome": "tasks",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return __all__
