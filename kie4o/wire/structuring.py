"""The `data` of an answer as a value of one class, by cattrs with hooks of our own.

Out of the box cattrs turns null into "None", "false" into True and "abc" into a list of letters.
Here a value has the type of its field, or it reads as None: what Kie adds for information must not hide
what it was asked for. Only a field that cannot be None is demanded, and its path is in the error.

The classes carry Kie's own names; they are the only ones that do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NewType, TypeVar

import attrs

from . import decoding, finding
from .envelope import unreadable

if TYPE_CHECKING:
    from cattrs import Converter

_T = TypeVar("_T")

TaskId = NewType("TaskId", str)
ImageUrls = NewType("ImageUrls", tuple[str, ...])


@attrs.define
class RecordInfo:
    """`data` of an answer (record-info page)."""

    taskId: TaskId | None = None
    status: str | None = None
    successFlag: int | None = None
    response: ImageUrls = ImageUrls(())
    progress: float | None = None
    errorCode: int | None = None
    errorMessage: str | None = None
    createTime: datetime | None = None
    completeTime: datetime | None = None


@attrs.define
class StoredFile:
    """`data` of an answer (file upload page)."""

    downloadUrl: str
    fileName: str | None = None
    filePath: str | None = None
    fileSize: int | None = None
    mimeType: str | None = None
    uploadedAt: datetime | None = None


# -- hooks: cattrs calls them with the value and the type of its field ---------------------------


def _string(value: object, _: object) -> str:
    if isinstance(value, str):
        return value
    raise TypeError("expected a string")


def _string_or_none(value: object, _: object) -> str | None:
    return value if isinstance(value, str) else None


def _integer_or_none(value: object, _: object) -> int | None:
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    return decoding.whole_number(value)


def _task_id_or_none(value: object, _: object) -> str | None:
    return decoding.task_id(value)


def _image_urls(value: object, _: object) -> tuple[str, ...]:
    return finding.image_urls(value)


def _fraction_or_none(value: object, _: object) -> float | None:
    return decoding.fraction(value)


def _moment_or_none(value: object, _: object) -> datetime | None:
    return None if value is None else decoding.moment(value)


_HOOKS: Mapping[Any, Callable[[object, object], object]] = MappingProxyType(
    {
        str: _string,
        str | None: _string_or_none,
        int | None: _integer_or_none,
        TaskId | None: _task_id_or_none,
        ImageUrls: _image_urls,
        float | None: _fraction_or_none,
        datetime | None: _moment_or_none,
    }
)


@functools.cache
def _converter() -> Converter:
    """Created on first use: importing cattrs and compiling the classes takes about 10 ms."""
    from cattrs import Converter

    converter = Converter()  # whose detailed validation knows the paths, for 0.1 us an answer
    for kind, hook in _HOOKS.items():
        converter.register_structure_hook(kind, hook)
    return converter


@functools.cache
def _reader(kind: Any) -> Callable[[object, object], Any]:
    """What cattrs has compiled for the class, which its converter would look up at each call."""
    return _converter().get_structure_hook(kind)


def structured(data: object, kind: Callable[..., _T], status: int, body: bytes) -> _T:
    """`data` as a `kind`. Raises `UnexpectedResponseError` and nothing else."""
    path = "data"
    if isinstance(data, dict):
        try:
            value: _T = _reader(kind)(data, kind)
            return value
        except Exception as error:  # an exception group of whatever the hooks and the constructor raise
            path = _paths_of(error)
    raise unreadable(status, body, path)


def _paths_of(error: Exception) -> str:
    """Where the wrong values are, without the values."""
    from cattrs import transform_error

    return ", ".join(line.rpartition(" @ ")[2] for line in transform_error(error, path="data"))
