"""Which addresses are public, by table and against an independent witness."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie4o.files.addresses import is_inside, is_public

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
    """Global unicast passes, also inside a translator's address."""
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_all_others_are_not(address: str) -> None:
    """Whatever leads inside, is reserved or is no address at all does not pass."""
    assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_never_laxer_than_the_standard_library(ip: ipaddress.IPv4Address) -> None:
    """What `ipaddress` calls private, multicast or reserved is never public here."""
    if ip.is_private or ip.is_multicast or ip.is_reserved or ip.is_unspecified or not ip.is_global:
        assert not is_public(str(ip))


@given(st.ip_addresses(v=4))
def test_a_wrapped_address_is_as_public_as_what_it_wraps(ip: ipaddress.IPv4Address) -> None:
    """An IPv4 address does not change its nature inside an IPv6 one."""
    wrappers = ["::ffff:0:0", "64:ff9b::", "64:ff9b:1::", "2002::"]
    for wrapper in wrappers:
        shift = 80 if wrapper == "2002::" else 0
        wrapped = ipaddress.IPv6Address(int(ipaddress.IPv6Address(wrapper)) | int(ip) << shift)
        assert is_public(str(wrapped)) == is_public(str(ip))


@given(st.ip_addresses(v=6))
def test_never_laxer_than_global_unicast(ip: ipaddress.IPv6Address) -> None:
    """Of IPv6 only 2000::/3 is public, and the addresses that wrap a public IPv4 one."""
    if is_public(str(ip)):
        wraps = int(ip) >> 32 in (0, 0xFFFF, 0x64FF9B << 64, 0x64FF9B0001 << 48)
        assert int(ip) >> 125 == 1 or wraps


@given(st.text())
def test_any_text_is_judged(text: str) -> None:
    """No text raises, neither as an address nor as a host."""
    assert is_public(text) in (True, False)
    assert is_inside(text) in (True, False)


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
def test_hosts_that_lead_inside(host: str) -> None:
    """Every spelling of a local address that a system would take is seen through."""
    assert is_inside(host)


@pytest.mark.parametrize("host", ["tempfile.redpandaai.co", "8.8.8.8", "2606:4700::1", "localhost.co", ""])
def test_hosts_that_do_not(host: str) -> None:
    """Names are left to the check at the socket."""
    assert not is_inside(host)
