"""Why an exchange failed: proxies, certificates, headers and bugs have different sentences, and are repeated
only where time mends them."""

from __future__ import annotations

import pickle
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from canary import CANARY_KEY
from clients import client_of
from clocks import run_scaled
from faults import GOOD_BODY, TASK_ID, Connection, FaultServer, answer, http, raw, unused_port
from paths import TLS
from proxies import REFUSALS, Proxy

from kie4o import APIConnectionError, KieError, SubmissionUnknownError
from kie4o.settings import resolve
from kie4o.transport.failures import MAX_HEADER_BYTES, MAX_HEADER_FIELDS, failure_of
from kie4o.transport.paid_body import PaidAttempt
from kie4o.transport.retrying import TRIES, repeated
from kie4o.transport.transport import Transport
from kie4o.wire.answers import credits_of
from kie4o.wire.requests import CREDITS

SPEED = 40.0


async def at_once(seconds: float) -> None:
    """A sleep without one."""


def transport_to(url: str, **more: Any) -> Transport:
    settings = resolve(api_key=CANARY_KEY, base_url=url, upload_url=None, webhook_key=None, environment={})
    return Transport(settings, timeout=5.0, **more)


async def failures_of(url: str, **more: Any) -> tuple[APIConnectionError, PaidAttempt]:
    """How a free call, repeated as by the client, and the paid call fail."""
    transport, attempt = transport_to(url, **more), PaidAttempt()
    try:
        with pytest.raises(APIConnectionError) as caught:
            await repeated(lambda: transport.read(CREDITS, credits_of), sleep=at_once)
        await transport.pay(b"{}", attempt)
    finally:
        await transport.aclose()
    error = caught.value
    assert (error.__cause__, error.__context__) == (None, None)
    assert (attempt.permanent, attempt.cause) == (not error.retryable, error.cause)
    assert (attempt.sent, attempt.withdrawn) == (False, True)
    assert str(error).partition(": ")[2] == attempt.fault.partition(": ")[2]
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)
    for text in (repr(error), error.cause or "", attempt.fault, repr(attempt)):
        assert "hunter2" not in text
        assert CANARY_KEY not in text
    return error, attempt


# -- proxies -----------------------------------------------------------------------------------------

SENTENCES = {
    407: r"the proxy answered HTTP 407: it asks for credentials; put the right ones in its URL, as in ",
    403: r"the proxy answered HTTP 403: it does not allow this host; ask for it to be allowed$",
    502: r"the proxy answered HTTP 502: it cannot reach the host$",
    503: r"the proxy answered HTTP 503: it is overloaded, or cannot reach the host$",
    405: r"the proxy answered HTTP 405: it does not connect to this host$",
}


@pytest.mark.parametrize("status", REFUSALS)
async def test_a_proxy_that_refuses(status: int) -> None:
    """Each status has a sentence. Only what may pass is tried again; nothing was sent."""
    async with Proxy(REFUSALS[status]) as proxy:
        error, _ = await failures_of("https://127.0.0.1:9", proxy=proxy.url)
        assert error.retryable is (status >= 500)
        assert len(proxy.heads) == (TRIES if status >= 500 else 1) + 1
        with pytest.raises(APIConnectionError, match=SENTENCES[status]):
            raise error
    assert error.cause == "ClientHttpProxyError"


@pytest.mark.parametrize("status", [407, 502])
def test_a_submit_that_a_proxy_refuses_was_not_sent(status: int) -> None:
    """It says so. It is sent again, twice, if the refusal may pass."""

    async def main() -> None:
        async with Proxy(REFUSALS[status]) as proxy:
            async with client_of("https://127.0.0.1:9", proxy=proxy.url) as client:
                with pytest.raises(
                    APIConnectionError, match="was not sent and nothing was charged"
                ) as caught:
                    await client.submit("x")
            assert caught.value.retryable is (status == 502)
            assert caught.value.cause == "ClientHttpProxyError"
            assert "hunter2" not in str(caught.value)
            assert len(proxy.heads) == (3 if status == 502 else 1)

    run_scaled(main(), SPEED)


async def test_a_proxy_that_cannot_be_reached() -> None:
    """The sentence names the proxy, without its password; it may come back."""
    port = unused_port()
    error, _ = await failures_of("https://127.0.0.1:9", proxy=f"http://me:hunter2@127.0.0.1:{port}")
    assert f"cannot connect to the proxy 127.0.0.1:{port} (" in str(error)
    assert error.retryable


