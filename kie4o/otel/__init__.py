"""Traces and metrics for OpenTelemetry: `kie4o.otel.instrument(client)`.

It needs opentelemetry-api, which the extra `otel` brings; the SDK and its exporters are the application's.
Spans and metrics are made from `kie4o.events`. docs/operating.md lists them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

try:
    from opentelemetry import metrics, trace
except ImportError as _error:
    _message = "kie4o.otel needs opentelemetry-api; in a checkout of kie4o, run: pip install '.[otel]'"
    raise ImportError(_message) from _error

from ..version import __version__
from .meters import Meters
from .names import SCHEMA, SCOPE
from .spans import Spans

if TYPE_CHECKING:
    from ..client import AsyncKieClient

__all__ = ["instrument"]


def instrument(
    client: AsyncKieClient,
    *,
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: metrics.MeterProvider | None = None,
) -> None:
    """Make spans and metrics of what a client does, from now on, also after it is closed and opened again.

    Call it before the first call of the client. A second call for the same client changes nothing. The store
    keeps in which trace a request was submitted, so that what another process does with it belongs there.

    Args:
        client: The client.
        tracer_provider: Where spans go; the default is the global one.
        meter_provider: The same for metrics.
    """
    tracer = trace.get_tracer(SCOPE, __version__, tracer_provider, SCHEMA)
    spans, meters = Spans(tracer), Meters.of(meter_provider or metrics.get_meter_provider())
    if client._options.reporter.add((spans, spans.kinds), (meters, meters.kinds), tracing=spans):
        meters.watch(client)
