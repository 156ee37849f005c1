"""URLs: the text of URL objects; whether a URL can be sent, leads to this machine or network, and has room
for a ref. Pure."""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Protocol, TypeAlias
from urllib.parse import ParseResult, SplitResult, parse_qsl, unquote, urlsplit

REF_PARAMETER = "kie4o_ref"  # the query parameter of a callback URL without {ref}
PLACEHOLDER = "{ref}"

_PRIVATE_NAMES = (".localhost", ".local", ".internal", ".lan", ".home.arpa")
_EXACT = re.compile(r"(?<![{$])\{ref\}(?!\})")
_BRACES = re.compile(r"\$?\{+\s*[A-Za-z_]*\s*\}+")  # no URL holds braces as they are
# What is meant as that placeholder, after decoding: in braces or as a whole segment or value.
_MEANT = re.compile(
    r"\$?\{+\s*(?:\w*_)?ref\b\s*\}*|<\s*(?:\w*_)?ref\s*>"
    r"|(?<=[/=])(?:[:$]ref|ref\}|\[ref\]|%ref%|%\(ref\)s)(?=[/?&;]|$)",
    re.IGNORECASE,
)


class ParsedURL(Protocol):
    """A URL of pydantic, httpx, Starlette or `urllib.parse`."""

    @property
    def scheme(self) -> str: ...
    @property
    def fragment(self) -> str | None: ...
    @property
    def port(self) -> int | None: ...


class ReadableURL(Protocol):
    """A URL of yarl, whose parts are descriptors that do not match the above."""

    def human_repr(self) -> str: ...


URLObject: TypeAlias = ParsedURL | ReadableURL
WEB_URL = "a complete http:// or https:// URL without spaces"  # completes "expected ..."
_URL_FORBIDDEN = frozenset(map(chr, range(0x21))) | {"\x7f", "\\"}


def url_text(value: Any) -> Any:
    """The text of a URL object, whose type or a base of it is named for URLs; anything else as it is."""
    if value is None or isinstance(value, (str, bytes)):
        return value
    if isinstance(value, (ParseResult, SplitResult)):
        return value.geturl()
    if not any("url" in kind.__name__.casefold() for kind in type(value).__mro__):
        return value
    text = str.__str__(str(value))  # which may return a subclass
    return text if is_web_url(text) else value


def callback_url_text(value: Any) -> Any:
    """The same for a callback URL: URL objects quote the braces of ``{ref}``, which has to stay as it is."""
    text = url_text(value)
    return text if text is value else text.replace("%7Bref%7D", PLACEHOLDER)


def is_web_url(value: object) -> bool:
    """Whether the value is a complete http:// or https:// URL without spaces and control characters."""
    if not isinstance(value, str) or not _URL_FORBIDDEN.isdisjoint(value):
        return False
    try:
        value.encode()
        parts = urlsplit(value)
        (parts.hostname or "").encode("idna")
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # lone surrogates; invalid hosts, ports and brackets
        return False


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_private(url: str) -> bool:
    """Whether only this machine or its network can open the URL, as far as its host shows."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith(_PRIVATE_NAMES)


def callback_url_fault(value: object) -> str | None:
    """What is expected of a callback URL that cannot be used, to complete "expected ..."; None if it can."""
    rest = _EXACT.sub("-", value) if isinstance(value, str) else ""
    meant = _BRACES.search(rest) or _MEANT.search(unquote(unquote(rest)))
    if meant is not None:
        quoted = "" if meant[0] in rest else " percent-encoded"
        return (
            f"{PLACEHOLDER} in exactly this form, unencoded, where the ref goes; it holds {meant[0]}{quoted}"
        )
    if not isinstance(value, str) or not is_web_url(value):
        return WEB_URL
    parts = urlsplit(value)
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if REF_PARAMETER in names:
        return f"no parameter {REF_PARAMETER}, since kie4o adds it if the URL has no {PLACEHOLDER}"
    if any(PLACEHOLDER in text for text in (parts.netloc, parts.fragment, *names)):
        return f"{PLACEHOLDER} in the path or as the value of a query parameter"
    return None
