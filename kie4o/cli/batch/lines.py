"""The lines of a batch: text, CSV or JSON lines become requests. Pure: bytes in, lines and problems out.

Every bad line is a problem with its number, so that all of them can be said before anything is sent. A local
file stays a path here; a request has a placeholder in its place, so that it can be checked.
"""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import attrs

from ...arguments import key_of
from ...errors import InvalidRequestError
from ...image_request import ImageRequest, our_name
from ..inputs import is_url
from ..messages import in_our_words
from ..options import OPTIONS, column
from ..terminal import UsageError

Format = Literal["txt", "csv", "jsonl"]
FORMATS: tuple[str, ...] = get_args(Format)
SUFFIXES: Mapping[str, Format] = {
    ".txt": "txt",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}

_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_OWN = ("prompt", "key", "name", "extra", "enable_fallback", "file_url")  # what is no option of a request
_EXPECTED = ", ".join([*_OWN[:4], *(option.name for option in OPTIONS)])
_SHOWN = 5  # numbers in a sentence
_DASHES = re.compile(r"(?<![\w'\"])--(?=[a-z])")
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@attrs.frozen(kw_only=True)
class Line:
    """One request of the file.

    Attributes:
        number: Where it begins in the file, from 1.
        source: The line as it is in the file; a row of a table may have several.
        request: With a placeholder for each local file.
        key: Its own idempotency key, if it has one.
        name: The name of its images, if it has one.
        files: The input images as they are in the file, paths and URLs.
        mask: The same of the mask.
    """

    number: int = attrs.field(kw_only=False)
    source: str
    request: ImageRequest
    key: str | None = None
    name: str | None = None
    files: tuple[str, ...] = ()
    mask: str | None = None

    @property
    def local(self) -> list[str]:
        """The files that are on this machine."""
        return [each for each in (*self.files, self.mask) if each is not None and not is_url(each)]

    def with_urls(self, urls: Mapping[str, str]) -> ImageRequest:
        """The request with these URLs in place of its local files."""
        if not self.local:
            return self.request
        files = tuple(urls.get(each, each) for each in self.files)
        mask = None if self.mask is None else urls.get(self.mask, self.mask)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # they were said of the line
            return attrs.evolve(self.request, files_url=files, mask_url=mask)


@attrs.define
class Table:
    """A file that was read: its lines, what is wrong with the others, the head of a CSV, and the lines that
    Kie may take in another way than is meant, by what is said of them."""

    lines: list[Line] = attrs.field(factory=list)
    problems: list[tuple[int, str]] = attrs.field(factory=list)
    warnings: dict[str, list[int]] = attrs.field(factory=dict)
    head: str = ""

    def text(self, numbers: Iterable[int]) -> str:
        """These lines in the format that they came in."""
        wanted = set(numbers)
        lines = [line.source for line in self.lines if line.number in wanted]
        return "".join(
            text if text.endswith("\n") else text + "\n" for text in [*filter(None, [self.head]), *lines]
        )


def listed(numbers: Sequence[int]) -> str:
    """Lines in a sentence: `line 4`, `lines 1, 2 and 3`, or the first five and how many more there are."""
    shown = [f"{number}" for number in numbers[: _SHOWN if len(numbers) > _SHOWN + 1 else None]]
    if (more := len(numbers) - len(shown)) > 0:
        shown.append(f"{more:,} more")
    *first, last = shown
    return f"lines {', '.join(first)} and {last}" if first else f"line {last}"


def guessed_format(data: bytes) -> Format:
    """The format of what has no name: objects are JSON lines, anything else is text."""
    return "jsonl" if data.removeprefix(_BOMS[0][0]).lstrip()[:1] == b"{" else "txt"


def read(data: bytes, kind: Format, defaults: Mapping[str, Any]) -> Table:
    """The requests of a file. `defaults` are fields of those lines that do not have them."""
    table = Table()
    text = _decoded(data, table)
    rows = {"txt": _prompts, "csv": _cells, "jsonl": _objects}[kind]
    keys: dict[str, int] = {}
    for number, source, fields in rows(text, table) if text is not None else ():
        try:
            with warnings.catch_warnings(record=True, action="always", category=UserWarning) as caught:
                line = _line(number, source, dict(defaults), fields)
            for each in caught:
                table.warnings.setdefault(_in_words_of_a_table(str(each.message)), []).append(number)
            if line.key is not None and (first := keys.setdefault(line.key, number)) != number:
                raise UsageError(f"key {line.key!r} is that of line {first}: expected another one")
            table.lines.append(line)
        except (UsageError, InvalidRequestError) as error:
            table.problems.append((number, _in_words_of_a_table(str(error))))
    return table


def _in_words_of_a_table(text: str) -> str:
    """A sentence about options, or about arguments of Python, about columns instead."""
    return _DASHES.sub("", in_our_words(text)).replace("PROMPT", "prompt")


def _decoded(data: bytes, table: Table) -> str | None:
    encoding = "utf-8"
    for mark, named in _BOMS:
        if data.startswith(mark):
            data, encoding = data[len(mark) :], named
            break
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        byte, number = data[error.start], data.count(b"\n", 0, error.start) + 1
        table.problems.append((number, f"byte 0x{byte:02x} is not {encoding.upper()}: expected UTF-8"))
        return None


Rows = Iterator[tuple[int, str, Mapping[str, Any]]]


def _prompts(text: str, _: Table) -> Rows:
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if line.strip():
            yield number, line, {"prompt": line.strip()}


