"""Which hosts a download contacts, and what they learn."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hosts import (
    KEY,
    PNG,
    TASK,
    Host,
    Naps,
    answer,
    fails,
    files_for,
    no_renewal,
)
from yarl import URL

from kie4o.files.downloads import Door, Downloader, PrivateAddressError
from kie4o.files.transfers import Files
from kie4o.transport.transport import USER_AGENT


async def test_file_hosts_learn_nothing(tmp_path: Path) -> None:
    """No key, no cookie, no password of ~/.netrc, no referrer; our name is given."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret")
    os.environ["NETRC"] = str(netrc)
    try:
        cookie = answer(b"", "302 Found", "Location: /b", "Set-Cookie: a=b; Path=/")
        async with (
            Host(cookie, answer(PNG, "200 OK", "Set-Cookie: c=d")) as host,
            files_for(host.url, trust_env=True) as files,
        ):
            for _ in range(2):
                await files.download([f"{host.url}/a"], tmp_path / "i", task_id=TASK, renew=no_renewal)
    finally:
        del os.environ["NETRC"]
    assert len(host.requests) == 3
    for request in host.requests:
        assert KEY not in request.text
        assert not {"authorization", "cookie", "referer", "proxy-authorization"} & set(request.headers)
        assert request.headers["user-agent"] == USER_AGENT


async def test_redirects_are_followed_a_little(tmp_path: Path) -> None:
    """Three hops are followed, relative ones too; a fourth, or one to nowhere, is refused."""
    hop = answer(b"", "302 Found", "Location: next?a=%2F")
    async with Host(hop, hop, hop, answer(PNG)) as host, files_for(host.url) as files:
        [path] = await files.download([f"{host.url}/a/b"], tmp_path, task_id=TASK, renew=no_renewal)
        path.unlink()
        assert [r.target for r in host.requests] == ["/a/b"] + ["/a/next?a=%2F"] * 3
        host.replies = [hop]
        assert "more than 3 times" in str(await fails(files, tmp_path, host.url))
        assert len(host.requests) == 8
        host.replies = [answer(b"", "301 Moved")]
        assert "nowhere" in str(await fails(files, tmp_path, host.url))


class HalfOpenDoor(Door):
    """Shut, but for one host on localhost, which plays the public one."""

    def __init__(self, host: Host) -> None:
        super().__init__(inside=False)
        self._host = host
        self.refused: list[str] = []

    def url(self, text: str, base: URL | None = None) -> URL:
        return URL(text) if text.startswith(self._host.url) else super().url(text, base)

    def socket(self, addr_info: tuple[Any, ...]) -> socket.socket:
        if addr_info[4][:2] == ("127.0.0.1", self._host.port):
            return Door(inside=True).socket(addr_info)
        try:
            return super().socket(addr_info)
        except PrivateAddressError:
            self.refused.append(addr_info[4][0])
            raise


@asynccontextmanager
async def strict_files(door: Door, **options: Any) -> AsyncIterator[Files]:
    """Files of a client of Kie's real address, behind a door of the test's."""
    async with files_for(None) as files:
        how = {"timeout": 5.0, "max_bytes": 2**20, "proxy": None, "trust_env": False, "sleep": Naps()}
        files._downloader = Downloader(door=door, **how | options)
        yield files


INSIDE = [
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


@pytest.mark.parametrize("target", INSIDE)
async def test_no_redirect_leads_inside(tmp_path: Path, connects: list[str], target: str) -> None:
    """A redirect to a private address, to plain http or to another scheme is refused without a
    connection, and not tried again."""
    location = f"Location: {target}"
    reply = answer(b"", "302 Found", location if target.isascii() else "Location: https://127.0.0.1/")
    async with Host(reply) as host, strict_files(HalfOpenDoor(host)) as files:
        if target not in ("", "not a URL"):  # relative, therefore another hop of the same host
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
async def test_no_name_leads_inside(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    connects: list[str],
    addresses: list[str],
    redirected: bool,
) -> None:
    """A name that a name server maps to private addresses is refused where the socket is made,
    whether it is the first host or comes by a redirect."""
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
        door, naps = HalfOpenDoor(host), Naps()
        async with strict_files(door, sleep=naps) as files:
            error = await fails(files, tmp_path, host.url if redirected else url)
    assert "not public" in str(error)
    assert set(door.refused) == set(addresses)
    assert naps == []  # and not tried again
    assert connects == (["127.0.0.1"] if redirected else [])


def test_the_door_at_the_socket() -> None:
    """A socket for a public address is made, for any other it is refused; an emulator's is open."""
    strict, open_door = Door(inside=False), Door(inside=True)

    def info(address: str) -> tuple[Any, ...]:
        return (
            socket.AF_INET6 if ":" in address else socket.AF_INET,
            socket.SOCK_STREAM,
            6,
            "",
            (address, 443),
        )

    strict.socket(info("8.8.8.8")).close()
    open_door.socket(info("127.0.0.1")).close()
    for address in ("127.0.0.1", "10.0.0.1", "::1", "fe80::1%eth0", "::ffff:10.0.0.1"):
        with pytest.raises(PrivateAddressError):
            strict.socket(info(address))


@pytest.mark.parametrize(
    "target", ["https://10.0.0.1/", "https://127.1/", "https://localhost/", "http://a.example/"]
)
async def test_a_proxy_is_not_asked_for_what_is_inside(tmp_path: Path, target: str) -> None:
    """Through a proxy the socket is the proxy's: literal hosts are checked in the URL."""
    async with (
        Host(answer(PNG)) as proxy,
        strict_files(Door(inside=False), proxy=proxy.url) as files,
    ):
        await fails(files, tmp_path, target)
    assert proxy.connections == 0


@pytest.mark.parametrize("how", ["argument", "environment", "bypassed"])
async def test_downloads_through_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The argument wins; with `trust_env` the environment's proxy is used, and its exceptions."""
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


async def test_a_proxy_password_is_not_told(tmp_path: Path) -> None:
    """When a proxy refuses, its URL is not in the error."""
    async with Host(answer(b"", "407 No")) as proxy:
        url = proxy.url.replace("//", "//me:hunter2@")
        async with strict_files(Door(inside=False), proxy=url) as files:
            error = await fails(files, tmp_path, "https://a.example/b")
    assert "hunter2" not in str(error)
