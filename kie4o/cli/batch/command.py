"""The command `kie4o batch`: its options, and the order in which everything happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, validators

from ...gallery.folder import keep_command
from ...gallery.records import FILE_NAME, read
from ...stores.choosing import is_shared
from ..clients import opened
from ..going_on import TIMEOUT
from ..inputs import expanded
from ..parameters import CONNECTED, REQUEST, Connected, RequestOptions, Timeout
from ..saving import Folder
from ..terminal import Status, Terminal, UsageError
from .checks import (
    DEMO,
    Options,
    check_paths,
    check_store,
    checked_items,
    contents_of,
    report_problems,
    table_of,
)
from .lines import Format, Table
from .plan import Item, Plan, look_up, order_of
from .progress import Progress
from .reporter import Reporter
from .results import Results
from .run import Run
from .summary import (
    announcement,
    exit_status,
    gallery_of,
    plan_facts,
    retry_of,
    summarise,
    todo_of,
    write_failed,
)

if TYPE_CHECKING:
    from ...client import AsyncKieClient

STORE_NAME = "kie4o.db"  # in the folder of the images

File = Annotated[
    Path,
    Parameter(
        name="FILE",
        help="Requests: a prompt a line (.txt), a table with a head (.csv) or JSON objects (.jsonl) with "
        "prompt, key, name and any field of a request; - reads standard input. Paths of files in it are "
        "relative to its folder.",
    ),
]
Out = Annotated[Path, Parameter(name="--out", help="Folder for the images; created if it is missing.")]
Store = Annotated[
    str | None,
    Parameter(
        name="--store",
        help=f"File that remembers what was paid; {STORE_NAME} in --out by default. With the URL of a "
        "PostgreSQL database, several machines work through FILE together.",
    ),
]
FormatOption = Annotated[
    Format | None, Parameter(name="--format", help="Format of FILE, if its name does not tell it.")
]
InFlight = Annotated[
    int,
    Parameter(
        name="--max-in-flight",
        show_default=True,
        validator=validators.Number(gte=1),
        help="Tasks at once.",
    ),
]
MaxCredits = Annotated[
    float | None,
    Parameter(
        name="--max-credits",
        validator=validators.Number(gte=0),
        help="Credits that this run may spend at most.",
    ),
]
Limit = Annotated[
    int | None,
    Parameter(
        name="--limit",
        validator=validators.Number(gte=0),
        help="Submit at most this many requests in this run.",
    ),
]
RetryFailed = Annotated[
    bool, Parameter(name="--retry-failed", help="Submit again what has failed. It costs again.")
]
FailedFile = Annotated[
    Path | None, Parameter(name="--failed", help="File for the lines that failed, in the format of FILE.")
]
DryRun = Annotated[bool, Parameter(name="--dry-run", help="Check every line and file, and tell the price.")]
Every = Annotated[
    float,
    Parameter(
        name="--progress-every",
        show_default=True,
        validator=validators.Number(gt=0),
        help="Seconds between two lines of progress, where nothing can be drawn.",
    ),
]


async def batch(
    file: File,
    /,
    *,
    out: Out,
    store: Store = None,
    format: FormatOption = None,  # noqa: A002  # the name of the option
    request: RequestOptions = REQUEST,
    max_in_flight: InFlight = 100,
    max_credits: MaxCredits = None,
    limit: Limit = None,
    retry_failed: RetryFailed = False,
    failed: FailedFile = None,
    dry_run: DryRun = False,
    timeout: Timeout = TIMEOUT,
    progress_every: Every = 30.0,
    terminal: Connected = CONNECTED,
) -> Status:
    """Generate the images of a file of requests, and go on with it when it is run again. Costs credits."""
    data, kind = contents_of(file, format, terminal)
    folder = expanded(out, "--out")
    options = Options(
        file=file,
        out=folder,
        store=_store_of(store, folder),
        kind=kind,
        failed=None if failed is None else expanded(failed, "--failed"),
        limit=limit,
        max_credits=max_credits,
        retry_failed=retry_failed,
        every=progress_every,
        is_demo=DEMO in os.environ,
    )
    table = table_of(data, options, request)
    items = await asyncio.to_thread(checked_items, table, options, terminal)
    if dry_run:
        return await _dry_run(items, options, terminal)
    Folder(options.out).check()
    check_paths(options)
    terminal.going_on = lambda: [f"to go on: {terminal.again()}"]
    settings: dict[str, Any] = {"wait_timeout": timeout, "max_in_flight": max_in_flight}
    async with opened(terminal, store=options.store, **settings) as client:
        with Results(options.out) as results:
            names = await asyncio.to_thread(os.listdir, options.out)
            edited = results.were_edited(order_of(items))
            plan = await look_up(
                items, results.records, names, client.find, retry_failed=retry_failed, edited=edited
            )
            report_problems([*plan.problems()], options, terminal)
            check_store(plan, options, terminal)
            return await _run(plan, table, client, results, options, terminal)


def _store_of(given: str | None, folder: Path) -> Path | str:
    """The default is a file beside the images."""
    if given is None:
        return folder / STORE_NAME
    return given if is_shared(given) else expanded(Path(given), "--store")


async def _dry_run(items: Sequence[Item], options: Options, terminal: Terminal) -> Status:
    """Tell what a run would do. The store is read if there is one, and nothing is written."""
    is_there = options.out.is_dir()
    if options.out.exists() and not is_there:
        raise UsageError(f"cannot write to --out '{options.out}': it is not a folder")
    names = await asyncio.to_thread(os.listdir, options.out) if is_there else []
    async with contextlib.AsyncExitStack() as stack:
        find: Any = _nothing
        if isinstance(options.store, str) or options.store.is_file():
            client = await stack.enter_async_context(opened(terminal, offline=True, store=options.store))
            find = client.find
        records = read(options.out / FILE_NAME)
        plan = await look_up(items, records, names, find, retry_failed=options.retry_failed, edited=False)
    report_problems([*plan.problems()], options, terminal)
    check_store(plan, options, terminal)
    todo = todo_of(plan, options)
    terminal.show(f"{announcement(plan, todo)}; nothing was sent", event="plan", **plan_facts(plan, todo))
    return Status.OK


async def _nothing(_: str) -> None:
    """What a store that is not there has under any key."""


async def _run(
    plan: Plan,
    table: Table,
    client: AsyncKieClient,
    results: Results,
    options: Options,
    terminal: Terminal,
) -> Status:
    todo = todo_of(plan, options)
    counts, tried = plan.counts(), Plan(todo).counts()
    progress = Progress(
        title=options.title,
        total=len(plan.items) - counts["to submit"] + tried["to submit"],
        done=counts["saved"],
        failed=counts["failed"] - tried["failed"],
        running=counts["under way"],
    )
    run = Run(
        client=client,
        results=results,
        reporter=Reporter(terminal, progress, options.every),
        out=options.out,
        max_credits=options.max_credits,
        retry_failed=options.retry_failed,
        shared=isinstance(options.store, str),
        stop=asyncio.Event(),
        records={record.key: record for record in results.records},
    )
    terminal.note(announcement(plan, todo))
    run.reporter.event("plan", **plan_facts(plan, todo))
    run.reserve_names(plan.items)
    results.remember_lines(order_of(plan.items))
    keep_command(options.out, retry_of(options, terminal))
    async with run.reporter.shown():
        with _first_interrupt(run.stop, run.reporter.stopping) as interrupted:
            await run.run(todo)
    gallery = await gallery_of(run, options, terminal)
    if options.failed is not None:
        await asyncio.to_thread(write_failed, options.failed, table, plan, run)
    await summarise(plan, run, options, gallery, terminal)
    limited = counts["to submit"] > tried["to submit"]
    return exit_status(run, progress, interrupted=bool(interrupted) and progress.left > 0, limited=limited)


@contextlib.contextmanager
def _first_interrupt(stop: asyncio.Event, say: Callable[[], None]) -> Iterator[list[int]]:
    """The first Ctrl-C sets the event; another one does what it does elsewhere."""
    loop, seen, previous = asyncio.get_running_loop(), list[int](), signal.getsignal(signal.SIGINT)

    def first(number: int, _: object) -> None:
        seen.append(number)
        signal.signal(signal.SIGINT, previous)
        loop.call_soon_threadsafe(stop.set)
        loop.call_soon_threadsafe(say)

    signal.signal(signal.SIGINT, first)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, previous)
