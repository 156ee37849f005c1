"""The verbs: what a program does with Kie. Each is a few lines over the parts below.

The client owns everything it starts (submits, looks, sessions) and closes it. It is made outside
or inside a running loop, opens nothing before the first call, and belongs to the loop of that
first call.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import warnings
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Unpack

from . import callbacks
from .arguments import (
    OnUnknown,
    callback_url_of,
    image_url_of,
    key_of,
    poll_of,
    rate_limit_of,
    request_of,
    resubmit_of,
    task_id_of,
)
from .batch import Batch, Requests, resumed
from .callbacks.delivery import Delivery
from .details import TaskDetails
from .errors import InvalidRequestError, KieError
from .files.transfers import Files
from .lifecycle import Lifecycle, paid_id
from .models import Callback, Completion, ImageRequest, ImageResult, RateLimit, RequestFields, UploadedFile
from .polling.outcome import images_of
from .polling.policy import PollPolicy
from .polling.poller import TaskPoller, Timeout
from .polling.watches import OnUpdate
from .settings import Secret, count, flag, resolve, seconds
from .stores.choosing import store_of
from .stores.store import Entry, Store
from .submission.rate_limit import RateLimiter
from .submission.submissions import Submissions
from .task import ImageTask
from .transport.free_calls import FreeCalls
from .transport.transport import Transport

if TYPE_CHECKING:
    from decimal import Decimal

    import aiohttp


class AsyncKieClient:
    """A client for Kie.ai's GPT-4o image API.

    `timeout`: seconds for one HTTP exchange. `wait_timeout`: seconds for one task from its submit
    to its end, None waits for ever. `max_in_flight`: tasks between submit and end. `rate_limit`:
    new tasks per time; Kie admits 20 per 10 s to an account. `poll`: when to look; None learns it
    (`PollPolicy.adaptive()`, on loopback `PollPolicy()`). `session`: an aiohttp session whose connector
    is used; it stays yours to close. `store`: what remembers every submit: None for
    this process's memory, a path (or "sqlite:///run.db") for a file that survives it, or a `Store`.
    `callback_url`: for requests that have none of their own; `{ref}` in it, or else a query parameter,
    carries what a callback is recognised by. `trust_callbacks`: take a recognised callback's word
    instead of looking at its task. Raises `ConfigurationError`.

    Environment: KIE_API_KEY (or KIE_AI_API_KEY), KIE_BASE_URL, KIE_UPLOAD_URL, KIE_WEBHOOK_KEY.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        upload_url: str | None = None,
        timeout: float = 30.0,
        wait_timeout: float | None = 900.0,
        max_in_flight: int = 100,
        rate_limit: RateLimit = RateLimit(20, per=10.0),  # noqa: B008  # frozen
        poll: PollPolicy | None = None,
        callback_url: str | None = None,
        webhook_key: str | Sequence[str] | None = None,
        trust_callbacks: bool = False,
        store: Store | str | os.PathLike[str] | None = None,
        session: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        trust_env: bool = False,
    ) -> None:
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()
        self._opened = False
        secret, api_key = (Secret(api_key) if isinstance(api_key, str) else api_key), None
        self._settings = resolve(
            api_key=secret,
            base_url=base_url,
            upload_url=upload_url,
            webhook_key=webhook_key,
            environment=os.environ,
        )
        exchange = seconds("timeout", timeout) or 0.0
        trust_env = flag("trust_env", trust_env)
        self._transport = Transport(
            self._settings, timeout=exchange, session=session, proxy=proxy, trust_env=trust_env
        )
        self._free_calls = FreeCalls(self._transport)
        self._files = Files(
            self._transport, self._settings, timeout=exchange, proxy=proxy, trust_env=trust_env
        )
        poll = poll_of(poll, loopback=self._settings.loopback)
        self._store = store_of(store)
        self._limiter = RateLimiter(rate_limit_of(rate_limit))
        url = callback_url_of(callback_url)
        self._submissions = Submissions(self._transport, self._limiter, self._store, callback_url=url)
        wait_timeout = seconds("wait_timeout", wait_timeout, optional=True)
        self._poller = TaskPoller(
            self._free_calls.details, policy=poll, timeout=wait_timeout, look_timeout=exchange
        )
        self._max_in_flight = count("max_in_flight", max_in_flight)
        self._delivery = Delivery(
            self._store, self._poller, trusting=flag("trust_callbacks", trust_callbacks)
        )
        self._life = Lifecycle(
            self._ready,
            self._store,
            self._submissions,
            self._poller,
            self._delivery,
            url,
            asyncio.Semaphore(self._max_in_flight),
        )

    # -- submit and wait -------------------------------------------------------------------------

    async def submit(
        self,
        request: ImageRequest | str | None = None,
        *,
        key: str | None = None,
        on_unknown: OnUnknown = "hold",
        retry_failed: bool = False,
        **fields: Unpack[RequestFields],
    ) -> ImageTask:
        """Send a request and return its task: the one call that costs credits.

        `request` is an `ImageRequest`, or a prompt with the fields of one as keywords. With a
        `key` the same request is paid once, however often it is submitted, as far back as the
        store remembers. What stood under the key is paid anew only if you say so:
        `on_unknown="resubmit"` after an unknown outcome (perhaps pays twice), `retry_failed` after
        a failed task. Raises the `APIStatusError` of a refusal, `APIConnectionError` if the request
        never left, `SubmissionUnknownError` if it left and no answer came (perhaps paid, never sent
        again), `KeyConflictError` if the key stands for another request.
        """
        checked, key, resubmit = (
            request_of(request, fields),
            key_of(key),
            resubmit_of(on_unknown, retry_failed),
        )
        await self._ready()
        submitted = await self._life.submit(checked, key, resubmit)
        return ImageTask(self._life, paid_id(submitted.entry), request=checked, since=submitted.since)

    async def generate(
        self,
        request: ImageRequest | str | None = None,
        *,
        key: str | None = None,
        timeout: Timeout = ...,
        on_update: OnUpdate | None = None,
        on_unknown: OnUnknown = "hold",
        retry_failed: bool = False,
        **fields: Unpack[RequestFields],
    ) -> ImageResult:
        """Submit and wait: a prompt in, images out. Arguments and errors of `submit` and `wait`."""
        checked, key, resubmit = (
            request_of(request, fields),
            key_of(key),
            resubmit_of(on_unknown, retry_failed),
        )
        await self._ready()
        return await self._life.generate(checked, key, resubmit, timeout=timeout, on_update=on_update)

    async def generate_many(
        self,
        requests: Requests,
        *,
        max_in_flight: int | None = None,
        batch: str = "",
        on_unknown: OnUnknown = "hold",
        retry_failed: bool = False,
    ) -> AsyncGenerator[Completion]:
        """Many generates, yielded as they complete; a failed one is a value, not an exception.

        `requests` are prompts or `ImageRequest`s: an iterable, an async iterable, or a mapping
        whose keys are your own ids. It is taken lazily, at most `max_in_flight` (the client's, if
        None) unfinished at a time. Each item runs under a key: the custom id, or a hash of the
        request and of how often it came before, under the name `batch`. So the same call on the same store
        never pays twice: what has ended comes first with `replayed=True`. A wrong key, an empty
        balance, a used-up key cap, or five unknown outcomes in a row stop new submits: what is in
        flight still completes, then that error is raised.
        """
        await self._ready()
        resubmit = resubmit_of(on_unknown, retry_failed)
        most = self._max_in_flight if max_in_flight is None else count("max_in_flight", max_in_flight)
        run = Batch(
            self._store,
            lambda request, key, gate: self._life.generate(request, key, resubmit, gate=gate),
            self._submissions.call_off,
            self._delivery.recalled,
            max_in_flight=most,
            name=batch,
            resubmit=resubmit,
        ).run(requests)
        async with contextlib.aclosing(run) as completions:
            async for completion in completions:
                yield completion

    async def unfinished(self) -> AsyncGenerator[Entry]:
        """What the store still owes: submits that are paid, or perhaps paid, and have not ended."""
        await self._ready()
        async for entry in self._store.unfinished():
            yield entry

    async def resume(self) -> AsyncGenerator[Completion]:
        """Wait for everything in `unfinished()`, as it completes; nothing is submitted. One that ended
        unknown gives its `SubmissionUnknownError`, unless a callback has named a task that Kie confirms.
        """
        await self._ready()
        async with contextlib.aclosing(resumed(self._store, self._life.resume)) as completions:
            async for completion in completions:
                yield completion

    def task(self, task_id: str) -> ImageTask:
        """Take up a task again by its id; no I/O."""
        return ImageTask(self._life, task_id_of(task_id))

    async def details(self, task_id: str) -> TaskDetails:
        """One look at a task. Looks at the same task keep Kie's pace of 3 per second."""
        await self._ready()
        return await self._poller.look(task_id_of(task_id))

    async def wait(
        self,
        task_id: str,
        *,
        timeout: Timeout = ...,
        on_update: OnUpdate | None = None,
    ) -> ImageResult:
        """Until the task has ended. Raises `TaskFailedError`, `NoImagesError`, `TaskNotFoundError`,
        and `TaskTimeoutError` after `timeout` seconds (None: never); the task lives on then."""
        return await self._life.wait(task_id_of(task_id), timeout, on_update)

    # -- files -----------------------------------------------------------------------------------

    async def upload(
        self,
        source: str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes],
        *,
        name: str | None = None,
        path: str = "kie4o",
    ) -> UploadedFile:
        """Store a file at Kie for use in `files_url`: a path, bytes or an open binary file.

        Free; kept for about 24 hours; the same `path` and `name` overwrite.
        """
        await self._ready()
        return await self._files.upload(source, name=name, path=path)

    async def upload_from_url(
        self, url: str, *, name: str | None = None, path: str = "kie4o"
    ) -> UploadedFile:
        """Let Kie fetch a public file (in 30 s, up to 100 MB) and store it as `upload` does."""
        await self._ready()
        return await self._files.upload_from_url(url, name=name, path=path)

    async def download(
        self,
        result: ImageResult | str,
        directory: str | os.PathLike[str],
        *,
        name: str | None = None,
    ) -> list[Path]:
        """Save the images of a result (or of a task id) into `directory`; their paths, in order.

        Files are named `<task id>_<index>.<ending>` or after `name`; each appears whole or not at
        all. Raises `DownloadError`; the task stays paid and can be downloaded again.
        """
        await self._ready()
        if isinstance(result, str):
            result = images_of(await self._poller.look(task_id_of(result)))
        elif not isinstance(result, ImageResult):
            raise InvalidRequestError(f"result={result!r} is not possible: use an ImageResult or a task id")
        task_id = result.task_id
        return await self._files.download(
            result.urls,
            directory,
            task_id=task_id,
            name=name,
            renew=lambda url: self.download_url(task_id, url),
        )

    async def download_url(self, task_id: str, url: str) -> str:
        """A signed link to one of the task's images, good for 20 minutes (Kie's download-url page)."""
        await self._ready()
        return await self._free_calls.download_url(task_id_of(task_id), image_url_of(url))

    async def credits(self) -> Decimal:
        """The account's balance in credits (0.005 USD each)."""
        await self._ready()
        return await self._free_calls.credits()

    # -- callbacks -------------------------------------------------------------------------------

    async def deliver(self, callback: Callback) -> TaskDetails:
        """Hand in a parsed callback: it is kept, confirmed by one look at its task, and wakes whoever
        waits for it. The details of the task; with `trust_callbacks` the callback's own.

        A callback may come before the answer of its submit, twice, late, or about a submit whose
        answer was lost, which it settles. Raises `CallbackError` for one that belongs to nothing
        submitted here; pass the `ref` of its URL to `parse_callback`.
        """
        await self._ready()
        return await self._delivery.deliver(callback)

    def parse_callback(
        self,
        body: bytes | bytearray | memoryview | str | Mapping[str, Any],
        headers: Any = None,
        *,
        ref: str | None = None,
    ) -> Callback:
        """`kie4o.parse_callback` with the client's webhook key."""
        keys = [secret.reveal() for secret in self._settings.webhook_key]
        return callbacks.parse_callback(body, headers, ref=ref, key=keys or None)

    # -- life ------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Call off submits that have not left, await the answers of those that have (30 s at most), end
        waits with an error that carries the task id, and close everything."""
        self._closed = True
        async with contextlib.AsyncExitStack() as steps:  # the last first; each, whatever befalls another
            steps.push_async_callback(self._close_store)
            for part in (self._transport, self._files, self._poller, self._delivery, self._submissions):
                steps.push_async_callback(part.aclose)

    async def __aenter__(self) -> AsyncKieClient:
        await self._ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if getattr(self, "_opened", False) and not self._closed:
            sentence = "an AsyncKieClient was not closed: use `async with` or `await client.aclose()`"
            warnings.warn(sentence, ResourceWarning, source=self, stacklevel=1)

    def __repr__(self) -> str:
        return f"<AsyncKieClient {'closed' if self._closed else 'open'}>"

    async def _ready(self) -> None:
        """Before every verb: open on first use, refuse after the end or in another loop."""
        if self._closed:
            raise KieError("the client is closed: make a new one")
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise KieError("a client belongs to one event loop: make one for each asyncio.run")
        self._loop = loop
        if not self._opened:
            async with self._opening:
                if self._closed:
                    raise KieError("the client is closed: make a new one")
                if not self._opened:
                    await self._open()

    async def _close_store(self) -> None:
        async with self._opening:
            if self._opened:  # by us: another client may have it open, and go on
                await self._store.aclose()
                self._opened = False

    async def _open(self) -> None:
        """The store first; what it saw submitted lately still counts against the account limit."""
        await self._store.open()
        try:
            now = time.time()
            stamps = await self._store.recent(now - self._limiter.limit.per)
        except BaseException:
            await self._store.aclose()
            raise
        self._limiter.remember(now - stamp for stamp in stamps)
        self._opened = True
