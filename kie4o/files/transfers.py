"""Uploads to Kie and downloads from file hosts, as the client offers them.

Uploads go to Kie with the API key, through `transport`. Downloads come from untrusted hosts, without
the key, through `downloads`. Both modules are imported on first use, since many programs need neither:
they would add 8 ms to the 195 ms of CPU time that `import kie4o.client` takes (as in benchmarks/imports.py).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import aiohttp

from .. import clock
from ..details import TaskDetails
from ..errors import APIConnectionError, DownloadError, KieError, client_closed, invalid
from ..events import TransferLeft
from ..events.calling import told
from ..events.calls import CallName
from ..image_request import UploadedFile, is_local
from ..models import Exists
from ..settings import Settings
from ..transport.retrying import Jitter, Sleep, full_jitter, repeated
from ..transport.transport import Transport
from ..urls import WEB_URL, is_web_url
from ..waiting import wait_uncancelled
from ..wire.answers import uploaded_of
from ..wire.requests import UPLOAD_FROM_URL, UPLOAD_STREAM, Endpoint, json_body
from . import images
from .disk import in_thread_or_here

if TYPE_CHECKING:
    from .downloads import Downloader
    from .links import Renew
    from .memory import Image
    from .uploads import UploadSource


MAX_IMAGE_BYTES = 64 * 1024 * 1024  # of one download; images from Kie have 1 to 5 MB
MAX_CONCURRENT = 4  # downloads of one call; more fail under load: 8 of 44 in one public report
UPLOAD_TIMEOUT = 300.0  # seconds for one upload, or `timeout` if that is longer
STUCK = 5.0  # seconds that a transfer which was stopped may take; only a disk that does not answer needs them

_LONG_AGO = 3600.0  # seconds

_T = TypeVar("_T")


class Files:
    """Uploads and downloads of one client.

    Each runs in a task of its own. If its caller is cancelled or the client is closed, it is cancelled and
    awaited until its files are closed and its partial files removed, but not for longer than `STUCK`: a
    thread that waits for a broken disk cannot be stopped. It is then left behind, and cleans up when it
    returns.
    """

    def __init__(
        self,
        transport: Transport,
        settings: Settings,
        *,
        timeout: float,
        proxy: str | None = None,
        trust_env: bool = False,
        max_image_bytes: int = MAX_IMAGE_BYTES,
        sleep: Sleep = asyncio.sleep,
        jitter: Jitter = full_jitter,
    ) -> None:
        self._transport = transport
        self._allow_private = settings.loopback
        self._timeout = timeout
        self._proxy = proxy
        self._trust_env = trust_env
        self._max_image_bytes = max_image_bytes
        self._sleep = sleep
        self._jitter = jitter
        self._closed = False
        self._uploads = asyncio.Semaphore(max(1, transport.connections // 2))  # leaves some for status checks
        self._running: dict[asyncio.Task[Any], asyncio.Future[bool]] = {}

    @cached_property
    def _downloader(self) -> Downloader:
        from .downloads import Downloader, HostPolicy

        return Downloader(
            policy=HostPolicy(allow_private=self._allow_private),
            timeout=self._timeout,
            max_bytes=self._max_image_bytes,
            connections=self._transport.connections,
            proxy=self._proxy,
            trust_env=self._trust_env,
            sleep=self._sleep,
            jitter=self._jitter,
            reporter=self._transport.reporter,
        )

    async def upload(
        self, source: UploadSource, *, name: str | None = None, path: str = "kie4o"
    ) -> UploadedFile:
        """Store the content of a path, bytes or an open binary file at Kie.

        An open file is read from its current position and stays open; do not use it during the
        upload. Raises `InvalidRequestError` before any network use; then `APIConnectionError`,
        `APIStatusError` or `UnexpectedResponseError`.
        """
        from .uploads import Content, Target, cannot_read, form_of

        target = Target(path, name)
        content = Content(source)

        async def send() -> UploadedFile:
            async with self._uploads:
                try:
                    await content.open()
                    return await self._store(UPLOAD_STREAM, lambda: form_of(content, target))
                except APIConnectionError:
                    if not content.failure:
                        raise
                finally:
                    await in_thread_or_here(content.close)
            raise cannot_read(source, content.failure)

        return await self._told("upload", send, client_closed)

    async def upload_from_url(
        self, url: str, *, name: str | None = None, path: str = "kie4o"
    ) -> UploadedFile:
        """Let Kie fetch and store a public file: within 30 s, at most 100 MB advised (file upload page)."""
        from .uploads import Target

        if not is_web_url(url):
            raise invalid("url", url, WEB_URL + ("; for a local file use upload" if is_local(url) else ""))
        body = json_body({"fileUrl": url, **Target(path, name).fields()})
        return await self._told("upload", partial(self._store, UPLOAD_FROM_URL, body), client_closed)

    async def download(
        self,
        urls: Iterable[str],
        directory: str | os.PathLike[str],
        *,
        task_id: str,
        name: str | None = None,
        exists: Exists | None = None,
        verify: bool = False,
        renew: Renew,
        age: float | None = _LONG_AGO,
    ) -> list[Path]:
        """Save images and return their paths, in the order of the URLs. Raises `DownloadError`.

        `renew` returns a new link for one that has expired; `age` is how many seconds ago the task ended, or
        None if that is not known. Each file appears complete or not at all. The first failure cancels the
        other downloads; files that are already complete stay. With `verify` each is decoded first; without
        Pillow that raises `ConfigurationError`.
        """
        if name is not None and not isinstance(name, str):
            raise invalid("name", name, "a string or None")
        _check_verify(verify)
        keep, rename = keeps(exists, name), exists == "rename"
        links = tuple(urls)

        async def save() -> list[Path]:
            from .downloads import created_directory
            from .links import Download
            from .saving import ImageFile, saved_image
            from .verification import require_pillow

            if verify:
                await require_pillow()
            target = await created_directory(directory, task_id)

            async def image(index: int, url: str) -> Path:
                name_of = partial(images.file_name, task_id, index, name=name, several=len(links) > 1)
                if keep and (path := await saved_image(target, name_of, verify=verify)) is not None:
                    return path
                sink = partial(ImageFile, target, name_of, rename=rename)
                download = Download(url=url, task_id=task_id, sink=sink, renew=renew, verify=verify, age=age)
                return await self._downloader.fetch(download)

            return await _all(image, links)

        return await self._told("download", save, partial(_closed, task_id), task_id)

    async def fetch(
        self,
        urls: Iterable[str],
        *,
        task_id: str,
        verify: bool = False,
        renew: Renew,
        age: float | None = _LONG_AGO,
    ) -> list[Image]:
        """The images in memory, in the order of the URLs, checked and retried as `download` does."""
        _check_verify(verify)
        links = tuple(urls)

        async def load() -> list[Image]:
            from .links import Download
            from .memory import ImageInMemory, Images
            from .verification import require_pillow

            if verify:
                await require_pillow()

            async def image(index: int, url: str) -> Image:
                sink = partial(ImageInMemory, url=url, index=index, task_id=task_id)
                download = Download(url=url, task_id=task_id, sink=sink, renew=renew, verify=verify, age=age)
                return await self._downloader.fetch(download)

            return Images(await _all(image, links))

        return await self._told("fetch", load, partial(_closed, task_id), task_id)

    async def saved(
        self, directory: str | os.PathLike[str], *, task_id: str, verify: bool = False
    ) -> list[Path]:
        """The images that earlier downloads have saved under the names of the task."""
        from .saving import saved_images

        return await self._run(saved_images(directory, task_id, verify=verify), client_closed)

    async def aclose(self) -> None:
        """Stop what is running. Its callers get an error that says that the client is closed."""
        self._closed = True
        running = set(self._running)
        for task in running:
            self._wake(task, closing=True)
        try:
            await _stopped(running)
        finally:
            if "_downloader" in vars(self):
                await self._downloader.aclose()

    async def _told(
        self,
        call: CallName,
        work: Callable[[], Coroutine[Any, Any, _T]],
        closed: Callable[[], KieError],
        task_id: str | None = None,
    ) -> _T:
        """`_run` as a call of the client, of which hooks are told."""
        transfer = told(self._transport.reporter, call, lambda: self._run(work(), closed), task_id=task_id)
        return await transfer

    async def _run(self, work: Coroutine[Any, Any, _T], closed: Callable[[], KieError]) -> _T:
        """The result of a transfer; `closed` makes the error that is raised if the client is closed."""
        if self._closed:
            work.close()
            raise closed()
        task = asyncio.ensure_future(work)
        waiter = self._running[task] = asyncio.get_running_loop().create_future()
        task.add_done_callback(self._wake)
        closing = False
        try:
            closing = await waiter
        finally:
            task.cancel()
            try:
                await _stopped({task})
            finally:
                if not task.done():
                    self._transport.reporter(TransferLeft(seconds=STUCK))
        if closing and (task.cancelled() or not task.done()):
            raise closed()
        return task.result()

    def _wake(self, task: asyncio.Task[Any], *, closing: bool = False) -> None:
        """Let the caller go on: its task is done, or is to be stopped because the client closes."""
        waiter = self._running.pop(task, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(closing)

    async def _store(self, endpoint: Endpoint, body: bytes | Callable[[], aiohttp.FormData]) -> UploadedFile:
        """Send an upload. It is retried, since uploads are free and overwrite a file of the same name."""

        timeout = max(self._timeout, UPLOAD_TIMEOUT)

        async def call() -> UploadedFile:
            return await self._transport.read(endpoint, uploaded_of, body=body, timeout=timeout)

        return await repeated(call, sleep=self._sleep, jitter=self._jitter, reporter=self._transport.reporter)


def keeps(exists: Exists | None, name: str | None) -> bool:
    """Whether a whole image that is there stays. By default, if its name is that of the task: what is there
    under a name of the caller's may be of another one."""
    if exists is not None and exists not in get_args(Exists):
        raise invalid("exists", exists, "'keep', 'replace', 'rename' or None")
    return name is None if exists is None else exists == "keep"


