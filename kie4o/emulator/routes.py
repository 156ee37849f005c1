"""The routes of Kie over HTTP: keys, bodies, status codes, and the record of each request.

`account` decides what Kie answers, `delivery` what goes wrong on the way. API, uploads and files are served
from one address, although Kie has three.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Protocol

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from . import control, page
from .account import Account
from .addresses import is_loopback
from .delivery import KIND_OF_UPLOADS, Delivery
from .envelopes import (
    ANSWER,
    SEEN,
    UNAUTHORIZED,
    UPLOAD_UNAUTHORIZED,
    Envelope,
    api_envelope,
    api_key,
    json_object,
    spring_error,
    upload_envelope,
)
from .faults import Kind
from .files import Files
from .seen import Look, Submit, without_key
from .tasks import Answer, Seconds, Task
from .uploads import SOURCES, receive

GENERATE = "/api/v1/gpt4o-image/generate"
RECORD_INFO = "/api/v1/gpt4o-image/record-info"
DOWNLOAD_URL = "/api/v1/gpt4o-image/download-url"
COMMON_DOWNLOAD_URL = "/api/v1/common/download-url"
CREDIT = "/api/v1/chat/credit"
IMAGES = "/s/{name}"
UPLOADS = "/kieai/{path:.+}"
KINDS: dict[tuple[str, str], Kind] = {
    ("POST", GENERATE): "submit",
    ("GET", RECORD_INFO): "look",
    ("GET", CREDIT): "credits",
    ("POST", DOWNLOAD_URL): "link",
    ("POST", COMMON_DOWNLOAD_URL): "link",
    ("GET", IMAGES): "image",
    **KIND_OF_UPLOADS,
}  # by method and route

MAX_BODY = 128 * 2**20  # page "file upload" advises at most 100 MB

ACCOUNT = web.RequestKey("account", Account)  # that of the API key, and the key
KEY = web.RequestKey("key", str)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Host(page.Kie, Protocol):
    """What the routes need of an emulator."""

    epoch: float
    latency: Seconds
    look_latency: Seconds
    user_agents: set[str]
    leaked_keys: list[str]

    def account_of(self, key: str) -> Account | None: ...
    def saw_look(self, look: Look) -> None: ...
    def changed(self) -> None: ...
    async def schedule_callback(self, task: Task) -> None: ...
    async def pause(self, duration: Seconds) -> None: ...


class Routes:
    """The routes of one emulator."""

    def __init__(self, kie: Host, files: Files, delivery: Delivery) -> None:
        self._kie = kie
        self._files = files
        self._delivery = delivery

    def app(self) -> web.Application:
        """The application, with the faults as middlewares."""
        app = web.Application(
            client_max_size=MAX_BODY,
            middlewares=[
                self._refuse_remote,
                self._delivery.reset_unread,
                self._count_request,
                self._delivery.misbehave,
            ],
        )
        for method, path, handler in (
            ("POST", GENERATE, self._generate),
            ("GET", RECORD_INFO, self._record_info),
            ("POST", DOWNLOAD_URL, self._download_url),
            ("POST", COMMON_DOWNLOAD_URL, self._common_download_url),
            ("GET", CREDIT, self._credit),
        ):
            app.router.add_route(method, path, self._with_key(handler, UNAUTHORIZED, api_envelope))
        for path in SOURCES:
            app.router.add_post(path, self._with_key(self._upload, UPLOAD_UNAUTHORIZED, upload_envelope))
        for path in (IMAGES, UPLOADS):
            app.router.add_get(path, self._file)
        page.add_routes(app, self._kie)
        control.add_routes(app, self._kie)
        return app

    @web.middleware
    async def _refuse_remote(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._kie.allow_remote or is_loopback(request.remote):
            return await handler(request)
        reason = f"This emulator serves its own machine only, and {request.remote} is another one; "
        return web.Response(status=403, text=f"{reason}--allow-remote (allow_remote=True) serves all.\n")

    @web.middleware
    async def _count_request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count the request, and answer paths and methods that Kie does not have."""
        if control.is_control(request.path):
            return await self._handle_control(request, handler)
        resource = request.match_info.route.resource
        path = resource.canonical if resource else request.path
        self._kie.requests[path] += 1
        self._kie.user_agents.add(request.headers.get("User-Agent", ""))
        try:
            await self._record(request, path)
            return await handler(request)
        except web.HTTPException as error:
            return spring_error(request.path, HTTPStatus(error.status))
        except ConnectionError:  # the client disconnected within its body; this answer reaches no one
            return web.Response(status=400)
        finally:
            self._kie.changed()

    async def _handle_control(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as error:  # another method than GET of a file
            return control.refusal(error.status, f"{request.method} {request.path}: {error.reason}")
        finally:
            if request.method != "GET":
                self._kie.changed()

    def _with_key(
        self,
        handler: Callable[[web.Request], Awaitable[Answer]],
        refusal: Answer,
        envelope: Envelope,
    ) -> Handler:
        """A handler that answers `refusal` to requests without an accepted API key."""

        async def respond(request: web.Request) -> web.StreamResponse:
            key = api_key(request)
            account = self._kie.account_of(key)
            if account is not None:
                request[ACCOUNT], request[KEY] = account, key
            request[ANSWER] = answer = refusal if account is None else await handler(request)
            if SEEN in request:
                request[SEEN].answer = answer
            return envelope(answer)

        return respond

    async def _record(self, request: web.Request, path: str) -> None:
        """Record a submit or a status check."""
        kind = KINDS.get((request.method, path))
        if kind == "submit":
            body = await request.read()
            headers = CIMultiDictProxy(CIMultiDict(without_key(request.headers.items())))
            request[SEEN] = submit = Submit(at=self._kie.now(), body=body, headers=headers)
            self._kie.submits.append(submit)
        elif kind == "look":
            request[SEEN] = look = Look(at=self._kie.now(), task_id=request.query.get("taskId", ""))
            self._kie.saw_look(look)

    async def _generate(self, request: web.Request) -> Answer:
        body = await json_object(request)
        if isinstance(body, Answer):
            return body
        answer, task = request[ACCOUNT].create_task(body, self._kie.now(), key=request[KEY])
        if task:
            request[SEEN].task_id = task.id
        if task and task.call.when != "together":
            await self._kie.schedule_callback(task)
        await self._kie.pause(self._kie.latency)
        if task and task.call.when == "together":
            await self._kie.schedule_callback(task)
        return answer

    def _url_for(self, request: web.Request) -> str:
        """The base URL of files, as the client that asks can reach them."""
        return str(request.url.origin()) if self._kie.allow_remote else self._kie.url

    async def _record_info(self, request: web.Request) -> Answer:
        account, task_id = request[ACCOUNT], request.query.get("taskId", "")
        task = account.tasks.get(task_id)
        waits_for_look = task is not None and task.looks_left > 0
        answer = account.look(task_id, self._kie.now(), url=self._url_for(request))
        if task is not None and waits_for_look and not task.looks_left:
            await self._kie.schedule_callback(task)
        await self._kie.pause(self._kie.look_latency)
        return answer

    async def _download_url(self, request: web.Request) -> Answer:
        body = await json_object(request)
        if isinstance(body, Answer):
            return body
        task_id, url = body.get("taskId"), body.get("url")
        if not (isinstance(task_id, str) and isinstance(url, str) and task_id and url):
            return Answer(422)
        path = self._files.path_of(url)
        answer = request[ACCOUNT].may_sign(task_id, path, self._kie.now())
        return Answer(200, data=self._files.sign(path)) if answer.code == 200 else answer

    async def _common_download_url(self, request: web.Request) -> Answer:
        body = await json_object(request)
        if isinstance(body, Answer):
            return body
        path = self._files.path_of(str(body.get("url")))
        if not self._files.exists(path):
            return Answer(422, "url is wrong")
        return Answer(200, data=self._files.sign(path))

    async def _credit(self, request: web.Request) -> Answer:
        balance = request[ACCOUNT].credits
        return Answer(200, data=int(balance) if float(balance).is_integer() else balance)

    async def _upload(self, request: web.Request) -> Answer:
        moment = self._kie.epoch + self._kie.now()
        upload = await receive(request, self._files.fetch, moment=moment, url=self._url_for(request))
        if isinstance(upload, Answer):
            return upload
        self._files.add(upload)
        return upload.answer

    async def _file(self, request: web.Request) -> web.StreamResponse:
        if "Authorization" in request.headers:
            self._kie.leaked_keys.append(request.path)
        signature = request.query.get("X-Amz-Signature")
        if signature is not None and not self._files.is_signed(request.path, signature):
            return web.Response(status=403)
        if signature is None and self._files.is_expired(request.path):
            return web.Response(status=404)
        found = await self._files.read(request.path)
        return web.Response(body=found[0], content_type=found[1]) if found else web.Response(status=404)
