"""The names of a batch's images: valid on every platform, and no two alike on any. Pure.

Two names are alike if a file system that ignores case, or normalises Unicode, takes them for one.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import PurePath

from ...files.images import file_name

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif"})
_LONGEST = 100  # characters
_LONGEST_BYTES = 180  # in UTF-8: file systems allow 255; a number, an index and suffixes follow


def stem_of(wish: str, number: int) -> str:
    """The wished name as that of a file without its suffix, or the number of its line."""
    wish = wish[:_LONGEST].encode("utf-8", "replace")[:_LONGEST_BYTES].decode(errors="ignore")
    stem = _saved_as(wish)
    while (again := _saved_as(stem)) != stem:  # "a.png.png"
        stem = again
    return numbered(number) if stem == _saved_as("") else stem


def numbered(number: int) -> str:
    """The name of a line that has none."""
    return f"{number:04}"


def free_stem(stem: str, taken: Collection[str]) -> str:
    """The first of `cat`, `cat-2`, `cat-3` none of whose files is taken."""
    candidates = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(each for each in candidates if not claimed(each).intersection(taken))


def claimed(stem: str) -> set[str]:
    """What the images of a request may be named, comparable: it may have one image, or four."""
    return {comparable(stem), *(comparable(f"{stem}_{index}") for index in range(4))}


def comparable(stem: str) -> str:
    """Equal for names that some file system takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold())


def stems_of(names: Iterable[str]) -> set[str]:
    """The comparable stems of the images among these files."""
    paths = map(PurePath, names)
    return {comparable(path.stem) for path in paths if path.suffix.lower() in IMAGE_SUFFIXES}


def _saved_as(name: str) -> str:
    """The stem that a download under this name has; that of the task if there is nothing to keep of it."""
    return file_name("", 0, "png", name).removesuffix(".png")
