"""Small copies of images, which a browser can show by the thousand.

They are made in threads, since each costs some 25 ms of Pillow, which releases the interpreter lock
meanwhile. One is made once, and again only when its image was replaced. It appears whole or not at all.
Without Pillow there are none, and the page shows the images themselves.
"""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Self

from ..files.disk import PartialFile

FOLDER = ".thumbs"
SIDE = 360  # pixels
QUALITY = 82
METHOD = 2  # of WebP: 4 makes files 3 % smaller in twice the time
MAX_PIXELS = 64_000_000  # more take 200 MB to decode


def thumbnail_name(name: str) -> str:
    """The name of the thumbnail of an image; both are relative to the folder."""
    return f"{FOLDER}/{name}.webp"


def has_thumbnail(directory: Path, name: str) -> bool:
    """Whether there is a thumbnail that is not older than its image."""
    try:
        made = (directory / thumbnail_name(name)).stat()
        return made.st_size > 0 and made.st_mtime_ns >= (directory / name).stat().st_mtime_ns
    except OSError:
        return False


class ThumbnailMaker:
    """Makes the thumbnails of images in a folder, in threads, as they arrive.

    Leaving the block waits for those that are asked for; after an error it waits only for those being made.
    """

    def __init__(self, directory: Path, *, threads: int | None = None) -> None:
        self._directory = directory
        self._pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, "kie4o-thumbnails")
        self._able = find_spec("PIL") is not None

    def add(self, name: str) -> Future[bool]:
        """Make the thumbnail of the image of this name. The result, True if it is there, never raises."""
        return self._pool.submit(self._make, name)

    def close(self, *, cancel: bool = False) -> None:
        """Wait until the thumbnails are made; with `cancel` only for those being made. Blocks."""
        self._pool.shutdown(cancel_futures=cancel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        self.close(cancel=kind is not None)

    def _make(self, name: str) -> bool:
        """Whether the thumbnail is there. One that cannot be made is done without: the page works."""
        if not self._able:
            return False
        if has_thumbnail(self._directory, name):
            return True
        with contextlib.suppress(Exception):  # Pillow raises whatever it likes
            _make(self._directory / name, self._directory / thumbnail_name(name))
            return True
        return False


def _make(image: Path, thumbnail: Path) -> None:
    # A thumbnail has the time of the image that it was made of: one that is replaced meanwhile is newer.
    before = image.stat()
    data = _scaled(image)
    thumbnail.parent.mkdir(parents=True, exist_ok=True)
    file = PartialFile(thumbnail.parent)
    try:
        file.write(data)
        assert file.path is not None  # noqa: S101  # written above
        os.utime(file.path, ns=(before.st_atime_ns, before.st_mtime_ns))
        file.commit(thumbnail.name)
    finally:
        file.discard()


def _scaled(path: Path) -> bytes:
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError("too many pixels")
        image.draft("RGB", (2 * SIDE, 2 * SIDE))  # a JPEG is decoded at about this size
        small: Image.Image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        small.thumbnail((SIDE, SIDE), reducing_gap=2.0)
        small = ImageOps.exif_transpose(small)
    file = BytesIO()
    small.save(file, "WEBP", quality=QUALITY, method=METHOD)
    return file.getvalue()
