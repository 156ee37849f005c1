"""Where images are saved: the folder and its checks, the names, and what happens to files that are there."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from ..files.disk import PREFIX, reason_of_folder
from ..files.images import CONTENT_TYPE_OF, file_name
from ..models import Exists
from .terminal import UsageError

if TYPE_CHECKING:
    from ..client import AsyncKieClient
    from ..models import HasTaskId


_ROOM = 1024 * 1024  # bytes of free space without which nothing is paid for: images have one to three of them


@attrs.frozen
class Folder:
    """The folder that was typed, and what to do with a file of the same name.

    Without `--exists` nothing is sent if a name is taken; a file that appears later is never replaced.
    """

    out: Path
    exists: Exists | None = attrs.field(default=None, kw_only=True)

    def check(self) -> None:
        """Create the folder, and prove that it takes an image. Raises `UsageError`."""
        reason = ""
        try:
            folder = self.out.expanduser()
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder, prefix=PREFIX, buffering=0) as file:
                if file.write(bytes(_ROOM)) == _ROOM:
                    return
            reason = os.strerror(errno.ENOSPC)
        except (OSError, ValueError, RuntimeError) as error:  # the last: a ~ without a home directory
            reason = reason_of_folder(error)
        raise UsageError(f"cannot write to --out '{self.out}': {reason}")

    def kept(self, name: str | None, images: int, *, resumed: bool = False) -> list[Path]:
        """The files that are kept instead of the images of a task: all of them, or none.

        Raises `UsageError` if a name is taken and nothing was said about it. A task that is `resumed` may
        have saved some of its images already; those of another are not mixed with them.
        """
        found = [] if name is None or self.exists in ("replace", "rename") else self._taken(name, images)
        if not found or (self.exists == "keep" and len(found) == images):
            return found
        if self.exists == "keep" and resumed:
            return []
        if self.exists == "keep":
            problem = f"only {len(found)} of {images} images of --name '{name}' are there"
            raise UsageError(f"{problem}: expected another name, or --exists replace or rename")
        raise UsageError(f"'{found[0]}' exists: expected another --name, or --exists keep, replace or rename")

    async def save(self, client: AsyncKieClient, task: HasTaskId | str, name: str | None) -> list[Path]:
        """Save the images of a finished task."""
        exists: Exists | None = "rename" if self.exists is None and name is not None else self.exists
        return await client.download(task, self.out, name=name, exists=exists)

    def words(self) -> dict[str, object]:
        """The options that lead to this folder."""
        return {"--out": None if self.out == Path() else self.out, "--exists": self.exists}

    def _taken(self, name: str, images: int) -> list[Path]:
        """One file for each image whose name is taken."""
        found: list[Path] = []
        for index in range(images):
            names = [file_name("", index, suffix, name, several=images > 1) for suffix in CONTENT_TYPE_OF]
            with contextlib.suppress(OSError):
                paths = [self.out.expanduser() / each for each in names]
                found += [path for path in paths if path.exists()][:1]
        return found


def numbered(name: str | None, count: int) -> Sequence[str | None]:
    """A name for each of several: `boat-1`, `boat-2`. A single one has the name itself."""
    if name is None or count == 1:
        return [name] * count
    width = len(str(count))
    return [f"{name}-{number:0{width}}" for number in range(1, count + 1)]
