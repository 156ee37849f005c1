"""What a batch has to do: each line with its key, the name of its images, and what is known of it already.

Known is what the store says, which alone decides what is paid, and what `results.jsonl` says, which has the
names of the files. Names are given once: those of records stay, and a file that belongs to no record is
neither replaced nor taken for an image of a line that was never submitted.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Literal

import attrs

from ...errors import InvalidRequestError
from ...gallery.records import Record
from ...image_request import ImageRequest
from ...pricing import total
from ...stores.store import Entry, EntryState, fingerprint
from ..inputs import is_url
from .lines import Line, placeholder
from .names import claimed, free_stem, numbered, stem_of, stems_of

State = Literal["saved", "done", "under way", "unknown", "failed", "to submit"]
Find = Callable[[str], Awaitable[Entry | None]]

_STATE_OF: Mapping[EntryState, State] = {
    EntryState.SUBMITTED: "under way",
    EntryState.SUCCEEDED: "done",
    EntryState.UNKNOWN: "unknown",
    EntryState.FAILED: "failed",
}
_AT_ONCE = 200  # keys that are looked up at once


@attrs.define(kw_only=True, eq=False)
class Item:
    """A line on its way to its images.

    Attributes:
        line: What was asked for.
        key: The key of its record.
        stored_as: The key in the store. It is another one if a local file was uploaded anew for a retry.
        stem: The name of its images.
        record: What an earlier run has recorded.
        entry: What the store has under the key.
        lost: Whether it was submitted, as the record says, and the store does not know of it.
        state: What is to be done.
        on_disk: Whether files of its name are there, which an earlier run has saved.
        moved: Whether it has another name than its own, since a file of that name belongs to no record.
    """

    line: Line = attrs.field(kw_only=False)
    key: str
    stored_as: str = ""
    stem: str = ""
    record: Record | None = None
    entry: Entry | None = None
    lost: bool = False
    state: State = "to submit"
    on_disk: bool = False
    moved: bool = False

    def price(self) -> Decimal | None:
        """What a submit costs, in credits; None if that is not known."""
        try:
            return self.line.request.price()
        except InvalidRequestError:
            return None

    def submitted_request(self) -> ImageRequest | None:
        """The request that is stored, if it is that of this line: with the URLs that its files had."""
        entry = self.entry
        if entry is None:
            return None
        urls = dict(zip(self.line.files, entry.request.files_url, strict=False))
        if self.line.mask is not None and entry.request.mask_url is not None:
            urls[self.line.mask] = entry.request.mask_url
        request = self.line.with_urls({source: url for source, url in urls.items() if not is_url(source)})
        return entry.request if fingerprint(request) == entry.fingerprint else None


@attrs.define
class Plan:
    """All items, in the order of their lines."""

    items: Sequence[Item]

    def of(self, *states: State) -> list[Item]:
        """The items in these states."""
        return [item for item in self.items if item.state in states]

    def counts(self) -> Counter[State]:
        """How many items are in each state."""
        return Counter[State](item.state for item in self.items)

    def price(self) -> Decimal:
        """What is left to submit costs, as far as its prices are known."""
        return total(price for item in self.of("to submit") if (price := item.price()) is not None)

    def problems(self) -> Iterator[tuple[int, str]]:
        """Lines whose own key was used for another request."""
        for item in self.items:
            if item.entry is not None and item.submitted_request() is None:
                yield item.line.number, f"key {item.key!r} was already used for another request"


def items_of(lines: Iterable[Line], digests: Mapping[str, str]) -> list[Item]:
    """The lines with their keys. `digests` has the hash of every local file, by its path."""
    occurrences: Counter[str] = Counter()
    items: list[Item] = []
    for line in lines:
        key = line.key
        if key is None:
            named = {source: placeholder(source, digests[source]) for source in line.local}
            hashed = fingerprint(line.with_urls(named))
            key = _key(hashed, occurrences[hashed])
            occurrences[hashed] += 1
        items.append(Item(line, key=key))
    return items


def _key(hashed: str, occurrence: int) -> str:
    """The key that `generate_many` gives to such a request of a list."""
    return hashlib.sha256(f"\0{hashed}\0{occurrence}".encode()).hexdigest()


async def look_up(
    items: Sequence[Item],
    records: Iterable[Record],
    files: Iterable[str],
    find: Find,
    *,
    retry_failed: bool,
    edited: bool,
) -> Plan:
    """What is known of the items. `files` are the names in the folder; `edited` says that lines have other
    numbers than in the last run."""
    names, recorded = set(files), {record.key: record for record in records}
    for item in items:
        item.record = recorded.get(item.key)
    for start in range(0, len(items), _AT_ONCE):
        await asyncio.gather(*(_find(item, find, retry_failed) for item in items[start : start + _AT_ONCE]))
    for item in items:
        item.state = _state(item, names, retry_failed)
    _name(items, recorded.values(), names, edited)
    return Plan(items)


async def _find(item: Item, find: Find, retry_failed: bool) -> None:
    """The entry of an item. Kie keeps an uploaded file for a day, and a key belongs to one request: a line
    with a local file that is tried again gets a new key, `key#2`, and the file a new URL."""
    item.stored_as, item.entry = item.key, await find(item.key)
    number = 2
    while item.line.local and (later := await find(f"{item.key}#{number}")) is not None:
        item.stored_as, item.entry, number = f"{item.key}#{number}", later, number + 1
    item.lost = item.entry is None and await _is_lost(item.record, find)
    failed = item.entry is not None and item.entry.state is EntryState.FAILED
    if failed and retry_failed and item.line.local and item.submitted_request() is not None:
        item.stored_as, item.entry = f"{item.key}#{number}", None


async def _is_lost(record: Record | None, find: Find) -> bool:
    """Whether the record of a key that the store does not know is about another store: it has a task, or a
    submit whose outcome is unknown. A submit that was not charged after all is found by its ref."""
    if record is None or record.task_id is not None:
        return record is not None
    return record.state == "unknown" and record.ref is not None and await find(record.ref) is None


def _state(item: Item, names: set[str], retry_failed: bool) -> State:
    record = item.record
    if record is not None and record.state == "done" and record.files and names.issuperset(record.files):
        return "saved"
    state: State = "to submit"
    if item.entry is not None:
        state = _STATE_OF.get(item.entry.state, state)
    elif item.lost and record is not None and record.state == "failed":
        state = "failed"
    return "to submit" if state == "failed" and retry_failed else state


def order_of(items: Iterable[Item]) -> str:
    """Equal for files that have the same requests in the same lines."""
    lines = "".join(f"{item.line.number} {item.key}\n" for item in items)
    return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()


def _name(items: Sequence[Item], records: Iterable[Record], names: set[str], edited: bool) -> None:
    """Give every item the name of its images."""
    on_disk = stems_of(names)
    taken = {each for record in records if record.name for each in claimed(record.name)}
    strange = on_disk - taken - stems_of(name for record in records for name in record.files)
    for item in items:
        if item.record is not None and item.record.name:
            item.stem = item.record.name
        else:
            wish = item.line.name or item.line.key
            stem = numbered(item.line.number) if wish is None else stem_of(wish, item.line.number)
            # An earlier run may have saved it, under the number that its line had then.
            own = item.state in ("done", "under way", "unknown") and not (edited and wish is None)
            item.stem = free_stem(stem, taken if own else taken | strange)
            item.moved = not own and item.stem != free_stem(stem, taken)
        taken |= claimed(item.stem)
        item.on_disk = bool(claimed(item.stem) & on_disk)
