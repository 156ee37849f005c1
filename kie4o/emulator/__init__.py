"""A Kie on localhost, for tests and for trying things without paying.

It imports nothing else of kie4o: it answers to the recorded answers of the service, not to our parser,
so that the two can be held against each other.
"""

from .callbacks import Call, CallRecord
from .server import Emulator
from .tasks import Answer, Outcome

__all__ = ["Answer", "Call", "CallRecord", "Emulator", "Outcome"]
