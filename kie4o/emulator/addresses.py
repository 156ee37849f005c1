"""Which addresses belong to this machine. An emulator serves no other, unless it is told to."""

from __future__ import annotations

import ipaddress

_LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # only compared


def is_loopback(host: str | None) -> bool:
    """Whether a host, or the address of a peer, is this machine. A peer of a Unix socket has none."""
    if not host or host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def reachable(host: str) -> str:
    """The host that a client on this machine connects to if an emulator listens on `host`."""
    return _LOOPBACK.get(host, host)
