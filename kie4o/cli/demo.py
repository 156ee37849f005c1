"""`kie4o demo`: a batch against an emulator of Kie, with what goes wrong in one, in 15 seconds.

The emulator runs in this process. The batch is `kie4o batch` in a child process with the same terminal, which
meets a rate limit and a refused prompt, is killed half way, and is run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
from cyclopts import Parameter, validators

from ..errors import KieError
from ..gallery.records import FILE_NAME, read
from .batch.checks import DEMO
from .parameters import OUTPUT, Out, Output
from .saving import Folder
from .terminal import Status, Terminal, UsageError, command_line, program

if TYPE_CHECKING:
    from ..emulator import Emulator

REQUESTS, STORE, PAGE = "demo.jsonl", "demo.db", "index.html"  # in the folder
_PROMPTS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("lighthouse", "A lighthouse above a calm sea at first light", {"size": "3:2"}),
    ("fox", "A fox in an autumn forest", {"size": "1:1"}),
    ("bookshop", "A small bookshop in the rain, warm windows", {"size": "2:3"}),
    ("balloons", "Hot-air balloons over green hills on a summer day", {"size": "3:2", "n_variants": 2}),
    ("kingfisher", "A kingfisher on a reed, macro photograph", {"size": "2:3"}),
    ("star", "The face of a famous film star on a banknote", {"size": "1:1"}),  # which is refused
    ("train", "A night train on a viaduct under the stars", {"size": "3:2"}),
    ("lemons", "A bowl of lemons, oil on canvas", {"size": "1:1"}),
    ("whale", "A whale beside a sailing boat at sunset", {"size": "3:2"}),
    ("castle", "A castle in the snow at night", {"size": "2:3"}),
    ("windmill", "A windmill between fields of tulips in the morning", {"size": "3:2"}),
    ("greenhouse", "A greenhouse full of ferns at noon, watercolour", {"size": "1:1"}),
)
_REFUSED = "star"
_LIMIT, _WINDOW = 4, 10.0  # new tasks in so many emulated seconds; Kie takes 20, and the batch expects that
_KILLED_AT = 4  # results
_QUIET = 0.4  # seconds without a submit: none is on its way then, whose outcome nobody would know
_TICK = 0.01
_USUAL = (0, int(Status.SOME_FAILED))  # exit statuses of the batch

Speed = Annotated[
    float,
    Parameter(
        validator=validators.Number(gte=0.1, lte=10),
        show_default=True,
        help="How many times faster than real time the emulator and the batch run.",
    ),
]


async def demo(
    *, out: Out = Path("kie4o-demo"), speed: Speed = 3.0, terminal: Output = OUTPUT
) -> Status | None:
    """Run a batch against an emulator of Kie, kill it and go on: free, offline, without an API key."""
    _check_packages()
    Folder(out).check()
    out = out.expanduser()
    if _remove_earlier(out):
        terminal.note(f"replacing the images of an earlier demo in '{out}'")
    (out / REQUESTS).write_text("".join(map(_line, _PROMPTS)), "utf-8")
    from ..emulator import Emulator

    async with Emulator(clock="real", speed=speed, limit=_LIMIT, per=_WINDOW, seed=1) as kie:
        for row, (name, prompt, _) in enumerate(_PROMPTS):
            kie.plan(prompt, duration=6.0 + row % 4, outcome="policy" if name == _REFUSED else None)
        terminal.note(
            f"an emulator of Kie runs at {kie.url}, at {speed:g} times real speed; it takes {_LIMIT} new "
            f"tasks in {_WINDOW:g} s. Nothing leaves this machine, and no API key is needed"
        )
        batch = _Batch(kie, out, speed, terminal)
        terminal.note(f"running: {batch.command}")
        if await batch.run(kill=True) is None:
            terminal.note("killed it; running the same command again")
            await batch.run()
        return _summary(kie, out, terminal)


def _check_packages() -> None:
    missing = [name for module, name in (("PIL", "Pillow"), ("jinja2", "Jinja2")) if not _is_there(module)]
    if missing:
        what = " and ".join(missing)
        raise KieError(f"the demo needs {what}; in a checkout of kie4o, run: pip install '.[cli]'")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # it is set to None in sys.modules
        return False


def _key(name: str) -> str:
    return f"kie4o-demo-{name}"


def _line(each: tuple[str, str, Mapping[str, Any]]) -> str:
    name, prompt, fields = each
    return json.dumps({"key": _key(name), "name": name, "prompt": prompt, **fields}) + "\n"


def _remove_earlier(folder: Path) -> bool:
    """Remove what an earlier demo has recorded. A folder with anything of another batch is refused."""
    records, keys = read(folder / FILE_NAME), {_key(name) for name, _, _ in _PROMPTS}
    if any(record.key not in keys for record in records):
        raise UsageError(f"--out '{folder}' has the images of a batch: expected a new folder")
    if not (folder / REQUESTS).exists():
        return False
    for name in (name for record in records for name in record.files):
        (folder / Path(name).name).unlink(missing_ok=True)
    for path in (folder / FILE_NAME, *folder.glob(f"{STORE}*")):
        path.unlink(missing_ok=True)
    return bool(records)


# -- the batch in a process of its own ---------------------------------------------------------------


@attrs.frozen(eq=False)
class _Batch:
    """`kie4o batch`, as it is typed."""

    kie: Emulator
    out: Path
    speed: float
    terminal: Terminal

    @property
    def command(self) -> str:
        return command_line([*program(), *self._arguments()])

    def _arguments(self) -> Sequence[str]:
        requests, store = str(self.out / REQUESTS), str(self.out / STORE)
        timeout = 60 + 120 / self.speed  # so that it ends soon if this process is killed
        words = ["batch", requests, "--out", str(self.out), "--store", store]
        words += ["--speed", f"{self.speed:g}", "--timeout", f"{timeout:.0f}"]
        switches = {"--json": self.terminal.json, "--verbose": self.terminal.verbose}
        switches["--quiet"] = self.terminal.quiet
        return [*words, *(name for name, on in switches.items() if on)]

    async def run(self, *, kill: bool = False) -> int | None:
        """Run it to its end, and return its exit status; with `kill` half way, which is None."""
        async with self._process() as process:
            while kill and process.returncode is None:
                await asyncio.sleep(_TICK)
                if self._is_half_way():
                    return None
            status = await process.wait()
        if status not in _USUAL:
            raise KieError(f"kie4o batch has ended with status {status}: expected {_USUAL[-1]}")
        return status

    def _is_half_way(self) -> bool:
        quiet = self.kie.now() - max((submit.at for submit in self.kie.submits), default=0.0)
        safe = _QUIET * self.speed < quiet < 0.8 * _WINDOW
        return safe and self.kie.paid >= 2 * _LIMIT and self._results() >= _KILLED_AT

    def _results(self) -> int:
        with contextlib.suppress(OSError):
            return (self.out / FILE_NAME).read_bytes().count(b"\n")
        return 0

    @contextlib.asynccontextmanager
    async def _process(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """The process, which is killed if it has not ended inside of the block.

        It is in a group of its own, so that Ctrl-C reaches this program only.
        """
        sys.stdout.flush()
        process = await asyncio.create_subprocess_exec(
            *_program(),
            *self._arguments(),
            stdin=subprocess.DEVNULL,
            env=_environment(self.kie),
            **_own_group(),
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            if process.returncode not in _USUAL:
                _restore_terminal()


def _program() -> Sequence[str]:
    """This program, without a launcher between, which would be killed in its place."""
    started = Path(sys.argv[0])
    is_script = started.is_file() and started.name != "__main__.py"
    return [sys.executable, *([str(started)] if is_script else ["-m", "kie4o"])]


def _environment(kie: Emulator) -> Mapping[str, str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith("KIE_")}
    return others | {"KIE_API_KEY": "demo", "KIE_BASE_URL": kie.url, "KIE_UPLOAD_URL": kie.url, DEMO: "1"}


def _own_group() -> Mapping[str, Any]:
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"process_group": 0}


def _restore_terminal() -> None:
    """Leave the line that a killed process was drawing, and show the cursor, which it had hidden."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_interactive:
        console.show_cursor()
        console.line()


