"""The README is true: its code runs, its tables are those of the code, its commands are where they belong."""

import asyncio
import inspect
import re
import sys
from pathlib import Path

import attrs
import pytest
from paths import IMPORT_ROOT, README

import kie4o
from kie4o import AsyncKieClient, ImageRequest, PollPolicy, RateLimit, errors
from kie4o.emulator import Emulator
from kie4o.emulator.tasks import OUTCOMES
from kie4o.files import transfers as kie4o_files
from kie4o.files import uploads
from kie4o.polling import poller as polling
from kie4o.polling.policy import GAP
from kie4o.submission.resending import RESENDS
from kie4o.submission.submissions import DRAIN
from kie4o.submission.verdict import REFUSING_CODES, Verdict
from kie4o.transport import retrying

TEXT = README.read_text("utf-8")
PYTHON = [
    (TEXT[: block.start()].count("\n") + 2, block[1])
    for block in re.finditer(r"```python\n(.*?)```", TEXT, re.DOTALL)
]
ERRORS = [name for name in kie4o.__all__ if name.endswith("Error")]


def section(title: str) -> str:
    """What stands under a heading, up to the next one."""
    found = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row but headings and rules."""
    lines = re.findall(r"^\| (.*) \|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def one_line(text: str) -> str:
    return " ".join(text.split())


# -- code and commands ---------------------------------------------------------------------------


@pytest.mark.parametrize("code", [code for _, code in PYTHON], ids=[f"line {line}" for line, _ in PYTHON])
async def test_every_python_block_runs_as_it_is(code: str, tmp_path: Path) -> None:
    """Each block is a program of its own: with a key in the environment it ends without a complaint."""
    async with Emulator(speed=20.0) as kie:  # a task takes a second
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-"),
            cwd=tmp_path,
            env={
                "KIE_API_KEY": "k-123",
                "KIE_BASE_URL": kie.url,
                "KIE_WEBHOOK_KEY": "w",
                "PYTHONPATH": str(IMPORT_ROOT),
            },
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, complaints = await asyncio.wait_for(process.communicate(code.encode()), 60)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert complaints.decode() == ""
        assert process.returncode == 0
        assert kie.refused == kie.look_refusals == 0


@pytest.mark.parametrize(("title", "command"), [("Run it", "kie4o demo"), ("Test it", "nox -s tests")])
def test_there_is_one_command_to_run_and_one_to_test(title: str, command: str) -> None:
    """Exactly one fenced block stands under each of the two headings, and it is for a shell."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", section(title), re.MULTILINE | re.DOTALL)
    assert [kind for kind, _ in fences] == ["sh"]
    assert command in fences[0][1]


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in kie4o.__all__ if not name.startswith("_")])
def test_every_public_name_is_in_the_readme(name: str) -> None:
    """Whoever reads the README has met every public name."""
    assert re.search(rf"\b{name}\b", TEXT)


def test_the_error_table_is_the_tree() -> None:
    """Every error stands in the table once, as deep as it is in the tree, under its parent."""
    path: list[str] = ["KieError"]
    named = []
    for first, _, remedy in rows(section("Errors"))[1:]:
        name = re.findall(r"`(\w+)`", first)[0]
        depth = first.count("↳") + 1
        kind = getattr(errors, name)
        path = [*path[:depth], name]
        parent, *mixed_in = kind.__bases__
        assert parent.__name__ == path[depth - 1]
        assert re.findall(r"also `(\w+)`", first) == [builtin.__name__ for builtin in mixed_in]
        assert remedy, name
        named.append(name)
    assert sorted([*named, "KieError"]) == sorted(ERRORS)


def test_the_error_table_has_the_codes() -> None:
    """Each code that has a class of its own is in the row of that class."""
    meanings = {
        re.findall(r"`(\w+)`", first)[0]: meaning for first, meaning, _ in rows(section("Errors"))[1:]
    }
    for code, kind in errors.ERROR_OF_CODE.items():
        assert str(code) in meanings[kind.__name__]


