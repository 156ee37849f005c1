"""The tables and figures of README.md and docs/ are those of the code, on whichever page they are."""

import inspect
import json
import re
from collections.abc import Iterable
from typing import get_args

import attrs
import pages
import pytest
from pages import Page, section, table
from test_layers import EMULATOR, FLOORS

import kie4o
from kie4o import AsyncKieClient, FallbackModel, ImageRequest, PollPolicy, RateLimit, Size, Variants, errors
from kie4o.callbacks import parsing
from kie4o.emulator.callbacks import CALLS
from kie4o.emulator.magic import ANSWERS
from kie4o.emulator.tasks import OUTCOMES
from kie4o.files import transfers, uploads
from kie4o.image_request import MAX_FILES
from kie4o.polling import findings
from kie4o.polling.policy import GAP
from kie4o.submission.resending import RESENDS
from kie4o.submission.submissions import DRAIN
from kie4o.submission.verdict import REFUSING_CODES, Verdict
from kie4o.transport import retrying
from kie4o.wire.envelope import status_error
from kie4o.wire.requests import body_of

pytestmark = pytest.mark.once

ERRORS = [name for name in kie4o.__all__ if name.endswith("Error")]
RESENT = "what happened to a submit"


def names(cell: str) -> list[str]:
    """The words in backticks."""
    return re.findall(r"`(\w+)`", cell)


def texts(cells: Iterable[str]) -> list[str]:
    """The texts in quotes and backticks."""
    return [text for cell in cells for text in re.findall(r'`"([^"`]+)"`', cell)]


def shown(value: object) -> str:
    """A value as the pages write it."""
    return f'"{value}"' if isinstance(value, str) else repr(value)


# -- errors --------------------------------------------------------------------------------------


def test_the_error_table_is_the_tree() -> None:
    """Every error is in the table once, as deep as it is in the tree, under its parent."""
    path: list[str] = ["KieError"]
    named = []
    for first, _, remedy in table("error").rows:
        name = names(first)[0]
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
    meanings = {names(first)[0]: meaning for first, meaning, _ in table("error").rows}
    for code, kind in errors.ERROR_OF_CODE.items():
        assert re.search(rf"\b{code}\b", meanings[kind.__name__])


# -- calls, fields and settings ------------------------------------------------------------------


def test_every_call_is_in_the_table() -> None:
    """The table of calls is the client's public methods, with the names of their arguments."""
    described = {
        call[1]: set(re.findall(r"(\w+)(?==|,|$|\))", call[2]))
        for first, *_ in table("call", "does").rows
        if (call := re.fullmatch(r"`(?:await |async for \w+ in )?client\.(\w+)\((.*)\)`", first))
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
    """The table of fields is `ImageRequest`, with its defaults and choices."""
    fields = attrs.fields_dict(ImageRequest)
    rows = {name: row for row in table("field", "default", "values").rows for name in names(row[0])}
    assert rows.keys() == fields.keys()
    for name, (_, default, values, *_) in rows.items():
        value: object = fields[name].default
        value = value.factory() if isinstance(value, attrs.Factory) else value
        assert default == f"`{shown(value)}`"
        choices = get_args({"size": Size, "n_variants": Variants, "fallback_model": FallbackModel}.get(name))
        if choices:
            assert values == ", ".join(f"`{shown(choice)}`" for choice in choices)


def test_every_field_has_its_name_at_kie() -> None:
    """The names of the table are those of a body in which every field is set, in the same order."""
    request = ImageRequest("A", n_variants=2, files_url=["https://a.example"], mask_url="https://a.example")
    flags = {"is_enhance": True, "upload_cn": True, "enable_fallback": True, "fallback_model": "GPT_IMAGE_1"}
    with pytest.warns(DeprecationWarning, match="fileUrl"):
        request = attrs.evolve(request, **flags, file_url="https://a.example")
    body = json.loads(body_of(request, callback_url="https://a.example"))
    rows = table("field", "default", "values", "Kie's name").rows
    assert sorted(name for row in rows for name in names(row[3])) == sorted(body)


def test_every_setting_is_in_the_table() -> None:
    """Each constructor argument has a row, with its default where that is a value."""
    parameters = inspect.signature(AsyncKieClient).parameters.values()
    rows = {name: row for row in table("argument", "default").rows for name in names(row[0])}
    assert set(rows) == {parameter.name for parameter in parameters}
    for parameter in parameters:
        if isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool):
            assert rows[parameter.name][1] == str(parameter.default)
    described = {name for row in table("variable").rows for name in names(row[0])}
    assert described == set(re.findall(r"KIE_\w+", inspect.getdoc(AsyncKieClient) or ""))
    assert inspect.signature(AsyncKieClient).parameters["rate_limit"].default == RateLimit(20, per=10.0)


# -- what is sent again --------------------------------------------------------------------------


def test_the_retry_table_has_every_cause_with_its_numbers() -> None:
    """How often and after which delays a submit is sent again is as in `RESENDS`."""
    described = {}
    for what, times, after, why in table(RESENT).rows:
        assert why, what
        if times != "never":
            causes = [int(code) for code in re.findall(r"\b\d{3}\b", what)] or [Verdict.NOT_SENT]
            described.update(dict.fromkeys(causes, (times, after)))
    expected = {}
    for cause, resend in RESENDS.items():
        delays = [resend.delay(sent, 1.0) for sent in range(resend.times)]
        limit = "up to " if resend.jitter else ""
        after = ", ".join(f"{limit}{delay:g} s" for delay in delays)
        if resend.window:
            after = "`rate_limit.per`, for all submits"
        expected[cause] = (f"{resend.times} times", after)
    assert described == expected


