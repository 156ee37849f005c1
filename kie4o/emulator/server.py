"""The emulator: a `Kie` with a clock and a socket.

Here live the routes and what belongs to HTTP: keys, bodies, envelopes, files, delays. What Kie decides
is in `tasks`. API, uploads and files are served from one address, although Kie has three.
"""

import asyncio
import base64
import json
import mimetypes
import re
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import quote, unquote, urlencode

import attrs
from aiohttp import web
from attrs.validators import gt

from .pictures import BLANK, draw
from .tasks import KEPT, LINK_LIFE, Answer, Kie, Outcome, Plan, Progress, Seconds, Task, seconds

GENERATE = "/api/v1/gpt4o-image/generate"
RECORD_INFO = "/api/v1/gpt4o-image/record-info"
DOWNLOAD_URL = "/api/v1/gpt4o-image/download-url"
COMMON_DOWNLOAD_URL = "/api/v1/common/download-url"
CREDIT = "/api/v1/chat/credit"
BASE64_UPLOAD = "/api/file-base64-upload"
STREAM_UPLOAD = "/api/file-stream-upload"
URL_UPLOAD = "/api/file-url-upload"
IMAGES = "/s/{name}"
UPLOADS = "/kieai/{path:.+}"

LARGEST_BODY = 128 * 2**20  # uploads of 100 MB are advised as the most
SHUTDOWN = 0.05  # real seconds that open requests get when the emulator is left
USER = "10001"  # the user number in the paths of uploads
IMAGE_PATH = re.compile(r"/s/([0-9a-f]{32})_\d_\d+_\d{4}\.png")
MAGIC = ((0, b"\x89PNG", "image/png"), (0, b"\xff\xd8\xff", "image/jpeg"), (8, b"WEBP", "image/webp"))

