"""Answers on the wire: the envelopes of Kie's two hosts, and the answer to unknown paths.

The shapes are those of recorded answers.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from aiohttp import web

from .seen import Seen
from .tasks import Answer

Envelope = Callable[[Answer], web.Response]

ANSWER = web.RequestKey("answer", Answer)  # what Kie answers to a request, whatever is sent
SEEN = web.RequestKey("seen", Seen)  # the record of a submit or a status check
UNAUTHORIZED = Answer(401)
UPLOAD_UNAUTHORIZED = Answer(401, "Authentication failed: Invalid API Key", http_status=401)


async def json_object(request: web.Request) -> dict[str, Any] | Answer:
    """The body of a request, or the answer to a body that is not a JSON object."""
    if request.content_type != "application/json":
        return UNAUTHORIZED  # Kie's text for 401 names the Content-Type too
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        return Answer(400)
    return body if isinstance(body, dict) else Answer(400)


def api_envelope(answer: Answer) -> web.Response:
    """The API host: `data` is null in an error, and absent from a 401."""
    body = {"code": answer.code, "msg": answer.msg}
    if answer.code != 401 or answer.data is not None:
        body["data"] = answer.data
    return _json(body, answer.http_status, "application/json;charset=UTF-8")


def upload_envelope(answer: Answer) -> web.Response:
    """The upload host: adds `success`, and has `data` only then."""
    body = {"success": answer.code == 200, "code": answer.code, "msg": answer.msg}
    if answer.data is not None:
        body["data"] = answer.data
    return _json(body, answer.http_status, "application/json")


def spring_error(path: str, status: HTTPStatus) -> web.Response:
    """Both hosts for an unknown path: the error page of the Spring framework, without `code` and `msg`."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    body = {"timestamp": now, "status": status.value, "error": status.phrase, "path": path}
    return _json(body, status, "application/json")


def _json(body: dict[str, Any], status: int, content_type: str) -> web.Response:
    return web.Response(body=json.dumps(body).encode(), status=status, headers={"Content-Type": content_type})


def api_key(request: web.Request) -> str:
    """The API key of a request; empty if it has none."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key if scheme == "Bearer" else ""
