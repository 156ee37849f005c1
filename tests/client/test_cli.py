"""The command line as a person meets it: its output, its files and its exit status.

Every command runs in its own process with its own environment, against an emulator in this process.
Warnings are errors there, which reveals anything that a command leaves open.
"""

import asyncio
import json
import signal
import socket
import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import attrs
import portable
import pytest
from paths import IMPORT_ROOT

import kie4o
from kie4o.cli.main import message_of
from kie4o.emulator import Emulator, pictures
from kie4o.errors import DownloadError, RateLimitError, TaskTimeoutError, invalid

MODULE = ("-m", "kie4o.cli")
PACKAGE = ("-m", "kie4o")
PYTHON = ("await ", "client.", "=...", "_url=", "rate_limit", "wait_timeout")  # not for a terminal
FAST = {"speed": 20.0, "duration": 10.0}  # a task takes half a second


@attrs.frozen
class Outcome:
    status: int
    out: str
    err: str

    @property
    def notes(self) -> list[str]:
        """The lines of stderr, without the progress."""
        return [line for line in self.err.splitlines() if not line.startswith("   ")]


class Command:
    """One run of the command line, in this folder and with only this environment."""

    def __init__(
        self, folder: Path, *arguments: str, program: Sequence[str] = MODULE, **environment: str
    ) -> None:
        self.folder, self.arguments, self.program = folder, arguments, program
        self.environment = portable.environment(PYTHONPATH=str(IMPORT_ROOT), PATH="", **environment)

    async def start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", *self.program, *self.arguments),
            cwd=self.folder,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            **portable.interruptible(),
        )

    async def run(self) -> Outcome:
        return await outcome_of(await self.start())


async def outcome_of(process: asyncio.subprocess.Process, stderr: bytes = b"") -> Outcome:
    """The outcome of a process that ends within 30 seconds; a traceback or a warning fails the test."""
    try:
        out, err = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    shown, said = (text.decode().replace("\r\n", "\n") for text in (out, stderr + err))
    outcome = Outcome(process.returncode or 0, shown, said)
    assert "Traceback" not in outcome.err
    assert "Warning" not in outcome.err
    assert not [words for words in PYTHON if words in outcome.err + outcome.out]
    return outcome


def against(kie: Emulator, folder: Path, *arguments: str, key: str = "k-123") -> Command:
    return Command(folder, *arguments, KIE_BASE_URL=kie.url, KIE_API_KEY=key)


