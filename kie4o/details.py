"""What is known about one task at one moment."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from datetime import datetime
from types import NoneType
from typing import Any, NoReturn

import attrs

EXPIRY = 14 * 86400.0  # seconds that Kie keeps a task and its images (record-info page)


class TaskState(enum.Enum):
    """The state of a task as kie4o reads it; Kie's own word is `TaskDetails.status`."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    MISSING = "missing"

    ended: bool
    """Whether the task has succeeded or failed."""

    def __init__(self, word: str) -> None:
        self.ended = word in ("succeeded", "failed")


def _refuse(self: object, *_: object, **__: object) -> NoReturn:
    raise TypeError("this mapping is read-only, since others may hold it too; change a copy of it")


class _ReadOnlyDict(dict[str, Any]):
    """A dict that cannot be changed. It compares, pickles, copies and becomes JSON as a dict does."""

    __slots__ = ()

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return type(self), (dict(self),)


class _ReadOnlyList(list[Any]):
    """The same for a list."""

    __slots__ = ()

    def __reduce__(self) -> tuple[type, tuple[list[Any]]]:
        return type(self), (list(self),)


for _kind, _names in (
    (_ReadOnlyDict, "__setitem__ __delitem__ __ior__ clear pop popitem setdefault update"),
    (
        _ReadOnlyList,
        "__setitem__ __delitem__ __iadd__ __imul__ append clear extend insert pop remove reverse sort",
    ),
):
    for _name in _names.split():
        setattr(_kind, _name, _refuse)


_LEAVES = frozenset({str, int, float, bool, NoneType})  # most values; asking for a type is the cheaper check


def _read_only(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """A copy in which no object or list can be changed, at any depth.

    Without recursion, since JSON may be nested deeply, and objects of a caller may hold themselves.
    """
    if type(raw) is _ReadOnlyDict:
        return raw
    copy = _ReadOnlyDict(raw)
    if _LEAVES.issuperset(map(type, copy.values())):  # as of a task that is running
        return copy
    copies: dict[int, _ReadOnlyDict | _ReadOnlyList] = {id(raw): copy}
    todo: list[Any] = [copy]
    for outer in todo:
        kind: Any = dict if isinstance(outer, dict) else list
        for key, value in outer.items() if kind is dict else enumerate(outer):
            if type(value) in _LEAVES or not isinstance(value, (dict, list, tuple)):
                continue
            inner = copies.get(id(value))
            if inner is None:
                inner = _ReadOnlyDict(value) if isinstance(value, dict) else _ReadOnlyList(value)
                copies[id(value)] = inner
                todo.append(inner)
            kind.__setitem__(outer, key, inner)
    return copy


EMPTY: Mapping[str, Any] = _read_only({})  # which many may hold


@attrs.frozen(kw_only=True)
class TaskDetails:
    """The status of a task: what one poll found, or what a callback said. Source: Kie's record-info page.

    Attributes:
        task_id: The id of the task.
        state: A `TaskState`.
        status: Kie's own word, such as ``"GENERATING"``; None if Kie sent none.
        urls: The images so far; they are kept for 14 days.
        progress: 0.0 to 1.0, or None. It often stays at 0.0 until the end.
        error_code: Kie's code of a failure.
        error_message: Kie's own words about a failure.
        created_at: When Kie created the task, as an aware UTC datetime.
        completed_at: When it ended, as an aware UTC datetime.
        raw: The `data` of Kie's response, as it arrived. Read-only at any depth.
    """

    task_id: str = attrs.field(kw_only=False)
    state: TaskState
    status: str | None = None
    urls: tuple[str, ...] = ()
    progress: float | None = None
    error_code: int | None = None
    error_message: str | None = None
    created_at: datetime | None = None
    completed_at: datetime | None = None
    raw: Mapping[str, Any] = attrs.field(factory=dict, converter=_read_only, eq=False, repr=False)

    @property
    def params(self) -> Mapping[str, Any]:
        """The request as Kie stored it, decoded from `paramJson`; {} if it cannot be decoded."""
        try:
            params = json.loads(self.raw.get("paramJson") or "{}")
        except (ValueError, TypeError, RecursionError):
            return {}
        return params if isinstance(params, dict) else {}
