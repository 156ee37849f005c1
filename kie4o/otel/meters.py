"""The hook that makes metrics, and the gauges that read the state of clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakSet

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from .. import events
from ..events import Event
from ..events.reporter import Kinds
from ..version import __version__
from .names import CALL, CODE, ERROR, OF_GENERATION, SCHEMA, SCOPE, STATE, VERDICT, WHAT

if TYPE_CHECKING:
    from ..client import AsyncKieClient

# Seconds. A task takes 15 s to 5 minutes; one may wait for hours for its turn.
_TASKS = (5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 900)
_WAITS = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)

_METERS: WeakKeyDictionary[MeterProvider, Meters] = WeakKeyDictionary()


class Meters:
    """The metrics of one provider, to which all clients add that use it."""

    kinds: Kinds = (
        events.Finished,
        events.Submitted,
        events.Refused,
        events.NotSent,
        events.Unknown,
        events.Waited,
        events.Paused,
        events.CallStarted,
        events.CallEnded,
    )

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter(SCOPE, __version__, SCHEMA)
        self._clients: WeakSet[AsyncKieClient] = WeakSet()
        self._tasks = meter.create_counter("kie4o.tasks", "{task}", "Tasks that have ended, by state.")
        self._seconds = meter.create_histogram(
            "kie4o.task.duration",
            "s",
            "From the submit of a task to its end.",
            explicit_bucket_boundaries_advisory=_TASKS,
        )
        self._operations = meter.create_histogram(
            "gen_ai.client.operation.duration",
            "s",
            "From a call of generate to its result or its error.",
            explicit_bucket_boundaries_advisory=_TASKS,
        )
        self._credits = meter.create_counter("kie4o.credits", "{credit}", "What submits were priced at.")
        self._submits = meter.create_counter(
            "kie4o.submits", "{attempt}", "Attempts to submit a request, by verdict; refusals also by code."
        )
        self._waits = meter.create_histogram(
            "kie4o.wait.duration",
            "s",
            "How long requests have waited, for a slot of the account's limit or for one of max_in_flight.",
            explicit_bucket_boundaries_advisory=_WAITS,
        )
        self._pauses = meter.create_counter(
            "kie4o.pauses", "s", "How long the account's limit has held all submits."
        )
        self._calls = meter.create_up_down_counter("kie4o.calls", "{call}", "Calls that are open.")
        meter.create_observable_gauge(
            "kie4o.window.use",
            [self._gauge(_use_of_window)],
            "1",
            "How much of the account's limit is in use, of the client with the highest value.",
        )
        meter.create_observable_gauge(
            "kie4o.places.use",
            [self._gauge(_use_of_places)],
            "1",
            "How much of max_in_flight is in use, of the client with the highest value.",
        )

    @classmethod
    def of(cls, provider: MeterProvider) -> Meters:
        """Those of a provider, which creates an instrument of a name only once."""
        if provider not in _METERS:
            _METERS[provider] = cls(provider)
        return _METERS[provider]

    def watch(self, client: AsyncKieClient) -> None:
        """Show the state of the client too, for as long as it lives."""
        self._clients.add(client)

    def _gauge(
        self, use_of: Callable[[AsyncKieClient], float | None]
    ) -> Callable[[CallbackOptions], Sequence[Observation]]:
        """A gauge of all clients; a thread of the SDK reads it."""

        def observe(_: CallbackOptions) -> Sequence[Observation]:
            values = [value for client in list(self._clients) if (value := use_of(client)) is not None]
            return [Observation(max(values))] if values else []

        return observe

    def __call__(self, event: Event) -> None:
        """Count an event."""
        match event:
            case events.Finished():
                self._tasks.add(1, {STATE: event.state})
                if event.seconds is not None:
                    self._seconds.record(event.seconds, {STATE: event.state})
            case events.Submitted():
                self._submits.add(1, {VERDICT: "accepted"})
                if event.credits is not None:
                    self._credits.add(float(event.credits))
            case events.Refused():
                self._submits.add(1, {VERDICT: "refused", CODE: event.code})
            case events.NotSent():
                self._submits.add(1, {VERDICT: "not_sent"})
            case events.Unknown():
                self._submits.add(1, {VERDICT: "unknown"})
            case events.Waited():
                self._waits.record(event.seconds, {WHAT: event.what})
            case events.Paused():
                self._pauses.add(event.seconds)
            case events.CallStarted():
                self._calls.add(1, {CALL: event.call})
            case events.CallEnded():
                self._calls.add(-1, {CALL: event.call})
                if event.call == "generate":
                    failed = {} if event.error is None else {ERROR: event.error}
                    self._operations.record(event.seconds, {**OF_GENERATION, **failed})


def _use_of_window(client: AsyncKieClient) -> float | None:
    """From 0 to 1, or None if only the store knows."""
    state = client._runtime.state()
    return None if state.window_used is None else state.window_used / state.window_limit


def _use_of_places(client: AsyncKieClient) -> float | None:
    state = client._runtime.state()
    return state.in_flight / state.max_in_flight
