"""What callers hand to the verbs, checked before any network use.

Each function gives the value back or raises `InvalidRequestError` (for a setting of the client
`ConfigurationError`) with the name, the value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import attrs

from .errors import ConfigurationError, InvalidRequestError
from .models import ImageRequest, RateLimit
from .polling.policy import PollPolicy
from .polling.poller import Timeout
from .polling.watches import OnUpdate
from .submission.resending import NO_RESUBMIT, Resubmit
from .urls import is_web_url
from .wire.requests import is_task_id

OnUnknown = Literal["hold", "resubmit"]

MAX_KEY = 512  # characters of an idempotency key


def request_of(request: ImageRequest | str | None, fields: Mapping[str, Any]) -> ImageRequest:
    """An `ImageRequest` as it is (with fields replaced), or a prompt and the fields of one."""
    if fields:
        known = [field.name for field in attrs.fields(ImageRequest)]
        for name in fields:
            if name not in known:
                sentence = f"{name}= is not a field of a request: use one of {', '.join(known)}"
                raise InvalidRequestError(sentence)
    if request is not None and "prompt" in fields:
        raise InvalidRequestError("prompt= is not possible beside a request: give one of the two")
    if isinstance(request, ImageRequest):
        return attrs.evolve(request, **fields) if fields else request
    return ImageRequest(**fields) if "prompt" in fields else ImageRequest(request, **fields)


def key_of(key: str | None) -> str | None:
    """An idempotency key that every store can hold."""
    if key is None:
        return None
    if not isinstance(key, str) or not key.strip() or len(key) > MAX_KEY or not key.isprintable():
        shown = key[:80] if isinstance(key, str) else key
        allowed = f"use a text of 1 to {MAX_KEY} printable characters, or None"
        raise InvalidRequestError(f"key={shown!r} is not possible: {allowed}")
    return key


def task_id_of(task_id: str) -> str:
    """An id that Kie can have given."""
    if not is_task_id(task_id):
        raise InvalidRequestError(f"task_id={task_id!r} is not possible: use the id that a submit gave")
    return task_id


def callback_url_of(url: str | None) -> str | None:
    """A callback URL for the whole client, by the rule for a request's own."""
    if url is not None:
        try:
            ImageRequest("-", callback_url=url)
            return url
        except InvalidRequestError as error:
            sentence = str(error)
        raise ConfigurationError(sentence)
    return None


def image_url_of(url: str) -> str:
    """The URL of an image of Kie's."""
    if not is_web_url(url):
        raise InvalidRequestError(f"url={url!r} is not possible: use a URL of the task's result")
    return url


def rate_limit_of(limit: RateLimit) -> RateLimit:
    if not isinstance(limit, RateLimit):
        raise ConfigurationError(f"rate_limit={limit!r} is not possible: use RateLimit(20, per=10.0)")
    return limit


def poll_of(policy: PollPolicy | None, *, loopback: bool) -> PollPolicy:
    """None: learned, but for an emulator, whose tasks are over before anything could be."""
    if policy is None:
        return PollPolicy() if loopback else PollPolicy.adaptive()
    if not isinstance(policy, PollPolicy):
        raise ConfigurationError(f"poll={policy!r} is not possible: use PollPolicy(...)")
    return policy


def timeout_of(timeout: Timeout) -> Timeout:
    """Seconds above zero, None for no limit, or ... for the client's own."""
    if timeout is ... or timeout is None:
        return timeout
    if type(timeout) in (int, float) and 0 < timeout < float("inf"):
        return timeout
    raise InvalidRequestError(
        f"timeout={timeout!r} is not possible: use seconds above 0, or None for no limit"
    )


def on_update_of(on_update: OnUpdate | None) -> OnUpdate | None:
    """A function, or nothing; found out before anything is paid."""
    if on_update is not None and not callable(on_update):
        raise InvalidRequestError(f"on_update={on_update!r} is not possible: use a function of the details")
    return on_update


def resubmit_of(on_unknown: OnUnknown, retry_failed: bool) -> Resubmit:
    """What the caller wants paid anew under a key."""
    if on_unknown == "hold" and retry_failed is False:
        return NO_RESUBMIT
    if on_unknown not in get_args(OnUnknown):
        raise InvalidRequestError(f"on_unknown={on_unknown!r} is not possible: use 'hold' or 'resubmit'")
    if not isinstance(retry_failed, bool):
        raise InvalidRequestError(f"retry_failed={retry_failed!r} is not possible: use True or False")
    return Resubmit(after_unknown=on_unknown == "resubmit", after_failure=retry_failed)
