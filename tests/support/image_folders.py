"""What a batch of the command line leaves in its folder, and what Kie saw of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs

from kie4o.emulator import Emulator
from kie4o.files.images import Inspection

SUFFIXES = {".png", ".jpg", ".webp", ".gif"}


@attrs.frozen
class Folder:
    """A folder of images with `results.jsonl`."""

    path: Path

    @property
    def records(self) -> list[dict[str, Any]]:
        """Every line of the results, each of which must be JSON."""
        text = (self.path / "results.jsonl").read_text("utf-8")
        assert text.endswith("\n")
        return [json.loads(line) for line in text.splitlines()]

    @property
    def latest(self) -> dict[str, dict[str, Any]]:
        """The last record of each key."""
        return {record["key"]: record for record in self.records}

    @property
    def images(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir() if path.suffix in SUFFIXES)

    @property
    def unfinished_files(self) -> list[str]:
        """What a download that was cut off leaves behind."""
        return [path.name for path in self.path.iterdir() if path.name.startswith(".kie4o-")]

    def identities(self) -> dict[str, tuple[int, int]]:
        """What changes if an image is written again."""
        stats = {name: (self.path / name).stat() for name in self.images}
        return {name: (each.st_ino, each.st_mtime_ns) for name, each in stats.items()}

    def check_images(self) -> None:
        """Every image is whole, and every one that is recorded is there."""
        for name in self.images:
            seen = Inspection()
            seen.feed((self.path / name).read_bytes())
            assert seen.suffix == Path(name).suffix[1:], name
            assert seen.problem is None, name
        for record in self.records:
            for name in record["files"]:
                assert (self.path / name).is_file(), name


def fetches(kie: Emulator) -> int:
    """How many requests for an image arrived."""
    return sum(count for route, count in kie.requests.items() if route.startswith("/s/"))


def uploads(kie: Emulator) -> int:
    """How many files were uploaded."""
    return sum(count for route, count in kie.requests.items() if "upload" in route)


def charged(kie: Emulator, balance: float) -> float:
    """How many credits were charged since there were so many."""
    return balance - float(kie.credits)
