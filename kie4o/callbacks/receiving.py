"""One HTTP request with a callback, turned into the status of its response; knows no web framework.

`client.receiver()` creates one, and `kie4o.webhooks` has adapters for aiohttp.web and ASGI. A receiver
reads a raw body within a size and a time limit and answers as soon as the callback is stored: Kie waits 15
s and gives up after three repetitions (callbacks page). The poll that confirms it runs in a task of the
client's. Nothing of the input is echoed.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterable, Awaitable, Callable
from http import HTTPStatus
from urllib.parse import parse_qs

from ..errors import (
    CallbackError,
    ConfigurationError,
    InvalidSignatureError,
    KieError,
    MalformedCallbackError,
)
from ..events import CallbackRefused
from ..events.reporter import LOG, Reporter
from ..models import Callback
from ..urls import REF_PARAMETER
from ..wire import decoding
from ..wire.requests import is_ref, ref_in
from .delivery import PENDING as PENDING  # re-exported for the client
from .delivery import Delivery
from .parsing import (
    MAX_BODY,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    TOLERANCE,
    HeaderPairs,
    Headers,
    header_pairs,
)

BODY_TIMEOUT = 5.0  # seconds for a whole body of well under one KiB
_SEEN = 20_000  # signed callbacks remembered, so that a repetition costs nothing; 2 h at 2 tasks per second

# The first class that fits counts.
_STATUS_OF_ERROR = (
    (MalformedCallbackError, HTTPStatus.BAD_REQUEST),
    (InvalidSignatureError, HTTPStatus.UNAUTHORIZED),
    (CallbackError, HTTPStatus.NOT_FOUND),
    (KieError, HTTPStatus.SERVICE_UNAVAILABLE),
)

# The headers that count. Those that a proxy adds need not be looked at twice.
_READ = frozenset(
    ("content-encoding", "content-type", "content-length", TIMESTAMP_HEADER.lower(), SIGNATURE_HEADER.lower())
)

Body = bytes | bytearray | memoryview | AsyncIterable[bytes]


class CallbackReceiver:
    """Receives callbacks for one client: `status = await receiver.receive(headers, body, ref)`.

    `AsyncKieClient.receiver` creates it.

    Args:
        parse: Parses and verifies a callback, given its body, headers and ref.
        delivery: Opens the client, or raises, and returns where callbacks are delivered to: another object
            after the client was closed and opened again.
        tolerance: Seconds that `parse` allows between the time stamp of a callback and now.
        template: The `callback_url` of the client.
        pending: How many callbacks may wait for their confirmation.
        reporter: Who is told of those that are refused.
    """

    def __init__(
        self,
        parse: Callable[[bytes, Headers, str | None], Callback],
        delivery: Callable[[], Awaitable[Delivery]],
        *,
        tolerance: float = TOLERANCE,
        template: str | None = None,
        pending: int = PENDING,
        reporter: Reporter = LOG,
    ) -> None:
        self._tolerance = tolerance
        self._template = template
        self._parse = parse
        self._delivery = delivery
        self._pending = pending
        self._reporter = reporter
        self._loop: asyncio.AbstractEventLoop | None = None
        # The task and the time stamp of those that were verified, and until when, in this loop's time.
        self._seen: OrderedDict[tuple[str, str | None], float] = OrderedDict()

    async def receive(self, headers: Headers, body: Body, ref: str | None = None) -> HTTPStatus:
        """The status to answer with. Raises nothing but `CancelledError`.

        Args:
            headers: Those of the request, as for `parse_callback`.
            body: The raw body, whole or in pieces.
            ref: What the URL carried at `{ref}`, or as the query parameter `kie4o_ref`; see `ref_of`.

        Returns:
            200 stored · 400 unreadable · 401 signature · 404 unknown · 408 too slow · 413 over 64 KiB ·
            415 compressed or not JSON · 503 too many pending, or the store fails.
        """
        try:
            return await self._receive(header_pairs(headers, _READ), body, ref)
        except KieError as error:
            status = next(status for kind, status in _STATUS_OF_ERROR if isinstance(error, kind))
            return self._refused(status, str(error))

    def _refused(self, status: HTTPStatus, reason: str) -> HTTPStatus:
        self._reporter(CallbackRefused(status=int(status), cause=reason))
        return status

    def ref_of(self, path: str, query: str = "", *, variable: str | None = None) -> str | None:
        """The ref in the URL of a request; the first of these that is there:

        1. the query parameter `kie4o_ref`, which kie4o adds to a callback URL without `{ref}`,
        2. the path variable `ref` of the receiver, given as `variable`,
        3. what stands where the client's `callback_url` has `{ref}`, in the path or the query,
        4. the query parameter `ref`.

        Of the last two only what looks like a ref counts.

        Args:
            path: The decoded path; a prefix that a proxy or a mount adds or removes does not matter.
            query: The query as it arrived, without the question mark.
            variable: What the router of the framework found at `{ref}` of its own path.
        """
        values = parse_qs(query) if query else {}
        own, plain = (values.get(name, [""])[-1] for name in (REF_PARAMETER, "ref"))
        found = own or variable or ref_in(path, query, template=self._template)
        return found or (plain if is_ref(plain) else None)

    async def _receive(self, headers: HeaderPairs, body: Body, ref: str | None) -> HTTPStatus:
        refused = _refused_by(dict(headers))
        if refused is not None:
            return refused
        raw: bytes | None
        if isinstance(body, (bytes, bytearray, memoryview)):
            raw = bytes(body) if len(body) <= MAX_BODY else None
        else:
            try:
                async with asyncio.timeout(BODY_TIMEOUT):
                    raw = await _read(body)
            except TimeoutError:
                reason = f"its body did not arrive within {BODY_TIMEOUT:g} s, or a middleware has read it"
                return self._refused(HTTPStatus.REQUEST_TIMEOUT, reason)
            except Exception as error:  # each framework has its own for a sender that has hung up
                reason = f"its body could not be read ({type(error).__name__})"
                return self._refused(HTTPStatus.BAD_REQUEST, reason)
        if raw is None:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        return await self._accept(headers, raw, ref)

    async def _accept(self, headers: HeaderPairs, raw: bytes, ref: str | None) -> HTTPStatus:
        callback = self._parse(raw, headers, ref)
        signed = (callback.task_id, dict(headers).get(TIMESTAMP_HEADER.lower()))
        if self._was_seen(signed):
            return HTTPStatus.OK
        delivery = await self._delivery()
        if not await delivery.accept(callback, limit=self._pending):
            return HTTPStatus.SERVICE_UNAVAILABLE
        if callback.verified:
            # One from the future is valid for twice the tolerance.
            self._seen[signed] = asyncio.get_running_loop().time() + 2 * self._tolerance
        return HTTPStatus.OK

    def _was_seen(self, signed: tuple[str, str | None]) -> bool:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # the times of another loop say nothing in this one
            self._seen.clear()
            self._loop = loop
        now = loop.time()
        while self._seen and (len(self._seen) > _SEEN or next(iter(self._seen.values())) < now):
            self._seen.popitem(last=False)
        return signed in self._seen


def unverified() -> ConfigurationError:
    """For a receiver without a webhook key that was not asked to accept unsigned callbacks."""
    return ConfigurationError(
        "callbacks would not be verified: set webhook_key= (or KIE_WEBHOOK_KEY) to the webhookHmacKey of "
        "kie.ai/settings, or pass allow_unsigned=True"
    )


def _refused_by(headers: dict[str, str]) -> HTTPStatus | None:
    """The status of a request whose headers suffice to refuse it."""
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        return HTTPStatus.UNSUPPORTED_MEDIA_TYPE  # a small compressed body could expand without limit
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    length = decoding.whole_number(headers.get("content-length"))
    if length is not None and length > MAX_BODY:
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    return None


async def _read(body: AsyncIterable[bytes]) -> bytes | None:
    """The whole body, or None if it is larger than a callback can be."""
    raw = b""
    async for piece in body:
        raw += piece
        if len(raw) > MAX_BODY:
            return None
    return raw
