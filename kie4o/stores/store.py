"""What the client remembers of every submit, and the promise that any memory of it must keep.

A store keeps one `Entry` per idempotency key and writes whole entries; which state may follow
which is decided by `submission`, so that every store stays small:

    PLANNED ─▶ INTENT ─▶ SUBMITTED ─▶ SUCCEEDED | FAILED
       ▲          ├────▶ UNKNOWN
       └──────────┘  (only when the request provably never left or was provably refused)

INTENT is kept before the first byte of the POST leaves: whoever finds one left over by a dead
process cannot know whether it was paid.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import attrs

from ..details import TaskDetails
from ..models import ImageRequest
from ..wire.requests import body_of

CALLBACKS_PER_REF = 4  # callbacks kept for one ref; a real one has at most one task id, repeated


class EntryState(enum.Enum):
    """How far a request has come, by what is kept of it."""

    PLANNED = "planned"
    INTENT = "intent"
    SUBMITTED = "submitted"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNKNOWN = "unknown"

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to wait for."""
        return self in (EntryState.SUCCEEDED, EntryState.FAILED)


@attrs.frozen(weakref_slot=False)
class Entry:
    """One request under its key. `keyed` is False if nobody named a key; then `key` is the ref.

    `details` is how the task ended. `submitted_at` is seconds since 1970, for other lives of the
    process; durations in this life use the loop's clock.
    """

    key: str
    request: ImageRequest = attrs.field(kw_only=True)
    ref: str = attrs.field(kw_only=True, repr=False)
    keyed: bool = attrs.field(default=True, kw_only=True)
    state: EntryState = attrs.field(default=EntryState.PLANNED, kw_only=True)
    task_id: str | None = attrs.field(default=None, kw_only=True)
    submitted_at: float | None = attrs.field(default=None, kw_only=True)
    details: TaskDetails | None = attrs.field(default=None, kw_only=True)

    @property
    def fingerprint(self) -> str:
        """Tells one request from another, whatever the run: SHA-256 of what is sent."""
        return fingerprint(self.request)

    def become(
        self,
        state: EntryState,
        *,
        task_id: str | None = None,
        submitted_at: float | None = None,
        details: TaskDetails | None = None,
    ) -> Entry:
        """The same request one state further; what is not given stays."""
        return Entry(
            self.key,
            request=self.request,
            ref=self.ref,
            keyed=self.keyed,
            state=state,
            task_id=self.task_id if task_id is None else task_id,
            submitted_at=self.submitted_at if submitted_at is None else submitted_at,
            details=self.details if details is None else details,
        )


def mark_of(ref: str) -> bytes:
    """What a ref is found by: its hash, so that no comparison of secrets takes its time."""
    return hashlib.sha256(ref.encode("utf-8", "surrogatepass")).digest()[:16]


def fingerprint(request: ImageRequest) -> str:
    return hashlib.sha256(body_of(request)).hexdigest()


class Store(Protocol):
    """What every memory of submits can do. All of it raises `StoreError` and nothing else.

    When a write returns, the entry is kept as safely as this store keeps anything; cancelling a
    write does not undo it.
    """

    async def open(self) -> None:
        """Called once before anything else, on the loop that will use the store."""

    async def claim(self, entry: Entry) -> Entry:
        """Keep `entry` if its key is new, and return what stands under the key now."""
        ...

    async def save(self, entry: Entry) -> None:
        """Keep `entry` in place of what stands under its key."""

    async def forget(self, key: str) -> None:
        """Drop what stands under the key, if anything."""

    async def find(
        self, *, key: str | None = None, task_id: str | None = None, ref: str | None = None
    ) -> Entry | None:
        """The entry of a key, of a task id or of a ref. A ref is a secret: how long the search takes
        tells nothing about it."""
        ...

    async def keep_callback(self, ref: str, task_id: str) -> None:
        """Put a callback into the inbox: it names its task before the submit's answer does."""

    async def callbacks_of(self, ref: str) -> Sequence[str]:
        """The task ids that callbacks have named for a ref; empty once its entry has ended."""
        ...

    def unfinished(self) -> AsyncIterator[Entry]:
        """Every entry that is SUBMITTED or UNKNOWN: paid, or perhaps paid, and not ended."""
        ...

    async def recent(self, since: float) -> list[float]:
        """When submits later than `since` (seconds since 1970) were answered or begun: they still
        count against the account limit."""
        ...

    async def aclose(self) -> None:
        """Write what is still to be written, and let go."""