UNAUTHORIZED = Answer(401)  # Kie says the same of a wrong Content-Type
UPLOAD_UNAUTHORIZED = Answer(401, "Authentication failed: Invalid API Key", 401)
BAD_BASE64 = Answer(400, "Base64 decoding failed: Invalid Base64 format", 400)
UNREACHABLE = Answer(400, "Failed to download file from URL")
MISSING = {
    "uploadPath": Answer(400, "Missing required parameter: uploadPath", 400),
    "base64Data": Answer(400, "Missing required parameter: base64Data"),
    "file": Answer(400, "Missing required parameter: file"),
    "fileUrl": Answer(400, "Missing required parameter: fileUrl (file download URL)"),
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@attrs.define(kw_only=True, eq=False)
class Emulator(Kie):
    """A Kie on localhost: `async with Emulator() as kie:` and point a client at `kie.url`.

    `speed` is emulated seconds per second; every other duration is in emulated seconds. `duration` and
    both latencies may be functions that are asked once per task or request. `api_key=None` takes any key.
    """

    port: int = 0
    host: str = "127.0.0.1"
    api_key: str | None = None
    speed: float = attrs.field(default=1.0, validator=gt(0))
    latency: Seconds = 0.0
    look_latency: Seconds = 0.0
    pictures: bool = True

    posts: int = attrs.field(default=0, init=False)
    requests: Counter[str] = attrs.field(factory=Counter, init=False)
    user_agents: set[str] = attrs.field(factory=set, init=False)
    leaked_keys: list[str] = attrs.field(factory=list, init=False)
    _links: dict[str, tuple[str, float]] = attrs.field(factory=dict, init=False, repr=False)
    _files: dict[str, tuple[bytes, str]] = attrs.field(factory=dict, init=False, repr=False)
    _runner: web.AppRunner | None = attrs.field(default=None, init=False)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def now(self) -> float:
        """Emulated seconds, on the clock of the event loop."""
        return asyncio.get_running_loop().time() * self.speed

    async def start(self) -> None:
        """Listen; started again after `aclose` it has the same address, tasks and credits."""
        self.epoch = time.time() - self.now()
        runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=SHUTDOWN)
        await runner.setup()
        try:
            await web.TCPSite(runner, self.host, self.port).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner, self.port = runner, runner.addresses[0][1]

    async def aclose(self) -> None:
        runner, self._runner = self._runner, None
        if runner:
            await runner.cleanup()

    def plan(
        self,
        prompt: str,
        *,
        duration: Seconds | None = None,
        outcome: str | Outcome | None = None,
        progress: Progress | None = None,
        answer: Answer | int | None = None,
    ) -> None:
        """Arrange the next task with this prompt; called again, the one after it."""
        self._plans[prompt].append(Plan(duration, outcome, progress, self._answer(answer)))

    def next(
        self,
        *,
        duration: Seconds | None = None,
        outcome: str | Outcome | None = None,
        progress: Progress | None = None,
        answer: Answer | int | None = None,
    ) -> None:
        """Arrange the next submit, whatever its prompt; called again, the one after it."""
        self._next.append(Plan(duration, outcome, progress, self._answer(answer)))

    def _answer(self, answer: Answer | int | None) -> Answer | None:
        if isinstance(answer, int):
            return Answer(answer, http_status=self.status_429 if answer == 429 else 200)
        return answer

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=LARGEST_BODY, middlewares=[self._door])
        for method, path, handler in (
            ("POST", GENERATE, self._generate),
            ("GET", RECORD_INFO, self._record_info),
            ("POST", DOWNLOAD_URL, self._download_url),
            ("POST", COMMON_DOWNLOAD_URL, self._common_download_url),
            ("GET", CREDIT, self._credit),
        ):
            app.router.add_route(method, path, self._behind_key(handler, UNAUTHORIZED, _envelope))
        for path in (BASE64_UPLOAD, STREAM_UPLOAD, URL_UPLOAD):
            app.router.add_post(path, self._behind_key(self._upload, UPLOAD_UNAUTHORIZED, _upload_envelope))
        for path in (IMAGES, UPLOADS):
            app.router.add_get(path, self._file)
        return app

    @web.middleware
    async def _door(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        path = resource.canonical if resource else request.path
        self.requests[path] += 1
        self.user_agents.add(request.headers.get("User-Agent", ""))
        try:
            if path == GENERATE and request.method == "POST":
                await request.read()
                self.posts += 1
            return await handler(request)
        except web.HTTPException as error:
            return _spring(request.path, HTTPStatus(error.status))
        except ConnectionError:  # the client left in the middle of its body: nobody reads this
            return web.Response(status=400)

    def _behind_key(
        self,
        handler: Callable[[web.Request], Awaitable[Answer]],
        refusal: Answer,
        envelope: Callable[[Answer], web.Response],
    ) -> Handler:
        async def respond(request: web.Request) -> web.StreamResponse:
            scheme, _, key = request.headers.get("Authorization", "").partition(" ")
            allowed = scheme == "Bearer" and key and self.api_key in (None, key)
            return envelope(await handler(request) if allowed else refusal)

        return respond

    async def _pause(self, latency: Seconds) -> None:
        await asyncio.sleep(seconds(latency) / self.speed)

    async def _generate(self, request: web.Request) -> Answer:
        body = await _json_object(request)
        answer = body if isinstance(body, Answer) else self.submit(body, self.now())
        await self._pause(self.latency)
        return answer

    async def _record_info(self, request: web.Request) -> Answer:
        answer = self.look(request.query.get("taskId", ""), self.now(), url=self.url)
        await self._pause(self.look_latency)
        return answer

    async def _download_url(self, request: web.Request) -> Answer:
        body = await _json_object(request)
        if isinstance(body, Answer):
            return body
        task_id, url = body.get("taskId"), body.get("url")
        if not (isinstance(task_id, str) and isinstance(url, str) and task_id and url):
            return Answer(422)
        path = self._path(url)
        answer = self.may_sign(task_id, path, self.now())
        return Answer(200, data=self._signed(path)) if answer.code == 200 else answer

    async def _common_download_url(self, request: web.Request) -> Answer:
        body = await _json_object(request)
        if isinstance(body, Answer):
            return body
        path = self._path(str(body.get("url")))
        known = path in self._files or self._image(path) is not None
        return Answer(200, data=self._signed(path)) if known else Answer(422, "url is wrong")

    async def _credit(self, request: web.Request) -> Answer:
        whole = float(self.credits).is_integer()
        return Answer(200, data=int(self.credits) if whole else self.credits)

    async def _upload(self, request: web.Request) -> Answer:
        source, read = {
            BASE64_UPLOAD: ("base64Data", self._decoded),
            STREAM_UPLOAD: ("file", self._streamed),
            URL_UPLOAD: ("fileUrl", self._fetched),
        }[request.path]
        fields = await _fields(request)
        missing = next((name for name in ("uploadPath", source) if fields.get(name, "") == ""), None)
        if missing:
            return MISSING[missing]
        content = await read(fields[source])
        if isinstance(content, Answer):
            return content
        return self._keep(content, str(fields["uploadPath"]), str(fields.get("fileName", "")))

    async def _decoded(self, text: str | bytes) -> bytes | Answer:
        if isinstance(text, bytes):
            return BAD_BASE64
        try:
            return base64.b64decode(text.partition(";base64,")[2] or text, validate=True)
        except ValueError:
            return BAD_BASE64

    async def _streamed(self, content: str | bytes) -> bytes | Answer:
        return content if isinstance(content, bytes) else content.encode()

    async def _fetched(self, url: str | bytes) -> bytes | Answer:
        """Our own files for our own URLs; the rest of the network is left alone."""
        path = self._path(str(url))
        if not path:
            return BLANK
        found = await self._content(path)
        return found[0] if found else UNREACHABLE

    def _keep(self, content: bytes, folder: str, name: str) -> Answer:
        mime = next((mime for at, magic, mime in MAGIC if content.startswith(magic, at)), None)
        mime = mime or mimetypes.guess_type(name)[0] or "application/octet-stream"
        moment = self.epoch + self.now()
        name = name or f"{int(moment * 1000)}-{secrets.token_hex(4)}{mimetypes.guess_extension(mime) or ''}"
        path = f"/kieai/{USER}/{folder.strip('/')}/{name}".encode("utf-8", "replace").decode()
        self._files[path] = (content, mime)
        uploaded = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
        data = {
            "success": True,
            "fileName": name,
            "filePath": path[1:],
            "downloadUrl": self.url + quote(path),
            "fileSize": len(content),
            "mimeType": mime,
            "uploadedAt": uploaded.replace("+00:00", "Z"),
        }
        return Answer(200, "File uploaded successfully", data=data)

    async def _file(self, request: web.Request) -> web.StreamResponse:
        if "Authorization" in request.headers:
            self.leaked_keys.append(request.path)
        signature = request.query.get("X-Amz-Signature")
        if signature is not None:
            path, until = self._links.get(signature, ("", 0.0))
            if path != request.path or self.now() >= until:
                return web.Response(status=403)
        elif self._is_gone(request.path):
            return web.Response(status=404)
        found = await self._content(request.path)
        return web.Response(body=found[0], content_type=found[1]) if found else web.Response(status=404)

    async def _content(self, path: str) -> tuple[bytes, str] | None:
        image = self._image(path)
        if image is None:
            return self._files.get(path)
        if not self.pictures:
            return BLANK, "image/png"
        task, index = image
        prompt, size = task.request.get("prompt") or "", task.request["size"]
        return await asyncio.to_thread(draw, prompt, size, index), "image/png"

    def _image(self, path: str) -> tuple[Task, int] | None:
        match = IMAGE_PATH.fullmatch(path)
        task = self.tasks.get(match[1]) if match else None
        files = task.files(self.now()) if task else []
        return (task, files.index(path)) if task and path in files else None

    def _is_gone(self, path: str) -> bool:
        image = self._image(path)
        return image is not None and (image[0].expired or self.now() - image[0].created >= KEPT)

    def _path(self, url: str) -> str:
        """The path of a URL of ours; empty if it leads anywhere else."""
        return unquote(url.removeprefix(self.url).partition("?")[0]) if url.startswith(self.url + "/") else ""

    def _signed(self, path: str) -> str:
        now, signature = self.now(), secrets.token_hex(32)
        self._links[signature] = (path, now + LINK_LIFE)
        query = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Date": f"{datetime.fromtimestamp(self.epoch + now, UTC):%Y%m%dT%H%M%SZ}",
            "X-Amz-Expires": LINK_LIFE,
            "X-Amz-Signature": signature,
        }
        return f"{self.url}{quote(path)}?{urlencode(query)}"


