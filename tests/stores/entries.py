"""Entries for the tests of stores: made by hand, made by Hypothesis, and compared."""

from __future__ import annotations

import json
import warnings
from datetime import UTC
from typing import Any

import attrs
from hypothesis import strategies as st

from kie4o import ImageRequest, TaskDetails, TaskState
from kie4o.stores.store import Entry, EntryState, Store
from kie4o.wire import decoding

PATIENCE = 5.0  # seconds within which any call of a store returns


def entry_of(key: str = "k", prompt: str = "x", **more: Any) -> Entry:
    return Entry(key, request=ImageRequest(prompt), **{"ref": f"ref of {key}"} | more)


def ended(entry: Entry, state: EntryState = EntryState.SUCCEEDED) -> Entry:
    """The entry after its task has ended."""
    task_id = entry.task_id or f"task-of-{entry.key}"
    urls = ("https://images.example/1.png",) if state is EntryState.SUCCEEDED else ()
    details = TaskDetails(task_id, state=TaskState(state.value), urls=urls, raw={"taskId": task_id})
    return attrs.evolve(entry, state=state, task_id=task_id, details=details)


def submitted(key: str, **more: Any) -> Entry:
    return entry_of(key, state=EntryState.SUBMITTED, submitted_at=5.0, **{"task_id": f"task-of-{key}"} | more)


def plain(entry: Entry | None) -> object:
    """An entry for an exact comparison: `raw`, which takes no part in equality, and each type in it."""
    raw = entry.details.raw if entry is not None and entry.details is not None else None
    return entry, json.dumps(raw)


async def keys_owed(store: Store) -> list[str]:
    return [entry.key async for entry in store.unfinished()]


ANY_TEXT = st.text(st.characters(exclude_categories=()))  # half pairs too: Kie's JSON may hold them
SENDABLE = st.text(st.characters(codec="utf-8"), min_size=1)
PROMPTS = SENDABLE.filter(str.strip)
URLS = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="\\"), max_size=10
).map("https://a.example/{}".format)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)
TASK_IDS = st.from_regex(decoding.TASK_ID, fullmatch=True)
TIMES = st.none() | st.datetimes(timezones=st.just(UTC))


def quietly(**fields: Any) -> ImageRequest:
    """A request whose maker was warned; who reads it back is not to be warned again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ImageRequest(**fields)


REQUESTS = st.builds(
    quietly,
    prompt=PROMPTS,
    size=st.sampled_from(["1:1", "3:2", "2:3"]),
    files_url=st.lists(URLS, max_size=5),
    mask_url=st.none() | URLS,
    n_variants=st.sampled_from([1, 2, 4]),
    callback_url=st.none() | URLS,
    is_enhance=st.booleans(),
    upload_cn=st.booleans(),
    enable_fallback=st.booleans(),
    fallback_model=st.sampled_from(["FLUX_MAX", "GPT_IMAGE_1"]),
    file_url=st.none() | URLS,
) | st.builds(quietly, files_url=st.lists(URLS, min_size=1, max_size=5))
DETAILS = st.builds(
    TaskDetails,
    TASK_IDS,
    state=st.sampled_from(TaskState),
    status=st.none() | ANY_TEXT,
    urls=st.lists(ANY_TEXT, max_size=3).map(tuple),
    progress=st.none() | st.floats(0, 1),
    error_code=st.none() | st.integers(),
    error_message=st.none() | ANY_TEXT,
    created_at=TIMES,
    completed_at=TIMES,
    raw=st.dictionaries(ANY_TEXT, JSON, max_size=4).map(lambda raw: json.loads(json.dumps(raw))),
)
ENTRIES = st.builds(
    Entry,
    SENDABLE,
    request=REQUESTS,
    ref=SENDABLE,
    keyed=st.booleans(),
    state=st.sampled_from([state for state in EntryState if state is not EntryState.INTENT]),
    task_id=st.none() | TASK_IDS,
    submitted_at=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    details=st.none() | DETAILS,
)
