"""Checks of URLs: whether they can be sent, and whether they lead to this machine. Pure."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

_URL_FORBIDDEN = frozenset(map(chr, range(0x21))) | {"\x7f", "\\"}


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
