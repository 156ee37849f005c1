"""The map of the package: rooms on floors, and imports that point down it.

A room is a folder or a file of the package. `FLOORS` is the map; a new room fails here until it has a
floor. Each check is a function of source text, so that a control can show it a violation.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

import pytest
from paths import DOCS, IMPORT_ROOT, PACKAGE

pytestmark = pytest.mark.once

FLOORS = [
    {"__main__"},
    {"cli", "pytest_plugin"},  # rims
    {"gallery", "otel", "webhooks"},
    {"client"},
    {"task", "runtime"},
    {"batch", "lifecycle", "settling", "state", "neighbours", "opening", "closing"},
    {"arguments"},
    {"submission", "callbacks", "files"},
    {"stores", "polling", "transport"},
    {"wire"},
    {"models", "settings"},
    {"image_request"},
    {"pricing"},
    {"errors"},
    {"details", "events", "urls", "plain", "version", "clock", "waiting", "notebooks"},
]  # from the top down; rooms of one floor do not know each other
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
EMULATOR = "emulator"  # beside the map: it imports no other room, and few import it
USERS = {"cli", "pytest_plugin"}  # of the emulator
ROOMS = {*FLOOR_OF, EMULATOR}

PURE = {"wire", "models", "image_request", "settings", "errors", "details"}
PURE |= {"events", "urls", "plain", "version", "clock", "pricing", "notebooks"}
NETWORK = {"cli", "webhooks", "transport", "files", EMULATOR}
# Which rooms import which foreign package at run time.
FOREIGN = {
    "attrs": ROOMS,
    "attr": ROOMS,
    "aiohttp": NETWORK,
    "yarl": NETWORK,
    "multidict": NETWORK,
    "backoff": {"submission", "polling", "transport"},
    "cattrs": {"wire", "stores"},
    "opentelemetry": {"otel"},
    "psycopg": {"stores"},
    "cyclopts": {"cli"},
    "rich": {"cli", EMULATOR},
    "PIL": {EMULATOR, "cli", "files", "gallery"},
    "jinja2": {"gallery"},
    "pytest": {"pytest_plugin"},
    "pytest_asyncio": {"pytest_plugin"},
}
LONGEST = 400  # lines of a module without its docstrings; a longer one should be two

# The source of every module by its name: "client", "stores.ledger", "callbacks.__init__".
SOURCES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts): file.read_text("utf-8")
    for file in sorted(PACKAGE.rglob("*.py"))
}
ROOT = SOURCES.pop("__init__")


def room_of(name: str) -> str:
    return name.partition(".")[0]


class Imports(ast.NodeVisitor):
    """The imports of a module, at any depth: `ours` in full ("stores.ledger.Ledger"), `foreign` by package.

    With `at_run_time` it leaves out those under `if TYPE_CHECKING`.
    """

    def __init__(self, source: str, name: str, *, at_run_time: bool = False) -> None:
        self.package = ["kie4o", *name.split(".")[:-1]]
        self.at_run_time = at_run_time
        self.ours: set[str] = set()
        self.foreign: set[str] = set()
        self.visit(ast.parse(source))

    def visit_If(self, node: ast.If) -> None:
        if self.at_run_time and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
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
            path = [*self.package[: len(self.package) - node.level + 1], *path]
        for alias in node.names:  # a module, or a name in one
            self._add([*path, alias.name])

    def _add(self, path: list[str]) -> None:
        if path[0] == "kie4o":
            self.ours.add(".".join(path[1:]))
        else:
            self.foreign.add(path[0])


# -- the checks ------------------------------------------------------------------------------------


def wrong_rooms(source: str, name: str) -> set[str]:
    """The rooms, or names of the root, that a module imports and may not.

    Those for type checkers count too. Allowed are its own room and, except to the emulator, lower floors;
    the command line and the pytest plugin may import the emulator.
    """
    room = room_of(name)
    allowed = {room, EMULATOR} if room in USERS else {room}
    if room != EMULATOR:
        allowed |= {lower for lower, floor in FLOOR_OF.items() if floor > FLOOR_OF[room]}
    return {room_of(target) for target in Imports(source, name).ours} - allowed


def wrong_packages(source: str, name: str) -> set[str]:
    """The foreign packages that a module imports at run time and may not."""
    found = Imports(source, name, at_run_time=True).foreign - sys.stdlib_module_names
    return {package for package in found if room_of(name) not in FOREIGN.get(package, ())}


def circle(sources: Mapping[str, str]) -> list[str]:
    """Modules that lead from one back to itself, imports for type checkers included; empty if none do."""

    def module_of(target: str) -> str | None:
        """The module that "stores.ledger.Ledger" names: the longest part of it that is one."""
        while target:
            for module in (target, f"{target}.__init__"):
                if module in sources:
                    return module
            target = target.rpartition(".")[0]
        return None

    arrows = {
        name: {module_of(target) for target in Imports(source, name).ours} - {None, name}
        for name, source in sources.items()
    }
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def rooms_on(page: str) -> set[str]:
    """The rooms under "## The map", where each has a line that begins with `room/` or `room.py`."""
    section = re.search(r"^## The map$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert section, "no section 'The map'"
    return set(re.findall(r"^ *(?:[-*] )?`?(\w+)(?:/|\.py)(?=[`:\s])", section[1], re.MULTILINE))


# -- the package -----------------------------------------------------------------------------------


def test_every_room_has_a_floor() -> None:
    """The rooms on the map are those in the package."""
    assert {room_of(name) for name in SOURCES} == ROOMS


def test_the_page_names_every_room() -> None:
    """The map in docs/design.md has a line for each room, and none for a room that does not exist."""
    dunder = {"__init__", "__main__"}
    assert rooms_on((DOCS / "design.md").read_text("utf-8")) - dunder == ROOMS - dunder


@pytest.mark.parametrize("name", SOURCES)
def test_imports_point_down(name: str) -> None:
    """A module imports from its own room and from lower floors only, and nothing from the root."""
    assert wrong_rooms(SOURCES[name], name) == set()


@pytest.mark.parametrize("name", SOURCES)
def test_few_rooms_know_a_foreign_package(name: str) -> None:
    """Each foreign package is imported by the rooms that are listed for it."""
    assert wrong_packages(SOURCES[name], name) == set()


def test_no_circle() -> None:
    """No module leads back to itself."""
    assert circle(SOURCES) == []


def test_the_root_imports_nothing_but_its_version() -> None:
    """Names of the root are loaded when they are used."""
    root = Imports(ROOT, "__init__", at_run_time=True)
    assert root.ours == {"version.__version__"}
    assert root.foreign <= sys.stdlib_module_names


@pytest.mark.parametrize("name", ["__init__", *SOURCES])
def test_a_module_can_be_read_in_one_sitting(name: str) -> None:
    """It opens with a docstring, and has a bearable length."""
    source = ROOT if name == "__init__" else SOURCES[name]
    tree = ast.parse(source)
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    docstrings = [
        node.body[0] for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)
    ]
    lines = sum((each.end_lineno or each.lineno) - each.lineno + 1 for each in docstrings)
    assert len(source.splitlines()) - lines <= LONGEST
    assert ast.get_docstring(tree)


# -- the controls ----------------------------------------------------------------------------------


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
        "try:\n    import json\nexcept ImportError:\n    import kie4o.client as json",
    ],
)
def test_control_an_upward_import_is_seen(source: str) -> None:
    """In every form and depth, for type checkers too."""
    assert wrong_rooms(source, "submission.pending") == {"client"}


@pytest.mark.parametrize(
    ("source", "name", "wrong"),
    [
        ("from ..stores.store import Entry", "polling.poller", {"stores"}),
        ("from ..files import disk", "submission.pending", {"files"}),
        ("from .lifecycle import Lifecycle", "batch", {"lifecycle"}),
        ("from kie4o import KieError", "wire.envelope", {"KieError"}),
        ("from .. import *", "wire.envelope", {"*"}),
        ("import kie4o", "wire.envelope", {""}),
        ("from ..emulator import Emulator", "polling.poller", {"emulator"}),
        ("from ..errors import KieError", "emulator.server", {"errors"}),
        ("from ..emulator import Emulator", "cli.demo", set()),
        ("from .emulator import Emulator", "pytest_plugin", set()),
        ("from .emulator import Emulator", "webhooks", {"emulator"}),
        ("from ..stores.store import Entry", "submission.pending", set()),
        ("from .schedule import Schedule\nfrom . import watches", "polling.poller", set()),
        ("from .parsing import parse_callback", "callbacks.__init__", set()),
        ("from .tasks import Outcome", "emulator.server", set()),
    ],
)
def test_control_who_may_import_whom(source: str, name: str, wrong: set[str]) -> None:
    """Refused: rooms of one floor, the root, and the emulator in both directions. Allowed: its own room,
    lower floors, and the emulator for the command line and the plugin."""
    assert wrong_rooms(source, name) == wrong


@pytest.mark.parametrize(
    ("source", "name", "wrong"),
    [
        ("import aiohttp", "polling.poller", {"aiohttp"}),
        ("from aiohttp.web import Application", "stores.sqlite", {"aiohttp"}),
        ("def later():\n    import requests", "transport.transport", {"requests"}),
        ("from cattrs.preconf.json import make_converter", "emulator.server", {"cattrs"}),
        ("if TYPE_CHECKING:\n    import a\nelse:\n    import b", "task", {"b"}),
        ("import aiohttp, json, attrs", "transport.transport", set()),
    ],
)
def test_control_a_foreign_package_is_seen(source: str, name: str, wrong: set[str]) -> None:
    """In a room that is not listed for it, or of a package that is on no list."""
    assert wrong_packages(source, name) == wrong


@pytest.mark.parametrize(
    "back", ["from .a import A", "from . import a", "if TYPE_CHECKING:\n    from kie4o.room.a import A"]
)
def test_control_a_circle_is_seen(back: str) -> None:
    """Over three modules, a package among them, in every form of the import that closes it."""
    sources = {
        "room.a": "from ..other import B",
        "other.__init__": "from ..room.c import C",
        "room.c": "import json",
    }
    assert circle(sources) == []
    assert set(circle(sources | {"room.c": back})) == set(sources)


def test_control_the_map_is_read() -> None:
    """From a fenced block, a tree or a list; names in the text and in other sections are none."""
    page = """
