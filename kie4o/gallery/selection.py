"""Copies of the images that a list names: the favourites that were marked in a page."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import KieError
from ..files.disk import PartialFile
from .folder import Folder

_CHUNK_BYTES = 1024 * 1024


def read_list(path: Path) -> list[str]:
    """The file names of a list, one a line. Raises `OSError`, or `KieError` if it is not UTF-8 text."""
    try:
        text = path.read_text("utf-8-sig")  # editors of Windows begin it with a byte order mark
    except UnicodeDecodeError:
        text = None
    if text is None:
        raise KieError(f"'{path}' is not a text in UTF-8")
    return list(dict.fromkeys(name for name in text.split("\n") if name.strip()))


def copy_images(directory: Path, names: list[str], target: Path) -> list[Path]:
    """Copy images of a folder to another one, and return the copies.

    A file of the same name there is replaced, and each copy appears whole or not at all.

    Raises:
        KieError: A name is not that of an image in the folder; nothing is copied.
        OSError: A copy cannot be written.
    """
    folder = Folder(directory)
    if missing := [name for name in names if not folder.has(name)]:
        more = f", nor {len(missing) - 1} more of the list" if len(missing) > 1 else ""
        raise KieError(f"'{missing[0]}' is not an image in '{directory}'{more}; nothing was copied")
    return [_copy(folder.path / name, target / name) for name in names]


def _copy(image: Path, copy: Path) -> Path:
    copy.parent.mkdir(parents=True, exist_ok=True)
    if copy.exists() and copy.samefile(image):
        return copy
    file = PartialFile(copy.parent)
    try:
        with image.open("rb") as source:
            while chunk := source.read(_CHUNK_BYTES):
                file.write(chunk)
        done = file.commit(copy.name)
    finally:
        file.discard()
    shutil.copystat(image, done)
    return done
