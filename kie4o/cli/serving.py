"""`kie4o emulator`: serves an emulator of Kie to programs in any language, as `python -m kie4o.emulator`."""

from __future__ import annotations

import functools
import re
from typing import Any

from ..emulator.program import serve
from .terminal import UsageError

_ARGUMENT = re.compile(r"^(invalid )?'?(\w+)'?(?=[= ])")  # what an error of the emulator begins with


@functools.wraps(serve)
async def emulator(**options: Any) -> None:
    """Serve with these options. One that cannot be used is one line, and wrong usage."""
    try:
        await serve(**options)
    except ValueError as error:
        raise UsageError(_ARGUMENT.sub(r"\1--\2", str(error))) from None
