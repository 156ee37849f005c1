"""What the bytes of an image say about its format, and which file name is safe for it. Pure.

Content types, URLs and the file names in them are chosen by the file host and are ignored: only the
bytes count. Their end is checked, since HTTP cannot tell that a body was cut off if only the end of the
connection delimits it, and so are the checksums of a PNG. The other formats have none. An image is read
part by part up to its end: a thumbnail inside of it does not end it, and what follows its end does not
matter. The bytes are looked at as they arrive, so that the image need not be in memory.
"""

from __future__ import annotations

import re
import struct
import unicodedata
import zlib
from collections.abc import Generator
from typing import Literal, Protocol

Suffix = Literal["png", "jpg", "webp", "gif"]  # without the dot

HEAD = 16  # leading bytes that identify the format
_MAX_STEM = 120  # characters of a name that the caller chose
_MAX_TASK_ID = 128  # characters, as in `wire.decoding.TASK_ID`
_MAX_STEM_BYTES = 200  # in UTF-8: file systems allow 255, and the index and the suffix follow

CONTENT_TYPE_OF: dict[Suffix, str] = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
}
_START: dict[Suffix, re.Pattern[bytes]] = {
    "png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "jpg": re.compile(rb"\xff\xd8\xff"),
    "webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    "gif": re.compile(rb"GIF8[79]a"),
}
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FRAME = struct.Struct(">II4s")
# In the data of a JPEG 00 follows an ff that is no marker; d0 to d7 are in the data too, and ff fills.
_JPEG_MARKER = re.compile(rb"\xff[^\0\xff\xd0-\xd7]")
_GIF_BLOCK = re.compile(rb"[,!;]")  # a picture, an extension, the trailer
# An image of 64 MiB in the usual parts, the blocks of 255 bytes of a GIF, has half as many. They are counted
# since each costs a microsecond: a file of nothing but empty ones would take half a minute.
_MOST_PARTS = 2**20
_WRONG_SUM = "does not match its checksums"
_TOO_MANY_PARTS = "has too many parts"
_TYPED_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")

_SEPARATORS = frozenset('/\\:*?"<>|')  # of paths, drives, streams and patterns, on any system
# Unicode categories: controls, text direction, lone surrogates, private use, unassigned, line ends.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_WINDOWS_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$"}
    | {f"{device}{digit}" for device in ("com", "lpt") for digit in "0123456789¹²³"}
)


def suffix_of(head: bytes) -> Suffix | None:
    """The file suffix for an image that starts with `head`; None for formats that Kie does not return."""
    return next((suffix for suffix, start in _START.items() if start.match(head)), None)


class Inspection:
    """What an image of which the bytes are fed in order has shown so far. The bytes are not kept."""

    def __init__(self) -> None:
        self.size: int = 0
        self.head: bytes = b""  # the first `HEAD` bytes
        self._parts: _Parts | None = None  # set once the head shows the format

    def feed(self, data: bytes) -> None:
        self.size += len(data)
        if self._parts is None:
            missing = HEAD - len(self.head)
            self.head, data = self.head + data[:missing], data[missing:]
            if len(self.head) < HEAD:
                return
            self._parts = _parts_of(self.head)
            self._parts.feed(self.head)
        self._parts.feed(data)

    @property
    def suffix(self) -> Suffix | None:
        return suffix_of(self.head)

    @property
    def whole(self) -> bool:
        """Whether it is an image up to its end."""
        return self.suffix is not None and self.problem is None

    @property
    def problem(self) -> str | None:
        """Why the image is not complete, as in "the image ..."; None if it is, or if it is no image."""
        if self.suffix is None or (self._parts is not None and self._parts.ended):
            return None
        if self._parts is not None and self._parts.damaged:
            return f"is damaged: it {self._parts.damaged}"
        return f"is cut off after {self.size} bytes"


class _Parts(Protocol):
    """Reads the parts of an image in order. `ended` is set after the last one, `damaged` if there is none."""

    ended: bool
    damaged: str

    def feed(self, data: bytes) -> None: ...


def _parts_of(head: bytes) -> _Parts:
    suffix = suffix_of(head)
    if suffix == "png":
        return _Chunks()
    if suffix == "jpg":
        return _Blocks(_jpeg())
    if suffix == "gif":
        return _Blocks(_gif())
    return _Length(head)


class _Length:
    """A WebP has no trailer: its header states how many bytes follow it."""

    def __init__(self, head: bytes) -> None:
        self.ended, self.damaged = False, ""
        self._following = int.from_bytes(head[4:8], "little")
        self._size = 0

    def feed(self, data: bytes) -> None:
        self._size += len(data)
        self.ended = self._size >= 8 + self._following > 8


_Wanted = int | re.Pattern[bytes]  # so many bytes, or the next ones that match


def _jpeg() -> Generator[_Wanted, bytes, None]:
    """Segments with their length, and between them the picture, up to the EOI (ITU-T T.81, annex B)."""
    yield 2
    while (marker := (yield _JPEG_MARKER)) != b"\xff\xd9":
        if marker not in (b"\xff\xd8", b"\xff\x01"):  # SOI and TEM stand alone
            length = yield 2
            yield max(0, int.from_bytes(length, "big") - 2)


