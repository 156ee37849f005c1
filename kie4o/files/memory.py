"""Images in memory: the value that callers get, and the sink that collects its bytes."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import attrs

from ..errors import DownloadError, reason_of
from ..notebooks import figure
from . import verification
from .disk import NO_PATH, PartialFile
from .images import CONTENT_TYPE_OF, Inspection, Suffix


@attrs.frozen(kw_only=True)
class Image:
    """One image of a task, in memory. `AsyncKieClient.fetch` returns it.

    Attributes:
        data: The bytes of a whole PNG, JPEG, WebP or GIF.
        mime_type: Such as ``"image/png"``, judged by the bytes.
        url: Where it came from, as in the result.
        index: Its position in the result, from 0.
        task_id: The id of its task.
    """

    data: bytes = attrs.field(kw_only=False, repr=False)
    mime_type: str
    url: str
    index: int
    task_id: str

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the image to a file, and return its path.

        This blocks until the bytes are on the disk; in a server, use
        ``await asyncio.to_thread(image.save, path)``.

        Args:
            path: The file, with its suffix; a leading ``~`` is the home directory. Its folder must exist. A
                file that is there is replaced, and appears complete or not at all.

        Raises:
            DownloadError: The file cannot be written.
        """
        try:
            target = Path(path).expanduser()
            file = PartialFile(target.parent)
            try:
                file.write(self.data)
                return file.commit(target.name)
            finally:
                file.discard()
        except (OSError, *NO_PATH) as error:
            reason = reason_of(error)
        message = f"could not save image {self.index} of task {self.task_id} to '{path}': {reason}"
        raise DownloadError(message, task_id=self.task_id)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return figure([self._data_url()], task_id=self.task_id)

    def _data_url(self) -> str:
        return f"data:{self.mime_type};base64,{base64.b64encode(self.data).decode()}"


class Images(list[Image]):
    """The images of one task, in a list that a notebook shows as pictures."""

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return figure([image._data_url() for image in self], task_id=self[0].task_id if self else None)


class ImageInMemory:
    """The sink of an `Image`."""

    name = "memory"

    def __init__(self, *, url: str, index: int, task_id: str) -> None:
        self.seen: Inspection = Inspection()
        self._url = url
        self._index = index
        self._task_id = task_id
        self._data = bytearray()

    def write(self, chunk: bytes) -> None:
        self._data += chunk
        self.seen.feed(chunk)

    def decode(self, suffix: Suffix) -> None:
        verification.decode(io.BytesIO(self._data), suffix)

    def commit(self, suffix: Suffix) -> Image:
        return Image(
            bytes(self._data),
            mime_type=CONTENT_TYPE_OF[suffix],
            url=self._url,
            index=self._index,
            task_id=self._task_id,
        )

    def discard(self) -> None:
        self._data.clear()
