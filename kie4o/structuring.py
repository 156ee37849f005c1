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


@attrs.frozen
class Record:
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


@attrs.frozen
class Stored:
    """`data` of an upload."""

    downloadUrl: str
    fileName: str = ""
    filePath: str = ""
    fileSize: int = 0
    mimeType: str = ""
    uploadedAt: datetime | None = None


def _or_none(kind: str, reader: Callable[[object], Any]) -> Callable[[object], Any]:
    """A strict reader: None stays None, and what cannot be read is an error, not None."""

    def read(value: object) -> Any:
        result = reader(value)
        if result is None and value is not None:
            raise TypeError(f"{kind} expected")
        return result

    return read


def _whole(value: object) -> int:
    number = decoding.whole_number(value)
    if number is None:
        raise TypeError("int expected")
    return number


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


# How each field is read. Tolerant on purpose, since the pages and the wire differ there: digits in
# a text, progress, times, and the spellings of the URLs. All others must have their type.
_READERS: Mapping[type, Mapping[str, Callable[[object], Any]]] = MappingProxyType(
    {
        Record: {
            "taskId": _or_none("task id", decoding.task_id),
            "status": _or_none("str", _text),
            "successFlag": _or_none("int", decoding.whole_number),
            "response": decoding.image_urls,
            "progress": decoding.fraction,
            "errorCode": _or_none("int", decoding.whole_number),
            "errorMessage": _or_none("str", _text),
            "createTime": decoding.moment,
            "completeTime": decoding.moment,
        },
        Stored: {"fileSize": _whole, "uploadedAt": decoding.moment},
    }
)


@functools.cache
def _structure(kind: Any, *, detailed: bool) -> Callable[[Any, Any], Any]:
    """cattrs' function for one class, made on first use because it compiles code. The plain one is
    fast, the detailed one knows the path to a wrong value."""
    from cattrs import Converter
    from cattrs.gen import make_dict_structure_fn, override

    converter = Converter(detailed_validation=detailed)
    converter.register_structure_hook(str, _only_text)
    overrides = {name: override(struct_hook=_hook(read)) for name, read in _READERS[kind].items()}
    return make_dict_structure_fn(kind, converter, **overrides)  # type: ignore[arg-type]  # its own options


def _hook(read: Callable[[object], Any]) -> Callable[[Any, Any], Any]:
    return lambda value, _: read(value)


def _only_text(value: object, _: object) -> str:
    if not isinstance(value, str):
        raise TypeError("str expected")
    return value


def structured(data: object, kind: Callable[..., _T]) -> _T:
    """`data` as a `kind`. Raises `WrongShape` and nothing else."""
    if not isinstance(data, dict):
        raise WrongShape("data")
    try:
        value: _T = _structure(kind, detailed=False)(data, kind)
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
