"""Uploads: the three ways to send a file, and the refusals of each (page "file upload")."""

import base64
import mimetypes
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import attrs
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from .envelopes import json_object
from .tasks import Answer

SOURCES = {
    "/api/file-base64-upload": "base64Data",
    "/api/file-stream-upload": "file",
    "/api/file-url-upload": "fileUrl",
}  # the field with the file, by path

USER = "10001"  # the user number in the paths of uploads
MAGIC = ((0, b"\x89PNG", "image/png"), (0, b"\xff\xd8\xff", "image/jpeg"), (8, b"WEBP", "image/webp"))

BAD_BASE64 = Answer(400, "Base64 decoding failed: Invalid Base64 format", http_status=400)
UNREACHABLE = Answer(400, "Failed to download file from URL")
MISSING = {
    "uploadPath": Answer(400, "Missing required parameter: uploadPath", http_status=400),
    "base64Data": Answer(400, "Missing required parameter: base64Data"),
    "file": Answer(400, "Missing required parameter: file"),
    "fileUrl": Answer(400, "Missing required parameter: fileUrl (file download URL)"),
}

Fetch = Callable[[str], Awaitable[bytes | None]]


@attrs.frozen
class Upload:
    """A stored file, and the answer to its upload."""

    path: str
    content: bytes
    mime: str
    answer: Answer


async def receive(request: web.Request, fetch: Fetch, *, moment: float, url: str) -> Upload | Answer:
    """Read the file that a request holds or points to, or the answer that refuses the request.

    `fetch` reads a file by its URL, `moment` is unix time, `url` is where files are served.
    """
    fields = await _fields(request)
    source = SOURCES[request.path]
    missing = next((name for name in ("uploadPath", source) if fields.get(name, "") == ""), None)
    if missing:
        return MISSING[missing]
    content = await _read_source(source, fields[source], fetch)
    if isinstance(content, Answer):
        return content
    folder, name = str(fields["uploadPath"]), str(fields.get("fileName", ""))
    return _stored(content, folder, name, moment=moment, url=url)


async def _read_source(source: str, value: str | bytes, fetch: Fetch) -> bytes | Answer:
    if source == "base64Data":
        return _decode_base64(value)
    if source == "fileUrl":
        content = await fetch(str(value))
        return UNREACHABLE if content is None else content
    return value if isinstance(value, bytes) else value.encode()


def _decode_base64(text: str | bytes) -> bytes | Answer:
    if isinstance(text, bytes):
        return BAD_BASE64
    try:
        return base64.b64decode(text.partition(";base64,")[2] or text, validate=True)
    except ValueError:
        return BAD_BASE64


def _stored(content: bytes, folder: str, name: str, *, moment: float, url: str) -> Upload:
    mime = next((mime for offset, magic, mime in MAGIC if content.startswith(magic, offset)), None)
    mime = mime or mimetypes.guess_type(name)[0] or "application/octet-stream"
    name = name or f"{int(moment * 1000)}-{secrets.token_hex(4)}{mimetypes.guess_extension(mime) or ''}"
    path = f"/kieai/{USER}/{folder.strip('/')}/{name}".encode("utf-8", "replace").decode()
    uploaded = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
    data: dict[str, Any] = {
        "success": True,
        "fileName": name,
        "filePath": path[1:],
        "downloadUrl": url + quote(path),
        "fileSize": len(content),
        "mimeType": mime,
        "uploadedAt": uploaded.replace("+00:00", "Z"),
    }
    return Upload(path, content, mime, Answer(200, "File uploaded successfully", data=data))


async def _fields(request: web.Request) -> dict[str, str | bytes]:
    """The fields of an upload, from JSON or a form: text, and files as bytes. Other values are ignored."""
    if request.content_type == "application/json":
        body = await json_object(request)
        items = body.items() if isinstance(body, dict) else ()
        return {name: value for name, value in items if isinstance(value, str)}
    try:
        form = await request.post()
    except (ValueError, RuntimeError, HttpProcessingError):  # no boundary, an unknown encoding, a bad header
        return {}
    fields: dict[str, str | bytes] = {}
    for name, value in form.items():
        if isinstance(value, web.FileField):
            with value.file as file:
                fields[name] = file.read()
        else:
            fields[name] = bytes(value) if isinstance(value, bytearray) else value
    return fields
