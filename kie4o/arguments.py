"""What callers pass to the verbs, checked before any network use.

Each function returns the value, or raises `InvalidRequestError` (`ConfigurationError` for a setting of the
client) that names the argument, its value and what is expected.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections.abc import Iterable, Mapping
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import attrs

from .errors import InvalidRequestError, invalid, invalid_setting
from .events.base import Event
from .events.reporter import OnEvent, Reporter
from .image_request import ImageRequest, notices, our_name, remembering, warn_caller
from .models import HasTaskId, RateLimit
from .plain import SecretText, expanded, plain, revealed
from .polling.policy import DefaultLimit, PollPolicy
from .polling.poller import Timeout
from .polling.watches import OnUpdate
from .pricing import Credits, amount
from .settings import seconds_or_zero
from .submission.resending import NO_RESUBMIT, Resubmit
from .urls import (
    URLObject,
    callback_url_fault,
    callback_url_text,
    is_loopback,
    is_private,
    is_web_url,
    url_text,
)
from .wire.requests import is_task_id

OnUnknown = Literal["hold", "resubmit"]
"""After an unknown outcome: raise again, or submit again and possibly pay twice."""

MAX_KEY = 512  # characters of an idempotency key


def request_of(request: ImageRequest | str | Enum | None, fields: Mapping[str, Any]) -> ImageRequest:
    """An `ImageRequest`, with `fields` replaced, or one made of a prompt and `fields`."""
    for name in fields:
        if name not in _FIELDS:
            raise InvalidRequestError(f"unknown field {name}=: {_suggestion(name)}")
    if request is not None and "prompt" in fields:
        raise InvalidRequestError("pass either a request or prompt=, not both")
    if isinstance(request, ImageRequest):
        return _replaced(request, fields) if fields else request
    if type(request) is not str:
        _check_is_single(request)
    return ImageRequest(**fields) if "prompt" in fields else ImageRequest(request, **fields)


_FIELDS = [field.name for field in attrs.fields(ImageRequest)]
_CURRENT_FIELDS = [name for name in _FIELDS if name != "file_url"]  # which is deprecated
_NO_REQUESTS = (
    (Mapping, "pass ImageRequest(**fields), or the fields as keywords"),
    ((list, tuple, set, frozenset), "pass several requests to generate_many"),
)


def _check_is_single(request: object) -> None:
    for kind, remedy in _NO_REQUESTS:
        if isinstance(request, kind):
            got = f"invalid request: got a {type(request).__name__}, expected a prompt or an ImageRequest"
            raise InvalidRequestError(f"{got}; {remedy}")


def check_is_no_request(requests: Mapping[Any, Any]) -> None:
    """The fields of one request would become as many requests, with the names of the fields as ids."""
    if "prompt" in requests and len(requests) <= len(_FIELDS) and all(name in _FIELDS for name in requests):
        raise InvalidRequestError(
            "expected a mapping from your ids to requests, got the fields of one request; pass "
            "[ImageRequest(**fields)]"
        )


def _suggestion(name: str) -> str:
    """The field that was meant, as far as one can tell."""
    import difflib  # only for a mistake

    ours = our_name(name)
    near = [ours] if ours is not None else difflib.get_close_matches(name.lower(), _CURRENT_FIELDS, 1)
    if near:
        return f"did you mean {near[0]}=?"
    return f"expected one of {', '.join(_FIELDS)}; what kie4o does not know yet goes into extra={{...}}"


def _replaced(request: ImageRequest, fields: Mapping[str, Any]) -> ImageRequest:
    """Warns only of what the given fields have changed: the request itself has warned when it was made."""
    token = remembering.set(True)
    try:
        replaced = attrs.evolve(request, **fields)
    finally:
        remembering.reset(token)
    known = notices(request)
    for category, text in notices(replaced):
        if (category, text) not in known:
            warn_caller(text, category)
    return replaced


def private_urls(request: ImageRequest) -> list[tuple[str, str]]:
    """The fields with URLs that Kie cannot open, which costs the task or the callback."""
    named = [("mask_url", request.mask_url), ("file_url", request.file_url)]
    named += [(f"files_url[{index}]", url) for index, url in enumerate(request.files_url)]
    named.append(("callback_url", request.callback_url))
    return [(name, url) for name, url in named if url is not None and is_private(url)]


def warn_private(name: str, url: str) -> None:
    """Shows only the host: the rest of the URL may hold a token."""
    host = urlsplit(url).hostname
    warn_caller(f"Kie cannot open {name}: {host} is a name or address of this machine or its network")


def key_of(key: str | Enum | None) -> str | None:
    """An idempotency key that every store can hold."""
    key = plain(key)
    if key is None:
        return None
    if not isinstance(key, str) or not key.strip() or len(key) > MAX_KEY or not key.isprintable():
        shown = key[:80] if isinstance(key, str) else key
        raise invalid("key", shown, f"a string of 1 to {MAX_KEY} printable characters, or None")
    return key


def batch_of(name: str | Enum) -> str:
    """The name of a batch."""
    name = plain(name)
    if not isinstance(name, str):
        raise invalid("batch", name, "a string")
    return name


def task_id_of(task: HasTaskId | str | Enum) -> str:
    """An id that Kie can have issued, or that of whatever has one."""
    task_id = plain(task)
    if not isinstance(task_id, str):
        task_id = plain(getattr(task_id, "task_id", None))
        if task_id is None and hasattr(task, "task_id"):
            raise InvalidRequestError(
                f"this {type(task).__name__} has no task id: pass that of a submitted task"
            )
    if not is_task_id(task_id):
        raise invalid("task_id", task if task_id is None else task_id, "the id of a submitted task")
    return str(task_id)


def finding_of(task_id: HasTaskId | str | None, charged: bool | None) -> str | None:
    """What a person found about a submit: the id of its task, or None if it was not charged."""
    if charged is not None and not isinstance(charged, bool):
        raise invalid("charged", charged, "False, or nothing together with task_id=")
    if task_id is not None and charged is None:
        return task_id_of(task_id)
    if task_id is None and charged is False:
        return None
    where = "; a task that was charged has an id at kie.ai/logs" if charged and task_id is None else ""
    raise InvalidRequestError(f"pass either task_id= or charged=False{where}")


def callback_url_of(url: URLObject | str | Enum | None, *, loopback: bool) -> str | None:
    """A callback URL for the whole client, checked as a request's own is."""
    text: str | None = callback_url_text(plain(url))
    fault = None if text is None else callback_url_fault(text)
    if fault is not None:
        raise invalid_setting("callback_url", url, fault)
    if text is not None and not loopback and is_private(text):
        warn_private("callback_url", text)
    return text


