"""The images of a folder, by their names relative to it.

`results.jsonl` may come from anywhere, and so may the folder: a name counts only if it is that of an image
inside of the folder, after links were followed.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path, PurePath
from urllib.parse import quote

from ..errors import KieError

PAGE_NAME = "index.html"
_COMMAND_NAME = ".kie4o.command"
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif"})


class Folder:
    """A folder with images. Raises `KieError` if there is no such folder."""

    def __init__(self, directory: Path) -> None:
        self.path: Path = directory.expanduser().resolve()
        if not self.path.is_dir():
            raise KieError(f"'{directory}' is not a directory")

    def has(self, name: str) -> bool:
        """Whether an image of this name is in the folder, or in a folder of it."""
        if not is_image_name(name):
            return False
        try:
            path = (self.path / name).resolve(strict=True)
            return path.is_relative_to(self.path) and path.is_file()
        except (OSError, ValueError, RuntimeError):  # a loop of links is a RuntimeError until Python 3.13
            return False

    def names(self) -> list[str]:
        """The images directly in the folder, in the order of their names."""
        return [name for name in sorted(entry.name for entry in os.scandir(self.path)) if self.has(name)]


def keep_command(directory: Path, command: str) -> None:
    """Keep the command that submits the failed requests of a folder again, or none if it is empty.

    Only the batch knows it: with another store it would pay again for what is paid.
    """
    lines = f"{directory.resolve()}\n{command}\n" if command else ""
    (directory / _COMMAND_NAME).write_bytes(lines.encode("utf-8", "surrogatepass"))


def kept_command(directory: Path) -> str:
    """The command that is kept in a folder; empty if there is none, or if the folder was moved or copied, so
    that the command is about another one."""
    try:
        lines = (directory / _COMMAND_NAME).read_bytes().decode("utf-8", "surrogatepass")
    except (OSError, ValueError):
        return ""
    folder, _, command = lines.rpartition("\n")[0].rpartition("\n")
    return command if folder == str(directory.resolve()) else ""


def is_image_name(name: str) -> bool:
    """Whether it is the relative name of a visible image. No part of it leads out of the folder."""
    path = PurePath(name)
    if path.suffix.lower() not in SUFFIXES or path.is_absolute() or path.drive:
        return False
    if any(part.startswith(".") for part in path.parts):  # `..` and what is hidden, such as thumbnails
        return False
    # Names are kept in lists of one a line.
    return not any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name)


def url_of(name: str) -> str:
    """The URL of a file relative to the page. `:`, `#`, `%` and `?` are part of the name."""
    return quote(os.fsencode(PurePath(name).as_posix()), safe="/")
