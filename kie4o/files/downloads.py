"""Downloading images from file hosts: which hosts to contact, what to accept, when to retry.

A file host is not trusted. It is contacted over https at public addresses only, may redirect a few
times, and receives neither the API key nor cookies. Its response becomes a file, or bytes in memory, only
if it is a complete image of acceptable size. Private addresses are refused where the socket is created: only
there is the final address known, whether it came from a literal, a DNS name or a redirect.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import socket
import urllib.request
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from aiohttp import hdrs
from yarl import URL

from ..errors import KieError, reason_of
from ..events.reporter import LOG, Reporter
from ..transport.connections import when_free
from ..transport.exchange_log import reporting_hosts
from ..transport.failures import MAX_HEADER_BYTES, MAX_HEADER_FIELDS, failure_of
from ..transport.retrying import TRIES, Jitter, Sleep, full_jitter, repeated
from ..transport.transport import USER_AGENT
from ..wire import decoding
from . import images, verification
from .addresses import is_private_host, is_public
from .disk import NO_PATH, NoThreadError, in_thread, in_thread_or_here, reason_of_folder
from .links import Download, Sink, download_error, renewed_link, shown_url

MAX_REDIRECTS = 3
TOTAL_TIMEOUT = 300.0  # seconds for one image, or `timeout` if that is longer
_CHUNK_BYTES = 256 * 1024  # per write to the disk
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_EXPIRED = frozenset({401, 403, 404, 410})  # a signed link is good for 20 minutes (download-url page)
_FRESH_TRIES = 7  # within 16 to 32 s
_TEMPORARY = frozenset({408, 425, 429})  # and every 5xx
_NOT_PUBLIC = "the address of the host is not public"
_BAD_URL = "the URL is invalid"
_RANGE = re.compile(r"bytes 0-(\d{1,18})/(\d{1,18})")
_T = TypeVar("_T")


class PrivateAddressError(OSError):
    """A host name leads to a private address.

    The message has no address, since aiohttp joins the different messages of several addresses into one.
    """

    def __init__(self) -> None:
        super().__init__(_NOT_PUBLIC)


class FetchError(KieError):
    """Why one attempt failed. Internal: callers get a `DownloadError` with this reason.

    `refused` says that the host answered, and with a status that is no success.
    """

    def __init__(
        self, reason: str, *, temporary: bool = False, expired: bool = False, refused: bool = False
    ) -> None:
        super().__init__(reason)
        self.temporary = temporary
        self.expired = expired
        self.refused = refused


class HostPolicy:
    """Which hosts may be contacted: public ones, over https.

    `allow_private` also allows plain http and private addresses, for an emulator.
    """

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private

    def checked_url(self, text: str, base: URL | None = None) -> URL:
        """The URL to request, relative to `base` if there is one. Raises `FetchError`."""
        url = _parsed(text, base)
        if url is None or not url.host:
            raise FetchError(_BAD_URL)
        if url.scheme != "https" and not (self._allow_private and url.scheme == "http"):
            raise FetchError(f"the URL scheme {decoding.shown(url.scheme, 20)!r} is not https")
        if url.user is not None or url.password is not None:
            raise FetchError("the URL contains a user name or a password")
        if is_private_host(url.host) and not self._allow_private:
            raise FetchError(_NOT_PUBLIC)
        return url

    def create_socket(self, addr_info: tuple[Any, ...]) -> socket.socket:
        """A socket as aiohttp creates it by default, but only for an allowed address."""
        family, kind, protocol, _, address = addr_info
        if not self._allow_private and not is_public(str(address[0])):
            raise PrivateAddressError
        return socket.socket(family, kind, protocol)


class _Tries:
    """The tries at one image: with which link, and whether another one is worth it.

    A link that is refused has expired, and is renewed once. Just after the end of the task the image may not
    be there yet: then a refusal passes as a busy host does, there are more tries, and each that is refused is
    followed by one with the other link, the signed one or that of the result.
    """

    def __init__(self, download: Download[Any]) -> None:
        self.link: str = download.url
        self._download = download
        self._is_renewed = False
        self._count = 0  # with this link, without those that only say that the image is not there yet

    async def failed(self, failure: FetchError) -> None:
        """Count a try, and choose the link of the next one."""
        fresh = self._download.fresh
        if not (fresh and failure.refused):
            self._count += 1
        if failure.expired and fresh:
            self._is_renewed = not self._is_renewed
            self.link = await renewed_link(self._download) if self._is_renewed else self._download.url

    def worth_repeating(self, failure: Exception) -> bool:
        if not isinstance(failure, FetchError):
            return False
        if self._download.fresh and failure.refused:
            return failure.temporary or failure.expired
        return failure.temporary and self._count < TRIES

    async def renewed(self, failure: FetchError) -> bool:
        """Whether the link had expired and there is a new one, for as many tries."""
        if self._download.fresh or self._is_renewed or not failure.expired:
            return False
        self.link, self._is_renewed, self._count = await renewed_link(self._download), True, 0
        return True


class Downloader:
    """Fetches images. Its sessions are separate from those that carry the API key to Kie."""

    def __init__(
        self,
        *,
        policy: HostPolicy,
        timeout: float,
        max_bytes: int,
        connections: int = 100,
        proxy: str | None,
        trust_env: bool,
        sleep: Sleep = asyncio.sleep,
        jitter: Jitter = full_jitter,
        reporter: Reporter = LOG,
    ) -> None:
        self._policy = policy
        self._reporter = reporter
        self._timeout = aiohttp.ClientTimeout(
            total=max(timeout, TOTAL_TIMEOUT), sock_connect=timeout, sock_read=timeout
        )
        self._max_bytes = max_bytes
        self._proxy = proxy
        self._trust_env = trust_env
        self._sleep = sleep
        self._jitter = jitter
        self._sessions: dict[bool, aiohttp.ClientSession] = {}  # by whether they use a proxy
        self._turns = asyncio.Semaphore(connections)

    async def fetch(self, download: Download[_T]) -> _T:
        """The image, in its sink. Raises `DownloadError`."""
        tries = _Tries(download)

        async def attempt() -> _T:
            try:
                return await self._attempt(download, tries.link)
            except FetchError as error:
                failure = error
            await tries.failed(failure)
            raise failure

        while True:
            try:
                return await repeated(
                    attempt,
                    tries=_FRESH_TRIES,
                    worth=tries.worth_repeating,
                    sleep=self._sleep,
                    jitter=self._half_jitter if download.fresh else self._jitter,
                    reporter=self._reporter,
                )
            except FetchError as error:
                failure = error
            if not await tries.renewed(failure):
                raise download_error(f"download {shown_url(tries.link)}", str(failure), download.task_id)

    async def aclose(self) -> None:
        async with contextlib.AsyncExitStack() as stack:  # closes the second if the first is cancelled
            for session in self._sessions.values():
                stack.push_async_callback(session.close)

    # -- one attempt -----------------------------------------------------------------------------

    def _half_jitter(self, delay: float) -> float:
        """At least half of each delay, so that the tries do not end too early."""
        return delay / 2 + self._jitter(delay / 2)

    async def _attempt(self, download: Download[_T], link: str) -> _T:
        """One attempt. It holds a turn, since it has a connection and a file open."""
        async with self._turns:
            return await self._received(download, link)

    async def _received(self, download: Download[_T], link: str) -> _T:
        sink = download.sink()
        try:
            try:
                async with self._response(link) as response:
                    await self._receive(response, sink)
            except FetchError:
                raise
            except Exception as error:  # no exception of aiohttp may reach the caller
                failure = _failure_of(error)
            else:
                suffix = _suffix_of(sink.seen)
                if download.verify:
                    await _verify(sink, suffix)
                return await _in_sink(sink, sink.commit, suffix)
            raise failure
        finally:
            await in_thread_or_here(sink.discard)

    @contextlib.asynccontextmanager
    async def _response(self, link: str) -> AsyncGenerator[aiohttp.ClientResponse]:
        """The response with a whole body, after at most `MAX_REDIRECTS` redirects."""
        url = self._policy.checked_url(link)
        for _ in range(MAX_REDIRECTS + 1):
            proxy = self._proxy or (_proxy_of(url) if self._trust_env else None)
            session = self._session(proxied=proxy is not None)
            request = functools.partial(session.get, url, allow_redirects=False, proxy=proxy)
            async with await when_free(request) as response:
                if response.status not in _REDIRECTS:
                    _check_status(response)
                    yield response
                    return
                location = response.headers.get(hdrs.LOCATION, "")
            if not location:
                raise FetchError("the host redirects without a Location")
            url = self._policy.checked_url(location, url)
        raise FetchError(f"the host redirects more than {MAX_REDIRECTS} times")

    async def _receive(self, response: aiohttp.ClientResponse, sink: Sink[object]) -> None:
        """Write the body to the sink; stop as soon as it is too large or is not an image.

        If the framing of the body is broken, the image may be whole all the same.
        """
        too_large = f"the image has more than {self._max_bytes} bytes"
        if (response.content_length or 0) > self._max_bytes:
            raise FetchError(too_large)
        size, checked, buffer = 0, False, bytearray()
        broken: Exception | None = None
        try:
            async for data in response.content.iter_any():
                size += len(data)
                if size > self._max_bytes:
                    raise FetchError(too_large)
                buffer += data
                if not checked and len(buffer) >= images.HEAD:
                    _check_format(buffer)
                    checked = True
                if len(buffer) >= _CHUNK_BYTES:
                    await _in_sink(sink, sink.write, bytes(buffer))
                    buffer.clear()
        except (aiohttp.ClientError, OSError) as error:  # a KieError is neither
            broken = error
        await _in_sink(sink, sink.write, bytes(buffer))
        if broken is not None and not sink.seen.whole:
            raise broken

    def _session(self, *, proxied: bool) -> aiohttp.ClientSession:
        """A session; through a proxy its sockets are not checked, since a proxy may be private."""
        session = self._sessions.get(proxied)
        if session is None:
            factory = None if proxied else self._policy.create_socket
            session = self._sessions[proxied] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, socket_factory=factory),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={hdrs.USER_AGENT: USER_AGENT, hdrs.ACCEPT_ENCODING: "identity"},
                timeout=self._timeout,
                max_line_size=MAX_HEADER_BYTES,
                max_field_size=MAX_HEADER_BYTES,
                max_headers=MAX_HEADER_FIELDS,
                trace_configs=[reporting_hosts(self._reporter)],
                trust_env=False,  # it would send passwords from ~/.netrc; `_proxy_of` reads the proxies
            )
        return session


async def created_directory(directory: str | os.PathLike[str], task_id: str) -> Path:
    """The directory, with its parents, created if it is missing. Raises `DownloadError`."""
    try:
        return await in_thread(_created, directory)
    except (OSError, *NO_PATH) as error:
        reason = reason_of_folder(error)
    raise download_error(f"create the directory '{directory}'", reason, task_id)


def _created(directory: str | os.PathLike[str]) -> Path:
    path = Path(directory).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    return path


async def _in_sink(sink: Sink[object], function: Callable[..., _T], *arguments: Any) -> _T:
    """Run a function of the sink in a thread, as soon as there is a file for it. Raises `FetchError`."""
    try:
        return await when_free(functools.partial(in_thread, function, *arguments))
    except OSError as error:
        reason = reason_of(error)
    raise FetchError(f"cannot write to {sink.name}: {reason}")


def _parsed(text: str, base: URL | None) -> URL | None:
    """The URL, with its quoting unchanged since it may be signed; None if it is invalid."""
    try:
        text = text.replace(" ", "%20").replace("\\", "%5C")  # Kie's own may hold them
        plain = text.isascii() and text.isprintable()
        url = URL(text, encoded=plain)
        if base is not None:
            url = base.join(url)
        return url if url.port != 0 else None  # yarl checks the port when it is read
    except (ValueError, TypeError):
        return None


# -- what is accepted --------------------------------------------------------------------------


def _check_status(response: aiohttp.ClientResponse) -> None:
    """A 203 comes through a proxy that may have changed headers; a 206 can be the answer of a cache."""
    status = response.status
    if status in (200, 203):
        return
    if status == 206:
        range_ = _RANGE.fullmatch(response.headers.get(hdrs.CONTENT_RANGE, ""))
        if range_ is None or int(range_[1]) + 1 != int(range_[2]):
            raise FetchError("the host sent only a part of the image (HTTP 206)", temporary=True)
        return
    raise FetchError(
        f"the host answered HTTP {status}",
        temporary=status in _TEMPORARY or status >= 500,
        expired=status in _EXPIRED,
        refused=True,
    )


def _check_format(head: bytes | bytearray) -> images.Suffix:
    suffix = images.suffix_of(bytes(head[: images.HEAD]))
    if suffix is None:
        raise FetchError(
            f"the response is not an image; it starts with {decoding.shown(bytes(head[:80]), 40)!r}"
        )
    return suffix


def _suffix_of(seen: images.Inspection) -> images.Suffix:
    """The suffix for a complete image. A damaged one is a temporary failure."""
    if seen.size < images.HEAD:
        raise FetchError(f"the response ended after {seen.size} bytes", temporary=True)
    suffix = _check_format(seen.head)
    if seen.problem is not None:
        raise FetchError(f"the {suffix} image {seen.problem}", temporary=True)
    return suffix


async def _verify(sink: Sink[object], suffix: images.Suffix) -> None:
    """Decode the image. One that cannot be decoded is a temporary failure."""
    try:
        await in_thread(sink.decode, suffix)
        return
    except (verification.TooManyPixels, NoThreadError) as error:
        failure = FetchError(f"the {suffix} image cannot be verified: {reason_of(error)}")
    except Exception as error:  # whatever Pillow raises for the bytes of a stranger
        reason = decoding.shown(str(error)) or type(error).__name__
        failure = FetchError(f"the {suffix} image cannot be decoded ({reason})", temporary=True)
    raise failure


# -- messages ----------------------------------------------------------------------------------


def _failure_of(error: Exception) -> FetchError:
    """Why the network failed, without headers and without the password of a proxy."""
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, PrivateAddressError):
        return FetchError(_NOT_PUBLIC)
    if isinstance(error, aiohttp.InvalidURL):
        return FetchError(_BAD_URL)
    why = failure_of(error)
    temporary = isinstance(error, (aiohttp.ClientError, OSError)) and not why.permanent
    return FetchError(why.reason, temporary=temporary)


def _proxy_of(url: URL) -> str | None:
    """The proxy for a URL from the environment (http_proxy, https_proxy, no_proxy)."""
    proxy = urllib.request.getproxies().get(url.scheme)
    return None if not proxy or urllib.request.proxy_bypass(f"{url.host}:{url.port}") else proxy
