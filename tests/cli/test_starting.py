"""How the program starts: imports and cost, help, version, wrong usage, and output that goes nowhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import IMPORT_ROOT
from programs import FAST, TASK, Command, Outcome, against
from work import calls

import kie4o
from kie4o.cli.main import COMMANDS
from kie4o.emulator import Emulator

pytestmark = pytest.mark.once

NAMES = [name for name, _, _ in COMMANDS if not name.startswith("-")]
SOURCE = Path(__file__)  # a file that is there
A_STORE = "expected a file such as run.db, or postgresql://user@host/database"
LOADED = """
import sys
from kie4o.cli.main import run
status = run(sys.argv[1:])
print(status, *(name for name in ("aiohttp", "kie4o.client", "asyncio") if name in sys.modules))
"""
HELP = """
import runpy
runpy.run_module("kie4o", run_name="__main__")
"""
BARE = """
import cyclopts
app = cyclopts.App()
@app.default
def main(number: int = 1): "Prints a number."
app(["--help"])
"""


def python(program: str, *arguments: str) -> str:
    """What a program prints on stdout."""
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=IMPORT_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


@pytest.mark.parametrize(
    ("arguments", "loaded"),
    [
        (["--help"], "0"),
        (["--version"], "0"),
        (["generat"], "2"),
        (["generate", "A", "--size", "9:9"], "2"),
        *((["--help", name], "0") for name in NAMES),
        *(([name, "--nonsense"], "2") for name in NAMES),
        (["credits"], "2 aiohttp kie4o.client asyncio"),  # the control: without a key, with a client
    ],
    ids=" ".join,
)
def test_help_version_and_wrong_usage_import_no_client(
    arguments: list[str], loaded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither aiohttp nor the client is imported before a command needs it."""
    monkeypatch.delenv("KIE_API_KEY", raising=False)
    assert python(LOADED, *arguments).splitlines()[-1] in (loaded, f"{loaded} asyncio")


def test_help_costs_little() -> None:
    """Less work than the help of a program of three lines that uses cyclopts: 0.84 times as many calls.

    The control, help that imports aiohttp as well, is more work.
    """
    ours, bare, heavy = (calls(program, "--help") for program in (HELP, BARE, f"import aiohttp\n{HELP}"))
    assert ours < bare < heavy


async def test_version(tmp_path: Path) -> None:
    """`kie4o --version` prints the version of the package."""
    assert await Command(tmp_path, "--version").run() == Outcome(0, f"{kie4o.__version__}\n", "")


async def test_the_package_is_the_program(tmp_path: Path) -> None:
    """`python -m kie4o` is `kie4o`: it prints help under that name, with every command."""
    outcome = await Command(tmp_path, "--help", program=("-m", "kie4o")).run()
    assert (outcome.status, outcome.err) == (0, "")
    assert "Usage: kie4o COMMAND" in outcome.out
    assert all(f" {name} " in outcome.out for name in NAMES)


@pytest.mark.parametrize("command", NAMES)
async def test_help_of_a_command(tmp_path: Path, command: str) -> None:
    """`kie4o COMMAND --help` is status 0, and shows no values of Python."""
    outcome = await Command(tmp_path, command, "--help").run()
    assert (outcome.status, outcome.err) == (0, "")
    assert f"Usage: kie4o {command}" in outcome.out
    assert not [words for words in ("()", "None", "False", "True", "ARGS", "\x1b") if words in outcome.out]


async def test_a_usage_names_the_arguments(tmp_path: Path) -> None:
    """As their descriptions below it do."""
    for command, words in (("generate", "[PROMPT...]"), ("wait", "TASK..."), ("gallery", "[DIR]")):
        outcome = await Command(tmp_path, command, "--help").run()
        assert outcome.out.splitlines()[0] == f"Usage: kie4o {command} [OPTIONS] {words}"