def age_of(details: TaskDetails) -> float | None:
    """How many seconds ago the task ended, or None if that is not known."""
    ended = details.completed_at
    return None if ended is None else clock.unix_time() - ended.timestamp()


def _closed(task_id: str) -> DownloadError:
    return DownloadError(str(client_closed()), task_id=task_id)


def _check_verify(verify: bool) -> None:
    if not isinstance(verify, bool):
        raise invalid("verify", verify, "True or False")


async def _all(image: Callable[[int, str], Coroutine[Any, Any, _T]], links: Iterable[str]) -> list[_T]:
    """The results in order, or the first error. On an error or a cancel none is left running."""
    limit = asyncio.Semaphore(MAX_CONCURRENT)

    async def limited(index: int, url: str) -> _T:
        async with limit:
            return await image(index, url)

    fetches = [asyncio.ensure_future(limited(index, url)) for index, url in enumerate(links)]
    if not fetches:
        return []
    try:
        await asyncio.wait(fetches, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for fetch in fetches:
            fetch.cancel()
        await wait_uncancelled(fetches)
        errors = [error for each in fetches if not each.cancelled() and (error := each.exception())]
    if errors:
        raise errors[0]
    return [fetch.result() for fetch in fetches]


async def _stopped(tasks: set[asyncio.Task[Any]]) -> None:
    """Wait until they are done, for `STUCK` seconds at most, also while the caller is being cancelled."""
    running = [task for task in tasks if not task.done()]
    if running:
        await wait_uncancelled([asyncio.ensure_future(asyncio.wait(running, timeout=STUCK))])
