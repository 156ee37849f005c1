"""Writes `index.html` into a folder of images: everything that the page needs but the images is in it.

Prompts, names and messages are untrusted text. Jinja2 escapes them, the data for the script is JSON without
`<`, and a content security policy admits nothing but one script and one style sheet, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..errors import KieError
from ..files.disk import PartialFile, remove_leftovers
from ..version import __version__
from .folder import PAGE_NAME, Folder, kept_command, url_of
from .records import FILE_NAME, Record, read
from .thumbnails import FOLDER, ThumbnailMaker, thumbnail_name

LABELS = {"done": "done", "failed": "failed", "unknown": "outcome unknown", "not_submitted": "not submitted"}
_STATIC = Path(__file__).parent / "static"
_GENERATOR = b'<meta name="generator" content="kie4o '
_HEAD = 4096  # bytes of a page that have its generator
_SHORT = 120  # characters of a prompt beside an image
_VARIANT = re.compile(r"(.+)_\d")
_TASK_ID = re.compile(r"[0-9a-f]{32}")


def write_gallery(directory: Path, *, title: str | None = None) -> Path:
    """Write the page of a folder, with the thumbnails that are missing, and return its path. Blocks.

    Shown are the requests of `results.jsonl`, images of the folder that it does not name, and the command
    that the batch has kept there for the requests that failed.

    Args:
        directory: The folder with the images.
        title: The heading; the name of the folder by default.

    Raises:
        KieError: There is no such folder, or its `index.html` is that of something else.
        OSError: The folder cannot be read or written.
    """
    folder = Folder(directory)
    remove_leftovers(folder.path)
    remove_leftovers(folder.path / FOLDER)
    _check_page(folder.path / PAGE_NAME)
    found = sorted(read(folder.path / FILE_NAME), key=lambda record: record.line or math.inf)
    records = [_with_files(record, folder) for record in found]
    named = {name for record in records for name in record.files}
    records += _loose(name for name in folder.names() if name not in named)
    small = _thumbnails(folder, records)
    html = render(records, small, title=title or folder.path.name, retry=kept_command(folder.path))
    file = PartialFile(folder.path)
    try:
        file.write(html.encode())
        return file.commit(PAGE_NAME)
    finally:
        file.discard()


def render(records: list[Record], small: frozenset[str], *, title: str, retry: str) -> str:
    """The page of these records; `small` names the images that have a thumbnail."""
    style, script = (_fixed(name) for name in ("gallery.css", "gallery.js"))
    cards = [_Card.of(record, small) for record in records]
    counts = Counter(card.state for card in cards)
    environment = Environment(
        loader=FileSystemLoader(_STATIC),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("index.html.j2").render(
        policy=_policy(style, script),
        style=style,
        script=script,
        version=__version__,
        title=_text(title),
        summary=" · ".join(_summary(records, counts)),
        retry=_text(retry) if counts["failed"] else "",
        states=[(state, label, counts[state]) for state, label in LABELS.items() if counts[state]],
        cards=cards,
        data=[card.data() for card in cards],
    )


# -- what is on a card -------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class _Shot:
    name: str
    url: str
    thumbnail: str


@attrs.frozen(kw_only=True)
class _Card:
    """A request as the template shows it. Its texts can be encoded."""

    key: str
    task_id: str
    anchor: str
    prompt: str
    state: str
    error: str
    facts: list[str]
    shots: list[_Shot]
    record: Record

    @classmethod
    def of(cls, record: Record, small: frozenset[str]) -> _Card:
        state = record.state if record.state in LABELS else "unknown"
        task_id, key = _text(record.task_id or ""), _text(record.key)
        missing = "" if record.files or state != "done" else "Its images are not in this folder."
        return cls(
            key=key,
            task_id=task_id,
            anchor=f"task={quote(task_id, safe='')}" if task_id else f"key={quote(key, safe='')}",
            prompt=_text(record.prompt or record.name or record.key),
            state=state,
            error=_text(record.error or missing),
            facts=[*_facts(record, LABELS[state])],
            shots=[_shot(name, small) for name in record.files],
            record=record,
        )

    @property
    def label(self) -> str:
        return "no image" if self.state == "done" else LABELS[self.state]

    @property
    def short(self) -> str:
        return self.prompt if len(self.prompt) <= _SHORT else self.prompt[: _SHORT - 1] + "…"

    def data(self) -> dict[str, Any]:
        """What the script knows of it."""
        return {
            "key": self.key,
            "task": self.task_id,
            "anchor": self.anchor,
            "prompt": self.prompt,
            "state": self.state,
            "label": self.label,
            "error": self.error,
            "facts": " · ".join(self.facts),
            "files": [(shot.name, shot.url) for shot in self.shots],
            "submitted": self.record.submitted_at,
            "seconds": self.record.seconds,
            "credits": self.record.credits,
        }


def _shot(name: str, small: frozenset[str]) -> _Shot:
    url = url_of(name)
    return _Shot(name=_text(name), url=url, thumbnail=url_of(thumbnail_name(name)) if name in small else url)


def _facts(record: Record, label: str) -> Iterator[str]:
    yield label
    if record.size:
        yield _text(record.size)
    if record.credits is not None:
        yield f"{record.credits:g} credits"
    if record.seconds is not None:
        yield f"{record.seconds:.0f} s"


def _summary(records: list[Record], counts: Counter[str]) -> Iterator[str]:
    images = sum(len(record.files) for record in records)
    yield f"{images} image{'s' * (images != 1)} of {len(records)} request{'s' * (len(records) != 1)}"
    for state in ("failed", "unknown", "not_submitted"):
        if counts[state]:
            yield f"{counts[state]} {LABELS[state]}"
    costs = [record.credits for record in records if record.credits is not None]
    if costs:
        yield f"{sum(costs):,g} credits"
    times = [record.submitted_at for record in records if record.submitted_at is not None]
    if times:
        yield _period(min(times), max(times))


def _period(start: float, end: float) -> str:
    first, last = (datetime.fromtimestamp(time, UTC).astimezone() for time in (start, end))
    if f"{first:%Y-%m-%d %H:%M}" == f"{last:%Y-%m-%d %H:%M}":
        return f"{first:%Y-%m-%d %H:%M}"
    same_day = first.date() == last.date()
    return f"{first:%Y-%m-%d %H:%M} – {last:{'%H:%M' if same_day else '%Y-%m-%d %H:%M'}}"


def _text(text: str) -> str:
    """The text with a question mark for each lone surrogate, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode()


