"""The only module that opens a socket to Kie: bytes out, status and bytes in.

It knows sessions, time-outs, body caps and the key; it does not know what an answer means
(`wire` does) or what to do about it (`submission`, `polling`). Nothing of aiohttp leaves it: every
failure becomes one of our errors, made outside the `except` block, since the repr of aiohttp's
response errors holds the request headers and with them the key.

The paid POST is a thing of its own (`pay`): connections of its own that are used again only
while they are young, so that no stale kept-alive socket can swallow it; no redirects, since a 307
would send it twice; and a latch, set when aiohttp takes the body to write it, which is the only sound
evidence that nothing was sent: Kie can act on no request whose body never began to leave. It never
raises, except for cancellation.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from types import EllipsisType
from typing import Any, TypeVar

import aiohttp
from aiohttp import hdrs
from yarl import URL

from ..errors import APIConnectionError, APITimeoutError, ConfigurationError, KieError
from ..settings import Settings
from ..urls import is_web_url
from ..version import __version__
from ..wire.envelope import retry_after_of
from ..wire.requests import SUBMIT, Endpoint
from .paid_body import JSON, PaidAttempt, PaidBody

MAX_BODY = 1024 * 1024  # bytes of any JSON answer; real ones have under 2 KiB
_RECEIVED_AT_ONCE = 64 * 1024  # bytes
_SECRET = 16  # characters; Kie's keys have 32
_KEPT_READ = 15.0  # seconds that an idle connection is used again
_KEPT_PAID = 2.0  # the shortest common keep-alive time of a server is 5 s: it never closes one as we use it
USER_AGENT = f"kie4o/{__version__}"  # Cloudflare refuses default ones with "error code: 1010"


_T = TypeVar("_T")
Reader = Callable[[int, bytes, float | None], _T]  # of status, body and the seconds of a Retry-After


class _Socket(socket.socket):
    """asyncio asks for 256 KiB at each read. The C library maps and unmaps them for an answer of 2 KiB,
    a tenth of what a look costs, until the process has freed so large a block for once. Over TLS
    asyncio keeps a buffer, and this changes nothing."""

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        return super().recv(min(size, _RECEIVED_AT_ONCE), flags)


class Transport:
    """Two pools to Kie: one for reads and uploads, one for the paid POST."""

    def __init__(
        self,
        settings: Settings,
        *,
        timeout: float,
        session: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        trust_env: bool = False,
    ) -> None:
        if session is not None and not isinstance(session, aiohttp.ClientSession):
            # Not the thing itself: it may hold a key.
            raise ConfigurationError(f"session is a {type(session).__name__}: use an aiohttp.ClientSession")
        if proxy is not None and not is_web_url(proxy):  # not shown: it may hold a password
            raise ConfigurationError("proxy is not possible: use a complete http:// or https:// URL")
        self._settings = settings
        self._seconds = timeout
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._lent = session
        self._proxy = proxy
        self._trust_env = trust_env
        self._closed = False
        self._reads: aiohttp.ClientSession | None = None
        self._pays: aiohttp.ClientSession | None = None
        self._urls: dict[Endpoint, str] = {}
        self._without_key = _hider(settings)

    # -- the two kinds of call -------------------------------------------------------------------

    async def read(
        self,
        endpoint: Endpoint,
        reader: Reader[_T],
        *,
        query: str = "",
        body: bytes | aiohttp.MultipartWriter | aiohttp.FormData | None = None,
        timeout: float | EllipsisType | None = ...,
    ) -> _T:
        """A call that costs nothing and may be repeated: what `reader` makes of the answer. Raises
        `APIConnectionError`, and what the reader raises.

        `query` is already encoded. A body of bytes is JSON. `timeout` is in seconds; None: whoever
        calls sees to it.
        """
        if self._closed:
            raise KieError("the client is closed: make a new one")
        session = self._reads or self._open_reads()
        options: dict[str, Any] = {}  # few, since aiohttp hands them on three times
        if timeout is not None:
            options["timeout"] = self._timeout if timeout is ... else aiohttp.ClientTimeout(total=timeout)
        failure: APIConnectionError
        received: list[bytes] = []
        try:
            if isinstance(body, bytes):
                options["data"] = aiohttp.BytesPayload(body, content_type=JSON)
            elif body is not None:
                options["data"] = body
            url = URL((self._urls.get(endpoint) or self._url(endpoint)) + query, encoded=True)
            response = await session.request(endpoint.method, url, allow_redirects=False, **options)
            await _receive(response, received)
        except Exception as error:  # whatever it is, nothing of it may escape
            kind = APITimeoutError if isinstance(error, TimeoutError) else APIConnectionError
            failure = kind(f"no answer from {self._place(endpoint)}: {_words(error)}")
        else:
            asked = response.headers.get(hdrs.RETRY_AFTER)
            retry_after = None if asked is None else retry_after_of(asked)
            return reader(response.status, self._without_key(b"".join(received)), retry_after)
        raise failure

    async def pay(self, body: bytes, attempt: PaidAttempt) -> None:
        """Send the one request that costs credits, once, and fill in `attempt`.

        Time is called one turn of the loop after it is up: an answer that came while the loop was blocked,
        or the process stopped, is read first.
        """
        received: list[bytes] = []
        loop, lasting = asyncio.get_running_loop(), asyncio.timeout(None)
        timer = loop.call_later(self._seconds, lambda: lasting.reschedule(loop.time()))
        try:
            if self._closed:
                raise RuntimeError("closed")
            session = self._pays or self._open_pays()
            url = URL(self._urls.get(SUBMIT) or self._url(SUBMIT), encoded=True)
            async with lasting:
                response = await session.request(
                    SUBMIT.method, url, data=PaidBody(body, attempt), allow_redirects=False
                )
                attempt.status = response.status
                attempt.retry_after = response.headers.get(hdrs.RETRY_AFTER)
                await _receive(response, received)
            if not attempt.sent:
                attempt.fault = f"HTTP {response.status} came before the request was written"
        except Exception as error:  # whatever it is, the latch has the last word
            attempt.timed_out = isinstance(error, TimeoutError)
            attempt.hopeless = isinstance(error, (aiohttp.ClientConnectorCertificateError, KieError))
            attempt.fault = f"no answer from {self._place(SUBMIT)}: {_words(error)}"
        finally:
            timer.cancel()
            attempt.withdraw()
            attempt.body = self._without_key(b"".join(received))

    async def aclose(self) -> None:
        self._closed = True
        sessions, self._reads, self._pays = (self._reads, self._pays), None, None
        async with contextlib.AsyncExitStack() as both:  # the second one also if the first is cancelled
            for session in filter(None, sessions):
                both.push_async_callback(session.close)

    # -- sessions --------------------------------------------------------------------------------

    def _open_reads(self) -> aiohttp.ClientSession:
        self._reads = self._session(_KEPT_READ)
        # aiohttp sends a GET a second time by itself when its connection breaks, which would count
        # twice against three looks a second. There is no public switch; aiohttp's own test client
        # uses this one, and our tests see to it that it works.
        self._reads._retry_connection = False
        return self._reads

    def _open_pays(self) -> aiohttp.ClientSession:
        self._pays = self._session(_KEPT_PAID)
        return self._pays

    def _session(self, keepalive: float) -> aiohttp.ClientSession:
        """A session of our own even beside a lent one, since whoever made that one may have given it
        headers, cookies and middlewares that repeat. Of the lent one the connector is used, with its
        TLS, its resolver and its kept-alive sockets: a stale one makes the outcome of a submit
        unknown, never a second payment."""
        if self._lent is None:
            connector: aiohttp.BaseConnector = aiohttp.TCPConnector(
                limit=0, keepalive_timeout=keepalive, socket_factory=lambda address: _Socket(*address[:3])
            )
        elif self._lent.connector is None:
            raise ConfigurationError("the session that was handed to the client is closed")
        else:
            connector = self._lent.connector
        return aiohttp.ClientSession(
            connector=connector,
            connector_owner=self._lent is None,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={
                hdrs.AUTHORIZATION: f"Bearer {self._settings.api_key.reveal()}",
                hdrs.USER_AGENT: USER_AGENT,
                hdrs.ACCEPT_ENCODING: "identity",
            },
            timeout=aiohttp.ClientTimeout(total=None),  # a look has none: whoever looks sees to it
            proxy=self._proxy,
            trust_env=self._trust_env,
        )

    # -- small things ----------------------------------------------------------------------------

    def _url(self, endpoint: Endpoint) -> str:
        host = self._settings.upload_url if endpoint.uploads else self._settings.base_url
        url = self._urls[endpoint] = str(URL(host + endpoint.path))
        return url

    def _place(self, endpoint: Endpoint) -> str:
        return f"{endpoint.method} {self._url(endpoint)}"


def _hider(settings: Settings) -> Callable[[bytes], bytes]:
    """Should an answer ever echo the key, it goes no further than here. A word that is too short to
    be a secret stays: it may stand in anything, also in the name of a field."""
    key = settings.api_key.reveal().encode()
    if len(key) < _SECRET:
        return lambda body: body
    return lambda body: body.replace(key, b"***") if key in body else body


def task_query(task_id: str) -> str:
    """A task id needs no quoting (see `decoding.TASK_ID`)."""
    return "?taskId=" + task_id


async def _receive(response: aiohttp.ClientResponse, received: list[bytes]) -> None:
    """The body, at most MAX_BODY bytes after decompression; what came before a break is kept."""
    content, size = response.content, 0
    try:
        while not content.at_eof():
            chunk = await content.readany()
            received.append(chunk)
            size += len(chunk)
            if size > MAX_BODY:
                raise ValueError(f"an answer of more than {MAX_BODY} bytes")
    except BaseException:
        response.close()
        raise


def _words(error: Exception) -> str:
    """A reason that can be shown: the system's own words, or the kind of failure, never a repr."""
    if isinstance(error, KieError):
        return str(error)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "its TLS certificate was not accepted"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect ({error.os_error.strerror or type(error.os_error).__name__})"
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if type(error) is ValueError or isinstance(error, aiohttp.ServerDisconnectedError):
        return str(error.args[0]) if error.args and isinstance(error.args[0], str) else "the connection broke"
    return f"the connection broke ({type(error).__name__})"
