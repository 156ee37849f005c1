"""The public client. Each method is a few lines over the packages below.

The client owns everything it starts (submits, polls, sessions) and closes it. It can be created inside or
outside a running loop, opens nothing before the first call, and belongs to the loop of that first call until
it is closed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import AsyncGenerator, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from . import batch as batches
from . import callbacks, clock
from .arguments import (
    OnUnknown,
    age_limit_of,
    batch_of,
    callback_url_of,
    credit_limit_of,
    finding_of,
    image_url_of,
    in_flight_of,
    key_of,
    on_update_of,
    path_of,
    poll_of,
    proxy_of,
    rate_limit_of,
    reporter_of,
    request_of,
    resubmit_of,
    speed_of,
    store_wait_of,
    task_id_of,
)
from .callbacks.delivery import Delivery
from .callbacks.parsing import CallbackBody, Headers
from .callbacks.receiving import PENDING, CallbackReceiver, unverified
from .details import TaskDetails
from .errors import DownloadError, invalid_setting
from .events.reporter import OnEvent
from .files.transfers import age_of, keeps
from .image_request import ImageRequest, RequestFields, UploadedFile
from .lifecycle import Lifecycle, known_task_id
from .models import Callback, Completion, Exists, HasTaskId, ImageResult, RateLimit
from .plain import SecretText, plain
from .polling.policy import PollPolicy
from .polling.poller import Timeout
from .polling.watches import OnUpdate
from .pricing import Credits, Prices, Spent, price_list
from .runtime import Options, Runtime
from .settings import count, flag, resolve, sealed, seconds, seconds_or_none
from .stores.choosing import store_of
from .stores.store import Entry, Store, SupportsBackup, no_backup
from .task import ImageTask
from .urls import URLObject, url_text
from .waiting import close_iterator

if TYPE_CHECKING:
    import asyncio
    from datetime import timedelta
    from decimal import Decimal

    import aiohttp

    from .files.memory import Image
    from .files.uploads import UploadSource
    from .state import ClientState


class AsyncKieClient:
    """A client for Kie.ai's GPT-4o image API: `async with AsyncKieClient() as client:`.

    It can be used by any number of tasks of one event loop. Creating it opens nothing; the first call does.
    `async with` opens a closed client again, also in another event loop.

    Args:
        api_key: Created at kie.ai/api-key. Default: the environment variable KIE_API_KEY, then
            KIE_AI_API_KEY.
        base_url: Default: KIE_BASE_URL, then Kie's API host. It must be https unless it is loopback.
        upload_url: Default: KIE_UPLOAD_URL, then Kie's upload host, or `base_url` if that is loopback
            (and if it is passed, whatever KIE_UPLOAD_URL says).
        timeout: Seconds for one HTTP exchange; an upload, or the download of an image, may take 300, or
            `timeout` if that is longer.
        wait_timeout: Seconds that a wait for a task may take; None waits without limit.
        max_in_flight: How many tasks of `generate`, `generate_many` and `resume` may be between submit and
            end at once; `submit` counts until it has the task id.
        rate_limit: How many new tasks may start in any window. Kie admits 20 per 10 s to an account.
        poll: When to poll. Default: learned from finished tasks (`PollPolicy.adaptive()`); plain exponential
            back-off (`PollPolicy()`) on loopback.
        callback_url: Where Kie reports the end of a task, for requests without their own. The ref by which a
            callback is recognised replaces ``{ref}`` in it, or is added as the parameter ``kie4o_ref``.
        webhook_key: The webhookHmacKey of kie.ai/settings that callbacks are verified with; several while
            keys are rotated. Default: KIE_WEBHOOK_KEY.
        tolerance: Seconds by which the time stamp of a signed callback may differ from now. A repeated
            callback changes nothing, and a late one is worth having.
        trust_callbacks: Accept what a recognised callback says without polling its task.
        store: Remembers every submit. None is this process's memory; a path or ``"sqlite:///run.db"`` is a
            file that survives it; ``"postgresql://user@host/database"`` is shared by any number of processes;
            or an object with the methods of `Store`.
        store_wait: Seconds to wait for a store file that another process has open, such as the one that this
            process replaces; 0 does not wait.
        prices: What requests cost, for `max_credits` and `spent()`: credits for one image, or a mapping such
            as ``{1: 6, 2: 12, 4: 24}`` from the number of variants. Default: 6 for an image, the published
            rate.
        session: An aiohttp session whose connector is used. You keep ownership and close it.
        proxy: URL of a proxy, as in aiohttp.
        trust_env: Take proxies from the environment, as in aiohttp.
        on_event: A function, or several, called with each `kie4o.events.Event`: what is submitted, polled,
            saved and so on. Or a function for each of some kinds, such as ``{events.Finished: count}``;
            events of other kinds then cost nothing. It is called in the event loop and must return at once.
            What it raises is logged, and one that blocks is not called any more. It also gets the events of
            the store.
        speed: For an emulator of the same speed, on loopback only: what the client waits for is divided by it
            (the window of `rate_limit`, the time between status checks, delays before sending again, the 90 s
            for an unknown task). Timeouts are not.

    Raises:
        ConfigurationError: A setting is missing or invalid; the message says which.
    """

    def __init__(
        self,
        api_key: SecretText | str | None = None,
        *,
        base_url: URLObject | str | None = None,
        upload_url: URLObject | str | None = None,
        timeout: float = 30.0,
        wait_timeout: float | None = 900.0,
        max_in_flight: int = 100,
        rate_limit: RateLimit = RateLimit(20, per=10.0),  # noqa: B008  # frozen
        poll: PollPolicy | None = None,
        callback_url: URLObject | str | None = None,
        webhook_key: SecretText | str | Sequence[SecretText | str] | None = None,
        tolerance: float = 3600.0,
        trust_callbacks: bool = False,
        store: Store | str | os.PathLike[str] | None = None,
        store_wait: float = 10.0,
        prices: Prices | None = None,
        session: aiohttp.ClientSession | None = None,
        proxy: URLObject | SecretText | str | None = None,
        trust_env: bool = False,
        on_event: OnEvent | None = None,
        speed: float = 1.0,
    ) -> None:
        # No frame of a traceback holds a key.
        secret, api_key = sealed(api_key), None
        secrets, webhook_key = sealed(webhook_key), None
        self._settings = resolve(
            api_key=secret,
            base_url=base_url,
            upload_url=upload_url,
            webhook_key=secrets,
            environment=os.environ,
        )
        self._tolerance = seconds("tolerance", tolerance)
        self._options = Options(
            settings=self._settings,
            timeout=seconds("timeout", timeout),
            wait_timeout=seconds_or_none("wait_timeout", wait_timeout),
            max_in_flight=count("max_in_flight", max_in_flight),
            rate_limit=rate_limit_of(rate_limit),
            poll=poll_of(poll, loopback=self._settings.loopback),
            callback_url=callback_url_of(callback_url, loopback=self._settings.loopback),
            trust_callbacks=flag("trust_callbacks", trust_callbacks),
            prices=price_list(prices, invalid_setting),
            store=store_of(store, self._settings.api_key),
            store_wait=store_wait_of(store_wait, store),
            forgets=store is None,
            session=session,
            proxy=proxy_of(proxy),
            trust_env=flag("trust_env", trust_env),
            speed=speed_of(speed, base_url=self._settings.base_url),
            reporter=reporter_of(on_event),
        )
        self._runtime = Runtime(self._options)

    # -- submit and wait -------------------------------------------------------------------------

    async def submit(
        self,
        request: ImageRequest | str | Enum | None = None,
        *,
        key: str | Enum | None = None,
        on_unknown: OnUnknown = "hold",
        retry_failed: bool = False,
        **fields: Unpack[RequestFields],
    ) -> ImageTask:
        """Send a request and return its task, without waiting for it. Costs the credits of one task.

        Args:
            request: A prompt, or an `ImageRequest`.
            key: Your idempotency key. The same request under the same key is paid once, for as long as the
                store remembers it.
            on_unknown: If an earlier submit under the key has an unknown outcome: ``"hold"`` raises
                `SubmissionUnknownError` again, ``"resubmit"`` submits again and may pay twice.
            retry_failed: Submit again if the earlier task under the key failed. That costs again.
            **fields: The fields of an `ImageRequest`, such as ``size="3:2"``.

        Raises:
            InvalidRequestError: Refused before any network use.
            APIStatusError: Kie refused the request; nothing was charged.
            APIConnectionError: The request was not sent; nothing was charged.
            SubmissionUnknownError: The request was sent and its outcome is unknown. It may have been
                charged and is never sent again.
            KeyConflictError: The key was already used for another request.
            StoreError: The store cannot be written, so nothing was sent; with a `task_id` the task is paid.
        """
        checked, checked_key = request_of(request, fields), key_of(key)
        resubmit = resubmit_of(on_unknown, retry_failed)
        runtime = await self._runtime.ready()
        submitted = await runtime.lifecycle.submit(checked, checked_key, resubmit)
        task_id = known_task_id(submitted.entry)
        return ImageTask(self, task_id, request=checked, since=submitted.since)

    async def generate(
        self,
        request: ImageRequest | str | Enum | None = None,
        *,
        key: str | Enum | None = None,
        timeout: Timeout = ...,
        on_update: OnUpdate | None = None,
        on_unknown: OnUnknown = "hold",
        retry_failed: bool = False,
        **fields: Unpack[RequestFields],
    ) -> ImageResult:
        """Turn a prompt into images: submit a request and wait for its task. Costs the credits of one task.

        At most `max_in_flight` tasks are in flight at once; further calls wait for their turn. A task takes
        15 seconds to 5 minutes.

        Args:
            request: A prompt, or an `ImageRequest`.
            key: Your idempotency key. The same request under the same key is paid once, for as long as the
                store remembers it; after success the stored result is returned.
            timeout: Seconds from the response to the submit; None waits without limit, the default is the
                client's `wait_timeout`. Waiting for a turn is not counted. A call of the store takes as long
                at most, but has at least 1 s.
            on_update: Called, and awaited if it returns an awaitable, with the `TaskDetails` of every poll of
                this process; the last shows the outcome. An exception from it ends the wait.
            on_unknown: If an earlier submit under the key has an unknown outcome: ``"hold"`` raises
                `SubmissionUnknownError` again, ``"resubmit"`` submits again and may pay twice.
            retry_failed: Submit again if the earlier task under the key failed. That costs again.
            **fields: The fields of an `ImageRequest`, such as ``size="3:2"``.

        Raises:
            InvalidRequestError: Refused before any network use.
            APIStatusError: Kie refused the request, and nothing was charged; or, if the error has a
                `task_id`, the polls of that task, which is paid: ``client.wait(error.task_id)`` resumes it.
            APIConnectionError: The request was not sent, and nothing was charged; or, if the error has a
                `task_id`, that task is paid and its polls have failed.
            SubmissionUnknownError: The request was sent and its outcome is unknown. It may have been
                charged and is never sent again.
            TaskFailedError: Kie ended the task without images.
            NoImagesError: The task succeeded, but its record shows no images.
            TaskTimeoutError: The time is up; the task is still running, and ``client.wait(error.task_id)``
                resumes it.
            StoreError: The store cannot be read or written, or the key was used for another request.
        """
        checked, checked_key = request_of(request, fields), key_of(key)
        del fields  # 0.2 KiB less while it waits
        resubmit = resubmit_of(on_unknown, retry_failed)
        runtime = await self._runtime.ready()
        return await runtime.lifecycle.generate(
            checked, checked_key, resubmit, timeout=timeout, on_update=on_update
        )

    async def generate_many(
        self,
        requests: batches.Requests,
        *,
        max_in_flight: int | None = None,
        batch: str | Enum = "",
        max_credits: Credits | None = None,
        stop: asyncio.Event | None = None,
        on_update: OnUpdate | None = None,
        on_unknown: OnUnknown = "hold",
        retry_failed: bool = False,
    ) -> AsyncGenerator[Completion]:
        """Generate many images; yields a `Completion` for each request as it finishes. Errors are values.

        Each request runs under a key: your id, or a hash of the request and its occurrence. With a store that
        survives the process the same call continues after a crash. What is finished comes first, with
        ``replayed=True``, and is not paid again.

        Args:
            requests: Prompts or `ImageRequest`s: an iterable or an async iterable of them, or of tuples of
                your id and one of them; or a mapping from your ids. It is taken lazily and may be endless.
            max_in_flight: How many of them may be unfinished at once; the default is the client's.
            batch: A name that keeps the keys of this batch apart from those of others on the same store.
            max_credits: What this run may spend at most, by the `prices` of the client. A submit that was
                refused or not sent costs nothing, one with an unknown outcome counts as charged, and what an
                earlier run has paid for is free. A request whose price is not known is not submitted.
            stop: Set this event to end early: nothing more is submitted, what is in flight is yielded, and
                the loop ends. Run the same batch again to continue.
            on_update: As for `generate`, for every item that is polled; `details.task_id` says which task it
                is. An exception from it, other than a `KieError`, stops the batch as the errors below do. Its
                item is not yielded; a note on it names the task, which is paid.
            on_unknown: As for `generate`.
            retry_failed: As for `generate`.

        Raises:
            AuthenticationError, InsufficientCreditsError, KeyLimitError, SubmissionUnknownError, StoreError:
                Every further request would fail too (or five in a row had an unknown outcome). No more are
                submitted, what is in flight is yielded, then the error is raised.
            CreditLimitError: The next request would pass `max_credits`; the same is done.
        """
        on_update, max_credits = on_update_of(on_update), credit_limit_of(max_credits)
        runtime = await self._runtime.ready()
        resubmit = resubmit_of(on_unknown, retry_failed)
        limit = runtime.lifecycle.permits.limit
        run = batches.Batch(
            requests,
            runtime.store,
            functools.partial(runtime.lifecycle.generate, on_update=on_update),
            runtime.submissions.call_off,
            runtime.delivery.named_task,
            max_in_flight=limit if max_in_flight is None else in_flight_of(max_in_flight),
            name=batch_of(batch),
            resubmit=resubmit,
            budget=batches.Budget(max_credits, self._options.prices, runtime.reporter),
            stop=stop,
            reporter=runtime.reporter,
        )
        async with contextlib.aclosing(run) as completions:
            async for completion in completions:
                yield completion

    async def spent(self) -> Spent:
        """What the store has recorded as charged, or perhaps charged, by state. No network call.

        It is the sum of the prices at which requests were submitted, with this client or an earlier one on
        the same store. The balance of the account, `credits()`, is the truth.
        """
        runtime = await self._runtime.ready()
        return await runtime.store.spent()

    async def find(self, key: str | Enum) -> Entry | None:
        """What the store remembers under an idempotency key, or None. No network call.

        Args:
            key: As for `generate`; in a batch also your id, as ``"batch/id"`` if the batch has a name.
        """
        checked = key_of(key)
        runtime = await self._runtime.ready()
        return None if checked is None else await runtime.store.find(key=checked)

    async def unfinished(self) -> AsyncGenerator[Entry]:
        """The entries of the store that are paid, or may be, and have not finished."""
        runtime = await self._runtime.ready()
        entries = runtime.store.unfinished()
        try:
            async for entry in entries:
                yield entry
        finally:
            await close_iterator(entries)

    async def resume(self, *, on_update: OnUpdate | None = None) -> AsyncGenerator[Completion]:
        """Wait for everything in `unfinished()`; yields a `Completion` for each. Nothing is submitted.

        An entry with an unknown outcome gives a `SubmissionUnknownError`, unless a callback has named its
        task.

        Args:
            on_update: As for `generate`, for every item. An exception from it ends the loop.
        """
        on_update = on_update_of(on_update)
        runtime = await self._runtime.ready()
        end_of = functools.partial(runtime.lifecycle.resume, on_update=on_update)
        async with contextlib.aclosing(batches.Resumption(runtime.store, end_of)) as completions:
            async for completion in completions:
                yield completion

    async def settle(
        self,
        key: str | Enum | Entry,
        *,
        task_id: HasTaskId | str | None = None,
        charged: bool | None = None,
    ) -> Entry:
        """Record what you have found out at kie.ai/logs about a submit with an unknown outcome.

        Nothing is submitted. Pass either `task_id` or ``charged=False``; the same again changes nothing.

        Args:
            key: Its key, its ref (both are on the `SubmissionUnknownError`), or its entry from
                `unfinished()`. A key means the latest submit under it; an earlier one has its ref only.
            task_id: The id of its task, which is polled first. `generate` under the key, and those who wait
                under it already, go on with that task, and `resume()` waits for it.
            charged: False: it was not charged. `unfinished()` no longer lists it, and the next call under the
                key submits again, unless an earlier submit under the key has an outcome. Those who wait under
                the key get a `SubmissionUnknownError` that says so.

        Returns:
            The entry as it is now.

        Raises:
            InvalidRequestError: The store has no such entry, its outcome is known, or the task was asked for
                another prompt.
            TaskNotFoundError: Kie does not know the task.
            APIStatusError, APIConnectionError, UnexpectedResponseError: The task could not be polled.
            StoreError: The task is that of another entry, the key is being submitted at this moment, or the
                store cannot be written. After any of these errors nothing has changed.
        """
        task_id = finding_of(task_id, charged)
        runtime = await self._runtime.ready()
        return await runtime.settlement.settle(key, task_id)

    async def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the store file while it is in use. The copy is complete and on the disk when this returns.

        Args:
            path: The new file (mode 0600 on POSIX). A file that is there is replaced, unless it is the store
                itself.

        Raises:
            StoreError: The copy could not be written, or the store has no file; then nothing was changed.
        """
        runtime = await self._runtime.ready()
        if not isinstance(runtime.store, SupportsBackup):
            raise no_backup()
        await runtime.store.backup(path_of(path))

    async def prune(self, *, older_than: float | timedelta) -> int:
        """Remove from the store what ended longer ago than this, so that it does not grow without end.

        Their keys are forgotten with them: a request under such a key is submitted, and paid for, again. What
        has not finished or has an unknown outcome is never removed, whatever its age. `spent()` still counts
        what was removed. No network call.

        Args:
            older_than: Seconds, or a `timedelta`, since the task was completed.

        Returns:
            How many entries were removed.

        Raises:
            StoreError: The store cannot be read or written; a part of them may be removed.
        """
        age = age_limit_of(older_than)
        runtime = await self._runtime.ready()
        return await runtime.ledger.prune(clock.unix_time() - age)

    async def state(self) -> ClientState:
        """What the client does at this moment, for a health endpoint. No network call.

        It opens nothing. The store is asked for a second at most; if it fails, the state says so, and nothing
        is raised.
        """
        return await self._runtime.state_and_store()

    def task(self, task_id: HasTaskId | str) -> ImageTask:
        """A handle to an existing task; no network call.

        Args:
            task_id: The id of a task that was submitted at most 14 days ago, by any process, or what has one.
        """
        return ImageTask(self, task_id_of(task_id))

    async def details(self, task_id: HasTaskId | str) -> TaskDetails:
        """Poll a task once; if it has ended, that is saved. Polls of the same task are at least 0.34 s apart
        (Kie's record-info page).

        Args:
            task_id: The id of the task, or what has one: an `ImageTask`, a result, an error.

        Raises:
            APIStatusError, APIConnectionError, UnexpectedResponseError: The poll failed, which says nothing
                about the task.
        """
        return await self._runtime.lifecycle.details(task_id_of(task_id))

    async def wait(
        self, task_id: HasTaskId | str, *, timeout: Timeout = ..., on_update: OnUpdate | None = None
    ) -> ImageResult:
        """Wait until a task has ended, by callback or by polling. Costs no credits.

        Args:
            task_id: The id of the task, or what has one: an `ImageTask`, a result, an error.
            timeout: Seconds from this call; None waits without limit, the default is the client's
                `wait_timeout`.
            on_update: Called, and awaited if it returns an awaitable, with the `TaskDetails` of every poll of
                this process; the last shows the outcome. An exception from it ends the wait.

        Raises:
            TaskFailedError: Kie ended the task without images.
            NoImagesError: The task succeeded, but its record shows no images.
            TaskNotFoundError: Kie has not known the task for 90 s.
            TaskTimeoutError: The time is up; the task is still running and can be waited for again.
            APIStatusError, APIConnectionError: Polls were refused, or failed, three times in a row; the task
                is still running.
        """
        return await self._runtime.lifecycle.wait(task_id_of(task_id), timeout, on_update)

    # -- files -----------------------------------------------------------------------------------

    async def upload(
        self,
        source: UploadSource,
        *,
        name: str | None = None,
        path: str = "kie4o",
    ) -> UploadedFile:
        """Store a file at Kie, for `files_url` or `mask_url`. Free; Kie keeps it for about 24 hours.

        Args:
            source: A path, bytes, or a file opened in binary mode, also an asynchronous one or the upload of
                a web framework. A file is read from its position and stays open. Not empty, and at most
                100 MiB.
            name: The file name at Kie; by default that of the source, if it has one.
            path: The folder at Kie. A file with the same `path` and `name` is replaced.

        Raises:
            InvalidRequestError: The source cannot be read, is empty or too large; nothing was sent.
            APIStatusError, APIConnectionError, UnexpectedResponseError: The upload failed, after retries.
        """
        runtime = await self._runtime.ready()
        return await runtime.files.upload(source, name=name, path=path)

    async def upload_from_url(
        self, url: URLObject | str, *, name: str | None = None, path: str = "kie4o"
    ) -> UploadedFile:
        """Let Kie fetch a public file and store it as `upload` does. Free.

        Args:
            url: What to fetch; it must answer within 30 s, with up to 100 MB (file upload page).
            name: As for `upload`.
            path: As for `upload`.
        """
        runtime = await self._runtime.ready()
        return await runtime.files.upload_from_url(url_text(plain(url)), name=name, path=path)

    async def download(
        self,
        result: HasTaskId | str,
        directory: str | os.PathLike[str],
        *,
        name: str | None = None,
        exists: Exists | None = None,
        verify: bool = False,
    ) -> list[Path]:
        """Save the images of a task, and return their paths in order. Free, for 14 days after the task.

        Each file appears complete or not at all: it is checked to be a whole PNG, JPEG, WebP or GIF first.
        The checksums of a PNG show every damage.

        Args:
            result: An `ImageResult`, or a finished task or its id.
            directory: Where to save them; created if it is missing. A leading ``~`` is the home directory.
            name: A file name without suffix. By default files are named ``<task id>_<index>.<suffix>``.
            exists: If there is a file of that name: ``"keep"`` returns it without a request if it is a whole
                image, ``"replace"`` replaces it, ``"rename"`` saves under the next free name, such as
                ``lake (1).png``. The default is to keep files that are named after the task, and to replace
                one under a `name` of yours, which may be of another task.
            verify: Decode each image with Pillow before its file appears, in a thread: 20 ms of CPU for a
                megapixel.

        Raises:
            ConfigurationError: `verify` needs Pillow, which is not installed; nothing was sent.
            DownloadError: An image could not be downloaded or saved. The task is paid; download it again.
        """
        keep = keeps(exists, name)
        runtime = await self._runtime.ready()
        try:
            images = await runtime.lifecycle.images_of(result)
        except DownloadError as error:  # Kie has deleted the task, or its record lists no images
            if not keep or name is not None or error.task_id is None:
                raise
            saved = await runtime.files.saved(directory, task_id=error.task_id, verify=verify)
            if not saved:
                raise
            return saved
        return await runtime.files.download(
            images.urls,
            directory,
            task_id=images.task_id,
            name=name,
            exists=exists,
            verify=verify,
            renew=functools.partial(runtime.free_calls.download_url, images.task_id),
            age=age_of(images.details),
        )

    async def fetch(self, result: HasTaskId | str, *, verify: bool = False) -> list[Image]:
        """The images of a task in memory, in order, without a folder. Free, for 14 days after the task.

        They are checked as `download` does. An image has 1 to 5 MB, and at most 64 MiB.

        Args:
            result: An `ImageResult`, or a finished task or its id.
            verify: Decode each image with Pillow first, in a thread: 20 ms of CPU for a megapixel.

        Raises:
            ConfigurationError: `verify` needs Pillow, which is not installed; nothing was sent.
            DownloadError: An image could not be downloaded. The task is paid; fetch it again.
        """
        runtime = await self._runtime.ready()
        images = await runtime.lifecycle.images_of(result)
        return await runtime.files.fetch(
            images.urls,
            task_id=images.task_id,
            verify=verify,
            renew=functools.partial(runtime.free_calls.download_url, images.task_id),
            age=age_of(images.details),
        )

    async def download_url(self, task_id: HasTaskId | str, url: URLObject | str) -> str:
        """A signed link to one image that anyone can open for 20 minutes (Kie's download-url page). Free.

        Args:
            task_id: The id of the task, or what has one: an `ImageTask`, a result, an error.
            url: One of the URLs of its result.
        """
        runtime = await self._runtime.ready()
        return await runtime.free_calls.download_url(task_id_of(task_id), image_url_of(url))

    async def credits(self) -> Decimal:
        """The balance of the account, in credits (0.005 USD each; Kie's common API page)."""
        runtime = await self._runtime.ready()
        return await runtime.free_calls.credits()

    # -- callbacks -------------------------------------------------------------------------------

    async def deliver(self, callback: Callback) -> TaskDetails:
        """Pass in a parsed callback: it is stored, confirmed by a poll, and wakes the callers that wait.

        It may arrive before the response to its submit, twice, late, or for a submit whose response was lost.

        Args:
            callback: What `parse_callback` returned.

        Returns:
            The details of the task as a poll finds them; with `trust_callbacks` those of the callback. If
            they are not final, polling continues in the background.

        Raises:
            APIStatusError, APIConnectionError, UnexpectedResponseError: Three polls failed.
            CallbackError: The callback matches no request submitted by this client. `parse_callback` needs
                the `ref` that its URL carried.
        """
        runtime = await self._runtime.ready()
        return await runtime.delivery.deliver(callback)

    def parse_callback(
        self,
        body: CallbackBody,
        headers: Headers | None = None,
        *,
        ref: str | None = None,
    ) -> Callback:
        """Read and verify a callback, as `kie4o.parse_callback` does, with the client's `webhook_key` and
        `tolerance`.

        Args:
            body: The raw body of the request.
            headers: Its headers, as for the function.
            ref: What the callback URL carried.
        """
        return self._parse_callback(body, headers, ref, self._tolerance)

    def _parse_callback(
        self, body: CallbackBody, headers: Headers | None, ref: str | None, tolerance: float
    ) -> Callback:
        keys = [secret.reveal() for secret in self._settings.webhook_key]
        return callbacks.parse_callback(body, headers, ref=ref, key=keys or None, tolerance=tolerance)

    def receiver(
        self, *, allow_unsigned: bool = False, tolerance: float | None = None, pending: int = PENDING
    ) -> CallbackReceiver:
        """A receiver of callbacks for any web framework; `kie4o.webhooks` has some ready-made.

        ``status = await receiver.receive(headers, body, ref)`` gives the status to answer with.

        Args:
            allow_unsigned: Accept callbacks without a signature if the client has no `webhook_key`.
            tolerance: Seconds by which their time stamps may differ from now; the default is the client's.
            pending: How many callbacks may wait for their confirmation before further ones are refused with
                503.

        Raises:
            ConfigurationError: The client has no `webhook_key`, and `allow_unsigned` is False; or `tolerance`
                is no positive number.
        """
        if not self._settings.webhook_key and not allow_unsigned:
            raise unverified()
        within = self._tolerance if tolerance is None else seconds("tolerance", tolerance)
        return CallbackReceiver(
            lambda body, headers, ref: self._parse_callback(body, headers, ref, within),
            self._delivery,
            tolerance=within,
            template=self._options.callback_url,
            reporter=self._options.reporter,
            pending=pending,
        )

    # -- opening and closing ---------------------------------------------------------------------

    async def aclose(self) -> None:
        """Close the client; ``async with`` calls it, and opens it again later. It takes 30 s at most.

        Submits that were not sent are called off. The responses to those that were are awaited, for 25 s at
        most, also while the caller is being cancelled. Waits end with an error that carries the task id, and
        uploads and downloads are stopped. Without `store=`, each unfinished task is logged as a warning.
        """
        await self._runtime.aclose()

    async def __aenter__(self) -> AsyncKieClient:
        while (runtime := self._runtime).closed or runtime.abandoned:
            await runtime.wait_closed()
            if self._runtime is runtime:  # no other task was first
                self._runtime = Runtime(self._options)
        await self._runtime.ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        runtime = getattr(self, "_runtime", None)  # missing if a setting was refused
        if runtime is not None and runtime.in_use:
            sentence = "an AsyncKieClient was not closed: use `async with` or `await client.aclose()`"
            warnings.warn(sentence, ResourceWarning, source=self, stacklevel=1)

    def __repr__(self) -> str:
        runtime = getattr(self, "_runtime", None)
        return "<AsyncKieClient>" if runtime is None else f"<AsyncKieClient: {runtime.state().gist}>"

    # -- the current parts, for what outlives a closing --------------------------------------------

    def _lifecycle(self) -> Lifecycle:
        return self._runtime.lifecycle

    async def _delivery(self) -> Delivery:
        return (await self._runtime.ready()).delivery
