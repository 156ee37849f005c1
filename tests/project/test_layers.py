"""The map of the package as data: imports point down from floor to floor, and a new file is placed on it
on purpose."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import IMPORT_ROOT, PACKAGE

FLOORS = [
    {"__main__"},
    {"cli", "webhooks"},  # rims
    {"client"},
    {"task"},
    {"batch", "lifecycle"},
    {"arguments"},
    {"submission", "callbacks", "files"},  # what costs, what comes in, what goes both ways
    {"stores", "polling", "transport"},  # memory, waiting, the socket: none knows another
    {"wire"},
    {"models", "settings"},
    {"errors"},
    {"details", "urls", "version", "clock"},
]  # from the top down; a room is a folder or a file
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
EMULATOR = "emulator"  # beside the map: imports nothing of ours, and only the command line imports it
PURE = {"wire", "models", "settings", "errors", "details", "urls", "version", "clock"}
NETWORK = {"webhooks", "transport", "files", EMULATOR}
# Which rooms may import which foreign package when the program runs.
FOREIGN: dict[str, set[str]] = {
    "attrs": {*FLOOR_OF, EMULATOR},
    "attr": {*FLOOR_OF, EMULATOR},
    "aiohttp": NETWORK,
    "yarl": NETWORK,
    "multidict": NETWORK,
    "backoff": {"submission", "polling", "transport"},
    "cattrs": {"wire", "stores"},
    "cyclopts": {"cli"},
    "rich": {"cli"},
    "PIL": {EMULATOR, "cli"},
}
LONGEST = 400  # lines of a module without its docstrings
FILES = sorted(file for file in PACKAGE.rglob("*.py") if file.parent != PACKAGE or file.stem != "__init__")
NAMES = {file: ".".join(file.relative_to(PACKAGE).with_suffix("").parts) for file in FILES}
OURS = [file for file in FILES if NAMES[file].split(".")[0] != EMULATOR]


class Imports(ast.NodeVisitor):
    """What a module imports, at any depth, what is there for type checkers included: the modules of
    ours in full (`stores.ledger`), and the first word of foreign ones. `running` leaves out what is
    there for type checkers only."""

    def __init__(self, name: str, *, running: bool = False) -> None:
        self.package = name.split(".")[:-1]
        self.running = running
        self.ours: set[str] = set()
        self.foreign: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if self.running and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
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
            path = ["kie4o", *self.package[: len(self.package) - node.level + 1], *path]
        if path[0] == "kie4o":
            for alias in node.names:  # a name of a module, or a module
                self._add([*path, alias.name])
        else:
            self._add(path)

    def _add(self, path: list[str]) -> None:
        if path[0] == "kie4o":
            self.ours.add(".".join(path[1:]))
        else:
            self.foreign.add(path[0])


def imports_of(source: str, name: str, *, running: bool = False) -> Imports:
    found = Imports(name, running=running)
    found.visit(ast.parse(source))
    return found


def wrong_arrows(source: str, name: str) -> set[str]:
    """What a module imports outside its own room that does not lie on a lower floor."""
    room = name.split(".")[0]
    wrong = set()
    for other in imports_of(source, name).ours:
        target = other.split(".")[0]
        emulated = target == EMULATOR and room == "cli"
        if target != room and not emulated and FLOOR_OF.get(target, -1) <= FLOOR_OF[room]:
            wrong.add(target or "the root")
    return wrong


def module_of(target: str) -> str | None:
    """The module that `from .room.module import name` reads: of `room.module.name` the part that is one."""
    known = set(NAMES.values())
    while target:
        for name in (target, f"{target}.__init__"):
            if name in known:
                return name
        target = target.rpartition(".")[0]
    return None


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Every way by which a module leads back to itself, found depth first."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for other in sorted(arrows.get(name, ())):
                visit(other, [*path, name])
            done.add(name)

    for name in sorted(arrows):
        visit(name, [])
    return found


def test_every_room_is_on_the_map() -> None:
    """A new room fails here until it is given a floor."""
    assert {NAMES[file].split(".")[0] for file in OURS} == set(FLOOR_OF)


@pytest.mark.parametrize("file", OURS, ids=NAMES.get)
def test_imports_point_down(file: Path) -> None:
    """Out of its room a module imports only from lower floors, for type checkers too; nowhere the root."""
    assert wrong_arrows(file.read_text("utf-8"), NAMES[file]) == set()


def test_no_circle() -> None:
    """No module leads back to itself, imports for type checkers included."""
    arrows = {
        NAMES[file]: {
            module
            for target in imports_of(file.read_text("utf-8"), NAMES[file]).ours
            if (module := module_of(target)) is not None and module != NAMES[file]
        }
        for file in FILES
    }
    assert circles(arrows) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]  # the control


def test_the_root_imports_nothing_but_its_version() -> None:
    """Names of the root are loaded when they are used."""
    root = imports_of((PACKAGE / "__init__.py").read_text("utf-8"), "__init__", running=True)
    assert root.ours == {"version.__version__"}
    assert root.foreign <= sys.stdlib_module_names


@pytest.mark.parametrize("file", [file for file in FILES if file not in OURS], ids=NAMES.get)
def test_the_emulator_imports_nothing_of_ours(file: Path) -> None:
    """It answers to the recorded answers, not to our parser: it knows only its own files."""
    found = imports_of(file.read_text("utf-8"), NAMES[file])
    assert {target.split(".")[0] for target in found.ours} <= {EMULATOR}
    for name in found.foreign - sys.stdlib_module_names:
        assert EMULATOR in FOREIGN[name], name


@pytest.mark.parametrize("file", OURS, ids=NAMES.get)
def test_foreign_imports(file: Path) -> None:
    """Each foreign package is known to few rooms: aiohttp to those that touch the network."""
    found = imports_of(file.read_text("utf-8"), NAMES[file], running=True)
    for foreign in found.foreign - sys.stdlib_module_names:
        assert NAMES[file].split(".")[0] in FOREIGN.get(foreign, set()), foreign


@pytest.mark.parametrize(
    "source",
    [
        "from ..client import AsyncKieClient",
        "from .. import client",
        "import kie4o.client",
        "from kie4o import client",
        "from kie4o.client import AsyncKieClient",
        "def later():\n    from ..client import AsyncKieClient",
        "if TYPE_CHECKING:\n    from ..client import AsyncKieClient",
    ],
)
def test_an_upward_import_is_seen(source: str) -> None:
    """The control: it is seen in every form and depth, for type checkers too."""
    assert wrong_arrows(source, "submission.pending") == {"client"}


def test_an_arrow_between_rooms_of_one_floor_is_seen() -> None:
    """The control: `polling` may not import `stores`, which lies beside it, nor `submission` `files`; its
    own room and what lies below it may."""
    assert wrong_arrows("from ..stores.store import Entry", "polling.poller") == {"stores"}
    assert wrong_arrows("from ..files import disk", "submission.pending") == {"files"}
    assert wrong_arrows("from ..stores.store import Entry", "submission.pending") == set()
    assert wrong_arrows("from .schedule import Schedule\nfrom . import watches", "polling.poller") == set()
    assert wrong_arrows("from kie4o import KieError", "wire.envelope") == {"KieError"}


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE))
)
def test_a_module_can_be_read_in_one_sitting(file: Path) -> None:
    """It has a docstring that opens it, and a bearable length."""
    tree = ast.parse(source := file.read_text("utf-8"))
    docstrings = [
        node.body[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node)
    ]
    lines = sum((each.end_lineno or each.lineno) - each.lineno + 1 for each in docstrings)
    assert len(source.splitlines()) - lines <= LONGEST
    assert ast.get_docstring(tree)


ALL = ["kie4o", *(f"kie4o.{name}".removesuffix(".__init__") for name in NAMES.values())]


@pytest.fixture(scope="module")
def alone() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """A fresh interpreter for each module, all at once; warnings are errors."""
    program = "import importlib, sys; importlib.import_module(sys.argv[1]); print(*sys.modules)"
    running = {
        name: subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program, name],
            cwd=IMPORT_ROOT,
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
    """Each by itself, without a warning; pure rooms bring neither network nor cattrs with them."""
    packages = loaded(alone[name])
    assert "kie4o" in packages
    room = name.split(".")[1] if "." in name else "kie4o"
    late = {"cattrs", "cattr", "rich", "cyclopts"}  # loaded when they are first needed
    if room in PURE | {"kie4o", "stores", "polling"} or name in (
        "kie4o.callbacks",
        "kie4o.callbacks.parsing",
    ):
        assert not packages & {"aiohttp", "yarl", "PIL", *late}
    if room in PURE - {"wire"} or name in ("kie4o", "kie4o.callbacks"):
        assert "backoff" not in packages
    if name in ("kie4o.client", "kie4o.transport.transport"):
        assert "aiohttp" in packages  # the control: it would be seen
        assert not packages & late
