"""Fetching images from file hosts: whom to ask, what to take, when to ask again.

A file host is a stranger. It gets no key and no cookie, is reached over https at public addresses
only, may redirect a little, and what it sends must be an image, whole and of bearable size, before
it is a file. The private-address check sits where sockets are made, since only there the final
address is known: of a literal, of a name (also one that changes), of a redirect.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import re
import socket
import urllib.request
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import attrs
from aiohttp import hdrs
from yarl import URL

from ..errors import DownloadError, KieError
from ..transport.retrying import Sleep, repeated
from ..transport.transport import USER_AGENT
from ..wire import decoding
from . import images
from .addresses import is_inside, is_public
from .disk import Draft, in_thread

Renew = Callable[[str], Awaitable[str]]

MAX_HOPS = 3  # redirects that are followed
LONGEST = 300.0  # seconds for one image; `timeout` is for each part of the way
_PIECE = 256 * 1024  # bytes per write to the disk
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_EXPIRED = frozenset({401, 403, 404, 410})  # what a signed link says after its time
_PASSING = frozenset({408, 425, 429})  # and every 5xx; the CDN fails now and then, as public clients found
_USER = re.compile(r"//[^/]*@")
_T = TypeVar("_T")


@attrs.frozen(kw_only=True)
class Order:
    """One image to fetch: from where, and where to."""

    url: str
    task_id: str
    directory: Path
    name: Callable[[images.Ending], str]
    renew: Renew


class PrivateAddressError(OSError):
    """A file host led inside. The same words for every address: aiohttp puts several into one."""

    def __init__(self) -> None:
        super().__init__("its address is not public")


class Fault(KieError):
    """Why one attempt came to nothing. Internal: callers get a `DownloadError` with these words."""

    def __init__(self, words: str, *, passing: bool = False, expired: bool = False) -> None:
        super().__init__(words)
        self.passing = passing
        self.expired = expired


class Door:
    """Who may be asked. `inside` opens it to plain http and private addresses, for an emulator."""

    def __init__(self, *, inside: bool) -> None:
        self._inside = inside

    def url(self, text: str, base: URL | None = None) -> URL:
        """The URL to ask, or a `Fault`."""
        url = _parsed(text, base)
        if url is None or not url.host:
            raise Fault("the URL cannot be read")
        if url.scheme != "https" and not (self._inside and url.scheme == "http"):
            raise Fault(f"{decoding.shown(url.scheme, 20)} is not accepted, only https")
        if url.user is not None or url.password is not None:
            raise Fault("the URL carries a user or a password")
        if is_inside(url.host) and not self._inside:
            raise Fault("its address is not public")
        return url

    def socket(self, addr_info: tuple[Any, ...]) -> socket.socket:
        """aiohttp's `socket_factory`: what it does by itself, for public addresses."""
        family, kind, protocol, _, address = addr_info
        if not self._inside and not is_public(str(address[0])):
            raise PrivateAddressError
        return socket.socket(family, kind, protocol)


class Downloader:
    """Fetches images; owns the sessions to file hosts, which know nothing of Kie's."""

    def __init__(
        self,
        *,
        door: Door,
        timeout: float,
        max_bytes: int,
        proxy: str | None,
        trust_env: bool,
        sleep: Sleep = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._door = door
        self._timeout = aiohttp.ClientTimeout(
            total=max(timeout, LONGEST), sock_connect=timeout, sock_read=timeout
        )
        self._max_bytes = max_bytes
        self._proxy = proxy
        self._trust_env = trust_env
        self._sleep = sleep
        self._chance = chance
        self._sessions: dict[bool, aiohttp.ClientSession] = {}  # by whether it goes through a proxy
        self._closed = False

    async def fetch(self, order: Order) -> Path:
        """The file, whole and in its place. Raises `DownloadError`."""
        link, renewed = order.url, False
        while True:
            try:
                return await repeated(
                    functools.partial(self._attempt, order, link),
                    worth=_is_passing,
                    sleep=self._sleep,
                    chance=self._chance,
                )
            except Fault as error:
                fault = error
            if renewed or not fault.expired:
                break
            link, renewed = await _renewed(order), True
        raise DownloadError(
            f"{_place(link)} could not be fetched: {fault}. Task {order.task_id} stays paid",
            task_id=order.task_id,
        )

    async def aclose(self) -> None:
        self._closed = True
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()

    # -- one attempt -----------------------------------------------------------------------------

    async def _attempt(self, order: Order, link: str) -> Path:
        draft = Draft(order.directory)
        try:
            try:
                async with self._response(link) as response:
                    await self._fill(draft, response)
            except Fault:
                raise
            except Exception as error:  # whatever it is, nothing of it may escape
                fault = _fault_of(error)
            else:
                ending = _ending_of(draft)
                return await _on_disk(order.directory, draft.keep, order.name(ending))
            raise fault
        finally:
            await in_thread(draft.discard)

    @contextlib.asynccontextmanager
    async def _response(self, link: str) -> AsyncGenerator[aiohttp.ClientResponse]:
        """The answer that has the image, some redirects later."""
        url = self._door.url(link)
        for _ in range(MAX_HOPS + 1):
            proxy = self._proxy or (_proxy_of(url) if self._trust_env else None)
            session = self._session(proxied=proxy is not None)
            async with session.get(url, allow_redirects=False, proxy=proxy) as response:
                if response.status not in _REDIRECTS:
                    _check_status(response.status)
                    yield response
                    return
                location = response.headers.get(hdrs.LOCATION, "")
            if not location:
                raise Fault("it redirects to nowhere")
            url = self._door.url(location, url)
        raise Fault(f"it redirects more than {MAX_HOPS} times")

    async def _fill(self, draft: Draft, response: aiohttp.ClientResponse) -> None:
        too_large = f"the image has more than {self._max_bytes} bytes"
        if (response.content_length or 0) > self._max_bytes:
            raise Fault(too_large)
        size, known, piece = 0, False, bytearray()
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > self._max_bytes:
                raise Fault(too_large)
            piece += chunk
            if not known and len(piece) >= images.HEAD:
                _check_kind(piece)
                known = True
            if len(piece) >= _PIECE:
                await _on_disk(draft.directory, draft.write, bytes(piece))
                piece.clear()
        await _on_disk(draft.directory, draft.write, bytes(piece))

    def _session(self, *, proxied: bool) -> aiohttp.ClientSession:
        """Through a proxy the socket is the proxy's, which may well be inside."""
        if self._closed:
            raise Fault("the client is closed")
        session = self._sessions.get(proxied)
        if session is None:
            factory = None if proxied else self._door.socket
            session = self._sessions[proxied] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, socket_factory=factory),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={hdrs.USER_AGENT: USER_AGENT, hdrs.ACCEPT_ENCODING: "identity"},
                timeout=self._timeout,
                trust_env=False,  # it would send passwords of ~/.netrc; _proxy_of does the rest
            )
        return session