def test_every_call_is_in_the_table() -> None:
    """The table of calls is the client's public methods, with the names of their arguments."""
    described = {
        name: set(re.findall(r"(\w+)(?==|,|$|\))", arguments))
        for name, arguments in re.findall(
            r"^\| `(?:await |async for \w+ in )?client\.(\w+)\((.*?)\)`", section("Calls"), re.MULTILINE
        )
    }
    methods = dict(inspect.getmembers(AsyncKieClient, inspect.isfunction))
    public = {name for name in methods if not name.startswith("_")}
    assert set(described) == public
    for name, arguments in described.items():
        keywords = {
            parameter.name
            for parameter in inspect.signature(methods[name]).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        assert keywords <= arguments, name


def test_every_field_of_a_request_is_in_the_table() -> None:
    """The table of fields is `ImageRequest`."""
    named = re.findall(r"`(\w+)`", " ".join(row[0] for row in rows(section("Calls"))))
    assert {field.name for field in attrs.fields(ImageRequest)} <= set(named)


def test_every_setting_is_in_the_table() -> None:
    """Each constructor argument has a row, with its default where that is a value."""
    parameters = inspect.signature(AsyncKieClient).parameters.values()
    table = {name: row for row in rows(section("Settings"))[1:] for name in re.findall(r"`(\w+)`", row[0])}
    assert set(table) == {parameter.name for parameter in parameters}
    for parameter in parameters:
        if isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool):
            assert table[parameter.name][1] == str(parameter.default)
    for variable in re.findall(r"KIE_\w+", inspect.getdoc(AsyncKieClient) or ""):
        assert variable in section("Settings")
    assert inspect.signature(AsyncKieClient).parameters["rate_limit"].default == RateLimit(20, per=10.0)


# -- what is sent again --------------------------------------------------------------------------


def resend_rows() -> list[list[str]]:
    return rows(section("What is sent again"))[1:]


def test_the_retry_table_has_every_cause_with_its_numbers() -> None:
    """How often and after which pauses a submit is sent again is as in `RESENDS`."""
    told = {}
    for what, times, after, why in resend_rows():
        assert why, what
        if times != "never":
            causes = [int(code) for code in re.findall(r"\b\d{3}\b", what)] or [Verdict.NOT_SENT]
            told.update(dict.fromkeys(causes, (times, after)))
    expected = {}
    for cause, resend in RESENDS.items():
        pauses = [resend.delay(sent, 1.0) for sent in range(resend.times)]
        limit = "up to " if resend.jitter else ""
        after = ", ".join(f"{limit}{pause:g} s" for pause in pauses)
        if resend.window:
            after = "`rate_limit.per`, for everybody"
        expected[cause] = (f"{resend.times} times", after)
    assert told == expected


def test_the_retry_table_has_every_refusal() -> None:
    """The codes that are refused and never sent again are those of the verdict table."""
    [refused] = [what for what, times, *_ in resend_rows() if times == "never" and what.startswith("4")]
    codes = {int(code) for code in re.findall(r"\b\d{3}\b", refused)} - {408}
    assert codes == REFUSING_CODES - set(RESENDS)
    assert 408 not in REFUSING_CODES


def test_free_calls_are_repeated_as_told() -> None:
    """The codes after which a free call is made again, and how often in all."""
    told = one_line(section("What is sent again"))
    assert f"are made up to {retrying.TRIES} times" in told
    assert f"tries each link up to {retrying.TRIES} times" in told
    retryable = {code for code, kind in errors.ERROR_OF_CODE.items() if kind.retryable}
    assert retryable == {429, 430, 455, 550}
    assert errors.InternalServerError.retryable
    assert not errors.FeatureDisabledError.retryable


def test_the_numbers_in_the_prose_are_those_of_the_code() -> None:
    """Every number that the code names once is told as it is."""
    policy = PollPolicy()
    mebibyte = 2**20
    for words in (
        f"PollPolicy(first={policy.first}, factor={policy.factor}, maximum={policy.maximum}, jitter=True)",
        f"every {GAP} s",
        f"waited for {polling.GRACE:g} s",
        f"looked at {polling.EMPTY_LOOKS} times",
        f"are awaited ({DRAIN:g} s at most)",
        f"at most {uploads.MAX_BYTES // mebibyte} MiB",
        f"at most {kie4o_files.MAX_IMAGE_BYTES // mebibyte} MiB",
    ):
        assert words in one_line(TEXT)


def test_every_ending_of_the_emulator_is_told() -> None:
    """The outcomes that a test can ask for are all named."""
    for ending in OUTCOMES:
        assert f'`"{ending}"`' in section("Testing your own code")