async def _json_object(request: web.Request) -> dict[str, Any] | Answer:
    if request.content_type != "application/json":
        return UNAUTHORIZED
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        return Answer(400)
    return body if isinstance(body, dict) else Answer(400)


async def _fields(request: web.Request) -> dict[str, str | bytes]:
    """The fields of an upload, be it JSON or a form; a file is its bytes, what is neither is left out."""
    if request.content_type == "application/json":
        body = await _json_object(request)
        items = body.items() if isinstance(body, dict) else ()
        return {name: value for name, value in items if isinstance(value, str)}
    try:
        form = await request.post()
    except ValueError:  # multipart without a boundary
        return {}
    fields: dict[str, str | bytes] = {}
    for name, value in form.items():
        if isinstance(value, web.FileField):
            with value.file as file:
                fields[name] = file.read()
        else:
            fields[name] = bytes(value) if isinstance(value, bytearray) else value
    return fields


def _envelope(answer: Answer) -> web.Response:
    """The API host: `data` is null in an error, and missing altogether in a 401."""
    body = {"code": answer.code, "msg": answer.msg}
    if answer.code != 401 or answer.data is not None:
        body["data"] = answer.data
    return _json(body, answer.http_status, "application/json;charset=UTF-8")


def _upload_envelope(answer: Answer) -> web.Response:
    """The upload host: says `success` as well, and has `data` only then."""
    body = {"success": answer.code == 200, "code": answer.code, "msg": answer.msg}
    if answer.data is not None:
        body["data"] = answer.data
    return _json(body, answer.http_status, "application/json")


def _spring(path: str, status: HTTPStatus) -> web.Response:
    """Neither host knows the path: an answer without `code` and `msg`."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    body = {"timestamp": now, "status": status.value, "error": status.phrase, "path": path}
    return _json(body, status, "application/json")


def _json(body: dict[str, Any], status: int, content_type: str) -> web.Response:
    return web.Response(body=json.dumps(body).encode(), status=status, headers={"Content-Type": content_type})
