"""`kie4o emulator`: serves an emulator of Kie to programs in any language, as `python -m kie4o.emulator`."""

from __future__ import annotations

import functools
from typing import Any

from ..emulator.program import in_words_of_options, serve
from .terminal import UsageError


@functools.wraps(serve)
async def emulator(**options: Any) -> None:
    """Serve with these options. One that cannot be used is one line, and wrong usage."""
    try:
        await serve(**options)
    except ValueError as error:
        raise UsageError(in_words_of_options(error)) from None