# -- what is in the folder ---------------------------------------------------------------------------


def _with_files(record: Record, folder: Folder) -> Record:
    return attrs.evolve(record, files=[name for name in record.files if folder.has(name)])


def _loose(names: Iterable[str]) -> Iterator[Record]:
    """Records of images about which nothing is known but their names: variants are one request."""

    def stem_of(name: str) -> str:
        stem = name.rpartition(".")[0]
        numbered = _VARIANT.fullmatch(stem)
        return numbered[1] if numbered else stem

    for stem, files in groupby(sorted(names, key=lambda name: (stem_of(name), name)), stem_of):
        yield Record(stem, task_id=stem if _TASK_ID.fullmatch(stem) else None, state="done", files=[*files])


def _check_page(path: Path) -> None:
    """Raises `KieError` if the page would replace one of something else."""
    if path.exists() and _GENERATOR not in path.read_bytes()[:_HEAD]:
        raise KieError(f"'{path}' is not a page of kie4o, and is kept; move it to another name")


def _thumbnails(folder: Folder, records: list[Record]) -> frozenset[str]:
    """The names of the images that have a thumbnail, after those that were missing were made."""
    with ThumbnailMaker(folder.path) as maker:
        wanted = {name: maker.add(name) for record in records for name in record.files}
        return frozenset(name for name, made in wanted.items() if made.result())


# -- what the policy admits --------------------------------------------------------------------------


def _fixed(name: str) -> str:
    """A file that is in every page as it is. Its line ends are those that an HTML parser makes of any."""
    return (_STATIC / name).read_text("utf-8")


def _policy(style: str, script: str) -> str:
    """What the browser may load: images beside the page (`file:`, as a file has no origin), and these two."""
    return "; ".join(
        [
            "default-src 'none'",
            "img-src 'self' file:",
            f"style-src '{_hash(style)}'",
            f"script-src '{_hash(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
