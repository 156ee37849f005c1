"""Which addresses are public: by table, and compared with the standard library."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie4o.files.addresses import is_private_host, is_public

PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "172.15.255.255",
    "172.32.0.1",
    "100.63.255.255",
    "100.128.0.1",
    "223.255.255.255",
    "192.0.1.1",
    "2606:4700::6810:84e5",
    "2a00:1450:4001:81b::200e",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "64:ff9b:1::808:808",
    "::8.8.8.8",
    "2002:808:808::1",
    "2001:0:808:808:0:ffff:f7f7:f7f7",  # Teredo: server and client 8.8.8.8
]

NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:0:10.0.0.1",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::7f00:1",
    "64:ff9b:1:7f00:0:100:808:808",  # RFC 6052 with a prefix of 48 bits: 127.0.0.1
    "100::1",
    "2001:db8::1",
    "2001:2::1",
    "2001:10::1",
    "2002:7f00:1::1",
    "2002:a9fe:a9fe::1",
    "2001:0:a00:1:0:ffff:f7f7:f7f7",  # Teredo: server 10.0.0.1
    "2001:0:808:808:0:ffff:80ff:fffe",  # Teredo: client 127.0.0.1
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700::1%eth0",
    "fec0::1",
    "ff02::1",
    "",
    "localhost",
    "example.com",
    "127.1",
    "1.2.3.4.5",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_public(address: str) -> None:
    """Global unicast is public, also when embedded in a translator's address."""
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_other_addresses_are_not_public(address: str) -> None:
    """Private and reserved addresses are not public, nor is text that is not an address."""
    assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_never_more_permissive_than_the_standard_library(ip: ipaddress.IPv4Address) -> None:
    """An address that `ipaddress` calls private, multicast or reserved is never public."""
    if ip.is_private or ip.is_multicast or ip.is_reserved or ip.is_unspecified or not ip.is_global:
        assert not is_public(str(ip))


@given(st.ip_addresses(v=4))
def test_an_ipv6_address_is_as_public_as_its_embedded_ipv4_address(ip: ipaddress.IPv4Address) -> None:
    """An IPv4 address is as public inside an IPv6 address as it is alone."""
    prefixes = ["::ffff:0:0", "64:ff9b::", "64:ff9b:1::", "2002::"]
    for prefix in prefixes:
        shift = 80 if prefix == "2002::" else 0
        embedding = ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | int(ip) << shift)
        assert is_public(str(embedding)) == is_public(str(ip))


@given(st.ip_addresses(v=6))
def test_never_more_permissive_than_global_unicast(ip: ipaddress.IPv6Address) -> None:
    """Only 2000::/3 is public in IPv6, and addresses that embed a public IPv4 address."""
    if is_public(str(ip)):
        embeds_ipv4 = int(ip) >> 32 in (0, 0xFFFF, 0x64FF9B << 64, 0x64FF9B0001 << 48)
        assert int(ip) >> 125 == 1 or embeds_ipv4


@given(st.text())
def test_any_text_is_accepted(text: str) -> None:
    """No text raises an error, neither as an address nor as a host."""
    assert is_public(text) in (True, False)
    assert is_private_host(text) in (True, False)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST.",
        "a.localhost",
        "127.0.0.1",
        "127.1",
        "127.0.0.1.",
        "0x7f000001",
        "2130706433",
        "0177.0.0.1",
        "0",
        "169.254.169.254",
        "[::1]",
        "::ffff:10.0.0.1",
        "fe80::1%eth0",
        "%31%32%37.0.0.1",
    ],
)
def test_private_hosts(host: str) -> None:
    """Every spelling of a private address that the system accepts is recognised."""
    assert is_private_host(host)


@pytest.mark.parametrize("host", ["tempfile.redpandaai.co", "8.8.8.8", "2606:4700::1", "localhost.co", ""])
def test_other_hosts(host: str) -> None:
    """Public addresses and DNS names pass; the addresses of a name are checked at the socket."""
    assert not is_private_host(host)
