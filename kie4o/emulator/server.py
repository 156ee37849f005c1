"""The emulator: a `Service` with a clock and a socket.

What a test holds: it starts and stops, plans what happens and goes wrong, and sends callbacks. The HTTP is
in `routes`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, Literal, Self, TypeVar, Unpack

import attrs
from aiohttp import web
from attrs.validators import in_

from .account import Plan
from .addresses import is_loopback, reachable
from .callbacks import Call, CallbackRequest, CallRecord, build_callback
from .clock import DAY, LoopClock, VirtualTime
from .delivery import Delivery
from .faults import Fault, FaultOptions, Kind, parse_fault
from .files import Files
from .listening import Listener
from .routes import KINDS, Routes
from .seen import describe
from .sender import CallbackSender
from .service import Service
from .tasks import Outcome, Progress, Seconds, Task, seconds
from .thread import LoopThread, OnThread
from .values import DURATION, NOT_NEGATIVE, POSITIVE

SHUTDOWN = 0.05  # real seconds that open requests have to finish when the emulator closes

T = TypeVar("T")


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
        looks: Tasks end at this status check instead, and call back then; for tests that have no clock.
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
    speed: float = attrs.field(default=1.0, validator=POSITIVE)
    grace: float = attrs.field(default=0.0, validator=NOT_NEGATIVE)
    time_limit: float = attrs.field(default=DAY, validator=POSITIVE)
    latency: Seconds = attrs.field(default=0.0, validator=DURATION)
    look_latency: Seconds = attrs.field(default=0.0, validator=DURATION)
    pictures: bool = True
    webhook_key: str | bytes | None = attrs.field(default=None, repr=False)
    callback_timeout: float = attrs.field(default=15.0, validator=POSITIVE)
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

    @staticmethod
    @contextlib.contextmanager
    def in_thread(**settings: Any) -> Iterator[ThreadedEmulator]:
        """An emulator in a thread of its own: `with Emulator.in_thread(speed=100) as kie:`.

        It is for tests without an event loop, and for fixtures that outlive one. Clients in any loop, thread
        or process can use it, in real time. `kie.run(coroutine)` is for those that have no loop: it runs in
        the loop of the emulator and, unless the emulator has a `speed` or ``clock="real"``, in virtual time.

        Args:
            settings: The arguments of `Emulator`.

        Raises:
            ValueError: An argument has a value that is not allowed.
            OSError: The address cannot be used.
        """
        kie, home = ThreadedEmulator(**settings), LoopThread("kie4o emulator")
        try:
            home.start()
            home.run(kie.start())
            kie._home = home
            yield kie
        finally:
            try:
                if kie._home is not None:
                    home.run(kie.aclose())
            finally:
                home.stop()

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
            undo.enter_context(self._time())
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
        looks: int | None = None,
        outcome: str | Outcome | None = None,
        progress: Progress | None = None,
        answer: Fault | int | str | None = None,
        callback: Call | str | None = None,
    ) -> None:
        """Arrange what happens to the next submit with this prompt; called again, to the one after it.

        Plans of a prompt take precedence over those of `next`. A submit that is refused because of the limit
        or the balance does not use up its plan.

        Args:
            prompt: The exact prompt.
            duration: How long the task takes in emulated seconds; a number, or a function that returns it.
            looks: The task ends at this status check instead, whatever the time.
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
            Plan(
                duration=duration,
                looks=looks,
                outcome=outcome,
                progress=progress,
                answer=answer,
                callback=callback,
            )
        )

    def next(
        self,
        *,
        duration: Seconds | None = None,
        looks: int | None = None,
        outcome: str | Outcome | None = None,
        progress: Progress | None = None,
        answer: Fault | int | str | None = None,
        callback: Call | str | None = None,
    ) -> None:
        """Arrange what happens to the next submit, whatever its prompt; called again, to the one after it.

        A submit whose prompt has a `plan` leaves this one to the next.

        Args:
            duration: How long the task takes in emulated seconds; a number, or a function that returns it.
            looks: The task ends at this status check instead, whatever the time.
            outcome: How the task ends, as in `plan`.
            progress: "jump" or "linear".
            answer: What the submit is answered, as in `plan`.
            callback: How the task calls back, as in `plan`.

        Raises:
            ValueError: A value is not allowed.
        """
        self._next.append(
            Plan(
                duration=duration,
                looks=looks,
                outcome=outcome,
                progress=progress,
                answer=answer,
                callback=callback,
            )
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

    def _time(self) -> contextlib.AbstractContextManager[object]:
        """Virtual time, as long as the emulator is open."""
        if self.clock == "real":
            return contextlib.nullcontext()
        return VirtualTime(grace=self.grace, limit=self.time_limit)

    def _unix_time(self) -> float:
        if self.clock == "real" or self.wall is not time.time:
            return self.wall() + self._ahead
        return LoopClock.of(asyncio.get_running_loop()).read(time.time) + self._ahead

    async def picture(self, path: str) -> tuple[bytes, str] | None:
        """The bytes and the MIME type of an image, for the page."""
        return await self._files.read(path)

    def _app(self) -> web.Application:
        return Routes(self, self._files, self._delivery).app()

    async def delay_submit(self) -> None:
        """Wait for the latency of a submit."""
        await self.pause(self.latency)

    async def pause(self, duration: Seconds) -> None:
        """Sleep for emulated seconds."""
        await asyncio.sleep(seconds(duration) / self.speed)

    async def schedule_callback(self, task: Task) -> None:
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


class ThreadedEmulator(OnThread, Emulator):
    """What `Emulator.in_thread` opens: an `Emulator` that any thread can use."""

    _called_anywhere = frozenset({"run"})

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop of the emulator, and return its result.

        Args:
            coroutine: Such as ``client.generate("A lake")``, of a client that no other loop has used.

        Raises:
            HangError: It waits for nothing, or longer than `time_limit`.
        """
        if self._home is None or not self._home.is_elsewhere:
            coroutine.close()
            raise RuntimeError("run() is for other threads than that of the emulator, while it is open")
        return self._home.run(self._in_its_time(coroutine))

    def _time(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()  # while it only serves others

    async def _in_its_time(self, coroutine: Coroutine[Any, Any, T]) -> T:
        with super()._time():
            return await coroutine
