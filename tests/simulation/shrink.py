"""The smallest plan that still breaks a law: whatever is not needed for that is left out."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from simulation.laws import broken
from simulation.plan import Call, LifePlan, Plan, When
from simulation.play import play

SIMPLE = [
    {"clients": 1},
    {"http": False},
    {"callbacks": False},
    {"webhook_key": None},
    {"trust": False},
    {"steps": ()},
    {"outage": None},
    {"failing": 0.0},
    {"slow": 0.0},
    {"faults": 0.0},
    {"faults": 0.3},
    {"poll": "default"},
    {"store": "memory"},
]
OPTIONS = [
    "cancel",
    "timeout",
    "on_update",
    "on_unknown",
    "retry_failed",
    "lazy",
    "max_in_flight",
    "stop_after",
]
DEFAULTS = {field.name: field.default for field in attrs.fields(Call)}


def smaller(plan: Plan) -> Iterator[Plan]:
    """Plans with one thing less, the largest things first."""
    for number, life in enumerate(plan.lives):
        rest = plan.lives[:number], plan.lives[number + 1 :]
        if len(plan.lives) > 1:
            yield attrs.evolve(plan, lives=(*rest[0], *rest[1]))
        for less in _smaller_life(life):
            yield attrs.evolve(plan, lives=(*rest[0], less, *rest[1]))
    for changes in SIMPLE:
        [(name, value)] = changes.items()
        crashes = any(life.end in ("kill", "interrupt") for life in plan.lives)
        possible = (name != "store" or not crashes) and (name != "faults" or value < plan.faults)
        if possible and getattr(plan, name) != value:
            yield attrs.evolve(plan, **changes)


def _smaller_life(life: LifePlan) -> Iterator[LifePlan]:
    for number, call in enumerate(life.calls):
        rest = life.calls[:number], life.calls[number + 1 :]
        if len(life.calls) > 1:
            yield attrs.evolve(life, calls=(*rest[0], *rest[1]))
        for name in OPTIONS:
            if getattr(call, name) != DEFAULTS[name]:
                less = attrs.evolve(call, **{name: DEFAULTS[name]})
                yield attrs.evolve(life, calls=(*rest[0], less, *rest[1]))
        if len(call.items) > 1:
            less = attrs.evolve(call, items=call.items[:-1])
            yield attrs.evolve(life, calls=(*rest[0], less, *rest[1]))
    if life.end != "quiet":
        yield attrs.evolve(life, end="quiet", when=When(), cancel_close=None, close_twice=False)


def shrunk(plan: Plan, law: str, *, plays: int = 400) -> Plan:
    """A small plan that breaks this law, after so many plays at most."""

    def breaks(candidate: Plan) -> bool:
        return any(name == law for name, _ in broken(play(candidate)))

    again = True
    while again:
        again = False
        for candidate in smaller(plan):
            if plays == 0:
                return plan
            plays -= 1
            if breaks(candidate):
                plan, again = candidate, True
                break
    return plan