def _is_passing(error: Exception) -> bool:
    return isinstance(error, Fault) and error.passing


async def _renewed(order: Order) -> str:
    """A fresh link in place of one that has expired; the images themselves live for 14 days."""
    try:
        return await order.renew(order.url)
    except KieError as error:
        words = str(error)
    raise DownloadError(
        f"{_place(order.url)} has expired, and there was no new link: {words}", task_id=order.task_id
    )


async def _on_disk(directory: Path, function: Callable[..., _T], *arguments: Any) -> _T:
    try:
        return await in_thread(function, *arguments)
    except OSError as error:
        words = error.strerror or type(error).__name__
    raise Fault(f"it cannot be written to {str(directory)!r}: {words}")


def _parsed(text: str, base: URL | None) -> URL | None:
    """The URL with its quoting as it came, since that may be signed; None if it is none."""
    try:
        plain = text.isascii() and text.isprintable() and " " not in text
        url = URL(text, encoded=plain)
        if base is not None:
            url = base.join(url)
        return url if url.port != 0 else None  # looks at the port: yarl is lazy
    except (ValueError, TypeError):
        return None


# -- what is accepted --------------------------------------------------------------------------


def _check_status(status: int) -> None:
    if status != 200:
        passing = status in _PASSING or status >= 500
        raise Fault(f"it answers HTTP {status}", passing=passing, expired=status in _EXPIRED)


def _check_kind(head: bytes | bytearray) -> images.Ending:
    ending = images.ending_of(bytes(head[: images.HEAD]))
    if ending is None:
        raise Fault(f"it is not an image but {decoding.shown(bytes(head[:80]), 40)!r}")
    return ending


def _ending_of(draft: Draft) -> images.Ending:
    """The kind of a complete image; what was cut off may come whole the next time."""
    if draft.size < images.HEAD:
        raise Fault(f"it ends after {draft.size} bytes", passing=True)
    ending = _check_kind(draft.head)
    if not images.is_whole(ending, head=draft.head, tail=draft.tail, size=draft.size):
        raise Fault(f"the {ending} image is cut off after {draft.size} bytes", passing=True)
    return ending


# -- words -------------------------------------------------------------------------------------


def _fault_of(error: Exception) -> Fault:
    """Why the network failed, in words that hold no header and no proxy's password."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return Fault("its TLS certificate was not accepted")
    if isinstance(error, aiohttp.ClientConnectorError):
        reason = error.os_error
        if isinstance(reason, PrivateAddressError):
            return Fault(str(reason))
        return Fault(f"cannot connect ({reason.strerror or type(reason).__name__})", passing=True)
    if isinstance(error, aiohttp.InvalidURL):
        return Fault("the URL cannot be read")
    if isinstance(error, TimeoutError):
        return Fault("it timed out", passing=True)
    passing = isinstance(error, (aiohttp.ClientError, OSError))
    return Fault(f"the connection broke ({type(error).__name__})", passing=passing)


def _place(link: str) -> str:
    """A link as it may be shown: without its signature or a password."""
    return decoding.shown(_USER.sub("//", link.partition("?")[0].partition("#")[0]))


def _proxy_of(url: URL) -> str | None:
    """The environment's proxy for a URL (http_proxy, https_proxy, no_proxy)."""
    proxy = urllib.request.getproxies().get(url.scheme)
    return None if not proxy or urllib.request.proxy_bypass(f"{url.host}:{url.port}") else proxy
