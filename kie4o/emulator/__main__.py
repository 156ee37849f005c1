"""`python -m kie4o.emulator`: runs an emulator until Ctrl-C and prints the variables that point to it.

Its options are the arguments of `program.serve`; `kie4o emulator` has the same.
"""

import argparse
import asyncio
import contextlib
import inspect
import io
import re
import sys
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .program import in_words_of_options, serve


def _parser() -> argparse.ArgumentParser:
    """Options from the signature of `serve`, help from its docstring."""
    text = inspect.getdoc(serve) or ""
    about, _, described = text.partition("\n\nArgs:\n")
    helps = dict(re.findall(r"^ {4}(\w+): (.*)$", described, re.MULTILINE))
    parser = argparse.ArgumentParser("python -m kie4o.emulator", description=about)
    for name, kind in get_type_hints(serve).items():
        if name != "return":
            parser.add_argument(f"--{name.replace('_', '-')}", help=helps.get(name), **_accepted(name, kind))
    return parser


def _accepted(name: str, kind: Any) -> dict[str, Any]:
    """What argparse is told of an option: a switch, one of some names, or a value that is converted."""
    default = inspect.signature(serve).parameters[name].default
    [*kinds] = [each for each in get_args(kind) or (kind,) if each is not type(None)]
    if kinds == [bool]:
        return {"action": "store_true"}
    if get_origin(kinds[0]) is Literal:
        return {"choices": get_args(kinds[0]), "default": default}
    convert: Callable[[str], object] = kinds[0]
    return {"type": convert, "default": default}


def main() -> None:
    """Run the program. What cannot be used is one line on stderr and status 2, as with `kie4o emulator`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for terminals that lack a character
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve(**vars(_parser().parse_args())))
    except ValueError as error:
        print(f"kie4o.emulator: {in_words_of_options(error)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        sys.exit(f"kie4o.emulator: {error}")


if __name__ == "__main__":
    main()
