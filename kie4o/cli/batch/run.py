"""One run of a batch: requests are submitted, images saved, records written, each as soon as it can be.

Everything that is paid goes through `generate_many`. What is here is its source, what becomes of its
completions, and how it stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from ...errors import (
    AuthenticationError,
    CreditLimitError,
    InsufficientCreditsError,
    KeyConflictError,
    KeyLimitError,
    KieError,
    StoreError,
    SubmissionUnknownError,
    TaskError,
)
from ...gallery.records import Record
from ...gallery.thumbnails import ThumbnailMaker
from ...image_request import ImageRequest
from ...pricing import Spent
from ..inputs import url_of
from ..messages import message_of
from ..saving import Folder
from ..terminal import UsageError
from .plan import Item
from .reporter import Reporter
from .results import Results

if TYPE_CHECKING:
    from ...client import AsyncKieClient
    from ...details import TaskDetails
    from ...models import Completion

_FATAL = (AuthenticationError, InsufficientCreditsError, KeyLimitError)  # every further upload would fail
_HASH = re.compile(r"key '[0-9a-f]{64}(?:#\d+)?', ")
_SPENDING = 0.5  # seconds between two looks at what was spent
_SAVES = 16  # requests whose images are downloaded at once
_AHEAD = 8  # requests whose files are uploaded before it is their turn


@attrs.define(kw_only=True, eq=False)
class Run:
    """One run over the items that have something left to do.

    Attributes:
        out: The folder.
        max_credits: What may be spent.
        retry_failed: Whether failed tasks are submitted again.
        shared: Whether other processes use the store too, and may work on the same items.
        stop: Set to submit nothing more.
        records: What has been recorded, by key.
        error: What stopped it.
        unknown: The requests whose outcome is unknown.
        elsewhere: How many requests other processes have submitted meanwhile.
    """

    client: AsyncKieClient
    results: Results
    reporter: Reporter
    out: Path
    max_credits: float | None
    retry_failed: bool
    shared: bool
    stop: asyncio.Event
    records: dict[str, Record]
    error: KieError | OSError | None = None
    unknown: list[Item] = attrs.field(factory=list)
    elsewhere: int = 0
    _here: Decimal = attrs.field(default=Decimal(0), init=False)  # what this run has paid, of what has ended
    _items: dict[str, Item] = attrs.field(factory=dict, init=False)  # by the key in the store
    _uploads: dict[str, asyncio.Task[str]] = attrs.field(factory=dict, init=False)
    _turns: asyncio.Semaphore = attrs.field(factory=lambda: asyncio.Semaphore(_SAVES), init=False)
    _thumbnails: ThumbnailMaker = attrs.field(init=False)
    _before: Spent = attrs.field(factory=Spent, init=False)

    async def run(self, items: Sequence[Item]) -> None:
        """Bring every item to its end, or as many as possible."""
        self._items = {item.stored_as: item for item in items}
        self._before = await self.client.spent()
        self._thumbnails = ThumbnailMaker(self.out)
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._watch_spending())
                await self._take(items, group)
                watching.cancel()
            await asyncio.to_thread(self._thumbnails.close)
        finally:
            self._thumbnails.close(cancel=True)
            await self._cancel_uploads()

    def reserve_names(self, items: Iterable[Item]) -> None:
        """Record the names that are not those of their lines, so that a later run gives the same ones."""
        for item in items:
            if item.moved and item.key not in self.records:
                self.records[item.key] = _record(item, "not_submitted", None)
                self.results.add(self.records[item.key])

    def state_of(self, item: Item) -> str:
        """What has become of an item, as its record says."""
        record = self.records.get(item.key)
        if record is None:
            return "not_submitted"
        return "failed" if record.error is not None and record.state == "done" else record.state

    def unfinished(self, items: Iterable[Item]) -> bool:
        """Whether running it again brings some items further without paying for them again."""
        return any(record is None or _may_go_on(record) for record in map(self._known, items))

    def name_of(self, item: Item) -> str:
        """What `kie4o settle` knows an item by: its own key, or the ref, which is shorter than a hash. A ref
        that begins with - would be an option."""
        record = self._known(item)
        ref = None if record is None else record.ref
        return item.stored_as if item.line.key is not None or ref is None or ref[0] == "-" else ref

    def spent_in(self, spent: Spent) -> Decimal:
        """What this run has spent. A shared store counts what others spend as well."""
        return self._here if self.shared else spent.credits - self._before.credits

    def _known(self, item: Item) -> Record | None:
        return self.records.get(item.key)

    async def _take(self, items: Sequence[Item], group: asyncio.TaskGroup) -> None:
        """Save what ends, as it ends. An error that stops the batch is kept, since saving goes on."""
        saves: set[asyncio.Task[None]] = set()
        many = self.client.generate_many(
            self._source(items),
            max_credits=self.max_credits,
            stop=self.stop,
            retry_failed=self.retry_failed,
        )
        try:
            async with contextlib.aclosing(many):
                async for completion in many:
                    save = group.create_task(self._ended(self._items[completion.key], completion))
                    saves.add(save)
                    save.add_done_callback(saves.discard)
        except KieError as error:
            self.error = self.error or error
        if saves:
            await asyncio.wait(saves)

    # -- requests ----------------------------------------------------------------------------------------

    async def _source(self, items: Sequence[Item]) -> AsyncGenerator[tuple[str, ImageRequest]]:
        """The requests, each with its key. Local files are uploaded a little ahead."""
        ahead: deque[tuple[Item, asyncio.Task[ImageRequest]]] = deque()
        rest = iter(items)
        try:
            while True:
                while len(ahead) < _AHEAD and (item := next(rest, None)) is not None:
                    ahead.append((item, asyncio.create_task(self._request_of(item), name="kie4o upload")))
                if not ahead:
                    return
                item, ready = ahead.popleft()
                try:
                    yield item.stored_as, await ready
                except _FATAL:
                    raise
                except KieError as error:
                    self._add(item, _failure(item, error, "not_submitted"))
        finally:
            for _, ready in ahead:
                ready.cancel()

    async def _request_of(self, item: Item) -> ImageRequest:
        """The request that was submitted, or the one of the line with its files at Kie."""
        submitted = item.submitted_request()
        if submitted is not None:
            return submitted
        urls = {source: await self._uploaded(source) for source in item.line.local}
        return item.line.with_urls(urls)

    async def _uploaded(self, source: str) -> str:
        """The URL of a local file, which is uploaded once. One that failed is tried again."""
        upload = self._uploads.get(source)
        if upload is None or (upload.done() and (upload.cancelled() or upload.exception() is not None)):
            upload = self._uploads[source] = asyncio.create_task(url_of(self.client, source))
        return await asyncio.shield(upload)

    async def _cancel_uploads(self) -> None:
        for upload in self._uploads.values():
            upload.cancel()
        await asyncio.gather(*self._uploads.values(), return_exceptions=True)

    # -- completions -------------------------------------------------------------------------------------

    async def _ended(self, item: Item, completion: Completion) -> None:
        """Save the images of a finished request, and record what became of it."""
        progress = self.reporter.progress
        progress.saving += 1
        if completion.task_id is not None and not completion.replayed:
            progress.running -= 1
        try:
            if isinstance(completion.error, KeyConflictError) and self.shared and item.line.local:
                completion = await self._as_submitted(item, completion)
            async with self._turns:
                record = await self._record(item, completion)
        finally:
            progress.saving -= 1
        if completion.submitted:
            self._here += Decimal(str(record.credits or 0))
        elif completion.task_id is not None and item.state == "to submit":
            self.elsewhere += 1
        self._add(item, record)

    async def _as_submitted(self, item: Item, conflict: Completion) -> Completion:
        """The item once more, with the URLs of the files that another process has uploaded for it."""
        item.entry = await self.client.find(item.stored_as)
        request = conflict.request if item.entry is None else item.submitted_request()
        if request is not None:
            many = self.client.generate_many({item.stored_as: request}, stop=self.stop)
            async with contextlib.aclosing(many):
                async for completion in many:
                    return completion
        return conflict

    async def _record(self, item: Item, completion: Completion) -> Record:
        error, files = completion.error, list[Path]()
        if completion.result is not None:
            save = functools.partial(self.client.download, completion.result, self.out, name=item.stem)
            try:
                files = await save(exists="keep" if item.on_disk else "rename")
            except KieError as failure:
                error = failure
                await self._check_folder()
        entry = None
        with contextlib.suppress(StoreError):
            entry = await self.client.find(item.stored_as)
        at = None if entry is None else entry.sent_at or entry.submitted_at
        details = completion.result.details if completion.result else getattr(error, "details", None)
        for path in files:
            self._thumbnails.add(path.name)
        return attrs.evolve(
            _record(item, "done" if completion.ok else _state(error), error),
            task_id=completion.task_id,
            files=[path.name for path in files],
            urls=completion.result or (),
            credits=entry.price if entry is not None and entry.charged else Decimal(0),
            submitted_at=at,
            seconds=None if details is None else _seconds_of(details),
            replayed=completion.replayed,
        )

    def _add(self, item: Item, record: Record) -> None:
        """Write a record, unless it is known, and count the item."""
        if record.state == "unknown" and record.error_type == SubmissionUnknownError.__name__:
            self.unknown.append(item)
        known, self.records[item.key] = self.records.get(item.key), record
        try:
            if known is None or not _says_the_same(known, record):
                self.results.add(record)
        except OSError as error:
            self._stop(error)
        try:
            self.reporter.ended(item, record)
        except OSError as error:  # on stdout
            self._stop(error)

    async def _check_folder(self) -> None:
        """A download has failed: if that is since the folder takes no image, none is paid for any more."""
        try:
            await asyncio.to_thread(Folder(self.out).check)
        except UsageError as error:
            self._stop(OSError(str(error)))

    def _stop(self, error: OSError) -> None:
        """Submit nothing more."""
        self.error = self.error or error
        self.stop.set()

    async def _watch_spending(self) -> None:
        """Show what the store has counted since this run began."""
        progress = self.reporter.progress
        others = self._before.submitted.tasks - progress.running  # tasks that are not of this batch
        accepted, looked = _accepted(self._before), time.monotonic()
        while True:
            with contextlib.suppress(KieError):
                now, spent = time.monotonic(), await self.client.spent()
                more = _accepted(spent) - accepted
                if more > 0:
                    progress.resumed(looked)
                accepted, looked = accepted + more, now
                progress.credits = self.spent_in(spent)
                progress.running = spent.submitted.tasks - others if self.shared else progress.running + more
            await asyncio.sleep(_SPENDING)


def without_hash(error: KieError | OSError) -> str:
    """What an error says, without a key that is a hash: the number of the line is beside it."""
    return _HASH.sub("", message_of(error))


def limit_of(error: CreditLimitError) -> str:
    """What an error says about the limit, in words of the terminal."""
    return (
        f"--max-credits {_number(error.limit)} is reached: this run has submitted requests for "
        f"{_number(error.spent)} credits, and the next one costs {_number(error.price)}"
    )


def least_limit(error: Exception | None) -> str | None:
    """The least `--max-credits` with which a run can go on, if the one it had is too small for that."""
    if not isinstance(error, CreditLimitError) or error.price is None or error.limit is None:
        return None
    return _number(error.price) if error.price > error.limit else None


def _says_the_same(known: Record, record: Record) -> bool:
    """Whether a record adds nothing to the one that is written. The words of a replayed error are others."""
    if record.replayed and record.error_type is not None:
        return (known.state, known.error_type, known.task_id) == (
            record.state,
            record.error_type,
            record.task_id,
        )
    return attrs.evolve(known, replayed=record.replayed) == record


def _number(amount: Decimal | None) -> str:
    return "-" if amount is None else f"{amount.normalize():f}"


def _may_go_on(record: Record) -> bool:
    """Whether nothing of a record is paid, or its task is and its images are not saved: it has not ended, or
    a download failed."""
    if record.task_id is None:
        return record.state in ("failed", "not_submitted")
    return record.error is not None and record.state in ("done", "unknown")


def _accepted(spent: Spent) -> int:
    """How many submits were accepted; one that is being sent counts as unknown."""
    return spent.tasks - spent.unknown.tasks


def _failure(item: Item, error: KieError, state: str) -> Record:
    return attrs.evolve(_record(item, state, error), credits=Decimal(0))


def _record(item: Item, state: str, error: KieError | None) -> Record:
    request = item.line.request
    return Record(
        item.key,
        line=item.line.number,
        name=item.stem,
        prompt=request.prompt,
        size=request.size,
        n_variants=request.n_variants,
        ref=error.ref if isinstance(error, SubmissionUnknownError) else None,
        state=state,
        error=None if error is None else without_hash(error),
        error_type=None if error is None else type(error).__name__,
        extra=item.record.extra if item.record is not None else {},
    )


def _state(error: KieError | None) -> str:
    """The state of a request that has no images: a task that has not ended may still have some."""
    if isinstance(error, SubmissionUnknownError):
        return "unknown"
    ended = error is None or error.task_id is None or _is_end(error)
    return "failed" if ended else "unknown"


def _is_end(error: KieError) -> bool:
    return isinstance(error, TaskError) and not isinstance(error, TimeoutError)


def _seconds_of(details: TaskDetails) -> float | None:
    """How long the task took, by Kie's clock alone."""
    if details.created_at is None or details.completed_at is None:
        return None
    return round((details.completed_at - details.created_at).total_seconds(), 1)
