"""An emulator of Kie on localhost, for tests and for trying things without paying.

It imports nothing else of kie4o. It follows the recorded answers of the service rather than our parser, so
that each can be checked against the other.
"""

from .callbacks import Call, CallRecord
from .clock import HangError, VirtualTime
from .server import Emulator
from .tasks import Answer, Outcome

__all__ = ["Answer", "Call", "CallRecord", "Emulator", "HangError", "Outcome", "VirtualTime"]
