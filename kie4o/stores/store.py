"""The `Store` protocol, and the `Entry` that a store keeps.

A store keeps one `Entry` per idempotency key and writes whole entries. Which state may follow which is
decided by `submission`, so that every store stays small:

    PLANNED ─▶ INTENT ─▶ SUBMITTED ─▶ SUCCEEDED | FAILED
       ▲          ├────▶ UNKNOWN ─▶ SUBMITTED  (a callback or a person has named its task)
       │          │         └─────▶ FAILED     (without a task: a person says that it was not charged)
       └──────────┘  (only if the request was provably not sent, or provably refused)

INTENT is saved before the first byte of the POST is sent. If a process dies with an INTENT in its store, the
next one cannot know whether the request was charged.

An entry is identified by its key, and also by its ref. A key that is submitted again gets a new entry with a
new ref, and the earlier one, which is paid or may be, moves to its ref as its key. So does an entry that was
not charged after all, which makes its key free.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import os
from collections.abc import AsyncIterator, Collection, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Protocol, runtime_checkable

import attrs

from ..details import TaskDetails
from ..errors import StoreError
from ..events.reporter import Reporter
from ..image_request import ImageRequest
from ..pricing import Spent
from ..wire.decoding import shown
from ..wire.requests import body_of
from .shared import Shared

PROMPT_SHOWN = 40  # characters in a log line or an error
CALLBACKS_PER_REF = 4  # kept for one ref; Kie sends one task id, up to four times (callbacks page)


class EntryState(enum.Enum):
    """How far a request has come, as far as the store knows."""

    PLANNED = "planned"
    INTENT = "intent"
    SUBMITTED = "submitted"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNKNOWN = "unknown"

    ended: bool
    """Whether there is nothing left to wait for."""

    def __init__(self, word: str) -> None:
        self.ended = word in ("succeeded", "failed")  # asked nine times a task: a property takes 0.6 us


@attrs.frozen(kw_only=True, weakref_slot=False)
class Entry:
    """One request under its key, as a store keeps it.

    Attributes:
        key: The caller's idempotency key, or the `ref`.
        request: The `ImageRequest`.
        ref: The random token in its callback URL.
        keyed: Whether the caller gave a key.
        state: An `EntryState`.
        task_id: The id of its task, once it is known.
        sent_at: When it was sent. Unix time, since other processes read it.
        submitted_at: The same, and later when it was answered: since then it counts against the account's
            limit.
        price: What it was priced at when it was submitted, in credits; None if that is not known.
        details: The final `TaskDetails`, once the task has ended.
        earlier: The refs of earlier submits under the same key, oldest first. Each is an entry of its own.
        superseded_key: The caller's key of such an earlier submit, whose `key` is its ref.
    """

    key: str = attrs.field(kw_only=False)
    request: ImageRequest
    ref: str = attrs.field(repr=False)
    keyed: bool = True
    state: EntryState = EntryState.PLANNED
    task_id: str | None = None
    sent_at: float | None = None
    submitted_at: float | None = None
    price: Decimal | None = None
    details: TaskDetails | None = None
    earlier: tuple[str, ...] = ()
    superseded_key: str | None = None

    @property
    def trace(self) -> str | None:
        """The W3C traceparent of the call that has submitted it, if there was one (`kie4o.otel`)."""
        return None

    def traced(self, trace: str) -> Entry:
        """The same with such a trace."""
        values = {name: getattr(self, name) for name in attrs.fields_dict(Entry)}
        return TracedEntry(**values, trace=trace)

    @property
    def ref_hash(self) -> str:
        """What events name the entry by."""
        return _hex_of_ref(self.ref)

    @property
    def callers_key(self) -> str | None:
        """The key that the caller gave, if any."""
        return self.key if self.keyed else self.superseded_key

    @property
    def unnamed(self) -> bool:
        """Whether it was sent and has no task id, so that a callback or a person may still name its task."""
        return self.task_id is None and self.state in (EntryState.UNKNOWN, EntryState.FAILED)

    @property
    def ended_at(self) -> float | None:
        """Unix time at which it ended: when Kie completed the task, as far as that is known, or else when
        its submit was answered. None if it has not ended."""
        if not self.state.ended or self.submitted_at is None:
            return None
        completed = None if self.details is None else self.details.completed_at
        return self.submitted_at if completed is None else max(self.submitted_at, completed.timestamp())

    @property
    def charged(self) -> bool:
        """Whether it was charged, or may have been: it was sent, and nothing says that it was not charged."""
        settled_as_unpaid = self.state is EntryState.FAILED and self.task_id is None
        return self.state is not EntryState.PLANNED and not settled_as_unpaid

    @property
    def name(self) -> str:
        """The entry in a log line that repeats no prompt: its task, or its ref; and its key."""
        return self._named()

    @property
    def label(self) -> str:
        """The entry in a warning or an error, so that it can be found in Kie's logs: its name and, without a
        task, when it was sent; the start of its prompt."""
        at = self.submitted_at if self.sent_at is None else self.sent_at
        sent = "" if at is None else f"sent {datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
        prompt = self.request.prompt
        words = "no prompt" if prompt is None else f"prompt {shown(prompt, PROMPT_SHOWN)!r}"
        return self._named(sent=sent if self.task_id is None else "", prompt=words)

    def _named(self, *, sent: str = "", prompt: str = "") -> str:
        name = f"a submit with ref {self.ref}" if self.task_id is None else f"task {self.task_id}"
        key = "" if self.callers_key is None else f"key {self.callers_key!r}"
        facts = ", ".join(filter(None, (sent, key, prompt)))
        return f"{name} ({facts})" if facts else name

    def __str__(self) -> str:
        return self.label

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the request's body: equal requests have equal fingerprints in every process."""
        return fingerprint(self.request)

    def become(
        self,
        state: EntryState,
        *,
        task_id: str | None = None,
        sent_at: float | None = None,
        submitted_at: float | None = None,
        details: TaskDetails | None = None,
        earlier: tuple[str, ...] | None = None,
    ) -> Entry:
        """The same request in another state; arguments that are None keep their value."""
        return Entry(
            self.key,
            request=self.request,
            ref=self.ref,
            keyed=self.keyed,
            state=state,
            task_id=self.task_id if task_id is None else task_id,
            sent_at=self.sent_at if sent_at is None else sent_at,
            submitted_at=self.submitted_at if submitted_at is None else submitted_at,
            price=self.price,
            details=self.details if details is None else details,
            earlier=self.earlier if earlier is None else earlier,
            superseded_key=self.superseded_key,
        )

    def superseded(self) -> Entry:
        """The entry once its key is submitted again: under its ref."""
        return attrs.evolve(self, key=self.ref, keyed=False, superseded_key=self.key)


