"""The control of an emulator over HTTP: a JSON API under `/-/`, for tests in any language and for the page.

`ROUTES` is the API. A POST takes a JSON object and answers with one; what is wrong with it is
`{"error": "..."}`, with what would be allowed. A page of another origin gets nothing: a request has to name
this machine in its Host header and no other origin, and a POST needs a Content-Type that browsers send to
another origin only after they have asked. There is no CORS header.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_address
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from aiohttp import web

from .account import Account
from .addresses import is_loopback
from .callbacks import CONTENTS, CallRecord
from .fault_queue import Faults, Planned
from .faults import Fault, parse_fault
from .fields import PLAN, Fields, check_names, read_fields
from .seen import Look, Submit
from .tasks import Outcome, Task
from .values import invalid

PREFIX = "/-/"
SAFE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}

Kind = Literal["submit", "look"]


class Kie(Protocol):
    """What the control needs of an emulator."""

    clock: Literal["virtual", "real"] | None
    speed: float
    credits: float
    limit: int
    per: float
    looks_per_second: int
    faults: Faults
    allow_remote: bool
    submits: list[Submit]
    requests: Counter[str]

    @property
    def url(self) -> str: ...
    @property
    def paid(self) -> int: ...
    @property
    def spent(self) -> float: ...
    @property
    def callbacks(self) -> list[CallRecord]: ...

    def now(self) -> float: ...
    def looks(self, task_id: str | None = None) -> list[Look]: ...
    def answers(self, kind: Kind = "submit") -> Counter[int | None]: ...
    def windows(self, kind: Kind = "submit") -> int: ...
    def all_accounts(self) -> list[Account]: ...
    def all_tasks(self) -> Mapping[str, Task]: ...
    def reset(self) -> None: ...
    @property
    def plan(self) -> Callable[..., None]: ...
    @property
    def next(self) -> Callable[..., None]: ...
    @property
    def fault(self) -> Callable[[Fault], Fault]: ...

    def end(self, task_id: str, outcome: str | Outcome | None = None) -> None: ...
    def delay(self, task_id: str, seconds: float) -> None: ...
    def advance(self, seconds: float) -> None: ...
    async def call_back(self, task_id: str, content: str = "true", url: str | None = None) -> CallRecord: ...


class RefusedError(Exception):
    """A request that is answered with this status and this sentence."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status: int = status
        self.headers: dict[str, str] = headers


