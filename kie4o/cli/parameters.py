"""The options that several commands share, as annotations that cyclopts reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import attrs
from cyclopts import Group, Parameter, validators

from ..models import Exists
from .options import OPTIONS
from .terminal import Terminal

_OUTPUT = Group("Output", sort_key=9)
_POSITIVE = validators.Number(gt=0)


@Parameter(name="*", group=_OUTPUT)
@attrs.define(kw_only=True, eq=False)
class Output(Terminal):
    """The options of every command."""

    json: Annotated[bool, Parameter(help="Print results, and an error, as one JSON object a line.")] = False
    verbose: Annotated[bool, Parameter(help="Print the lines of the log.")] = False
    quiet: Annotated[bool, Parameter(help="Print no notes and no progress.")] = False


@Parameter(name="*")
@attrs.define(kw_only=True, eq=False)
class Connected(Output):
    """The options of every command that talks to Kie."""

    speed: Annotated[
        float,
        Parameter(
            group=_OUTPUT,
            validator=_POSITIVE,
            help="Divide all waits but timeouts by this, for an emulator of the same speed.",
        ),
    ] = 1.0


OUTPUT = Output()  # where a command has none of these options
CONNECTED = Connected()
Prompts: TypeAlias = Annotated[
    str, Parameter(name="PROMPT", help="What to draw, or how to edit the files; - reads a prompt per line.")
]
TaskId: TypeAlias = Annotated[str, Parameter(name="TASK", help="The id that kie4o generate printed.")]
Out: TypeAlias = Annotated[
    Path,
    Parameter(
        name="--out", help="Folder for the images, created if it is missing; the current one by default."
    ),
]
Name: TypeAlias = Annotated[
    str | None, Parameter(help="File name, instead of the task id; numbered if there are several.")
]
ExistsOption: TypeAlias = Annotated[
    Exists | None,
    Parameter(
        name="--exists",
        help="If there is a file of that name: keep it, replace it, or rename the new one. By default "
        "that is an error, but an image that is named after its task is kept.",
    ),
]
Timeout: TypeAlias = Annotated[
    float,
    Parameter(
        validator=_POSITIVE,
        show_default=True,
        help="Seconds to wait for a task, which keeps running after that.",
    ),
]
_REMEMBERS = "File that remembers what was paid, such as run.db, or postgresql://user@host/database."
Store: TypeAlias = Annotated[str, Parameter(help=_REMEMBERS)]
OptionalStore: TypeAlias = Annotated[str | None, Parameter(name="--store", help=_REMEMBERS)]


def _request_options() -> Any:
    """A class with an attribute for each field of a request."""
    fields: dict[str, Any] = {}
    for option in OPTIONS:
        shown = option.kind == "choice" and option.field != "fallback_model"
        default = option.default if shown or option.default is False else None
        parameter = Parameter(name=option.flag, help=option.help, show_default=shown)
        kind = option.type if default is not None else option.type | None
        annotated: Any = Annotated[kind, parameter]
        fields[option.field] = attrs.field(default=default, type=annotated)
    made = attrs.make_class("RequestOptions", fields, kw_only=True, frozen=True)
    return Parameter(name="*")(made)


if TYPE_CHECKING:

    class RequestOptions:
        """The fields of a request as options: one attribute for each of `OPTIONS`."""

else:
    RequestOptions = _request_options()
REQUEST = RequestOptions()
