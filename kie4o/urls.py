"""Which URLs can be used at all, and which lead to this machine. Pure."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

_URL_FORBIDDEN = frozenset(map(chr, range(0x21))) | {"\x7f", "\\"}


def is_web_url(value: object) -> bool:
    """A complete http:// or https:// URL that can be sent as it is: no spaces, no controls."""
    if not isinstance(value, str) or not _URL_FORBIDDEN.isdisjoint(value):
        return False
    try:
        value.encode()
        parts = urlsplit(value)
        (parts.hostname or "").encode("idna")
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # half pairs; hosts, ports and brackets that are none
        return False


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