def _gif() -> Generator[_Wanted, bytes, None]:
    """Pictures and extensions, each with a chain of blocks of up to 255 bytes, up to the trailer."""
    screen = yield 13
    yield _colors(screen[10])
    while (kind := (yield _GIF_BLOCK)) != b";":
        if kind == b",":
            descriptor = yield 9
            yield _colors(descriptor[8])
        yield 1  # the size of the codes, or the kind of the extension
        while (size := (yield 1)) != b"\0":
            yield size[0]


def _colors(flags: int) -> int:
    """The bytes of a colour table."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


class _Blocks:
    """The parts that a generator asks for; it returns after the last one."""

    def __init__(self, parts: Generator[_Wanted, bytes, None]) -> None:
        self.ended, self.damaged = False, ""
        self._left = _MOST_PARTS
        self._parts = parts
        self._wanted = next(parts)
        self._unread = bytearray()

    def feed(self, data: bytes) -> None:
        if self.ended or self.damaged:
            return
        unread, start = self._unread, 0
        unread += data
        try:
            while self._left:
                self._left -= 1
                if isinstance(self._wanted, int):
                    end = start + self._wanted
                    if end > len(unread):
                        break
                else:
                    match = self._wanted.search(unread, start)
                    if match is None:
                        start = max(start, len(unread) - 1)  # the last byte may be the first of a match
                        break
                    start, end = match.span()
                self._wanted = self._parts.send(bytes(unread[start:end]))
                start = end
        except StopIteration:
            self.ended = True
            start = len(unread)
        if not self._left:
            self.damaged, start = _TOO_MANY_PARTS, len(unread)
        del unread[:start]


class _Chunks:
    """The chunks of a PNG, each compared with its checksum. `ended` is set after the last one, IEND.

    As for Pillow the checksum of every chunk counts, not only of those that hold the picture. The
    signature is read as a chunk with a checksum that is known.
    """

    def __init__(self) -> None:
        self.ended = False
        self.damaged = ""
        self._left = _MOST_PARTS
        self._unread = len(_SIGNATURE)  # bytes of the chunk
        self._sum = 0  # of what was read of it
        self._last = False  # whether it is IEND
        # The checksum that follows it, then the length and the type of the next chunk.
        self._frame = bytearray(zlib.crc32(_SIGNATURE).to_bytes(4, "big"))

    def feed(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not (self.ended or self.damaged):
            if self._unread:
                part = view[: self._unread]
                self._sum = zlib.crc32(part, self._sum)
                self._unread -= len(part)
            else:
                part = view[: (4 if self._last else _FRAME.size) - len(self._frame)]
                self._frame += part
                self._check()
            view = view[len(part) :]

    def _check(self) -> None:
        if self._last and len(self._frame) == 4:
            self.ended = int.from_bytes(self._frame, "big") == self._sum
            self.damaged = "" if self.ended else _WRONG_SUM
        elif len(self._frame) == _FRAME.size:
            checksum, self._unread, kind = _FRAME.unpack(self._frame)
            self._left -= 1
            if checksum != self._sum:
                self.damaged = _WRONG_SUM
            elif not self._left:
                self.damaged = _TOO_MANY_PARTS
            self._sum, self._last = zlib.crc32(kind), kind == b"IEND"
            self._frame.clear()


def file_name(
    task_id: str, index: int, suffix: Suffix, name: str | None = None, *, several: bool = False
) -> str:
    """The file name of an image: `<task id>_<index>.<suffix>`, or `<name>.<suffix>` if `name` is given.

    With `several` images the index follows the name: `<name>_<index>.<suffix>`. An image suffix in
    `name` is replaced. Characters that could leave the directory or that a file system does not
    accept are replaced too, so that no name is refused. No part of a URL is used.
    """
    stem = f"{_safe_stem(task_id, _MAX_TASK_ID) or 'image'}_{index}"
    if name is not None:
        if name.lower().endswith(_TYPED_SUFFIXES):
            name = name.rpartition(".")[0]
        chosen = _safe_stem(name, _MAX_STEM)
        if chosen:
            stem = f"{chosen}_{index}" if several else chosen
    return f"{stem}.{suffix}"


def _safe_stem(text: str, limit: int) -> str:
    """The text as one path component that is valid on any system; may be empty."""
    stem = "".join(
        "_" if character in _SEPARATORS or unicodedata.category(character) in _UNPRINTABLE else character
        for character in text[: 4 * limit]
    )
    stem = stem.strip(". ")[:limit]  # a leading dot hides the file; Windows drops a trailing one
    stem = stem.encode()[:_MAX_STEM_BYTES].decode(errors="ignore").rstrip(". ")
    is_device = stem.partition(".")[0].rstrip().lower() in _WINDOWS_DEVICES
    return f"_{stem}" if is_device else stem
