"""Builds the API reference from the docstrings: `nox -s docs` writes it to build/reference.

The tool is pdoc. It needs three packages besides itself where mkdocstrings needs twenty, it imports the
package (whose root loads its names on first use), and its pages load nothing from other hosts.
"""

import ast
import contextlib
import importlib
import inspect
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pdoc
import pdoc.doc
import pdoc.render

import kie4o
from kie4o import emulator, events, webhooks

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "reference"
MODULES = [kie4o, webhooks, events, emulator]


def public_names(module: ModuleType) -> list[str]:
    """What a module promises: its `__all__`, or the functions and classes that it defines."""
    home = module.__name__
    defined = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == home]
    return [name for name in getattr(module, "__all__", defined) if not name.startswith("_")]


def introduction() -> str:
    """What the README says above its first section, without its title and its table of contents."""
    opening = (ROOT / "README.md").read_text("utf-8").split("\n## ")[0]
    return "\n\n".join(text for text in opening.split("\n\n")[1:] if "](#" not in text)


def alias_docstrings() -> Iterator[tuple[str, str]]:
    """The type aliases of the root, and the text below each in the module that defines it."""
    for home in {importlib.import_module(f"kie4o.{name}") for name in (*kie4o._HOMES.values(), "models")}:
        for node, below in pairwise(ast.parse(inspect.getsource(home)).body):
            match node, below:
                case ast.Assign(targets=[ast.Name(name)]), ast.Expr(ast.Constant(str(text))):
                    if name in kie4o.__all__:
                        yield name, text


def build() -> None:
    """Write a page for each public module."""
    for name in kie4o.__all__:
        getattr(kie4o, name)  # the root loads a name on first use, and pdoc reads what is there
    kie4o.__doc__ = introduction()
    kie4o.__all__ = sorted(kie4o.__all__, key=lambda name: (name.endswith("Error"), name != "AsyncKieClient"))
    for method in (kie4o.AsyncKieClient.submit, kie4o.AsyncKieClient.generate):
        method.__annotations__["fields"] = "RequestFields"  # Python 3.11 shows Unpack as a bare `*`
    for name, text in alias_docstrings():
        pdoc.doc.Module.from_name("kie4o").members[name].docstring = text  # the instance that pdoc renders
    pdoc.render.configure(
        docformat="google",
        footer_text=f"kie4o {kie4o.__version__}",
        show_source=False,
        template_directory=Path(__file__).parent / "templates",
    )
    with contextlib.chdir(Path(__file__).parent):  # beside a folder kie4o/ pdoc asks which one is meant
        pdoc.pdoc(*[module.__name__ for module in MODULES], output_directory=FOLDER)


class Page(HTMLParser):
    """The anchors of a page, where its links lead, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.text = path.read_text("utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.anchors.add(value)
            elif name == "href" and tag == "a":
                self.links.add(value)
            elif name in ("href", "src"):
                self.loaded.add(value)


def mistakes() -> Iterator[str]:
    """What is missing from the pages, and the links that lead nowhere."""
    pages = {path: Page(path) for path in FOLDER.rglob("*.html")}
    for module in MODULES:
        path = FOLDER / (module.__name__.replace(".", "/") + ".html")
        yield from (
            f"{path}: {name} is missing" for name in public_names(module) if name not in pages[path].anchors
        )
    for name, text in alias_docstrings():
        if text not in pages[FOLDER / "kie4o.html"].text:
            yield f"kie4o.html: {name} has no description"
    for path, page in pages.items():
        for link in page.links:
            target = urlsplit(link)
            other = (path.parent / target.path).resolve() if target.path else path
            anchors = {"", *pages[other].anchors} if other in pages else set()
            if target.scheme != "https" and (target.scheme or target.fragment not in anchors):
                yield f"{path}: {link} leads nowhere"
        for link in page.loaded:
            if urlsplit(link).scheme not in ("", "data"):
                yield f"{path}: loads {link}"


if __name__ == "__main__":
    build()
    if found := list(mistakes()):
        sys.exit("\n".join(found))
    print(f"the API reference is {FOLDER / 'index.html'}")
