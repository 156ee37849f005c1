"""Why an exchange failed: a sentence, whether time mends it, and the foreign exception as text.

Nothing here shows what an error of aiohttp holds beside its words: headers, and URLs with passwords.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from types import MappingProxyType

import aiohttp
import attrs

from ..errors import KieError, reason_of
from ..wire.decoding import shown

# How much of a header is read; curl and browsers take as much. The defaults of aiohttp are 8190 bytes and 128
# fields. An answer with more is lost, and with it the id of a paid task.
MAX_HEADER_BYTES = 64 * 1024  # of a line or a field
MAX_HEADER_FIELDS = 512

_EXPIRED, _OTHER_HOST, _UNKNOWN_ISSUER = (
    "has expired or is not valid yet; check the clock of this machine first",
    "is for another host; a proxy, a DNS server or a captive portal answers in its place",
    "is from an authority that is not trusted here; if a proxy of your company issued it, set SSL_CERT_FILE "
    "to the file with its authority",
)
# OpenSSL's X509_V_ERR codes, which `ssl.SSLCertVerificationError.verify_code` holds.
_CERTIFICATES: Mapping[int, str] = MappingProxyType(
    {
        **dict.fromkeys((9, 10), _EXPIRED),
        **dict.fromkeys((62, 64), _OTHER_HOST),
        **dict.fromkeys((18, 19, 20, 21), _UNKNOWN_ISSUER),
    }
)
_PROXY: Mapping[int, str] = MappingProxyType(
    {
        403: "it does not allow this host; ask for it to be allowed",
        407: "it asks for credentials; put the right ones in its URL, as in http://user:password@proxy:3128",
        502: "it cannot reach the host",
        503: "it is overloaded, or cannot reach the host",
        504: "the host does not answer it",
    }
)
_CONNECTING = (
    (aiohttp.ClientProxyConnectionError, "cannot connect to the proxy"),
    (aiohttp.ClientConnectorSSLError, "no TLS connection to"),
    (aiohttp.ClientConnectorError, "cannot connect to"),
)
_BAD_HEADER = (
    f"the header of the answer is not valid HTTP, or has more than {MAX_HEADER_BYTES // 1024} KiB in a field "
    f"or {MAX_HEADER_FIELDS} fields"
)
_TEMPORARY = frozenset({408, 425, 429})  # and every 5xx
_SECRETS = (  # compiled by the first failure, as the patterns of `wire.words` are
    (r"(?<=//)[^/\s@]*@", ""),  # the user and password of a URL
    (r"\?[^\s'\"<>)]*", ""),  # a query, which may hold a signature
    (r"(?s)<?(?:CI)?MultiDict(?:Proxy)?\(.*", "(headers)"),
    (r"(?is)\b(bearer|basic|authorization|cookie)\b.*", r"\1 ***"),
)


class AnswerError(Exception):
    """An answer that arrived and cannot be used; the message says why."""


@attrs.frozen(kw_only=True)
class Failure:
    """Why an exchange failed.

    Attributes:
        reason: A sentence without a period, safe to show.
        permanent: Whether the same exchange would fail again, whenever it is repeated.
        cause: The class and the words of an exception that is not of kie4o.
    """

    reason: str = attrs.field(kw_only=False)
    permanent: bool = False
    cause: str | None = None


def failure_of(error: Exception, redacted: Callable[[bytes], bytes] = bytes) -> Failure:
    """What to say of an exception that an exchange raised; `redacted` removes the API key."""
    if isinstance(error, (KieError, AnswerError)):
        return Failure(str(error), permanent=isinstance(error, KieError))

    def scrub(text: str) -> str:
        return _scrubbed(redacted(text.encode(errors="replace")).decode(errors="replace"))

    cause = f"{type(error).__name__}: {scrub(_words_of(error))}".removesuffix(": ")
    reason, permanent = _weighed(error, scrub, cause)
    return Failure(reason, permanent=permanent, cause=cause)


def _weighed(error: Exception, scrub: Callable[[str], str], cause: str) -> tuple[str, bool]:
    """The sentence, and whether the failure is permanent."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"the TLS certificate of {error.host} {_fault_of(error.certificate_error)}", True
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        return (
            f"the TLS certificate of {error.host} does not have the fingerprint that the session expects",
            True,
        )
    if isinstance(error, aiohttp.ClientHttpProxyError):
        why = _PROXY.get(error.status, "it does not connect to this host")
        permanent = error.status < 500 and error.status not in _TEMPORARY
        return f"the proxy answered HTTP {error.status}: {why}", permanent
    if isinstance(error, aiohttp.ClientConnectorError):
        kind = next(words for kind, words in _CONNECTING if isinstance(error, kind))
        return f"{kind} {error.host}:{error.port} ({scrub(reason_of(error.os_error))})", False
    if isinstance(error, TimeoutError):
        return "timed out", False
    if isinstance(error, aiohttp.InvalidURL):
        return "a URL is invalid; check the one of the proxy", True
    if isinstance(error, aiohttp.ClientResponseError):
        return _BAD_HEADER, False
    if isinstance(error, RuntimeError) and "thread" in str(error):  # asyncio looks hosts up in threads
        return "no thread can be started to look up the host; raise the limit of processes (ulimit -u)", False
    if isinstance(error, OSError) and error.strerror:
        return scrub(error.strerror), False
    if type(error).__module__.partition(".")[0] == "aiohttp":
        return f"the connection broke ({cause})", False
    return f"an unexpected {cause}; perhaps a bug in the session's connector, in aiohttp or in kie4o", False


def _fault_of(error: Exception) -> str:
    """What is wrong with a certificate."""
    code = error.verify_code if isinstance(error, ssl.SSLCertVerificationError) else 0
    words = getattr(error, "verify_message", None) or reason_of(error)
    return _CERTIFICATES.get(code, f"was not accepted ({shown(words)})")


def _words_of(error: Exception) -> str:
    """The words of an exception; "" if they may be a whole header."""
    plain = all(isinstance(each, (str, int)) for each in error.args)
    return str(error) if plain or isinstance(error, aiohttp.ClientConnectorError) else ""


def _scrubbed(text: str) -> str:
    for pattern, replacement in _SECRETS:
        text = re.sub(pattern, replacement, text)
    return shown(text)
