"""Uploads to a host on localhost that fails on request."""

import asyncio
import errno
import io
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import BodyPartReader, web
from fastapi import UploadFile
from hosts import KEY, PNG, RecordedSleep, files_for, picture

from kie4o.errors import (
    APIConnectionError,
    AuthenticationError,
    InternalServerError,
    InvalidRequestError,
)
from kie4o.files import uploads


class UploadHost:
    """An upload host that answers like Kie's recorded one, after the given failures."""

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
        async for part in await request.multipart():  # post() leaves files open if the client disconnects
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
    """A pipe, whose bytes can be read only once."""

    def __init__(self, body: bytes) -> None:
        self._body = io.BytesIO(body)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._body.readinto(buffer)


async def test_every_kind_of_source(tmp_path: Path) -> None:
    """Paths, bytes of any type, open files, wrapped files and pipes are sent unchanged, with a length,
    a content type by their bytes, and a name if there is one."""
    path = tmp_path / "kätzchen 1.png"
    path.write_bytes(PNG)
    with (
        path.open("rb") as opened,
        tempfile.NamedTemporaryFile(suffix=".png") as wrapped,
        tempfile.SpooledTemporaryFile() as spooled,
    ):
        wrapped.write(PNG)
        wrapped.seek(0)
        spooled.write(b"skipped" + PNG)
        spooled.seek(7)
        sources: list[tuple[Any, str | None]] = [
            (str(path), path.name),
            (path, path.name),
            (PNG, None),
            (bytearray(PNG), None),
            (memoryview(PNG), None),
            (memoryview(bytes(b for byte in PNG for b in (byte, 0)))[::2], None),
            (opened, path.name),
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


class AsyncSource:
    """A handle as aiofiles has it, without one that can be read in a thread; `error` is raised at the end."""

    def __init__(self, body: Any, *, name: str = "", error: Exception | None = None) -> None:
        self._body = (io.StringIO if isinstance(body, str) else io.BytesIO)(body)
        self.name = name
        self.closed = False
        self.held = asyncio.Event()
        self._error = error

    async def read(self, size: int = -1) -> Any:
        await asyncio.sleep(0)
        chunk = self._body.read(size)
        if size and not chunk and self._error is not None:
            raise self._error
        return chunk

    async def close(self) -> None:
        self.closed = True


async def test_asynchronous_files(tmp_path: Path) -> None:
    """Handles of anyio and aiofiles, aiohttp's streams, and what FastAPI and aiohttp make of an upload: sent
    whole from their position, with a length and their names, and left open."""
    path = tmp_path / "cat.png"
    path.write_bytes(b"skip" + PNG)
    stream = asyncio.StreamReader()
    stream.feed_data(PNG)
    stream.feed_eof()
    form = UploadFile(io.BytesIO(PNG), filename="photo.png")
    field = web.FileField("field", "photo.png", io.BufferedReader(OnePass(PNG)), "image/png", None)  # type: ignore[arg-type]  # of a request
    async with UploadHost() as host, files_for(host.url) as files:
        async with await anyio.open_file(path, "rb") as handle:
            await handle.seek(4)
            large = AsyncSource(PNG + bytes(9 * 2**20), name=str(path))
            sources: list[tuple[Any, str | None, int]] = [
                (handle, "cat.png", len(PNG)),
                (large, "cat.png", len(PNG) + 9 * 2**20),
                (AsyncSource(PNG), None, len(PNG)),
                (stream, None, len(PNG)),
                (form, "photo.png", len(PNG)),
                (field, "photo.png", len(PNG)),
            ]
            host.failures = [500]  # what was read is sent again
            for source, name, size in sources:
                assert (await files.upload(source)).size == size
                assert host.forms[-1]["file"][2][: len(PNG)] == PNG
                assert host.forms[-1].get("fileName") == name
                assert host.headers[-1]["Content-Length"]
            assert await handle.tell() == path.stat().st_size
        assert not large.closed
        assert not form.file.closed


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (AsyncSource("text"), "mode 'rb'"),
        (AsyncSource(b""), "it is empty"),
        (AsyncSource(PNG, error=RuntimeError("the loop is another")), "cannot be read: the loop is another"),
        (AsyncSource(PNG, error=OSError(errno.EIO, "Input/output error")), "Input/output error"),
        (AsyncSource(bytes(uploads.MAX_BYTES + 1)), "more than 104857600 bytes"),
        (UploadFile(io.BytesIO(b"")), "it is empty"),
        (UploadFile(io.StringIO("text")), "mode 'rb'"),  # type: ignore[arg-type]  # wrong on purpose
    ],
    ids=["text", "empty", "error", "disk", "large", "empty form", "text form"],
)
async def test_an_asynchronous_file_that_cannot_be_read(source: Any, words: str) -> None:
    """Refused before any network use, whatever its `read` raises."""
    async with UploadHost() as host, files_for(host.url) as files:
        with pytest.raises(InvalidRequestError, match=words) as caught:
            await files.upload(source)
    assert caught.value.__context__ is None
    assert not host.forms


