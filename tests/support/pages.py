"""README.md and docs/*.md as data: sections, code blocks, tables, links and words, as a Markdown parser
sees them, so that a `#` in a code block is no heading and a `|` in code is no cell."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import attrs
from markdown_it import MarkdownIt
from markdown_it.token import Token
from paths import DOCS, README, REPOSITORY

logging.getLogger("markdown_it").setLevel(logging.WARNING)  # it logs each rule that it tries
_PARSER = MarkdownIt("commonmark").enable("table")
_READ = {"softbreak": " ", "hardbreak": " ", "html_inline": ""}  # every other token is read as it is


@attrs.frozen
class Block:
    """A fenced block; `line` is that of its first line of code."""

    page: str
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page} line {self.line}"


@attrs.frozen
class Table:
    """The cells of a table as they are written, backticks included; `head` is the row of headings."""

    page: str
    head: list[str]
    rows: list[list[str]]


@attrs.frozen
class Part:
    """A page, or one of its sections: from its heading to the next one that is not below it."""

    page: str
    title: str
    tokens: Sequence[Token] = attrs.field(repr=False)
    text: str = attrs.field(repr=False)

    @property
    def blocks(self) -> list[Block]:
        return [
            Block(self.page, token.map[0] + 2, token.info.strip(), token.content)
            for token in self.tokens
            if token.type == "fence" and token.map is not None
        ]

    @property
    def tables(self) -> list[Table]:
        found: list[list[list[str]]] = []
        inside = False
        for token in self.tokens:
            if token.type == "table_open":
                found.append([])
            elif token.type == "tr_open":
                found[-1].append([])
            elif token.type in ("th_open", "td_open"):
                inside = True
            elif token.type == "inline" and inside:
                found[-1][-1].append(token.content)
                inside = False
        return [Table(self.page, head, rows) for head, *rows in found]

    @property
    def links(self) -> list[str]:
        """The targets of links and pictures, those in raw HTML included."""
        found = []
        for token in self.tokens:
            for part in [token, *(token.children or ())]:
                found += [str(part.attrs[name]) for name in ("href", "src") if name in part.attrs]
                if part.type in ("html_block", "html_inline"):
                    found += re.findall(r"""(?:href|src)\s*=\s*["']?([^"'\s>]+)""", part.content)
        return found

    @property
    def prose(self) -> str:
        """What is read as text: headings, paragraphs and lists; no code blocks, no tables, no comments."""
        words = []
        inside_table = False
        for token in self.tokens:
            if token.type in ("table_open", "table_close"):
                inside_table = token.type == "table_open"
            elif token.type == "inline" and not inside_table:
                words += [_READ.get(part.type, part.content) for part in token.children or ()] + [" "]
        return " ".join("".join(words).split())


@attrs.frozen
class Page(Part):
    """A whole page; `page` is its path from the root of the project."""

    @classmethod
    def read(cls, path: Path) -> Page:
        return cls.parse(path.relative_to(REPOSITORY).as_posix(), path.read_text("utf-8"))

    @classmethod
    def parse(cls, name: str, text: str) -> Page:
        return cls(name, "", _PARSER.parse(text), text)

    @property
    def sections(self) -> list[Part]:
        lines = self.text.splitlines(keepends=True)
        at = [index for index, token in enumerate(self.tokens) if token.type == "heading_open"]
        found = []
        for number, start in enumerate(at):
            level = self.tokens[start].tag
            end = next((index for index in at[number + 1 :] if self.tokens[index].tag <= level), None)
            first = (self.tokens[start].map or [0])[0]
            last = None if end is None else (self.tokens[end].map or [0])[0]
            title = self.tokens[start + 1].content
            found.append(Part(self.page, title, self.tokens[start:end], "".join(lines[first:last])))
        return found

    @property
    def anchors(self) -> set[str]:
        """What a link can point to in this page, as code hosts name it: `#what-is-sent-again`."""
        found: dict[str, int] = {}
        for section in self.sections:
            anchor = re.sub(r"[^\w\- ]", "", section.title.lower()).replace(" ", "-")
            found[anchor] = found.get(anchor, -1) + 1
        return {
            f"{anchor}-{number}" if number else anchor
            for anchor, times in found.items()
            for number in range(times + 1)
        }


_Found = TypeVar("_Found", Part, Table)


@cache
def pages() -> dict[str, Page]:
    """README.md first, then the pages of docs/, by their paths."""
    paths = [README, *sorted(DOCS.glob("*.md"))]
    return {page.page: page for page in map(Page.read, paths)}


def readme() -> Page:
    return pages()["README.md"]


def blocks(language: str) -> list[Block]:
    """The blocks of one language, in all pages."""
    return [block for page in pages().values() for block in page.blocks if block.language == language]


def section(title: str) -> Part:
    """The one section with this title, on whichever page it is."""
    return _only([part for page in pages().values() for part in page.sections if part.title == title], title)


def table(*head: str) -> Table:
    """The one table whose first columns have these headings, on whichever page it is."""
    found = [one for page in pages().values() for one in page.tables if one.head[: len(head)] == [*head]]
    return _only(found, " | ".join(head))


def text() -> str:
    """All pages in one line."""
    return " ".join(" ".join(page.text.split()) for page in pages().values())


def _only(found: Sequence[_Found], name: str) -> _Found:
    assert len(found) == 1, f"{name!r} is on {[one.page for one in found] or 'no page'}"
    return found[0]
