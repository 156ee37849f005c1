"""The emulator: a `Kie` with a clock and a socket.

Here live the routes and what belongs to HTTP: keys, bodies, envelopes, files, delays. What Kie decides
is in `account`. API, uploads and files are served from one address, although Kie has three.
"""

import asyncio
import contextlib
import re
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Self
from urllib.parse import quote, unquote, urlencode

import attrs
from aiohttp import web
from attrs.validators import gt

from .account import Kie, Plan
from .callbacks import Call, CallRecord, Letter, write
from .caller import Caller
from .envelopes import (
    UNAUTHORIZED,
    UPLOAD_UNAUTHORIZED,
    Envelope,
    api_envelope,
    json_object,
    response,
    spring,
    upload_envelope,
)
from .pictures import BLANK, draw
from .tasks import KEPT, LINK_LIFE, Answer, Outcome, Progress, Seconds, Task, as_answer, seconds
from .uploads import SOURCES, receive

GENERATE = "/api/v1/gpt4o-image/generate"
RECORD_INFO = "/api/v1/gpt4o-image/record-info"
DOWNLOAD_URL = "/api/v1/gpt4o-image/download-url"
COMMON_DOWNLOAD_URL = "/api/v1/common/download-url"
CREDIT = "/api/v1/chat/credit"
IMAGES = "/s/{name}"
UPLOADS = "/kieai/{path:.+}"

