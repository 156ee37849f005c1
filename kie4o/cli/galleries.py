"""The command `gallery`: a page of the images in a folder, and copies of those that were chosen in it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ..errors import KieError
from ..gallery import selection
from .inputs import check_file, expanded
from .parameters import OUTPUT, Output
from .terminal import UsageError

if TYPE_CHECKING:
    from types import ModuleType

Directory = Annotated[Path, Parameter(name="DIR", help="Folder with the images; the current one by default.")]
Title = Annotated[str | None, Parameter(help="Heading of the page, instead of the name of the folder.")]
Only = Annotated[
    Path | None,
    Parameter(help="List of file names, one a line, as the page saves its favourites; for --copy-to."),
]
CopyTo = Annotated[Path | None, Parameter(help="Folder for copies of the images of that list.")]


async def gallery(
    directory: Directory = Path(),
    /,
    *,
    title: Title = None,
    only: Only = None,
    copy_to: CopyTo = None,
    terminal: Output = OUTPUT,
) -> None:
    """Write a page that shows the images of a folder, and print its path. Free, offline.

    With --only and --copy-to the chosen images are copied instead, and the paths of the copies printed.
    """
    if not expanded(directory, "DIR").is_dir():
        raise UsageError(f"DIR '{directory}' is not a directory")
    if only is None and copy_to is None:
        page = await asyncio.to_thread(_page().write_gallery, directory, title=title)
        terminal.show(str(page), page=str(page))
        return
    if only is None or copy_to is None:
        missing = "--copy-to DIR" if only else "--only LIST"
        raise UsageError(f"--only and --copy-to need each other: {missing} is missing")
    check_file(str(only), "--only")
    target = expanded(copy_to, "--copy-to")
    try:
        names = await asyncio.to_thread(selection.read_list, expanded(only, "--only"))
        copies = await asyncio.to_thread(selection.copy_images, directory, names, target)
    except KieError as error:
        raise UsageError(f"invalid --only '{only}': {error}") from None
    terminal.show("\n".join(map(str, copies)), files=[str(path) for path in copies])


def _page() -> ModuleType:
    """The module that writes the page. Jinja2 is imported here, since it is optional."""
    try:
        from ..gallery import page

        return page
    except ImportError as error:
        missing = error.name
    raise KieError(f"the gallery needs {missing}; in a checkout of kie4o, run: pip install '.[cli]'")
