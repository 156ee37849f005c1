"""What is uploaded: a path, bytes or an open file, checked and made readable again and again.

Whatever the source is, it becomes a `Source`: a size, the first bytes, and reads by position. So
an upload can be sent again without a seek that a read of the attempt before could overtake, and a
caller's file is never closed by us. `Part` is how aiohttp streams it.
"""

from __future__ import annotations

import asyncio
import io
import os
import secrets
import stat
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import aiohttp
import attrs
from aiohttp.abc import AbstractStreamWriter

from ..errors import InvalidRequestError
from . import images
from .disk import in_thread

Given = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]

MAX_BYTES = 100 * 1024 * 1024  # advised for the upload from a URL; the stream states no limit
_PIECE = 256 * 1024  # bytes per read
_IN_MEMORY = 8 * 1024 * 1024  # bytes of an unseekable source that are kept there


class Source:
    """One thing to upload; `await open()` before use, `close()` (in a thread) after it."""

    def __init__(self, given: Given) -> None:
        self.size = 0
        self.head = b""
        self.name: str | None = None
        self._given = given
        self._file: Any = None
        self._owned: list[IO[bytes]] = []
        self._start = 0
        self._lock = threading.Lock()

    async def open(self) -> None:
        """Raises `InvalidRequestError` for all that could only fail later."""
        if not await in_thread(self._open):
            await self._copy()
        if not self.size:
            raise _refused(self._given, "it is empty: there is nothing to upload")
        if self.size > MAX_BYTES:
            raise _refused(self._given, f"it has {self.size} bytes: use a file of at most {MAX_BYTES}")
        words = ""
        try:
            self.head = await in_thread(self.read, 0, images.HEAD)
        except (OSError, ValueError) as error:
            words = getattr(error, "strerror", None) or str(error)
        if words:
            raise _refused(self._given, f"it cannot be read: {words}")

    def read(self, at: int, count: int) -> bytes:
        """Bytes at a position, in one step: reads of an attempt given up may still be under way."""
        with self._lock:
            self._file.seek(self._start + at)
            data: bytes = self._file.read(min(count, self.size - at))
        if not data and count:
            raise OSError("the file became shorter while it was sent")
        return data

    def close(self) -> None:
        """Closes what was opened here, not what the caller opened."""
        with self._lock:
            for file in self._owned:
                with suppress(OSError):
                    file.close()

    def _open(self) -> bool:
        """Find out what it is and how long; False if it can only be read once."""
        given = self._given
        if isinstance(given, (str, os.PathLike)):
            self._file = _opened(given)
            self._owned.append(self._file)
            self.name = _usable_name(given)
        elif isinstance(given, (bytes, bytearray, memoryview)):
            self._file = io.BytesIO(bytes(given))
        else:
            _check_file(given)
            self._file = given
            self.name = _usable_name(getattr(given, "name", None))
        try:
            self._start = self._file.tell()
            self._file.seek(0, os.SEEK_END)
            self.size = self._file.tell() - self._start
            return True
        except (OSError, ValueError, AttributeError):
            return False

    async def _copy(self) -> None:
        """Keep what comes through a pipe or a socket. Its reads are not waited for when cancelled:
        they may take for ever."""
        copy = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115  # closed in close()
        self._owned.append(copy)
        piece, words = b" ", ""
        try:
            while piece and self.size <= MAX_BYTES:
                piece = await _abandonable(self._file.read, _PIECE)
                if piece is None:  # a file that does not block has nothing now, and perhaps more later
                    raise ValueError("it does not block: read it, and give the bytes")
                await in_thread(copy.write, piece)
                self.size += len(piece)
        except (OSError, ValueError) as error:
            words = getattr(error, "strerror", None) or str(error)
        if words:
            raise _refused(self._given, f"it cannot be read: {words}")
        self._file = copy


