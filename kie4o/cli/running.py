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
from typing import Any

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
    except (KeyboardInterrupt, asyncio.CancelledError):
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
    if sys.platform != "win32" and _ignores_ctrl_c():  # shells of Windows start no such job
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _Stop(asyncio.current_task()))
    return await command()


class _Stop:
    """Cancels a task when it is first called, and stops at once the second time, as asyncio does at Ctrl-C.

    An exception that a signal handler raises may end any callback of the loop instead of the command.
    """

    def __init__(self, task: asyncio.Task[Any] | None) -> None:
        self._task = task

    def __call__(self) -> None:
        task, self._task = self._task, None
        if task is None:
            raise KeyboardInterrupt
        task.cancel()


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
    if _ignores_ctrl_c():  # before the event loop runs
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


def _ignores_ctrl_c() -> bool:
    """As a background job of a script does."""
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN
