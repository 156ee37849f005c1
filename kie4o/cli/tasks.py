"""`kie4o wait`, `status` and `download`: what can be done with tasks that are paid. Free of charge."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ..details import TaskDetails, TaskState
from ..wire.decoding import shown
from ..wire.requests import is_task_id
from .clients import opened
from .going_on import TIMEOUT, GoingOn, Item
from .parameters import CONNECTED, Connected, ExistsOption, Name, OptionalStore, Out, TaskId, Timeout
from .saving import Folder, numbered
from .terminal import Status, Terminal, UsageError
from .work import Work

_IMAGES = 4  # of a task at most; how many it has is not known yet


async def wait(
    task: TaskId,
    /,
    *tasks: TaskId,
    out: Out = Path(),
    name: Name = None,
    exists: ExistsOption = None,
    store: OptionalStore = None,
    timeout: Timeout = TIMEOUT,
    terminal: Connected = CONNECTED,
) -> Status:
    """Wait until tasks have ended, and save their images. Free of charge."""
    items, folder = _items((task, *tasks), name), Folder(out, exists=exists)
    items = _checked(items, folder, terminal)
    going_on = GoingOn(terminal=terminal, folder=folder, store=store, timeout=timeout)
    terminal.going_on = functools.partial(going_on.lines, items)
    async with opened(terminal, store=store, wait_timeout=timeout) as client:
        work = Work(items=items, client=client, going_on=going_on, several=bool(tasks))

        async def save(item: Item) -> None:
            work.state(item, "waiting")
            await work.save(item, await client.wait(item.task_id or ""))

        return await work.each(save)


async def download(
    task: TaskId,
    /,
    *tasks: TaskId,
    out: Out = Path(),
    name: Name = None,
    exists: ExistsOption = None,
    terminal: Connected = CONNECTED,
) -> Status:
    """Save the images of tasks that have ended. Free of charge, for 14 days after a task."""
    items, folder = _items((task, *tasks), name), Folder(out, exists=exists)
    items = _checked(items, folder, terminal)
    going_on = GoingOn(terminal=terminal, folder=folder)
    async with opened(terminal) as client:
        work = Work(items=items, client=client, going_on=going_on, several=bool(tasks))
        return await work.each(work.save)


async def status(task: TaskId, /, *, terminal: Connected = CONNECTED) -> Status:
    """Print what Kie knows about a task. Free of charge."""
    [item] = _items([task], None)
    async with opened(terminal) as client:
        details = await client.details(item.task_id or "")
    fields = _fields(details)
    width = max(map(len, fields))
    lines = [f"{name.replace('_', ' '):<{width}}  {_text(value)}" for name, value in fields.items() if value]
    terminal.show("\n".join(lines), **fields)
    return Status.ERROR if details.state is TaskState.MISSING else Status.OK


def _items(tasks: Sequence[str], name: str | None) -> list[Item]:
    wrong = next((task for task in tasks if not is_task_id(task)), None)
    if wrong is not None:
        raise UsageError(f"invalid TASK '{shown(wrong, 80)}': expected the id of a submitted task")
    tasks = list(dict.fromkeys(tasks))
    names = numbered(name, len(tasks))
    return [Item(f"task {task}", name=names[row], task_id=task) for row, task in enumerate(tasks)]


def _checked(items: Sequence[Item], folder: Folder, terminal: Terminal) -> list[Item]:
    """The folder can be written, and no name is taken without a word about it."""
    folder.check()
    if folder.exists is None:
        for item in items:
            for images in (1, _IMAGES):
                folder.kept(item.name, images)
    return list(items)


def _fields(details: TaskDetails) -> dict[str, Any]:
    """What is known of a task, as `--json` prints it."""
    return {
        "task_id": details.task_id,
        "state": details.state.value,
        "status": details.status,
        "progress": details.progress,
        "created_at": _time(details.created_at),
        "completed_at": _time(details.completed_at),
        "error_code": details.error_code,
        "error_message": details.error_message,
        "urls": [*details.urls],
    }


def _time(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat(timespec="seconds")


def _text(value: object) -> str:
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return f"{value:.0%}" if isinstance(value, float) else shown(value, 500)