async def test_a_proxy_that_speaks_no_tls() -> None:
    """Its URL begins with https: by mistake."""

    async def refuses(connection: Connection) -> None:
        await connection.reader.read(10)
        await connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with FaultServer(refuses) as server:
        url = server.url.replace("http:", "https:")
        error, _ = await failures_of("https://127.0.0.1:9", proxy=url)
    assert f"no TLS connection to {url.removeprefix('https://')} (" in str(error)


async def test_control_a_proxy_that_tunnels() -> None:
    """Through it, the certificate is that of the host, and with a session that trusts it all works."""
    async with FaultServer(answer(), tls=True) as server, Proxy() as proxy:
        error, _ = await failures_of(server.url, proxy=proxy.url)
        assert "the TLS certificate of 127.0.0.1 is from an authority that is not trusted here" in str(error)
        assert server.posts == 0
        async with lent(trusted="certificate.pem") as session:
            async with client_of(server.url, proxy=proxy.url, session=session) as client:
                assert (await client.submit("x")).id == TASK_ID
        assert len(proxy.heads) == 3


# -- certificates ------------------------------------------------------------------------------------


class Here(AbstractResolver):
    """Every host is this one."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        here = ResolveResult(hostname=host, host="127.0.0.1", port=port, family=family, proto=0, flags=0)
        return [here]

    async def close(self) -> None:
        """Nothing is open."""


@asynccontextmanager
async def lent(trusted: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A session that trusts one certificate, and finds every host on this machine."""
    context = ssl.create_default_context(cafile=TLS / trusted)
    connector = aiohttp.TCPConnector(ssl=context, resolver=Here())
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session


@pytest.mark.parametrize(
    ("presented", "trusted", "host", "sentence"),
    [
        (
            "certificate.pem",
            None,
            "127.0.0.1",
            "is from an authority that is not .*SSL_CERT_FILE",
        ),
        (
            "certificate.pem",
            "certificate.pem",
            "kie.example",
            "is for another host; .* in its place$",
        ),
        ("expired.pem", "expired.pem", "127.0.0.1", "has expired .*check the clock of this machine"),
    ],
)
async def test_a_certificate_that_is_not_accepted(
    presented: str, trusted: str | None, host: str, sentence: str
) -> None:
    """What is wrong with it is said, with the host. It is asked for once, since time mends none of this."""
    async with FaultServer(answer(), tls=presented) as server:
        url = server.url.replace("127.0.0.1", host)
        if trusted is None:
            error, _ = await failures_of(url)
        else:
            async with lent(trusted) as session:
                error, _ = await failures_of(url, session=session)
        with pytest.raises(APIConnectionError, match=f"the TLS certificate of {host} {sentence}"):
            raise error
        assert not error.retryable
        assert server.posts == 0
        assert (error.cause or "").startswith("ClientConnectorCertificateError: Cannot connect to host ")


