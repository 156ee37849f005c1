"""Uploads and downloads, against file hosts on localhost that misbehave on purpose."""

import asyncio
import errno
import functools
import io
import os
import pickle
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import BodyPartReader, web
from canary import CANARY_KEY
from PIL import Image
from yarl import URL

from kie4o import settings
from kie4o.errors import (
    APIConnectionError,
    AuthenticationError,
    DownloadError,
    InternalServerError,
    InvalidRequestError,
    UnprocessableEntityError,
)
from kie4o.files import disk, downloads, uploads
from kie4o.files.disk import PREFIX
from kie4o.files.downloads import Door, Downloader, PrivateAddressError
from kie4o.files.transfers import Files
from kie4o.transport.transport import USER_AGENT, Transport

KEY = CANARY_KEY
TASK = "3f1c0d2e4b5a69788796a5b4c3d2e1f0"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@functools.cache
def picture(kind: str = "PNG", side: int = 60) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 90).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


PNG = picture()
Reply = Callable[["Request", asyncio.StreamWriter], Awaitable[None]]


class Request:
    def __init__(self, head: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.method, self.target, _ = lines[0].split(" ")
        self.headers = {n.lower(): v for n, _, v in (line.partition(": ") for line in lines[1:] if line)}
        self.text = head.decode("latin-1")


class Host:
    """A file host as bytes: one reply per request, the last one for all that follow."""

    def __init__(self, *replies: bytes | Reply) -> None:
        self.replies = list(replies)
        self.requests: list[Request] = []
        self.connections = 0
        self._workers: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> "Host":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._workers.add(task)
        try:
            request = Request(await reader.readuntil(b"\r\n\r\n"))
            self.requests.append(request)
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
            if isinstance(reply, bytes):
                writer.write(reply)
                await writer.drain()
            else:
                await reply(request, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except asyncio.CancelledError:
            pass  # the end of the test
        finally:
            self._workers.discard(task)
            writer.close()


def answer(body: bytes = b"", status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def open_ended(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body


def chunked(body: bytes) -> bytes:
    size = f"{len(body):x}".encode()
    return (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        + size
        + b"\r\n"
        + body
        + b"\r\n0\r\n\r\n"
    )


async def no_renewal(url: str) -> str:
    raise AssertionError("nothing had expired")


class Naps(list[float]):
    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture(autouse=True)
def connects(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every address that is connected to; none but loopback is let through."""
    seen: list[str] = []
    original = asyncio.SelectorEventLoop.sock_connect

    async def sock_connect(self: Any, sock: socket.socket, address: Any) -> None:
        seen.append(address[0])
        assert address[0] in ("127.0.0.1", "::1"), f"traffic to {address}"
        await original(self, sock, address)

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", sock_connect)
    return seen


@asynccontextmanager
async def files_for(url: str | None, **options: Any) -> AsyncIterator[Files]:
    """Files of a client whose Kie is at this URL."""
    checked = settings.resolve(api_key=KEY, base_url=url, upload_url=None, webhook_key=None, environment={})
    transport = Transport(checked, timeout=5.0)
    files = Files(transport, checked, **{"timeout": 5.0, "sleep": Naps(), "chance": lambda: 1.0} | options)
    try:
        yield files
    finally:
        await files.aclose()
        await transport.aclose()


async def fails(files: Files, folder: Path, url: str, **how: Any) -> DownloadError:
    """The error of a download, which carries the task, hides everything and leaves nothing."""
    how = {"renew": no_renewal} | how
    with pytest.raises(DownloadError) as caught:
        await files.download([url], folder, task_id=TASK, **how)
    error = caught.value
    assert error.task_id == TASK
    assert error.__cause__ is None
    assert error.__context__ is None
    assert KEY not in repr(error) + str(error)
    assert pickle.loads(pickle.dumps(error)).task_id == TASK
    assert not folder.exists() or not names(folder)
    return error


# -- downloads: what is kept -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "ending"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("GIF", "gif")]
)
@pytest.mark.parametrize("framing", [answer, open_ended, chunked])
async def test_an_image_is_saved(tmp_path: Path, kind: str, ending: str, framing: Any) -> None:
    """The bytes as they came, named after the task, its ending from the bytes; folders are made."""
    body = picture(kind, side=500)
    async with Host(framing(body)) as host, files_for(host.url) as files:
        paths = await files.download(
            [f"{host.url}/a.exe"], tmp_path / "new" / "folder", task_id=TASK, renew=no_renewal
        )
    assert paths == [tmp_path / "new" / "folder" / f"{TASK}_0.{ending}"]
    assert paths[0].read_bytes() == body
    assert names(paths[0].parent) == {paths[0].name}


async def test_several_images_keep_their_order(tmp_path: Path) -> None:
    """Paths come in the order of the URLs, and at most four are fetched at once."""
    running, most = 0, 0
    release = asyncio.Event()
    bodies = {f"/{n}": picture(side=20 + n) for n in range(6)}

    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 4:
            for _ in range(200):  # time enough for a fifth to come
                await asyncio.sleep(0)
            release.set()
        await release.wait()
        running -= 1
        writer.write(answer(bodies[request.target]))

    async with Host(reply) as host, files_for(host.url) as files:
        urls = [host.url + path for path in bodies]
        paths = await files.download(urls, tmp_path, task_id=TASK, name="cat", renew=no_renewal)
    assert [path.name for path in paths] == [f"cat_{n}.png" for n in range(6)]
    assert [path.read_bytes() for path in paths] == list(bodies.values())
    assert most == 4


async def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    """The same name again takes the old one's place, and a symbolic link is not followed."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "cat.png").symlink_to(outside)
    async with Host(answer(PNG)) as host, files_for(host.url) as files:
        for _ in range(2):
            [path] = await files.download([host.url], folder, task_id=TASK, name="cat", renew=no_renewal)
    assert path.read_bytes() == PNG
    assert not path.is_symlink()
    assert outside.read_bytes() == b"mine"


@pytest.mark.parametrize(
    "name", ["../../../../tmp/x", "/etc/passwd", "..", "a/b", "a\\b", "a\0b", ".bashrc", "CON", "x" * 999]
)
@pytest.mark.parametrize("path", ["/..%2f..%2fetc%2fpasswd", "/%00", "/a.png/../../b", "/?file=../../x"])
async def test_no_name_leaves_the_folder(tmp_path: Path, name: str, path: str) -> None:
    """Whatever the caller's name or the URL's path is, the file is in the folder."""
    folder = tmp_path / "a" / "b"
    async with (
        Host(answer(PNG, "200 OK", 'Content-Disposition: attachment; filename="../../evil"')) as host,
        files_for(host.url) as files,
    ):
        [named] = await files.download([host.url + path], folder, task_id=TASK, name=name, renew=no_renewal)
        [plain] = await files.download([host.url + path], folder, task_id=TASK, renew=no_renewal)
    assert {named.parent, plain.parent} == {folder}
    assert names(folder) == {named.name, plain.name}
    assert plain.name == f"{TASK}_0.png"
    assert names(tmp_path) == {"a"}


async def test_a_name_must_be_text(tmp_path: Path) -> None:
    """Anything else is refused before any network use."""
    async with Host(answer(PNG)) as host, files_for(host.url) as files:
        with pytest.raises(InvalidRequestError, match="name=7"):
            await files.download([host.url], tmp_path, task_id=TASK, name=7, renew=no_renewal)  # type: ignore[arg-type]  # wrong on purpose
    assert not host.requests


async def test_nothing_to_fetch_is_nothing(tmp_path: Path) -> None:
    """No URLs give no paths."""
    async with files_for(None) as files:
        assert await files.download([], tmp_path, task_id=TASK, renew=no_renewal) == []


# -- downloads: what is not ----------------------------------------------------------------------


@pytest.mark.parametrize("framing", [answer, open_ended, chunked])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
async def test_no_half_image_is_ever_visible(tmp_path: Path, kind: str, framing: Any) -> None:
    """Cut at every percent, the download is tried three times, fails, and leaves nothing; at no
    moment is there a file that a gallery would show."""
    message = framing(picture(kind, side=40))
    seen: set[str] = set()

    async def cut_at(at: int, writer: asyncio.StreamWriter) -> None:
        writer.write(message[:at])
        await writer.drain()
        for _ in range(5):
            await asyncio.sleep(0)
            seen.update(names(tmp_path))

    async with Host() as host, files_for(host.url) as files:
        first = message.index(b"\r\n\r\n") + 4
        last = message.rindex(b"\r\n0\r\n") if framing is chunked else len(message)
        for at in [*range(first, last, max(1, (last - first) // 100)), last - 1]:
            host.replies = [lambda _, writer, at=at: cut_at(at, writer)]
            host.requests.clear()
            error = await fails(files, tmp_path, host.url)
            assert len(host.requests) >= 3, error
    assert not [name for name in seen if not name.startswith(PREFIX)]


@pytest.mark.parametrize("status", ["500 Oops", "502 Bad Gateway", "503 Busy", "429 Slow down", "408 Late"])
async def test_passing_failures_are_ridden_out(tmp_path: Path, status: str) -> None:
    """The CDN fails now and then: the download is tried three times, with growing pauses."""
    naps = Naps()
    cut = open_ended(PNG[:-20])
    async with (
        Host(answer(b"busy", status), cut, answer(PNG)) as host,
        files_for(host.url, sleep=naps) as files,
    ):
        [path] = await files.download([host.url], tmp_path, task_id=TASK, renew=no_renewal)
        assert path.read_bytes() == PNG
        path.unlink()
        host.replies = [answer(b"busy", status)]
        assert status[:3] in str(await fails(files, tmp_path, host.url))
    assert naps == [0.5, 1.0, 0.5, 1.0]
    assert len(host.requests) == 6


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<!DOCTYPE html><title>Just a moment...</title>", "Just a moment"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "not an image"),
        (b'{"code": 404, "msg": "gone"}', "not an image"),
        (b"MZ" + bytes(100), "not an image"),
    ],
)
async def test_what_is_no_image_is_not_saved(tmp_path: Path, body: bytes, words: str) -> None:
    """A page with status 200 and the content type of an image is refused at once, and shown."""
    async with (
        Host(answer(body, "200 OK", "Content-Type: image/png")) as host,
        files_for(host.url) as files,
    ):
        assert words in str(await fails(files, tmp_path, host.url))
    assert len(host.requests) == 1


async def test_the_size_is_capped(tmp_path: Path) -> None:
    """By what the host says, and by what it sends if it says nothing or never ends."""
    sent = 0

    async def endless(_: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(open_ended(PNG))
        while True:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536

    huge = f"HTTP/1.1 200 OK\r\nContent-Length: {10**12}\r\n\r\n".encode() + PNG
    async with (
        Host(huge, endless) as host,
        files_for(host.url, max_image_bytes=2**20) as files,
    ):
        assert "more than 1048576 bytes" in str(await fails(files, tmp_path, host.url))
        assert "more than 1048576 bytes" in str(await fails(files, tmp_path, host.url))
    assert len(host.requests) == 2
    assert sent < 16 * 2**20


async def test_a_packed_bomb_is_capped(tmp_path: Path) -> None:
    """Bytes are counted after unpacking, should a host pack what we asked to be plain."""
    import gzip

    bomb = gzip.compress(PNG + bytes(8 * 2**20))
    async with (
        Host(answer(bomb, "200 OK", "Content-Encoding: gzip")) as host,
        files_for(host.url, max_image_bytes=2**20) as files,
    ):
        assert "more than 1048576 bytes" in str(await fails(files, tmp_path, host.url))
    assert host.requests[0].headers["accept-encoding"] == "identity"


async def test_a_host_that_falls_silent(tmp_path: Path) -> None:
    """`timeout` bounds each wait for bytes."""

    async def silent(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(PNG)[:-10])
        await asyncio.Event().wait()

    async with Host(silent) as host, files_for(host.url, timeout=0.02) as files:
        assert "timed out" in str(await fails(files, tmp_path, host.url))
    assert len(host.requests) == 3


async def test_nobody_listens(tmp_path: Path) -> None:
    """A refused connection is an error of ours in the system's words."""
    async with Host(b"") as host:
        url = host.url
    async with files_for(url) as files:
        assert "cannot connect" in str(await fails(files, tmp_path, url))


def test_a_certificate_that_is_not_accepted() -> None:
    """It says so, and is not tried again; so it is with a proxy's URL that is none."""
    key: Any = None
    problem = aiohttp.ClientConnectorCertificateError(key, ssl.CertificateError("no"))
    for error in (problem, aiohttp.InvalidURL("proxy:1")):
        fault = downloads._fault_of(error)
        assert not fault.passing
        assert str(fault) in ("its TLS certificate was not accepted", "the URL cannot be read")


def test_nothing_written_is_nothing_to_keep(tmp_path: Path) -> None:
    """A draft without a byte makes no file."""
    with pytest.raises(FileNotFoundError):
        disk.Draft(tmp_path).keep("cat.png")


async def test_garbage_for_http(tmp_path: Path) -> None:
    """Bytes that are not HTTP at all are a broken connection."""
    async with Host(b"\x00\xff" * 500) as host, files_for(host.url) as files:
        assert "could not be fetched" in str(await fails(files, tmp_path, host.url))


async def test_one_failure_calls_off_the_others(tmp_path: Path) -> None:
    """The others are cancelled and leave nothing; what was whole already stays."""
    stuck = asyncio.Event()

    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.target == "/whole":
            writer.write(answer(PNG))
        elif request.target == "/bad":
            await stuck.wait()
            writer.write(answer(b"<html>no image at all</html>"))
        else:
            writer.write(answer(PNG)[:-10])
            await writer.drain()
            while not (tmp_path / f"{TASK}_0.png").exists():
                await asyncio.sleep(0.001)
            stuck.set()
            await asyncio.Event().wait()

    async with Host(reply) as host, files_for(host.url) as files:
        urls = [host.url + path for path in ("/whole", "/hangs", "/bad")]
        with pytest.raises(DownloadError, match="not an image") as caught:
            await files.download(urls, tmp_path, task_id=TASK, renew=no_renewal)
    assert caught.value.__context__ is None
    assert names(tmp_path) == {f"{TASK}_0.png"}


async def test_a_closed_client_fetches_nothing(tmp_path: Path) -> None:
    """After `aclose` no session comes back to life."""
    async with Host(answer(PNG)) as host, files_for(host.url) as files:
        await files.aclose()
        assert "closed" in str(await fails(files, tmp_path, host.url))
    assert not host.requests


# -- downloads: links that expire --------------------------------------------------------------


@pytest.mark.parametrize("status", ["401 No", "403 Forbidden", "404 Gone", "410 Gone"])
async def test_an_expired_link_is_renewed_once(tmp_path: Path, status: str) -> None:
    """A fresh link is asked for with the image's own URL; if that fails too there is no third."""
    asked: list[str] = []

    async def renew(url: str) -> str:
        asked.append(url)
        return f"{host.url}/fresh?X-Amz-Signature=a%2Bb%2F%7E"

    async with Host(answer(b"", status), answer(PNG)) as host, files_for(host.url) as files:
        [path] = await files.download([f"{host.url}/old"], tmp_path, task_id=TASK, renew=renew)
        assert path.read_bytes() == PNG
        path.unlink()
        assert asked == [f"{host.url}/old"]
        assert host.requests[1].target == "/fresh?X-Amz-Signature=a%2Bb%2F%7E"  # as it was signed
        host.replies = [answer(b"", status)]
        error = await fails(files, tmp_path, f"{host.url}/old", renew=renew)
        assert status[:3] in str(error)
        assert "Signature" not in str(error)
    assert len(asked) == 2
    assert len(host.requests) == 4


async def test_a_link_that_cannot_be_renewed(tmp_path: Path) -> None:
    """Kie's own words about it are in the error."""

    async def renew(url: str) -> str:
        raise UnprocessableEntityError("only records within 14 days", code=422)

    async with Host(answer(b"", "403 Forbidden")) as host, files_for(host.url) as files:
        assert "14 days" in str(await fails(files, tmp_path, host.url, renew=renew))


# -- downloads: whom to ask ----------------------------------------------------------------------


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


# -- downloads: cancelling and the disk ----------------------------------------------------------


async def test_a_cancel_leaves_nothing(tmp_path: Path) -> None:
    """Cancelled after any number of steps of the loop: no temporary file, no task; a file that is
    there is whole."""
    body = picture(side=800)
    seen_temporary = ended_whole = 0
    async with Host(answer(body)) as host, files_for(host.url) as files:
        before = asyncio.all_tasks()
        for steps in range(160):
            folder = tmp_path / str(steps)
            folder.mkdir()
            urls = [f"{host.url}/{n}" for n in range(2)]
            task = asyncio.ensure_future(files.download(urls, folder, task_id=TASK, renew=no_renewal))
            for _ in range(steps):
                await asyncio.sleep(0.0005 if steps % 4 == 0 else 0)
            seen_temporary += any(name.startswith(PREFIX) for name in names(folder))
            was_done = task.done()
            task.cancel()
            if was_done:
                await task
            else:
                with pytest.raises(asyncio.CancelledError):
                    await task
            for name in names(folder):
                assert not name.startswith(PREFIX)
                assert (folder / name).read_bytes() == body
                ended_whole += 1
            assert not {each for each in asyncio.all_tasks() - before if "_serve" not in repr(each)}
    assert seen_temporary
    assert ended_whole


@pytest.mark.parametrize("step", ["open", "write", "fsync", "unlink"])
@pytest.mark.parametrize("cancels", [1, 3])
async def test_a_cancel_waits_for_the_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, cancels: int
) -> None:
    """A thread cannot be cancelled: the download ends when it has ended, however often it is
    cancelled meanwhile, and then cleans up."""
    reached, go_on = threading.Event(), threading.Event()

    def held(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **how: Any) -> Any:
            result = function(*arguments, **how)
            reached.set()
            assert go_on.wait(10)
            return result

        return call

    where, name = {
        "open": (disk.tempfile, "mkstemp"),
        "write": (disk.os, "write"),
        "fsync": (disk.os, "fsync"),
        "unlink": (disk.Path, "unlink"),
    }[step]
    body = PNG[:-20] if step == "unlink" else PNG  # what is cut off has a file to remove
    async with Host(open_ended(body)) as host, files_for(host.url) as files:
        with monkeypatch.context() as patch:
            if step == "write":  # the loop writes to its own pipe: only our thread is held
                original = os.write
                main = threading.get_ident()
                patch.setattr(
                    disk.os,
                    "write",
                    lambda *a: original(*a) if threading.get_ident() == main else held(original)(*a),
                )
            else:
                patch.setattr(where, name, held(getattr(where, name)))
            task = asyncio.ensure_future(files.download([host.url], tmp_path, task_id=TASK, renew=no_renewal))
            while not reached.is_set():
                await asyncio.sleep(0.001)
            for _ in range(cancels):
                task.cancel()
                for _ in range(10):
                    await asyncio.sleep(0)
            assert not task.done()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert names(tmp_path) == ({f"{TASK}_0.png"} if step == "fsync" else set())


@pytest.mark.parametrize("step", ["mkstemp", "write", "fsync", "replace"])
async def test_a_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Whichever step fails, the error has the system's words and the folder, and nothing is left."""

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    original, main = os.write, threading.get_ident()
    async with Host(answer(PNG)) as host, files_for(host.url) as files:
        with monkeypatch.context() as patch:
            match step:
                case "mkstemp":
                    patch.setattr(disk.tempfile, "mkstemp", full)
                case "write":
                    patch.setattr(
                        disk.os, "write", lambda *a: (original if threading.get_ident() == main else full)(*a)
                    )
                case "fsync":
                    patch.setattr(disk.os, "fsync", full)
                case "replace":
                    patch.setattr(disk.Path, "replace", full)
            error = await fails(files, tmp_path, host.url)
    assert "No space left on device" in str(error)
    assert str(tmp_path) in str(error)
    assert len(host.requests) == 1


async def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    """It is found out before anything is fetched."""
    (tmp_path / "file").write_bytes(b"")
    async with Host(answer(PNG)) as host, files_for(host.url) as files:
        for folder in (tmp_path / "file", tmp_path / "file" / "deeper", tmp_path / "a\0b"):
            with pytest.raises(DownloadError, match="cannot be made") as caught:
                await files.download([host.url], folder, task_id=TASK, renew=no_renewal)
            assert (caught.value.task_id, caught.value.__context__) == (TASK, None)
        (tmp_path / "cat.png").mkdir()
        with pytest.raises(DownloadError, match="directory"):
            await files.download([host.url], tmp_path, task_id=TASK, name="cat", renew=no_renewal)
    assert len(host.requests) == 1
    assert names(tmp_path) == {"cat.png", "file"}


FULL_DISK = """
import asyncio, os, resource, sys
sys.path[:0] = sys.argv[2:]
from test_files import Host, TASK, answer, files_for, no_renewal, picture
from kie4o.errors import DownloadError

async def main():
    body = picture(side=700)
    assert len(body) > 300_000, len(body)
    async with Host(answer(body)) as host, files_for(host.url) as files:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            await files.download([host.url], sys.argv[1], task_id=TASK, renew=no_renewal)
        except DownloadError as error:
            assert error.task_id == TASK and error.__context__ is None
            print(error)
asyncio.run(main())
assert os.listdir(sys.argv[1]) == [], os.listdir(sys.argv[1])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE")
def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """The system itself stops the write in the middle: an error of ours, and an empty folder."""
    here = Path(__file__).parents[1] / "support"
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            FULL_DISK,
            str(tmp_path),
            str(here.parent / "files"),
            str(here),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=here.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "File too large" in done.stdout


# -- uploads -------------------------------------------------------------------------------------


class UploadHost:
    """Kie's upload host: answers as recorded, after the failures it was given."""

    def __init__(self) -> None:
        self.failures: list[Any] = []
        self.forms: list[dict[str, Any]] = []
        self.headers: list[Any] = []

    async def __aenter__(self) -> "UploadHost":
        app = web.Application(client_max_size=200 * 2**20)
        app.router.add_post("/api/file-stream-upload", self._stream)
        app.router.add_post("/api/file-url-upload", self._from_url)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        if self.failures and self.failures[0] == "cut":
            self.failures.pop(0)
            await request.content.read(1000)
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        form: dict[str, Any] = {}
        async for part in await request.multipart():  # post() leaves files open when we hang up
            assert isinstance(part, BodyPartReader)
            assert part.name is not None
            if part.filename is None:
                form[part.name] = await part.text()
            else:
                form[part.name] = (part.filename, part.headers["Content-Type"], await part.read())
        return self._answer(request, form, len(form["file"][2]))

    async def _from_url(self, request: web.Request) -> web.StreamResponse:
        return self._answer(request, await request.json(), 70)

    def _answer(self, request: web.Request, form: dict[str, Any], size: int) -> web.StreamResponse:
        self.forms.append(form)
        self.headers.append(request.headers)
        if self.failures:
            code = self.failures.pop(0)
            return web.json_response({"success": False, "code": code, "msg": "no"})
        name = form.get("fileName", "1700000000000-abc.png")
        path = f"kieai/10001/{form['uploadPath']}/{name}"
        data = {
            "success": True,
            "fileName": name,
            "filePath": path,
            "downloadUrl": f"https://tempfile.redpandaai.co/{path}",
            "fileSize": size,
            "mimeType": "image/png",
            "uploadedAt": "2026-04-01T10:00:00.000Z",
        }
        return web.json_response({"success": True, "code": 200, "msg": "ok", "data": data})


class OnePass(io.RawIOBase):
    """A pipe: bytes that come once."""

    def __init__(self, body: bytes) -> None:
        self._body = io.BytesIO(body)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._body.readinto(buffer)


async def test_every_kind_of_source(tmp_path: Path) -> None:
    """A path as text or object, bytes of any kind, open files, wrapped files and pipes all arrive
    as they are, with a length, a content type by their bytes, and a name if one is known."""
    place = tmp_path / "kätzchen 1.png"
    place.write_bytes(PNG)
    with (
        place.open("rb") as opened,
        tempfile.NamedTemporaryFile(suffix=".png") as wrapped,
        tempfile.SpooledTemporaryFile() as spooled,
    ):
        wrapped.write(PNG)
        wrapped.seek(0)
        spooled.write(b"skipped" + PNG)
        spooled.seek(7)
        sources: list[tuple[Any, str | None]] = [
            (str(place), place.name),
            (place, place.name),
            (PNG, None),
            (bytearray(PNG), None),
            (memoryview(PNG), None),
            (memoryview(bytes(b for byte in PNG for b in (byte, 0)))[::2], None),
            (opened, place.name),
            (io.BytesIO(PNG), None),
            (wrapped, Path(wrapped.name).name),
            (spooled, None),
            (OnePass(PNG), None),
        ]
        async with UploadHost() as host, files_for(host.url) as files:
            for source, name in sources:
                stored = await files.upload(source)
                assert stored.size == len(PNG)
                form = host.forms[-1]
                assert form["file"][1:] == ("image/png", PNG)
                assert form["uploadPath"] == "kie4o"
                assert form.get("fileName") == name
                assert host.headers[-1]["Content-Length"]
                assert host.headers[-1]["Authorization"] == f"Bearer {KEY}"
        assert not opened.closed
        assert not wrapped.closed


async def test_names_and_folders() -> None:
    """The caller's name wins over the path's; the folder goes without slashes at its ends; bytes
    without a name never share one, should a host take the part's for it."""
    async with UploadHost() as host, files_for(host.url) as files:
        stored = await files.upload(PNG, name="cat.png", path="/my/cats/")
        assert (stored.name, stored.path) == ("cat.png", "kieai/10001/my/cats/cat.png")
        await files.upload(PNG)
        await files.upload(PNG)
        await files.upload(b"no image", name="notes.txt")
    assert host.forms[0]["uploadPath"] == "my/cats"
    assert host.forms[0]["file"][0] == "cat.png"
    assert host.forms[1]["file"][0] != host.forms[2]["file"][0]
    assert host.forms[3]["file"][1] == "application/octet-stream"


async def test_a_large_file_is_streamed(tmp_path: Path) -> None:
    """Tens of megabytes go out in pieces, not through one large buffer."""
    place = tmp_path / "large.png"
    body = PNG + os.urandom(8 * 2**20)
    place.write_bytes(body)
    async with UploadHost() as host, files_for(host.url) as files:
        assert (await files.upload(place)).size == len(body)
    assert host.forms[0]["file"][2] == body


@pytest.mark.parametrize("failures", [["cut", "cut"], [500, 455], ["cut", 429]])
@pytest.mark.parametrize("source", ["path", "file", "bytes", "pipe"])
async def test_a_failed_upload_is_sent_again(tmp_path: Path, failures: list[Any], source: str) -> None:
    """Uploads are free and overwrite: two more tries, each with the whole content."""
    body = picture(side=1500)
    place = tmp_path / "a.png"
    place.write_bytes(b"skip" + body if source == "file" else body)
    naps = Naps()
    async with UploadHost() as host, files_for(host.url, sleep=naps) as files:
        host.failures = list(failures)
        with place.open("rb") as opened:
            opened.seek(4)
            given: Any = {"path": place, "file": opened, "bytes": body, "pipe": OnePass(body)}[source]
            assert (await files.upload(given)).size == len(body)
    assert [form["file"][2] == body for form in host.forms] == [True] * len(host.forms)
    assert naps == [0.5, 1.0]


async def test_an_upload_that_fails_for_good() -> None:
    """After three tries the last error is raised; a refusal is not tried again."""
    async with UploadHost() as host, files_for(host.url) as files:
        host.failures = [500] * 9
        with pytest.raises(InternalServerError):
            await files.upload(PNG)
        assert len(host.forms) == 3
        host.failures = [401] * 9
        with pytest.raises(AuthenticationError):
            await files.upload(PNG)
        assert len(host.forms) == 4
        host.failures = ["cut"] * 9
        with pytest.raises(APIConnectionError) as caught:
            await files.upload(picture(side=1500))
        assert caught.value.__context__ is None
        assert KEY not in repr(caught.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("missing.png", "No such file"),
        ("", "directory"),
        (".", "directory"),
        ("a\0b", "null"),
        ("fifo", "not a regular file"),
        ("empty.png", "empty"),
        ("large.png", "at most 104857600"),
        ("https://example.com/a.png", "upload_from_url"),
        (b"", "empty"),
        (io.BytesIO(b""), "empty"),
        (OnePass(b""), "empty"),
        (io.StringIO("text"), "mode 'rb'"),
        (7, "use a path"),
        (None, "use a path"),
        (["a.png"], "use a path"),
    ],
)
async def test_what_cannot_be_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any, words: str
) -> None:
    """It is refused before any network use, and the sentence says what to do."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    Path("empty.png").touch()
    with Path("large.png").open("wb") as large:
        large.truncate(uploads.MAX_BYTES + 1)
    async with UploadHost() as host, files_for(host.url) as files:
        with pytest.raises(InvalidRequestError, match=words) as caught:
            await files.upload(source)
    assert caught.value.__context__ is None
    assert not host.forms


async def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Closed, write-only, text and endless ones are refused too."""
    place = tmp_path / "a.txt"
    place.write_text("text")
    closed = io.BytesIO(PNG)
    closed.close()

    class Endless(OnePass):
        def readinto(self, buffer: Any) -> int:
            return len(buffer)

    class BrokenBytes(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if size:
                raise OSError(errno.EIO, "Input/output error")
            return b""

    class Broken(OnePass):
        def readinto(self, buffer: Any) -> int:
            if len(buffer):
                raise OSError(errno.EIO, "Input/output error")
            return 0

    async with UploadHost() as host, files_for(host.url) as files:
        with place.open("ab") as write_only, place.open() as text:
            for source, words in [
                (closed, "closed file"),
                (write_only, "cannot be read"),
                (text, "mode 'rb'"),
                (Endless(b""), "at most"),
                (Broken(b""), "Input/output error"),
                (BrokenBytes(PNG), "Input/output error"),
            ]:
                with pytest.raises(InvalidRequestError, match=words) as caught:
                    await files.upload(source)  # type: ignore[arg-type]  # wrong on purpose
                assert caught.value.__context__ is None
    assert not host.forms


@pytest.mark.parametrize(
    "where",
    [
        {"name": "a/b"},
        {"name": ""},
        {"name": ".."},
        {"name": "a\r\nb"},
        {"name": "a\ud800"},
        {"name": 7},
        {"name": "x" * 256},
        {"path": ""},
        {"path": "/"},
        {"path": "a//b"},
        {"path": "../a"},
        {"path": "a\\b"},
        {"path": None},
    ],
)
async def test_odd_names_and_folders_are_refused(where: dict[str, Any]) -> None:
    """Before any network use, for both kinds of upload."""
    async with UploadHost() as host, files_for(host.url) as files:
        with pytest.raises(InvalidRequestError, match="is not possible"):
            await files.upload(PNG, **where)
        with pytest.raises(InvalidRequestError, match="is not possible"):
            await files.upload_from_url("https://example.com/a.png", **where)
    assert not host.forms


async def test_a_file_that_becomes_shorter() -> None:
    """It is an error of ours, not an endless wait for the rest."""

    class Shrinking(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(size) if self.tell() == 0 else b""

    naps = Naps()
    async with UploadHost() as host, files_for(host.url, sleep=naps) as files:
        with pytest.raises(APIConnectionError) as caught:
            await files.upload(Shrinking(bytes(10**6)))
    assert caught.value.__context__ is None
    assert len(naps) == 2
    assert not host.forms


@pytest.mark.parametrize("steps", [*range(12), 20, 40, 80])
async def test_a_cancelled_upload(tmp_path: Path, steps: int) -> None:
    """Cancelled anywhere, it ends, closes what it opened and leaves the caller's file open."""
    place = tmp_path / "a.png"
    place.write_bytes(picture(side=1200))
    async with UploadHost() as host, files_for(host.url) as files:
        with place.open("rb") as opened:
            tasks = [asyncio.ensure_future(files.upload(source)) for source in (place, opened)]
            for _ in range(steps):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(each, asyncio.CancelledError) or each.size for each in outcomes)
            assert not opened.closed


async def test_a_pipe_that_never_speaks() -> None:
    """A cancel does not wait for it: such a read may take for ever."""
    reading, writing = os.pipe()
    reached = threading.Event()

    class Watched(io.FileIO):
        def read(self, size: int | None = -1) -> bytes | None:
            if size:
                reached.set()
            return super().read(-1 if size is None else size)

    async with UploadHost() as host, files_for(host.url) as files:
        with Watched(reading) as pipe:
            task = asyncio.ensure_future(files.upload(pipe))
            while not reached.is_set():
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            os.close(writing)  # lets the thread end
            await asyncio.to_thread(lambda: None)
    assert not host.forms


async def test_a_pipe_that_does_not_block_is_refused() -> None:
    """What it has now may be half of it: half a picture would be stored without a word."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.write(writing, b"half of it")
    try:
        async with UploadHost() as host, files_for(host.url) as files:
            with io.FileIO(reading) as pipe:
                with pytest.raises(InvalidRequestError, match="does not block"):
                    await files.upload(pipe)
        assert not host.forms
    finally:
        os.close(writing)


async def test_upload_from_a_url() -> None:
    """Kie is told the URL, folder and name; failures are tried again as for other uploads."""
    async with UploadHost() as host, files_for(host.url) as files:
        host.failures = [500]
        stored = await files.upload_from_url("https://example.com/a.png?b=c", name="cat.png")
        await files.upload_from_url("http://example.com/ü", path="a/b/")
    assert stored.url.endswith("/kie4o/cat.png")
    assert host.forms[1] == {
        "fileUrl": "https://example.com/a.png?b=c",
        "uploadPath": "kie4o",
        "fileName": "cat.png",
    }
    assert host.forms[2] == {"fileUrl": "http://example.com/ü", "uploadPath": "a/b"}


@pytest.mark.parametrize(
    "url", ["", "a.png", "file:///etc/passwd", "https://", "https://a b/", None, 7, "ftp://a/b"]
)
async def test_only_urls_that_kie_can_fetch(url: Any) -> None:
    """Others are refused before any network use, by their own name."""
    async with UploadHost() as host, files_for(host.url) as files:
        with pytest.raises(InvalidRequestError, match=r"^url=") as caught:
            await files.upload_from_url(url)
    assert caught.value.__context__ is None
    assert not host.forms


# -- together ------------------------------------------------------------------------------------


async def test_against_the_emulator(tmp_path: Path) -> None:
    """What is uploaded comes back by download, and no key reaches a file."""
    emulator = pytest.importorskip("kie4o.emulator")
    async with emulator.Emulator() as kie, files_for(kie.url) as files:
        stored = await files.upload(PNG, name="a.png")
        copied = await files.upload_from_url(stored.url, name="b.png")
        paths = await files.download([stored.url, copied.url], tmp_path, task_id=TASK, renew=no_renewal)
        assert [path.read_bytes() for path in paths] == [PNG, PNG]
        assert kie.leaked_keys == []
        assert kie.user_agents == {USER_AGENT}
