"""One image to download: its link, a new one if that is refused, and where its bytes go."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Protocol, TypeVar

import attrs

from ..details import EXPIRY
from ..errors import APIStatusError, DownloadError, KieError
from ..wire import decoding
from .images import Inspection, Suffix

Renew = Callable[[str], Awaitable[str]]

FRESH = 30.0  # seconds after the end of a task in which a host may not have its images yet
_USER = re.compile(r"//[^/]*@")
_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)


class Sink(Protocol[_T_co]):
    """Where the bytes of one attempt go. Its methods block, and raise `OSError`.

    `commit` makes the image that was written the result; `discard`, which is always called in the end,
    removes what is left. `name` is for messages.
    """

    @property
    def name(self) -> str: ...

    @property
    def seen(self) -> Inspection: ...

    def write(self, chunk: bytes) -> None: ...

    def decode(self, suffix: Suffix) -> None: ...

    def commit(self, suffix: Suffix) -> _T_co: ...

    def discard(self) -> None: ...


@attrs.frozen(kw_only=True)
class Download(Generic[_T]):
    """One image. `sink` makes a place for the bytes of one attempt, `verify` asks for the image to be decoded
    first, and `age` is how many seconds ago the task ended, or None if that is not known."""

    url: str
    task_id: str
    sink: Callable[[], Sink[_T]]
    renew: Renew
    verify: bool
    age: float | None

    @property
    def fresh(self) -> bool:
        """Whether the host may not have the image yet.

        Also if the age is not known, or cannot be right: Kie deletes a task after 14 days, and with it the
        links to its images.
        """
        return self.age is None or not FRESH <= self.age <= EXPIRY


async def renewed_link(download: Download[Any]) -> str:
    """A new link in place of one that is refused; the image itself is kept for 14 days (download-url page).

    Just after the end of the task Kie may not sign one yet. Raises `DownloadError`.
    """
    try:
        return await download.renew(download.url)
    except KieError as error:
        failure = error
    if _is_deleted(download, failure):
        raise images_deleted(download.task_id)
    if download.fresh:
        return download.url
    action = f"renew the expired link {shown_url(download.url)}"
    raise download_error(action, str(failure), download.task_id)


def _is_deleted(download: Download[Any], refusal: KieError) -> bool:
    """Kie says "Temporarily supports records within 14 days", or of an old task that it does not know it."""
    if not isinstance(refusal, APIStatusError) or refusal.code not in (404, 422):
        return False
    return "14 days" in refusal.message or (download.age or 0.0) > EXPIRY


def images_deleted(task_id: str) -> DownloadError:
    """Too late: neither a link nor a new one leads to the images."""
    return DownloadError(
        f"the images of task {task_id} were deleted: Kie keeps them for {EXPIRY / 86400:g} days",
        task_id=task_id,
    )


def download_error(action: str, reason: str, task_id: str) -> DownloadError:
    """`action` completes "could not ..."."""
    return DownloadError(
        f"could not {action}: {reason.rstrip('.')}. Task {task_id} is paid: "
        f"call client.download({task_id!r}, ...) to try again, at no cost",
        task_id=task_id,
    )


def shown_url(link: str) -> str:
    """A URL for a message: without its query, which may hold a signature, and without a password."""
    return decoding.shown(_USER.sub("//", link.partition("?")[0].partition("#")[0]))