def refusal(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.json_response({"error": sentence}, status=status, headers=SAFE | dict(headers or {}))


# -- who may ask -----------------------------------------------------------------------------------


def is_control(path: str) -> bool:
    """Whether a path is none of Kie's: the page or its API."""
    return path == "/" or path.startswith(PREFIX)


def complaint_about(request: web.Request, *, allow_remote: bool) -> str | None:
    """Why a request may not see or control the emulator: it could come from a web page elsewhere.

    Such a page reaches this machine by its own name, which it lets point here, or says its origin.
    """
    host, origin = _host_in(f"//{request.host}"), request.headers.get("Origin")
    if not host or not (is_loopback(host) or (allow_remote and _is_local_name(host))):
        return f"invalid Host {request.host!r}: expected localhost or a loopback address"
    if origin is not None and origin.partition("://")[2] != request.host:
        return f"invalid Origin {origin!r}: expected none or {request.host}"
    return None


def _host_in(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_local_name(host: str) -> bool:
    """An address, or a name without a dot, such as that of a container: no web page elsewhere has one."""
    try:
        return bool(ip_address(host.partition("%")[0]))
    except ValueError:
        return "." not in host


# -- what is there ---------------------------------------------------------------------------------


def state(kie: Kie) -> dict[str, Any]:
    """Everything that the emulator saw and has: the answer of `GET /-/state`."""
    own, *_ = kie.all_accounts()
    callbacks = callbacks_by_task(kie)
    return {
        "paid": kie.paid,
        "spent": kie.spent,
        "credits": kie.credits,
        "prices": {str(number): price for number, price in own.prices.items()},
        "accounts": [
            {"paid": one.paid, "spent": one.spent, "credits": one.credits, "limit": one.limit, "per": one.per}
            for one in kie.all_accounts()
        ],
        "windows": {"submit": kie.windows(), "look": kie.windows("look")},
        "answers": {"submit": _by_text(kie.answers()), "look": _by_text(kie.answers("look"))},
        "requests": dict(kie.requests),
        "time": time_of(kie),
        "faults": [_fault(planned) for planned in kie.faults.planned],
        "submits": [_submit(submit) for submit in kie.submits],
        "tasks": [task_state(kie, task, callbacks) for task in tasks_of(kie)],
        "callbacks": [_callback(record) for record in kie.callbacks],
    }


def time_of(kie: Kie) -> dict[str, Any]:
    return {"now": kie.now(), "clock": kie.clock, "speed": kie.speed}


def tasks_of(kie: Kie) -> list[Task]:
    """The tasks of all accounts, oldest first."""
    return sorted(kie.all_tasks().values(), key=lambda task: task.created)


def callbacks_by_task(kie: Kie) -> Mapping[str, list[CallRecord]]:
    """The attempts to deliver the callbacks of each task."""
    found: dict[str, list[CallRecord]] = {}
    for record in kie.callbacks:
        found.setdefault(record.task_id, []).append(record)
    return found


def task_state(
    kie: Kie, task: Task, callbacks: Mapping[str, list[CallRecord]] | None = None
) -> dict[str, Any]:
    """One task as it is now."""
    now = kie.now()
    callbacks = callbacks_by_task(kie) if callbacks is None else callbacks
    return {
        "task_id": task.id,
        "request": task.request,
        "price": task.price,
        "state": state_of(task, now),
        "outcome": task.outcome.kind,
        "created": task.created,
        "age": now - task.created,
        "end": task.end if task.end is not None and math.isfinite(task.end) else None,
        "images": [kie.url + path for path in task.files(now)],
        "looks": len(kie.looks(task.id)),
        "callbacks": [record.status for record in callbacks.get(task.id, ())],
    }


def state_of(task: Task, now: float) -> str:
    """ "running", "succeeded" or "failed"."""
    return {0: "running", 1: "succeeded"}.get(task.state(now).flag, "failed")


def _by_text(answers: Counter[int | None]) -> dict[str, int]:
    return {"lost" if code is None else str(code): number for code, number in answers.items()}


def _submit(submit: Submit) -> dict[str, Any]:
    answer = submit.answer
    return {
        "at": submit.at,
        "request": submit.request,
        "ref": submit.ref,
        "task_id": submit.task_id,
        "headers": dict(submit.headers),
        "answered": submit.answered,
        "code": submit.code,
        "message": None if answer is None or submit.code != answer.code else answer.msg,
        "fault": None if submit.fault is None else str(submit.fault),
    }


def _fault(planned: Planned) -> dict[str, Any]:
    return {"fault": str(planned.fault), "seen": planned.seen, "fired": planned.fired}


def _callback(record: CallRecord) -> dict[str, Any]:
    names = ("task_id", "url", "attempt", "at", "sent", "status", "error")
    return {name: getattr(record, name) for name in names} | {"body": record.message}


# -- what can be done ------------------------------------------------------------------------------


def _checked(fields: Fields, *allowed: str) -> Fields:
    """The fields of a body, all of which are allowed."""
    check_names(fields, allowed)
    return fields


def _seconds(fields: Fields) -> Any:
    """The `seconds` of a body; the emulator checks them."""
    return _checked(fields, "seconds").get("seconds")


def _text(fields: Fields, name: str, default: str | None = None) -> str | None:
    value = fields.get(name, default)
    if value is not None and not isinstance(value, str):
        raise invalid(name, value, "text")
    return value


def _task(kie: Kie, task_id: str) -> Task:
    task = kie.all_tasks().get(task_id)
    if task is None:
        raise RefusedError(404, f"unknown task {task_id!r}: expected the id of a task of this emulator")
    return task


async def get_state(kie: Kie, fields: Fields) -> Fields:
    """Everything: paid, credits, windows, tasks, submits with what was asked, callbacks, faults, time."""
    return state(kie)


async def reset(kie: Kie, fields: Fields) -> Fields:
    """Forget all that was seen and planned, and restore the credits."""
    _checked(fields)
    kie.reset()
    return {}


async def set_credits(kie: Kie, fields: Fields) -> Fields:
    """Set the balance: `credits`."""
    balance: Any = _checked(fields, "credits").get("credits")
    kie.credits = balance  # which is checked
    return {"credits": kie.credits}


async def add_plan(kie: Kie, fields: Fields) -> Fields:
    """Arrange the next submit with a `prompt`, or the next one: `duration`, `outcome`, `progress`, `answer`,
    `callback`."""
    plan = read_fields({name: value for name, value in fields.items() if value is not None}, PLAN)
    kie.plan(**plan) if "prompt" in plan else kie.next(**plan)
    return {}


async def add_fault(kie: Kie, fields: Fields) -> Fields:
    """Arrange what goes wrong with requests: `kind`, and the options of `Emulator.fault`."""
    return {"fault": str(kie.fault(parse_fault(fields)))}


async def end_task(kie: Kie, fields: Fields, task_id: str) -> Fields:
    """End a running task now, as it would have ended, or with an `outcome`."""
    settings = read_fields(fields, {"outcome": PLAN["outcome"]})
    kie.end(_task(kie, task_id).id, **settings)
    return task_state(kie, _task(kie, task_id))


async def fail_task(kie: Kie, fields: Fields, task_id: str) -> Fields:
    """End a running task now with the `outcome` "failed", or another one that is no success."""
    return await end_task(kie, {"outcome": "failed", **fields}, task_id)


async def delay_task(kie: Kie, fields: Fields, task_id: str) -> Fields:
    """Let a running task take so many `seconds` longer."""
    kie.delay(_task(kie, task_id).id, _seconds(fields))
    return task_state(kie, _task(kie, task_id))


async def call_back(kie: Kie, fields: Fields, task_id: str) -> Fields:
    """Post the callback of a task now, again or early: `content`, `url`."""
    fields = _checked(fields, "content", "url")
    content = _text(fields, "content", "true") or "true"
    if content not in CONTENTS:
        raise invalid("content", content, f"one of {', '.join(CONTENTS)}")
    return _callback(await kie.call_back(_task(kie, task_id).id, content, _text(fields, "url")))


async def advance(kie: Kie, fields: Fields) -> Fields:
    """Let so many `seconds` pass at once."""
    kie.advance(_seconds(fields))
    return time_of(kie)


async def get_time(kie: Kie, fields: Fields) -> Fields:
    """The emulated seconds, the clock and its speed."""
    return time_of(kie)


Action = Callable[..., Awaitable[Fields]]

ROUTES: dict[tuple[str, str], Action] = {
    ("GET", "/-/state"): get_state,
    ("GET", "/-/time"): get_time,
    ("POST", "/-/time"): advance,
    ("POST", "/-/reset"): reset,
    ("POST", "/-/credits"): set_credits,
    ("POST", "/-/plans"): add_plan,
    ("POST", "/-/faults"): add_fault,
    ("POST", "/-/tasks/{task_id}/end"): end_task,
    ("POST", "/-/tasks/{task_id}/fail"): fail_task,
    ("POST", "/-/tasks/{task_id}/delay"): delay_task,
    ("POST", "/-/tasks/{task_id}/callback"): call_back,
}


# -- HTTP ------------------------------------------------------------------------------------------


async def _body(request: web.Request) -> Fields:
    if request.method == "GET":
        return {}
    if request.content_type != "application/json":
        raise RefusedError(415, f"invalid Content-Type {request.content_type!r}: expected 'application/json'")
    try:
        fields = json.loads(await request.read() or b"{}")
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise ValueError("the body is no JSON object, such as {}")
    return fields


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def guarded(kie: Kie, handler: Handler) -> Handler:
    """The handler, for those who may ask; what it raises becomes a sentence."""

    async def respond(request: web.Request) -> web.StreamResponse:
        complaint = complaint_about(request, allow_remote=kie.allow_remote)
        if complaint:
            return refusal(403, complaint)
        try:
            return await handler(request)
        except RefusedError as error:
            return refusal(error.status, str(error), error.headers)
        except ValueError as error:
            return refusal(400, str(error))

    return respond


def _handler(kie: Kie, action: Action) -> Handler:
    async def respond(request: web.Request) -> web.Response:
        answer = await action(kie, await _body(request), **request.match_info)
        return web.json_response(answer, headers=SAFE)

    return respond


async def _unknown(request: web.Request) -> web.Response:
    allowed = ", ".join(f"{method} {path}" for method, path in ROUTES)
    raise RefusedError(404, f"unknown {request.method} {request.path}: expected one of {allowed}")


def add_routes(app: web.Application, kie: Kie) -> None:
    """Serve the API. What is added to `/-/` besides has to come before."""
    for (method, path), action in ROUTES.items():
        app.router.add_route(method, path, guarded(kie, _handler(kie, action)))
    app.router.add_route("*", PREFIX + "{path:.*}", guarded(kie, _unknown))