async def test_a_text_file_opened_asynchronously_is_refused(tmp_path: Path) -> None:
    """Before its bytes are decoded, which fails for an image."""
    (path := tmp_path / "a.png").write_bytes(b"\xff" + PNG)
    async with UploadHost() as host, files_for(host.url) as files, await anyio.open_file(path) as handle:
        with pytest.raises(InvalidRequestError, match="mode 'rb'"):
            await files.upload(handle)
    assert not host.forms


async def test_a_cancelled_read_of_an_asynchronous_file() -> None:
    """A cancel interrupts the read, closes the copy and leaves the caller's file open."""

    class Silent(AsyncSource):
        async def read(self, size: int = -1) -> bytes:
            if size:
                self.held.set()
                await asyncio.Event().wait()
            return b""

    async with UploadHost() as host, files_for(host.url) as files:
        source: Any = Silent(PNG)
        task = asyncio.create_task(files.upload(source))
        await source.held.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not source.closed
    assert not host.forms


async def test_names_and_directories() -> None:
    """The given name wins over the name of the file, and the directory is sent without slashes at its
    ends. Bytes without a name get different part names, in case a host uses those."""
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
    """A file of 8 MiB, sent in chunks, arrives unchanged."""
    path = tmp_path / "large.png"
    body = PNG + os.urandom(8 * 2**20)
    path.write_bytes(body)
    async with UploadHost() as host, files_for(host.url) as files:
        assert (await files.upload(path)).size == len(body)
    assert host.forms[0]["file"][2] == body


@pytest.mark.parametrize("failures", [["cut", "cut"], [500, 455], ["cut", 429]])
@pytest.mark.parametrize("source", ["path", "file", "bytes", "pipe"])
async def test_a_failed_upload_is_retried(tmp_path: Path, failures: list[Any], source: str) -> None:
    """An upload is tried three times, each time with the whole content."""
    body = picture(side=1500)
    path = tmp_path / "a.png"
    path.write_bytes(b"skip" + body if source == "file" else body)
    delays = RecordedSleep()
    async with UploadHost() as host, files_for(host.url, sleep=delays) as files:
        host.failures = list(failures)
        with path.open("rb") as opened:
            opened.seek(4)
            given: Any = {"path": path, "file": opened, "bytes": body, "pipe": OnePass(body)}[source]
            assert (await files.upload(given)).size == len(body)
    assert [form["file"][2] == body for form in host.forms] == [True] * len(host.forms)
    assert delays == [0.5, 1.0]


