"""What kie4o sends: one row per endpoint, and the bodies as bytes that can be printed."""

from __future__ import annotations

import json
from collections.abc import Mapping

import attrs

from ..models import ImageRequest
from . import decoding


@attrs.frozen(eq=False)  # a row of a table is itself: `transport` looks it up at each call
class Endpoint:
    """How to call an endpoint; `uploads` if it is on the upload host."""

    method: str
    path: str
    uploads: bool = False


SUBMIT = Endpoint("POST", "/api/v1/gpt4o-image/generate")  # generate page
DETAILS = Endpoint("GET", "/api/v1/gpt4o-image/record-info")  # record-info page
DOWNLOAD_URL = Endpoint("POST", "/api/v1/gpt4o-image/download-url")  # download-url page
CREDITS = Endpoint("GET", "/api/v1/chat/credit")  # common API page: credits
# file upload page
UPLOAD_STREAM = Endpoint("POST", "/api/file-stream-upload", uploads=True)
UPLOAD_BASE64 = Endpoint("POST", "/api/file-base64-upload", uploads=True)
UPLOAD_FROM_URL = Endpoint("POST", "/api/file-url-upload", uploads=True)
ENDPOINTS = (SUBMIT, DETAILS, DOWNLOAD_URL, CREDITS, UPLOAD_STREAM, UPLOAD_BASE64, UPLOAD_FROM_URL)

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_CALLBACK_URL = "callBackUrl"  # the only name of the generate page that is not plain camelCase


def _kies_name(name: str) -> str:
    if name == "callback_url":
        return _CALLBACK_URL
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


# Our name, Kie's name and the default of every field (generate page).
_FIELDS = [(field.name, _kies_name(field.name), field.default) for field in attrs.fields(ImageRequest)]


def body_of(request: ImageRequest, *, callback_url: str | None = None) -> bytes:
    """The JSON body of a submit. A field left at its default is not sent, except `size`.

    `callback_url` replaces the request's own; it carries the ref.
    """
    fields: dict[str, object] = {}
    for name, kies_name, default in _FIELDS:
        value = getattr(request, name)
        if value != default or name == "size":
            fields[kies_name] = value
    if callback_url is not None:
        fields[_CALLBACK_URL] = callback_url
    return json_body(fields)


def json_body(fields: Mapping[str, object]) -> bytes:
    """Compact JSON in UTF-8. Raises `ValueError` for NaN."""
    return _ENCODER.encode(fields).encode()


def with_ref(callback_url: str, ref: str) -> str:
    """The callback URL of one submit, with the ref at `{ref}` or else as a query parameter."""
    if "{ref}" in callback_url:
        return callback_url.replace("{ref}", ref)
    address, hash_, fragment = callback_url.partition("#")
    return f"{address}{'&' if '?' in address else '?'}ref={ref}{hash_}{fragment}"


def is_task_id(value: object) -> bool:
    """Whether the value can be an id of Kie's."""
    return decoding.task_id(value) is not None
