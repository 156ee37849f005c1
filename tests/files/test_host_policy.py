"""Which hosts a download contacts, and what is sent to them."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hosts import KEY, PNG, TASK, Host, RecordedSleep, answer, fails, files_for, no_renewal
from yarl import URL

from kie4o.files.downloads import Downloader, HostPolicy, PrivateAddressError
from kie4o.files.transfers import Files
from kie4o.transport.transport import USER_AGENT


async def test_no_credentials_are_sent(tmp_path: Path) -> None:
    """A file host receives no key, cookie, referrer or password from ~/.netrc, but our user agent."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret")
    os.environ["NETRC"] = str(netrc)
    try:
        cookie = answer(b"", "302 Found", "Location: /b", "Set-Cookie: a=b; Path=/")
        async with (
            Host(cookie, answer(PNG, "200 OK", "Set-Cookie: c=d")) as host,
            files_for(host.url, trust_env=True) as files,
        ):
            for folder in ("i", "j"):
                await files.download([f"{host.url}/a"], tmp_path / folder, task_id=TASK, renew=no_renewal)
    finally:
        del os.environ["NETRC"]
    assert len(host.requests) == 3
    for request in host.requests:
        assert KEY not in request.text
        assert not {"authorization", "cookie", "referer", "proxy-authorization"} & set(request.headers)
        assert request.headers["user-agent"] == USER_AGENT


async def test_three_redirects_are_followed(tmp_path: Path) -> None:
    """Relative redirects are followed too; a fourth, or one without a Location, is refused."""
    hop = answer(b"", "302 Found", "Location: next?a=%2F")
    async with Host(hop, hop, hop, answer(PNG)) as host, files_for(host.url) as files:
        [path] = await files.download([f"{host.url}/a/b"], tmp_path, task_id=TASK, renew=no_renewal)
        path.unlink()
        assert [r.target for r in host.requests] == ["/a/b"] + ["/a/next?a=%2F"] * 3
        host.replies = [hop]
        assert "more than 3 times" in str(await fails(files, tmp_path, host.url))
        assert len(host.requests) == 8
        host.replies = [answer(b"", "301 Moved")]
        assert "without a Location" in str(await fails(files, tmp_path, host.url))


class OneHostPolicy(HostPolicy):
    """The strict policy, except for one host on localhost, which stands for a public one."""

    def __init__(self, host: Host) -> None:
        super().__init__(allow_private=False)
        self._host = host
        self.refused: list[str] = []

    def checked_url(self, text: str, base: URL | None = None) -> URL:
        return URL(text) if text.startswith(self._host.url) else super().checked_url(text, base)

    def create_socket(self, addr_info: tuple[Any, ...]) -> socket.socket:
        if addr_info[4][:2] == ("127.0.0.1", self._host.port):
            return HostPolicy(allow_private=True).create_socket(addr_info)
        try:
            return super().create_socket(addr_info)
        except PrivateAddressError:
            self.refused.append(addr_info[4][0])
            raise


@asynccontextmanager
async def strict_files(policy: HostPolicy, **options: Any) -> AsyncIterator[Files]:
    """The `Files` of a client with the default base URL, under the policy of a test."""
    async with files_for(None) as files:
        how = {
            "timeout": 5.0,
            "max_bytes": 2**20,
            "proxy": None,
            "trust_env": False,
            "sleep": RecordedSleep(),
        }
        files._downloader = Downloader(policy=policy, **how | options)
        yield files


FORBIDDEN_URLS = [
    "http://10.0.0.1/",
    "https://10.0.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "https://169.254.169.254/",
    "https://127.0.0.1/",
    "https://127.1/",
    "https://0x7f000001/",
    "https://2130706433/",
    "https://①②⑦.0.0.1/",
    "https://%31%32%37.0.0.1/",
    "https://[::1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[::127.0.0.1]/",
    "https://[fe80::1%25eth0]/",
    "https://localhost/",
    "https://localhost./",
    "https://user:secret@example.com/",
    "http://example.com/",
    "file:///etc/passwd",
    "ftp://example.com/a.png",
    "data:image/png;base64,AAAA",
    "https://",
    "https://example.com:0/",
    "https://example.com:99999/",
    "//10.0.0.1/",
    "not a URL",
    "",
]