@attrs.frozen(kw_only=True, weakref_slot=False)
class TracedEntry(Entry):
    """One with a trace. Without one, each would take 16 bytes more while its task is waited for."""

    trace: str  # pyright: ignore[reportIncompatibleMethodOverride]  # it is frozen, as the property is

    def become(self, state: EntryState, **changes: Any) -> Entry:
        return super().become(state, **changes).traced(self.trace)


def duplicate_task(task_id: str | None, owner: Entry) -> DuplicateTaskError:
    """The error of `Store.save` for a task id that the `owner` has."""
    whose = "another submit" if owner.callers_key is None else f"the submit under key {owner.callers_key!r}"
    return DuplicateTaskError(
        f"task {task_id} belongs to {whose}; check the id", task_id=task_id, key=owner.callers_key
    )


def hash_of_ref(ref: str) -> bytes:
    """The hash by which a ref is looked up, so that the time of a comparison tells nothing about the ref."""
    return hashlib.sha256(ref.encode("utf-8", "surrogatepass")).digest()[:16]


@functools.lru_cache(maxsize=1_000)  # several events in a row are of one submit
def _hex_of_ref(ref: str) -> str:
    return hash_of_ref(ref).hex()


def fingerprint(request: ImageRequest) -> str:
    return hashlib.sha256(body_of(request)).hexdigest()