def test_the_retry_table_has_every_refusal() -> None:
    """The codes that are refused and never sent again are those of the verdict table."""
    refusals = [
        what for what, times, *_ in table(RESENT).rows if times == "never" and re.match(r"4\d\d\b", what)
    ]
    assert len(refusals) == 1
    codes = {int(code) for code in re.findall(r"\b\d{3}\b", refusals[0])} - {408}
    assert codes == REFUSING_CODES - set(RESENDS)
    assert 408 not in REFUSING_CODES


def test_free_calls_are_repeated_as_described() -> None:
    """The codes after which a free call is made again, and how often in all."""
    described = section("What is sent again").prose
    assert f"tries each link up to {retrying.TRIES} times" in described
    codes = re.search(
        rf"are made up to {retrying.TRIES} times.* codes ([\d, ]+) and 5xx except (\d+)\.", described
    )
    assert codes
    listed = {int(code) for code in codes[1].split(",")} | {*range(500, 600)} - {int(codes[2])}
    assert listed == {code for code in range(300, 600) if status_error(code, "").retryable}


# -- figures and words ---------------------------------------------------------------------------


def test_the_numbers_in_the_prose_are_those_of_the_code() -> None:
    """Every number that the code names once is given as it is."""
    mebibyte = 2**20
    for words in (
        f"every {GAP} s",
        f"continues for {findings.GRACE:g} s",
        f"polls {findings.EMPTY_LOOKS} times",
        f"are awaited ({DRAIN:g} s at most)",
        f"at most {uploads.MAX_BYTES // mebibyte} MiB",
        f"at most {transfers.MAX_IMAGE_BYTES // mebibyte} MiB",
        f"larger than {parsing.MAX_BODY // 1024} KiB",
        f"`parse_callback` has {parsing.TOLERANCE:g}",
        f"up to {MAX_FILES} URLs",
    ):
        assert words in pages.text(), words


def test_every_argument_of_a_poll_policy_is_in_the_table() -> None:
    """The table of its arguments is `PollPolicy`, with their defaults."""
    defaults = {name: shown(one.default) for name, one in inspect.signature(PollPolicy).parameters.items()}
    rows = table("argument of `PollPolicy`", "default").rows
    assert {names(first)[0]: default for first, default, *_ in rows} == defaults


def test_everything_that_the_emulator_can_do_is_in_the_tables() -> None:
    """The outcomes, answers and callbacks that a test can ask for by name."""
    outcomes = texts(row[0] for row in table("`outcome`").rows)
    assert sorted(outcomes) == sorted(OUTCOMES)
    assert sorted(texts(row[0] for row in table("`callback`").rows)) == sorted(CALLS)
    assert sorted(texts(row[0] for row in table("`answer`").rows)) == sorted(ANSWERS)


def test_the_map_names_every_room_on_its_floor() -> None:
    """The map for contributors has the floors that the imports are held to, from the top down."""
    [block] = section("The map").blocks
    floors = [re.findall(r"^(\w+)(?:/|\.py) ", floor, re.MULTILINE) for floor in block.code.split("\n\n")]
    assert [{*floor} for floor in floors] == [{"__init__"}, *FLOORS, {EMULATOR}]


# -- finding them --------------------------------------------------------------------------------


def set_pages(monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    found = {f"docs/{number}.md": Page.parse(f"docs/{number}.md", text) for number, text in enumerate(texts)}
    monkeypatch.setattr(pages, "pages", lambda: found)


TEXT = """# One

## Two words

A `#` sentence.

```sh
# Three
```

### Below

| error | b |
|---|---|
| `b \\| c` | d |

## Four
"""


def test_a_section_ends_at_the_next_heading_that_is_not_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment in a code block is no heading; tables and blocks come with their section."""
    set_pages(monkeypatch, TEXT)
    part = section("Two words")
    assert part.text.startswith("## Two words")
    assert part.text.endswith("d |\n\n")
    assert part.prose == "Two words A # sentence. Below"
    assert [(block.line, block.language, block.code) for block in part.blocks] == [(8, "sh", "# Three\n")]
    assert [one.rows for one in part.tables] == [[["`b | c`", "d"]]]
    assert section("Four").tables == []
    assert Page.parse("docs/0.md", TEXT).anchors == {"one", "two-words", "below", "four"}


def test_what_is_missing_or_double_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a table or section that is on no page, or on two, fails with its name and the pages."""
    set_pages(monkeypatch, TEXT)
    with pytest.raises(AssertionError, match="'Three' is on no page"):
        section("Three")
    with pytest.raises(AssertionError, match="'errors' is on no page"):
        table("errors")
    set_pages(monkeypatch, TEXT, TEXT)
    with pytest.raises(AssertionError, match=r"'Four' is on .*0\.md.*1\.md"):
        section("Four")
    with pytest.raises(AssertionError, match=r"'error' is on .*0\.md.*1\.md"):
        table("error")
