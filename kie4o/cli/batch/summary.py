"""What a batch says before it begins and once it has ended, and its exit status."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import CreditLimitError, KieError
from ...gallery.folder import keep_command
from ..messages import message_of, status_of
from ..terminal import Status, Terminal
from .checks import Options
from .lines import Table, listed
from .plan import Item, Plan
from .progress import Progress
from .run import Run, least_limit, limit_of, without_hash


def todo_of(plan: Plan, options: Options) -> list[Item]:
    """What this run brings to an end, in this order: what needs no submit comes first."""
    failed = [item for item in plan.of("failed") if item.record is None or item.record.state != "failed"]
    return plan.of("done", "under way", "unknown") + failed + plan.of("to submit")[: options.limit]


def plan_facts(plan: Plan, todo: Sequence[Item]) -> dict[str, Any]:
    """The same for a program."""
    counts = plan.counts()
    submitted = [item for item in todo if item.state == "to submit"]
    return {
        "done": counts["saved"] + counts["done"],
        "under_way": counts["under way"],
        "unknown": counts["unknown"],
        "failed": counts["failed"],
        "to_submit": len(submitted),
        "price": float(Plan(submitted).price()),
    }


def announcement(plan: Plan, todo: Sequence[Item]) -> str:
    """What there is to do, before it is done."""
    facts = plan_facts(plan, todo)
    parts = [f"{facts['done']:,} done", f"{facts['under_way']:,} under way", f"{facts['unknown']:,} unknown"]
    if facts["failed"]:
        parts.append(f"{facts['failed']:,} failed (--retry-failed submits them again)")
    parts.append(f"{facts['to_submit']:,} to submit for {facts['price']:,g} credits")
    return ", ".join(parts)


def retry_of(options: Options, terminal: Terminal) -> str:
    """The command that submits again what has failed; none in a demo, with which its Kie ends."""
    if options.is_demo:
        return ""
    return terminal.again(*(() if options.retry_failed else ("--retry-failed",)))


async def gallery_of(run: Run, options: Options, terminal: Terminal) -> Path | None:
    """The page of the images, if it can be written: the images are there without it."""
    try:
        if least_limit(run.error) is not None:
            keep_command(options.out, "")
        from ...gallery.page import write_gallery

        return await asyncio.to_thread(write_gallery, options.out)
    except ImportError as error:
        reason = f"it needs {error.name}"
    except (KieError, OSError) as error:
        reason = message_of(error)
    terminal.note(f"the gallery was not written: {reason}")
    return None


def write_failed(path: Path, table: Table, plan: Plan, run: Run) -> None:
    """Write the lines that failed, as they came."""
    failed = [item.line.number for item in plan.items if run.state_of(item) == "failed"]
    path.expanduser().write_bytes(table.text(failed).encode("utf-8", "surrogatepass"))


async def summarise(plan: Plan, run: Run, options: Options, gallery: Path | None, terminal: Terminal) -> None:
    """What has become of the batch, what it cost, and what goes on with it."""
    states = Counter(run.state_of(item) for item in plan.items)
    images = sum(len(record.files) for item in plan.items if (record := run.records.get(item.key)))
    spent, balance = await run.client.spent(), None
    with contextlib.suppress(KieError):
        balance = await run.client.credits()
    run.reporter.repeated()
    progress = run.reporter.progress
    progress.credits = run.spent_in(spent)
    parts = [f"{states['done']:,} of {len(plan.items):,} done", f"{states['failed']:,} failed"]
    parts += [f"{states['unknown']:,} unknown", f"{states['not_submitted']:,} not submitted"]
    lines = [", ".join(parts) + f"; {images:,} image{'s' * (images != 1)} in '{run.out}'"]
    left = "" if balance is None else f"; balance {balance:,f}"
    lines.append(f"spent {progress.credits:,f} credits in this run, {spent.credits:,f} in all{left}")
    if run.elsewhere:
        lines.append(f"{run.elsewhere:,} were submitted by other processes meanwhile")
    if isinstance(run.error, CreditLimitError):
        lines.append(limit_of(run.error))
    elif run.error is not None:
        terminal.fail(
            _stopped(run, run.error),
            error=type(run.error).__name__,
            task_id=getattr(run.error, "task_id", None),
        )
    lines += _settling(run, options, terminal)
    lines += _going_on(plan, run, options, terminal)
    if gallery is not None:
        lines.append(f"gallery: {gallery}")
    terminal.show(
        "\n".join(lines),
        event="summary",
        **{state: states[state] for state in ("done", "failed", "unknown", "not_submitted")},
        elsewhere=run.elsewhere,
        images=images,
        spent=float(progress.credits),
        spent_in_all=float(spent.credits),
        balance=None if balance is None else float(balance),
        results=str(run.results.path),
        gallery=None if gallery is None else str(gallery),
        command=terminal.again(),
    )


def _stopped(run: Run, error: KieError | OSError) -> str:
    """Why the batch has stopped, which may have been said of a request."""
    said = without_hash(error)
    line = run.reporter.said_of(said)
    if line is not None:
        return f"stopped because of line {line}"
    return f"stopped: {said.removeprefix('the batch stopped: ')}"


def _settling(run: Run, options: Options, terminal: Terminal) -> Iterator[str]:
    """What to do about unknown outcomes."""
    if not run.unknown:
        return
    store = {"--store": options.store}
    if len(run.unknown) == 1:
        item = run.unknown[0]
        what, key = listed([item.line.number]), run.name_of(item)
    else:
        yield f"to list the unknown outcomes: {terminal.command('unfinished', **store)}"
        what, key = "each", "KEY"
    settle = terminal.command("settle", key, **store)
    yield f"look for {what} at kie.ai/logs, then tell kie4o: {settle} --task ID, or --not-charged"


def _going_on(plan: Plan, run: Run, options: Options, terminal: Terminal) -> Iterator[str]:
    """The command that goes on with what is left. One that costs again is the last."""
    if options.is_demo:
        return
    if (least := least_limit(run.error)) is not None:
        yield f"to go on, raise --max-credits to {least} or more"
    elif run.unfinished(plan.items):
        yield f"to go on: {terminal.again()}"
    elif any(run.state_of(item) == "failed" for item in plan.items):
        yield f"to submit the failed ones again: {retry_of(options, terminal)}"


def exit_status(run: Run, progress: Progress, *, interrupted: bool, limited: bool) -> Status:
    """What a script needs to know first: money whose fate is unknown, then why the run stopped, then that
    `--limit` has left requests out, then what failed."""
    if interrupted:
        return Status.INTERRUPTED
    if run.unknown:
        return Status.UNKNOWN
    if isinstance(run.error, CreditLimitError):
        return Status.LIMIT
    if run.error is not None:
        return status_of(run.error)
    if limited:
        return Status.LIMIT
    return Status.SOME_FAILED if progress.failed or progress.unknown else Status.OK
