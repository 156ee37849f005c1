"""What a person sees of a running emulator: one line on standard output for each request and callback.

With rich on a terminal the lines are coloured; elsewhere they are plain. They are read from the requests and
answers as these pass, whatever the emulator itself records.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import attrs
from aiohttp import web

from .callbacks import CallRecord

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

ASKED = 60  # characters of what was asked
SHOWN_ID = 8  # characters of a task id
_KINDS = {
    "/api/v1/gpt4o-image/generate": "submit",
    "/api/v1/gpt4o-image/record-info": "look",
    "/api/v1/gpt4o-image/download-url": "link",
    "/api/v1/common/download-url": "link",
    "/api/v1/chat/credit": "credits",
}


@attrs.frozen
class Line:
    """One request: its kind, what was asked, what was answered, and whether that is good news."""

    kind: str
    asked: str
    answer: str
    good: bool


def line_of(request: web.Request, body: bytes, response: web.StreamResponse) -> Line:
    """The line of a request to the emulator, of its body and of its answer."""
    kind = _kind_of(request.path)
    if request.transport is None or request.transport.is_closing():
        answer, good = "no answer", False
    else:
        answer, good = _answer_of(kind, response)
    return Line(kind, _plain(_asked_in(kind, request, body)), answer, good)


def line_of_callback(record: CallRecord) -> Line:
    """The line of an attempt to call back."""
    good = record.status == 200
    answer = f"HTTP {record.status}" if record.status else _plain(record.error or "no answer")
    return Line(
        "callback", _plain(record.url), answer if good else f"{answer}, attempt {record.attempt}", good
    )


class LiveLog:
    """Prints lines; `credits` tells the balance that stands at the end of each."""

    def __init__(self, credits: Callable[[], float]) -> None:  # noqa: A002  # Kie's word
        self._credits = credits
        self._console: Any = None
        if sys.stdout.isatty():
            try:
                from rich.console import Console  # optional
            except ImportError:
                return
            self._console = Console(highlight=False)

    def watch(self, app: web.Application) -> None:
        """Print a line for each request that this application answers from now on."""

        @web.middleware
        async def show(request: web.Request, handler: Handler) -> web.StreamResponse:
            response = await handler(request)
            # What the handler has not read of a body may never come.
            body = await request.read() if request.content.is_eof() else b""
            self.print(line_of(request, body, response))
            return response

        app.middlewares.insert(0, show)

    def print(self, line: Line) -> None:
        """Print one line."""
        now = time.strftime("%H:%M:%S")
        left = f"{self._credits():g} left"
        if self._console is None:
            print(f"{now}  {line.kind:8}  {line.asked:{ASKED}}  {line.answer}  ({left})", flush=True)
            return
        from rich.text import Text

        style = "green" if line.good else "bold red"
        text = Text.assemble(
            (f"{now}  ", "dim"),
            (f"{line.kind:8}  ", "bold"),
            f"{line.asked:{ASKED}}  ",
            (line.answer, style),
            (f"  ({left})", "dim"),
        )
        self._console.print(text, no_wrap=True, overflow="ellipsis")


def _kind_of(path: str) -> str:
    if path.startswith("/api/file-"):
        return "upload"
    if path.startswith(("/s/", "/kieai/")):
        return "image" if path.startswith("/s/") else "file"
    return _KINDS.get(path, "other")


def _asked_in(kind: str, request: web.Request, body: bytes) -> str:
    """What was asked, in the words of the one who asked."""
    if kind == "look":
        return f"task {request.query.get('taskId', '')}"
    fields = _json_object(body) if kind in ("submit", "link") else {}
    asked = fields.get("prompt" if kind == "submit" else "url")
    if kind == "submit" and not asked:
        asked = fields.get("filesUrl") or fields.get("fileUrl")
    if asked:
        return str(asked)
    return "" if kind == "credits" else f"{request.method} {unquote(request.path)}"


def _answer_of(kind: str, response: web.StreamResponse) -> tuple[str, bool]:
    """What was answered, and whether it is good news."""
    body = response.body if isinstance(response, web.Response) else None
    envelope = _json_object(body) if isinstance(body, bytes) else {}
    usual = response.status in (200, envelope.get("code"))
    status = "" if usual else f"HTTP {response.status} "
    if "code" not in envelope:
        size = f"{len(body)} bytes" if isinstance(body, bytes) else ""
        return f"{status}{size}".strip(), response.status < 400
    code, data = envelope["code"], envelope.get("data")
    if code != 200:
        return f"{status}{code} {_plain(str(envelope.get('msg', '')))}", False
    if kind == "look" and isinstance(data, dict):
        return _state_of(data)
    if kind == "submit" and isinstance(data, dict):
        return f"{status}task {str(data.get('taskId'))[:SHOWN_ID]}", True
    return f"{status}{data}" if kind == "credits" else f"{status}200", True


def _state_of(record: dict[str, Any]) -> tuple[str, bool]:
    """The state of a task that a record shows."""
    failed = record.get("successFlag") in (2, 3)
    detail = (
        f"{record.get('errorCode')} {record.get('errorMessage')}" if failed else record.get("progress", "")
    )
    return _plain(f"{record.get('status', '')} {detail}".strip()), not failed


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _plain(text: str) -> str:
    """A text in one line of at most 60 characters that does nothing to a terminal."""
    text = "".join(each if each.isprintable() else "?" for each in " ".join(text.split()))
    return text if len(text) <= ASKED else text[: ASKED - 1] + "…"
