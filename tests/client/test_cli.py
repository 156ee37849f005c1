"""The command line as a person meets it: words in; lines, files and an exit status out.

Every command is a process of its own against an emulator in this one, with an environment of its
own, and with warnings as errors, so that whatever it leaves open shows.
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
import pytest

import kie4o
from kie4o.emulator import Emulator, pictures

ROOT = Path(kie4o.__file__).parents[1]
MODULE = ("-m", "kie4o.cli")
FAST = {"speed": 20.0, "duration": 10.0}  # a task takes half a second


@attrs.frozen
class Outcome:
    status: int
    out: str
    err: str

    @property
    def notes(self) -> list[str]:
        """The lines for the person, without the progress."""
        return [line for line in self.err.splitlines() if not line.startswith("   ")]


class Command:
    """One run of the command line; its folder is empty and its environment is what is given."""

    def __init__(
        self, folder: Path, *words: str, program: Sequence[str] = MODULE, **environment: str
    ) -> None:
        self.folder, self.words, self.program = folder, words, program
        self.environment = {"PYTHONPATH": str(ROOT), "PATH": "", **environment}

    async def start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", *self.program, *self.words),
            cwd=self.folder,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # A job in the background of a shell ignores SIGINT, and its children would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    async def run(self) -> Outcome:
        return await ended(await self.start())


async def ended(process: asyncio.subprocess.Process, said: bytes = b"") -> Outcome:
    """What came of it; a traceback is never right."""
    try:
        out, err = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    outcome = Outcome(process.returncode or 0, out.decode(), (said + err).decode())
    assert "Traceback" not in outcome.err
    assert "Warning" not in outcome.err
    return outcome


def against(kie: Emulator, folder: Path, *words: str, key: str = "k-123") -> Command:
    return Command(folder, *words, KIE_BASE_URL=kie.url, KIE_API_KEY=key)


def size_of_png(path: Path) -> tuple[int, int]:
    """Width and height of a PNG whose every chunk is whole, up to its end."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, kinds = 8, []
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        assert (
            zlib.crc32(data[at + 4 : at + 8 + length]) == struct.unpack_from(">I", data, at + 8 + length)[0]
        )
        kinds.append(kind)
        at += 12 + length
    assert kinds[-1] == b"IEND"
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


# -- demo ----------------------------------------------------------------------------------------


async def test_demo_saves_eight_pictures_without_a_key(tmp_path: Path) -> None:
    """`kie4o demo` needs no setting at all and writes eight whole PNGs of different shapes."""
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
    """The demo talks to its own emulator, whatever the environment says about Kie."""
    async with Emulator() as kie:
        environment = {"KIE_BASE_URL": kie.url, "KIE_UPLOAD_URL": kie.url, "KIE_API_KEY": "k-123"}
        outcome = await Command(tmp_path, "demo", "--speed", "40", "--directory", "here", **environment).run()
        assert outcome.status == 0
        assert not kie.requests
    assert len(list((tmp_path / "here").iterdir())) == 8


async def test_demo_is_interrupted_cleanly(tmp_path: Path) -> None:
    """Ctrl-C in the middle of the demo ends eight tasks and the emulator in one line."""
    process = await Command(tmp_path, "demo", "--speed", "1").start()
    assert process.stdout is not None
    while b"running" not in await process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    outcome = await ended(process)
    assert outcome.status == 130
    assert outcome.err == "kie4o: interrupted\n"
    assert not list(tmp_path.rglob("*.png"))


# -- generate, wait, credits ---------------------------------------------------------------------


async def test_generate_saves_and_prints_the_paths(tmp_path: Path) -> None:
    """Paths on stdout, one a line; the task id on stderr before the task has ended."""
    async with Emulator(**FAST) as kie:
        words = ("generate", "A calm [bold] lake", "--size", "3:2", "--n-variants", "2", "--directory", "out")
        outcome = await against(kie, tmp_path, *words).run()
        [task] = kie.tasks.values()
    assert outcome.status == 0
    paths = [Path(line) for line in outcome.out.splitlines()]
    assert paths == [tmp_path / "out" / f"{task.id}_{index}.png" for index in (0, 1)]
    assert [size_of_png(path) for path in paths] == [(768, 512)] * 2
    assert task.request == {"prompt": "A calm [bold] lake", "size": "3:2", "nVariants": 2}
    assert outcome.notes == [f"kie4o: task {task.id} (kie4o wait {task.id} takes it up again)"]
    assert "A calm [bold] lake: succeeded" in outcome.err


