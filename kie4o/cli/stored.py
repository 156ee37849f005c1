"""`kie4o unfinished`, `resume`, `settle` and `prune`: what a store remembers, and what becomes of it."""

from __future__ import annotations

import asyncio
import functools
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ..models import Completion
from ..stores.store import EntryState
from ..wire.decoding import shown
from .clients import existing_store, opened
from .going_on import TIMEOUT, GoingOn, Item
from .parameters import CONNECTED, Connected, ExistsOption, Out, Store, Timeout
from .saving import Folder
from .terminal import Status, UsageError
from .work import Work

if TYPE_CHECKING:
    from ..stores.store import Entry

Key = Annotated[str, Parameter(name="KEY", help="Its key or ref, as kie4o unfinished lists them.")]
Task = Annotated[str | None, Parameter(name="--task", help="The id of its task, found at kie.ai/logs.")]
NotCharged = Annotated[
    bool, Parameter(name="--not-charged", help="It is not at kie.ai/logs: the next run may submit it again.")
]
Age = Annotated[
    str,
    Parameter(name="--older-than", help="Remove what ended longer ago than this, such as 30d, 12h or 90m."),
]
_AGE = re.compile(r"([0-9]{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


async def unfinished(*, store: Store, terminal: Connected = CONNECTED) -> None:
    """List what is paid, or may be, and has not finished. Sends nothing."""
    async with opened(terminal, offline=True, store=existing_store(store)) as client:
        entries = [entry async for entry in client.unfinished()]
    for entry in entries:
        fields = _fields(entry)
        task = f"task {entry.task_id}" if entry.task_id else "outcome unknown"
        key = fields["key"] or f"ref {entry.ref}"
        words = f"{fields['sent_at'] or '-':<20}  {task}  {key}  {shown(entry.request.prompt or '', 60)}"
        terminal.show(words, **fields)
    if not entries:
        terminal.note("nothing is unfinished")


async def resume(
    *,
    store: Store,
    out: Out = Path(),
    exists: ExistsOption = None,
    timeout: Timeout = TIMEOUT,
    terminal: Connected = CONNECTED,
) -> Status:
    """Wait for everything that is unfinished, and save its images. Submits nothing."""
    folder = Folder(out, exists=exists)
    existing_store(store)
    folder.check()
    going_on = GoingOn(terminal=terminal, folder=folder, store=store, timeout=timeout)
    async with opened(terminal, store=store, wait_timeout=timeout) as client:
        entries = [entry async for entry in client.unfinished()]
        if not entries:
            terminal.note("nothing is unfinished")
            return Status.OK
        items = [_item(entry) for entry in entries]
        work = Work(items=items, client=client, going_on=going_on, several=len(items) > 1)
        terminal.going_on = functools.partial(going_on.lines, items)
        await _resumed(work)
        return work.status()


async def _resumed(work: Work[Item]) -> None:
    """Save the images of each task as soon as it has ended, also while others are waited for."""
    saving: list[asyncio.Task[None]] = []
    async with work.shown():
        for item in work.items:
            work.state(item, "running")
        try:
            async for completion in work.client.resume():
                save = work.one(functools.partial(_save, work, completion), work.items[completion.index])
                saving.append(asyncio.create_task(save, name="kie4o save"))
            await asyncio.gather(*saving)
        finally:
            for task in saving:
                task.cancel()


async def _save(work: Work[Item], completion: Completion, item: Item) -> None:
    item.task_id = item.task_id or completion.task_id
    await work.save(item, completion.unwrap())


async def settle(
    key: Key,
    /,
    *,
    store: Store,
    task: Task = None,
    not_charged: NotCharged = False,
    terminal: Connected = CONNECTED,
) -> None:
    """Record what you found out about a request with an unknown outcome. Submits nothing."""
    if not key:
        raise UsageError("invalid KEY '': expected a key or a ref, as kie4o unfinished lists them")
    if (task is None) != not_charged:
        raise UsageError(
            "expected either --task ID or --not-charged: what kie.ai/logs says about the request"
        )
    async with opened(terminal, offline=not_charged, store=existing_store(store)) as client:
        entry = await client.settle(key, task_id=task, charged=None if task is not None else False)
    found = f"has task {entry.task_id}" if entry.task_id else "was not charged"
    terminal.show(f"{entry.callers_key or entry.ref} {found}", **_fields(entry))
    if entry.task_id and entry.state is not EntryState.FAILED:  # resume takes none that has ended
        going_on = GoingOn(terminal=terminal, folder=Folder(Path()), store=store)
        terminal.note(f"to save its images: {going_on.command('wait', _item(entry))}")


async def prune(*, store: Store, older_than: Age, terminal: Connected = CONNECTED) -> None:
    """Remove from a store what ended long ago. Its keys are forgotten: the same request is paid again."""
    age = _age(older_than)
    async with opened(terminal, offline=True, store=existing_store(store)) as client:
        removed = await client.prune(older_than=age)
    terminal.show(f"{removed} removed", removed=removed)


def _age(text: str) -> timedelta:
    match = _AGE.fullmatch(text)
    age = timedelta() if match is None else timedelta(**{_UNITS[match[2]]: int(match[1])})
    if not age:
        raise UsageError(f"invalid --older-than '{shown(text, 80)}': expected a time such as 30d, 12h or 90m")
    return age


def _item(entry: Entry) -> Item:
    return Item(shown(entry.request.prompt or "no prompt", 60), task_id=entry.task_id)


def _fields(entry: Entry) -> dict[str, Any]:
    at = entry.submitted_at if entry.sent_at is None else entry.sent_at
    return {
        "key": entry.callers_key,
        "ref": entry.ref,
        "state": entry.state.value,
        "task_id": entry.task_id,
        "prompt": entry.request.prompt,
        "sent_at": None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"),
    }