async def test_a_certificate_without_the_fingerprint_that_a_session_expects() -> None:
    """It is named like a certificate that is not accepted, and time does not mend it."""
    connector = aiohttp.TCPConnector(ssl=aiohttp.Fingerprint(bytes(32)))
    async with (
        FaultServer(answer(), tls=True) as server,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        error, _ = await failures_of(server.url, session=session)
        assert "the TLS certificate of 127.0.0.1 does not have the fingerprint that the session" in str(error)
        assert not error.retryable
        assert server.posts == 0


async def test_control_a_certificate_that_is_accepted() -> None:
    async with FaultServer(answer(), tls=True) as server, lent("certificate.pem") as session:
        async with client_of(server.url, session=session) as client:
            assert (await client.submit("x")).id == TASK_ID


# -- headers -----------------------------------------------------------------------------------------

BIG = ["Content-Security-Policy: " + "x" * (MAX_HEADER_BYTES - 100)]
MANY = [f"X-Field-{number}: v" for number in range(MAX_HEADER_FIELDS - 20)]
TOO_BIG = ["Content-Security-Policy: " + "x" * (MAX_HEADER_BYTES + 100)]
TOO_MANY = [f"X-Field-{number}: v" for number in range(MAX_HEADER_FIELDS + 20)]


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("fields", [BIG, MANY], ids=["big", "many"])
async def test_a_large_header_is_read(fields: list[str], own: bool) -> None:
    """By both sessions, also over the connector of a session that was passed."""
    balance = http(b'{"code":200,"msg":"","data":5}', "200 OK", *fields)
    async with FaultServer(raw(http(GOOD_BODY, "200 OK", *fields)), raw(balance)) as server:
        async with aiohttp.ClientSession() as session:
            async with client_of(server.url, session=None if own else session) as client:
                assert (await client.submit("x")).id == TASK_ID
                assert await client.credits() == 5


@pytest.mark.parametrize("fields", [TOO_BIG, TOO_MANY], ids=["big", "many"])
async def test_a_header_beyond_the_limits_is_named(fields: list[str]) -> None:
    """What it says is not shown."""
    async with FaultServer(raw(http(GOOD_BODY, "200 OK", *fields))) as server:
        async with client_of(server.url) as client:
            with pytest.raises(SubmissionUnknownError, match="64 KiB in a field or 512 fields"):
                await client.submit("x")
            with pytest.raises(
                APIConnectionError, match="more than 64 KiB in a field or 512 fields"
            ) as caught:
                await client.details(TASK_ID)
    assert caught.value.cause == "ClientResponseError"
    assert "xxx" not in str(caught.value)


# -- what should not happen --------------------------------------------------------------------------


class Broken(aiohttp.TCPConnector):
    """A connector with a bug."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    async def connect(self, *_: Any, **__: Any) -> Any:
        raise self.error


class OddError(Exception):
    """Of another library."""


HEADERS = aiohttp.client_reqrep.CIMultiDict({"Authorization": f"Bearer {CANARY_KEY}"})
BUGS: dict[Callable[[], Exception], str] = {
    lambda: TypeError("connect() got an unexpected argument 'x'"): (
        "an unexpected TypeError: connect() got an unexpected argument 'x'; perhaps a bug in the session's"
    ),
    lambda: AttributeError(
        "no attribute 'y'"
    ): "an unexpected AttributeError: no attribute 'y'; perhaps a bug",
    lambda: AssertionError(): "an unexpected AssertionError; perhaps a bug",
    lambda: OddError(f"with {CANARY_KEY}"): "an unexpected OddError: with ***; perhaps a bug",
    lambda: OddError(HEADERS): "an unexpected OddError; perhaps a bug",
    lambda: OddError(f"sent {HEADERS!r}"): "an unexpected OddError: sent (headers); perhaps a bug",
    lambda: OddError("Authorization: Bearer abc"): "an unexpected OddError: Authorization ***; perhaps a bug",
    lambda: OddError("http://me:hunter2@a.example/b?Signature=hunter2 was odd"): (
        "an unexpected OddError: http://a.example/b was odd; perhaps a bug"
    ),
    lambda: OSError(5, f"Broken by {CANARY_KEY}"): "Broken by ***",
    lambda: aiohttp.ClientConnectionError("Connector is closed."): (
        "the connection broke (ClientConnectionError: Connector is closed.)"
    ),
}


@pytest.mark.parametrize("make", BUGS)
async def test_a_bug_does_not_look_like_a_network_error(make: Callable[[], Exception]) -> None:
    """The sentence has the class and the words of what the connector of a session raises, without secrets;
    so has the attribute `cause`. The call is repeated all the same, and a submit is not sent."""
    async with aiohttp.ClientSession(connector=Broken(make())) as session:
        error, _ = await failures_of("http://127.0.0.1:9", session=session)
        assert BUGS[make] in str(error)
        assert error.retryable
        assert type(make()).__name__ in (error.cause or "").partition(":")[0]  # aiohttp makes others of some


def test_a_closed_client_has_no_foreign_cause() -> None:
    """An error of kie4o's own is its own cause."""
    why = failure_of(KieError("the client is closed"))
    assert (why.reason, why.permanent, why.cause) == ("the client is closed", True, None)


def test_timeouts_and_urls() -> None:
    """They need no words; a URL may be that of a proxy, with its password."""
    assert failure_of(TimeoutError()).reason == "timed out"
    assert failure_of(TimeoutError("late")).cause == "TimeoutError: late"
    invalid = failure_of(aiohttp.InvalidURL("http://me:hunter2@:1"))
    assert (invalid.reason, invalid.permanent) == ("a URL is invalid; check the one of the proxy", True)
    assert "hunter2" not in repr(invalid)
