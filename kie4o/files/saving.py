"""Images as files: the sink that writes one, and the check of a file that is there already."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
from collections.abc import Callable
from pathlib import Path

from ..transport.connections import no_file_left, when_free
from . import verification
from .disk import NO_PATH, PartialFile, in_thread
from .images import CONTENT_TYPE_OF, Inspection, Suffix, file_name

NameOf = Callable[[Suffix], str]

MAX_IMAGES = 4  # of one task (generate page: nVariants)
_CHUNK_BYTES = 256 * 1024  # per read


class ImageFile:
    """The sink of a file in a directory. `name_of` returns its name; with `rename` none is replaced."""

    def __init__(self, directory: Path, name_of: NameOf, *, rename: bool) -> None:
        self.name: str = f"'{directory}'"
        self._file = PartialFile(directory)
        self._name_of = name_of
        self._rename = rename

    @property
    def seen(self) -> Inspection:
        return self._file.seen

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)

    def decode(self, suffix: Suffix) -> None:
        if self._file.path is not None:
            verification.decode(self._file.path, suffix)

    def commit(self, suffix: Suffix) -> Path:
        return self._file.commit(self._name_of(suffix), rename=self._rename)

    def discard(self) -> None:
        self._file.discard()


async def saved_image(directory: Path, name_of: NameOf, *, verify: bool) -> Path | None:
    """The whole image that is there under one of its names, if there is one.

    A file that cannot be read counts as missing: the download that follows says why, if it fails too.
    """
    try:
        return await when_free(functools.partial(in_thread, _saved_image, directory, name_of, verify))
    except OSError:
        return None


async def saved_images(directory: str | os.PathLike[str], task_id: str, *, verify: bool) -> list[Path]:
    """The images of a task that are there under its names, from the first up to one that is missing."""
    found: list[Path] = []
    with contextlib.suppress(*NO_PATH):
        folder = await in_thread(lambda: Path(directory).expanduser())
        for index in range(MAX_IMAGES):
            path = await saved_image(folder, functools.partial(file_name, task_id, index), verify=verify)
            if path is None:
                break
            found.append(path)
    return found


def _saved_image(directory: Path, name_of: NameOf, verify: bool) -> Path | None:
    paths: dict[Suffix, Path] = {suffix: directory / name_of(suffix) for suffix in CONTENT_TYPE_OF}
    return next((path for suffix, path in paths.items() if _is_whole(path, suffix, verify)), None)


def _is_whole(path: Path, suffix: Suffix, verify: bool) -> bool:
    """Whether the file is a whole image of this format, as a download checks it."""
    seen = Inspection()
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe could wait for ever
            return False
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                seen.feed(chunk)
        if seen.suffix != suffix or seen.problem is not None:
            return False
        if verify:
            verification.decode(str(path), suffix)
    except Exception as error:  # whatever Pillow raises too
        if no_file_left(error):
            raise
        return False
    return True
