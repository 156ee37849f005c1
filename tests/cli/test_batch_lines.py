"""Reading a file of requests: any bytes become lines and problems, and nothing is lost in between."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie4o.cli.batch.lines import FORMATS, SUFFIXES, Format, Table, guessed_format, listed, read

PROMPTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)


def table(text: str, kind: Format) -> Table:
    found = read(text.encode(), kind, {})
    assert not found.problems
    return found


@given(st.binary(), st.sampled_from(FORMATS))
def test_any_bytes_become_lines_and_problems(data: bytes, kind: Format) -> None:
    """Nothing is raised, and every number is that of a line of the file."""
    found = read(data, kind, {})
    last = data.count(b"\n") + data.count(b"\r") + 1
    assert all(1 <= number <= last for number, _ in found.problems)
    assert all(1 <= line.number <= last for line in found.lines)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "prompt",
                        "size",
                        "nVariants",
                        "file",
                        "mask",
                        "key",
                        "name",
                        "extra",
                        "fileUrl",
                        "enable_fallback",
                        "fallback",
                    ]
                )
                | st.text(),
                inner,
            )
        ),
    )
)
def test_any_json_becomes_a_line_or_a_problem(value: object) -> None:
    """Values of a wrong type are problems."""
    found = read(json.dumps(value).encode(), "jsonl", {})
    assert len(found.lines) + len(found.problems) == 1


@given(st.lists(PROMPTS))
def test_prompts_of_a_table_are_read_as_they_were_written(prompts: list[str]) -> None:
    """Also with quotes, line ends and delimiters in them."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["prompt", "key"])
    writer.writerows([prompt, f"k{number}"] for number, prompt in enumerate(prompts))
    found = table(text.getvalue(), "csv")
    assert [line.request.prompt for line in found.lines] == [prompt.strip() for prompt in prompts]


@given(st.lists(PROMPTS, min_size=1), st.data())
@pytest.mark.parametrize("kind", FORMATS)
def test_failed_lines_are_written_as_they_came(kind: Format, prompts: list[str], data: st.DataObject) -> None:
    """Read again, they are the same requests."""
    if kind == "csv":
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([["prompt"], *([prompt] for prompt in prompts)])
        text = file.getvalue()
    else:
        text = "\n".join(json.dumps({"prompt": each}) if kind == "jsonl" else each for each in prompts)
    found = table(text, kind)
    failed = data.draw(st.lists(st.sampled_from(found.lines), unique_by=lambda line: line.number))
    again = table(found.text(line.number for line in failed), kind)
    assert [line.request for line in again.lines] == [line.request for line in found.lines if line in failed]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_with_a_mark(encoding: str) -> None:
    """What editors of Windows and PowerShell write."""
    found = read("Ein Bär\r\nEine Möwe\r\n".encode(encoding), "txt", {})
    assert [line.request.prompt for line in found.lines] == ["Ein Bär", "Eine Möwe"]


def test_a_line_separator_within_a_prompt_ends_nothing() -> None:
    """Only what ends lines in files does: not U+2028, which JSON may hold."""
    found = table('{"prompt": "a\u2028b"}\n{"prompt": "c\u0085d"}', "jsonl")
    assert [line.request.prompt for line in found.lines] == ["a\u2028b", "c\u0085d"]
    assert [line.number for line in found.lines] == [1, 2]


def test_rows_have_the_number_of_their_first_line() -> None:
    """A quoted cell may span lines, and blank rows count."""
    found = table('prompt\n"one\ntwo"\n\nthree\n', "csv")
    assert [line.number for line in found.lines] == [2, 5]


def test_several_files_in_a_cell() -> None:
    """They are separated by |, or a JSON list; a path may have spaces."""
    found = table('prompt,file\na,my cat.png | https://x.example/b.png\nb,"[""c.png""]"\n', "csv")
    assert [line.files for line in found.lines] == [("my cat.png", "https://x.example/b.png"), ("c.png",)]
    assert [line.local for line in found.lines] == [["my cat.png"], ["c.png"]]
    urls = {"my cat.png": "https://kie.example/1.png"}
    assert found.lines[0].with_urls(urls).files_url == (
        "https://kie.example/1.png",
        "https://x.example/b.png",
    )


def test_what_was_typed_holds_for_lines_without_their_own() -> None:
    """A field of a line wins; a fallback model is enabled."""
    found = read(
        b'{"prompt": "a", "size": "3:2"}\n{"prompt": "b"}',
        "jsonl",
        {"size": "2:3", "fallback_model": "GPT_IMAGE_1"},
    )
    assert [line.request.size for line in found.lines] == ["3:2", "2:3"]
    assert all(line.request.enable_fallback for line in found.lines)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([4], "line 4"),
        ([1, 2], "lines 1 and 2"),
        ([*range(1, 7)], "lines 1, 2, 3, 4, 5 and 6"),
        ([*range(1, 8)], "lines 1, 2, 3, 4, 5 and 2 more"),
        ([*range(1, 2000)], "lines 1, 2, 3, 4, 5 and 1,994 more"),
    ],
)
def test_lines_in_a_sentence(numbers: list[int], said: str) -> None:
    """The first of many, and how many more there are."""
    assert listed(numbers) == said


def test_what_standard_input_holds() -> None:
    """Objects are JSON lines."""
    assert guessed_format(b'\xef\xbb\xbf \n{"prompt": "a"}') == "jsonl"
    assert guessed_format(b"A lake {red}") == "txt"
    assert set(SUFFIXES.values()) == set(FORMATS)
