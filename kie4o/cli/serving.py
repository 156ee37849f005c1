"""`kie4o emulator`: serves an emulator of Kie to programs in any language, as `python -m kie4o.emulator`."""

from __future__ import annotations

import functools
import sys
from typing import Any

from ..emulator.program import serve
from .board import note


@functools.wraps(serve)
async def emulator(**options: Any) -> None:
    """Serve with these options. One that cannot be used is one line, and wrong usage."""
    try:
        await serve(**options)
    except ValueError as error:
        note(str(error))
        sys.exit(2)