def proxy_of(url: URLObject | SecretText | str | Enum | None) -> str | None:
    """The URL of a proxy as text, which `transport` checks. It may hold a password."""
    text: str | None = url_text(revealed(url))
    return text


def image_url_of(url: URLObject | str | Enum) -> str:
    """The URL of one of Kie's images."""
    text: str = url_text(plain(url))
    if not is_web_url(text):
        raise invalid("url", url, "a URL from the task's result")
    return text


def path_of(path: str | os.PathLike[str]) -> str:
    """The path of a file, with ``~`` replaced by the home directory."""
    try:
        return expanded(path)
    except TypeError:
        pass
    raise invalid("path", path, "the path of a file")


def age_limit_of(older_than: float | timedelta) -> float:
    """An age in seconds."""
    age = older_than.total_seconds() if isinstance(older_than, timedelta) else older_than
    if type(age) in (int, float) and 0 < age <= sys.float_info.max:
        return age
    raise invalid("older_than", older_than, "a positive number of seconds, or a timedelta")


def in_flight_of(limit: int) -> int:
    """How many items of a batch may be unfinished at once."""
    if type(limit) is not int or limit < 1:
        raise invalid("max_in_flight", limit, "a positive integer, or None")
    return limit


def credit_limit_of(limit: Credits | None) -> Decimal | None:
    """What a batch may spend."""
    return None if limit is None else amount("max_credits", limit, _invalid_credits)


def _invalid_credits(name: str, value: object, expected: str) -> InvalidRequestError:
    return invalid(name, value, f"{expected}, or None for no limit")


