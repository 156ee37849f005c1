"""The program: arguments in, an exit status out."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from ..errors import KieError
from ..version import __version__
from . import commands
from .board import note
from .demo import demo

_ABOUT = "Images by Kie.ai's GPT-4o image API. Settings: KIE_API_KEY, KIE_BASE_URL, KIE_UPLOAD_URL."


def _run(words: Sequence[str]) -> int:
    """Do what the words ask for; the exit status."""
    try:
        from cyclopts import App, CycloptsError, Parameter  # needs rich itself
    except ImportError as error:
        note(f"the command line needs {error.name}: pip install 'kie4o[cli]'")
        return 1
    app = App("kie4o", version=__version__, help=_ABOUT, default_parameter=Parameter(negative=()))
    for command in (demo, commands.generate, commands.wait, commands.credits):
        app.command(command)
    try:
        chosen, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
        outcome = chosen(*bound.args, **bound.kwargs)
        if asyncio.iscoroutine(outcome):
            asyncio.run(outcome)
        sys.stdout.flush()
        return 0
    except (CycloptsError, KieError, OSError) as error:
        note(str(error))
        return 2 if isinstance(error, CycloptsError) else 1
    except KeyboardInterrupt:
        note("interrupted")
        return 130


def main() -> NoReturn:
    logging.getLogger("kie4o").addHandler(logging.NullHandler())  # what matters is said here
    warnings.simplefilter("once", UserWarning)
    warnings.formatwarning = lambda message, *_, **__: f"kie4o: {message}\n"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter still shows the rest
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_run(sys.argv[1:]))
