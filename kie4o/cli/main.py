"""The program `kie4o`: parses the arguments, runs a command, and returns an exit status.

A command is imported when it is run, and it imports aiohttp and the client when it needs them. So `--help`,
`--version` and wrong usage cost little more than cyclopts, which is optional and imported late too. Every
failure is one line on stderr.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from ..version import __version__
from .terminal import STDIN, Status, Terminal, quiet_pipe

if TYPE_CHECKING:
    from cyclopts import App, CycloptsError

_ABOUT = (
    "Images from Kie.ai's GPT-4o image API. "
    "Settings: KIE_API_KEY, KIE_BASE_URL, KIE_UPLOAD_URL, KIE_WEBHOOK_KEY."
)
COMMANDS = (
    ("generate", "generating", "Generate images from prompts and save them. Costs credits."),
    ("batch", "batch.command", "Generate the images of a file of requests. Costs credits."),
    ("wait", "tasks", "Wait for tasks that are paid already, and save their images."),
    ("status", "tasks", "Print what Kie knows about a task."),
    ("download", "tasks", "Save the images of finished tasks."),
    ("upload", "uploading", "Store files at Kie, for --file and --mask. Free."),
    ("credits", "money", "Print the balance of the account."),
    ("spent", "money", "Print what the requests in a store have cost, by state."),
    ("unfinished", "stored", "List what is paid, or may be, and has not finished."),
    ("resume", "stored", "Wait for everything that is unfinished, and save its images."),
    ("settle", "stored", "Record what you found out about a request with an unknown outcome."),
    ("prune", "stored", "Remove from a store what ended long ago. Free, offline."),
    ("gallery", "galleries", "Write a page that shows the images of a folder. Free, offline."),
    ("listen", "listening", "Receive callbacks, verify and print them, and keep them in the store."),
    ("emulator", "serving", "Serve a Kie on this machine, for programs in any language."),
    ("demo", "demo", "Generate pictures with an emulator of Kie: free, offline, without a key."),
    ("--install-completion", "completing", "Install the completion of commands and options for this shell."),
)
_ARGUMENTS = {  # where cyclopts would show [ARGS...]
    "generate": "[PROMPT...]",
    "wait": "TASK...",
    "download": "TASK...",
    "upload": "FILE...",
    "gallery": "[DIR]",
}


def application() -> App:
    """All commands, none of them imported. Raises `ImportError` without cyclopts."""
    from cyclopts import App, Parameter

    app = App(
        "kie4o",
        version=__version__,
        help=_ABOUT,
        help_format="plaintext",  # rich.markdown would cost 30 ms
        default_parameter=Parameter(negative=(), show_default=False),
    )
    for name, module, about in COMMANDS:
        function = name.strip("-").replace("-", "_")
        usage = {"usage": f"Usage: kie4o {name} [OPTIONS] {_ARGUMENTS[name]}"} if name in _ARGUMENTS else {}
        app.command(f"kie4o.cli.{module}:{function}", name=name, help=about, **usage)
    return app


def run(arguments: Sequence[str]) -> int:
    """Run the command that the arguments name, and return the exit status."""
    terminal = Terminal(json=_asks_for_json(arguments))
    terminal.events = arguments[:1] == ["batch"]
    try:
        try:
            app = application()
        except ImportError as error:
            terminal.fail(
                f"the command line needs {error.name}; in a checkout of kie4o, run: pip install '.[cli]'",
                error=type(error).__name__,
            )
            return Status.ERROR
        return _parsed_and_run(app, arguments, terminal)
    except KeyboardInterrupt:
        terminal.fail("interrupted", error="KeyboardInterrupt", going_on=[])
        return Status.INTERRUPTED
    except OSError as error:  # stdout cannot be written to
        terminal.error(error.strerror or str(error))
        return Status.ERROR


def _parsed_and_run(app: App, arguments: Sequence[str], terminal: Terminal) -> int:
    from cyclopts import CycloptsError

    unknown = _unknown_command(arguments)
    if unknown is not None:
        terminal.fail(unknown, error="UsageError")
        return Status.USAGE
    try:
        words = _with_stdin(arguments)
        command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        terminal.fail(_wrong_usage(error), error="UsageError")
        return Status.USAGE
    if not inspect.iscoroutinefunction(command):  # --help and --version
        # rich exits when the reader of stdout has gone
        with quiet_pipe(sys.stdout), contextlib.suppress(SystemExit):
            command(*bound.args, **bound.kwargs)
            sys.stdout.flush()
        return Status.OK
    bound.apply_defaults()
    typed = bound.arguments.get("terminal", terminal)
    typed.arguments, typed.events = tuple(arguments), terminal.events
    from .running import run_command

    return run_command(lambda: command(*bound.args, **bound.kwargs), typed)


def _wrong_usage(error: CycloptsError) -> str:
    """What cyclopts says of the arguments; of those that lack or are too many, in plain words."""
    from cyclopts import MissingArgumentError, UnusedCliTokensError

    see = f"see kie4o {' '.join(error.command_chain or ())} --help"
    unused = ["-" if word == STDIN else word for word in error.unused_tokens or ()]
    if isinstance(error, UnusedCliTokensError):
        return f"unexpected argument '{unused[0]}'; {see}"
    if not isinstance(error, MissingArgumentError) or error.argument is None:
        return " ".join(str(error).split())
    name = error.argument.name
    if error.keyword is not None:
        return f"{name} needs a value; {see}"
    near = difflib.get_close_matches(name, unused, 1)
    return f"{name} is missing; {f'did you mean it by {near[0]}?' if near else see}"


def _unknown_command(arguments: Sequence[str]) -> str | None:
    """What is wrong with the first word. cyclopts would import every command to say it."""
    names = [name for name, _, _ in COMMANDS]
    word = arguments[0] if arguments else "--help"
    known = (*names, "--help", "-h", "--version")
    if word in known:
        return None
    near = difflib.get_close_matches(word, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"
    kind = "option" if word.startswith("-") else "command"
    return f"unknown {kind} '{word}': {hint}"


def _with_stdin(arguments: Sequence[str]) -> list[str]:
    """A `-` before the end of the options means standard input."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    return [STDIN if word == "-" and index < end else word for index, word in enumerate(arguments)]


def _asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether a program reads the output, although the arguments could not be parsed."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def main() -> NoReturn:
    """Run the program and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals that lack a character
    sys.exit(run(sys.argv[1:]))