LARGEST_BODY = 128 * 2**20  # uploads of 100 MB are advised as the most
SHUTDOWN = 0.05  # real seconds that open requests get when the emulator is left
IMAGE_PATH = re.compile(r"/s/([0-9a-f]{32})_\d_\d+_\d{4}\.png")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@attrs.define(kw_only=True, eq=False)
class Emulator(Kie):
    """A Kie on localhost: `async with Emulator() as kie:` and point a client at `kie.url`.

    `speed` is emulated seconds per second; every other duration is in emulated seconds. `duration` and
    both latencies may be functions that are asked once per task or request. `api_key=None` takes any key.
    Callbacks go to this machine only, signed with `webhook_key` if there is one; `wall` tells the unix time.
    """

    port: int = 0
    host: str = "127.0.0.1"
    api_key: str | None = None
    speed: float = attrs.field(default=1.0, validator=gt(0))
    latency: Seconds = 0.0
    look_latency: Seconds = 0.0
    pictures: bool = True
    webhook_key: str | bytes | None = attrs.field(default=None, repr=False)
    callback_timeout: float = attrs.field(default=15.0, validator=gt(0))
    wall: Callable[[], float] = time.time

    posts: int = attrs.field(default=0, init=False)
    requests: Counter[str] = attrs.field(factory=Counter, init=False)
    user_agents: set[str] = attrs.field(factory=set, init=False)
    leaked_keys: list[str] = attrs.field(factory=list, init=False)
    _links: dict[str, tuple[str, float]] = attrs.field(factory=dict, init=False, repr=False)
    _files: dict[str, tuple[bytes, str]] = attrs.field(factory=dict, init=False, repr=False)
    _runner: web.AppRunner | None = attrs.field(default=None, init=False)
    _caller: Caller = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._caller = Caller(self)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def callbacks(self) -> list[CallRecord]:
        """Every attempt at a callback that is over, the ones that were not sent too."""
        return self._caller.records

    def now(self) -> float:
        """Emulated seconds, on the clock of the event loop."""
        return asyncio.get_running_loop().time() * self.speed

    async def start(self) -> None:
        """Listen; started again after `aclose` it has the same address, tasks and credits."""
        self.epoch = self.wall() - self.now()
        runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=SHUTDOWN)
        await runner.setup()
        try:
            await web.TCPSite(runner, self.host, self.port).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner, self.port = runner, runner.addresses[0][1]

    async def aclose(self) -> None:
        """Close the socket, and drop the callbacks that were still to be sent."""
        runner, self._runner = self._runner, None
        try:
            if runner:
                await runner.cleanup()
        finally:
            await self._caller.aclose()

    def plan(
        self,
        prompt: str,
        *,
        duration: Seconds | None = None,
        outcome: str | Outcome | None = None,
        progress: Progress | None = None,
        answer: Answer | int | str | None = None,
        callback: Call | str | None = None,
    ) -> None:
        """Arrange the next task with this prompt; called again, the one after it."""
        answer = as_answer(answer, status_429=self.status_429)
        self._plans[prompt].append(Plan(duration, outcome, progress, answer, callback))

    def next(
        self,
        *,
        duration: Seconds | None = None,
        outcome: str | Outcome | None = None,
        progress: Progress | None = None,
        answer: Answer | int | str | None = None,
        callback: Call | str | None = None,
    ) -> None:
        """Arrange the next submit, whatever its prompt; called again, the one after it."""
        answer = as_answer(answer, status_429=self.status_429)
        self._next.append(Plan(duration, outcome, progress, answer, callback))

    async def call_back(self, task_id: str, content: str = "true", url: str | None = None) -> CallRecord:
        """Post one callback about this task now, to its own URL or another; it is not repeated."""
        task, call = self.tasks[task_id], Call(content=content)
        url = url or task.callback_url
        if url is None:
            raise ValueError(f"task {task_id} has no callBackUrl: pass a url")
        return await self._caller.send(self._letter(task, url, call), call)

    def _letter(self, task: Task, url: str, call: Call) -> Letter:
        return write(
            task.claim(url=self.url),
            call,
            task_id=task.id,
            url=url,
            key=self.webhook_key,
            timestamp=int(self.wall()),
        )

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=LARGEST_BODY, middlewares=[self._door])
        for method, path, handler in (
            ("POST", GENERATE, self._generate),
            ("GET", RECORD_INFO, self._record_info),
            ("POST", DOWNLOAD_URL, self._download_url),
            ("POST", COMMON_DOWNLOAD_URL, self._common_download_url),
            ("GET", CREDIT, self._credit),
        ):
            app.router.add_route(method, path, self._behind_key(handler, UNAUTHORIZED, api_envelope))
        for path in SOURCES:
            app.router.add_post(path, self._behind_key(self._upload, UPLOAD_UNAUTHORIZED, upload_envelope))
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
            return spring(request.path, HTTPStatus(error.status))
        except ConnectionError:  # the client left in the middle of its body: nobody reads this
            return web.Response(status=400)

    def _behind_key(
        self,
        handler: Callable[[web.Request], Awaitable[Answer]],
        refusal: Answer,
        envelope: Envelope,
    ) -> Handler:
        async def respond(request: web.Request) -> web.StreamResponse:
            scheme, _, key = request.headers.get("Authorization", "").partition(" ")
            allowed = scheme == "Bearer" and key and self.api_key in (None, key)
            return response(request, await handler(request) if allowed else refusal, envelope)

        return respond

    async def _pause(self, latency: Seconds) -> None:
        await asyncio.sleep(seconds(latency) / self.speed)

    async def _generate(self, request: web.Request) -> Answer:
        body = await json_object(request)
        answer, task = (body, None) if isinstance(body, Answer) else self.take(body, self.now())
        if task and task.call.when != "together":
            await self._begin(task)
        await self._pause(self.latency)
        if task and task.call.when == "together":
            await self._begin(task)
        return answer

    async def _begin(self, task: Task) -> None:
        """See to the callback of a task; one that is early holds the submit back until it is answered."""
        url, call = task.callback_url, task.call
        if url is None or task.end is None or call.when == "never":
            return
        first = self._caller.begin(partial(self._letter, task, url, call), call, due=task.end)
        if call.when == "early":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout((call.delay + self.callback_timeout) / self.speed):
                    await first.wait()

    async def _record_info(self, request: web.Request) -> Answer:
        answer = self.look(request.query.get("taskId", ""), self.now(), url=self.url)
        await self._pause(self.look_latency)
        return answer

    async def _download_url(self, request: web.Request) -> Answer:
        body = await json_object(request)
        if isinstance(body, Answer):
            return body
        task_id, url = body.get("taskId"), body.get("url")
        if not (isinstance(task_id, str) and isinstance(url, str) and task_id and url):
            return Answer(422)
        path = self._path(url)
        answer = self.may_sign(task_id, path, self.now())
        return Answer(200, data=self._signed(path)) if answer.code == 200 else answer

    async def _common_download_url(self, request: web.Request) -> Answer:
        body = await json_object(request)
        if isinstance(body, Answer):
            return body
        path = self._path(str(body.get("url")))
        known = path in self._files or self._image(path) is not None
        return Answer(200, data=self._signed(path)) if known else Answer(422, "url is wrong")

    async def _credit(self, request: web.Request) -> Answer:
        whole = float(self.credits).is_integer()
        return Answer(200, data=int(self.credits) if whole else self.credits)

    async def _upload(self, request: web.Request) -> Answer:
        moment = self.epoch + self.now()
        upload = await receive(request, self._fetched, moment=moment, url=self.url)
        if isinstance(upload, Answer):
            return upload
        self._files[upload.path] = (upload.content, upload.mime)
        return upload.answer

    async def _fetched(self, url: str) -> bytes | None:
        """Our own files for our own URLs; the rest of the network is left alone."""
        path = self._path(url)
        found = await self._content(path) if path else (BLANK, "")
        return found[0] if found else None

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