@pytest.mark.parametrize("target", FORBIDDEN_URLS)
async def test_forbidden_redirects(tmp_path: Path, connects: list[str], target: str) -> None:
    """A redirect to a private address, to plain http or to another scheme is refused without a
    connection, and is not retried."""
    location = f"Location: {target}"
    reply = answer(b"", "302 Found", location if target.isascii() else "Location: https://127.0.0.1/")
    async with Host(reply) as host, strict_files(OneHostPolicy(host)) as files:
        if target not in ("", "not a URL"):  # a relative redirect, to the same host
            assert "secret" not in str(await fails(files, tmp_path, host.url))
            assert connects == ["127.0.0.1"]
        connects.clear()
        await fails(files, tmp_path, target)
    assert connects == []


@pytest.mark.parametrize(
    "addresses",
    [["10.0.0.1"], ["169.254.169.254", "127.0.0.1"], ["::1"], ["::1", "192.168.1.1"], ["64:ff9b::7f00:1"]],
)
@pytest.mark.parametrize("redirected", [False, True])
async def test_names_with_private_addresses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    connects: list[str],
    addresses: list[str],
    redirected: bool,
) -> None:
    """A DNS name with private addresses is refused where the socket is created, whether it is in the
    first URL or in a redirect."""
    loop = asyncio.get_running_loop()
    original = loop.getaddrinfo

    async def getaddrinfo(host: str, port: int, **how: Any) -> Any:
        if host != "cdn.example":
            return await original(host, port, **how)
        kinds = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
        return [
            (
                kind,
                socket.SOCK_STREAM,
                6,
                "",
                (address, port) if kind == socket.AF_INET else (address, port, 0, 0),
            )
            for kind, address in zip(kinds, addresses, strict=True)
        ]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    url = "https://cdn.example/a.png"
    async with Host(answer(b"", "302 Found", f"Location: {url}")) as host:
        policy, delays = OneHostPolicy(host), RecordedSleep()
        async with strict_files(policy, sleep=delays) as files:
            error = await fails(files, tmp_path, host.url if redirected else url)
    assert "not public" in str(error)
    assert set(policy.refused) == set(addresses)
    assert delays == []  # no retry
    assert connects == (["127.0.0.1"] if redirected else [])


def test_sockets_are_created_for_allowed_addresses_only() -> None:
    """Sockets are created for public addresses, and for private ones only if the policy allows them."""
    strict, private = HostPolicy(allow_private=False), HostPolicy(allow_private=True)

    def info(address: str) -> tuple[Any, ...]:
        return (
            socket.AF_INET6 if ":" in address else socket.AF_INET,
            socket.SOCK_STREAM,
            6,
            "",
            (address, 443),
        )

    strict.create_socket(info("8.8.8.8")).close()
    private.create_socket(info("127.0.0.1")).close()
    for address in ("127.0.0.1", "10.0.0.1", "::1", "fe80::1%eth0", "::ffff:10.0.0.1"):
        with pytest.raises(PrivateAddressError):
            strict.create_socket(info(address))


@pytest.mark.parametrize(
    "target", ["https://10.0.0.1/", "https://127.1/", "https://localhost/", "http://a.example/"]
)
async def test_private_hosts_are_not_requested_through_a_proxy(tmp_path: Path, target: str) -> None:
    """Behind a proxy, where the socket is not checked, private hosts are refused by their URL."""
    async with (
        Host(answer(PNG)) as proxy,
        strict_files(HostPolicy(allow_private=False), proxy=proxy.url) as files,
    ):
        await fails(files, tmp_path, target)
    assert proxy.connections == 0


@pytest.mark.parametrize("how", ["argument", "environment", "bypassed"])
async def test_downloads_through_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The proxy is the argument, or with `trust_env` the one of the environment, with its exceptions."""
    for name in ("http_proxy", "no_proxy", "HTTP_PROXY", "NO_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with Host(answer(PNG)) as host, Host(answer(PNG)) as proxy:
        options: dict[str, Any] = {"trust_env": True}
        if how == "argument":
            options = {"proxy": proxy.url}
        else:
            monkeypatch.setenv("http_proxy", proxy.url)
            if how == "bypassed":
                monkeypatch.setenv("no_proxy", "127.0.0.1")
        async with files_for(host.url, **options) as files:
            await files.download([f"{host.url}/a"], tmp_path, task_id=TASK, renew=no_renewal)
    assert (host.connections, proxy.connections) == ((1, 0) if how == "bypassed" else (0, 1))
    assert KEY not in "".join(request.text for request in proxy.requests)


async def test_a_proxy_password_is_not_shown(tmp_path: Path) -> None:
    """If a proxy refuses, its URL is not in the error."""
    async with Host(answer(b"", "407 No")) as proxy:
        url = proxy.url.replace("//", "//me:hunter2@")
        async with strict_files(HostPolicy(allow_private=False), proxy=url) as files:
            error = await fails(files, tmp_path, "https://a.example/b")
    assert "hunter2" not in str(error)
