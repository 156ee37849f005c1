"""What is uploaded: a path, bytes or an open file, checked and made readable from any position.

Every source becomes a `Content` with a size, its first bytes, and reads by position. An upload can
therefore be sent again while a read of the previous attempt is still running, and a file that the
caller opened is never closed here. `Part` is the form in which aiohttp streams it.
"""

from __future__ import annotations

import inspect
import io
import os
import secrets
import stat
import tempfile
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

import aiohttp
import attrs
from aiohttp.abc import AbstractStreamWriter

from ..errors import InvalidRequestError, invalid, reason_of
from ..plain import expanded, plain
from ..transport.connections import no_file_left, when_free
from . import images
from .disk import NoThreadError, in_thread, start_in_thread


class AsyncFile(Protocol):
    """A binary file whose `read` is awaited: of aiofiles or anyio, or a stream of aiohttp."""

    def read(self, size: int, /) -> Awaitable[bytes]:
        """Up to `size` bytes; none at the end."""
        ...


class HasFile(Protocol):
    """What a web framework makes of an uploaded file: the file itself is its `file`."""

    @property
    def file(self) -> IO[bytes]:
        """The file, open in binary mode."""
        ...


UploadSource: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | AsyncFile | HasFile
)

MAX_BYTES = 100 * 1024 * 1024  # advised for uploads from a URL (file upload page); none is stated for streams
_CHUNK_BYTES = 256 * 1024  # per read
_MAX_IN_MEMORY = 8 * 1024 * 1024  # bytes of a source without seek; the rest goes to a temporary file
_TEXT_MODE = "it is open in text mode; open it with mode 'rb'"
_EXPECTED = "pass the path of an existing file, bytes or an open binary file"


class Content:
    """The bytes of one source. Use `await open()` first, and `close()` in a thread at the end."""

    def __init__(self, source: UploadSource) -> None:
        self.size: int = 0
        self.head: bytes = b""
        self.name: str | None = None
        self.failure: str = ""  # why the last attempt could not be read in a thread
        self._source: Any = plain(source)
        self._file: Any = None
        self._opened: list[IO[bytes]] = []  # to be closed here
        self._start = 0
        self._lock = threading.Lock()

    async def open(self) -> None:
        """Open and check the source. Raises `InvalidRequestError`."""
        reason = ""
        try:
            if _is_async(self._source):
                self.name = _name_of(self._source)
                await _read_from(self._source, self._source.read, 0)  # text is seen before it is decoded
                await self._copy(self._source.read)
            elif not await when_free(lambda: in_thread(self._open)):
                await self._copy(partial(start_in_thread, self._file.read))
            if self.size:
                self.head = await in_thread(self.read, 0, images.HEAD)
        except InvalidRequestError:
            raise
        except (OSError, ValueError) as error:
            reason = reason_of(error)
        if reason:
            raise cannot_read(self._source, reason)
        if not self.size:
            raise _cannot_upload(self._source, "it is empty")
        if self.size > MAX_BYTES:
            raise _cannot_upload(self._source, f"it has more than {MAX_BYTES} bytes; pass a smaller file")

    def read(self, position: int, count: int) -> bytes:
        """Up to `count` bytes at `position`. A lock keeps seek and read together, since a read of a
        cancelled attempt may still be running."""
        with self._lock:
            self._file.seek(self._start + position)
            data: bytes = self._file.read(min(count, self.size - position))
        if not data and count:
            raise OSError("the file became shorter during the upload")
        return data

    def close(self) -> None:
        """Close what was opened here, but not a file of the caller."""
        with self._lock:
            for file in self._opened:
                with suppress(OSError):
                    file.close()

    def _open(self) -> bool:
        """Open and measure the source; False if it cannot seek and can be read only once."""
        source = self._source
        if isinstance(source, (str, os.PathLike)):
            self._file = _open_path(source)
            self._opened.append(self._file)
            self.name = _usable_name(source)
        elif isinstance(source, (bytes, bytearray, memoryview)):
            self._file = io.BytesIO(bytes(source))
        else:
            file = _file_of(source)
            _check_file(file)
            self._file = file
            self.name = _name_of(source)
        try:
            self._start = self._file.tell()
            self._file.seek(0, os.SEEK_END)
            self.size = self._file.tell() - self._start
            return True
        except (OSError, ValueError, AttributeError):
            return False

    async def _copy(self, read: Callable[[int], Awaitable[Any]]) -> None:
        """Copy what can be read only once, or only by awaiting, to a temporary file. A cancel does not wait
        for the reads of a thread, which may block forever."""
        copy = tempfile.SpooledTemporaryFile()  # noqa: SIM115  # closed in close()
        self._opened.append(copy)
        chunk: Any = b" "
        while chunk and self.size <= MAX_BYTES:
            chunk = await _read_from(self._source, read, _CHUNK_BYTES)
            if self.size <= _MAX_IN_MEMORY < self.size + len(chunk):
                await when_free(lambda: in_thread(copy.rollover))
            await in_thread(copy.write, chunk)
            self.size += len(chunk)
        self._file = copy


async def _read_from(source: object, read: Callable[[int], Awaitable[Any]], count: int) -> bytes:
    """The next bytes of a source. Whatever goes wrong in a file of the caller is an `InvalidRequestError`."""
    try:
        chunk = await read(count)
        reason = ""
    except Exception as error:  # an asynchronous file may raise anything
        chunk, reason = None, reason_of(error)
    if reason:
        raise cannot_read(source, reason)
    if isinstance(chunk, (bytes, bytearray, memoryview)):
        return bytes(chunk)
    if chunk is None:  # nothing is available now, but more may follow
        raise cannot_read(source, "it is non-blocking; read it and pass the bytes")
    raise _cannot_upload(source, _TEXT_MODE if isinstance(chunk, str) else _EXPECTED)


