"""The only module that opens a socket to Kie: bytes out, status and bytes in.

It knows sessions, time-outs, body caps and the key; it does not know what an answer means
(`wire` does) or what to do about it (`submission`, `polling`). Nothing of aiohttp leaves it: every
failure becomes one of our errors, made outside the `except` block, since the repr of aiohttp's
response errors holds the request headers and with them the key.

The paid POST is a thing of its own (`pay`): a fresh connection, so that no stale kept-alive
socket can swallow it; no redirects, since a 307 would send it twice; and a latch, set when the
request headers are written, which is the only sound evidence that nothing was sent. It never
raises, except for cancellation.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import aiohttp
import attrs
from aiohttp import hdrs
from yarl import URL

from . import __version__
from .errors import APIConnectionError, APITimeoutError, ConfigurationError, KieError
from .settings import Settings
from .wire import SUBMIT, Endpoint

MAX_BODY = 1024 * 1024  # bytes of any JSON answer; real ones have under 2 KiB
_SECRET = 16  # characters; Kie's keys have 32
USER_AGENT = f"kie4o/{__version__}"  # Cloudflare refuses default ones with "error code: 1010"


@attrs.frozen
class Answer:
    """What came back, unread."""

    status: int
    body: bytes = attrs.field(repr=False)
    retry_after: str | None = None


@attrs.define
class PaidAttempt:
    """One attempt of the paid POST, filled in while it goes on.

    `sent` is the latch. `status` and `body` hold what arrived, even if `fault` says that it broke
    off.
    """

    sent: bool = False
    status: int | None = None
    body: bytes = attrs.field(default=b"", repr=False)
    fault: str = ""
    timed_out: bool = False
    hopeless: bool = False  # nothing that time could mend
    retry_after: str | None = None


class Transport:
    """Two pools to Kie: one for reads and uploads, one without reuse for the paid POST."""

    def __init__(
        self,
        settings: Settings,
        *,
        timeout: float,
        session: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        trust_env: bool = False,
    ) -> None:
        self._settings = settings
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._lent = session
        self._proxy = proxy
        self._trust_env = trust_env
        self._closed = False
        self._reads: aiohttp.ClientSession | None = None
        self._pays: aiohttp.ClientSession | None = None
        self._urls: dict[Endpoint, str] = {}

    # -- the two kinds of call -------------------------------------------------------------------

    async def read(
        self,
        endpoint: Endpoint,
        *,
        query: str = "",
        body: bytes | aiohttp.MultipartWriter | aiohttp.FormData | None = None,
        timeout: float | None = None,
    ) -> Answer:
        """A call that costs nothing and may be repeated. Raises `APIConnectionError`.

        `query` is already encoded. A body of bytes is JSON.
        """
        if self._closed:
            raise KieError("the client is closed: make a new one")
        session = self._reads or self._open_reads()
        failure: APIConnectionError
        try:
            async with session.request(
                endpoint.method,
                URL(self._url(endpoint) + query, encoded=True),
                data=body,
                headers=self._headers(json=isinstance(body, bytes)),
                allow_redirects=False,
                raise_for_status=False,
                timeout=self._timeout if timeout is None else aiohttp.ClientTimeout(total=timeout),
                middlewares=(_Once(),),
                proxy=self._proxy,
            ) as response:
                text = await _body(response)
            return Answer(response.status, self._without_key(text), response.headers.get(hdrs.RETRY_AFTER))
        except Exception as error:  # whatever it is, nothing of it may escape
            kind = APITimeoutError if isinstance(error, TimeoutError) else APIConnectionError
            failure = kind(f"no answer from {self._place(endpoint)}: {_words(error)}")
        raise failure

    async def pay(self, body: bytes, attempt: PaidAttempt) -> None:
        """Send the one request that costs credits, once, and fill in `attempt`."""
        try:
            if self._closed:
                raise RuntimeError("closed")
            session = self._pays or self._open_pays()
            async with session.post(
                URL(self._url(SUBMIT), encoded=True),
                data=body,
                headers=self._headers(json=True),
                allow_redirects=False,
                raise_for_status=False,
                timeout=self._timeout,
                trace_request_ctx=attempt,
                proxy=self._proxy,
            ) as response:
                attempt.status = response.status
                attempt.retry_after = response.headers.get(hdrs.RETRY_AFTER)
                async for chunk in response.content.iter_any():
                    attempt.body += chunk
                    if len(attempt.body) > MAX_BODY:
                        attempt.fault = f"an answer of more than {MAX_BODY} bytes"
                        break
        except Exception as error:  # whatever it is, the latch has the last word
            attempt.timed_out = isinstance(error, TimeoutError)
            attempt.hopeless = isinstance(error, aiohttp.ClientConnectorCertificateError)
            attempt.fault = f"no answer from {self._place(SUBMIT)}: {_words(error)}"
        attempt.body = self._without_key(attempt.body)

    async def aclose(self) -> None:
        self._closed = True
        sessions = [self._pays, None if self._reads is self._lent else self._reads]
        self._reads = self._pays = None
        for session in sessions:
            if session is not None:
                await session.close()

    # -- sessions --------------------------------------------------------------------------------

    def _open_reads(self) -> aiohttp.ClientSession:
        if self._lent is not None:
            if self._lent.closed:
                raise ConfigurationError("the session that was handed to the client is closed")
            self._reads = self._lent
        else:
            self._reads = self._session(aiohttp.TCPConnector(limit=0))
        return self._reads

    def _open_pays(self) -> aiohttp.ClientSession:
        """A session of our own even beside a lent one: the latch can only be set where a session is
        made. The lent one's connector is shared for its TLS and resolver settings, and with it
        its kept-alive sockets: a stale one makes an outcome unknown, never a second payment."""
        latch = aiohttp.TraceConfig()
        latch.on_request_headers_sent.append(_set_latch)
        connector = self._lent.connector if self._lent is not None else None
        if connector is None:
            self._pays = self._session(aiohttp.TCPConnector(force_close=True, limit=0), trace_configs=[latch])
        else:
            self._pays = self._session(connector, connector_owner=False, trace_configs=[latch])
        return self._pays

    def _session(self, connector: aiohttp.BaseConnector, **more: Any) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=self._trust_env,
            **more,
        )

    # -- small things ----------------------------------------------------------------------------

    def _headers(self, *, json: bool) -> dict[str, str]:
        """Given with each request: those of a session would show the key in its repr."""
        headers: dict[str, str] = {
            hdrs.AUTHORIZATION: f"Bearer {self._settings.api_key.reveal()}",
            hdrs.USER_AGENT: USER_AGENT,
            hdrs.ACCEPT_ENCODING: "identity",
        }
        if json:
            headers[hdrs.CONTENT_TYPE] = "application/json"
        return headers

    def _url(self, endpoint: Endpoint) -> str:
        url = self._urls.get(endpoint)
        if url is None:
            host = self._settings.upload_url if endpoint.uploads else self._settings.base_url
            url = self._urls[endpoint] = str(URL(host + endpoint.path))
        return url

    def _place(self, endpoint: Endpoint) -> str:
        return f"{endpoint.method} {self._url(endpoint)}"

    def _without_key(self, body: bytes) -> bytes:
        """Should an answer ever echo the key, it goes no further than here. A word that is too
        short to be a secret stays: it may stand in anything, also in the name of a field."""
        key = self._settings.api_key.reveal().encode()
        return body.replace(key, b"***") if len(key) >= _SECRET and key in body else body


def task_query(task_id: str) -> str:
    return "?taskId=" + quote(task_id, safe="")


async def _set_latch(
    session: aiohttp.ClientSession,
    context: SimpleNamespace,
    parameters: aiohttp.TraceRequestHeadersSentParams,
) -> None:
    context.trace_request_ctx.sent = True


class _Once:
    """Lets one attempt through: aiohttp sends a GET a second time by itself when the connection
    breaks, which would count twice against three looks a second."""

    __slots__ = ("_used",)

    def __init__(self) -> None:
        self._used = False

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if self._used:
            raise aiohttp.ServerDisconnectedError("the connection broke")
        self._used = True
        return await handler(request)


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """The body, at most MAX_BODY bytes after decompression."""
    if (response.content_length or 0) > MAX_BODY:
        raise ValueError(f"an answer of more than {MAX_BODY} bytes")
    body = b""
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY:
            raise ValueError(f"an answer of more than {MAX_BODY} bytes")
    return body


def _words(error: Exception) -> str:
    """A reason that can be shown: the system's own words, or the kind of failure, never a repr."""
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