async def test_an_upload_that_keeps_failing() -> None:
    """The third error is raised; a refusal is not retried."""
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
        ("missing.png", "pass the path of an existing file"),
        ("", "directory"),
        (".", "directory"),
        ("a\0b", "null"),
        pytest.param("fifo", "not a regular file", marks=pytest.mark.posix("mkfifo")),
        ("empty.png", "empty"),
        ("large.png", "more than 104857600 bytes"),
        ("https://example.com/a.png", "upload_from_url"),
        (b"", "empty"),
        (io.BytesIO(b""), "empty"),
        (OnePass(b""), "empty"),
        (io.StringIO("text"), "mode 'rb'"),
        (7, "pass the path"),
        (None, "pass the path"),
        (["a.png"], "pass the path"),
    ],
)
async def test_invalid_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any, words: str
) -> None:
    """An invalid source is refused before any network use, and the message says what to do."""
    monkeypatch.chdir(tmp_path)
    if source == "fifo":
        os.mkfifo("fifo")
    Path("empty.png").touch()
    if source == "large.png":
        with Path(source).open("wb") as large:
            large.truncate(uploads.MAX_BYTES + 1)
    async with UploadHost() as host, files_for(host.url) as files:
        with pytest.raises(InvalidRequestError, match=words) as caught:
            await files.upload(source)
    assert caught.value.__context__ is None
    assert not host.forms


async def test_unreadable_files(tmp_path: Path) -> None:
    """Closed, write-only, text, endless and broken files are refused."""
    path = tmp_path / "a.txt"
    path.write_text("text")
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
        with path.open("ab") as write_only, path.open() as text:
            for source, words in [
                (closed, "closed file"),
                (write_only, "cannot be read"),
                (text, "mode 'rb'"),
                (Endless(b""), "more than 104857600 bytes"),
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
async def test_invalid_names_and_directories(where: dict[str, Any]) -> None:
    """They are refused before any network use, by both kinds of upload."""
    async with UploadHost() as host, files_for(host.url) as files:
        with pytest.raises(InvalidRequestError, match=rf"^invalid {next(iter(where))}=.*: expected"):
            await files.upload(PNG, **where)
        with pytest.raises(InvalidRequestError, match=rf"^invalid {next(iter(where))}=.*: expected"):
            await files.upload_from_url("https://example.com/a.png", **where)
    assert not host.forms


async def test_a_file_that_becomes_shorter() -> None:
    """It is an `APIConnectionError`, not an endless wait for the missing bytes."""

    class Shrinking(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(size) if self.tell() == 0 else b""

    delays = RecordedSleep()
    async with UploadHost() as host, files_for(host.url, sleep=delays) as files:
        with pytest.raises(APIConnectionError) as caught:
            await files.upload(Shrinking(bytes(10**6)))
    assert caught.value.__context__ is None
    assert len(delays) == 2
    assert not host.forms


@pytest.mark.parametrize("steps", [*range(12), 20, 40, 80])
async def test_a_cancelled_upload(tmp_path: Path, steps: int) -> None:
    """An upload that is cancelled anywhere ends, closes what it opened and leaves the caller's file open."""
    path = tmp_path / "a.png"
    path.write_bytes(picture(side=1200))
    async with UploadHost() as host, files_for(host.url) as files:
        with path.open("rb") as opened:
            tasks = [asyncio.ensure_future(files.upload(source)) for source in (path, opened)]
            for _ in range(steps):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(each, asyncio.CancelledError) or each.size for each in outcomes)
            assert not opened.closed


async def test_a_silent_pipe() -> None:
    """A cancel does not wait for the read, which may block forever."""
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


@pytest.mark.posix("pipes that do not block")
async def test_a_non_blocking_pipe_is_refused() -> None:
    """It may have only a part of the file now; uploading that part would store a truncated image."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.write(writing, b"half of it")
    try:
        async with UploadHost() as host, files_for(host.url) as files:
            with io.FileIO(reading) as pipe:
                with pytest.raises(InvalidRequestError, match="non-blocking"):
                    await files.upload(pipe)
        assert not host.forms
    finally:
        os.close(writing)


async def test_upload_from_a_url() -> None:
    """Kie receives URL, directory and name; failures are retried as for other uploads."""
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
async def test_invalid_urls(url: Any) -> None:
    """URLs that Kie cannot fetch are refused before any network use."""
    async with UploadHost() as host, files_for(host.url) as files:
        with pytest.raises(InvalidRequestError, match=r"^invalid url=") as caught:
            await files.upload_from_url(url)
    assert caught.value.__context__ is None
    assert not host.forms
