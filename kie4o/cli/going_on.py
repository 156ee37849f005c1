"""The commands that go on with what is paid, whole, with the options that were typed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from ..errors import DownloadError, KieError, SubmissionUnknownError, TaskFailedError, TaskNotFoundError
from .messages import message_of
from .saving import Folder
from .terminal import Terminal

TIMEOUT = 900.0  # seconds; the default of --timeout


@attrs.define(kw_only=True, eq=False)
class Item:
    """A prompt, or a task, on its way to its images."""

    label: str = attrs.field(kw_only=False)
    name: str | None = None
    task_id: str | None = None
    saved: bool = False
    unknown: bool = False  # it was sent, and may have been charged
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
        options: dict[str, Any] = self.folder.words() | {"--name": items[0].name, "--store": self.store}
        if verb == "wait" and self.timeout != TIMEOUT:
            options["--timeout"] = f"{self.timeout:g}"
        if self.terminal.speed != 1.0:
            options["--speed"] = f"{self.terminal.speed:g}"
        return self.terminal.command(verb, *tasks, **options)

    def explained(self, error: KieError, item: Item) -> str:
        """What an error says, and what goes on with a task that is paid all the same."""
        message = message_of(error)
        if isinstance(error, SubmissionUnknownError):
            if self.store is None:
                return message
            settle = self.terminal.command(
                "settle", error.key or error.ref or "KEY", **{"--store": self.store}
            )
            return f"{message}; then tell kie4o: {settle} --task ID, or --not-charged"
        if item.task_id is None or isinstance(error, (TaskFailedError, TaskNotFoundError)):
            return message
        finished = isinstance(error, DownloadError) and "still running" not in str(error)
        verb = "download" if finished else "wait"
        return f"{message}; to go on: {self.command(verb, item)}"

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
        if paid and paid[0].name is not None:
            yield from (
                f"task {item.task_id} is paid; to go on: {self.command('wait', item)}" for item in paid
            )
        elif paid:
            what = f"task {paid[0].task_id} is" if len(paid) == 1 else f"{len(paid)} tasks are"
            yield f"{what} paid; to go on: {self.command('wait', *paid)}"
        rest = sum(1 for item in left if item.task_id is None and not item.unknown)
        if rest and len(items) > 1:
            yield f"{rest} of {len(items)} prompts were not submitted"
