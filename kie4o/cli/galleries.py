"""The command `gallery`: a page of the images in a folder, and copies of those that were chosen in it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import KieError

if TYPE_CHECKING:
    from types import ModuleType


async def gallery(
    directory: Path = Path(),
    /,
    *,
    title: str | None = None,
    only: Path | None = None,
    copy_to: Path | None = None,
) -> None:
    """Write a page that shows the images of a folder, and print its path. Free, offline.

    With --only and --copy-to the chosen images are copied instead, and the paths of the copies printed.

    Args:
        directory: Folder with the images.
        title: Heading of the page, instead of the name of the folder.
        only: List of file names, one a line, as the page saves its favourites.
        copy_to: Folder for copies of the images of that list.
    """
    if (only is None) != (copy_to is None):
        missing = "--copy-to DIR" if only else "--only LIST"
        raise KieError(f"--only and --copy-to need each other: {missing} is missing")
    if only is not None and copy_to is not None:
        from ..gallery import selection

        names = await asyncio.to_thread(selection.read_list, only)
        paths = await asyncio.to_thread(selection.copy_images, directory, names, copy_to)
    else:
        paths = [await asyncio.to_thread(_page().write_gallery, directory, title=title)]
    print("\n".join(map(os.fspath, paths)))


def _page() -> ModuleType:
    """The module that writes the page. Jinja2 is imported here, since it is optional."""
    try:
        from ..gallery import page

        return page
    except ImportError as error:
        missing = error.name
    raise KieError(f"the gallery needs {missing}; in a checkout of kie4o, run: pip install '.[cli]'")
