"""Which addresses an image may be downloaded from: public ones only. Pure.

A URL, a DNS name or a redirect can lead into the private network of the machine that downloads. What
counts is the address that the socket connects to. Some IPv6 addresses embed an IPv4 address, to which
a translator forwards the traffic: they are as public as that address.

The tables are from IANA's special-purpose address registries. `ipaddress.is_global` does not replace
them: it accepts 64:ff9b::7f00:1, ::127.0.0.1 and multicast, and differs between Python versions.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

_SPECIAL_IPV4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network, unspecified
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # carrier-grade NAT
            "127.0.0.0/8",  # loopback
            "169.254.0.0/16",  # link-local, cloud metadata
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays, deprecated
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarking
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
        ),
    )
)
_GLOBAL_UNICAST_IPV6 = IPv6Network("2000::/3")  # all others are local, reserved or multicast
_SPECIAL_IPV6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments, benchmarking, ORCHID
            "2001:db8::/32",  # documentation
            "3ffe::/16",  # 6bone, returned
            "3fff::/20",  # documentation
        ),
    )
)

# Prefixes whose last 32 bits are an IPv4 address. RFC 6052 has other layouts for the local NAT64 prefix
# 64:ff9b:1::/48, with the address further ahead; they are not public.
_ENDS_IN_IPV4 = tuple(map(IPv6Network, ("::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/96", "::/96")))
_UNSPECIFIED_AND_LOOPBACK = IPv6Network("::/127")


def is_public(address: str) -> bool:
    """Whether a socket address is global unicast, and every address embedded in it is too.

    False for text that is not an address, and for scoped addresses (`fe80::1%eth0`).
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in _SPECIAL_IPV4)
    if ip.scope_id is not None or ip in _UNSPECIFIED_AND_LOOPBACK:
        return False
    embedded = tuple(_embedded(ip))
    if embedded:
        return all(is_public(str(inner)) for inner in embedded)
    return ip in _GLOBAL_UNICAST_IPV6 and not any(ip in network for network in _SPECIAL_IPV6)


def is_private_host(host: str) -> bool:
    """Whether the host of a URL is `localhost` or a literal address that is not public.

    Every spelling that the system accepts is understood (`127.1`, `0x7f000001`). Names are not resolved.
    """
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    if ":" in name or "%" in name:  # a percent sign starts a scope, or disguises a host
        return not is_public(name)
    try:
        return not is_public(socket.inet_ntoa(socket.inet_aton(name)))
    except (OSError, ValueError):
        return False


def _embedded(ip: IPv6Address) -> Iterator[IPv4Address]:
    """The IPv4 addresses embedded by a translator, 6to4 or Teredo."""
    if any(ip in network for network in _ENDS_IN_IPV4):
        yield IPv4Address(int(ip) & 0xFFFFFFFF)
    elif ip.sixtofour is not None:
        yield ip.sixtofour
    elif ip.teredo is not None:
        yield from ip.teredo  # server and client