class Part(aiohttp.Payload):
    """The file in a multipart body. It is read in threads while it is sent."""

    def __init__(self, content: Content, *, name: str | None) -> None:
        suffix = images.suffix_of(content.head)
        # A host that falls back to this name must not overwrite another file.
        name = name or f"{secrets.token_hex(16)}.{suffix or 'bin'}"
        content_type = images.CONTENT_TYPE_OF[suffix] if suffix else "application/octet-stream"
        super().__init__(content, content_type=content_type, filename=name)
        content.failure = ""

    @property
    def size(self) -> int:
        return int(self._value.size)

    async def write(self, writer: AbstractStreamWriter) -> None:
        position = 0
        while position < self.size:
            try:
                chunk = await in_thread(self._value.read, position, _CHUNK_BYTES)
            except NoThreadError as error:  # of which aiohttp says only that it could not write
                self._value.failure = reason_of(error)
                raise
            await writer.write(chunk)
            position += len(chunk)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError("the content of a file is binary and has no text")


def _without_slashes(path: str) -> str:
    return path.strip("/") if isinstance(path, str) else path


@attrs.frozen
class Target:
    """Directory and name of an upload at Kie. Raises `InvalidRequestError`.

    Kie takes the directory without a slash at either end (file upload page).
    """

    path: str = attrs.field(converter=_without_slashes)
    name: str | None = None

    def __attrs_post_init__(self) -> None:
        if self.name is not None and (not _is_plain(self.name) or "/" in self.name):
            raise invalid("name", self.name, "a file name without slashes or control characters")
        directories = self.path.split("/") if isinstance(self.path, str) else [""]
        if not all(map(_is_plain, directories)):
            raise invalid("path", self.path, "directories such as 'kie4o' or 'kie4o/today'")

    def fields(self, default_name: str | None = None) -> dict[str, str]:
        """The form fields of Kie's file upload page. The caller's name wins over `default_name`."""
        fields = {"uploadPath": self.path}
        if name := self.name or default_name:
            fields["fileName"] = name
        return fields


def form_of(content: Content, target: Target) -> aiohttp.FormData:
    """The body of one attempt. The file is last, so that a server knows the fields when it arrives."""
    fields = target.fields(content.name)
    part = Part(content, name=fields.get("fileName"))
    form = aiohttp.FormData(default_to_multipart=True)
    for name, value in fields.items():
        form.add_field(name, value)
    form.add_field("file", part, filename=part.filename)
    return form


# -- checks ------------------------------------------------------------------------------------


def _open_path(path: str | os.PathLike[str]) -> IO[bytes]:
    if str(path).startswith(("http://", "https://")):
        raise _cannot_upload(path, "it is a URL; use upload_from_url")
    try:
        file = Path(expanded(os.fsdecode(path)))
        mode = file.stat().st_mode
        if stat.S_ISREG(mode):  # opening a named pipe would block until another process writes to it
            return file.open("rb")
        reason = "it is a directory" if stat.S_ISDIR(mode) else "it is not a regular file"
    except (OSError, ValueError, TypeError) as error:
        if no_file_left(error):
            raise
        reason = reason_of(error)
    raise _cannot_upload(path, f"{reason}; {_EXPECTED}")


def _is_async(source: object) -> bool:
    """Whether it is an `AsyncFile`, with no file beside it that can be read in a thread."""
    return _file_of(source) is source and inspect.iscoroutinefunction(getattr(source, "read", None))


def _file_of(source: Any) -> Any:
    """The file in a `HasFile`. FastAPI's, Starlette's and aiohttp's have one; reading it needs no copy."""
    read = getattr(source, "read", None)
    if callable(read) and not inspect.iscoroutinefunction(read):
        return source
    file: Any = getattr(source, "file", None)
    readable = callable(getattr(file, "read", None))
    return file if readable and not inspect.iscoroutinefunction(file.read) else source


def _name_of(source: object) -> str | None:
    """The name that an uploaded or an open file has; the `name` of aiohttp's is that of the form field."""
    return _usable_name(getattr(source, "filename", None) or getattr(_file_of(source), "name", None))


def _check_file(file: object) -> None:
    """Refuse anything but an open binary file."""
    try:
        is_binary = isinstance(file.read(0), bytes)  # type: ignore[attr-defined]  # it is caught below
    except AttributeError:
        failure = _cannot_upload(file, _EXPECTED)
    except (OSError, ValueError, TypeError) as error:
        failure = cannot_read(file, reason_of(error))
    else:
        if is_binary:
            return
        failure = _cannot_upload(file, _TEXT_MODE)
    raise failure


def _usable_name(path: object) -> str | None:
    """The file name in a path; None if it cannot be sent, so that Kie chooses one."""
    if not isinstance(path, (str, os.PathLike)):
        return None  # the name of an open file may be its descriptor, a number
    name = Path(os.fsdecode(path)).name
    return name if _is_plain(name) else None


def _is_plain(text: object) -> bool:
    """Whether the text is one path component that any server can store."""
    if not isinstance(text, str) or not text.strip() or text in (".", "..") or len(text) > 255:
        return False
    return text.isprintable() and "\\" not in text  # lone surrogates are not printable


def _cannot_upload(source: object, reason: str) -> InvalidRequestError:
    shown = repr(source) if isinstance(source, (str, os.PathLike)) else f"<{type(source).__name__}>"
    return InvalidRequestError(f"cannot upload source={shown[:200]}: {reason}")


def cannot_read(source: object, reason: str) -> InvalidRequestError:
    return _cannot_upload(source, f"it cannot be read: {reason}")
