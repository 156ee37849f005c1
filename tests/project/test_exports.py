"""The public names: promised once, kept everywhere."""

import ast
import importlib
import inspect
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, get_origin

import attrs
import pytest
from paths import IMPORT_ROOT, PACKAGE, TESTS

import kie4o
from kie4o.emulator import Emulator
from kie4o.webhooks import asgi_app, routes

TYPING = TESTS / "typing" / "api.py"
PUBLIC = [name for name in kie4o.__all__ if name != "__version__"]


def imported_for_type_checkers() -> list[str]:
    """The names under `if TYPE_CHECKING` in the root."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    assert [ast.unparse(block.test) for block in blocks] == ["TYPE_CHECKING"]
    return [
        alias.asname or alias.name
        for node in blocks[0].body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]


def test_all_is_sorted_and_unique() -> None:
    """One can find a name in the list, and each is there once."""
    assert kie4o.__all__ == sorted(set(kie4o.__all__))
    assert dir(kie4o) == kie4o.__all__


def test_type_checkers_see_the_same_names() -> None:
    """What is promised, what type checkers see and what is loaded on use are one list."""
    assert sorted([*imported_for_type_checkers(), "__version__"]) == kie4o.__all__


def alias_docstring(name: str) -> str:
    """The text below the assignment of a type alias, in the module that the root loads it from."""
    home = importlib.import_module(f"kie4o.{kie4o._HOMES.get(name, 'models')}")
    body = ast.parse(inspect.getsource(home)).body
    for node, below in itertools.pairwise(body):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            return str(below.value.value) if is_text else ""
    raise AssertionError(f"{home.__name__} has no {name}")


@pytest.mark.parametrize("name", kie4o.__all__)
def test_a_public_name(name: str) -> None:
    """It can be imported, knows its own name, and has a docstring of its own."""
    value = getattr(kie4o, name)
    if name == "__version__":
        assert value.count(".") == 2
        return
    if get_origin(value) is not None:  # a type alias knows no name
        assert alias_docstring(name)
        return
    assert value.__name__ == name
    assert value.__module__.startswith("kie4o.")
    assert vars(value).get("__doc__") if inspect.isclass(value) else inspect.getdoc(value)
    if inspect.isclass(value):
        for method, member in vars(value).items():
            if not method.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                returns = inspect.signature(member.fget if isinstance(member, property) else member)
                one_word = isinstance(member, property) and returns.return_annotation in ("bool", "int")
                assert inspect.getdoc(member) or one_word, f"{name}.{method}"


def undescribed(call: Any, docstring: str | None) -> list[str]:
    """The parameters that a docstring does not name: in backticks, or as an entry of "Args:"."""
    text = docstring or ""
    return [
        name
        for name in inspect.signature(call).parameters
        if name != "self" and not re.search(rf"`\*{{0,2}}{name}\b|^ *\*{{0,2}}{name}:", text, re.MULTILINE)
    ]


def calls() -> Iterator[tuple[str, Any, str | None]]:
    """Every public call and value with its name and docstring; that of a constructor is the class's."""
    values = [value for value in (getattr(kie4o, name) for name in PUBLIC) if attrs.has(value)]
    for call in (kie4o.parse_callback, kie4o.sign_callback, routes, asgi_app, *values):
        yield call.__name__, call, inspect.getdoc(call)
    for kind in (kie4o.AsyncKieClient, kie4o.TaskPoller, kie4o.ImageTask):
        if kind is not kie4o.ImageTask:  # a client creates it
            yield kind.__name__, kind, inspect.getdoc(kind)
        for name, method in inspect.getmembers(kind, inspect.isfunction):
            if not name.startswith("_"):
                yield f"{kind.__name__}.{name}", method, inspect.getdoc(method)
    for call in (Emulator, Emulator.plan, Emulator.next):
        yield call.__qualname__, call, inspect.getdoc(call)


@pytest.mark.parametrize(("call", "docstring"), [pytest.param(*rest, id=name) for name, *rest in calls()])
def test_every_argument_is_described(call: Any, docstring: str | None) -> None:
    """The docstring of a public call or value names each of its parameters."""
    assert undescribed(call, docstring) == []


def test_an_argument_without_a_description_is_seen() -> None:
    """The control: a word of the prose is no description, and a longer name neither."""

    def call(path: str, name: str = "", *, size: int = 0, **fields: object) -> None: ...

    assert undescribed(call, None) == ["path", "name", "size", "fields"]
    assert undescribed(call, "A path. `names`, `size=1`.\n\nArgs:\n    **fields: More.") == ["path", "name"]
    assert undescribed(call, "`path`, `name`\n\nArgs:\n  size: Bytes.\n  fields: More.") == []


def test_no_other_name() -> None:
    """What is not promised is not there, also if a module of that name exists elsewhere."""
    for name in ("nothing", "AsyncClient", "ImageRequests", "SomeError"):
        with pytest.raises(AttributeError, match=name):
            getattr(kie4o, name)


def test_star_import() -> None:
    """`from kie4o import *` gives exactly the public names, in a fresh interpreter."""
    program = (
        "import kie4o; before = {*globals()}; from kie4o import *; print(*sorted({*globals()} - before))"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=IMPORT_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(result.stdout.split()) == sorted([*kie4o.__all__, "before"])


def test_types_are_shipped() -> None:
    """Type checkers believe a package only if it holds `py.typed`."""
    assert (PACKAGE / "py.typed").read_bytes() == b""


def test_every_public_name_is_type_checked() -> None:
    """tests/typing/api.py uses each name, not only imports it."""
    tree = ast.parse(TYPING.read_text("utf-8"))
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "kie4o"
        for alias in node.names
    }
    used = {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    assert sorted(imported & used) == kie4o.__all__