def rate_limit_of(limit: RateLimit) -> RateLimit:
    if not isinstance(limit, RateLimit):
        raise invalid_setting("rate_limit", limit, "RateLimit(20, per=10.0)")
    return limit


def poll_of(policy: PollPolicy | None, *, loopback: bool) -> PollPolicy:
    """The default learns when to poll; on loopback it does not, since an emulator's tasks end too soon.

    An emulator answers as many polls as there are, so a limit of them holds there only if it was chosen.
    """
    if policy is None:
        policy = PollPolicy() if loopback else PollPolicy.adaptive()
    if not isinstance(policy, PollPolicy):
        raise invalid_setting("poll", policy, "PollPolicy(...) or PollPolicy.adaptive(...)")
    if loopback and isinstance(policy.looks_per_second, DefaultLimit):
        return attrs.evolve(policy, looks_per_second=None)
    return policy


def speed_of(speed: float, *, base_url: str) -> float:
    """By what the waits of a client are divided; other numbers than 1 are for an emulator on loopback."""
    if type(speed) not in (int, float) or not 0 < speed < float("inf"):
        raise invalid_setting("speed", speed, "a positive number")
    if speed != 1 and not is_loopback(base_url):
        expected = f"1.0, since {base_url} is not on loopback; other values are for an emulator"
        raise invalid_setting("speed", speed, expected)
    return float(speed)


def timeout_of(timeout: Timeout) -> Timeout:
    """A positive number of seconds, None for no limit, or ... for the client's own."""
    if timeout is ... or timeout is None:
        return timeout
    if type(timeout) in (int, float) and 0 < timeout < float("inf"):
        return timeout
    raise invalid("timeout", timeout, "a positive number of seconds, or None for no limit")


def on_update_of(on_update: OnUpdate | None) -> OnUpdate | None:
    """Checked before anything is paid for."""
    if on_update is not None and not callable(on_update):
        raise invalid("on_update", on_update, "a function of the TaskDetails, or None")
    return on_update


def reporter_of(on_event: OnEvent | None) -> Reporter:
    """For one hook, several, one for each of some kinds of events, or none."""
    if on_event is None:
        return Reporter()  # its own, since it remembers failures
    given: list[tuple[Any, Any]] = []  # hooks, and the kinds of events that they want
    if isinstance(on_event, Mapping):
        given = [(hook, kind) for kind, hook in on_event.items()]
    elif callable(on_event):
        given = [(on_event, Event)]
    elif isinstance(on_event, Iterable):
        given = [(hook, Event) for hook in on_event]
    for hook, kind in given or [(None, None)]:
        if not callable(hook) or inspect.iscoroutinefunction(hook):
            expected = "a function of the event, no coroutine function, or several"
            raise invalid_setting("on_event", on_event, expected)
        if not (isinstance(kind, type) and issubclass(kind, Event)):
            raise invalid_setting("on_event", on_event, "kinds of events as keys, such as events.Finished")
    return Reporter((hook, (kind,)) for hook, kind in given)


def store_wait_of(store_wait: float, store: object) -> float:
    """How many seconds to wait for a store that is open elsewhere: one that is given as an object is not."""
    wait = seconds_or_zero("store_wait", store_wait)
    return wait if isinstance(store, (str, os.PathLike)) else 0.0


def stop_of(stop: asyncio.Event | None) -> asyncio.Event | None:
    """An event of threads would stop the event loop until it is set."""
    if stop is not None and not isinstance(stop, asyncio.Event):
        raise invalid("stop", stop, "an asyncio.Event, or None")
    return stop


def resubmit_of(on_unknown: OnUnknown, retry_failed: bool) -> Resubmit:
    """After which outcomes under a key the caller pays again."""
    if on_unknown == "hold" and retry_failed is False:
        return NO_RESUBMIT
    if on_unknown not in get_args(OnUnknown):
        raise invalid("on_unknown", on_unknown, "'hold' or 'resubmit'")
    if not isinstance(retry_failed, bool):
        raise invalid("retry_failed", retry_failed, "True or False")
    return Resubmit(after_unknown=on_unknown == "resubmit", after_failure=retry_failed)
