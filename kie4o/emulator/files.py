"""The files that the emulator serves: the images of tasks, uploads, and signed links to both."""

import asyncio
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Protocol
from urllib.parse import quote, unquote, urlencode

import attrs

from .pictures import BLANK, draw
from .tasks import IMAGE_LIFETIME, LINK_LIFETIME, Task
from .uploads import Upload

IMAGE_PATH = re.compile(r"/s/([0-9a-f]{32})_\d_\d+_\d{4}\.png")


class Host(Protocol):
    """What the files need of an emulator; `now` is in emulated seconds, `epoch` is the unix time of its 0."""

    pictures: bool
    epoch: float

    @property
    def url(self) -> str: ...

    def now(self) -> float: ...

    def all_tasks(self) -> Mapping[str, Task]: ...

    def token(self) -> str: ...


@attrs.define(eq=False)
class Files:
    """The files of one emulator, by their paths."""

    _host: Host
    _uploads: dict[str, Upload] = attrs.field(factory=dict, init=False)
    _links: dict[str, tuple[str, float]] = attrs.field(factory=dict, init=False)  # by signature

    def path_of(self, url: str) -> str:
        """The path of a URL of this emulator; empty for any other URL."""
        base = self._host.url
        return unquote(url.removeprefix(base).partition("?")[0]) if url.startswith(base + "/") else ""

    def exists(self, path: str) -> bool:
        """Whether there is a file at this path, an expired one included."""
        return path in self._uploads or self._image(path) is not None

    def is_expired(self, path: str) -> bool:
        """Whether it is an image that only a signed link opens."""
        image = self._image(path)
        if image is None:
            return False
        task, _ = image
        return self._host.now() - task.created >= IMAGE_LIFETIME

    def add(self, upload: Upload) -> None:
        """Store an upload; it replaces one with the same path."""
        self._uploads[upload.path] = upload

    async def read(self, path: str) -> tuple[bytes, str] | None:
        """The bytes and the MIME type of the file at this path, if there is one."""
        image = self._image(path)
        if image is None:
            upload = self._uploads.get(path)
            return (upload.content, upload.mime) if upload else None
        if not self._host.pictures:
            return BLANK, "image/png"
        task, index = image
        prompt, size = task.request.get("prompt") or "", task.request["size"]
        try:
            picture = await asyncio.to_thread(draw, prompt, size, index)
        except RuntimeError:  # no thread can be started
            picture = draw(prompt, size, index)
        return picture, "image/png"

    async def fetch(self, url: str) -> bytes | None:
        """The file at a URL of this emulator; a blank image for any other URL, which is not opened."""
        path = self.path_of(url)
        if not path:
            return BLANK
        found = await self.read(path)
        return found[0] if found else None

    def sign(self, path: str) -> str:
        """A signed link to this path, in the form that Kie's storage uses."""
        now, signature = self._host.now(), self._host.token() + self._host.token()
        self._links[signature] = (path, now + LINK_LIFETIME)
        query = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Date": f"{datetime.fromtimestamp(self._host.epoch + now, UTC):%Y%m%dT%H%M%SZ}",
            "X-Amz-Expires": LINK_LIFETIME,
            "X-Amz-Signature": signature,
        }
        return f"{self._host.url}{quote(path)}?{urlencode(query)}"

    def is_signed(self, path: str, signature: str) -> bool:
        """Whether a signed link with this signature opens this path, now."""
        signed_path, expires = self._links.get(signature, ("", 0.0))
        return path == signed_path and self._host.now() < expires

    def _image(self, path: str) -> tuple[Task, int] | None:
        """The task and the index of an image, if there is one at this path."""
        match = IMAGE_PATH.fullmatch(path)
        task = self._host.all_tasks().get(match[1]) if match else None
        paths = task.files(self._host.now()) if task else []
        return (task, paths.index(path)) if task and path in paths else None
