"""Which addresses an image may come from: the public ones, looked at as what they lead to. Pure.

A URL, a name or a redirect can lead into the network of whoever runs us. What counts is the final
address of the socket, and some IPv6 addresses only wrap an IPv4 one (a translator takes them
there): such an address is as public as what it carries. The tables are IANA's registries of
special-purpose addresses, kept here since `ipaddress.is_global` passes 64:ff9b::7f00:1,
::127.0.0.1 and multicast, and judges differently from one Python to the next.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

_NOT_PUBLIC_4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network, unspecified
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # shared by carriers
            "127.0.0.0/8",  # loopback
            "169.254.0.0/16",  # link-local, cloud metadata
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays, withdrawn
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
        ),
    )
)
_GLOBAL_6 = IPv6Network("2000::/3")  # global unicast; all else is local, reserved or multicast
_NOT_PUBLIC_6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments, benchmarks, ORCHID
            "2001:db8::/32",  # documentation
            "3ffe::/16",  # 6bone, given back
            "3fff::/20",  # documentation
        ),
    )
)

# Prefixes whose last 32 bits are an IPv4 address. Of the local NAT64 prefix 64:ff9b:1::/48 only
# this layout is taken; in the others of RFC 6052 the address sits elsewhere: they are refused.
_CARRIES_AT_THE_END = tuple(map(IPv6Network, ("::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/96", "::/96")))
_UNSPECIFIED_AND_LOOPBACK = IPv6Network("::/127")


def is_public(address: str) -> bool:
    """Whether the address of a socket is global unicast, and so is all that it wraps.

    False for anything that is not an address, and for scoped ones (`fe80::1%eth0`).
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in _NOT_PUBLIC_4)
    if ip.scope_id is not None or ip in _UNSPECIFIED_AND_LOOPBACK:
        return False
    carried = tuple(_carried(ip))
    if carried:
        return all(is_public(str(inner)) for inner in carried)
    return ip in _GLOBAL_6 and not any(ip in network for network in _NOT_PUBLIC_6)


def is_inside(host: str) -> bool:
    """Whether a URL's host leads inside without asking any name server: `localhost`, or a literal
    address, in whatever spelling the system takes (`127.1`, `0x7f000001`), that is not public."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    if ":" in name or "%" in name:  # a percent sign belongs to a scope, or to somebody who hides
        return not is_public(name)
    try:
        return not is_public(socket.inet_ntoa(socket.inet_aton(name)))
    except (OSError, ValueError):
        return False


def _carried(ip: IPv6Address) -> Iterator[IPv4Address]:
    """The IPv4 addresses inside: of a translator's address, 6to4 or Teredo."""
    if any(ip in network for network in _CARRIES_AT_THE_END):
        yield IPv4Address(int(ip) & 0xFFFFFFFF)
    elif ip.sixtofour is not None:
        yield ip.sixtofour
    elif ip.teredo is not None:
        yield from ip.teredo  # server and client