def size_of_png(path: Path) -> tuple[int, int]:
    """Width and height of a PNG, after a check of every chunk."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    offset, kinds = 8, []
    while offset < len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        end = offset + 8 + length
        assert struct.unpack_from(">I", data, end)[0] == zlib.crc32(data[offset + 4 : end])
        kinds.append(kind)
        offset = end + 4
    assert kinds[-1] == b"IEND"
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


# -- demo ----------------------------------------------------------------------------------------


async def test_demo_saves_eight_pictures_without_a_key(tmp_path: Path) -> None:
    """`kie4o demo` needs no settings and saves eight valid PNGs in three aspect ratios."""
    outcome = await Command(tmp_path, "demo", "--speed", "40").run()
    assert outcome.status == 0
    assert outcome.err == ""
    pictures = sorted((tmp_path / "kie4o-demo").iterdir())
    assert len(pictures) == 8
    shapes = [size_of_png(path) for path in pictures]
    assert len({width / height for width, height in shapes}) == 3
    assert str(tmp_path / "kie4o-demo") in outcome.out
    assert all(path.name in outcome.out for path in pictures)
    assert "emulator" in outcome.out
    assert "no API key is needed" in outcome.out
    assert "\x1b" not in outcome.out


async def test_demo_never_leaves_the_machine(tmp_path: Path) -> None:
    """The demo uses its own emulator, whatever the environment variables say."""
    async with Emulator(clock="real") as kie:
        environment = {"KIE_BASE_URL": kie.url, "KIE_UPLOAD_URL": kie.url, "KIE_API_KEY": "k-123"}
        outcome = await Command(tmp_path, "demo", "--speed", "40", "--directory", "here", **environment).run()
        assert outcome.status == 0
        assert not kie.requests
    assert len(list((tmp_path / "here").iterdir())) == 8


@pytest.mark.posix("SIGINT for a child process")
async def test_demo_is_interrupted_cleanly(tmp_path: Path) -> None:
    """Ctrl-C during the demo is one line and status 130, and no picture is saved."""
    process = await Command(tmp_path, "demo", "--speed", "1").start()
    assert process.stdout is not None
    while b"running" not in await process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    outcome = await outcome_of(process)
    assert outcome.status == 130
    assert outcome.err == "kie4o: interrupted\n"
    assert not list(tmp_path.rglob("*.png"))


# -- generate, wait, credits ---------------------------------------------------------------------


async def test_generate_saves_and_prints_the_paths(tmp_path: Path) -> None:
    """`generate` prints one path per line on stdout, and the task id on stderr once it is known."""
    async with Emulator(clock="real", **FAST) as kie:
        words = ("generate", "A calm [bold] lake", "--size", "3:2", "--n-variants", "2", "--directory", "out")
        outcome = await against(kie, tmp_path, *words).run()
        [task] = kie.tasks.values()
    assert outcome.status == 0
    paths = [Path(line) for line in outcome.out.splitlines()]
    assert paths == [tmp_path / "out" / f"{task.id}_{index}.png" for index in (0, 1)]
    assert [size_of_png(path) for path in paths] == [(768, 512)] * 2
    assert task.request == {"prompt": "A calm [bold] lake", "size": "3:2", "nVariants": 2}
    assert outcome.notes == [f"kie4o: task {task.id} was submitted; to resume: kie4o wait {task.id}"]
    assert "A calm [bold] lake: succeeded" in outcome.err


async def test_generate_uploads_local_files_first(tmp_path: Path) -> None:
    """A path in --file is uploaded, a URL is passed on, and --json prints one object."""
    (tmp_path / "lake.png").write_bytes(pictures.BLANK)
    async with Emulator(clock="real", **FAST) as kie:
        words = ("--file", "lake.png", "--file", "https://example.com/a.png", "--enhance", "--name", "new")
        outcome = await against(kie, tmp_path, "generate", "Add a boat", *words, "--json").run()
        [task] = kie.tasks.values()
        uploaded, passed_on = task.request["filesUrl"]
        assert uploaded.startswith(kie.url)
        assert uploaded.endswith(".png")
    assert outcome.status == 0
    assert passed_on == "https://example.com/a.png"
    assert task.request["isEnhance"] is True
    report = json.loads(outcome.out)
    assert report["task_id"] == task.id
    assert report["files"] == [str(tmp_path / "new.png")]
    assert len(report["urls"]) == 1


async def test_a_task_that_timed_out_is_resumed(tmp_path: Path) -> None:
    """After --timeout the status is 1 and a line says how to resume; `kie4o wait` saves the image."""
    async with Emulator(clock="real", **FAST) as kie:
        outcome = await against(kie, tmp_path, "generate", "A slow lake", "--timeout", "0.1").run()
        [task] = kie.tasks.values()
        assert outcome.status == 1
        assert outcome.notes[1:] == [
            f"kie4o: timed out waiting for task {task.id}; to resume: kie4o wait {task.id}"
        ]
        outcome = await against(kie, tmp_path, "wait", task.id, "--directory", "out").run()
        assert kie.paid == 1
    assert outcome.status == 0
    assert outcome.out == f"{tmp_path / 'out' / task.id}_0.png\n"
    assert size_of_png(tmp_path / "out" / f"{task.id}_0.png")


async def test_credits(tmp_path: Path) -> None:
    """`kie4o credits` prints only the number."""
    async with Emulator(clock="real", credits=12.5) as kie:
        outcome = await against(kie, tmp_path, "credits").run()
    assert outcome == Outcome(0, "12.5\n", "")


async def test_version(tmp_path: Path) -> None:
    """`kie4o --version` prints the version of the package."""
    assert await Command(tmp_path, "--version").run() == Outcome(0, f"{kie4o.__version__}\n", "")


async def test_the_package_is_the_program(tmp_path: Path) -> None:
    """`python -m kie4o` is `kie4o`: it prints the version, and help under that name."""
    outcome = await Command(tmp_path, "--version", program=PACKAGE).run()
    assert outcome == Outcome(0, f"{kie4o.__version__}\n", "")
    outcome = await Command(tmp_path, "--help", program=PACKAGE).run()
    assert (outcome.status, outcome.err) == (0, "")
    assert "Usage: kie4o COMMAND" in outcome.out
    assert all(f" {name} " in outcome.out for name in ("credits", "demo", "emulator", "generate", "wait"))


@pytest.mark.parametrize("command", ["credits", "demo", "emulator", "generate", "wait"])
async def test_help_of_a_command(tmp_path: Path, command: str) -> None:
    """`kie4o COMMAND --help` is status 0, and describes every option."""
    outcome = await Command(tmp_path, command, "--help").run()
    assert (outcome.status, outcome.err) == (0, "")
    assert f"Usage: kie4o {command}" in outcome.out
    assert "()" not in outcome.out


# -- failures: one line and a status -------------------------------------------------------------


async def test_a_wrong_key_is_one_line_without_the_key(tmp_path: Path) -> None:
    """401 is status 1 and one line that names KIE_API_KEY and does not show the key."""
    async with Emulator(clock="real", api_key="right") as kie:
        for arguments in (("credits",), ("generate", "A calm lake")):
            outcome = await against(kie, tmp_path, *arguments, key="wrong-key-9876").run()
            assert outcome.status == 1
            [line] = outcome.notes
            assert "401" in line
            assert "KIE_API_KEY" in line
            assert "wrong-key" not in outcome.err + outcome.out
        assert kie.paid == 0


async def test_no_key_names_the_variable(tmp_path: Path) -> None:
    """Without a key one line says which variable to set, and nothing is sent."""
    for arguments in (("generate", "A calm lake"), ("wait", "0" * 32), ("credits",)):
        outcome = await Command(tmp_path, *arguments, KIE_API_KEY=" ").run()
        assert outcome.status == 1
        [line] = outcome.err.splitlines()
        assert "KIE_API_KEY" in line


async def test_an_empty_balance_names_the_command_that_prints_it(tmp_path: Path) -> None:
    """402 is status 1, with a remedy in terms of the command line."""
    async with Emulator(clock="real", credits=0.0) as kie:
        outcome = await against(kie, tmp_path, "generate", "A calm lake").run()
    assert outcome.status == 1
    assert "kie4o credits" in outcome.notes[-1]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            RateLimitError("too many", code=429),
            "Kie returned 429: too many. Something else uses this account",
        ),
        (
            TaskTimeoutError("...", task_id="task1"),
            "timed out waiting for task task1; to resume: kie4o wait task1",
        ),
        (invalid("mask_url", "a.png", "a URL"), "invalid --mask='a.png': expected a URL"),
        (invalid("files_url[1]", "a.png", "a URL"), "invalid --file[1]='a.png': expected a URL"),
        (invalid("size", "16:9", "mask_url=x"), "invalid size='16:9': expected mask_url=x"),
        (DownloadError("https://example.com/?source=a is gone"), "https://example.com/?source=a is gone"),
        (FileNotFoundError(2, "No such file", "a.png"), "[Errno 2] No such file: 'a.png'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_messages_are_about_the_command_line(error: Exception, expected: str) -> None:
    """Errors name commands and options instead of calls and arguments; other text is left alone."""
    assert message_of(error).startswith(expected)


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "A calm lake", "--sise", "3:2"),
        ("generate", "A calm lake", "--size", "16:9"),
        ("generate", "A calm lake", "--n-variants", "3"),
        ("generate",),
        ("generat", "A calm lake"),
        ("demo", "--speed", "0"),
        ("emulator", "--speed", "0"),
        ("emulator", "--outcome", "fail"),
    ],
    ids=" ".join,
)
async def test_wrong_usage_is_status_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """An unknown option or value is one line and status 2; nothing is sent."""
    outcome = await Command(
        tmp_path, *arguments, KIE_API_KEY="k-123", KIE_BASE_URL="http://127.0.0.1:9"
    ).run()
    assert outcome.status == 2
    assert outcome.out == ""
    [line] = outcome.err.splitlines()
    assert line.startswith("kie4o: ")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("generate", " "), "prompt"),
        (("generate", "A calm lake", "--mask", "mask.png"), "--mask="),
        (("generate", "A calm lake", "--file", "missing.png"), "missing.png"),
        (("generate", "A calm lake", "--timeout", "-1"), "--timeout="),
        (("generate", "A calm lake", "--directory", "taken/out"), "taken"),
        (("wait", "no id"), "no id"),
    ],
)
async def test_what_cannot_succeed_is_not_paid(
    tmp_path: Path, arguments: tuple[str, ...], named: str
) -> None:
    """Values that cannot work are one line, which names the option, and nothing is submitted."""
    (tmp_path / "taken").write_text("a file, not a folder")
    async with Emulator(clock="real") as kie:
        outcome = await against(kie, tmp_path, *arguments).run()
        assert len(kie.submits) == 0
    assert outcome.status == 1
    [line] = outcome.notes
    assert named in line


async def test_a_refused_connection_is_one_line(tmp_path: Path) -> None:
    """A refused connection is status 1 and one line with the address, which says that nothing was charged."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    environment = {"KIE_API_KEY": "k-123", "KIE_BASE_URL": url}
    for arguments in (("credits",), ("generate", "A calm lake")):
        outcome = await Command(tmp_path, *arguments, **environment).run()
        assert outcome.status == 1
        [line] = outcome.notes
        assert url in line
    assert "nothing was charged" in line


