"""What kie4o sends: one row per endpoint, the bodies as bytes that can be printed, and the callback URLs
with their refs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from urllib.parse import parse_qs, unquote, urlsplit

import attrs

from ..image_request import DEFAULTS, KIES_NAMES, ImageRequest
from ..urls import PLACEHOLDER, REF_PARAMETER
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
_REF = re.compile(r"[A-Za-z0-9_-]{22,}")


def body_of(request: ImageRequest, *, callback_url: str | None = None) -> bytes:
    """The JSON body of a submit. A field left at its default is not sent, except `size`; `extra` is.

    `callback_url` replaces the request's own; it carries the ref.
    """
    fields: dict[str, object] = {}
    for name, default in DEFAULTS.items():
        value = getattr(request, name)
        if value != default or name == "size":
            fields[KIES_NAMES[name]] = value
    fields |= request.extra
    if callback_url is not None:
        fields[KIES_NAMES["callback_url"]] = callback_url
    return json_body(fields)


def json_body(fields: Mapping[str, object]) -> bytes:
    """Compact JSON in UTF-8. Raises `ValueError` for NaN."""
    return _ENCODER.encode(fields).encode()


def with_ref(callback_url: str, ref: str) -> str:
    """The callback URL of one submit, with the ref at `{ref}` or else as the parameter `kie4o_ref`.

    A fragment is left out, since HTTP sends none to a server.
    """
    address = callback_url.partition("#")[0]
    if PLACEHOLDER in address:
        return address.replace(PLACEHOLDER, ref)
    return f"{address}{'&' if '?' in address else '?'}{REF_PARAMETER}={ref}"


def is_ref(text: str) -> bool:
    """Whether the text looks like a ref: 128 bits or more in the alphabet of URL-safe base64."""
    return _REF.fullmatch(text) is not None


def ref_in(path: str, query: str, *, template: str | None) -> str | None:
    """The ref in a URL that `with_ref` made of the template: at its `{ref}`, in the path or the query.

    A server behind a prefix, or mounted below one, may see another beginning of the path than Kie.
    """
    parts = urlsplit(template or "")
    if PLACEHOLDER in parts.path:
        whole = unquote(parts.path)
        found = path_pattern(whole[whole.rindex("/", 0, whole.index(PLACEHOLDER)) :]).search(path)
        return found["ref"] if found is not None and is_ref(found["ref"]) else None
    values = parse_qs(query, keep_blank_values=True)
    for name, wanted in parse_qs(parts.query, keep_blank_values=True).items():
        for value, text in zip(wanted, values.get(name, ()), strict=False):
            before, place, after = value.partition(PLACEHOLDER)
            ref = text.removeprefix(before).removesuffix(after)
            if place and text == before + ref + after and is_ref(ref):
                return ref
    return None


def path_pattern(path: str) -> re.Pattern[str]:
    """Matches what ends with the path; its group `ref` is what stands at `{ref}`."""
    place, pattern = re.escape(PLACEHOLDER), re.escape(path)
    return re.compile(pattern.replace(place, "(?P<ref>[^/]+)", 1).replace(place, "(?P=ref)") + "/?$")


def is_task_id(value: object) -> bool:
    """Whether the value can be an id of Kie's."""
    return decoding.task_id(value) is not None
