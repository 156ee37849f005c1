"""The command line: `kie4o demo`, `generate`, `wait`, `credits`.

Only what talks to a person lives here: progress, results on stdout, and for every failure one line
on stderr with an exit status (1 an error, 2 wrong usage, 130 Ctrl-C). cyclopts and rich are
optional and are imported late, so that their absence is a sentence and not a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import json as json_text
import secrets
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from ..client import AsyncKieClient
from ..errors import KieError, TaskFailedError, TaskNotFoundError
from ..models import ImageRequest, Size, Variants
from ..stores.memory import MemoryStore
from ..stores.store import EntryState
from ..task import ImageTask
from ..wire.decoding import shown
from .board import Board, note

_KEY = "kie4o generate"  # by which the store is asked what became of the one submit


async def generate(
    prompt: str,
    /,
    *,
    size: Size = "1:1",
    n_variants: Variants = 1,
    file: Sequence[str] = (),
    mask: str | None = None,
    enhance: bool = False,
    directory: Path = Path(),
    name: str | None = None,
    timeout: float = 900.0,
    json: bool = False,
) -> None:
    """Turn a prompt into images and save them. Costs credits of the account of KIE_API_KEY.

    Args:
        prompt: What to draw, or how to edit the files.
        size: Aspect ratio.
        n_variants: How many images; each choice has its own price.
        file: An image to start from, a path or a URL; may be given up to 5 times.
        mask: URL of a mask for the one file: black is changed, white is kept.
        enhance: Let Kie enrich the prompt.
        directory: Where the images are saved.
        name: File name in place of the task id.
        timeout: Seconds to wait for the task; it lives on after that.
        json: Print one JSON object in place of the paths.
    """
    urls = ("https://not-uploaded-yet",) * len(file)  # what cannot succeed is refused before any upload
    request = ImageRequest(
        prompt, size=size, n_variants=n_variants, files_url=urls, mask_url=mask, is_enhance=enhance
    )
    async with _paying_client(timeout) as client:
        await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)  # while nothing is paid
        request = attrs.evolve(request, files_url=tuple([await _uploaded(client, each) for each in file]))
        with (board := Board([shown(prompt, 60)], sys.stderr)).progress:
            board.say(0, "submitting")
            task = await client.submit(request, key=_KEY)
            note(f"task {task.id} (kie4o wait {task.id} takes it up again)")
            report = await _finish(client, task, board, directory, name)
    print(json_text.dumps(report) if json else "\n".join(report["files"]))


async def wait(task_id: str, /, *, directory: Path = Path(), timeout: float = 900.0) -> None:
    """Take up a task again by its id: wait for it and save its images. Costs nothing.

    Args:
        task_id: The id that `kie4o generate` named.
        directory: Where the images are saved.
        timeout: Seconds to wait for the task; it lives on after that.
    """
    async with AsyncKieClient(wait_timeout=timeout) as client:
        with (board := Board([f"task {task_id}"], sys.stderr)).progress:
            report = await _finish(client, client.task(task_id), board, directory)
    print("\n".join(report["files"]))


async def credits() -> None:  # noqa: A001  # the name of the command
    """Print the balance of the account of KIE_API_KEY."""
    async with AsyncKieClient() as client:
        print(await client.credits())


@contextlib.asynccontextmanager
async def _paying_client(timeout: float) -> AsyncIterator[AsyncKieClient]:
    """A client for one submit; what ends its use early names the paid task and how to go on."""
    store = MemoryStore()
    try:
        async with AsyncKieClient(wait_timeout=timeout, store=store) as client:
            yield client
    except BaseException as error:
        entry = await store.find(key=_KEY)  # closing has waited for the answer of a submit under way
        if entry is not None and not isinstance(error, (TaskFailedError, TaskNotFoundError)):
            if entry.task_id is not None:
                note(f"to go on with task {entry.task_id}: kie4o wait {entry.task_id}")
            elif entry.state is not EntryState.PLANNED and not isinstance(error, KieError):
                note("the request has left and is perhaps paid: look at kie.ai/logs")
        raise


async def _finish(
    client: AsyncKieClient, task: ImageTask, board: Board, directory: Path, name: str | None = None
) -> dict[str, Any]:
    result = await task.wait(on_update=lambda details: board.say(0, details.state.value))
    paths = await client.download(result, directory, name=name)
    board.say(0, "saved", ended=True)
    return {"task_id": task.id, "urls": [*result], "files": [str(path.absolute()) for path in paths]}


async def _uploaded(client: AsyncKieClient, source: str) -> str:
    if source.lower().startswith(("http://", "https://")):
        return source
    name = secrets.token_hex(8) + Path(source).suffix  # equal names overwrite each other at Kie
    return (await client.upload(source, name=name)).url