async def test_a_failed_task_says_why(tmp_path: Path) -> None:
    """A failed task is status 1 with Kie's reason, and no way to resume is offered."""
    async with Emulator(clock="real", **FAST, outcome="policy") as kie:
        outcome = await against(kie, tmp_path, "generate", "A calm lake").run()
    assert outcome.status == 1
    assert "content policies" in outcome.notes[-1]
    assert "is paid" not in outcome.err


async def test_without_cyclopts_it_says_what_to_install(tmp_path: Path) -> None:
    """Without the extra the program prints one line with the remedy, and the status is 1."""
    program = ("-c", "import sys; sys.modules['cyclopts'] = None; from kie4o.cli import main; main()")
    outcome = await Command(tmp_path, program=program).run()
    remedy = "in a checkout of kie4o, run: pip install '.[cli]'"
    assert outcome == Outcome(1, "", f"kie4o: the command line needs cyclopts; {remedy}\n")


# -- Ctrl-C --------------------------------------------------------------------------------------


async def read_until(process: asyncio.subprocess.Process, words: bytes) -> bytes:
    assert process.stderr is not None
    stderr = b""
    while words not in stderr:
        line = await asyncio.wait_for(process.stderr.readline(), 30)
        assert line, stderr
        stderr += line
    return stderr


