"""The command line: `kie4o demo`, `generate`, `wait`, `credits`.

Only what talks to a person lives here: progress, results on stdout, and for every failure one line
on stderr with an exit status (1 an error, 2 wrong usage, 130 Ctrl-C). cyclopts and rich are
optional and are imported late, so that their absence is a sentence and not a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json as json_text
import logging
import random
import secrets
import sys
import warnings
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import attrs

from . import __version__
from .client import AsyncKieClient
from .decoding import shown
from .emulator import Emulator
from .errors import KieError, TaskFailedError, TaskNotFoundError
from .memory import MemoryStore
from .models import ImageRequest, RateLimit, Size, Variants
from .pacing import GAP, PollPolicy
from .store import EntryState
from .task import ImageTask

_ABOUT = "Images by Kie.ai's GPT-4o image API. Settings: KIE_API_KEY, KIE_BASE_URL, KIE_UPLOAD_URL."
_KEY = "kie4o generate"  # by which the store is asked what became of the one submit
_DEMO: tuple[tuple[str, Size], ...] = (
    ("A lighthouse above a calm sea at first light", "3:2"),
    ("A fox asleep under autumn leaves, watercolour", "1:1"),
    ("A small bookshop in the rain, warm windows", "2:3"),
    ("Hot-air balloons over green hills", "3:2"),
    ("A kingfisher on a reed, macro photograph", "2:3"),
    ("A bowl of lemons on a blue table, oil on canvas", "1:1"),
    ("A night train on a viaduct under the stars", "3:2"),
    ("A tiny greenhouse full of ferns, isometric", "1:1"),
)


async def demo(*, directory: Path = Path("kie4o-demo"), speed: float = 10.0) -> None:
    """Generate eight pictures side by side, on an emulator of Kie: free, offline, without a key.

    Args:
        directory: Where the pictures are saved.
        speed: How many times faster than life the emulator runs.
    """
    if not 0.1 <= speed <= 1000:
        _note(f"--speed {speed:g} is not possible: use a number from 0.1 to 1000")
        sys.exit(2)
    limit = RateLimit(20, per=10.0 / speed)
    poll = PollPolicy(first=max(GAP, 2.0 / speed), maximum=max(GAP, 5.0 / speed))

    async def one(row: int, prompt: str, size: Size) -> Path:
        board.say(row, "submitting")
        task = await client.submit(prompt, size=size)
        board.say(row, "running")
        name = f"{row + 1:02} {prompt.partition(',')[0]}".lower().replace(" ", "-")
        [path] = await client.download(await task, directory, name=name)
        board.say(row, "saved", ended=True)
        return path

    async with (
        Emulator(speed=speed, duration=lambda: random.lognormvariate(3.0, 0.2)) as kie,  # around 20 s
        AsyncKieClient("demo", base_url=kie.url, upload_url=kie.url, rate_limit=limit, poll=poll) as client,
    ):
        print(f"This is an emulator of Kie at {kie.url}, {speed:g} times faster than life.")
        print("Nothing leaves this machine, nothing is charged, and no API key is needed.", flush=True)
        with (board := _Board([prompt for prompt, _ in _DEMO], sys.stdout)).progress:
            paths = await asyncio.gather(*(one(row, *wanted) for row, wanted in enumerate(_DEMO)))
    print(f"{len(paths)} pictures:", *(f"  {path.absolute()}" for path in paths), sep="\n")
    print('Next, for real: set KIE_API_KEY, then run: kie4o generate "A calm lake at dawn"')


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
        with (board := _Board([shown(prompt, 60)], sys.stderr)).progress:
            board.say(0, "submitting")
            task = await client.submit(request, key=_KEY)
            _note(f"task {task.id} (kie4o wait {task.id} takes it up again)")
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
        with (board := _Board([f"task {task_id}"], sys.stderr)).progress:
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
                _note(f"to go on with task {entry.task_id}: kie4o wait {entry.task_id}")
            elif entry.state is not EntryState.PLANNED and not isinstance(error, KieError):
                _note("the request has left and is perhaps paid: look at kie.ai/logs")
        raise


async def _finish(
    client: AsyncKieClient, task: ImageTask, board: _Board, directory: Path, name: str | None = None
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


def _note(words: str) -> None:
    print(f"kie4o: {shown(words, 1000)}", file=sys.stderr, flush=True)


class _Board:
    """What is going on: a line per request that moves on a terminal, plain lines elsewhere."""

    def __init__(self, labels: Sequence[str], stream: TextIO) -> None:
        from rich import progress as rich
        from rich.console import Console

        console = Console(file=stream)
        self.progress = rich.Progress(
            rich.SpinnerColumn("line"),
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(16),
            rich.TextColumn("{task.fields[state]}", markup=False),
            rich.TimeElapsedColumn(),
            console=console,
            disable=not console.is_interactive,
        )
        self._rows = [self.progress.add_task(label, total=None, state="") for label in labels]
        self._all = self.progress.add_task("in all", total=len(labels), state="", visible=len(labels) > 1)

    def say(self, row: int, state: str, *, ended: bool = False) -> None:
        task = self.progress.tasks[row]
        if self.progress.disable and task.fields["state"] != state:
            line = f"{task.elapsed:6.1f} s  {task.description}: {state}"
            print(line, file=self.progress.console.file, flush=True)
        one = 1 if ended else None
        self.progress.update(self._rows[row], state=state, total=one, completed=one)
        self.progress.update(self._all, advance=one)


def _run(words: Sequence[str]) -> int:
    """Do what the words ask for; the exit status."""
    try:
        from cyclopts import App, CycloptsError, Parameter  # needs rich itself
    except ImportError as error:
        _note(f"the command line needs {error.name}: pip install 'kie4o[cli]'")
        return 1
    app = App("kie4o", version=__version__, help=_ABOUT, default_parameter=Parameter(negative=()))
    for command in (demo, generate, wait, credits):
        app.command(command)
    try:
        chosen, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
        outcome = chosen(*bound.args, **bound.kwargs)
        if asyncio.iscoroutine(outcome):
            asyncio.run(outcome)
        sys.stdout.flush()
        return 0
    except (CycloptsError, KieError, OSError) as error:
        _note(str(error))
        return 2 if isinstance(error, CycloptsError) else 1
    except KeyboardInterrupt:
        _note("interrupted")
        return 130


def main() -> NoReturn:
    logging.getLogger("kie4o").addHandler(logging.NullHandler())  # what matters is said here
    warnings.simplefilter("once", UserWarning)
    warnings.formatwarning = lambda message, *_, **__: f"kie4o: {message}\n"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter still shows the rest
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_run(sys.argv[1:]))


if __name__ == "__main__":
    main()
