"""`TaskDetails`: `raw` is read-only at any depth, and otherwise behaves as what JSON gives."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie4o import TaskDetails, TaskState, parse_callback

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
RAW = st.dictionaries(st.text(), JSON, max_size=6)
CHANGES: dict[str, Callable[[Any], object]] = {
    "[]=": lambda box: box.__setitem__(next(iter(box)) if isinstance(box, dict) else 0, "changed"),
    "del": lambda box: box.__delitem__(next(iter(box)) if isinstance(box, dict) else 0),
    "clear": lambda box: box.clear(),
    "pop": lambda box: box.pop() if isinstance(box, list) else box.pop(next(iter(box))),
    **{
        name: lambda box, name=name, words=words: getattr(box, name)(*words)
        for name, words in {
            "popitem": (),
            "setdefault": ("new", 1),
            "update": ({"new": 1},),
            "__ior__": ({"new": 1},),
            "append": (1,),
            "extend": ([1],),
            "insert": (0, 1),
            "remove": (1,),
            "reverse": (),
            "sort": (),
            "__iadd__": ([1],),
            "__imul__": (2,),
        }.items()
    },
}


def details_with(raw: Any) -> TaskDetails:
    return TaskDetails("task", state=TaskState.SUCCEEDED, raw=raw)


def boxes(value: Any) -> list[Any]:
    """Every object and list in a value, itself included."""
    if not isinstance(value, (dict, list)):
        return []
    inner = value.values() if isinstance(value, dict) else value
    return [value, *(box for each in inner for box in boxes(each))]


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_in_raw_can_be_changed(change: str) -> None:
    """Each method that changes an object or a list is refused, at any depth, and changes nothing."""
    raw = {"urls": [[1], {"a": 1}], "nested": {"list": [1, 2]}}
    for kept in (details_with(raw), copy.deepcopy(details_with(raw)), attrs.evolve(details_with(raw))):
        tried = [box for box in boxes(kept.raw) if change in ("[]=", "del") or hasattr(type(box), change)]
        assert tried
        for box in tried:
            with pytest.raises(TypeError, match="read-only"):
                CHANGES[change](box)
        assert kept.raw == raw


def test_control_the_changes_would_work() -> None:
    """On a plain list or dict each of them changes something, and the list of them is complete."""
    for change, make in CHANGES.items():
        for box in ([2, 1], {"a": 1, "b": 2}):
            if change in ("[]=", "del") or hasattr(box, change):
                before = copy.copy(box)
                make(box)
                assert box != before, change
    ours = {name for name in CHANGES if name not in ("[]=", "del")} | {"__setitem__", "__delitem__"}
    other = {"__init__", "__getattribute__", "__class_getitem__", "__new__"}
    for kind in (list, dict):
        changing = {name for name in vars(kind) if name in ours}
        assert changing | other | READING >= set(vars(kind))


READING = {
    *(
        "__contains__",
        "__doc__",
        "__eq__",
        "__ge__",
        "__getitem__",
        "__gt__",
        "__hash__",
        "__iter__",
        "__le__",
    ),
    *(
        "__len__",
        "__lt__",
        "__ne__",
        "__repr__",
        "__reversed__",
        "__sizeof__",
        "__add__",
        "__mul__",
        "__rmul__",
    ),
    *("__or__", "__ror__", "copy", "count", "fromkeys", "get", "index", "items", "keys", "values"),
}


@given(RAW)
def test_raw_is_what_arrived(raw: dict[str, Any]) -> None:
    """It compares equal to the JSON, is written as the same JSON, and survives a pickle and a copy."""
    details = details_with(raw)
    assert details.raw == raw
    assert json.dumps(details.raw) == json.dumps(raw)
    for same in (pickle.loads(pickle.dumps(details)), copy.copy(details), copy.deepcopy(details)):
        assert (same, same.raw) == (details, raw)
        assert [type(box) for box in boxes(same.raw)] == [type(box) for box in boxes(details.raw)]


def test_raw_takes_no_part_in_equality() -> None:
    """What arrives in other words is equal; the hash is that of the other fields."""
    assert details_with({"a": 1}) == details_with({"a": 2}) == details_with({})


def test_what_the_caller_passed_stays_the_callers() -> None:
    """The caller may go on changing its object: the details do not follow, and do not keep it from that."""
    given: dict[str, Any] = {"taskId": "task", "info": {"resultUrls": ["https://a.example/1.png"]}}
    callback = parse_callback({"code": 200, "data": given})
    given["info"]["resultUrls"].append("https://evil.example/2.png")
    given["new"] = 1
    assert callback.details.raw == {"taskId": "task", "info": {"resultUrls": ["https://a.example/1.png"]}}
    with pytest.raises(TypeError, match="read-only"):
        callback.details.raw["info"]["resultUrls"].clear()


def test_what_is_shared_or_circular_is_kept() -> None:
    """An object of a caller may appear twice, or hold itself; JSON may be nested as deep as it likes."""
    twice: list[Any] = [1]
    circle: dict[str, Any] = {"a": twice, "b": (twice, twice)}
    circle["self"] = circle
    raw = details_with(circle).raw
    assert raw["self"] is raw
    assert raw["b"] == [raw["a"], raw["a"]]
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert len(details_with({"deep": deep}).raw) == 1


@pytest.mark.parametrize(
    ("text", "params"),
    [('{"prompt":"x"}', {"prompt": "x"}), ("[]", {}), ("{", {}), (None, {}), (5, {}), ("[" * 100_000, {})],
)
def test_params_are_decoded(text: object, params: dict[str, object]) -> None:
    """The request as Kie stored it, or {} if that cannot be read."""
    assert details_with({"paramJson": text}).params == params
