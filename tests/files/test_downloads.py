"""One download: what is saved, what is refused, what is tried again."""

import asyncio
import gzip
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hosts import (
    PNG,
    TASK,
    Host,
    Naps,
    Request,
    answer,
    chunked,
    fails,
    files_for,
    names,
    no_renewal,
    open_ended,
    picture,
)

from kie4o.errors import (
    UnprocessableEntityError,
)
from kie4o.files import downloads
from kie4o.files.disk import PREFIX


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


async def test_garbage_for_http(tmp_path: Path) -> None:
    """Bytes that are not HTTP at all are a broken connection."""
    async with Host(b"\x00\xff" * 500) as host, files_for(host.url) as files:
        assert "could not be fetched" in str(await fails(files, tmp_path, host.url))


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
