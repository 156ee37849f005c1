"""What all events have in common."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, dataclass_transform

from attrs.exceptions import FrozenInstanceError

_set = object.__setattr__


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Event:
    """Something that has happened: an immutable value. `str()` of it is its line in the log.

    attrs would take 0.4 ms to make each of these classes, 15 ms of the 75 that importing a client takes. They
    are made by hand, for type checkers as dataclasses.
    """

    level: ClassVar[int] = logging.INFO
    """Of the logger `kie4o`."""

    texts: ClassVar[tuple[str, ...]] = ()
    """The lines that it may have, as formats of `logging`."""

    failed: ClassVar[str] = ""
    """The kind of call whose failure it tells of, if any. `client.state()` has the last one of each kind."""

    fields: ClassVar[Mapping[str, object]] = MappingProxyType({})
    """The names of its attributes, each with its default or `...`."""

    _count: ClassVar[int] = 0  # of them

    def __init_subclass__(cls) -> None:
        own = {
            name: vars(cls).get(name, ...)
            for name, kind in inspect.get_annotations(cls).items()
            if not kind.startswith("ClassVar")
        }
        cls.fields = MappingProxyType({**cls.fields, **own})
        cls._count = len(cls.fields)

    def __init__(self, **values: object) -> None:
        # For a hook two are made for each poll. If all values are given, their names are not checked, which
        # type checkers do: 0.7 us instead of 1.3.
        if len(values) != self._count:
            values = {**self.fields, **values}
            if len(values) != self._count or ... in values.values():
                raise TypeError(f"{type(self).__name__} has the attributes {', '.join(self.fields)}")
        _set(self, "__dict__", values)

    def line(self, subject: str = "") -> tuple[str, dict[str, object]]:
        """The line of the log, as a format of `logging` and its values by name.

        `subject` is what the log calls the submit: with its ref, or the start of its prompt, which the event
        itself does not have.
        """
        return self._text(), {**vars(self), **self._words(), "subject": subject or self.name}

    @property
    def name(self) -> str:
        """What it is about."""
        return ""

    def _text(self) -> str:
        return self.texts[0]

    def _words(self) -> dict[str, object]:
        """What the line says otherwise than the attributes do."""
        return {}

    def __str__(self) -> str:
        text, values = self.line()
        return text % values

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.fields)
        return f"{type(self).__name__}({values})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *(getattr(self, name) for name in self.fields)))

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError


class OfSubmit(Event):
    """An event of one submit."""

    ref_hash: str
    key: str | None = None

    @property
    def name(self) -> str:
        """The submit, if nothing else is known of it."""
        key = "" if self.key is None else f" (key {self.key!r})"
        return f"a submit with ref hash {self.ref_hash}{key}"
