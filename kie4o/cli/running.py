"""Runs one command: its errors become a line and an exit status.

Ctrl-C and SIGTERM cancel it once, so that what was sent is still answered; a second one stops at once. Either
way the commands are named that go on with what is paid.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import traceback
import warnings
from collections.abc import Awaitable, Callable

from ..errors import KieError
from .logs import LogLines
from .messages import in_our_words, message_of, status_of
from .terminal import Status, Terminal, UsageError

Command = Callable[[], Awaitable[int | None]]


def run_command(command: Command, terminal: Terminal) -> int:
    """Run a command to its end, and return the exit status."""
    _listen(terminal)
    try:
        status = asyncio.run(_awaited(command))
        sys.stdout.flush()  # here, so that a failure to write is a message too
        return Status.OK if status is None else status
    except (UsageError, KieError, OSError) as error:
        terminal.fail(message_of(error), error=type(error).__name__, task_id=getattr(error, "task_id", None))
        return status_of(error)
    except KeyboardInterrupt:
        lines = [*terminal.going_on()]
        for line in lines:
            terminal.error(line)
        terminal.fail("interrupted", error="KeyboardInterrupt", going_on=lines)
        return Status.INTERRUPTED
    except Exception as error:
        if terminal.verbose:
            traceback.print_exc()
        message = f"this is a bug of kie4o: {type(error).__name__}: {error}; --verbose shows where"
        terminal.fail(message, error=type(error).__name__)
        return Status.ERROR


async def _awaited(command: Command) -> int | None:
    return await command()


def _listen(terminal: Terminal) -> None:
    """Show the log and the warnings of kie4o; let SIGTERM stop the command as Ctrl-C does."""
    log = logging.getLogger("kie4o")
    log.addHandler(LogLines(terminal) if terminal.verbose else logging.NullHandler())
    log.propagate = False
    if terminal.verbose:
        log.setLevel(logging.DEBUG)
    warnings.simplefilter("once", UserWarning)
    warnings.showwarning = lambda message, *_, **__: terminal.note(in_our_words(str(message)))
    signal.signal(signal.SIGTERM, _terminated)


def _terminated(*_: object) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a background job of a script
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)
