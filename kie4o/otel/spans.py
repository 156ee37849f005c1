"""The hook that makes spans.

A call is a span, which is current while it lasts, so that the spans of an HTTP instrumentation are below it.
So is a submit, which outlives a caller that is cancelled: it runs in a task of its own, and begins and ends
there. What becomes of a task, its polls and callbacks, are events of the span whose call waits for it.

A traceparent goes with the entry of each submit through the store: that of its home, which is the span of
`generate`, or else that of the submit itself. What happens to the task later is below its home if it is in no
other trace, and linked to it otherwise.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any

import attrs
from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from .. import events
from ..events import Event
from ..events.reporter import Kinds
from . import names

_HOMES = 10_000  # tasks whose home is remembered after their call
_PROPAGATOR = TraceContextTextMapPropagator()
_TRACEPARENT = "traceparent"
_TRANSFERS = ("download", "fetch", "upload")


@attrs.define(eq=False)
class _Call:
    """A call that has not ended; a bare submit has no span of its own."""

    owner: Spans
    name: str
    span: Span | None
    home: SpanContext | None = None  # below which it is
    before: Context | None = None  # the context of its caller
    outer: _Call | _Submit | None = None  # which was current before
    tasks: list[str] = attrs.field(factory=list)  # and hashes of refs, that are its

    @property
    def call(self) -> _Call:
        return self


@attrs.define(eq=False)
class _Submit:
    """A submit that is under way, for a call if that is of this process."""

    owner: Spans
    span: Span
    call: _Call | None
    code: int | None = None  # of the latest refusal
    ended: bool = False


# What of ours is current: a call in the task of its caller, a submit in its own.
_CURRENT: ContextVar[_Call | _Submit | None] = ContextVar("kie4o.otel", default=None)


class Spans:
    """The spans of one client."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._calls: dict[int, _Call] = {}  # by number
        self._submits: dict[str, _Submit] = {}  # by the hash of the ref
        self._waiting: dict[str, list[_Call]] = {}  # calls by task id and hash of ref
        self._spans: dict[int, _Call] = {}  # calls by the id of their span
        self._homes: OrderedDict[str, SpanContext] = OrderedDict()  # by task id
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            events.CallStarted: self._call_started,
            events.CallEnded: self._call_ended,
            events.SubmitStarted: self._submit_started,
            events.SubmitJoined: self._submit_joined,
            events.SubmitEnded: self._submit_ended,
            events.Submitted: self._submitted,
            events.Unknown: self._unknown,
            events.Refused: self._refused,
            events.NotSent: self._add_to_submit,
            events.CalledOff: self._add_to_submit,
            events.Resent: self._add_to_submit,
            events.Recalled: self._recalled,
            events.AnswerAwaited: self._add_to_calls,
            events.Named: self._named,
            events.Polled: self._add_to_calls,
            events.PollFailed: self._add_to_calls,
            events.CallbackReceived: self._callback_received,
            events.Waited: self._add_to_current,
            events.Paused: self._add_to_current,
            events.Retried: self._add_to_current,
        }

        self.kinds: Kinds = tuple(self._handlers)

    def __call__(self, event: Event) -> None:
        self._handlers[type(event)](event)

    def current(self) -> str | None:
        """The traceparent of the home of a submit, in the task of the submit."""
        own = self._own()
        call = None if own is None else own.call
        span = call.span if call is not None and call.span is not None else trace.get_current_span()
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
        return carrier.get(_TRACEPARENT)

    def enter(self, task_id: str) -> None:
        """Make the span of the first call that waits for a task current, in the task of a poll, whose HTTP
        request belongs there and not to the call whose timer has started the poll."""
        for call in self._waiting.get(task_id, ())[:1]:
            if call.span is not None:
                context.attach(trace.set_span_in_context(call.span))  # in the task of the poll, which ends

    def leave(self, number: int) -> None:
        """Forget a call, and make current again what was so before it."""
        call = self._calls.pop(number, None)
        if call is None:
            return
        if _CURRENT.get() is call:
            _CURRENT.set(call.outer)
        for name in call.tasks:
            self._waiting[name].remove(call)
            if not self._waiting[name]:
                del self._waiting[name]
        if call.span is None:
            return
        self._spans.pop(call.span.get_span_context().span_id, None)
        if call.before is not None and trace.get_current_span() is call.span:
            context.attach(call.before)

    # -- calls -----------------------------------------------------------------------------------

    def _call_started(self, event: events.CallStarted) -> None:
        call = _Call(self, event.call, None)
        if event.call != "submit":
            home = self._home_of(event.task_id, event.trace)
            parent, links = _place(home)
            known = {names.KEY: event.key, names.TASK: event.task_id}
            more = {**names.OF_GENERATION, names.OUTPUT: "image"} if event.call == "generate" else {}
            kind = SpanKind.CLIENT if event.call == "generate" else SpanKind.INTERNAL
            call.home = home
            call.span = self._tracer.start_span(
                f"kie4o.{event.call}", parent, kind, _known({**known, **more}), links
            )
            call.before = context.get_current()
            context.attach(trace.set_span_in_context(call.span, call.before))
            self._spans[call.span.get_span_context().span_id] = call
        call.outer = _CURRENT.get()
        _CURRENT.set(call)
        self._calls[event.number] = call
        if event.task_id is not None and event.call not in _TRANSFERS:
            self._wait(call, event.task_id)

    def _call_ended(self, event: events.CallEnded) -> None:
        call = self._calls.get(event.number)
        if call is None:
            return
        self.leave(event.number)
        if call.span is None:
            return
        if event.task_id is not None:
            call.span.set_attribute(names.TASK, event.task_id)
            if call.name == "generate" and event.task_id not in self._homes:  # whose answer was lost
                self._remember(event.task_id, call.span.get_span_context())
        _end(call.span, event.error)

    def _wait(self, call: _Call, name: str) -> None:
        """Events of this task, or of this hash of a ref, are those of the call."""
        if name not in call.tasks:
            call.tasks.append(name)
            self._waiting.setdefault(name, []).append(call)

    def _recalled(self, event: events.Recalled) -> None:
        own, home = self._own(), _context_of(event.trace)
        if home is not None and event.task_id is not None:
            self._remember(event.task_id, home)
        if own is None:
            return
        call = own.call
        if call is not None and call.span is not None:
            for name in filter(None, (event.ref_hash, event.task_id)):
                self._wait(call, name)
            call.span.add_event(_name_of(event), _attributes_of(event))
            known = {each.span_id for each in (call.home, call.span.get_span_context()) if each is not None}
            if home is not None and home.span_id not in known:
                call.span.add_link(home)
        elif home is not None and own.span is not None:
            own.span.add_link(home)

    # -- submits ---------------------------------------------------------------------------------

    def _submit_started(self, event: events.SubmitStarted) -> None:
        own = self._own()
        call = None if own is None else own.call
        attributes = _known({**names.OF_GENERATION, names.KEY: event.key})
        span = self._tracer.start_span("kie4o.submit", attributes=attributes)
        context.attach(trace.set_span_in_context(span))  # in the task of the submit, which ends with it
        self._submits[event.ref_hash] = submit = _Submit(self, span, call)
        _CURRENT.set(submit)
        for joined in self._waiting.get(event.ref_hash, ()):
            self._link(joined, submit)
        if call is not None:
            self._wait(call, event.ref_hash)

    def _submit_joined(self, event: events.SubmitJoined) -> None:
        own, submit = self._own(), self._submits.get(event.ref_hash)
        call = None if own is None else own.call
        if call is None:
            return
        self._wait(call, event.ref_hash)
        if submit is not None:  # otherwise its task has not begun
            self._link(call, submit)

    def _link(self, call: _Call, submit: _Submit) -> None:
        if call.span is not None:
            call.span.add_link(submit.span.get_span_context())

    def _submitted(self, event: events.Submitted) -> None:
        for call in self._calls_of(event):
            self._wait(call, event.task_id)
        submit = self._submits.get(event.ref_hash)
        if submit is None or submit.ended:
            return
        home = submit.span if submit.call is None or submit.call.span is None else submit.call.span
        self._remember(event.task_id, home.get_span_context())
        submit.span.set_attribute(names.TASK, event.task_id)
        if event.credits is not None:
            submit.span.set_attribute(names.CREDITS, float(event.credits))
        self._end_submit(submit, None)

    def _unknown(self, event: events.Unknown) -> None:
        submit = self._submits.get(event.ref_hash)
        if submit is not None:
            self._end_submit(submit, "SubmissionUnknownError", event.cause)

    def _refused(self, event: events.Refused) -> None:
        submit = self._submits.get(event.ref_hash)
        if submit is not None:
            submit.code = event.code
        self._add_to_submit(event)

    def _submit_ended(self, event: events.SubmitEnded) -> None:
        submit = self._submits.pop(event.ref_hash, None)
        if event.task_id is not None:
            for call in self._calls_of(event):  # also those that have joined a submit of an earlier task
                self._wait(call, event.task_id)
        if submit is None:
            return
        if event.task_id is not None and not submit.ended:  # that of an earlier submit
            submit.span.set_attribute(names.TASK, event.task_id)
        if event.error is not None and submit.code is not None:
            submit.span.set_attribute(names.CODE, submit.code)
        self._end_submit(submit, event.error)

    def _end_submit(self, submit: _Submit, error: str | None, why: str | None = None) -> None:
        if not submit.ended:
            submit.ended = True
            _end(submit.span, error, why)

    # -- tasks -----------------------------------------------------------------------------------

    def _named(self, event: events.Named) -> None:
        for call in self._calls_of(event):
            self._wait(call, event.task_id)
        self._add_to_calls(event)

    def _callback_received(self, event: events.CallbackReceived) -> None:
        home = self._home_of(event.task_id, event.trace)
        request = trace.get_current_span()  # that of the HTTP request, if there is one
        calls = self._waiting.get(event.task_id, [])
        if not calls and home is not None and home.span_id in self._spans:
            calls = [self._spans[home.span_id]]  # it waits for the callback that names its task
        if calls:
            self._add(event, calls)
        else:
            attributes = _attributes_of(event)
            links = [] if home is None else _links_to(request.get_span_context())
            parent = context.get_current() if home is None else _below(home)
            span = self._tracer.start_span("kie4o.callback", parent, SpanKind.CONSUMER, attributes, links)
            span.end()
        if home is not None and request.is_recording():
            request.add_link(home)

    def _home_of(self, task_id: str | None, traceparent: str | None) -> SpanContext | None:
        return _context_of(traceparent) or (None if task_id is None else self._homes.get(task_id))

    def _remember(self, task_id: str, home: SpanContext) -> None:
        if home.is_valid:
            self._homes[task_id] = home
            self._homes.move_to_end(task_id)
            if len(self._homes) > _HOMES:
                self._homes.popitem(last=False)

    # -- events of spans ---------------------------------------------------------------------------

    def _own(self) -> _Call | _Submit | None:
        """What of this client is current."""
        own = _CURRENT.get()
        return own if own is not None and own.owner is self else None

    def _calls_of(self, event: Event) -> list[_Call]:
        """Those that wait for the task or the submit of an event."""
        for field in ("ref_hash", "task_id"):
            found = self._waiting.get(vars(event).get(field) or "")
            if found:
                return list(found)
        return []

    def _add_to_calls(self, event: Event) -> None:
        self._add(event, self._calls_of(event))

    def _add(self, event: Event, calls: Iterable[_Call]) -> None:
        for call in calls:
            if call.span is not None:
                call.span.add_event(_name_of(event), _attributes_of(event))

    def _add_to_submit(self, event: events.OfSubmit) -> None:
        submit = self._submits.get(event.ref_hash)
        if submit is not None and not submit.ended:
            submit.span.add_event(_name_of(event), _attributes_of(event))

    def _add_to_current(self, event: Event) -> None:
        own = self._own()
        if own is not None and own.span is not None and own.span.is_recording():
            own.span.add_event(_name_of(event), _attributes_of(event))