async def test_the_help_names_every_variable(tmp_path: Path) -> None:
    """Those that a client reads."""
    words = " ".join((await Command(tmp_path, "--help").run()).out.split())
    assert "Settings: KIE_API_KEY, KIE_BASE_URL, KIE_UPLOAD_URL, KIE_WEBHOOK_KEY." in words


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("generat", "A"), "unknown command 'generat': did you mean generate?"),
        (("xyz", "A"), "unknown command 'xyz': expected one of generate, batch, wait, "),
        (("--verison",), "unknown option '--verison': did you mean --version?"),
        (("wait",), "TASK is missing; see kie4o wait --help"),
        (("wait", TASK, "--name"), "--name needs a value; see kie4o wait --help"),
        (("status", TASK, "-"), "unexpected argument '-'; see kie4o status --help"),
        (("wait", "no id"), "invalid TASK 'no id': expected the id of a submitted task"),
        (("credits", "--jsn"), "Unknown option: --jsn. Did you mean --json?"),
        (("demo", "--speed", "0"), 'Invalid value "0.0" for --speed. Must be >= 0.1.'),
        (("emulator", "--speed", "0"), "invalid --speed=0.0: expected a number above 0"),
        (("emulator", "--outcome", "fail"), 'Invalid value "fail" for --outcome.'),
        (("unfinished", "--store", "no.db"), "invalid --store 'no.db': expected the file of an earlier run"),
        (("resume",), "--store is missing; see kie4o resume --help"),
        (("resume", "--stor", "run.db"), "--store is missing; did you mean it by --stor?"),
        (("settle", "k1", "--store", "no.db"), "expected either --task ID or --not-charged"),
        (
            ("settle", "", "--store", "no.db", "--not-charged"),
            "invalid KEY '': expected a key or a ref, as kie4o unfinished lists them",
        ),
        (("upload", "no.png"), "cannot read FILE 'no.png': No such file or directory"),
        (("listen", "--port", "70000"), 'Invalid value "70000" for --port.'),
        *(
            (
                ("listen", "--allow-unsigned", "--path", path),
                f"invalid --path '{path}': expected a path such as /kie/callback or /kie/{{ref}}",
            )
            for path in ("kie", "", "/{a", "/{x:(}")
        ),
        (
            ("listen", "--allow-unsigned", "--host", "no.such.invalid"),
            "cannot listen at --host no.such.invalid --port 8080: ",
        ),
        (("credits", "--speed", "inf"), "invalid --speed=inf: expected a positive number"),
        (("wait", TASK, "--timeout", "inf"), "invalid --timeout=inf: expected a positive number of seconds"),
        (("wait", TASK, "--store", "."), f"invalid --store='.': {A_STORE}"),
        (("wait", TASK, "--store", "sub/"), f"invalid --store='sub/': {A_STORE}"),
        (("wait", TASK, "--store", ".."), f"invalid --store='..': {A_STORE}"),
        (("wait", TASK, "--store", "http://x"), f"invalid --store='http://...': {A_STORE}"),
        (("upload", str(SOURCE), "--path", "../x"), "invalid --path='../x': expected directories such as"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
async def test_wrong_usage_is_status_2(tmp_path: Path, arguments: tuple[str, ...], line: str) -> None:
    """One line, and with --json one object beside it; nothing is sent."""
    environment = {"KIE_API_KEY": "k-123", "KIE_BASE_URL": "http://127.0.0.1:9"}
    outcome = await Command(tmp_path, *arguments, **environment).run()
    assert (outcome.status, outcome.out) == (2, "")
    [said] = outcome.notes
    assert said.startswith(line)
    if arguments[0] != "emulator":
        outcome = await Command(tmp_path, *arguments, "--json", **environment).run()
        assert outcome.status == 2
        record = json.loads(outcome.out)
        assert record.pop("error") in ("UsageError", "ConfigurationError", "InvalidRequestError")
        assert record == {"message": said, "task_id": None}


async def test_a_file_that_is_no_store_is_status_2(tmp_path: Path) -> None:
    """Nothing is sent: a folder, and what another program has written."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    environment = {"KIE_API_KEY": "k-123", "KIE_BASE_URL": "http://127.0.0.1:9"}
    outcome = await Command(tmp_path, "wait", TASK, "--store", "runs", **environment).run()
    file = Path("runs", "run.db")
    assert outcome.status == 2
    assert outcome.notes[0].endswith(
        f"cannot be used: it is a folder; use a file in it, such as {tmp_path / file}"
    )
    outcome = await Command(tmp_path, "spent", "--store", "notes.txt", **environment).run()
    assert outcome.status == 2
    assert outcome.notes == [f"{tmp_path / 'notes.txt'} is not a kie4o store; use another file"]


async def test_no_key_names_the_variable(tmp_path: Path) -> None:
    """Without a key one line says which variable to set, and nothing is sent."""
    for arguments in (("generate", "A calm lake"), ("wait", "0" * 32), ("credits",)):
        outcome = await Command(tmp_path, *arguments, KIE_API_KEY=" ").run()
        assert outcome.status == 2
        assert outcome.notes == ["no API key; create one at kie.ai/api-key and set KIE_API_KEY"]


async def test_without_cyclopts_it_says_what_to_install(tmp_path: Path) -> None:
    """Without the extra the program prints one line with the remedy, and the status is 1."""
    program = ("-c", "import sys; sys.modules['cyclopts'] = None; from kie4o.cli import main; main()")
    outcome = await Command(tmp_path, program=program).run()
    remedy = "in a checkout of kie4o, run: pip install '.[cli]'"
    assert outcome == Outcome(1, "", f"kie4o: the command line needs cyclopts; {remedy}\n")


@pytest.mark.posix("pipes whose reader has gone")
async def test_a_reader_that_goes_away_ends_nothing(tmp_path: Path) -> None:
    """`kie4o generate ... | true` waits for and saves what it has paid, and says nothing of the pipe."""
    reading, writing = os.pipe()
    os.close(reading)
    async with Emulator(clock="real", **FAST) as kie:
        process = await against(kie, tmp_path, "generate", "One", "Two").start(stdout=writing, stdin=None)
        os.close(writing)
        _, err = await process.communicate()
    assert process.returncode == 0
    assert len(list(tmp_path.glob("*.png"))) == 2
    assert b"roken" not in err
    assert b"Traceback" not in err
    reading, writing = os.pipe()
    os.close(reading)
    process = await Command(tmp_path, "--help").start(stdout=writing, stdin=None)
    os.close(writing)
    assert (await process.communicate())[1] == b""
    assert process.returncode == 0


@pytest.mark.posix("/dev/full")
async def test_output_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """A full disk under stdout is one line and status 1."""
    with Path("/dev/full").open("wb") as full:
        async with Emulator(clock="real") as kie:
            process = await against(kie, tmp_path, "credits").start(stdout=full, stdin=None)
            _, err = await process.communicate()
    assert process.returncode == 1
    assert err == b"kie4o: No space left on device\n"


async def test_completion_is_written_for_a_shell(tmp_path: Path) -> None:
    """`--install-completion` writes a script that knows commands and options."""
    outcome = await Command(
        tmp_path, "--install-completion", "--shell", "bash", "--output", "kie4o.sh", HOME=str(tmp_path)
    ).run()
    assert (outcome.status, outcome.err) == (0, "")
    outcome = await Command(tmp_path, "--install-completion", "--shell", "bash", "--output", ".").run()
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.notes[0].startswith("cannot write to --output '.': ")
    script = (tmp_path / "kie4o.sh").read_text()
    assert "--no-wait" in script
    assert "unfinished" in script
