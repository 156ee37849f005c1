"""The emulator: a `Service` with a clock and a socket.

The routes are here, and what belongs to HTTP: keys, bodies, status codes, delays. `account` decides
what Kie answers. API, uploads and files are served from one address, although Kie has three.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import Literal, Self, Unpack

import attrs
from aiohttp import web
from attrs.validators import ge, gt, in_
from multidict import CIMultiDict, CIMultiDictProxy

from . import control, page
from .account import Account, Plan
from .addresses import is_loopback, reachable
from .callbacks import Call, CallbackRequest, CallRecord, build_callback
from .clock import DAY, LoopClock, VirtualTime
from .delivery import KIND_OF_UPLOADS, Delivery
from .envelopes import (
    ANSWER,
    SEEN,
    UNAUTHORIZED,
    UPLOAD_UNAUTHORIZED,
    Envelope,
    api_envelope,
    json_object,
    spring_error,
    upload_envelope,
)
from .faults import Fault, FaultOptions, Kind, parse_fault
from .files import Files
from .listening import Listener
from .seen import Look, Submit, describe, without_key
from .sender import CallbackSender
from .service import Service
from .tasks import Answer, Outcome, Progress, Seconds, Task, seconds
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
SHUTDOWN = 0.05  # real seconds that open requests have to finish when the emulator closes

ACCOUNT = web.RequestKey("account", Account)  # that of the API key, and the key
KEY = web.RequestKey("key", str)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@attrs.define(kw_only=True, eq=False, repr=False)
class Emulator(Service):
    """A Kie on localhost: `async with Emulator() as kie:`, with clients that have `base_url=kie.url`.

    It has Kie's limits, failures and callbacks, and submits are paid from its own `credits`. While it is open
    the time of the event loop is virtual: it jumps to the next timer whenever nothing is ready. So five
    minutes take milliseconds, also those of your own sleeps and timeouts. Clients in another process or
    another event loop need ``clock="real"``, or a `speed`. Durations are seconds of this clock. A duration
    that is given as a function is computed anew for each task or request.

    Args:
        duration: How long a task takes; a number or a function.
        outcome: How tasks end. "success"; "partial": a success with one image fewer than requested;
            "no_images": a success without images (`NoImagesError` in the client); "failed": an internal
            error, code 500 (`TaskFailedError`); "create_failed": likewise, when the task is created;
            "policy": against the content policy, code 400 (`ContentPolicyError`); "input": an input image
            cannot be downloaded, code 451 (`InputImageError`); "stuck": never (`TaskTimeoutError`);
            "missing": Kie does not know the task (`TaskNotFoundError`). An `Outcome` changes the code and
            the message of one of these.
        progress: "jump": 0.00 until the task ends, as recorded from Kie; "linear": grows evenly.
        limit: How many new tasks are accepted in any `per` seconds; more are refused with code 429.
        per: The length of that window.
        status_429: The HTTP status of these refusals; Kie sends 200 with most other errors.
        looks_per_second: How many status checks of one task are answered in any second; more are refused
            with code 429.
        record_delay: How long Kie does not know a task after its submit.
        credits: The balance, which may be set at any time; a submit that costs more is refused with code 402.
        prices: Credits by number of variants, such as ``{1: 6, 2: 11, 4: 20}``; by default 6 for each image.
        caps: Credits that an API key may spend, by key; what goes beyond is refused with code 433.
        callback: How tasks that have a callback URL use it: a `Call`, or a name for one. "end": when the
            task ends; "late": 30 seconds after that; "twice": two at once; "never"; "early": before the
            submit is answered; "together": at that moment. The contents of a `Call` are names too:
            "altered", "false failure", "forged", "replayed" and "unknown task".
        magic: False takes prompts with ``[[kie:policy]]``, ``[[kie:455]]`` and so on literally. Otherwise
            they name the outcome of their task, or the answer to their submit.
        seed: Makes task ids, and faults with a probability, the same in every run.
        port: The port to listen on; 0 picks a free one.
        host: The address to listen on. "0.0.0.0" and "::" are every interface.
        allow_remote: Answer other machines too. Otherwise they are refused with status 403. The client
            uses plain http on loopback only, so elsewhere it needs a proxy that speaks TLS.
        api_key: The only key that is accepted, beside those of `caps` and `accounts`; None accepts any.
        accounts: Other accounts by their API keys, each an `Account` with its own credits, limits and tasks.
            All of them share the plans of the emulator.
        clock: "virtual" or "real"; by default virtual, unless there is a `speed`. Virtual time needs an event
            loop of asyncio itself.
        speed: Emulated seconds per real second, for a real clock. Up to 100 is reliable.
        grace: Real seconds that virtual time waits before each jump, for answers of another process.
        time_limit: Virtual seconds after which a `HangError` names what still waits.
        latency: Delay between a submit and its answer; a number or a function. The task is created before it.
        look_latency: The same for a status check.
        pictures: False serves one transparent pixel for every image, which is faster than a drawn picture.
        webhook_key: Signs the callbacks; None leaves them unsigned.
        callback_timeout: How long the receiver of a callback has to answer it.
        wall: A function that returns the unix time, for the times in records and signatures.

    Attributes:
        submits: Every submit that arrived, accepted or not: its `request`, `ref`, `task_id` and `answer`.
        tasks: Every task by its id. This, `credits`, `paid`, `spent` and `windows()` are those of the
            emulator's own account; `accounts[key]` has those of another.
        requests: How many requests arrived at each route.
        user_agents: Every User-Agent that a request had.
        leaked_keys: The path of each file that was requested with an API key, which belongs to the API only.

    Raises:
        ValueError: An argument has a value that is not allowed.
    """

    port: int = 0
    host: str = "127.0.0.1"
    allow_remote: bool = False
    clock: Literal["virtual", "real"] | None = attrs.field(
        default=None, validator=in_(("virtual", "real", None))
    )
    speed: float = attrs.field(default=1.0, validator=gt(0))
    grace: float = attrs.field(default=0.0, validator=ge(0))
    time_limit: float = attrs.field(default=DAY, validator=gt(0))
    latency: Seconds = 0.0
    look_latency: Seconds = 0.0
    pictures: bool = True
    webhook_key: str | bytes | None = attrs.field(default=None, repr=False)
    callback_timeout: float = attrs.field(default=15.0, validator=gt(0))
    wall: Callable[[], float] = time.time

    _files: Files = attrs.field(init=False, repr=False)
    _opened: contextlib.AsyncExitStack = attrs.field(
        factory=contextlib.AsyncExitStack, init=False, repr=False
    )
    _delivery: Delivery = attrs.field(init=False, repr=False)
    _listener: Listener | None = attrs.field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if not (self.allow_remote or is_loopback(reachable(self.host))):
            raise ValueError(
                f"host={self.host!r} is not on loopback; allow_remote=True serves other machines"
            )
        if self.clock is None:
            self.clock = "virtual" if self.speed == 1.0 else "real"
        if self.clock == "virtual" and self.speed != 1.0:
            raise ValueError(f"speed={self.speed!r} is for clock='real'; virtual time has none")
        self._files = Files(self)
        self._sender = CallbackSender(self)
        self._delivery = Delivery(self, KINDS)

    def __repr__(self) -> str:
        address = self.url if self.port else "not started"
        seen = f"{self.paid} paid of {len(self.submits)}, {self.credits:g} credits left"
        return f"<Emulator {address}: {seen}; {describe(self.submits)}>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    @property
    def url(self) -> str:
        """The base URL, for `AsyncKieClient(base_url=...)` and KIE_BASE_URL."""
        host = reachable(self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def now(self) -> float:
        """Emulated seconds, on the clock of the event loop."""
        return asyncio.get_running_loop().time() * self.speed + self._ahead

    async def start(self) -> None:
        """Listen; `async with` does this. Started again after `aclose`, it has the same address and tasks.

        Raises:
            OSError: The address cannot be used, for example because the port is taken.
        """
        async with contextlib.AsyncExitStack() as undo:
            if self.clock == "virtual":
                undo.enter_context(VirtualTime(grace=self.grace, limit=self.time_limit))
            epoch = self._unix_time() - self.now()
            for account in self.all_accounts():
                account.epoch = epoch
            undo.push_async_callback(self._sender.aclose)
            runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=SHUTDOWN)
            await runner.setup()
            undo.push_async_callback(runner.cleanup)
            self._delivery.open()
            undo.callback(self._delivery.close)
            self._listener = Listener(runner)
            undo.push_async_callback(self._listener.aclose)
            self.port = await self._listener.open(self.host, self.port)
            self.refuse_if_due()
            self._opened = undo.pop_all()

    async def aclose(self) -> None:
        """Close the socket and cancel the callbacks that are not delivered yet; `async with` does this."""
        opened, self._opened = self._opened, contextlib.AsyncExitStack()
        self._listener = None
        await opened.aclose()

    def fault(self, kind: Kind | Fault, **options: Unpack[FaultOptions]) -> Fault:
        """Arrange what goes wrong with requests: `kie.fault("submit", code=455, times=2)`.

        Args:
            kind: The kind of request: "submit", "look", "credits", "link", "upload" or "image"; or a whole
                `Fault`, such as one of `parse_fault`.
            options: The other fields of `Fault`: when it fires, one effect, and the options of that.

        Raises:
            ValueError: A value is not allowed, or the fault could never fire.
        """
        fault = kind if isinstance(kind, Fault) else parse_fault({"kind": kind, **options})
        self.faults.add(fault)
        self.refuse_if_due()
        return fault

    def refuse_if_due(self) -> bool:
        """Refuse connections if it is the turn of a fault that says so. Whether it was."""
        seconds = self.faults.refusal() if self._listener is not None else None
        if self._listener is not None and seconds is not None:
            self._listener.refuse(seconds / self.speed)
        return seconds is not None

    def expire(self, task_id: str) -> None:
        """Serve the images of this task from now on through signed links only."""
        self.fault("image", image="expired", task=self.all_tasks()[task_id].id, times="always")

    def plan(
        self,
        prompt: str,
        *,
        duration: Seconds | None = None,
        outcome: str | Outcome | None = None,
        progress: Progress | None = None,
        answer: Fault | int | str | None = None,
        callback: Call | str | None = None,
    ) -> None:
        """Arrange what happens to the next submit with this prompt; called again, to the one after it.

        Plans of a prompt go before those of `next`. A submit that is refused because of the limit or the
        balance does not use up its plan.

        Args:
            prompt: The exact prompt.
            duration: How long the task takes in emulated seconds; a number, or a function that returns it.
            outcome: How the task ends: "success", "partial", "no_images", "failed", "policy", "input",
                "create_failed", "stuck", "missing" or an `Outcome`; see `Emulator`.
            progress: "jump" or "linear".
            answer: What the submit is answered: a code, such as 550, which creates no task; "dropped",
                which creates and charges the task but loses the answer; or a `Fault` of a submit.
            callback: How the task calls back: "end", "late", "twice", "never", "early", "together", the
                name of a content or a `Call`; see `Emulator`.

        Raises:
            ValueError: A value is not one of those above.
        """
        self._plans[prompt].append(
            Plan(duration=duration, outcome=outcome, progress=progress, answer=answer, callback=callback)
        )

    def next(
        self,
        *,
        duration: Seconds | None = None,
        outcome: str | Outcome | None = None,
        progress: Progress | None = None,
        answer: Fault | int | str | None = None,
        callback: Call | str | None = None,
    ) -> None:
        """Arrange what happens to the next submit, whatever its prompt; called again, to the one after it.

        A submit whose prompt has a `plan` leaves this one to the next.

        Args:
            duration: How long the task takes in emulated seconds; a number, or a function that returns it.
            outcome: How the task ends, as in `plan`.
            progress: "jump" or "linear".
            answer: What the submit is answered, as in `plan`.
            callback: How the task calls back, as in `plan`.

        Raises:
            ValueError: A value is not allowed.
        """
        self._next.append(
            Plan(duration=duration, outcome=outcome, progress=progress, answer=answer, callback=callback)
        )

    async def call_back(self, task_id: str, content: str = "true", url: str | None = None) -> CallRecord:
        """Post one callback of a task now, whether it has ended or not. It is not repeated.

        Args:
            task_id: A key of `tasks`.
            content: What it says: "true" (also of a running task: how it will end), "altered",
                "false failure", "forged", "replayed" or "unknown task"; see `Call`.
            url: Where to post it; by default the task's own callback URL.

        Returns:
            The attempt, with the HTTP status of the answer. URLs outside this machine are not opened; the
            record then has `sent=False`.

        Raises:
            KeyError: There is no such task.
            ValueError: The task never ends, has no callback URL while `url` is None, or `content` is unknown.
        """
        task, call = self.all_tasks()[task_id], Call(content=content)
        url = url or task.callback_url
        if url is None:
            raise ValueError(f"task {task_id} has no callBackUrl; pass url=")
        return await self._sender.send(self._callback_request(task, url, call), call)

    def _callback_request(self, task: Task, url: str, call: Call) -> CallbackRequest:
        return build_callback(
            task.report(url=self.url),
            call,
            task_id=task.id,
            url=url,
            key=self.webhook_key,
            timestamp=int(self._unix_time()),
        )

    def _unix_time(self) -> float:
        if self.clock == "real" or self.wall is not time.time:
            return self.wall() + self._ahead
        return LoopClock.of(asyncio.get_running_loop()).read(time.time) + self._ahead

    def _app(self) -> web.Application:
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
        page.add_routes(app, self)
        control.add_routes(app, self)
        return app

    @web.middleware
    async def _refuse_remote(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self.allow_remote or is_loopback(request.remote):
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
        self.requests[path] += 1
        self.user_agents.add(request.headers.get("User-Agent", ""))
        try:
            await self._record(request, path)
            return await handler(request)
        except web.HTTPException as error:
            return spring_error(request.path, HTTPStatus(error.status))
        except ConnectionError:  # the client disconnected within its body; this answer reaches no one
            return web.Response(status=400)
        finally:
            self.changed()

    async def _handle_control(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as error:  # another method than GET of a file
            return control.refusal(error.status, f"{request.method} {request.path}: {error.reason}")
        finally:
            if request.method != "GET":
                self.changed()

    async def picture(self, path: str) -> tuple[bytes, str] | None:
        """The bytes and the MIME type of an image, for the page."""
        return await self._files.read(path)

    def _with_key(
        self,
        handler: Callable[[web.Request], Awaitable[Answer]],
        refusal: Answer,
        envelope: Envelope,
    ) -> Handler:
        """A handler that answers `refusal` to requests without an accepted API key."""

        async def respond(request: web.Request) -> web.StreamResponse:
            scheme, _, key = request.headers.get("Authorization", "").partition(" ")
            account = self.account_of(key) if scheme == "Bearer" and key else None
            if account is not None:
                request[ACCOUNT], request[KEY] = account, key
            request[ANSWER] = answer = refusal if account is None else await handler(request)
            if SEEN in request:
                request[SEEN].answer = answer
            return envelope(answer)

        return respond

    async def delay_submit(self) -> None:
        """Wait for the latency of a submit."""
        await self._sleep(self.latency)

    async def _record(self, request: web.Request, path: str) -> None:
        """Record a submit or a status check."""
        kind = KINDS.get((request.method, path))
        if kind == "submit":
            body = await request.read()
            headers = CIMultiDictProxy(CIMultiDict(without_key(request.headers.items())))
            request[SEEN] = submit = Submit(at=self.now(), body=body, headers=headers)
            self.submits.append(submit)
        elif kind == "look":
            request[SEEN] = look = Look(at=self.now(), task_id=request.query.get("taskId", ""))
            self.saw_look(look)

    async def _sleep(self, latency: Seconds) -> None:
        await asyncio.sleep(seconds(latency) / self.speed)

    async def _generate(self, request: web.Request) -> Answer:
        body = await json_object(request)
        if isinstance(body, Answer):
            return body
        answer, task = request[ACCOUNT].create_task(body, self.now(), key=request[KEY])
        if task:
            request[SEEN].task_id = task.id
        if task and task.call.when != "together":
            await self._schedule_callback(task)
        await self._sleep(self.latency)
        if task and task.call.when == "together":
            await self._schedule_callback(task)
        return answer

    async def _schedule_callback(self, task: Task) -> None:
        """Schedule the callback of a task; an early one is awaited, which delays the answer to the submit."""
        first = self._schedule(task)
        if first is not None and task.call.when == "early":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout((task.call.delay + self.callback_timeout) / self.speed):
                    await first.wait()

    def _schedule(self, task: Task) -> asyncio.Event | None:
        """Schedule the callback of a task that ends, if it has one."""
        url, call = task.callback_url, task.call
        if url is None or task.end is None or call.when == "never":
            return None
        build = partial(self._callback_request, task, url, call)
        return self._sender.schedule(build, call, due=lambda: task.created + task.duration)

    def _url_for(self, request: web.Request) -> str:
        """The base URL of files, as the client that asks can reach them."""
        return str(request.url.origin()) if self.allow_remote else self.url

    async def _record_info(self, request: web.Request) -> Answer:
        task_id = request.query.get("taskId", "")
        answer = request[ACCOUNT].look(task_id, self.now(), url=self._url_for(request))
        await self._sleep(self.look_latency)
        return answer

    async def _download_url(self, request: web.Request) -> Answer:
        body = await json_object(request)
        if isinstance(body, Answer):
            return body
        task_id, url = body.get("taskId"), body.get("url")
        if not (isinstance(task_id, str) and isinstance(url, str) and task_id and url):
            return Answer(422)
        path = self._files.path_of(url)
        answer = request[ACCOUNT].may_sign(task_id, path, self.now())
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
        moment = self.epoch + self.now()
        upload = await receive(request, self._files.fetch, moment=moment, url=self._url_for(request))
        if isinstance(upload, Answer):
            return upload
        self._files.add(upload)
        return upload.answer

    async def _file(self, request: web.Request) -> web.StreamResponse:
        if "Authorization" in request.headers:
            self.leaked_keys.append(request.path)
        signature = request.query.get("X-Amz-Signature")
        if signature is not None and not self._files.is_signed(request.path, signature):
            return web.Response(status=403)
        if signature is None and self._files.is_expired(request.path):
            return web.Response(status=404)
        found = await self._files.read(request.path)
        return web.Response(body=found[0], content_type=found[1]) if found else web.Response(status=404)
