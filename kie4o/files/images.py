"""What the bytes of an image say about it, and what its file may be called. Pure.

Content types, URLs and their file names are somebody else's words; here only the magic bytes
count, and the end: a body that was cut off looks complete to HTTP when it is delimited by the end
of the connection. A file is judged by its first and last bytes, so that it need not be in memory.
"""

from __future__ import annotations

import unicodedata
from typing import Literal

Ending = Literal["png", "jpg", "webp", "gif"]

HEAD = 16  # bytes that tell the kind
TAIL = 64  # bytes that tell the end; more than a trailer, since some writers pad
_LONGEST = 120  # characters of a caller's stem
_LONGEST_TASK_ID = 128  # characters, Kie's ids are at most that
_LONGEST_IN_BYTES = 200  # of a stem in UTF-8: a name has 255, minus index, ending and reserve

CONTENT_TYPE_OF: dict[Ending, str] = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
}
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"  # an empty chunk always has the same sum
_TYPED_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif")

_SEPARATORS = frozenset('/\\:*?"<>|')  # of paths, drives, streams and patterns, on any system
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})  # controls, overrides, half pairs
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$"}
    | {f"{device}{digit}" for device in ("com", "lpt") for digit in "0123456789¹²³"}
)


def ending_of(head: bytes) -> Ending | None:
    """The file ending of an image that starts so; None if it is none that Kie makes."""
    if head.startswith(_PNG):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    return None


def is_whole(ending: Ending, *, head: bytes, tail: bytes, size: int) -> bool:
    """Whether an image ends as it should: the last `TAIL` bytes (or all) of `size` are in `tail`."""
    match ending:
        case "png":
            return _PNG_END in tail
        case "jpg":  # within the picture an ff is always followed by something else
            return tail.rstrip(b"\0").endswith(b"\xff\xd9")
        case "webp":
            return size >= 8 + int.from_bytes(head[4:8], "little") > 8
        case "gif":  # the end of a block, then the trailer
            return tail.rstrip(b"\0").endswith(b"\0;")


def file_name(
    task_id: str, index: int, ending: Ending, name: str | None = None, *, several: bool = False
) -> str:
    """`<task id>_<index>.<ending>`, or after the caller's `name`: `name.png`, and `name_0.png` if
    there are `several`.

    Nothing of a URL is in it. A name that could leave the folder or harm a file system is made
    harmless, not refused. An image's ending that the name has already is not doubled.
    """
    stem = f"{_clean(task_id, _LONGEST_TASK_ID) or 'image'}_{index}"
    if name is not None:
        if name.lower().endswith(_TYPED_ENDINGS):
            name = name.rpartition(".")[0]
        own = _clean(name, _LONGEST)
        if own:
            stem = f"{own}_{index}" if several else own
    return f"{stem}.{ending}"


def _clean(text: str, longest: int) -> str:
    """A stem that is one harmless component of a path on any system, or nothing."""
    kept = "".join(
        "_" if character in _SEPARATORS or unicodedata.category(character) in _UNSEEN else character
        for character in text[: 4 * longest]
    )
    kept = kept.strip(". ")[:longest]  # a leading dot hides, a trailing one is lost on Windows
    kept = kept.encode()[:_LONGEST_IN_BYTES].decode(errors="ignore").rstrip(". ")
    device = kept.partition(".")[0].rstrip().lower() in _DEVICES
    return f"_{kept}" if device else kept
