"""Entries as text and back, for the stores that outlive a process.

One JSON object per entry, in our own names, with a checksum over it: a store file may be damaged
in ways that its database does not notice, and a task id with a wrong letter is a lost one. Pure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import attrs

from ..details import TaskDetails, TaskState
from ..errors import KieError, StoreError
from ..models import ImageRequest, remembering
from ..wire import decoding
from .store import Entry, EntryState

_CHECKSUM = 8  # bytes; against accidents, not against people


def packed(entry: Entry) -> bytes:
    """Plain ASCII, so that half pairs in what Kie sent cannot break a database."""
    fields: dict[str, Any] = {
        "key": entry.key,
        "ref": entry.ref,
        "keyed": entry.keyed,
        "state": entry.state.value,
        "task_id": entry.task_id,
        "submitted_at": entry.submitted_at,
        "request": _changed(entry.request),
        "details": None if entry.details is None else _details(entry.details),
    }
    try:
        return _text(fields)
    except (ValueError, RecursionError):  # of what Kie sent beside what we read
        fields["details"]["raw"] = {}
    return _text(fields)


def _text(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode("ascii")


def checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM).digest()


def unpacked(body: object, check: object) -> Entry:
    """Raises `StoreError` if this is not what was packed."""
    if isinstance(body, bytes) and checksum(body) == check:
        try:
            return _entry(json.loads(body))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, KieError):
            pass
    raise StoreError("an entry of the store is damaged: restore the file from a copy")


def _entry(fields: Mapping[str, Any]) -> Entry:
    details = fields["details"]
    token = remembering.set(True)
    try:
        request = ImageRequest(**fields["request"])
    finally:
        remembering.reset(token)
    return Entry(
        fields["key"],
        request=request,
        ref=fields["ref"],
        keyed=fields["keyed"],
        state=EntryState(fields["state"]),
        task_id=fields["task_id"],
        submitted_at=fields["submitted_at"],
        details=None if details is None else _unpacked_details(details),
    )


def _changed(value: Any) -> dict[str, Any]:
    """The fields that are not at their default."""
    fields = attrs.fields(type(value))
    return {f.name: getattr(value, f.name) for f in fields if getattr(value, f.name) != f.default}


def _details(details: TaskDetails) -> dict[str, Any]:
    fields = _changed(details) | {"state": details.state.value, "raw": dict(details.raw)}
    for name in ("created_at", "completed_at"):
        if name in fields:
            fields[name] = fields[name].isoformat()
    return fields


def _unpacked_details(fields: Mapping[str, Any]) -> TaskDetails:
    changed = dict(fields)
    changed["state"] = TaskState(changed["state"])
    changed["urls"] = tuple(changed.get("urls", ()))
    for name in ("created_at", "completed_at"):
        if name in changed:
            changed[name] = decoding.moment(changed[name])
    return TaskDetails(**changed)
