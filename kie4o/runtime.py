"""What a client consists of from one opening to the next closing.

A runtime belongs to the event loop that it is first used in, and cannot be opened twice. A client that is
opened again gets a new one with the same options, so that nothing of an earlier loop is left in it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import attrs

from .callbacks.delivery import Delivery
from .clock import sleeper
from .closing import close_parts, report_unfinished
from .errors import KieError, StoreLockedError, client_closed
from .events import StoreAwaited
from .events.reporter import Reporter
from .files.transfers import Files
from .lifecycle import Lifecycle
from .models import RateLimit
from .neighbours import Neighbours
from .opening import import_late_modules
from .polling.policy import PollPolicy
from .polling.poller import TaskPoller
from .pricing import PriceList
from .settings import Settings
from .settling import Settlement
from .stores.guard import guarded
from .stores.ledger import Ledger
from .stores.shared import Limiter
from .stores.store import Reports, Store
from .submission.permit import Permits
from .submission.rate_limit import RateLimiter
from .submission.submissions import Submissions
from .transport.free_calls import FreeCalls
from .transport.transport import Transport
from .waiting import wait_uncancelled

if TYPE_CHECKING:
    import aiohttp

    from .state import ClientState

_RETRY = 0.1  # seconds between two attempts to open a store that is open elsewhere


@attrs.frozen(kw_only=True)
class Options:
    """The arguments of a client, checked. Durations are seconds.

    `speed` of these pass in each real second, except in timeouts and in `store_wait`.
    """

    settings: Settings
    timeout: float
    wait_timeout: float | None
    max_in_flight: int
    rate_limit: RateLimit
    poll: PollPolicy
    callback_url: str | None
    trust_callbacks: bool
    prices: PriceList
    store: Store
    store_wait: float
    forgets: bool  # the store ends with the client
    session: aiohttp.ClientSession | None
    proxy: str | None
    trust_env: bool
    speed: float
    reporter: Reporter


class Runtime:
    """The parts of a client. `ready` opens them on first use, `aclose` closes them for good."""

    def __init__(self, options: Options) -> None:
        self.closed: bool = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()
        self._opened = False
        self._closing: asyncio.Task[None] | None = None
        self._forgets = options.forgets
        self._store_wait = options.store_wait
        settings, timeout = options.settings, options.timeout
        proxy, trust_env = options.proxy, options.trust_env
        self.reporter: Reporter = options.reporter
        sleep = sleeper(options.speed)
        self.transport: Transport = Transport(
            settings,
            timeout=timeout,
            max_in_flight=options.max_in_flight,
            session=options.session,
            proxy=proxy,
            trust_env=trust_env,
            reporter=self.reporter,
        )
        self.free_calls: FreeCalls = FreeCalls(self.transport, sleep=sleep)
        self.files: Files = Files(
            self.transport, settings, timeout=timeout, proxy=proxy, trust_env=trust_env, sleep=sleep
        )
        self.poller: TaskPoller = TaskPoller(
            self.free_calls.details,
            policy=options.poll,
            timeout=options.wait_timeout,
            look_timeout=timeout,
            speed=options.speed,
            reporter=self.reporter,
        )
        if isinstance(options.store, Reports):
            options.store.reporter = self.reporter
        self.store: Store = guarded(options.store)
        self.ledger: Ledger = Ledger(self.store, self.reporter)
        limit = attrs.evolve(options.rate_limit, per=options.rate_limit.per / options.speed)
        shared = self.store.shared
        new_limiter = RateLimiter if shared is None else shared.limiter
        announce, lead = self.transport.prepare, self.transport.lead
        self.limiter: Limiter = new_limiter(limit, announce=announce, lead=lead, reporter=self.reporter)
        self.submissions: Submissions = Submissions(
            self.transport,
            self.limiter,
            self.ledger,
            callback_url=options.callback_url,
            prices=options.prices,
            knew=self.poller.knew,
            sleep=sleep,
            reporter=self.reporter,
        )
        self.delivery: Delivery = Delivery(
            self.store,
            self.ledger,
            self.poller,
            trusting=options.trust_callbacks,
            speed=options.speed,
            reporter=self.reporter,
        )
        self._neighbours: Neighbours | None = None
        if shared is not None:
            self._neighbours = Neighbours(shared, self.poller, self.delivery, speed=options.speed)
        self.settlement: Settlement = Settlement(
            store=self.store,
            ledger=self.ledger,
            submissions=self.submissions,
            poller=self.poller,
            delivery=self.delivery,
            reporter=self.reporter,
        )
        self.lifecycle: Lifecycle = Lifecycle(
            ready=self.ready,
            store=self.store,
            ledger=self.ledger,
            submissions=self.submissions,
            poller=self.poller,
            delivery=self.delivery,
            callback_url=options.callback_url,
            loopback=settings.loopback,
            permits=Permits(options.max_in_flight, self.reporter),
            reporter=self.reporter,
        )

    @property
    def in_use(self) -> bool:
        """Whether it was opened and not closed."""
        return self._opened and not self.closed

    @property
    def abandoned(self) -> bool:
        """Whether it could not be opened in a loop that has ended."""
        return not self._opened and self._loop is not None and self._loop.is_closed()

    async def ready(self) -> Runtime:
        """Itself, for every public method: opened on first use, refused after closing or in another loop."""
        if self.closed:
            raise client_closed()
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise KieError(
                "a client belongs to one event loop until it is closed; use `async with client` in each "
                "asyncio.run()"
            )
        self._loop = loop
        self.reporter.refresh()
        if not self._opened:
            until = loop.time() + self._store_wait  # also for a caller that waits for another's attempt
            async with self._opening:
                if self.closed:
                    raise client_closed()
                if not self._opened:
                    await self._open(until)
        return self

    def state(self) -> ClientState:
        """What it does now, without what only the store knows. Any thread may ask."""
        from .state import ClientState, LastFailure

        now = 0.0 if self._loop is None else self._loop.time()
        permits, heard_at = self.lifecycle.permits, self.delivery.heard_at
        return ClientState(
            open=self.in_use,
            in_flight=permits.in_use,
            max_in_flight=permits.limit,
            waiting_for_place=permits.waiting,
            waiting_for_slot=self.limiter.waiting,
            submits=self.submissions.live,
            tasks=self.poller.waiting,
            window_used=self.limiter.used(now),
            window_limit=self.limiter.limit.limit,
            next_slot=self.limiter.next_slot(now),
            failures=tuple(
                LastFailure(call, cause=cause, ago=ago) for call, cause, ago in self.reporter.failures()
            ),
            callback_ago=None if heard_at is None else now - heard_at,
            callbacks_missing=self.poller.callbacks_missing,
        )

    async def state_and_store(self) -> ClientState:
        """What it does now. It opens nothing, and raises nothing if the store fails."""
        from .state import with_store

        if not self.in_use:
            return self.state()
        await self.ready()  # which refuses another event loop
        return await with_store(self.state(), self.store, self.limiter.limit.per)

    async def aclose(self) -> None:
        """Close everything, also while the caller is being cancelled. A second call waits for the first."""
        self.closed = True
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(), name="kie4o closing")
        await wait_uncancelled([self._closing])
        self._closing.result()

    async def wait_closed(self) -> None:
        """Wait for the end of a closing, whether it succeeds or not."""
        closing = self._closing
        if closing is None or closing.done():
            return
        if closing.get_loop() is not asyncio.get_running_loop():
            raise KieError("the client is still being closed in another event loop")
        await asyncio.wait([closing])

    async def _open(self, until: float) -> None:
        """Open the store. What it saw submitted recently still counts against the account's limit."""
        import_late_modules()
        await self._open_store(until)
        try:
            ages = await self.store.recent(self.limiter.limit.per)
            if self.closed:  # closing has given up on a store that took too long to open
                raise client_closed()
        except BaseException:
            await wait_uncancelled([asyncio.ensure_future(self.store.aclose())])
            raise
        self.limiter.remember(ages)
        if self._neighbours is not None:
            self._neighbours.start()
        self._opened = True

    async def _open_store(self, until: float) -> None:
        """If another client or process has the store open, wait for it: this one may be its successor."""
        loop = asyncio.get_running_loop()
        said = False
        while True:
            try:
                return await self.store.open()
            except StoreLockedError as error:
                locked = str(error)
            left = until - loop.time()
            if left <= 0:
                break
            if not said:
                self.reporter(StoreAwaited(cause=locked, seconds=self._store_wait))
                said = True
            await asyncio.sleep(min(_RETRY, left))
            if self.closed:
                raise client_closed()
        waited = f". Waited {self._store_wait:g} s; store_wait= sets for how long" if said else ""
        raise StoreLockedError(locked + waited)

    # -- closing, in a task of its own -------------------------------------------------------------

    async def _close(self) -> None:
        await close_parts(
            self.reporter,
            self.store,
            self.submissions.drain,
            self.submissions.aclose,
            self.delivery.aclose,
            self.poller.aclose,
            self._leave_neighbours,
            self.files.aclose,
            self.transport.aclose,
            self._close_store,
        )

    async def _leave_neighbours(self) -> None:
        if self._neighbours is not None:
            await self._neighbours.aclose()

    async def _close_store(self) -> None:
        async with self._opening:
            if not self._opened:  # by this client; another one may have the store open
                return
            try:
                await self.ledger.aclose()
                if self._forgets:
                    await report_unfinished(self.reporter, self.store)
            finally:
                await self.store.aclose()
                self._opened = False
