"""One download: what is saved, what is refused, what is retried."""

import asyncio
import gzip
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hosts import (
    PNG,
    TASK,
    Host,
    RecordedSleep,
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
from proving import DEEP

from kie4o.errors import UnprocessableEntityError
from kie4o.files import downloads
from kie4o.files.disk import PREFIX


@pytest.mark.parametrize(
    ("kind", "suffix"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("GIF", "gif")]
)
@pytest.mark.parametrize("framing", [answer, open_ended, chunked])
async def test_an_image_is_saved(tmp_path: Path, kind: str, suffix: str, framing: Any) -> None:
    """The bytes are saved unchanged, named after task id and format; directories are created."""
    body = picture(kind, side=500)
    async with Host(framing(body)) as host, files_for(host.url) as files:
        paths = await files.download(
            [f"{host.url}/a.exe"], tmp_path / "new" / "folder", task_id=TASK, renew=no_renewal
        )
    assert paths == [tmp_path / "new" / "folder" / f"{TASK}_0.{suffix}"]
    assert paths[0].read_bytes() == body
    assert names(paths[0].parent) == {paths[0].name}


async def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    """A download replaces a file of the same name."""
    (tmp_path / "cat.png").write_bytes(b"older")
    async with Host(answer(PNG)) as host, files_for(host.url) as files:
        for _ in range(2):
            [path] = await files.download([host.url], tmp_path, task_id=TASK, name="cat", renew=no_renewal)
            assert path.read_bytes() == PNG


@pytest.mark.posix("symbolic links")
async def test_a_link_is_replaced(tmp_path: Path) -> None:
    """A download does not follow a symbolic link."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "cat.png").symlink_to(outside)
    async with Host(answer(PNG)) as host, files_for(host.url) as files:
        [path] = await files.download([host.url], folder, task_id=TASK, name="cat", renew=no_renewal)
    assert path.read_bytes() == PNG
    assert not path.is_symlink()
    assert outside.read_bytes() == b"mine"


@pytest.mark.parametrize(
    "name", ["../../../../tmp/x", "/etc/passwd", "..", "a/b", "a\\b", "a\0b", ".bashrc", "CON", "x" * 999]
)
@pytest.mark.parametrize("path", ["/..%2f..%2fetc%2fpasswd", "/%00", "/a.png/../../b", "/?file=../../x"])
async def test_no_name_leaves_the_directory(tmp_path: Path, name: str, path: str) -> None:
    """Whatever the given name or the path of the URL is, the file is in the directory."""
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
async def test_no_partial_image_is_ever_visible(tmp_path: Path, kind: str, framing: Any) -> None:
    """A download cut off at any percent, by default at every fifth, is tried three times, fails, and leaves
    no file. No visible file exists at any time."""
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
        for at in [*range(first, last, max(1, (last - first) // (100 if DEEP else 20))), last - 1]:
            host.replies = [lambda _, writer, at=at: cut_at(at, writer)]
            host.requests.clear()
            error = await fails(files, tmp_path, host.url)
            assert len(host.requests) >= 3, error
    assert not [name for name in seen if not name.startswith(PREFIX)]


def too_long(body: bytes) -> bytes:
    return answer(body).replace(b"Content-Length: %d" % len(body), b"Content-Length: %d" % (len(body) + 7))


def without_its_last_chunk(body: bytes) -> bytes:
    return chunked(body).removesuffix(b"0\r\n\r\n")


@pytest.mark.parametrize("framing", [too_long, without_its_last_chunk])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
async def test_a_whole_image_counts_in_broken_framing(tmp_path: Path, kind: str, framing: Any) -> None:
    """It has its own end. One that is cut off in the same framing does not count: the control."""
    body = picture(kind)
    async with Host(framing(body)) as host, files_for(host.url) as files:
        how: dict[str, Any] = {"task_id": TASK, "renew": no_renewal}
        [path] = await files.download([host.url], tmp_path, **how)
        [image] = await files.fetch([host.url], **how)
        assert path.read_bytes() == image.data == body
        assert len(host.requests) == 2
        path.unlink()
        host.replies = [framing(body[:-1])]
        await fails(files, tmp_path, host.url)


@pytest.mark.parametrize("status", ["500 Oops", "502 Bad Gateway", "503 Busy", "429 Slow down", "408 Late"])
async def test_temporary_failures_are_retried(tmp_path: Path, status: str) -> None:
    """A download is tried three times, with growing delays."""
    delays = RecordedSleep()
    cut = open_ended(PNG[:-20])
    async with (
        Host(answer(b"busy", status), cut, answer(PNG)) as host,
        files_for(host.url, sleep=delays) as files,
    ):
        [path] = await files.download([host.url], tmp_path, task_id=TASK, renew=no_renewal)
        assert path.read_bytes() == PNG
        path.unlink()
        host.replies = [answer(b"busy", status)]
        assert status[:3] in str(await fails(files, tmp_path, host.url))
    assert delays == [0.5, 1.0, 0.5, 1.0]
    assert len(host.requests) == 6


async def test_a_png_with_a_broken_middle_is_not_saved(tmp_path: Path) -> None:
    """Its first and last bytes are as they should be. It is tried again as one that is cut off, and a whole
    one is saved."""
    body = picture(side=500)
    middle = len(body) // 2
    flipped = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
    zeros = body[:middle] + bytes(5000) + body[middle + 5000 :]
    async with Host(answer(flipped), answer(zeros), answer(body)) as host, files_for(host.url) as files:
        [path] = await files.download([host.url], tmp_path, task_id=TASK, renew=no_renewal)
        assert path.read_bytes() == body
        path.unlink()
        host.replies = [answer(flipped)]
        assert "the png image is damaged: it does not match its checksums" in str(
            await fails(files, tmp_path, host.url)
        )
    assert len(host.requests) == 6


async def test_the_image_is_not_held_in_memory(tmp_path: Path) -> None:
    """A PNG of 40 MiB is checked with less than 4 MiB of memory."""

    async def reply(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(open_ended(PNG[:33]))
        data, total = b"caBX" + bytes(2**20), 0
        chunk = (2**20).to_bytes(4, "big") + data + zlib.crc32(data).to_bytes(4, "big")
        for _ in range(40):
            writer.write(chunk)
            await writer.drain()
            total += len(chunk)
        writer.write(PNG[33:])

    async with Host(reply) as host, files_for(host.url) as files:
        tracemalloc.start()
        try:
            [path] = await files.download([host.url], tmp_path, task_id=TASK, renew=no_renewal)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert path.stat().st_size > 40 * 2**20
    assert peak < 8 * 2**20  # of which the server has two


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<!DOCTYPE html><title>Just a moment...</title>", "Just a moment"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "not an image"),
        (b'{"code": 404, "msg": "gone"}', "not an image"),
        (b"MZ" + bytes(100), "not an image"),
    ],
)
async def test_other_content_is_not_saved(tmp_path: Path, body: bytes, words: str) -> None:
    """A page with status 200 and an image content type is refused at once, and the error shows its start."""
    async with (
        Host(answer(body, "200 OK", "Content-Type: image/png")) as host,
        files_for(host.url) as files,
    ):
        assert words in str(await fails(files, tmp_path, host.url))
    assert len(host.requests) == 1


async def test_the_size_is_capped(tmp_path: Path) -> None:
    """Both the announced length and the number of bytes received are limited."""
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


async def test_a_compression_bomb_is_capped(tmp_path: Path) -> None:
    """Bytes are counted after decompression, if a host compresses although it was asked not to."""
    bomb = gzip.compress(PNG + bytes(8 * 2**20))
    async with (
        Host(answer(bomb, "200 OK", "Content-Encoding: gzip")) as host,
        files_for(host.url, max_image_bytes=2**20) as files,
    ):
        assert "more than 1048576 bytes" in str(await fails(files, tmp_path, host.url))
    assert host.requests[0].headers["accept-encoding"] == "identity"


async def test_a_host_that_stops_sending(tmp_path: Path) -> None:
    """`timeout` limits each wait for bytes."""

    async def silent(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(PNG)[:-10])
        await asyncio.Event().wait()

    async with Host(silent) as host, files_for(host.url, timeout=0.1) as files:
        assert "timed out" in str(await fails(files, tmp_path, host.url))
    assert len(host.requests) == 3


async def test_a_refused_connection(tmp_path: Path) -> None:
    """A refused connection is a `DownloadError` with the system's reason."""
    async with Host(b"") as host:
        url = host.url
    async with files_for(url) as files:
        assert "cannot connect" in str(await fails(files, tmp_path, url))


def test_the_invalid_url_of_a_proxy() -> None:
    """It is not tried again."""
    failure = downloads._failure_of(aiohttp.InvalidURL("proxy:1"))
    assert (failure.temporary, str(failure)) == (False, "the URL is invalid")


async def test_a_response_that_is_not_http(tmp_path: Path) -> None:
    """Bytes that are not HTTP are a failed connection."""
    async with Host(b"\x00\xff" * 500) as host, files_for(host.url) as files:
        assert "could not download" in str(await fails(files, tmp_path, host.url))


async def test_the_error_says_what_to_do(tmp_path: Path) -> None:
    """It names the URL without its query, the reason, the paid task and the call that tries again."""
    async with Host(answer(b"", "404 Gone")) as host, files_for(host.url) as files:

        async def renew(url: str) -> str:
            return f"{host.url}/new.png?secret"

        error = await fails(files, tmp_path, f"{host.url}/old.png?secret", renew=renew)
    assert str(error) == (
        f"could not download {host.url}/new.png: the host answered HTTP 404. "
        f"Task {TASK} is paid: call client.download('{TASK}', ...) to try again, at no cost"
    )


@pytest.mark.parametrize("status", ["401 No", "403 Forbidden", "404 Gone", "410 Gone"])
async def test_an_expired_link_is_renewed_once(tmp_path: Path, status: str) -> None:
    """A new link is requested for the URL of the image; if that expires too, there is no third one."""
    asked: list[str] = []

    async def renew(url: str) -> str:
        asked.append(url)
        return f"{host.url}/fresh?X-Amz-Signature=a%2Bb%2F%7E"

    async with Host(answer(b"", status), answer(PNG)) as host, files_for(host.url) as files:
        [path] = await files.download([f"{host.url}/old"], tmp_path, task_id=TASK, renew=renew)
        assert path.read_bytes() == PNG
        path.unlink()
        assert asked == [f"{host.url}/old"]
        assert host.requests[1].target == "/fresh?X-Amz-Signature=a%2Bb%2F%7E"  # quoted as it was signed
        host.replies = [answer(b"", status)]
        error = await fails(files, tmp_path, f"{host.url}/old", renew=renew)
        assert status[:3] in str(error)
        assert "Signature" not in str(error)
    assert len(asked) == 2
    assert len(host.requests) == 4


async def test_a_link_that_cannot_be_renewed(tmp_path: Path) -> None:
    """The error has the message from Kie."""

    async def renew(url: str) -> str:
        raise UnprocessableEntityError("only records within 14 days", code=422)

    async with Host(answer(b"", "403 Forbidden")) as host, files_for(host.url) as files:
        assert "14 days" in str(await fails(files, tmp_path, host.url, renew=renew))
