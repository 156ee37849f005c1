"""One line at DEBUG per exchange on the logger `kie4o`: method, path or host, status, milliseconds.

Never a body, a header, or a query but that of a status check, which is a task id.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiohttp

from .failures import failure_of

logger: logging.Logger = logging.getLogger("kie4o")


def start_of_exchange() -> float | None:
    """The loop time at which an exchange begins; None if no line will be written."""
    return asyncio.get_running_loop().time() if logger.isEnabledFor(logging.DEBUG) else None


def log_exchange(started: float | None, method: str, where: str, outcome: object) -> None:
    """Write the line; `outcome` is the HTTP status, or why there is none."""
    if started is not None:
        took = asyncio.get_running_loop().time() - started
        logger.debug("%s %s: %s in %.0f ms", method, where, outcome, 1000 * took)


def logging_hosts() -> aiohttp.TraceConfig:
    """For a session whose URLs are not shown: its lines have the host only, as soon as there is a status."""

    async def start(session: aiohttp.ClientSession, context: Any, request: Any) -> None:
        context.started = start_of_exchange()

    async def end(session: aiohttp.ClientSession, context: Any, request: Any) -> None:
        log_exchange(context.started, request.method, str(request.url.host), request.response.status)

    async def fail(session: aiohttp.ClientSession, context: Any, request: Any) -> None:
        known = isinstance(request.exception, Exception)
        outcome = failure_of(request.exception).reason if known else "cancelled"
        log_exchange(context.started, request.method, str(request.url.host), outcome)

    traces = aiohttp.TraceConfig()
    traces.on_request_start.append(start)
    traces.on_request_end.append(end)
    traces.on_request_exception.append(fail)
    return traces