def _objects(text: str, table: Table) -> Rows:
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line.rstrip("\n"))
        except (ValueError, RecursionError) as error:
            table.problems.append((number, f"invalid JSON: {_in_a_line(error)}"))
            continue
        if isinstance(found, dict):
            yield number, line, found
        else:
            table.problems.append((number, 'expected a JSON object, such as {"prompt": "A lake"}'))


def _in_a_line(error: Exception) -> str:
    """What is wrong with JSON, and where. Which line it is in is said already."""
    return f"{error.msg} at column {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)


def _cells(text: str, table: Table) -> Rows:
    """The rows of a CSV file with a head; a row may span several lines."""
    taken: list[str] = []

    def lines() -> Iterator[str]:
        for line in io.StringIO(text, newline=""):
            taken.append(line)
            yield line

    head_line = next(iter(io.StringIO(text, newline="")), "")
    delimiter = max(",;\t", key=head_line.count)
    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    head: list[str] = []
    number = 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            table.problems.append((number, f"invalid CSV: {error}"))
            return  # where the next row begins is not known
        if row is None:
            return
        start, number, source = number, reader.line_num + 1, "".join(taken)
        taken.clear()
        if not any(cell.strip() for cell in row):
            continue
        if not head:
            head, table.head = [cell.strip() for cell in row], source
            if not _is_head(head, start, table) and "prompt" not in map(_field_of, head):
                return  # every row would seem to lack what the misspelt column has
        elif len(row) > len(head):
            table.problems.append((start, f"{len(row)} cells: expected at most {len(head)}, as the head has"))
        else:
            try:
                yield start, source, _values(head, row)
            except UsageError as error:
                table.problems.append((start, str(error)))


def _is_head(head: list[str], number: int, table: Table) -> bool:
    """Whether the columns are known, and each is there once."""
    names = [_field_of(name) for name in head]
    for index, (name, field) in enumerate(zip(head, names, strict=True)):
        if field is None:
            table.problems.append((number, f"unknown column {name!r}: expected {_EXPECTED}"))
        elif field in names[:index]:
            table.problems.append((number, f"column {name!r} is there twice"))
    return not table.problems


def _values(head: list[str], row: list[str]) -> dict[str, Any]:
    """The cells of a row as the values of its fields; an empty one is not given."""
    values: dict[str, Any] = {}
    for name, cell in zip(head, row, strict=False):
        field, option = _field_of(name), column(name)
        if not cell.strip() or field is None:
            continue
        listed = option is not None and option.kind == "list"
        if field == "extra" or (listed and cell.lstrip().startswith("[")):
            try:
                values[field] = json.loads(cell)
            except ValueError as error:
                raise UsageError(f"invalid {name} {cell!r}: expected JSON ({_in_a_line(error)})") from None
        elif listed:
            values[field] = [each.strip() for each in cell.split("|") if each.strip()]
        elif field == "enable_fallback":
            values[field] = _flag(name, cell)
        else:
            values[field] = cell.strip() if option is None else option.parse(cell)
    return values


def _flag(name: str, cell: str) -> bool:
    flag = _FLAGS.get(cell.strip().lower())
    if flag is None:
        raise UsageError(f"invalid {name} {cell!r}: expected true or false")
    return flag


def _field_of(name: str) -> str | None:
    """The field of a request that a column or a name in a JSON object means, or one of ours."""
    option = column(name)
    if option is not None:
        return option.field
    plain = name.strip().replace("-", "_")
    field = our_name(plain) or plain.lower()
    return field if field in _OWN else None


def _line(number: int, source: str, fields: dict[str, Any], given: Mapping[str, Any]) -> Line:
    """A checked line. Raises `UsageError` or `InvalidRequestError`."""
    for name, value in given.items():
        field = _field_of(name)
        if field is None:
            raise UsageError(f"unknown field {name!r}: expected {_EXPECTED}")
        if value is not None:
            fields[field] = value
    key, name = fields.pop("key", None), fields.pop("name", None)
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise UsageError(f"invalid name {name!r}: expected a file name")
    if "fallback_model" in fields:
        fields.setdefault("enable_fallback", True)
    files, mask = _sources(fields.pop("files_url", ())), fields.pop("mask_url", None)
    if mask is not None and not isinstance(mask, str):
        raise UsageError(f"invalid mask_url {mask!r}: expected a path or a URL")
    planned = tuple(map(placeholder, files)), None if mask is None else placeholder(mask)
    request = ImageRequest(fields.pop("prompt", None), files_url=planned[0], mask_url=planned[1], **fields)
    return Line(number, source=source, request=request, key=key_of(key), name=name, files=files, mask=mask)


def _sources(value: Any) -> tuple[str, ...]:
    sources = [value] if isinstance(value, str) else value
    if not isinstance(sources, (list, tuple)) or not all(
        isinstance(each, str) and each.strip() for each in sources
    ):
        raise UsageError(f"invalid files_url {value!r}: expected a list of paths and URLs")
    return tuple(sources)


def placeholder(source: str, digest: str = "0") -> str:
    """The URL that stands for a file which is not uploaded. Its suffix tells the format."""
    if is_url(source):
        return source
    _, dot, suffix = source.rpartition(".")
    ending = dot + suffix if dot and suffix.isalnum() and suffix.isascii() else ""
    return f"https://not-uploaded-yet.example/{digest}{ending}"
