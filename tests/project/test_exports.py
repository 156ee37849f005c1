"""The public names: promised once, kept everywhere."""

import ast
import inspect
import subprocess
import sys

import pytest
from paths import IMPORT_ROOT, PACKAGE, TESTS

import kie4o

TYPING = TESTS / "typing" / "api.py"


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


@pytest.mark.parametrize("name", kie4o.__all__)
def test_a_public_name(name: str) -> None:
    """It can be imported, knows its own name, and has a docstring of its own."""
    value = getattr(kie4o, name)
    if name == "__version__":
        assert value.count(".") == 2
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
