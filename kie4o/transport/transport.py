"""The only module that opens a connection to Kie: bytes out, HTTP status and bytes in.

It knows sessions, timeouts, size limits and the key. It does not know what an answer means (`wire`
does) or what to do about it (`submission` and `polling` do). Nothing of aiohttp leaves it: every
failure becomes an error of kie4o, created outside the `except` block, because the repr of aiohttp's
response errors contains the request headers and with them the key.

The paid POST has a method of its own, `pay`, with three differences:

1. Its connections are reused only while they are young, so that no stale one can swallow it. Over the
   connector of a session that was passed, each has a new one.
2. Redirects are not followed, since a 307 would send it twice.
3. It does not raise. It fills in a `PaidAttempt`, in which `sent` is the evidence that counts.

Durations are seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Awaitable, Callable
from types import EllipsisType
from typing import TypeVar

import aiohttp
from aiohttp import hdrs
from yarl import URL

from ..errors import APIConnectionError, APITimeoutError, ConfigurationError, client_closed
from ..settings import Settings
from ..urls import is_web_url
from ..version import __version__
from ..wire.encoding import decoded
from ..wire.envelope import envelope_of, retry_after_of
from ..wire.requests import ENDPOINTS, SUBMIT, Endpoint
from .connections import Connections, Pool, most_connections, no_file_left, when_free
from .exchange_log import log_exchange, start_of_exchange
from .failures import MAX_HEADER_BYTES, MAX_HEADER_FIELDS, AnswerError, Failure, failure_of
from .paid_body import JSON, PaidAttempt, PaidBody
from .redaction import redactor

MAX_BODY = 1024 * 1024  # bytes of a JSON answer; real ones have less than 2 KiB
USER_AGENT = f"kie4o/{__version__}"  # Cloudflare refuses the default ones with "error code: 1010"
_RECEIVE_AT_ONCE = 64 * 1024  # bytes
_KEPT_READ = 15.0  # an idle connection is reused for this long
_KEPT_PAID = 2.0  # servers commonly keep connections for 5 s or more: none closes while we send
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)

_T = TypeVar("_T")
_Body = bytes | Callable[[], aiohttp.FormData]  # JSON; what makes a form anew for each try
Reader = Callable[[int, bytes, float | None], _T]  # status, body, seconds of a Retry-After


class _Socket(socket.socket):
    """Receives less at once than the 256 KiB that asyncio asks for.

    glibc maps and unmaps a buffer of that size for each answer, until the process has freed one of
    them for another reason. That is 15 us of a status check of 110 us (`python -m benchmarks --only
    cpu`, glibc 2.36). Over TLS asyncio has a buffer of its own, and this changes nothing.
    """

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        return super().recv(min(size, _RECEIVE_AT_ONCE), flags)


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
    ) -> None:
        # Neither value is shown: a session may hold a key, a proxy's URL a password.
        if session is not None and not isinstance(session, aiohttp.ClientSession):
            raise ConfigurationError(
                f"invalid session (a {type(session).__name__}): expected an aiohttp.ClientSession"
            )
        if proxy is not None and not is_web_url(proxy):
            raise ConfigurationError("invalid proxy: expected a complete http:// or https:// URL")
        self._settings = settings
        self._timeout = timeout
        self._user_session = session
        self._proxy = proxy
        self._trust_env = trust_env
        self._closed = False
        self._reads = Pool(self._read_session)
        self._payments = Pool(self._paid_session)
        # How many connections each of the pools may have, and `files` for its transfers.
        self.connections: int = most_connections(max_in_flight)
        hosts = {False: settings.base_url, True: settings.upload_url}
        # Normalized here and not at each call: it takes 1 us of a status check of 100 us.
        self._urls = {each: str(URL(hosts[each.uploads] + each.path)) for each in ENDPOINTS}
        self._redacted = redactor(settings.api_key)

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
        if self._closed:
            raise client_closed()
        failure: APIConnectionError
        started, outcome = start_of_exchange(), "cancelled"
        connections = self._reads.enter()
        call = functools.partial(
            connections.session.request,
            endpoint.method,
            URL(self._urls[endpoint] + query, encoded=True),
            timeout=self._client_timeout(timeout),
            allow_redirects=False,
        )
        try:
            answer = await self._exchange(call, body)
        except Exception as error:  # nothing of aiohttp may leave
            kind = APITimeoutError if isinstance(error, TimeoutError) else APIConnectionError
            why = failure_of(error, self._redacted)
            failure = kind(self._no_answer(endpoint, why))
            failure.cause, failure.retryable = why.cause, not why.permanent
            outcome = why.reason
        else:
            outcome = f"{answer[0]}"
            return reader(*answer)
        finally:
            self._reads.leave(connections)
            log_exchange(started, endpoint.method, endpoint.path + query, outcome)
        raise failure

    async def pay(self, body: bytes, attempt: PaidAttempt) -> None:
        """Send the one request that costs credits, once, and fill in `attempt`.

        The timeout strikes one turn of the loop after it is due. An answer that arrived while the
        loop was blocked or the process was stopped is then read first.
        """
        started, outcome = start_of_exchange(), "cancelled"
        received: list[bytes] = []
        response: aiohttp.ClientResponse | None = None
        loop, limit = asyncio.get_running_loop(), asyncio.timeout(None)
        timer = loop.call_later(self._timeout, lambda: limit.reschedule(loop.time()))
        connections: Connections | None = None
        try:
            if self._closed:
                raise client_closed()
            connections = self._payments.enter()
            async with limit:
                response = await self._respond(connections.session, body, attempt)
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
            if connections is not None:
                self._payments.leave(connections)
            log_exchange(started, SUBMIT.method, SUBMIT.path, outcome)

    async def aclose(self) -> None:
        """Close both sessions. Calls that are running fail."""
        self._closed = True
        async with contextlib.AsyncExitStack() as stack:  # closes the second if the first is cancelled
            stack.push_async_callback(self._payments.aclose)
            stack.push_async_callback(self._reads.aclose)

    # -- sessions --------------------------------------------------------------------------------

    def _read_session(self) -> aiohttp.ClientSession:
        session = self._session(_KEPT_READ)
        # aiohttp resends a GET whose connection breaks, which would count twice against Kie's three
        # queries a second. There is no public switch. aiohttp's own test client sets this one, and a
        # test would fail if it stopped working.
        session._retry_connection = False
        return session

    def _paid_session(self) -> aiohttp.ClientSession:
        session = self._session(_KEPT_PAID)
        if self._user_session is not None:
            session.headers[hdrs.CONNECTION] = "close"
        return session

    def _session(self, keepalive: float) -> aiohttp.ClientSession:
        """The client's own session, also if the user passed one.

        The user's session may have headers, cookies or middlewares that repeat requests. Only its
        connector is used, with its TLS settings and resolver. Its idle connections serve reads.
        """
        if self._user_session is None:
            connector: aiohttp.BaseConnector = aiohttp.TCPConnector(
                limit=self.connections,
                keepalive_timeout=keepalive,
                socket_factory=lambda address: _Socket(*address[:3]),
            )
        elif self._user_session.connector is None:
            raise ConfigurationError("the aiohttp session that was passed to the client is closed")
        elif self._user_session._loop is not asyncio.get_running_loop():  # there is no public way to ask
            raise ConfigurationError(
                "the aiohttp session that was passed to the client belongs to another event loop"
            )
        else:
            connector = self._user_session.connector
        return aiohttp.ClientSession(
            connector=connector,
            connector_owner=self._user_session is None,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={
                hdrs.AUTHORIZATION: f"Bearer {self._settings.api_key.reveal()}",
                hdrs.USER_AGENT: USER_AGENT,
                hdrs.ACCEPT_ENCODING: "identity",
            },
            timeout=_NO_TIMEOUT,  # each call has its own
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADER_FIELDS,
            auto_decompress=False,  # an encoding that is announced and not there would hide the answer
            proxy=self._proxy,
            trust_env=self._trust_env,
        )

    # -- parts of a call -------------------------------------------------------------------------

    async def _exchange(
        self, call: Callable[..., Awaitable[aiohttp.ClientResponse]], body: _Body | None
    ) -> tuple[int, bytes, float | None]:
        """The status, the body without the key and the seconds of a Retry-After.

        An answer with an envelope is whole, even if its framing is broken. Apart from `read`, whose frame is
        in tracebacks, since what arrives may echo the key.
        """
        try:
            response = await call(data=_data_of(body))
        except OSError as error:
            if not no_file_left(error):
                raise
            response = await when_free(lambda: call(data=_data_of(body)), seconds=self._timeout)
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

    async def _respond(
        self, session: aiohttp.ClientSession, body: bytes, attempt: PaidAttempt
    ) -> aiohttp.ClientResponse:
        """Send the paid request as soon as there is a file for its socket; for half of the timeout."""
        url = URL(self._urls[SUBMIT], encoded=True)
        # The idle connections of a user's connector may be of any age. aiohttp keeps them apart by this name,
        # which is the right one anyway, so no POST gets one of them; and its own is not kept for another.
        lent = self._user_session is not None
        name = url.raw_host if lent else None

        def request() -> Awaitable[aiohttp.ClientResponse]:
            return session.request(
                SUBMIT.method,
                url,
                data=PaidBody(body, attempt, keep_connection=not lent),
                allow_redirects=False,
                server_hostname=name,
            )

        return await when_free(
            request,
            seconds=self._timeout / 2,
            waits_for=lambda error: no_file_left(error) and not attempt.sent,
        )

    def _client_timeout(self, timeout: float | EllipsisType | None) -> aiohttp.ClientTimeout:
        if timeout is None:
            return _NO_TIMEOUT
        return aiohttp.ClientTimeout(total=self._timeout if timeout is ... else timeout)

    def _no_answer(self, endpoint: Endpoint, why: Failure) -> str:
        return f"no answer from {endpoint.method} {self._urls[endpoint]}: {why.reason}"


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
