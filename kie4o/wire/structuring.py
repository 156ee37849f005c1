"""The `data` of an answer as a value of one class, by cattrs with hooks of our own.

Out of the box cattrs turns null into "None", "false" into True and "abc" into a list of letters.
Here every field has its type or the answer is refused, with the path to each wrong value. Some
hooks are lenient on purpose, because Kie's pages and answers differ there: numbers may be digits in
a string, and progress, times and image URLs that cannot be read are left out.

The classes carry Kie's own names; they are the only ones that do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NewType, TypeVar

import attrs

from . import decoding
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
    fileName: str = ""
    filePath: str = ""
    fileSize: int = 0
    mimeType: str = ""
    uploadedAt: datetime | None = None


# -- hooks: cattrs calls them with the value and the type of its field ---------------------------


def _string(value: object, _: object) -> str:
    if isinstance(value, str):
        return value
    raise TypeError("expected a string")


def _string_or_none(value: object, _: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError("expected a string or null")


def _integer(value: object, _: object) -> int:
    number = decoding.whole_number(value)
    if number is None:
        raise TypeError("expected an integer")
    return number


def _integer_or_none(value: object, _: object) -> int | None:
    if value is None or type(value) is int:
        return value
    return _integer(value, _)


def _task_id_or_none(value: object, _: object) -> str | None:
    task_id = decoding.task_id(value)
    if task_id is None and value is not None:
        raise TypeError("expected a task id")
    return task_id


def _image_urls(value: object, _: object) -> tuple[str, ...]:
    return decoding.image_urls(value)


def _fraction_or_none(value: object, _: object) -> float | None:
    return decoding.fraction(value)


def _moment_or_none(value: object, _: object) -> datetime | None:
    return None if value is None else decoding.moment(value)


_HOOKS: Mapping[Any, Callable[[object, object], object]] = MappingProxyType(
    {
        str: _string,
        int: _integer,
        str | None: _string_or_none,
        int | None: _integer_or_none,
        TaskId | None: _task_id_or_none,
        # The three lenient ones: what cannot be read is left out.
        ImageUrls: _image_urls,
        float | None: _fraction_or_none,
        datetime | None: _moment_or_none,
    }
)


@functools.cache
def _converter() -> Converter:
    """Created on first use: importing cattrs and compiling the classes takes about 10 ms."""
    from cattrs import Converter

    converter = Converter(detailed_validation=True)  # it knows the paths, for 0.1 us an answer
    for kind, hook in _HOOKS.items():
        converter.register_structure_hook(kind, hook)
    return converter


def structured(data: object, kind: type[_T], status: int, body: bytes) -> _T:
    """`data` as a `kind`. Raises `UnexpectedResponseError` and nothing else."""
    path = "data"
    if isinstance(data, dict):
        try:
            return _converter().structure(data, kind)
        except Exception as error:  # an exception group of whatever the hooks and the constructor raise
            path = _paths_of(error)
    raise unreadable(status, body, path)


def _paths_of(error: Exception) -> str:
    """Where the wrong values are, without the values."""
    from cattrs import transform_error

    return ", ".join(line.rpartition(" @ ")[2] for line in transform_error(error, path="data"))
