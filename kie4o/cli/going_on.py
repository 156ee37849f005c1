"""The commands that go on with what is paid, whole, with the options that were typed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from ..details import TaskState
from ..errors import (
    ContentPolicyError,
    DownloadError,
    KieError,
    SubmissionUnknownError,
    TaskFailedError,
    TaskNotFoundError,
    TaskTimeoutError,
)
from ..wire.decoding import shown
from .messages import message_of
from .saving import Folder
from .terminal import Terminal

TIMEOUT = 900.0  # seconds; the default of --timeout
_PROMPT = 60  # characters of a prompt that are shown


@attrs.define(kw_only=True, eq=False)
class Item:
    """A prompt, or a task, on its way to its images."""

    label: str = attrs.field(kw_only=False)
    name: str | None = None
    task_id: str | None = None
    saved: bool = False
    unknown: bool = False  # it was sent, and may have been charged
    replayed: bool = False  # its outcome is that of an earlier run, and nothing was paid now
    error: KieError | None = None  # which has been said

    def fields(self) -> dict[str, Any]:
        """What `--json` prints of it first."""
        return {"task_id": self.task_id}


@attrs.frozen(kw_only=True)
class GoingOn:
    """How a command is continued. With `again` the command itself goes on, since its requests have keys."""

    terminal: Terminal
    folder: Folder
    store: str | None = None
    timeout: float = TIMEOUT
    again: bool = False

    def command(self, verb: str, *items: Item) -> str:
        """The command that waits for the tasks of items, or downloads their images."""
        tasks = [item.task_id for item in items if item.task_id is not None]
        options: dict[str, Any] = self.folder.words() | {"--name": items[0].name}
        if verb == "wait":
            options["--store"] = self.store
            options["--timeout"] = None if self.timeout == TIMEOUT else f"{self.timeout:g}"
        if self.terminal.speed != 1.0:
            options["--speed"] = f"{self.terminal.speed:g}"
        return self.terminal.command(verb, *tasks, **options)

    def explained(self, error: KieError, item: Item) -> str:
        """What an error says, and what can be done next."""
        if isinstance(error, TaskTimeoutError) and self.timeout < TIMEOUT:
            return attrs.evolve(self, timeout=TIMEOUT).explained(error, item)  # it was too short
        following = [*self._next(error, item)]
        message = message_of(error)
        return "; ".join([message.rstrip("."), *following]) if following else message

    def lines(self, items: Sequence[Item]) -> Iterator[str]:
        """What Ctrl-C ends with."""
        left = [item for item in items if not item.saved and item.error is None]
        paid = [item for item in left if item.task_id is not None]
        for item in left:
            if item.unknown:
                yield f"the request was sent and may have been charged ({item.label}); check kie.ai/logs"
        if self.again and left:
            named = any(item.name is not None for item in left) and self.folder.exists is None
            yield f"to go on: {self.terminal.again(*(('--exists', 'keep') if named else ()))}"
            return
        together = [paid] if paid and paid[0].name is None else [[item] for item in paid]
        for each in together:
            yield f"to go on: {self.command('wait', *each)}"
        rest = sum(1 for item in left if item.task_id is None and not item.unknown)
        if rest and len(items) > 1:
            yield f"{rest} of {len(items)} prompts were not submitted"

    def _next(self, error: KieError, item: Item) -> Iterator[str]:
        """What goes on with a task that is paid all the same, or else may succeed."""
        if isinstance(error, SubmissionUnknownError):
            if self.store is not None:
                options = {"--store": self.store}
                settle = self.terminal.command("settle", error.key or error.ref or "KEY", **options)
                yield f"then tell kie4o: {settle} --task ID, or --not-charged"
        elif isinstance(error, TaskFailedError):
            yield from self._after_failure(error, item)
        elif item.task_id is not None and (verb := _verb_after(error)) is not None:
            yield f"to go on: {self.command(verb, item)}"

    def _after_failure(self, error: TaskFailedError, item: Item) -> Iterator[str]:
        """A key belongs to one request, so that a changed one needs another."""
        if item.replayed:
            yield "that was in an earlier run"
        if isinstance(error, ContentPolicyError):
            prompt = None if error.details is None else error.details.params.get("prompt")
            which = f" '{shown(prompt, _PROMPT)}'" if isinstance(prompt, str) else ""
            yield f"change the prompt{which}{' and the key' if self.again else ''}"
        if self.again:
            again = () if "--retry-failed" in self.terminal.arguments else ("--retry-failed",)
            yield f"to submit it again, which costs again: {self.terminal.again(*again)}"


def _verb_after(error: KieError) -> str | None:
    """The command that goes on with a task after an error; None if nothing can."""
    if isinstance(error, TaskNotFoundError):
        return None
    if not isinstance(error, DownloadError):
        return "wait"
    match None if error.details is None else error.details.state:
        case TaskState.RUNNING:
            return "wait"
        case TaskState.FAILED | TaskState.MISSING:
            return None
        case _:
            return "download"
