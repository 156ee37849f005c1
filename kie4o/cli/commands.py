"""The commands that talk to Kie: `generate`, `wait` and `credits`.

Their docstrings are the help texts. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import contextlib
import json as json_text
import os
import secrets
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from ..client import AsyncKieClient
from ..errors import ConfigurationError, KieError, TaskFailedError, TaskNotFoundError, TaskTimeoutError
from ..image_request import ImageRequest, Size, Variants
from ..settings import KEY_VARIABLES
from ..stores.memory import MemoryStore
from ..stores.store import EntryState
from ..task import ImageTask
from ..wire.decoding import shown
from .board import Board, note

_KEY = "kie4o generate"  # the key of the one submit, under which the store knows its state


async def generate(
    prompt: str,
    /,
    *,
    size: Size = "1:1",
    n_variants: Variants = 1,
    file: Sequence[str] | None = None,
    mask: str | None = None,
    enhance: bool = False,
    directory: Path = Path(),
    name: str | None = None,
    timeout: float = 900.0,
    json: bool = False,
) -> None:
    """Generate images from a prompt and save them. Costs credits of the account of KIE_API_KEY.

    Args:
        prompt: What to draw, or how to edit the files.
        size: Aspect ratio.
        n_variants: Number of images; each choice has its own price.
        file: Path or URL of an image to edit or to start from; can be repeated, up to 5 times.
        mask: URL of a mask for a single --file: black areas change, white areas stay.
        enhance: Let Kie improve the prompt.
        directory: Directory for the images.
        name: File name, instead of the task id.
        timeout: Seconds to wait for the task, which keeps running after that.
        json: Print one JSON object instead of the paths.
    """
    sources = file or ()
    # Placeholders: a request that cannot succeed is refused before anything is uploaded.
    urls = ("https://not-uploaded-yet",) * len(sources)
    request = ImageRequest(
        prompt, size=size, n_variants=n_variants, files_url=urls, mask_url=mask, is_enhance=enhance
    )
    async with _paying_client(timeout) as client:
        _create(directory)  # fails before anything is paid
        request = attrs.evolve(request, files_url=[await _url_of(client, source) for source in sources])
        with Board([shown(prompt, 60)], sys.stderr) as board:
            board.show(0, "submitting")
            task = await client.submit(request, key=_KEY)
            note(f"task {task.id} was submitted; to resume: kie4o wait {task.id}")
            report = await _wait_and_save(client, task, board, directory, name)
    print(json_text.dumps(report) if json else "\n".join(report["files"]))


async def wait(task_id: str, /, *, directory: Path = Path(), timeout: float = 900.0) -> None:
    """Resume a task: wait until it ends and save its images. Free of charge.

    Args:
        task_id: The id that `kie4o generate` printed.
        directory: Directory for the images.
        timeout: Seconds to wait for the task, which keeps running after that.
    """
    async with _client(wait_timeout=timeout) as client:
        with Board([f"task {task_id}"], sys.stderr) as board:
            report = await _wait_and_save(client, client.task(task_id), board, directory)
    print("\n".join(report["files"]))


async def credits() -> None:  # noqa: A001  # the name of the command
    """Print the balance of the account of KIE_API_KEY."""
    async with _client() as client:
        print(await client.credits())


def _client(**settings: Any) -> AsyncKieClient:
    """A client with the key of the environment, which is the only way to pass one here."""
    if not any(os.environ.get(name, "").strip() for name in KEY_VARIABLES):
        raise ConfigurationError("no API key; create one at kie.ai/api-key and set KIE_API_KEY")
    return AsyncKieClient(**settings)


@contextlib.asynccontextmanager
async def _paying_client(timeout: float) -> AsyncIterator[AsyncKieClient]:
    """A client for one submit. If an error or Ctrl-C ends its use, a note says how to resume a paid task."""
    store = MemoryStore()
    try:
        async with _client(wait_timeout=timeout, store=store) as client:
            yield client
    except (TaskFailedError, TaskNotFoundError, TaskTimeoutError):
        raise  # nothing to resume, or the error itself says how
    except BaseException as error:
        entry = await store.find(key=_KEY)  # complete: closing the client waits for the answer to a submit
        if entry is not None and entry.task_id is not None:
            note(f"task {entry.task_id} is paid; to resume: kie4o wait {entry.task_id}")
        elif entry is not None and entry.state is not EntryState.PLANNED and not isinstance(error, KieError):
            note("the request was sent and may have been charged; check kie.ai/logs")
        raise


async def _wait_and_save(
    client: AsyncKieClient, task: ImageTask, board: Board, directory: Path, name: str | None = None
) -> dict[str, Any]:
    """What `--json` prints of a task, once it has ended and its images are saved."""
    result = await task.wait(on_update=lambda details: board.show(0, details.state.value))
    paths = await client.download(result, directory, name=name)
    board.show(0, "saved", done=True)
    return {"task_id": task.id, "urls": [*result], "files": [str(path.absolute()) for path in paths]}


async def _url_of(client: AsyncKieClient, source: str) -> str:
    """The URL of an input image; a file is uploaded."""
    if source.lower().startswith(("http://", "https://")):
        return source
    name = secrets.token_hex(8) + Path(source).suffix  # unique, as an upload replaces one of the same name
    return (await client.upload(source, name=name)).url


def _create(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
