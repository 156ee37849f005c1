"""What a request is made from: local files, which are uploaded first, URLs, and prompts of standard input."""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
import secrets
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import attrs

from .terminal import STDIN, Terminal, UsageError

if TYPE_CHECKING:
    from ..client import AsyncKieClient

_LATER = "https://not-uploaded-yet.example/"  # in place of the URL of a local file


def read_stdin(terminal: Terminal) -> bytes:
    """All of standard input. It blocks, so Ctrl-C ends it at once instead of being left to asyncio."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if sys.stdin.isatty():
            end = "Ctrl-Z and Enter end it" if sys.platform == "win32" else "Ctrl-D ends it"
            terminal.note(f"reading standard input; {end}")
        return sys.stdin.buffer.read()
    finally:
        signal.signal(signal.SIGINT, previous)


def expanded(path: Path, option: str) -> Path:
    """The path with a home directory in place of `~`. Raises `UsageError` if there is none."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        reason = str(error)
    raise UsageError(f"invalid {option} '{path}': {reason}")


def prompts_of(words: Sequence[str], terminal: Terminal) -> Iterator[str | None]:
    """The prompts, those of standard input included; None if there are none, which a file makes up for."""
    if not words:
        yield None
    for word in words:
        if word != STDIN:
            yield word
            continue
        text = read_stdin(terminal).decode(sys.stdin.encoding, sys.stdin.errors or "strict")
        lines = [line.strip() for line in io.StringIO(text.removeprefix("\ufeff"), newline=None)]
        if not any(lines):
            raise UsageError("no prompt on standard input: expected one per line")
        yield from filter(None, lines)


def is_url(source: str) -> bool:
    """Whether Kie can fetch it; anything else is a file on this machine."""
    return source.lower().startswith(("http://", "https://"))


def check_file(source: str, option: str) -> None:
    """Raises `UsageError` unless it is a file that can be read, and has something in it."""
    try:
        with Path(source).expanduser().open("rb") as file:
            if file.read(1):
                return
        reason = "it is empty"
    except (OSError, ValueError, RuntimeError) as error:  # the last: a ~ without a home directory
        reason = getattr(error, "strerror", None) or str(error)
    raise UsageError(f"cannot read {option} '{source}': {reason}")


async def url_of(client: AsyncKieClient, source: str, *, stem: str | None = None) -> str:
    """The URL of an input image; a file is uploaded. An upload replaces one of the same name."""
    if is_url(source):
        return source
    name = (stem or secrets.token_hex(8)) + Path(source).suffix
    return (await client.upload(source, name=name, path="kie4o")).url


def _digest(source: str) -> str | None:
    if is_url(source):
        return None
    with Path(source).expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


@attrs.frozen
class Inputs:
    """The files and the mask of a request, as they were typed."""

    files: tuple[str, ...]
    mask: str | None

    @classmethod
    def of(cls, options: Any) -> Inputs:
        """Those of the options of `generate`."""
        return cls(options.files_url or (), options.mask_url)

    def check(self) -> None:
        """Raises `UsageError` if a local file cannot be uploaded."""
        for source, option in (*((each, "--file") for each in self.files), (self.mask, "--mask")):
            if source is not None and not is_url(source):
                check_file(source, option)

    def planned(self, options: Any) -> Any:
        """The options with a URL in place of each local file, so that a request can be checked before it is
        uploaded. Its suffix tells the format."""
        mask = None if self.mask is None else _placeholder(self.mask)
        return attrs.evolve(options, files_url=tuple(map(_placeholder, self.files)), mask_url=mask)

    async def uploaded(self, client: AsyncKieClient) -> dict[str, Any]:
        """The fields of the request, once the local files are at Kie.

        Each is named after what is in it: the same command makes the same request, as a key wants it.
        """
        urls: dict[str, str] = {}
        for source in dict.fromkeys((*self.files, *filter(None, [self.mask]))):
            urls[source] = await url_of(client, source, stem=await asyncio.to_thread(_digest, source))
        fields: dict[str, Any] = {"files_url": tuple(urls[each] for each in self.files)}
        if self.mask is not None:
            fields["mask_url"] = urls[self.mask]
        return fields if urls else {}


def as_typed(text: str) -> str:
    """A message about a planned request, with the paths of local files in it."""
    return re.sub(rf"{re.escape(_LATER)}([^'\"]*)", lambda match: unquote(match[1]), text)


def _placeholder(source: str) -> str:
    return source if is_url(source) else f"{_LATER}{quote(source, safe='')}"