@pytest.mark.posix("SIGINT for a child process")
async def test_interrupted_while_waiting(tmp_path: Path) -> None:
    """Ctrl-C while waiting is status 130, says how to resume and leaves no file."""
    async with Emulator(clock="real", duration=1000.0) as kie:
        process = await against(kie, tmp_path, "generate", "A calm lake").start()
        stderr = await read_until(process, b"kie4o wait")
        process.send_signal(signal.SIGINT)
        outcome = await outcome_of(process, stderr)
        [task] = kie.tasks.values()
    assert outcome.status == 130
    assert outcome.out == ""
    assert outcome.notes[-2:] == [
        f"kie4o: task {task.id} is paid; to resume: kie4o wait {task.id}",
        "kie4o: interrupted",
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.posix("SIGINT for a child process")
async def test_interrupted_before_the_answer(tmp_path: Path) -> None:
    """Ctrl-C after the request was sent waits for its answer, and names the paid task."""
    async with Emulator(clock="real", duration=1000.0, latency=1.0) as kie:
        process = await against(kie, tmp_path, "generate", "A calm lake").start()
        while not kie.tasks:
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        outcome = await outcome_of(process)
        [task] = kie.tasks.values()
    assert outcome.status == 130
    assert outcome.notes == [
        f"kie4o: task {task.id} is paid; to resume: kie4o wait {task.id}",
        "kie4o: interrupted",
    ]


@pytest.mark.posix("SIGINT for a child process")
async def test_interrupted_before_the_request_is_sent(tmp_path: Path) -> None:
    """Ctrl-C during the delay after a refusal cancels the submit: nothing is paid."""
    async with Emulator(clock="real") as kie:
        kie.next(answer=550)
        process = await against(kie, tmp_path, "generate", "A calm lake").start()
        while not len(kie.submits):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # for the answer to arrive; the delay after it is half a minute
        process.send_signal(signal.SIGINT)
        outcome = await outcome_of(process)
        assert (len(kie.submits), kie.paid) == (1, 0)
    assert outcome.status == 130
    assert outcome.notes == ["kie4o: interrupted"]
