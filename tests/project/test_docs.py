"""README.md and docs/ are true: their code runs, their links lead somewhere, their words are plain."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import attrs
import postgres
import pytest
import pytest_asyncio
from machines import STORE, adapted, require
from pages import Block, Page, blocks, pages, readme, section
from paths import IMPORT_ROOT, REPOSITORY
from portable import environment
from suites import install

import kie4o
import kie4o.emulator
from kie4o.emulator import Emulator

pytestmark = pytest.mark.once

PYTHON = blocks("python")
LANGUAGES = {"python", "sh", "powershell", "text", "json", "toml", "ini", "http"}
AHEAD = 4  # programs at a time: most of them wait for the emulator
MOST_WORDS = 1_300
PLAIN = (
    "is not possible",
    "whoever",
    "somebody",
    "it is none",
    "stands under",
    "in another life",
    "written down",
    "lives on",
)


# -- code ----------------------------------------------------------------------------------------


@attrs.frozen
class Outcome:
    """How the program of a block ended, and what Kie refused it."""

    status: int | None
    complaints: str
    refused: int


def is_test(code: str) -> bool:
    """Whether a block is a test module for pytest: it defines tests and does not run them itself."""
    tree = ast.parse(code)
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    tests = {node.name for node in tree.body if isinstance(node, functions) and node.name.startswith("test_")}
    statements = [node for node in tree.body if not isinstance(node, (*functions, ast.ClassDef))]
    used = {node.id for each in statements for node in ast.walk(each) if isinstance(node, ast.Name)}
    return bool(tests - used)


async def run(block: Block, folder: Path) -> Outcome:
    """Run a block in a fresh interpreter, with warnings as errors and an emulator of its own."""
    program: list[str | Path] = ["-W", "error", "-"]
    code = block.code
    if STORE in code:
        require(*(engine for engine in ("celery", "distributed") if re.search(rf"from .*{engine}", code)))
        code = adapted(code, postgres.shared_url())
        program[-1] = folder / "program.py"  # the workers of dask import it
        (folder / "program.py").write_text(code, "utf-8")
    if is_test(block.code):
        file = folder / "test_block.py"
        file.write_text(block.code, "utf-8")
        install(folder)
        options = ["-W", "error", "-o", "asyncio_default_fixture_loop_scope=function"]
        program = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *options, file]
    async with Emulator(speed=20.0) as kie:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *program),
            cwd=folder,
            env=environment(
                KIE_API_KEY="k-123",
                KIE_BASE_URL=kie.url,
                KIE_WEBHOOK_KEY="w",
                PYTHONPATH=os.pathsep.join([str(folder), str(IMPORT_ROOT)]),
            ),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            said, complaints = await asyncio.wait_for(process.communicate(code.encode()), 60)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if is_test(block.code) and process.returncode:
            complaints += said
        return Outcome(process.returncode, complaints.decode(), kie.answers()[429] + kie.answers("look")[429])


class Programs:
    """Runs the blocks in the order of the tests, a few ahead of the test that asks for one."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._running: dict[str, asyncio.Task[Outcome]] = {}

    async def outcome(self, block: Block) -> Outcome:
        at = PYTHON.index(block)
        for each in PYTHON[at : at + AHEAD]:
            if str(each) not in self._running:
                folder = self._folders.mktemp("block")
                self._running[str(each)] = asyncio.create_task(run(each, folder))
        return await self._running[str(block)]

    async def aclose(self) -> None:
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def programs(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Programs]:
    running = Programs(tmp_path_factory)
    yield running
    await running.aclose()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("block", PYTHON, ids=str)
async def test_every_python_block_runs_as_it_is(block: Block, programs: Programs) -> None:
    """Each block is a program, or a test module, of its own: with a key in the environment it ends
    without a complaint, and Kie refuses none of its submits and polls."""
    assert await programs.outcome(block) == Outcome(0, "", 0)


@pytest.mark.parametrize(
    ("code", "status", "complaint"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("import warnings; warnings.warn('old')", 1, "UserWarning: old"),
        ("import sys; print('careful', file=sys.stderr)", 0, "careful"),
        ("open(__import__('os').devnull)", 0, "ResourceWarning"),
        ("def test_it(): assert 1 == 2", 1, "assert 1 == 2"),
        ("def test_it(): __import__('warnings').warn('old')", 1, "UserWarning: old"),
    ],
)
async def test_a_block_that_complains_is_seen(code: str, status: int, complaint: str, tmp_path: Path) -> None:
    """The control: an exit status, a warning, a line on stderr and a failed test are all seen."""
    outcome = await run(Block("control", 1, "python", code), tmp_path)
    assert outcome.status == status
    assert complaint in outcome.complaints
    assert outcome != Outcome(0, "", 0)


async def test_a_refused_submit_is_seen(tmp_path: Path) -> None:
    """The control: a block that submits more than Kie admits is seen, though it ends without an error."""
    code = """
import asyncio
from kie4o import AsyncKieClient, RateLimit

async def main():
    async with AsyncKieClient(rate_limit=RateLimit(50, per=0.5)) as client:
        tasks = await asyncio.gather(*[client.submit(f"Lake {number}") for number in range(30)])
        await asyncio.gather(*tasks)

asyncio.run(main())
"""
    outcome = await run(Block("control", 1, "python", code), tmp_path)
    assert outcome.refused
    assert outcome == Outcome(0, "", outcome.refused)


@pytest.mark.parametrize("page", pages().values(), ids=lambda page: page.page)
def test_every_code_block_has_a_known_language(page: Page) -> None:
    """A block in Python under another name would not be run, one without a fence neither."""
    assert {block.language for block in page.blocks} <= LANGUAGES
    assert "code_block" not in {token.type for token in page.tokens}, "indented code: fence it"


