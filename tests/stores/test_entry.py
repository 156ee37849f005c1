"""What an entry says of itself."""

from __future__ import annotations

from datetime import UTC, datetime

import attrs
from entries import ended, entry_of, submitted

from kie4o.stores.news import about_ref
from kie4o.stores.store import EntryState, hash_of_ref


def test_the_label_has_the_start_of_the_prompt() -> None:
    """Its first 40 characters, of which the last says that there are more."""
    prompt = "".join(chr(ord("a") + number % 26) for number in range(100))
    assert f"prompt '{prompt[:39]}…'" in entry_of("k", prompt).label
    assert f"prompt '{prompt[:40]}'" in entry_of("k", prompt[:40]).label


def test_a_ref_is_told_and_stored_by_half_of_its_sha256() -> None:
    """As stores of earlier versions have it: another length would find nothing in them."""
    entry = entry_of("k", ref="ref of k")
    assert entry.ref_hash == "b56c44e716d81501e22218e9abaa1b9e"
    assert hash_of_ref(entry.ref) == bytes.fromhex(entry.ref_hash)
    assert about_ref(entry.ref) == f"ref {entry.ref_hash}"  # as the functions of PostgreSQL write it


def test_only_what_has_no_task_can_be_given_one() -> None:
    """A submit of unknown outcome, or one that is taken to have failed; not a task that has failed."""
    unknown = entry_of("k", state=EntryState.UNKNOWN)
    assert unknown.unnamed
    assert unknown.become(EntryState.FAILED).unnamed
    assert not submitted("k").unnamed
    assert not ended(submitted("k"), EntryState.FAILED).unnamed


def test_what_was_never_submitted_has_not_ended_at_any_time() -> None:
    """Whatever a callback has said of it: only what has ended at a time is ever removed."""
    entry = ended(submitted("k"))
    assert entry.details is not None
    entry = attrs.evolve(entry, details=attrs.evolve(entry.details, completed_at=datetime.now(UTC)))
    assert entry.ended_at is not None
    assert attrs.evolve(entry, submitted_at=None).ended_at is None
