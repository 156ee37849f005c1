"""One event per exchange: method, path or host, status, seconds.

Never a body, a header, or a query but that of a status check, which is a task id.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from ..events import Exchanged
from ..events.reporter import Reporter
from .failures import failure_of


def start_of_exchange() -> float:
    """The loop time now. Only an exchange that will be reported needs it."""
    return asyncio.get_running_loop().time()


def report_exchange(reporter: Reporter, started: float, method: str, where: str, outcome: int | str) -> None:
    """`outcome` is the HTTP status, or why there is none."""
    took = asyncio.get_running_loop().time() - started
    reporter(Exchanged(method=method, where=where, outcome=outcome, seconds=took))


def reporting_hosts(reporter: Reporter) -> aiohttp.TraceConfig:
    """For a session whose URLs are not shown: events have the host only, as soon as there is a status."""

    async def start(session: aiohttp.ClientSession, context: Any, request: Any) -> None:
        context.started = start_of_exchange() if Exchanged in reporter.wanted else None

    async def end(session: aiohttp.ClientSession, context: Any, request: Any) -> None:
        if context.started is not None:
            host, status = str(request.url.host), request.response.status
            report_exchange(reporter, context.started, request.method, host, status)

    async def fail(session: aiohttp.ClientSession, context: Any, request: Any) -> None:
        if context.started is not None:
            known = isinstance(request.exception, Exception)
            outcome = failure_of(request.exception).reason if known else "cancelled"
            report_exchange(reporter, context.started, request.method, str(request.url.host), outcome)

    traces = aiohttp.TraceConfig()
    traces.on_request_start.append(start)
    traces.on_request_end.append(end)
    traces.on_request_exception.append(fail)
    return traces