@pytest.mark.parametrize(("title", "command"), [("Run it", "kie4o demo"), ("Test it", "nox -s tests")])
def test_there_is_one_command_to_run_and_one_to_test(title: str, command: str) -> None:
    """The README has one line for each shell under each of the two headings, and they do the same."""
    part = section(title)
    assert part.page == "README.md"
    assert [block.language for block in part.blocks] == ["sh", "powershell"]
    for block in part.blocks:
        assert command in block.code
        assert block.code.count("\n") == 1
    posix, windows = (block.code for block in part.blocks)
    in_powershell = (
        posix.replace("python3", "py").replace(" && ", "; ").replace(".venv/bin/", ".venv\\Scripts\\")
    )
    assert windows == in_powershell


# -- links ---------------------------------------------------------------------------------------


def broken(link: str, page: Page) -> str | None:
    """What is wrong with a link on a page, if anything. Nothing is fetched."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None if parts.scheme == "https" and parts.netloc else "not https"
    target = page
    if parts.path:
        path = ((REPOSITORY / page.page).parent / unquote(parts.path)).resolve()
        if not path.is_relative_to(REPOSITORY.resolve()) or not path.exists():
            return "no such file"
        if not parts.fragment:
            return None
        if path.suffix != ".md":
            return "an anchor in a file that has none"
        target = Page.read(path)
    return None if unquote(parts.fragment) in target.anchors else "no such heading"


@pytest.mark.parametrize("page", pages().values(), ids=lambda page: page.page)
def test_every_link_leads_somewhere(page: Page) -> None:
    """Files and headings exist; what lies outside is reached by https."""
    assert {link: wrong for link in page.links if (wrong := broken(link, page))} == {}


@pytest.mark.parametrize(
    ("link", "wrong"),
    [
        ("README.md", None),
        ("README.md#test-it", None),
        ("#one", None),
        ("#two-1", None),
        ("https://kie.ai", None),
        ("https://kie.ai/api-key#new", None),
        ("http://kie.ai/api-key", "not https"),
        ("//kie.ai/api-key", "not https"),
        ("READ.md", "no such file"),
        ("../README.md", "no such file"),
        ("/README.md", "no such file"),
        ("README.md#nothing", "no such heading"),
        ("#two-2", "no such heading"),
        ("LICENSE#mit", "an anchor in a file that has none"),
    ],
)
def test_a_broken_link_is_seen(link: str, wrong: str | None) -> None:
    """The control: a link that leads nowhere is seen, in Markdown and in HTML."""
    text = f"# One\n\n[here]({link}) <img src='{link}'>\n\n## Two\n\n```sh\n# Three\n```\n\n## `Two`\n"
    page = Page.parse("CHANGELOG.md", text)
    assert page.links == [link, link]
    assert broken(link, page) == wrong


def test_the_readme_links_to_every_page() -> None:
    """Each page of docs/ can be found from the README."""
    linked = {urlsplit(link).path for link in readme().links}
    assert [name for name in pages() if name not in linked] == ["README.md"]


# -- words ---------------------------------------------------------------------------------------


def test_the_readme_is_read_in_five_minutes() -> None:
    """The words of its headings, paragraphs and lists, split at blanks; code blocks, tables and comments
    are not counted, code inside a sentence is."""
    assert len(readme().prose.split()) <= MOST_WORDS
    counted = "# A `b c`\n\nd\n**e**, f\n- g\n\n| h |\n|---|\n| i |\n\n<!-- j -->\n\n```sh\nk\n```\n"
    assert Page.parse("control", counted).prose == "A b c d e, f g"


def unwanted(text: str) -> list[str]:
    """The words of `PLAIN` that a text has, also across the lines of a comment."""
    words = " ".join(re.sub(r"^\s*#+", "", line) for line in text.casefold().splitlines())
    words = " ".join(words.split())
    return [each for each in PLAIN if re.search(rf"\b{each}\b", words)]


def texts() -> Iterator[tuple[str, Path]]:
    """What people read: the package, README.md, and all of docs/."""
    for root, names in (
        (IMPORT_ROOT, "kie4o/**/*.py"),
        (REPOSITORY, "README.md"),
        (REPOSITORY, "docs/**/*.*"),
    ):
        for path in sorted(root.glob(names)):
            yield path.relative_to(root).as_posix(), path


@pytest.mark.parametrize("file", [pytest.param(path, id=name) for name, path in texts()])
def test_words_are_plain(file: Path) -> None:
    """No sentence reads as translated: see `PLAIN`."""
    assert unwanted(file.read_text("utf-8")) == []


def test_an_unwanted_word_is_seen() -> None:
    """The control: at the beginning of a sentence, in a sentence, and across two lines of a comment."""
    text = "Whoever asks.\n    # the task lives\n    # on and its id is written\n down. It is nonetheless so"
    assert unwanted(text) == ["whoever", "written down", "lives on"]
    assert {"README.md", "kie4o/client.py", "kie4o/wire/__init__.py"} <= {name for name, _ in texts()}


# -- names ---------------------------------------------------------------------------------------


PUBLIC = [name for name in kie4o.__all__ if not name.startswith("_")]


@pytest.mark.parametrize("name", [*PUBLIC, *kie4o.emulator.__all__])
def test_every_public_name_is_in_the_pages(name: str) -> None:
    """A reader of README.md and docs/ has met every public name."""
    assert any(re.search(rf"\b{name}\b", page.text) for page in pages().values())
