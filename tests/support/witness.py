"""Recorded answers as a witness: the shape of an answer, and which recorded answer has it.

This knows neither the parser nor the emulator. An answer is bytes here, with an HTTP status and a content
type, and `tests/fixtures/manifest.json` says which of them were recorded or documented.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import attrs
from paths import FIXTURES

CALLBACK = "callback POST (inbound)"
ANY = "any"  # what stands in front of Kie answers alike everywhere
VALUES = {"code", "success", "successFlag", "status"}  # fields whose values decide, as well as their types
NO_JSON = "no JSON"
FORMS = {
    "decimal": r"\d\.\d\d",
    "time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z",
    "signed link": r"https?://[^?]+\?X-Amz-Algorithm=.*&X-Amz-Date=\d{8}T\d{6}Z&X-Amz-Expires=1200&.*=\w+",
    "image": r"https?://[^?]+/s/[0-9a-f]{32}_\d_\d{10}_\d{4}\.png",
    "url": r"https?://[^?]+",
    "task id": r"[0-9a-f]{32}",
}  # of strings; every other one is text


@attrs.frozen
class Sent:
    """An answer, or a callback, as it was sent."""

    status: int
    content_type: str
    body: bytes


@attrs.frozen
class Recording:
    """An entry of the manifest."""

    name: str
    endpoint: str
    sent: Sent

    @property
    def host(self) -> str:
        return host_of(self.endpoint)


def shape(value: Any) -> Any:
    """Keys, JSON types, forms of strings and the values that decide, recursively; a list is what is in it."""
    if isinstance(value, dict):
        return {key: inner if key in VALUES else shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [json.loads(one) for one in sorted({json.dumps(shape(inner)) for inner in value})]
    if isinstance(value, str):
        if value.startswith("{"):
            return {"JSON text": shape(json.loads(value))}
        return next((form for form, regex in FORMS.items() if re.fullmatch(regex, value)), "text")
    return {bool: "boolean", int: "integer", float: "number", type(None): "null"}[type(value)]


def shape_of(body: bytes) -> Any:
    """The shape of a body that is JSON; any other has none."""
    try:
        return shape(json.loads(body))
    except (ValueError, RecursionError):
        return NO_JSON


def look_of(sent: Sent) -> tuple[Any, ...]:
    """All that is compared of an answer."""
    kind, found = sent.content_type.lower().replace(" ", ""), shape_of(sent.body)
    return sent.status, kind if found != NO_JSON else kind.partition(";")[0], found


def envelope_of(sent: Sent) -> tuple[Any, ...]:
    """The same without the status, the code, and the forms of strings and numbers."""
    _, kind, found = look_of(sent)
    text = json.dumps(found).replace('"number"', '"integer"')
    for form in FORMS:
        text = text.replace(f'"{form}"', '"text"')
    return kind, re.sub(r'"code": \d+', '"code"', text)


def host_of(endpoint: str) -> str:
    """Kie has two hosts whose envelopes differ, and callbacks are a third kind."""
    if endpoint in (ANY, CALLBACK):
        return endpoint
    return "uploads" if "/api/file-" in endpoint else "API"


@cache
def recordings() -> list[Recording]:
    """Every recorded or documented answer; the sequences and the test vectors are none."""
    found = []
    for entry in json.loads((FIXTURES / "manifest.json").read_text("utf-8")):
        if entry["file"] not in ("webhook_vectors.json", "lifecycle_real.json"):
            kind = "application/json" if entry["endpoint"] == CALLBACK else entry["content_type"]
            sent = Sent(entry["http_status"], kind, (FIXTURES / entry["file"]).read_bytes())
            found.append(Recording(entry["file"].partition(".")[0], entry["endpoint"], sent))
    return found


def same_as(endpoint: str, sent: Sent) -> list[str]:
    """The recorded answers of this endpoint, or of all, that look the same."""
    return [
        one.name
        for one in recordings()
        if one.endpoint in (endpoint, ANY) and look_of(one.sent) == look_of(sent)
    ]


def enveloped_as(endpoint: str, sent: Sent) -> list[str]:
    """The recorded answers of the same host that have the same envelope."""
    return [
        one.name
        for one in recordings()
        if one.host == host_of(endpoint) and envelope_of(one.sent) == envelope_of(sent)
    ]
