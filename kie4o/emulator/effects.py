"""The grammar of faults: kinds of request, and tables of conditions, effects and options. Pure.

`EFFECTS`, `OPTIONS` and `WHEN` say what each field of a `Fault` means, what it may be, and for which requests
it is. Everything that reads faults, and their documentation, is derived from these tables.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import attrs

from .tasks import MESSAGES
from .values import STATUS, TEXT, TRUE_OR_FALSE, Value, is_number, one_of, whole
from .variants import FRAMINGS, IMAGES, PAGES, RECORDS

Kind = Literal["submit", "look", "credits", "link", "upload", "image"]
KINDS: tuple[Kind, ...] = get_args(Kind)
API: tuple[Kind, ...] = KINDS[:-1]  # what answers with an envelope
OF_TASKS = ("submit", "look", "link", "image")  # what has a prompt
OF_ONE_TASK = ("look", "link", "image")  # what has a task id

# Page "generate" and its siblings; 403 is of Cloudflare, and 524 of the record of a sibling's task.
CODES = sorted({*MESSAGES, 403, 405, 409, 413, 524})
REDIRECTS = (301, 302, 303, 307, 308)
_OWN_HEADERS = ("content-length", "transfer-encoding", "connection")


def _are_headers(value: Any) -> bool:
    def fits(name: Any, text: Any) -> bool:
        lines = isinstance(name, str) and isinstance(text, str) and not re.search(r"[\r\n\0]", name + text)
        return lines and bool(re.fullmatch(r"[\w-]+", name)) and name.lower() not in _OWN_HEADERS

    return isinstance(value, Mapping) and bool(value) and all(fits(*item) for item in value.items())


def _is_retry_after(value: Any) -> bool:
    if not isinstance(value, str):
        return is_number(value)
    is_date = not value.startswith("date") or re.fullmatch(r"date[+-]\d+(\.\d+)?", value)
    return bool(is_date) and not re.search(r"[\r\n\0]", value)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


SECONDS = Value("a number of seconds above 0", lambda v: is_number(v) and 0 < v < math.inf)

WHEN: dict[str, tuple[Value, str]] = {
    "times": (
        Value(
            'an integer above 0, or "always"; 0 would never fire', lambda v: v is None or whole(1).accepts(v)
        ),
        'how often it fires; 1 by default, "always" for every time',
    ),
    "after": (whole(0, expected="an integer, 0 or more"), "how many matching requests go by first"),
    "probability": (
        Value("a number above 0, up to 1; 0 would never fire", lambda v: is_number(v) and 0 < v <= 1),
        "with which probability it fires; drawn from the `seed` of the emulator",
    ),
    "lasting": (SECONDS, "fires every time for so many seconds, from its first time on; in place of `times`"),
    "prompt": (TEXT, "only for requests about this prompt"),
    "task": (TEXT, "only for requests about this task id"),
}

OPTIONS: dict[str, tuple[Value, str]] = {
    "message": (TEXT, "the text beside the code; by default Kie's own"),
    "data": (Value("any JSON value", _is_json), "the `data` beside the code"),
    "http_status": (STATUS, "the HTTP status; by default that of the page, and 200 with a code"),
    "headers": (Value("header names and texts, none of them about framing", _are_headers), "more headers"),
    "retry_after": (
        Value('a number, a text, or "date+30"', _is_retry_after),
        'a Retry-After: seconds, any text, or with "date+30" and "date-30" an HTTP date from now',
    ),
    "charged": (TRUE_OR_FALSE, "whether the submit creates a task and costs credits all the same"),
    "at": (whole(0, expected="a number of bytes"), "after how many bytes of the answer it stalls"),
}


@attrs.frozen(kw_only=True)
class Effect:
    """One thing that can go wrong. `charged` is what a submit is by default; None depends on the value.
    `replaces` says whether it takes the place of the true answer.
    """

    does: str
    value: Value
    kinds: tuple[str, ...] = KINDS
    charged: bool | None = False
    options: tuple[str, ...] = ()
    replaces: bool = True


_PAGE_OPTIONS = ("http_status", "retry_after", "headers", "charged")

EFFECTS: dict[str, Effect] = {
    "code": Effect(
        does="this code in the envelope",
        value=Value(f"one of {', '.join(map(str, CODES))}", lambda v: type(v) is int and v in CODES),
        kinds=API,
        options=("message", "data", *_PAGE_OPTIONS),
    ),
    "page": Effect(
        does="a page in place of the envelope or image", value=one_of(PAGES), options=_PAGE_OPTIONS
    ),
    "body": Effect(
        does="these bytes in place of the envelope or image",
        value=Value("text or bytes", lambda value: isinstance(value, (str, bytes))),
        options=_PAGE_OPTIONS,
    ),
    "http_status": Effect(
        does="this HTTP status and an empty body",
        value=STATUS,
        options=("retry_after", "headers", "charged"),
    ),
    "redirect": Effect(
        does='a redirect to this URL or path; "self" is the URL of the request',
        value=Value("a URL or a path", lambda v: isinstance(v, str) and v.isprintable() and v != ""),
        options=("http_status", "headers"),
    ),
    "headers": Effect(
        does="the true answer with these headers",
        value=OPTIONS["headers"][0],
        charged=True,
        replaces=False,
    ),
    "record": Effect(
        does="an odd record of the task", value=one_of(RECORDS), kinds=("look",), replaces=False
    ),
    "image": Effect(does="an odd image", value=one_of(IMAGES), kinds=("image",), replaces=False),
    "reset": Effect(
        does="the connection is reset, before the body is read or after the request is handled",
        value=one_of(("before", "after")),
        charged=None,
        options=("charged",),
    ),
    "cut": Effect(
        does="the connection closes after so many bytes of the answer, head included; below 0 from the end",
        value=Value("a number of bytes", lambda value: type(value) is int),
        charged=True,
        options=("charged",),
    ),
    "stall": Effect(
        does="no byte of the answer for so long",
        value=Value('a number of seconds above 0, or "forever"', lambda v: is_number(v) and v > 0),
        charged=True,
        options=("at", "charged"),
        replaces=False,
    ),
    "drip": Effect(
        does="the body of the answer takes so long, in 20 pieces",
        value=SECONDS,
        charged=True,
        replaces=False,
    ),
    "framing": Effect(
        does="HTTP that is not as usual", value=one_of(FRAMINGS), charged=True, replaces=False
    ),
    "open_ended": Effect(
        does="the whole answer without a length, on a connection that never closes",
        value=Value("true", lambda value: value is True),
        charged=True,
        replaces=False,
    ),
    "refuse": Effect(
        does="connections are refused for so long, of every kind: at once, or after the answer to the last "
        "request of `after`",
        value=SECONDS,
    ),
    "by": Effect(
        does="a function of the `Arrival` returns the effect, as a mapping, or None for none; Python only",
        value=Value("a function", callable),
        charged=None,
    ),
}  # fmt: skip  # a row is a line

VALUES: dict[str, Value] = {name: value for name, (value, _) in (WHEN | OPTIONS).items()}
VALUES |= {name: effect.value for name, effect in EFFECTS.items()}


# -- for the documentation -------------------------------------------------------------------------


def as_markdown() -> str:
    """The tables of this grammar, as they stand in the documentation."""
    charged = {True: "yes", False: "no", None: "it depends"}
    tables_below = ("page", "record", "image", "framing")
    effects = [
        (
            f"`{name}`",
            effect.does,
            "a name below" if name in tables_below else effect.value.expected,
            "all" if effect.kinds == KINDS else ", ".join(effect.kinds),
            charged[effect.charged],
            ", ".join(f"`{option}`" for option in effect.options),
        )
        for name, effect in EFFECTS.items()
    ]
    tables = [_table(("effect", "what happens", "value", "requests", "submit charged", "options"), effects)]
    for title, rows in (("when", WHEN), ("option", OPTIONS)):
        lines = [(f"`{name}`", does, value.expected) for name, (value, does) in rows.items()]
        tables.append(_table((title, "meaning", "value"), lines))
    variants: Mapping[str, Mapping[str, Any]] = {
        "page": PAGES,
        "record": RECORDS,
        "image": IMAGES,
        "framing": FRAMINGS,
    }
    for title, rows_of in variants.items():
        lines_of = [(f'`"{name}"`', row.does) for name, row in rows_of.items()]
        tables.append(_table((f"`{title}`", "what is sent"), lines_of))
    return "\n".join(tables)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
