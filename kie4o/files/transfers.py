"""Files to Kie and images from it: the two directions of bytes, as the client offers them.

Uploads go to Kie with the key, through `transport`, and are free: they may be sent again.
Downloads come from file hosts that are strangers, without the key, through `downloads`. What an
upload is made of is `uploads`' business, how a file gets its place on the disk is `disk`'s. Both are
loaded when they are first used, since not every program has to do with files.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from ..errors import DownloadError, InvalidRequestError
from ..models import ImageRequest, UploadedFile
from ..settings import Settings
from ..transport.retrying import Sleep, repeated
from ..transport.transport import Transport
from ..wire.answers import uploaded_of
from ..wire.requests import UPLOAD_FROM_URL, UPLOAD_STREAM, Endpoint, json_body
from . import images
from .disk import in_thread, wait_uncancelled

if TYPE_CHECKING:
    from .downloads import Downloader, Renew
    from .uploads import Given


MAX_IMAGE_BYTES = 64 * 1024 * 1024  # of one image; Kie's own have 1 to 5 MB
AT_ONCE = 4  # images of one call; the CDN fails more often the more are fetched
LONGEST_UPLOAD = 300.0  # seconds, should `timeout` be less


class Files:
    """Uploads and downloads of one client."""

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
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._transport = transport
        self._inside = settings.loopback
        self._timeout = timeout
        self._proxy = proxy
        self._trust_env = trust_env
        self._max_image_bytes = max_image_bytes
        self._sleep = sleep
        self._chance = chance
        self._closed = False

    @cached_property
    def _downloader(self) -> Downloader:
        from .downloads import Door, Downloader

        return Downloader(
            door=Door(inside=self._inside),
            timeout=self._timeout,
            max_bytes=self._max_image_bytes,
            proxy=self._proxy,
            trust_env=self._trust_env,
            sleep=self._sleep,
            chance=self._chance,
        )

    async def upload(self, source: Given, *, name: str | None = None, path: str = "kie4o") -> UploadedFile:
        """Store a path's content, bytes or an open binary file (from where it stands) at Kie.

        Raises `InvalidRequestError` before any network use, and the errors of a free call. An
        open file stays open; do not use it meanwhile.
        """
        from .uploads import Source, form, target

        where = target(path, name)
        content = Source(source)
        try:
            await content.open()
            return await self._repeated(UPLOAD_STREAM, lambda: form(content, where))
        finally:
            await in_thread(content.close)

    async def upload_from_url(
        self, url: str, *, name: str | None = None, path: str = "kie4o"
    ) -> UploadedFile:
        """Let Kie fetch a public file (within 30 s, up to 100 MB)."""
        from .uploads import target

        _check_url(url)
        body = json_body({"fileUrl": url, **target(path, name).fields()})
        return await self._repeated(UPLOAD_FROM_URL, lambda: body)

    async def download(
        self,
        urls: Iterable[str],
        directory: str | os.PathLike[str],
        *,
        task_id: str,
        name: str | None = None,
        renew: Renew,
    ) -> list[Path]:
        """Save images; their paths, in the order of the URLs. Raises `DownloadError`.

        `renew` gives a fresh link in place of one that has expired. Each file appears whole or
        not at all; when one fails the others are called off, but those already whole stay.
        """
        if name is not None and not isinstance(name, str):
            raise InvalidRequestError(f"name={name!r} is not possible: use text, or None")
        if self._closed:
            raise DownloadError("the client is closed: make a new one", task_id=task_id)
        from .downloads import Order

        links = tuple(urls)
        folder = await _folder(directory, task_id)
        turns = asyncio.Semaphore(AT_ONCE)

        async def fetch(index: int, url: str) -> Path:
            named = partial(images.file_name, task_id, index, name=name, several=len(links) > 1)
            async with turns:
                return await self._downloader.fetch(
                    Order(url=url, task_id=task_id, directory=folder, name=named, renew=renew)
                )

        return await _all([asyncio.ensure_future(fetch(index, url)) for index, url in enumerate(links)])

    async def aclose(self) -> None:
        self._closed = True
        if "_downloader" in vars(self):
            await self._downloader.aclose()

    async def _repeated(
        self, endpoint: Endpoint, body: Callable[[], bytes | aiohttp.FormData]
    ) -> UploadedFile:
        """Uploads are free and overwrite by name, so that a failed one is sent again."""

        timeout = max(self._timeout, LONGEST_UPLOAD)

        async def call() -> UploadedFile:
            return await self._transport.read(endpoint, uploaded_of, body=body(), timeout=timeout)

        return await repeated(call, sleep=self._sleep, chance=self._chance)


async def _all(fetches: list[asyncio.Task[Path]]) -> list[Path]:
    """What all of them give; at the first failure or a cancel none is left running."""
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


async def _folder(directory: str | os.PathLike[str], task_id: str) -> Path:
    """Made if it is missing, before anything is fetched."""
    try:
        folder = Path(directory)
        await in_thread(partial(folder.mkdir, parents=True, exist_ok=True))
        return folder
    except (OSError, ValueError, TypeError) as error:
        words = getattr(error, "strerror", None) or str(error)
    raise DownloadError(
        f"the folder {str(directory)!r} cannot be made: {words}. Task {task_id} stays paid",
        task_id=task_id,
    )


def _check_url(url: str) -> None:
    """By the rule for `files_url`, whose checks say what is wrong."""
    try:
        ImageRequest(files_url=(url,))
        return
    except InvalidRequestError as error:
        sentence = str(error).replace("files_url[0]", "url", 1)
    raise InvalidRequestError(sentence)
