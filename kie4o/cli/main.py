"""The program `kie4o`: parses the arguments, runs a command, and returns an exit status.

Every failure is one line on stderr. The exit status is 1 for an error, 2 for wrong usage and 130 after
Ctrl-C. cyclopts and rich are optional and imported late, so that a missing one is such a line too.
"""

from __future__ import annotations

import asyncio
import io
import logging
import re
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from ..errors import InsufficientCreditsError, KieError, RateLimitError, TaskTimeoutError
from ..version import __version__
from . import commands
from .board import note
from .demo import demo
from .serving import emulator

_ABOUT = "Images from Kie.ai's GPT-4o image API. Settings: KIE_API_KEY, KIE_BASE_URL, KIE_UPLOAD_URL."

# Errors begin with the argument they are about; here that is an option of the command line.
_OPTIONS = {"files_url": "--file", "mask_url": "--mask", "source": "--file", "wait_timeout": "--timeout"}
_ARGUMENT = re.compile(r"^(invalid )?(\w+)(?=[=[])")


def message_of(error: Exception) -> str:
    """What an error says, in terms of the command line."""
    if isinstance(error, TaskTimeoutError):
        return f"timed out waiting for task {error.task_id}; to resume: kie4o wait {error.task_id}"
    if isinstance(error, InsufficientCreditsError):
        error.remedy = "Top up at kie.ai; kie4o credits prints the balance."
    if isinstance(error, RateLimitError):
        error.remedy = "Something else uses this account too; try again later."
    return _ARGUMENT.sub(lambda match: (match[1] or "") + _OPTIONS.get(match[2], match[2]), str(error))


def _run(arguments: Sequence[str]) -> int:
    """Run the command that the arguments name, and return the exit status."""
    try:
        from cyclopts import App, CycloptsError, Parameter  # imports rich
    except ImportError as error:
        note(f"the command line needs {error.name}; in a checkout of kie4o, run: pip install '.[cli]'")
        return 1
    app = App("kie4o", version=__version__, help=_ABOUT, default_parameter=Parameter(negative=()))
    for command in (demo, commands.generate, commands.wait, commands.credits):
        app.command(command)
    app.command(emulator, name="emulator")
    try:
        command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
        result = command(*bound.args, **bound.kwargs)
        if asyncio.iscoroutine(result):  # --help and --version are plain functions
            asyncio.run(result)
        sys.stdout.flush()  # here, so that a failure to write is a message too
        return 0
    except CycloptsError as error:
        note(str(error))
        return 2
    except (KieError, OSError) as error:
        note(message_of(error))
        return 1
    except KeyboardInterrupt:
        note("interrupted")
        return 130


def main() -> NoReturn:
    """Run the program and exit."""
    logging.getLogger("kie4o").addHandler(logging.NullHandler())  # the messages here say what matters
    warnings.simplefilter("once", UserWarning)
    warnings.formatwarning = lambda message, *_, **__: f"kie4o: {message}\n"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals that lack a character
    sys.exit(_run(sys.argv[1:]))
