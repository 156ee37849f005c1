"""An emulator of Kie on localhost, for tests and for trying things without paying.

It imports nothing else of kie4o. It follows the recorded answers of the service rather than our parser, so
that each can be checked against the other.
"""

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
