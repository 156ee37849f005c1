"""What is shipped, for which Pythons, and what the files that describe it say to each other."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib

import pytest
from pages import pages, readme
from paths import IMPORT_ROOT, PACKAGE, REPOSITORY

import kie4o

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
NOXFILE = (REPOSITORY / "noxfile.py").read_text("utf-8")
PYTHONS = [
    minor[1]
    for classifier in PROJECT["project"]["classifiers"]
    if (minor := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", classifier))
]


def test_the_supported_pythons_are_named_alike() -> None:
    """From the oldest on without a gap; the script that runs the checks looks for each of them."""
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert [f"3.{minor}" for minor in range(int(oldest[2:]), int(oldest[2:]) + len(PYTHONS))] == PYTHONS
    [listed] = re.findall(r"for minor in (.*); do", (REPOSITORY / ".ci" / "run").read_text("utf-8"))
    assert listed.split() == PYTHONS
    assert oldest in readme().text


def test_every_extra_is_in_all() -> None:
    """`all` is the other extras, and each of them brings something."""
    extras: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
    others = sorted(extras.keys() - {"all"})
    assert extras["all"] == [f"kie4o[{','.join(others)}]"]
    assert all(extras.values())


def test_the_version_has_one_source() -> None:
    """The build reads the version from the file that the package reads it from."""
    file = REPOSITORY / PROJECT["tool"]["hatch"]["version"]["path"]
    assert file.relative_to(REPOSITORY) == (PACKAGE / "version.py").relative_to(IMPORT_ROOT)
    assert f'__version__ = "{kie4o.__version__}"' in file.read_text("utf-8")


@pytest.mark.parametrize("module", ["kie4o", "kie4o.cli"])
def test_the_package_is_a_program(module: str) -> None:
    """`python -m kie4o` is the command line."""
    shown = subprocess.run(
        [sys.executable, "-W", "error", "-m", module, "--version"],
        cwd=IMPORT_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, f"{kie4o.__version__}\n", "")


def test_no_hint_names_an_index() -> None:
    """kie4o is on no package index: everything installs it from its folder."""
    files = [*PACKAGE.rglob("*.py"), *map(REPOSITORY.joinpath, pages()), REPOSITORY / "CHANGELOG.md"]
    named = re.compile(r"""(?:pip|uv|uvx|pipx)\s+[\w\s-]*["']?kie4o(?!-)""")
    assert named.search("pip install --quiet\n'kie4o[cli]'")
    assert {file.name: found[0] for file in files if (found := named.search(file.read_text("utf-8")))} == {}


def test_a_picture_of_the_readme_is_found_from_anywhere() -> None:
    """A page that shows the README elsewhere has no files beside it."""
    pictures = [
        str(part.attrs["src"])
        for token in readme().tokens
        for part in token.children or ()
        if part.type == "image"
    ]
    assert [picture for picture in pictures if not picture.startswith("https://")] == []


def test_every_session_in_the_pages_exists() -> None:
    """`nox -s docs lint` in a page names sessions of the noxfile."""
    sessions = {
        node.name.rstrip("_")
        for node in ast.parse(NOXFILE).body
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(mark).startswith("nox.session") for mark in node.decorator_list)
    }
    commands = [words for page in pages().values() for words in re.findall(r"nox -s((?: \w+)+)", page.text)]
    named = {word for words in commands for word in words.split()}
    assert {"tests", "bench"} <= named <= sessions
