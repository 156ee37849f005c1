"""The fields of a request as options of the command line, and as columns of a table.

They are made from `ImageRequest` itself, so that a new field appears by itself; `_WORDS` only has shorter
names and the help texts of those that are there. Pure: what cyclopts makes of them is in `parameters`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from ..image_request import ImageRequest, our_name
from .terminal import UsageError

Kind = Literal["text", "flag", "number", "choice", "list"]

_WORDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "size": ("size", "Aspect ratio."),
        "files_url": ("file", "Path or URL of an image to edit or to start from; --file again for up to 5."),
        "mask_url": ("mask", "Path or URL of a mask for a single --file: black is changed, white is kept."),
        "n_variants": ("variants", "Number of images of a prompt; each choice has its own price."),
        "callback_url": ("callback-url", "Where Kie reports the end of the task; {ref} in it is replaced."),
        "is_enhance": ("enhance", "Let Kie enrich the prompt."),
        "upload_cn": ("upload-cn", "Let Kie fetch the files through servers in China."),
        "fallback_model": ("fallback", "Use this model while GPT-4o is unavailable."),
    }
)
# Not options: the prompt is an argument, --fallback enables the fallback, Kie has deprecated one field, and
# --set is the last.
_OTHERS = ("prompt", "enable_fallback", "file_url", "extra")


@attrs.frozen
class Option:
    """One field of a request: `--name` on the command line, `field` in a table."""

    field: str
    name: str
    kind: Kind
    type: Any = attrs.field(repr=False)  # what the field holds, without None
    default: Any = None
    help: str = ""
    choices: tuple[Any, ...] = ()

    @property
    def flag(self) -> str:
        """As it is typed."""
        return f"--{self.name}"

    def parse(self, text: str) -> Any:
        """The value that a text means. Raises `UsageError` with what is allowed."""
        if self.kind == "text":
            return text
        if self.kind == "list":
            return tuple(text.split())
        words = text.strip().lower()
        if self.kind == "flag" and words in _FLAGS:
            return _FLAGS[words]
        if self.kind == "choice":
            for choice in self.choices:
                if str(choice).lower() == words:
                    return choice
        elif self.kind == "number":
            try:
                return self.type(words)
            except ValueError:
                pass
        raise UsageError(f"invalid {self.field} {text!r}: expected {self.allowed}")

    @property
    def allowed(self) -> str:
        """What is allowed, for a message."""
        if self.kind == "choice":
            return "one of " + ", ".join(map(str, self.choices))
        return {"flag": "true or false", "number": "a number"}.get(self.kind, "text")


_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _options() -> Iterable[Option]:
    hints, described = get_type_hints(ImageRequest), _descriptions()
    for field in attrs.fields(ImageRequest):
        if field.name in _OTHERS:
            continue
        kind, choices = _kind_of(hints[field.name])
        name, text = _WORDS.get(field.name, (field.name.replace("_", "-"), described.get(field.name, "")))
        default = field.default if isinstance(field.default, (str, int, float, NoneType)) else None
        yield Option(field.name, name, kind, _without_none(hints[field.name]), default, text, choices)


def _descriptions() -> dict[str, str]:
    """The first sentence about each field in the docstring of `ImageRequest`."""
    lines = re.findall(
        r"^ {8}(\w+): (.*?)(?=^ {8}\w+: |\Z)", ImageRequest.__doc__ or "", re.MULTILINE | re.DOTALL
    )
    return {name: " ".join(text.split()).split(". ")[0].rstrip(".") + "." for name, text in lines}


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, UnionType):
        [hint] = [each for each in get_args(hint) if each is not NoneType]
    return hint


def _kind_of(hint: Any) -> tuple[Kind, tuple[Any, ...]]:
    kind = _without_none(hint)
    if get_origin(kind) is Literal:
        return "choice", get_args(kind)
    if kind is bool:
        return "flag", ()
    if kind in (int, float):
        return "number", ()
    return ("list" if get_origin(kind) is tuple else "text"), ()


OPTIONS: tuple[Option, ...] = tuple(_options())
OPTION_OF: Mapping[str, str] = MappingProxyType(
    {option.field: option.flag for option in OPTIONS}
    | {"enable_fallback": "--fallback", "extra": "--set", "prompt": "PROMPT"}
)
"""How each field is typed."""


def column(name: str) -> Option | None:
    """The field that the head of a column means: our name, Kie's or that of the option."""
    ours = our_name(name.strip().replace("-", "_"))
    for option in OPTIONS:
        if option.field == ours or option.name == name.strip().lower():
            return option
    return None


def extra_of(assignments: Iterable[str]) -> dict[str, Any]:
    """What `--set name=value` adds to a request; JSON is read as such. Raises `UsageError`."""
    extra: dict[str, Any] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"invalid --set {text!r}: expected name=value, with the name that Kie gives it")
        try:
            extra[name.strip()] = json.loads(value)
        except ValueError:
            extra[name.strip()] = value
    return extra


def request_of(prompt: str | None, options: object, assignments: Iterable[str] = ()) -> ImageRequest:
    """The request of a prompt with these options. Raises `InvalidRequestError` or `UsageError`."""
    fields = {option.field: getattr(options, option.field) for option in OPTIONS}
    given = {name: value for name, value in fields.items() if value is not None}
    if "fallback_model" in given:
        given["enable_fallback"] = True
    return ImageRequest(prompt, extra=extra_of(assignments), **given)
