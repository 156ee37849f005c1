"""The map of the package as data: imports point down, and a new file is placed on it on purpose."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kie4o

PACKAGE = Path(kie4o.__file__).parent
LAYERS = [
    *("cli", "webhooks", "client", "task"),
    *("batch", "lifecycle", "delivery", "arguments"),
    *("submission", "record", "polling", "scheduling", "waiting"),
    *("files", "downloads", "uploads", "disk", "images", "addresses"),
    *("limiting", "sqlite", "walcheck", "packing", "memory", "store", "reads", "transport", "retrying"),
    *("outcome", "wire", "structuring", "callbacks", "learning", "planning"),
    *("pacing", "settings", "models", "decoding", "errors"),
]  # from the top down
EMULATOR = "emulator"  # beside the map: imports nothing of ours, and only a rim imports it
RIMS = {"cli", "webhooks"}
NETWORK = {"webhooks", "transport", "files", "downloads", "uploads", EMULATOR}
# Who may import which foreign package when the program runs.
FOREIGN: dict[str, set[str]] = {
    "attrs": {*LAYERS, EMULATOR},
    "attr": {*LAYERS, EMULATOR},
    "aiohttp": NETWORK,
    "yarl": NETWORK,
    "multidict": NETWORK,
    "backoff": {"submission", "pacing", "retrying"},
    "cattrs": {"structuring"},
    "cyclopts": RIMS,
    "rich": RIMS,
    "PIL": {EMULATOR, *RIMS},
}
LONGEST = 400  # lines of a module
FILES = {file.stem: file for file in PACKAGE.glob("*.py") if file.stem != "__init__"}


class Imports(ast.NodeVisitor):
    """What a module imports when it runs, at any depth; not what is there for type checkers."""

    def __init__(self) -> None:
        self.ours: set[str] = set()
        self.foreign: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in node.orelse:
                self.visit(other)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name.split("."))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        path = node.module.split(".") if node.module else []
        if node.level:
            path = ["kie4o", *path]
        if path == ["kie4o"]:
            for alias in node.names:
                self._add([*path, alias.name])
        else:
            self._add(path)

    def _add(self, path: list[str]) -> None:
        if path[0] != "kie4o":
            self.foreign.add(path[0])
        elif len(path) > 1 and path[1] != "__version__":
            self.ours.add(path[1])
        elif len(path) == 1:
            self.ours.add("__init__")


def imports_of(source: str) -> Imports:
    found = Imports()
    found.visit(ast.parse(source))
    return found


def upward(name: str, ours: set[str]) -> set[str]:
    """What a module imports that does not stand below it."""
    allowed = set(LAYERS[LAYERS.index(name) + 1 :]) | ({EMULATOR} if name in RIMS else set())
    return ours - allowed


def test_every_file_is_on_the_map() -> None:
    """A new module fails here until it is given a place; the emulator is the only package inside."""
    assert sorted(FILES) == sorted(LAYERS)
    folders = {folder.name for folder in PACKAGE.iterdir() if any(folder.glob("*.py"))}
    assert folders == {EMULATOR}


@pytest.mark.parametrize("name", LAYERS)
def test_imports_point_down(name: str) -> None:
    """A module imports only what stands below it on the map, nowhere the root."""
    assert upward(name, imports_of(FILES[name].read_text("utf-8")).ours) == set()


def test_the_root_imports_nothing() -> None:
    """Names of the root are loaded when they are used."""
    root = imports_of((PACKAGE / "__init__.py").read_text("utf-8"))
    assert root.ours == set()
    assert root.foreign <= sys.stdlib_module_names


@pytest.mark.parametrize("file", sorted((PACKAGE / EMULATOR).glob("*.py")), ids=lambda file: file.stem)
def test_the_emulator_imports_nothing_of_ours(file: Path) -> None:
    """It answers to the recorded answers, not to our parser: it knows only its own files."""
    siblings = {other.stem for other in file.parent.glob("*.py")}
    found = imports_of(file.read_text("utf-8"))
    assert found.ours <= siblings
    assert "kie4o" not in found.foreign
    for name in found.foreign - sys.stdlib_module_names:
        assert EMULATOR in FOREIGN[name], name


@pytest.mark.parametrize("name", LAYERS)
def test_foreign_imports(name: str) -> None:
    """Each foreign package is known to few modules: aiohttp to those that touch the network."""
    for foreign in imports_of(FILES[name].read_text("utf-8")).foreign - sys.stdlib_module_names:
        assert name in FOREIGN.get(foreign, set()), foreign


def test_a_wrong_import_is_seen() -> None:
    """The control: an upward import is seen in every form and depth, one for type checkers is not."""
    for source in (
        "from .client import AsyncKieClient",
        "from . import client",
        "import kie4o.client",
        "from kie4o import client",
        "from kie4o.client import AsyncKieClient",
        "def later():\n    from .client import AsyncKieClient",
        "if TYPE_CHECKING:\n    pass\nelse:\n    from . import client",
    ):
        assert upward("wire", imports_of(source).ours) == {"client"}, source
    assert upward("wire", imports_of("import kie4o").ours) == {"__init__"}
    assert upward("wire", imports_of("if TYPE_CHECKING:\n    from . import client").ours) == set()
    assert upward("wire", imports_of("from . import __version__, errors").ours) == set()
    assert imports_of("try:\n    import aiohttp.web\nexcept ImportError:\n    pass").foreign == {"aiohttp"}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.stem)
def test_a_module_is_short_and_says_what_it_is(file: Path) -> None:
    """At most 400 lines, and a docstring that opens it."""
    source = file.read_text("utf-8")
    assert len(source.splitlines()) <= LONGEST
    assert ast.get_docstring(ast.parse(source))


ALL = ["kie4o", *(f"kie4o.{name}" for name in LAYERS), "kie4o.emulator", "kie4o.emulator.__main__"]


@pytest.fixture(scope="module")
def alone() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """A fresh interpreter for each module, all at once; warnings are errors."""
    program = "import importlib, sys; importlib.import_module(sys.argv[1]); print(*sys.modules)"
    running = {
        name: subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program, name],
            cwd=PACKAGE.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ALL
    }
    yield running
    for process in running.values():
        process.communicate()


def loaded(process: subprocess.Popen[str]) -> set[str]:
    """The top-level packages and modules that an import brought in."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err == ""
    return {name.split(".")[0] for name in out.split()}


@pytest.mark.parametrize("name", ALL)
def test_a_module_can_be_imported_alone(name: str, alone: dict[str, subprocess.Popen[str]]) -> None:
    """Each by itself, without a warning; the pure ones bring neither network nor cattrs with them."""
    packages = loaded(alone[name])
    assert "kie4o" in packages
    if name.split(".")[-1] in ("kie4o", "callbacks", "models", "errors", "decoding", "settings"):
        assert not packages & {"aiohttp", "yarl", "cattrs", "cattr", "backoff", "rich", "cyclopts", "PIL"}
    if name.split(".")[-1] in ("wire", "store", "memory", "limiting", "polling", "waiting", "structuring"):
        assert not packages & {"aiohttp", "yarl", "cattrs", "cattr", "rich", "cyclopts", "PIL"}
    if name in ("kie4o.client", "kie4o.transport"):
        assert "aiohttp" in packages  # the control: it would be seen
        assert not packages & {"rich", "cyclopts", "PIL"}