z/
## The map
`docs/y.md` says more:
```
wire/   PURE: a.py
  urls.py
```
- `cli/`: words
## Another
y/
"""
    assert rooms_on(page) == {"wire", "urls", "cli"}


# -- what an import loads --------------------------------------------------------------------------

MODULES = ["kie4o", *(f"kie4o.{name}".removesuffix(".__init__") for name in SOURCES)]
LATE = {"cattrs", "cattr", "rich", "cyclopts"}  # loaded when they are first needed


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
        for name in MODULES
    }
    yield running
    for process in running.values():
        process.communicate()


def loaded_by(process: subprocess.Popen[str]) -> set[str]:
    """The packages that an import loaded."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err == ""
    return {name.split(".")[0] for name in out.split()}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_can_be_imported_alone(name: str, alone: dict[str, subprocess.Popen[str]]) -> None:
    """Without a warning; the pure rooms load neither network nor cattrs."""
    packages = loaded_by(alone[name])
    assert "kie4o" in packages
    room = name.split(".")[1] if "." in name else "kie4o"
    pure_callbacks = name in ("kie4o.callbacks", "kie4o.callbacks.parsing")
    if room in PURE | {"kie4o", "stores", "polling"} or pure_callbacks:
        assert not packages & {"aiohttp", "yarl", "PIL", *LATE}
    if room in PURE - {"wire"} or name in ("kie4o", "kie4o.callbacks"):
        assert "backoff" not in packages
    if name in ("kie4o.client", "kie4o.transport.transport"):
        assert "aiohttp" in packages  # the control: it is seen where it is
        assert not packages & LATE
