"""Uploads, against an upload host on localhost that can fail."""

import asyncio
import errno
import io
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from aiohttp import BodyPartReader, web
from hosts import (
    KEY,
    PNG,
    Naps,
    files_for,
    picture,
)

from kie4o.errors import (
    APIConnectionError,
    AuthenticationError,
    InternalServerError,
    InvalidRequestError,
)
from kie4o.files import uploads


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