async def test_generate_uploads_local_files_first(tmp_path: Path) -> None:
    """A path in --file is uploaded, a URL is passed on, and --json gives one object."""
    (tmp_path / "lake.png").write_bytes(pictures.BLANK)
    async with Emulator(**FAST) as kie:
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


async def test_a_task_that_takes_too_long_is_taken_up_again(tmp_path: Path) -> None:
    """After --timeout the status is 1 and the task id is told; `kie4o wait` then saves its image."""
    async with Emulator(**FAST) as kie:
        outcome = await against(kie, tmp_path, "generate", "A slow lake", "--timeout", "0.1").run()
        [task] = kie.tasks.values()
        assert outcome.status == 1
        assert f"kie4o: to go on with task {task.id}: kie4o wait {task.id}" in outcome.notes
        outcome = await against(kie, tmp_path, "wait", task.id, "--directory", "out").run()
        assert kie.accepted == 1
    assert outcome.status == 0
    assert outcome.out == f"{tmp_path / 'out' / task.id}_0.png\n"
    assert size_of_png(tmp_path / "out" / f"{task.id}_0.png")


async def test_credits(tmp_path: Path) -> None:
    """`kie4o credits` prints the number and nothing else."""
    async with Emulator(credits=12.5) as kie:
        outcome = await against(kie, tmp_path, "credits").run()
    assert outcome == Outcome(0, "12.5\n", "")


async def test_version(tmp_path: Path) -> None:
    """`kie4o --version` prints the version of the package."""
    assert await Command(tmp_path, "--version").run() == Outcome(0, f"{kie4o.__version__}\n", "")


# -- failures: one line and a status -------------------------------------------------------------


async def test_a_wrong_key_is_one_line_without_the_key(tmp_path: Path) -> None:
    """401 is status 1 and a sentence that names KIE_API_KEY and never shows it."""
    async with Emulator(api_key="right") as kie:
        for words in (("credits",), ("generate", "A calm lake")):
            outcome = await against(kie, tmp_path, *words, key="wrong-key-9876").run()
            assert outcome.status == 1
            [line] = outcome.notes
            assert "401" in line
            assert "KIE_API_KEY" in line
            assert "wrong-key" not in outcome.err + outcome.out
        assert kie.accepted == 0