# -- the end -----------------------------------------------------------------------------------------


def _summary(kie: Emulator, out: Path, terminal: Terminal) -> Status | None:
    """What the emulator has counted, the gallery, and what to do next."""
    page = str((out / PAGE).absolute())
    twice = sum(task.submits > 1 for task in kie.tasks.values())
    refused = sum(submit.code == 429 for submit in kie.submits)
    again = command_line([*program(), "batch", str(out / REQUESTS), "--out", "images", "--dry-run"])
    lines = [
        f"the emulator has counted {kie.paid} paid tasks for {len(_PROMPTS)} requests: {twice or 'nothing'} "
        f"was paid twice; {refused} attempts were refused because of the rate limit, and cost nothing",
        f"to look at the images, open {page}",
        "to generate real ones, create an API key at kie.ai/api-key, set KIE_API_KEY, and run the next line "
        "without --dry-run; as it is, it needs no key, tells the price and sends nothing:",
        again,
    ]
    facts: dict[str, Any] = {"requests": len(_PROMPTS), "paid": kie.paid, "paid_twice": twice}
    facts |= {"refused": refused, "gallery": page, "command": again}
    terminal.show("\n".join(lines), event="demo", **facts)
    return Status.ERROR if twice or kie.paid != len(_PROMPTS) else None