def _end(span: Span, error: str | None, why: str | None = None) -> None:
    """End a span; `error` is the class of what was raised."""
    if error is not None:
        span.set_attribute(names.ERROR, error)
        span.set_status(StatusCode.ERROR, why)
    span.end()


def _place(home: SpanContext | None) -> tuple[Context, list[Link]]:
    """Where a span belongs that has this home: below it, unless the caller is in another trace."""
    current = trace.get_current_span().get_span_context()
    if home is None or home.span_id == current.span_id:
        return context.get_current(), []
    if not current.is_valid or current.trace_id == home.trace_id:
        return _below(home), []
    return context.get_current(), _links_to(home)


def _below(home: SpanContext) -> Context:
    return trace.set_span_in_context(NonRecordingSpan(home))


def _links_to(other: SpanContext) -> list[Link]:
    return [Link(other)] if other.is_valid else []


def _context_of(traceparent: str | None) -> SpanContext | None:
    """The context in a traceparent, which may be anything that a store has."""
    if traceparent is None:
        return None
    extracted = _PROPAGATOR.extract({_TRACEPARENT: traceparent}, Context())
    found = trace.get_current_span(extracted).get_span_context()
    return found if found.is_valid else None


_ATTRIBUTES = {
    "attempt": "kie4o.attempt",
    "cause": names.CAUSE,
    "code": names.CODE,
    "progress": names.PROGRESS,
    "seconds": names.SECONDS,
    "state": names.STATE,
    "task_id": names.TASK,
    "verified": names.VERIFIED,
    "what": names.WHAT,
}


def _attributes_of(event: Event) -> dict[str, Any]:
    """Its values under names of attributes. Only these: no other has a place in a trace."""
    values = vars(event)
    return _known({name: values.get(field) for field, name in _ATTRIBUTES.items()})


def _known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _name_of(event: Event) -> str:
    """ "kie4o.poll_failed" for `PollFailed`."""
    words = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in type(event).__name__)
    return f"kie4o.{words.strip('_')}"