async def test_no_key_names_the_variable(tmp_path: Path) -> None:
    """Without a key the one line says which variable to set, before any network use."""
    outcome = await Command(tmp_path, "generate", "A calm lake").run()
    assert outcome.status == 1
    [line] = outcome.err.splitlines()
    assert "KIE_API_KEY" in line


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "A calm lake", "--sise", "3:2"),
        ("generate", "A calm lake", "--size", "16:9"),
        ("generate", "A calm lake", "--n-variants", "3"),
        ("generate",),
        ("generat", "A calm lake"),
        ("demo", "--speed", "0"),
    ],
    ids=" ".join,
)
async def test_wrong_usage_is_status_2(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A word that the command line does not know is one line and status 2; nothing is sent."""
    outcome = await Command(tmp_path, *words, KIE_API_KEY="k-123", KIE_BASE_URL="http://127.0.0.1:9").run()
    assert outcome.status == 2
    assert outcome.out == ""
    [line] = outcome.err.splitlines()
    assert line.startswith("kie4o: ")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("generate", " "), "prompt"),
        (("generate", "A calm lake", "--mask", "mask.png"), "mask_url"),
        (("generate", "A calm lake", "--file", "missing.png"), "missing.png"),
        (("generate", "A calm lake", "--timeout", "-1"), "timeout"),
        (("generate", "A calm lake", "--directory", "taken/out"), "taken"),
        (("wait", "no id"), "no id"),
    ],
)
async def test_what_cannot_succeed_is_not_paid(tmp_path: Path, words: tuple[str, ...], named: str) -> None:
    """Values that cannot work are refused in one line before anything is submitted."""
    (tmp_path / "taken").write_text("a file, not a folder")
    async with Emulator() as kie:
        outcome = await against(kie, tmp_path, *words).run()
        assert kie.posts == 0
    assert outcome.status == 1
    [line] = outcome.notes
    assert named in line


async def test_a_refused_connection_is_one_line(tmp_path: Path) -> None:
    """Nobody listens: status 1, one line that names the address, and that nothing was charged."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    environment = {"KIE_API_KEY": "k-123", "KIE_BASE_URL": url}
    for words in (("credits",), ("generate", "A calm lake")):
        outcome = await Command(tmp_path, *words, **environment).run()
        assert outcome.status == 1
        [line] = outcome.notes
        assert url in line
    assert "nothing was charged" in line


async def test_a_failed_task_says_why(tmp_path: Path) -> None:
    """A task that Kie ended is status 1 with Kie's reason, and nothing to go on with."""
    async with Emulator(**FAST, outcome="policy") as kie:
        outcome = await against(kie, tmp_path, "generate", "A calm lake").run()
    assert outcome.status == 1
    assert "content policies" in outcome.notes[-1]
    assert "to go on" not in outcome.err


async def test_without_cyclopts_it_says_what_to_install(tmp_path: Path) -> None:
    """The entry point without the extra is one line with the remedy, and status 1."""
    program = ("-c", "import sys; sys.modules['cyclopts'] = None; from kie4o.cli import main; main()")
    outcome = await Command(tmp_path, program=program).run()
    assert outcome == Outcome(1, "", "kie4o: the command line needs cyclopts: pip install 'kie4o[cli]'\n")


# -- Ctrl-C --------------------------------------------------------------------------------------


async def read_until(process: asyncio.subprocess.Process, words: bytes) -> bytes:
    assert process.stderr is not None
    said = b""
    while words not in said:
        line = await asyncio.wait_for(process.stderr.readline(), 30)
        assert line, said
        said += line
    return said


async def test_interrupted_while_waiting(tmp_path: Path) -> None:
    """Ctrl-C during the wait is status 130, tells the task id and how to go on, leaves no file."""
    async with Emulator(duration=1000.0) as kie:
        process = await against(kie, tmp_path, "generate", "A calm lake").start()
        said = await read_until(process, b"kie4o wait")
        process.send_signal(signal.SIGINT)
        outcome = await ended(process, said)
        [task] = kie.tasks.values()
    assert outcome.status == 130
    assert outcome.out == ""
    assert outcome.notes[-2:] == [
        f"kie4o: to go on with task {task.id}: kie4o wait {task.id}",
        "kie4o: interrupted",
    ]
    assert not list(tmp_path.iterdir())


async def test_interrupted_while_the_answer_is_under_way(tmp_path: Path) -> None:
    """Ctrl-C after the request has left waits for the answer: the paid task is named all the same."""
    async with Emulator(duration=1000.0, latency=1.0) as kie:
        process = await against(kie, tmp_path, "generate", "A calm lake").start()
        while not kie.tasks:
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        outcome = await ended(process)
        [task] = kie.tasks.values()
    assert outcome.status == 130
    assert outcome.notes == [
        f"kie4o: to go on with task {task.id}: kie4o wait {task.id}",
        "kie4o: interrupted",
    ]


async def test_interrupted_before_the_request_has_left(tmp_path: Path) -> None:
    """Ctrl-C while nothing has left (a pause after a refusal) calls the submit off: nothing is paid."""
    async with Emulator() as kie:
        kie.next(answer=550)
        process = await against(kie, tmp_path, "generate", "A calm lake").start()
        while not kie.posts:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # for the answer to arrive; the pause after it is half a minute
        process.send_signal(signal.SIGINT)
        outcome = await ended(process)
        assert (kie.posts, kie.accepted) == (1, 0)
    assert outcome.status == 130
    assert outcome.notes == ["kie4o: interrupted"]
