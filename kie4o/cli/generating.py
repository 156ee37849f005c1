"""`kie4o generate`: prompts become images in a folder.

Whatever can be checked without paying is checked before anything is uploaded or submitted.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
from cyclopts import Parameter

from ..errors import KieError
from ..image_request import ImageRequest
from ..wire.decoding import shown
from .clients import opened
from .going_on import TIMEOUT, GoingOn, Item
from .inputs import Inputs, prompts_of
from .options import request_of
from .parameters import (
    CONNECTED,
    REQUEST,
    Connected,
    ExistsOption,
    Name,
    OptionalStore,
    Out,
    Prompts,
    RequestOptions,
    Timeout,
)
from .saving import Folder, numbered
from .terminal import Status, Terminal, UsageError
from .work import Work, show_files

if TYPE_CHECKING:
    from ..client import AsyncKieClient

Assignments = Annotated[
    list[str] | None,
    Parameter(
        name="--set",
        help="name=value: a parameter that kie4o does not know, under Kie's name; --set again for more.",
    ),
]
Key = Annotated[
    str | None,
    Parameter(help="Pay once under this key, which --store remembers; numbered if there are several."),
]
RetryFailed = Annotated[
    bool,
    Parameter(name="--retry-failed", help="Submit again what has failed under --key, which costs again."),
]
NoWait = Annotated[bool, Parameter(name="--no-wait", help="Print the task ids, for kie4o wait.")]


@attrs.define(kw_only=True, eq=False)
class _Prompt(Item):
    """One prompt with its request."""

    index: int
    request: ImageRequest
    key: str

    def fields(self) -> dict[str, Any]:
        """What `--json` prints of it first."""
        known = {"index": self.index, "prompt": self.request.prompt, "task_id": self.task_id}
        return known | {"replayed": self.replayed}


async def generate(
    *prompts: Prompts,
    request: RequestOptions = REQUEST,
    set: Assignments = None,  # noqa: A002  # the name of the option
    out: Out = Path(),
    name: Name = None,
    exists: ExistsOption = None,
    store: OptionalStore = None,
    key: Key = None,
    retry_failed: RetryFailed = False,
    no_wait: NoWait = False,
    timeout: Timeout = TIMEOUT,
    terminal: Connected = CONNECTED,
) -> Status:
    """Generate images from prompts and save them. Costs credits of the account of KIE_API_KEY."""
    _check_key(key, store, retry_failed=retry_failed)
    inputs, folder = Inputs.of(request), Folder(out, exists=exists)
    items = _items([*prompts_of(prompts, terminal)], inputs.planned(request), set or (), name, key)
    inputs.check()
    several = len(items) > 1
    if not no_wait:
        folder.check()
        items = [item for item in items if not _is_kept(item, folder, terminal, resumed=key is not None)]
    if not items:
        return Status.OK
    going_on = GoingOn(terminal=terminal, folder=folder, store=store, timeout=timeout, again=key is not None)
    terminal.going_on = functools.partial(going_on.lines, items)
    async with _accounted(items, terminal, store, timeout) as client:
        uploaded = await inputs.uploaded(client)
        for item in items:
            item.request = attrs.evolve(item.request, **uploaded)
        work = Work(items=items, client=client, going_on=going_on, several=several)
        each = functools.partial(_generate, work, retry_failed=retry_failed, no_wait=no_wait)
        return await work.each(each)


async def _generate(work: Work[_Prompt], item: _Prompt, *, retry_failed: bool, no_wait: bool) -> None:
    """Submit a prompt, wait for its task and save its images."""
    work.state(item, "waiting")  # for a slot of the rate limit, then for Kie's answer
    earlier = await work.client.find(item.key)
    task = await work.client.submit(item.request, key=item.key, retry_failed=retry_failed)
    item.task_id = task.id
    what = "is paid"
    if earlier is not None and earlier.task_id == task.id:
        item.replayed = earlier.state.ended
        what = "is in the store, and is not paid again" if item.replayed else "was paid in an earlier run"
    hint = f"; to go on: {work.going_on.command('wait', item)}" if no_wait else ""
    work.terminal.note(f"task {task.id} {what}{hint}")
    if no_wait:
        item.saved = True
        work.state(item, "submitted", done=True)
        work.terminal.show(task.id, **item.fields())
        return
    if not item.replayed:
        work.state(item, "running")
    await work.save(item, await task.wait())


def _check_key(key: str | None, store: str | None, *, retry_failed: bool) -> None:
    """Raises `UsageError` or `InvalidRequestError`. A blank key would be one for every request."""
    from ..arguments import key_of

    if key_of(key) is None and retry_failed:
        raise UsageError("--retry-failed has no effect without --key")
    if key is not None and store is None:
        raise UsageError(f"invalid --key '{key}': expected --store too, the file that remembers it")


def _items(
    prompts: Sequence[str | None], options: Any, assignments: Sequence[str], name: str | None, key: str | None
) -> list[_Prompt]:
    """The prompts with their requests, which are refused here if Kie could only refuse them."""
    requests = [request_of(prompt, options, assignments) for prompt in prompts]
    names, keys = numbered(name, len(requests)), numbered(key, len(requests))
    return [
        _Prompt(
            shown(each.prompt or "no prompt", 60),
            index=index,
            request=each,
            name=names[index],
            key=keys[index] or f"generate-{secrets.token_hex(8)}",  # the store is asked about it after Ctrl-C
        )
        for index, each in enumerate(requests)
    ]


def _is_kept(item: _Prompt, folder: Folder, terminal: Terminal, *, resumed: bool) -> bool:
    """Whether its images are there already, so that nothing is paid for it."""
    files = folder.kept(item.name, item.request.n_variants, resumed=resumed)
    if files:
        terminal.note(f"'{files[0]}' exists and is kept; nothing is submitted")
        show_files(item, files, terminal, kept=True)
    return bool(files)


@contextlib.asynccontextmanager
async def _accounted(
    items: Sequence[_Prompt], terminal: Terminal, store: str | None, timeout: float
) -> AsyncIterator[AsyncKieClient]:
    """A client. If Ctrl-C ends its use, the items learn what became of the requests that were sent."""
    from ..stores.memory import MemoryStore

    remembered = MemoryStore() if store is None else store
    client: AsyncKieClient | None = None
    try:
        async with opened(terminal, store=remembered, wait_timeout=timeout) as client:
            yield client
    except asyncio.CancelledError:
        if client is not None:
            with contextlib.suppress(KieError):
                await _ask_the_store(client, items, terminal)
        raise


async def _ask_the_store(client: AsyncKieClient, items: Sequence[_Prompt], terminal: Terminal) -> None:
    """Closing the client has waited for the answers; what they were is in the store."""
    by_key = {item.key: item for item in items if item.task_id is None}
    async with client:
        async for entry in client.unfinished():
            item = by_key.get(entry.key)
            if item is not None:
                item.task_id, item.unknown = entry.task_id, entry.task_id is None
                if item.task_id is not None:
                    terminal.note(f"task {item.task_id} is paid")
