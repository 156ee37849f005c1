"""What the bytes of an image say about its format, and which file name is safe for it. Pure.

Content types, URLs and the file names in them are chosen by the file host and are ignored: only the
bytes count. Their end is checked too, since HTTP cannot tell that a body was cut off if only the end
of the connection delimits it. The first and last bytes are enough, so that the image need not be in
memory.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

Suffix = Literal["png", "jpg", "webp", "gif"]  # without the dot

HEAD = 16  # leading bytes that identify the format
TAIL = 64  # trailing bytes that show the end; more than a trailer, since some writers add padding
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
# A WebP image has no trailer; its header states the length instead.
_END: dict[Suffix, re.Pattern[bytes]] = {
    "png": re.compile(rb"\0{4}IEND\xae\x42\x60\x82"),  # the IEND chunk is empty: its checksum is constant
    "jpg": re.compile(rb"\xff\xd9\0*\Z"),  # inside the picture another byte follows each ff
    "gif": re.compile(rb"\0;\0*\Z"),  # the end of a block, then the trailer
}
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


def is_whole(suffix: Suffix, *, head: bytes, tail: bytes, size: int) -> bool:
    """Whether an image of `size` bytes is complete, given its first `HEAD` and last `TAIL` bytes."""
    if suffix == "webp":
        return size >= 8 + int.from_bytes(head[4:8], "little") > 8
    return _END[suffix].search(tail) is not None


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
