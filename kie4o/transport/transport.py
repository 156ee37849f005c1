"""The only module that opens a connection to Kie: bytes out, HTTP status and bytes in.

It knows sessions, timeouts, size limits and the key. It does not know what an answer means (`wire`
does) or what to do about it (`submission` and `polling` do). Nothing of aiohttp leaves it: every
failure becomes an error of kie4o, created outside the `except` block, because the repr of aiohttp's
response errors contains the request headers and with them the key.

The paid POST has a method of its own, `pay`, with three differences:

1. It gets a connection that was opened ahead, is just proven, or is new (`pools`), so that no stale one can
   swallow it. Over the connector of a session that was passed, each has a new one.
2. Redirects are not followed, since a 307 would send it twice.
3. It does not raise. It fills in a `PaidAttempt`, in which `sent` is the evidence that counts.

Durations are seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable
from types import EllipsisType
from typing import TypeVar

import aiohttp
from aiohttp import hdrs
from yarl import URL

from ..errors import APIConnectionError, APITimeoutError, ConfigurationError, client_closed
from ..events import Exchanged
from ..events.reporter import LOG, Reporter
from ..settings import Settings
from ..urls import is_web_url
from ..version import __version__
from ..wire.encoding import decoded
from ..wire.envelope import envelope_of, retry_after_of
from ..wire.requests import ENDPOINTS, SUBMIT, Endpoint
from .ahead import FIRST_LEAD
from .connections import most_connections, no_file_left, when_free
from .exchange_log import report_exchange, start_of_exchange
from .failures import MAX_HEADER_BYTES, MAX_HEADER_FIELDS, AnswerError, Failure, failure_of
from .paid_body import JSON, PaidAttempt, PaidBody
from .pools import PaidPool, Pool, can_choose, plain_pool
from .redaction import redactor

MAX_BODY = 1024 * 1024  # bytes of a JSON answer; real ones have less than 2 KiB
USER_AGENT = f"kie4o/{__version__}"  # Cloudflare refuses the default ones with "error code: 1010"
_KEPT_READ = 15.0  # an idle connection is reused for this long
_KEPT_PAID = 2.0  # by the paid POST; servers commonly keep connections for 5 s or more
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)

_T = TypeVar("_T")
_Body = bytes | Callable[[], aiohttp.FormData]  # JSON; what makes a form anew for each try
Answer = tuple[int, bytes, float | None]  # status, body, seconds of a Retry-After
Reader = Callable[[int, bytes, float | None], _T]


class _Opened(Exception):
    """A connection was opened ahead; this ends the request that it was opened for."""


class Transport:
    """Two sessions to Kie: one for reads and uploads, one for the paid POST."""

    def __init__(
        self,
        settings: Settings,
        *,
        timeout: float,
        max_in_flight: int = 100,
        session: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        trust_env: bool = False,
        reporter: Reporter = LOG,
    ) -> None:
        # Neither value is shown: a session may hold a key, a proxy's URL a password.
        if session is not None and not isinstance(session, aiohttp.ClientSession):
            raise ConfigurationError(
                f"invalid session (a {type(session).__name__}): expected an aiohttp.ClientSession"
            )
        if proxy is not None and not is_web_url(proxy):
            raise ConfigurationError("invalid proxy: expected a complete http:// or https:// URL")
        self.reporter: Reporter = reporter
        self._timeout = timeout
        self._user_session = session
        self._proxy = proxy
        self._trust_env = trust_env
        self._closed = False
        self._sessions: tuple[aiohttp.ClientSession, aiohttp.ClientSession] | None = None
        self._paid_pool: PaidPool | None = None  # that of the second, unless a connector is not ours
        # How many connections each of the pools may have, and `files` for its transfers.
        self.connections: int = most_connections(max_in_flight)
        hosts = {False: settings.base_url, True: settings.upload_url}
        # Normalized here and not at each call: it takes 1 us of a status check of 100 us.
        self._urls = {each: str(URL(hosts[each.uploads] + each.path)) for each in ENDPOINTS}
        self._redacted = redactor(settings.api_key)
        self._key_header = {hdrs.AUTHORIZATION: f"Bearer {settings.api_key.reveal()}"}

    async def read(
        self,
        endpoint: Endpoint,
        reader: Reader[_T],
        *,
        query: str = "",
        body: _Body | None = None,
        timeout: float | EllipsisType | None = ...,
    ) -> _T:
        """Make a call that costs nothing and return what `reader` makes of the answer.

        Args:
            endpoint: What to call.
            reader: Turns the answer into a value or raises.
            query: The query string, encoded, with its question mark.
            body: Bytes are sent as JSON, what a function returns as a form.
            timeout: None for no timeout; by default the client's.

        Raises:
            APIConnectionError: No answer arrived; also what `reader` raises.
        """
        return reader(*await self.exchange(endpoint, query=query, body=body, timeout=timeout))

    async def exchange(
        self,
        endpoint: Endpoint,
        *,
        query: str = "",
        body: _Body | None = None,
        timeout: float | EllipsisType | None = ...,
    ) -> Answer:
        """The answer to a call that costs nothing, without the key. The arguments are those of `read`.

        Raises `APIConnectionError` if none arrived.
        """
        if self._closed:
            raise client_closed()
        failure: APIConnectionError
        outcome: int | str = "cancelled"
        started = start_of_exchange() if Exchanged in self.reporter.wanted else None
        url = URL(self._urls[endpoint] + query, encoded=True)
        session, _ = self._open()
        try:
            # Not a closure, which would be eight more objects for the garbage collector.
            request = functools.partial(self._requested, session, endpoint.method, url, body, timeout)
            answer = await self._answer(request)
        except Exception as error:  # nothing of aiohttp may leave
            kind = APITimeoutError if isinstance(error, TimeoutError) else APIConnectionError
            why = failure_of(error, self._redacted)
            failure = kind(self._no_answer(endpoint, why))
            failure.cause, failure.retryable = why.cause, not why.permanent
            outcome = why.reason
        else:
            outcome = answer[0]
            return answer
        finally:
            if started is not None:
                where = endpoint.path + query
                report_exchange(self.reporter, started, endpoint.method, where, outcome)
        raise failure

    async def pay(self, body: bytes, attempt: PaidAttempt) -> None:
        """Send the one request that costs credits, once, and fill in `attempt`.

        The timeout strikes one turn of the loop after it is due. An answer that arrived while the
        loop was blocked or the process was stopped is then read first.
        """
        started = start_of_exchange() if Exchanged in self.reporter.wanted else None
        outcome = "cancelled"
        received: list[bytes] = []
        response: aiohttp.ClientResponse | None = None
        loop, limit = asyncio.get_running_loop(), asyncio.timeout(None)
        timer = loop.call_later(self._timeout, lambda: limit.reschedule(loop.time()))
        try:
            if self._closed:
                raise client_closed()
            _, session = self._open()
            async with limit:
                response = await self._respond(session, body, attempt)
                attempt.status = response.status
                attempt.retry_after = response.headers.get(hdrs.RETRY_AFTER)
                await _receive(response, received)
                attempt.complete = True
            outcome = f"{response.status}"
            if not attempt.sent:
                attempt.fault = f"HTTP status {response.status} arrived before the request was sent"
        except Exception as error:  # whatever it is, `sent` decides
            attempt.timed_out = isinstance(error, TimeoutError)
            why = failure_of(error, self._redacted)
            attempt.fault, attempt.cause = self._no_answer(SUBMIT, why), why.cause
            attempt.permanent, outcome = why.permanent, why.reason
        finally:
            timer.cancel()
            attempt.withdraw()
            if response is not None:
                body, problem = _plain(response, received)
                attempt.body = self._redacted(body)
                if problem:
                    attempt.complete, attempt.fault = False, attempt.fault or problem
            if started is not None:
                report_exchange(self.reporter, started, SUBMIT.method, SUBMIT.path, outcome)

    def lead(self) -> float:
        """How many seconds before submits are due `prepare` is to be called."""
        return FIRST_LEAD if self._paid_pool is None else self._paid_pool.ahead.lead()

    def prepare(self, due: int) -> None:
        """Open a connection for each of the submits that are due in `lead` seconds, unless there is one."""
        if self._closed or self._user_session is not None:
            return
        _, session = self._open()
        pool = self._paid_pool
        if pool is not None:
            pool.ahead.open(pool.missing(due), functools.partial(self._open_ahead, session, pool))

    async def aclose(self) -> None:
        """Close both sessions. Calls that are running fail."""
        self._closed = True
        pool, sessions = self._paid_pool, self._sessions
        async with contextlib.AsyncExitStack() as stack:  # closes the second if the first is cancelled
            if pool is not None:
                stack.callback(pool.ahead.close)  # last: the session waits until its connections are closed
            for session in sessions or ():
                stack.push_async_callback(session.close)
            if pool is not None:
                await pool.ahead.stop()

    # -- sessions --------------------------------------------------------------------------------

    def _open(self) -> tuple[aiohttp.ClientSession, aiohttp.ClientSession]:
        """The sessions of the reads and of the paid POST.

        If the user passed a session, only its connector is used, with its TLS settings and resolver. The
        session itself may have headers, cookies or middlewares that repeat requests. The idle connections of
        the connector serve reads.
        """
        if self._sessions is None:
            lent = self._user_session
            reads, payments = self._connectors() if lent is None else (_connector_of(lent),) * 2
            self._sessions = self._session(reads), self._session(payments)
            # aiohttp resends a GET whose connection breaks, which would count twice against Kie's three
            # queries a second. There is no public switch. aiohttp's own test client sets this one, and a
            # test would fail if it stopped working.
            self._sessions[0]._retry_connection = False
            if self._user_session is not None:
                self._sessions[1].headers[hdrs.CONNECTION] = "close"
        return self._sessions

    def _connectors(self) -> tuple[aiohttp.BaseConnector, aiohttp.BaseConnector]:
        limit = self.connections
        if not can_choose():
            return plain_pool(limit=limit, kept=_KEPT_READ), plain_pool(limit=limit, kept=0)
        reads = Pool(limit=limit, kept=_KEPT_READ)
        self._paid_pool = PaidPool(reads, limit=limit, kept=_KEPT_PAID)
        return reads, self._paid_pool

    def _session(self, connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            connector_owner=self._user_session is None,
            cookie_jar=aiohttp.DummyCookieJar(),
            # Without the key: aiohttp sends the headers of a session to a proxy as well, in the clear.
            headers={hdrs.USER_AGENT: USER_AGENT, hdrs.ACCEPT_ENCODING: "identity"},
            timeout=_NO_TIMEOUT,  # each call has its own
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADER_FIELDS,
            auto_decompress=False,  # an encoding that is announced and not there would hide the answer
            proxy=self._proxy,
            trust_env=self._trust_env,
        )

    async def _open_ahead(self, session: aiohttp.ClientSession, pool: PaidPool) -> None:
        """Open a connection as for a paid POST: to the same host, over the same proxy. Nothing is sent."""

        async def connect_only(
            request: aiohttp.ClientRequest, _: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            await pool.open_ahead(request)
            raise _Opened  # the handler, which would send the request, is not called

        url = URL(self._urls[SUBMIT], encoded=True)
        with contextlib.suppress(_Opened):
            await session.request(
                SUBMIT.method, url, timeout=self._client_timeout(...), middlewares=(connect_only,)
            )

    # -- parts of a call -------------------------------------------------------------------------

    async def _answer(self, request: Callable[[], Awaitable[aiohttp.ClientResponse]]) -> Answer:
        """The answer, which is whole if it has an envelope, even if its framing is broken.

        Apart from `exchange`, whose frame is in tracebacks, since what arrives may echo the key.
        """
        try:
            response = await request()
        except OSError as error:
            if not no_file_left(error):
                raise
            response = await when_free(request, seconds=self._timeout)
        received: list[bytes] = []
        try:
            await _receive(response, received)
        except Exception:
            if envelope_of(_plain(response, received)[0]) is None:
                raise
        answer, problem = _plain(response, received)
        if problem and envelope_of(answer) is None:
            raise AnswerError(problem)
        header = response.headers.get(hdrs.RETRY_AFTER)
        return response.status, self._redacted(answer), None if header is None else retry_after_of(header)

    def _requested(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: URL,
        body: _Body | None,
        timeout: float | EllipsisType | None,
    ) -> Awaitable[aiohttp.ClientResponse]:
        """Start the request of a call that costs nothing."""
        return session.request(
            method,
            url,
            data=_data_of(body),
            headers=self._key_header,
            timeout=self._client_timeout(timeout),
            allow_redirects=False,
        )

    async def _respond(
        self, session: aiohttp.ClientSession, body: bytes, attempt: PaidAttempt
    ) -> aiohttp.ClientResponse:
        """Send the paid request as soon as there is a file for its socket; for half of the timeout."""
        try:
            return await self._posted(session, body, attempt)
        except OSError as error:
            if attempt.sent or not no_file_left(error):
                raise
        return await when_free(
            functools.partial(self._posted, session, body, attempt),
            seconds=self._timeout / 2,
            waits_for=lambda error: no_file_left(error) and not attempt.sent,
        )

    def _posted(
        self, session: aiohttp.ClientSession, body: bytes, attempt: PaidAttempt
    ) -> Awaitable[aiohttp.ClientResponse]:
        """Start the paid request."""
        url = URL(self._urls[SUBMIT], encoded=True)
        # The idle connections of a user's connector may be of any age. aiohttp keeps them apart by this name,
        # which is the right one anyway, so no POST gets one of them; and its own is not kept for another.
        lent = self._user_session is not None
        return session.request(
            SUBMIT.method,
            url,
            data=PaidBody(body, attempt, keep_connection=not lent),
            headers=self._key_header,
            allow_redirects=False,
            server_hostname=url.raw_host if lent else None,
        )

    def _client_timeout(self, timeout: float | EllipsisType | None) -> aiohttp.ClientTimeout:
        if timeout is None:
            return _NO_TIMEOUT
        return aiohttp.ClientTimeout(total=self._timeout if timeout is ... else timeout)

    def _no_answer(self, endpoint: Endpoint, why: Failure) -> str:
        return f"no answer from {endpoint.method} {self._urls[endpoint]}: {why.reason}"


def _connector_of(session: aiohttp.ClientSession) -> aiohttp.BaseConnector:
    if session.connector is None:
        raise ConfigurationError("the aiohttp session that was passed to the client is closed")
    if session._loop is not asyncio.get_running_loop():  # there is no public way to ask
        raise ConfigurationError(
            "the aiohttp session that was passed to the client belongs to another event loop"
        )
    return session.connector


def _data_of(body: _Body | None) -> aiohttp.Payload | aiohttp.FormData | None:
    if body is None:
        return None
    return aiohttp.BytesPayload(body, content_type=JSON) if isinstance(body, bytes) else body()


async def _receive(response: aiohttp.ClientResponse, received: list[bytes]) -> None:
    """Append the chunks of the body, not much more than `MAX_BODY` bytes, even if it breaks off."""
    content, size = response.content, 0
    try:
        while not content.at_eof():
            chunk = await content.readany()
            received.append(chunk)
            size += len(chunk)
            if size > MAX_BODY:
                raise AnswerError(f"the answer has more than {MAX_BODY} bytes")
    except BaseException:
        response.close()
        raise


def _plain(response: aiohttp.ClientResponse, received: list[bytes]) -> tuple[bytes, str]:
    """What was received, without the encoding that the response announces, and what is wrong with it."""
    body, encoding = b"".join(received), response.headers.get(hdrs.CONTENT_ENCODING)
    return (body, "") if encoding is None else decoded(body, encoding, MAX_BODY)
