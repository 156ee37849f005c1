"""What OpenTelemetry's SDK has recorded, in memory: spans as values, which other processes can send, and as a
tree."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import kie4o.otel
from kie4o import AsyncKieClient


@attrs.frozen(kw_only=True)
class Seen:
    """A span that has ended. Ids are numbers."""

    name: str
    trace: int
    id: int
    parent: int | None
    start: int
    attributes: dict[str, Any]
    events: list[str]
    details: list[dict[str, Any]]  # the attributes of each event
    links: list[int]
    status: str
    process: str = ""

    @property
    def error(self) -> Any:
        assert (self.status == "ERROR") is ("error.type" in self.attributes)
        return self.attributes.get("error.type")


def seen(span: ReadableSpan, process: str = "") -> Seen:
    assert span.start_time is not None
    return Seen(
        name=span.name,
        trace=span.context.trace_id,
        id=span.context.span_id,
        parent=None if span.parent is None else span.parent.span_id,
        start=span.start_time,
        attributes=dict(span.attributes or {}),
        events=[event.name for event in span.events],
        details=[dict(event.attributes or {}) for event in span.events],
        links=[link.context.span_id for link in span.links],
        status=span.status.status_code.name,
        process=process,
    )


class _Open(SpanProcessor):
    """Counts the spans that have not ended."""

    count = 0

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.count += 1

    def on_end(self, span: ReadableSpan) -> None:
        self.count -= 1


class Recorder:
    """Providers that keep everything in memory."""

    def __init__(self, process: str = "") -> None:
        self._process = process
        self._open = _Open()
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(self._open)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)

    def instrument(self, client: AsyncKieClient) -> AsyncKieClient:
        kie4o.otel.instrument(client, tracer_provider=self.tracers, meter_provider=self.meters)
        return client

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """A span of the application."""
        with self.tracers.get_tracer("application").start_as_current_span(name):
            yield

    @property
    def open(self) -> int:
        """How many spans have not ended."""
        return self._open.count

    def spans(self, name: str = "") -> list[Seen]:
        """Those that have ended, the earliest first."""
        found = [seen(span, self._process) for span in self._exporter.get_finished_spans()]
        return sorted((span for span in found if name in ("", span.name)), key=lambda span: span.start)

    def the(self, name: str) -> Seen:
        [span] = self.spans(name)
        return span

    def metrics(self) -> dict[str, Any]:
        """The value of each metric by its name and attributes; of a histogram its count and sum."""
        data = self._reader.get_metrics_data()
        found: dict[str, Any] = {}
        for resource in () if data is None else data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        words = ",".join(str(value) for _, value in sorted((point.attributes or {}).items()))
                        value: Any = getattr(point, "value", None)
                        if value is None:
                            value = point.count, point.sum  # type: ignore[union-attr]  # a histogram
                        found[f"{metric.name}[{words}]" if words else metric.name] = value
        return found


def tree(spans: Iterable[Seen], shown: Sequence[str] = ()) -> str:
    """The spans as text, each below its parent, with the events of these names."""
    everything = sorted(spans, key=lambda span: span.start)
    name_of = {span.id: span.name for span in everything}
    lines: list[str] = []

    def add(span: Seen, first: str, rest: str) -> None:
        error = [] if span.error is None else [f"error: {span.error}"]
        links = [f"linked to {name_of[link]}" for link in span.links]
        events = [name for name in dict.fromkeys(span.events) if name in shown]
        notes = ", ".join([*error, *events, *links])
        lines.append(f"{first + span.name:<22}{span.process:<11}{notes}".rstrip())
        below = [each for each in everything if each.parent == span.id]
        for child in below:
            last = child is below[-1]
            add(child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))

    for span in everything:
        if span.parent not in name_of:
            add(span, "", "")
    return "\n".join(lines) + "\n"