class Part(aiohttp.Payload):
    """The file of a multipart body, read as it is sent, in threads."""

    def __init__(self, source: Source, *, name: str | None) -> None:
        ending = images.ending_of(source.head)
        # A host that took this name for want of another must not overwrite somebody's file.
        name = name or f"{secrets.token_hex(16)}.{ending or 'bin'}"
        content_type = images.CONTENT_TYPE_OF[ending] if ending else "application/octet-stream"
        super().__init__(source, content_type=content_type, filename=name)

    @property
    def size(self) -> int:
        return int(self._value.size)

    async def write(self, writer: AbstractStreamWriter) -> None:
        at = 0
        while at < self.size:
            piece = await in_thread(self._value.read, at, _PIECE)
            await writer.write(piece)
            at += len(piece)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError("an image is not text")


@attrs.frozen
class Target:
    """Where an upload is to be stored: folder and name, checked when made."""

    path: str = attrs.field()
    name: str | None = attrs.field(default=None)

    def __attrs_post_init__(self) -> None:
        if self.name is not None and (not _is_plain(self.name) or "/" in self.name):
            raise _wrong("name", self.name, "use a file name without slashes or control characters")
        folders = self.path.split("/") if isinstance(self.path, str) else [""]
        if not all(map(_is_plain, folders)):
            raise _wrong("path", self.path, "use folders like 'kie4o' or 'kie4o/today'")

    def fields(self, name: str | None = None) -> dict[str, str]:
        """As Kie names them. `name` is what the source is called, should the caller not say."""
        fields = {"uploadPath": self.path}
        if self.name or name:
            fields["fileName"] = self.name or name or ""
        return fields


def target(path: str, name: str | None) -> Target:
    """Kie wants the folder without a slash at either end."""
    return Target(path.strip("/") if isinstance(path, str) else path, name)


def form(source: Source, target: Target) -> aiohttp.FormData:
    """A body for one attempt; the fields come first, so that a server can stream the file."""
    fields = target.fields(source.name)
    part = Part(source, name=fields.get("fileName"))
    body = aiohttp.FormData(default_to_multipart=True)
    for name, value in fields.items():
        body.add_field(name, value)
    body.add_field("file", part, filename=part.filename)
    return body


# -- checks ------------------------------------------------------------------------------------


def _opened(path: str | os.PathLike[str]) -> IO[bytes]:
    text = str(path)
    if text.startswith(("http://", "https://")):
        raise _refused(path, "it is a URL: use upload_from_url")
    try:
        place = Path(os.fsdecode(path))
        kind = place.stat().st_mode
        if stat.S_ISREG(kind):  # opening a pipe would block until somebody writes
            return place.open("rb")
        words = "it is a directory" if stat.S_ISDIR(kind) else "it is not a regular file"
    except (OSError, ValueError, TypeError) as error:
        words = getattr(error, "strerror", None) or str(error)
    raise _refused(path, f"{words}; use the path of an existing file, bytes or an open binary file")


def _check_file(given: object) -> None:
    try:
        binary = isinstance(given.read(0), bytes)  # type: ignore[attr-defined]  # asked for here
        words = "" if binary else "it is opened as text: open it with mode 'rb'"
    except AttributeError:
        words = "use a path, bytes or an open binary file"
    except (OSError, ValueError, TypeError) as error:
        words = f"it cannot be read: {getattr(error, 'strerror', None) or error}"
    if words:
        raise _refused(given, words)


def _usable_name(path: object) -> str | None:
    """The last part of a path if it can be sent; Kie makes up a name otherwise."""
    if not isinstance(path, (str, os.PathLike)):
        return None  # an open file may be called by its number
    name = Path(os.fsdecode(path)).name
    return name if _is_plain(name) else None


def _is_plain(text: object) -> bool:
    """One component of a path that any server can store."""
    if not isinstance(text, str) or not text.strip() or text in (".", "..") or len(text) > 255:
        return False
    return text.isprintable() and "\\" not in text  # half pairs are not printable


def _refused(given: object, words: str) -> InvalidRequestError:
    shown = repr(given) if isinstance(given, (str, os.PathLike)) else f"<{type(given).__name__}>"
    return InvalidRequestError(f"source={shown[:200]} cannot be uploaded: {words}")


def _wrong(name: str, value: object, allowed: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name}={value!r} is not possible: {allowed}")


async def _abandonable(function: Any, *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)
