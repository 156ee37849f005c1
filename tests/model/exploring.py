"""An explicit-state search: every state that a model can reach, breadth first, and what is wrong with it.

A model has a `start`, `steps` from a state to others, `broken` for what no state may be, and `finished` for
those in which all work is done. A state is any value that can be hashed. A step is a fault or not. The search
proves two things of a model: no state that can be reached is broken, and from each of them the work can be
finished without another fault. Otherwise it returns the shortest way to a state that shows the opposite.

What a state costs is memory, so a state keeps its parent and one step that goes on, and nothing else: the
words of a trace are found again by taking its steps once more.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple, Protocol

State = Hashable


class Step(NamedTuple):
    """One thing that may happen; `fault` if it is none of what must go on for the work to be finished."""

    words: tuple[Any, ...]
    fault: bool
    state: Any


class Model(Protocol):
    start: Any

    def steps(self, state: Any) -> Iterator[Step]:
        """What may happen next. Those that come first among the steps without a fault are the way home."""
        ...

    def broken(self, state: Any) -> str | None:
        """What no state may be, in words."""
        ...

    def finished(self, state: Any) -> bool: ...


class Outcome(NamedTuple):
    """What a search has found: `broken` is None if all is well."""

    states: int
    steps: int
    seconds: float
    broken: str | None
    trace: tuple[str, ...]

    def __str__(self) -> str:
        size = f"{self.states:,} states, {self.steps:,} steps, {self.seconds:.1f} s"
        lines = [f"  {number}. {words}" for number, words in enumerate(self.trace, 1)]
        return "\n".join([f"{self.broken or 'all is well'}: {size}", *lines])


def explore(model: Model, *, most: int = 50_000_000, finishes: bool = True) -> Outcome:
    """Search all states, until one is broken or `most` were found, which is an error. Without `finishes` it
    is
    not asked whether the work can be finished."""
    began, taken = time.perf_counter(), 0
    parents: dict[Any, Any] = {model.start: None}
    onward: dict[Any, Any] = {}  # one step without a fault from each state
    queue = deque([model.start])

    def outcome(broken: str | None, last: Any = None) -> Outcome:
        seconds = time.perf_counter() - began
        trace = () if broken is None else _trace(model, parents, last)
        return Outcome(len(parents), taken, seconds, broken, trace)

    if (wrong := model.broken(model.start)) is not None:
        return outcome(wrong, model.start)
    while queue:
        state = queue.popleft()
        for _, fault, after in model.steps(state):
            taken += 1
            if not fault and state not in onward and after != state:
                onward[state] = after
            if after in parents:
                continue
            parents[after] = state
            if (wrong := model.broken(after)) is not None:
                return outcome(wrong, after)
            queue.append(after)
        assert len(parents) <= most, f"more than {most:,} states: make the model smaller"
    stuck = _first_stuck(model, parents, onward) if finishes else None
    return outcome(None) if stuck is None else outcome("nobody can finish any more", stuck)


def _first_stuck(model: Model, parents: dict[Any, Any], onward: dict[Any, Any]) -> Any:
    """The first state from which no steps without a fault lead to a finished one."""
    hopeful: set[Any] = set()
    for first in parents:  # in the order of the search
        path, state = [], first
        on_path: set[Any] = set()
        while state not in hopeful and not model.finished(state):
            path.append(state)
            on_path.add(state)
            following = onward.get(state)
            if following is None or following in on_path:
                if not _can_finish(model, first, hopeful):
                    return first
                path = [first]
                break
            state = following
        hopeful.update(path)
    return None


def _can_finish(model: Model, first: Any, hopeful: set[Any]) -> bool:
    """Whether any steps without a fault lead to the end. What is on the way there is hopeful too."""
    came_from: dict[Any, Any] = {first: None}
    stack = [first]
    while stack:
        state = stack.pop()
        if state in hopeful or model.finished(state):
            while state is not None:
                hopeful.add(state)
                state = came_from[state]
            return True
        for _, fault, after in model.steps(state):
            if not fault and after not in came_from:
                came_from[after] = state
                stack.append(after)
    return False


def _trace(model: Model, parents: dict[Any, Any], last: Any) -> tuple[str, ...]:
    way = [last]
    while (state := parents[way[-1]]) is not None:
        way.append(state)
    way.reverse()
    words = []
    for before, after in itertools.pairwise(way):
        words.append(next(step.words for step in model.steps(before) if step.state == after))
    return tuple(" ".join(map(str, each)) for each in words)
