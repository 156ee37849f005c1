"""`data` of an answer to a value, by cattrs with strict readers.

Out of the box cattrs turns null into "None", "false" into True and "abc" into a list of letters;
here a value has its type or the answer is refused, with the path to what is wrong. Pure, and knows
nothing of envelopes or codes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, TypeVar

import attrs

from . import decoding

_T = TypeVar("_T")


class WrongShape(ValueError):
    """The paths to the wrong values, without the values."""


@attrs.define
class RecordInfo:
    """`data` of record-info, under Kie's names."""

    taskId: str | None = None
    status: str | None = None
    successFlag: int | None = None
    response: tuple[str, ...] = ()
    progress: float | None = None
    errorCode: int | None = None
    errorMessage: str | None = None
    createTime: datetime | None = None
    completeTime: datetime | None = None


@attrs.define
class Stored:
    """`data` of an upload."""

    downloadUrl: str
    fileName: str = ""
    filePath: str = ""
    fileSize: int = 0
    mimeType: str = ""
    uploadedAt: datetime | None = None


_Hook = Callable[[object, object], Any]  # what cattrs calls for a field: the value, and its type


def _task_id(value: object, _: object) -> str | None:
    return None if value is None else _not_none(decoding.task_id(value), "task id")


def _number_or_none(value: object, _: object) -> int | None:
    return None if value is None else _number(value, _)


def _number(value: object, _: object) -> int:
    return value if type(value) is int else _not_none(decoding.whole_number(value), "int")


def _text_or_none(value: object, _: object) -> str | None:
    return None if value is None else _text(value, _)


def _text(value: object, _: object) -> str:
    return value if isinstance(value, str) else _not_none(None, "str")


def _urls(value: object, _: object) -> tuple[str, ...]:
    return () if value is None else decoding.image_urls(value)


def _fraction(value: object, _: object) -> float | None:
    return decoding.fraction(value)


def _moment(value: object, _: object) -> datetime | None:
    return None if value is None else decoding.moment(value)


def _not_none(value: _T | None, kind: str) -> _T:
    if value is None:
        raise TypeError(f"{kind} expected")
    return value


# How each field is read. Tolerant on purpose, since the pages and the wire differ there: digits in
# a text, progress, times, and the spellings of the URLs. All others must have their type.
_HOOKS: Mapping[type, Mapping[str, _Hook]] = MappingProxyType(
    {
        RecordInfo: {
            "taskId": _task_id,
            "status": _text_or_none,
            "successFlag": _number_or_none,
            "response": _urls,
            "progress": _fraction,
            "errorCode": _number_or_none,
            "errorMessage": _text_or_none,
            "createTime": _moment,
            "completeTime": _moment,
        },
        Stored: {"fileSize": _number, "uploadedAt": _moment},
    }
)


@functools.cache
def _structure(kind: Any, detailed: bool = False) -> Callable[[Any, Any], Any]:
    """cattrs' function for one class, made on first use because it compiles code. The plain one is
    fast, the detailed one knows the path to a wrong value."""
    from cattrs import Converter
    from cattrs.gen import make_dict_structure_fn, override

    converter = Converter(detailed_validation=detailed)
    converter.register_structure_hook(str, _text)
    overrides = {name: override(struct_hook=hook) for name, hook in _HOOKS[kind].items()}
    return make_dict_structure_fn(kind, converter, **overrides)  # type: ignore[arg-type]  # its own options


def structured(data: object, kind: Callable[..., _T]) -> _T:
    """`data` as a `kind`. Raises `WrongShape` and nothing else."""
    if not isinstance(data, dict):
        raise WrongShape("data")
    try:
        value: _T = _structure(kind)(data, kind)
        return value
    except Exception:  # cattrs lets through whatever the value made its generated code raise
        path = _path_to_wrong_value(data, kind)
    raise WrongShape(path)


def _path_to_wrong_value(data: object, kind: Callable[..., object]) -> str:
    from cattrs import transform_error

    try:
        _structure(kind, detailed=True)(data, kind)
    except Exception as error:
        return ", ".join(line.rpartition(" @ ")[2] for line in transform_error(error, path="data"))
    return "data"