class DuplicateTaskError(StoreError):
    """A task id cannot be saved, because another entry has it. `key` is that entry's, if it has one."""


class KeyInUseError(StoreError):
    """A key is in the hands of another process: the caller does not want to wait for it, or it has passed
    into them since the claim."""


class Store(Protocol):
    """What every store can do. Its methods raise `StoreError` and nothing else.

    When a write returns, the entry is as safe as this store can make it. Cancelling a write does not undo it.
    """

    shared: Shared | None  # None: this process is alone on the store

    async def open(self) -> None:
        """Called once before anything else, on the loop that will use the store."""

    async def claim(
        self, entry: Entry, *, takes: Collection[EntryState] = (EntryState.PLANNED,), wait: bool = True
    ) -> Entry | None:
        """Store `entry` if its key is new, and return what is stored under the key.

        The claim also holds the key for this process if the stored state is one of `takes`. While another
        process holds it, this waits. With `wait=False` it returns None instead, and also while another
        process polls the task of the key.
        """
        ...

    async def begin(self, entry: Entry, superseded: Entry | None = None) -> None:
        """Save what is now under a key, such as an INTENT, and with it the submit that was under the key
        before, if there was one: both or neither.

        Raises `KeyInUseError` if this process does not hold the key.
        """

    async def save(self, entry: Entry) -> None:
        """Store `entry` in place of what is stored under its key, and under its ref.

        Raises `DuplicateTaskError`, and stores nothing, if a SUBMITTED entry has the task id of another.
        """

    async def release(self, key: str) -> None:
        """Let go of a key that was claimed, and delete its entry if it is still PLANNED. No error if there
        is none."""

    async def forget(self, key: str) -> None:
        """Delete the entry of a key, if there is one."""

    async def find(
        self, *, key: str | None = None, task_id: str | None = None, ref: str | None = None
    ) -> Entry | None:
        """The entry of a key, a task id or a ref. A ref is a secret: the time of the search does not depend
        on it."""
        ...

    async def find_many(self, keys: Sequence[str]) -> Sequence[Entry | None]:
        """What `find` returns for each of these keys, in their order."""
        ...

    async def keep_callback(self, ref: str, task_id: str) -> None:
        """Keep the task id that a callback named for a ref whose entry has none yet."""

    async def callbacks_of(self, ref: str) -> Sequence[str]:
        """The task ids that callbacks have named for a ref; empty once its entry has ended."""
        ...

    def unfinished(self) -> AsyncIterator[Entry]:
        """Every entry that is SUBMITTED or UNKNOWN: charged, or perhaps charged, and not finished."""
        ...

    async def spent(self) -> Spent:
        """The price of every entry that is `charged`, by state; also of those that were dropped since."""
        ...

    async def prune(self, before: float) -> int:
        """Delete every entry whose `ended_at` is before this Unix time; return how many.

        They still count in `spent`, and their submits in `recent`. If it is cancelled, a part of them may be
        deleted.
        """
        ...

    async def recent(self, per: float) -> list[float]:
        """How many seconds ago each submit of the last `per` seconds was answered or begun.

        They still count against the account's limit; a store with a `shared` limiter need not know them. A
        clock that was set may make an age too low, never too high.
        """
        ...

    async def aclose(self) -> None:
        """Write what is still to be written, and close."""


@runtime_checkable
class Reports(Protocol):
    """A store that tells of events. The client sets whom it tells."""

    reporter: Reporter


@runtime_checkable
class SupportsBackup(Protocol):
    """A store that can be copied while it is in use."""

    async def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy everything to the new file `path`. Raises `StoreError`; then there is no new file."""


def no_backup() -> StoreError:
    """The error of a store that does not support backups."""
    return StoreError("this store has no file to back up; pass store='run.db', or another path")
