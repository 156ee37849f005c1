"""Entries as text and back, for the stores that outlive a process.

An entry is one JSON object under our own names, written and read by cattrs; fields at their default
are left out. A checksum goes with it, because a store file may be damaged in ways that its database
does not notice, and a task id with a wrong letter is a lost task. Pure.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args

from ..details import TaskDetails
from ..errors import StoreError
from ..image_request import ImageRequest, remembering
from .store import Entry, TracedEntry

if TYPE_CHECKING:
    from cattrs import Converter

_CHECKSUM = 8  # bytes; it protects against accidents, not against people
_decode = json.JSONDecoder().raw_decode
_encode = json.JSONEncoder(separators=(",", ":")).encode


def packed(entry: Entry) -> bytes:
    """The entry as plain ASCII, so that a lone surrogate from Kie cannot break a database."""
    fields = _converter().unstructure(entry)
    try:
        return _text(fields)
    except (ValueError, TypeError, RecursionError):
        # `raw` is whatever Kie sent or the caller passed to `parse_callback`; nothing depends on it.
        fields.get("details", {}).pop("raw", None)
    return _text(fields)


def packed_details(details: TaskDetails) -> bytes:
    """The same for the details of a task."""
    fields = _converter().unstructure(details)
    try:
        return _text(fields)
    except (ValueError, TypeError, RecursionError):
        fields.pop("raw", None)
    return _text(fields)


def unpacked_details(body: object, check: object) -> TaskDetails | None:
    """Those in a packed text and its checksum; None if either is damaged."""
    if isinstance(body, bytes) and checksum(body) == check:
        with contextlib.suppress(Exception):  # as below
            return _converter().structure(json.loads(body), TaskDetails)
    return None


def _text(fields: Mapping[str, Any]) -> bytes:
    return _encode(fields).encode("ascii")


def checksum(body: bytes) -> bytes:
    """What `unpacked` compares."""
    return hashlib.blake2b(body, digest_size=_CHECKSUM).digest()


def unpacked(body: object, check: object) -> Entry:
    """The entry in a packed text and its checksum. Raises `StoreError` if either is damaged."""
    fields = fields_in(body, check)
    try:
        return _converter().structure(fields, TracedEntry if "trace" in fields else Entry)
    except Exception:  # noqa: S110  # whatever hooks and constructors raise, the text is no entry
        pass
    raise _damaged()


def fields_in(body: object, check: object) -> dict[str, Any]:
    """The fields in a packed text and its checksum, as JSON has them. Raises `StoreError` as `unpacked` does.

    `json.loads` would look for an encoding and for spaces too, which takes 1.3 of the 9 us that opening a
    store spends on a short entry.
    """
    if isinstance(body, bytes) and checksum(body) == check:
        with suppress(ValueError, RecursionError):
            text = body.decode("ascii")
            fields, end = _decode(text)
            if type(fields) is dict and end == len(text):
                return fields
    raise _damaged()


def _damaged() -> StoreError:
    return StoreError("an entry of the store is damaged: restore the store from a backup")


@functools.cache
def _converter() -> Converter:
    """Created on first use: importing cattrs and compiling the classes takes about 15 ms."""
    from cattrs import Converter

    converter = Converter(omit_if_default=True, forbid_extra_keys=True, detailed_validation=False)
    for kind in (str, int, bool):
        converter.register_structure_hook(kind, _only(kind))
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(ImageRequest, _request)
    converter.register_structure_hook(datetime, lambda text, _: datetime.fromisoformat(text))
    converter.register_unstructure_hook(datetime, datetime.isoformat)
    converter.register_structure_hook(Decimal, _price)
    converter.register_unstructure_hook(Decimal, str)
    converter.register_structure_hook_func(lambda kind: kind == tuple[str, ...], _strings)
    converter.register_unstructure_hook_func(_is_raw, dict)
    # Every optional field defaults to None, which is never written: it is of its other type.
    converter.register_structure_hook_factory(
        _is_optional, lambda kind: converter.get_structure_hook(_other_type(kind))
    )
    return converter


def _is_optional(kind: object) -> bool:
    return NoneType in get_args(kind)


def _other_type(kind: object) -> Any:
    return next(each for each in get_args(kind) if each is not NoneType)


def _only(kind: type) -> Callable[[object, object], Any]:
    """A hook that accepts values of this type, where cattrs would convert anything."""

    def read(value: object, _: object) -> object:
        if type(value) is kind:
            return value
        raise TypeError(f"expected {kind.__name__}")

    return read


def _number(value: object, _: object) -> float:
    if type(value) is float or type(value) is int:
        return value
    raise TypeError("expected a number")


def _price(value: object, _: object) -> Decimal:
    price = Decimal(value) if type(value) is str else Decimal("NaN")
    if price.is_finite() and price >= 0:
        return price
    raise TypeError("expected a price as text")


def _strings(value: object, _: object) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(value)
    raise TypeError("expected a list of strings")


def _request(fields: dict[str, Any], _: object) -> ImageRequest:
    """The constructor checks every field, so no hook has to. It warned when the request was created."""
    token = remembering.set(True)
    try:
        return ImageRequest(**fields)
    finally:
        remembering.reset(token)


def _is_raw(kind: object) -> bool:
    """The type of `TaskDetails.raw`, which is JSON already."""
    return kind == Mapping[str, Any]
