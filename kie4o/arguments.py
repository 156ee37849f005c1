"""What callers pass to the verbs, checked before any network use.

Each function returns the value, or raises `InvalidRequestError` (`ConfigurationError` for a setting of the
client) that names the argument, its value and what is expected.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import attrs

from .errors import InvalidRequestError, invalid, invalid_setting
from .models import ImageRequest, RateLimit
from .polling.policy import PollPolicy
from .polling.poller import Timeout
from .polling.watches import OnUpdate
from .submission.resending import NO_RESUBMIT, Resubmit
from .urls import callback_url_fault, is_web_url
from .wire.requests import is_task_id

OnUnknown = Literal["hold", "resubmit"]
"""After an unknown outcome: raise again, or submit again and possibly pay twice."""

MAX_KEY = 512  # characters of an idempotency key


def request_of(request: ImageRequest | str | None, fields: Mapping[str, Any]) -> ImageRequest:
    """An `ImageRequest`, with `fields` replaced, or one made of a prompt and `fields`."""
    if fields:
        known = [field.name for field in attrs.fields(ImageRequest)]
        for name in fields:
            if name not in known:
                raise InvalidRequestError(f"unknown field {name}=: expected one of {', '.join(known)}")
    if request is not None and "prompt" in fields:
        raise InvalidRequestError("pass either a request or prompt=, not both")
    if isinstance(request, ImageRequest):
        return attrs.evolve(request, **fields) if fields else request
    return ImageRequest(**fields) if "prompt" in fields else ImageRequest(request, **fields)


def key_of(key: str | None) -> str | None:
    """An idempotency key that every store can hold."""
    if key is None:
        return None
    if not isinstance(key, str) or not key.strip() or len(key) > MAX_KEY or not key.isprintable():
        shown = key[:80] if isinstance(key, str) else key
        raise invalid("key", shown, f"1 to {MAX_KEY} printable characters, or None")
    return key


def batch_of(name: str) -> str:
    """The name of a batch."""
    if not isinstance(name, str):
        raise invalid("batch", name, "a string")
    return name


def task_id_of(task_id: str) -> str:
    """An id that Kie can have issued."""
    if not is_task_id(task_id):
        raise invalid("task_id", task_id, "the id of a submitted task")
    return task_id


def callback_url_of(url: str | None) -> str | None:
    """A callback URL for the whole client, checked as a request's own is."""
    fault = None if url is None else callback_url_fault(url)
    if fault is not None:
        raise invalid_setting("callback_url", url, fault)
    return url


def image_url_of(url: str) -> str:
    """The URL of one of Kie's images."""
    if not is_web_url(url):
        raise invalid("url", url, "a URL from the task's result")
    return url


def rate_limit_of(limit: RateLimit) -> RateLimit:
    if not isinstance(limit, RateLimit):
        raise invalid_setting("rate_limit", limit, "RateLimit(20, per=10.0)")
    return limit


def poll_of(policy: PollPolicy | None, *, loopback: bool) -> PollPolicy:
    """The default learns when to poll; on loopback it does not, since an emulator's tasks end too soon."""
    if policy is None:
        return PollPolicy() if loopback else PollPolicy.adaptive()
    if not isinstance(policy, PollPolicy):
        raise invalid_setting("poll", policy, "PollPolicy(...) or PollPolicy.adaptive(...)")
    return policy


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


def resubmit_of(on_unknown: OnUnknown, retry_failed: bool) -> Resubmit:
    """After which outcomes under a key the caller pays again."""
    if on_unknown == "hold" and retry_failed is False:
        return NO_RESUBMIT
    if on_unknown not in get_args(OnUnknown):
        raise invalid("on_unknown", on_unknown, "'hold' or 'resubmit'")
    if not isinstance(retry_failed, bool):
        raise invalid("retry_failed", retry_failed, "True or False")
    return Resubmit(after_unknown=on_unknown == "resubmit", after_failure=retry_failed)
