"""Faults: what goes wrong with which request, as values. Pure.

One grammar serves `kie.fault(...)`, pytest markers, JSON and TOML; its tables are in `effects`. A fault that
could never fire is an error. `fault_queue` says when a fault fires, and `delivery` carries it out.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict

import attrs

from .effects import EFFECTS, KINDS, OF_ONE_TASK, OF_TASKS, REDIRECTS, VALUES, WHEN, Kind
from .values import invalid

__all__ = ["KINDS", "Arrival", "Fault", "FaultOptions", "Kind", "parse_fault"]


@attrs.frozen(kw_only=True)
class Arrival:
    """A request, as faults and their functions see it.

    Attributes:
        kind: One of `KINDS`.
        at: When it arrived, in emulated seconds.
        prompt: The prompt of the submit or of the task.
        task: The task id.
        body: The JSON object that was sent.
    """

    kind: Kind
    at: float
    prompt: str | None = None
    task: str | None = None
    body: Mapping[str, Any] | None = attrs.field(default=None, repr=False)


Function = Callable[[Arrival], Mapping[str, Any] | None]


class FaultOptions(TypedDict, total=False):
    """The fields of a `Fault` besides its kind, for type checkers."""

    times: int | Literal["always"] | None
    after: int
    probability: float
    lasting: float | None
    prompt: str | None
    task: str | None
    code: int | None
    page: str | None
    body: str | bytes | None
    http_status: int | None
    redirect: str | None
    headers: Mapping[str, str] | None
    record: str | None
    image: str | None
    reset: str | None
    refuse: float | None
    stall: float | Literal["forever"] | None
    drip: float | None
    cut: int | None
    framing: str | None
    open_ended: bool | None
    by: Function | None
    message: str | None
    data: Any
    retry_after: float | str | None
    charged: bool | None
    at: int | None


def _times(value: Any) -> Any:
    return None if value == "always" else value


def _stall(value: Any) -> Any:
    return math.inf if value == "forever" else value


@attrs.frozen(kw_only=True)
class Fault:
    """What goes wrong with which request: `Fault("submit", code=455, times=2)`.

    It has a kind, conditions (`WHEN`), and exactly one effect (`EFFECTS`) with its options (`OPTIONS`). The
    tables are on the page "Testing your own code".

    Raises:
        ValueError: A value is not allowed, effects contradict each other, or the fault could never fire.
    """

    kind: Kind = attrs.field(kw_only=False)
    times: int | None = attrs.field(default=1, converter=_times)
    after: int = 0
    probability: float = 1.0
    lasting: float | None = None
    prompt: str | None = None
    task: str | None = None
    code: int | None = None
    page: str | None = None
    body: str | bytes | None = None
    http_status: int | None = None
    redirect: str | None = None
    headers: Mapping[str, str] | None = None
    record: str | None = None
    image: str | None = None
    reset: str | None = None
    refuse: float | None = None
    stall: float | None = attrs.field(default=None, converter=_stall)
    drip: float | None = None
    cut: int | None = None
    framing: str | None = None
    open_ended: bool | None = None
    by: Function | None = None
    message: str | None = None
    data: Any = None
    retry_after: float | str | None = None
    charged: bool | None = None
    at: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.kind not in KINDS:
            raise invalid("kind", self.kind, f"one of {', '.join(KINDS)}")
        for name, value in self._given().items():
            expected = VALUES[name]
            if not expected.accepts(value):
                raise invalid(name, value, expected.expected)
        self._check_effect()
        for never, why in self._contradictions():
            if never:
                raise ValueError(f"{self} could never fire: {why}")

    def __str__(self) -> str:
        fields = "".join(f", {name}={value!r}" for name, value in self._given().items())
        return f"fault({self.kind!r}{fields})"

    @property
    def effect(self) -> str:
        """The name of its effect."""
        return _effects(self._given())[0]

    @property
    def charges(self) -> bool:
        """Whether a submit that meets it is charged."""
        if self.charged is not None:
            return self.charged
        return bool(EFFECTS[self.effect].charged) or self.reset == "after"

    @property
    def is_answer(self) -> bool:
        """Whether it can be planned as the answer to one submit, when its body was read."""
        late = self.refuse is None and self.reset != "before" and self.by is None
        return self.kind == "submit" and late and not self._given().keys() & WHEN.keys()

    @property
    def replaces_answer(self) -> bool:
        """Whether the code of the true answer does not reach the client."""
        return EFFECTS[self.effect].replaces or self.stall == math.inf

    def matches(self, arrival: Arrival) -> bool:
        """Whether it is for this request, now or at another time."""
        return (
            self.kind == arrival.kind
            and self.prompt in (None, arrival.prompt)
            and self.task in (None, arrival.task)
        )

    def effect_on(self, arrival: Arrival) -> Fault | None:
        """The fault itself, or what its function makes of the request."""
        if self.by is None:
            return self
        options = self.by(arrival)
        if options is None:
            return None
        fault = parse_fault({"kind": self.kind, **options})
        if fault.refuse is not None or fault.reset == "before":
            raise ValueError(f"{fault} is too late: the function sees a request that was read")
        return fault

    def _given(self) -> dict[str, Any]:
        """The fields that differ from their defaults."""
        fields = attrs.fields(type(self))
        return {
            field.name: value
            for field in fields
            if field.name != "kind" and (value := getattr(self, field.name)) != field.default
        }

    def _check_effect(self) -> None:
        given = self._given()
        effects = _effects(given)
        if len(effects) != 1:
            what = "no effect" if not effects else f"{' and '.join(effects)}, which contradict each other"
            raise ValueError(f"{self} has {what}: expected exactly one of {', '.join(EFFECTS)}")
        (name,) = effects
        effect = EFFECTS[name]
        if self.kind not in effect.kinds:
            possible = [other for other, row in EFFECTS.items() if self.kind in row.kinds]
            raise ValueError(
                f"{self} could never fire: {name} is for {', '.join(effect.kinds)}; "
                f"the effects for {self.kind} are {', '.join(possible)}"
            )
        for option in given.keys() - WHEN.keys() - {name, *effect.options}:
            allowed = ", ".join((*WHEN, *effect.options))
            raise ValueError(f"{self}: {option} does not go with {name}; expected some of {allowed}")

    def _contradictions(self) -> tuple[tuple[bool, str], ...]:
        conditions = self._given().keys() & WHEN.keys()
        return (
            (self.prompt is not None and self.kind not in OF_TASKS, f"{self.kind} requests have no prompt"),
            (
                self.task is not None and self.kind not in OF_ONE_TASK,
                f"{self.kind} requests have no task",
            ),
            (self.charged is not None and self.kind != "submit", f"{self.kind} requests are never charged"),
            (self.lasting is not None and self.times != 1, "pass either times or lasting"),
            (
                self.reset == "before" and bool(self.charged),
                "a request that was not read cannot be charged; use reset='after'",
            ),
            (
                self.reset == "before" and self.kind == "submit" and self.prompt is not None,
                "the prompt is not read before the reset",
            ),
            (
                self.refuse is not None and bool(conditions - {"after"}),
                "a connection that is refused brings no request; only after goes with refuse",
            ),
            (
                self.redirect is not None and self.http_status not in (None, *REDIRECTS),
                f"a redirect has one of the HTTP statuses {', '.join(map(str, REDIRECTS))}",
            ),
        )


def _effects(given: Mapping[str, Any]) -> list[str]:
    """The effects among these fields, without those that are options of another one."""
    names = [name for name in EFFECTS if name in given]
    return [
        name for name in names if not any(name in EFFECTS[other].options for other in names if other != name)
    ]


def parse_fault(fields: Mapping[str, Any]) -> Fault:
    """The fault of a marker, of JSON or of TOML: a mapping with the fields of `Fault`.

    Raises:
        ValueError: A field is unknown, or a value is not allowed.
    """
    if not isinstance(fields, Mapping):
        raise invalid("fault", fields, "a mapping such as {'kind': 'submit', 'code': 455}")
    allowed = [field.name for field in attrs.fields(Fault)]
    for name in fields:
        if name not in allowed:
            near = difflib.get_close_matches(str(name), allowed, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(
                f"unknown field {name!r} of a fault{hint}: expected some of {', '.join(allowed)}"
            )
    if "kind" not in fields:
        raise ValueError(f"a fault without a kind: expected kind to be one of {', '.join(KINDS)}")
    return Fault(**fields)
