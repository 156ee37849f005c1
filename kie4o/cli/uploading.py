"""`kie4o upload`: files at Kie, whose URLs a request takes."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from .clients import opened
from .inputs import check_file, is_url
from .parameters import CONNECTED, Connected

Source = Annotated[str, Parameter(name="FILE", help="Path of a file, or URL of one that Kie fetches.")]
Folder = Annotated[str, Parameter(name="--path", show_default=True, help="Folder at Kie.")]


async def upload(
    file: Source, /, *files: Source, path: Folder = "kie4o", terminal: Connected = CONNECTED
) -> None:
    """Store files at Kie and print their URLs. Free; Kie keeps them for about 24 hours."""
    for source in (file, *files):
        if not is_url(source):
            check_file(source, "FILE")
    async with opened(terminal) as client:
        for source in (file, *files):
            store = client.upload_from_url if is_url(source) else client.upload
            uploaded = await store(source, path=path)
            terminal.show(uploaded.url, file=source, url=uploaded.url, size=uploaded.size, path=uploaded.path)
