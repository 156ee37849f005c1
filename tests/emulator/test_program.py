"""The programs that serve an emulator: their options, their script, what they print, and how they end."""

from __future__ import annotations

import asyncio
import errno
import http.client
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pages import blocks
from paths import IMPORT_ROOT
from portable import PATIENCE, environment, interruptible

from kie4o.emulator import Call, Fault, Outcome
from kie4o.emulator.callbacks import CallRecord
from kie4o.emulator.live_log import ASKED, line_of_callback
from kie4o.emulator.program import OutcomeName
from kie4o.emulator.script import read
from kie4o.emulator.tasks import OUTCOMES

pytestmark = pytest.mark.once

PROGRAMS = {"python": ("-m", "kie4o.emulator"), "kie4o": ("-m", "kie4o", "emulator")}
LAKE = {"prompt": "A calm lake", "size": "1:1"}


async def started(*arguments: str, program: str = "kie4o", folder: Path | None = None) -> Any:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", *PROGRAMS[program], *arguments),
        cwd=folder or IMPORT_ROOT,
        env=environment(PYTHONPATH=str(IMPORT_ROOT)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        **interruptible(),
    )


@asynccontextmanager
async def running(*arguments: str, **how: Any) -> AsyncIterator[tuple[Any, int, list[str]]]:
    """A program that serves on a free port: the process, the port and its first two lines."""
    async with asyncio.timeout(PATIENCE):
        process = await started("--port", "0", *arguments, **how)
        try:
            lines = [(await process.stdout.readline()).decode() for _ in range(2)]
            yield process, int(re.findall(r"127\.0\.0\.1:(\d+)", lines[0])[0]), lines
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


def ask(port: int, method: str, path: str, body: Any = None, key: str = "k-123") -> Any:
    """The decoded answer to one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def submit(port: int, **fields: Any) -> Any:
    return ask(port, "POST", "/api/v1/gpt4o-image/generate", LAKE | fields)


async def refused(*arguments: str, program: str = "kie4o", folder: Path | None = None) -> tuple[int, str]:
    """The status and the one line of a program that does not start."""
    async with asyncio.timeout(PATIENCE):
        process = await started(*arguments, program=program, folder=folder)
        out, err = await process.communicate()
    assert out == b""
    [line] = err.decode().splitlines()
    return process.returncode, line


# -- the two programs ----------------------------------------------------------------------------


@pytest.mark.posix("signals for a child process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("program", PROGRAMS)
async def test_it_serves_until_it_is_stopped(program: str, number: signal.Signals) -> None:
    """Both programs say where they are, answer, and end with status 0 and without a word."""
    async with running("--api-key", "K'1", "--credits", "7", "--quiet", program=program) as (
        process,
        port,
        lines,
    ):
        url = f"http://127.0.0.1:{port}"
        assert url in lines[0]
        assert lines[1] == f"export KIE_BASE_URL={url} KIE_UPLOAD_URL={url} KIE_API_KEY='K'\"'\"'1'\n"
        assert ask(port, "GET", "/api/v1/chat/credit", key="K'1")["data"] == 7
        assert ask(port, "GET", "/api/v1/chat/credit")["code"] == 401
        process.send_signal(number)
        assert await process.communicate() == (b"", b"")
        assert process.returncode == 0


async def test_the_programs_have_the_same_options() -> None:
    """Their helps name the same options, and describe each."""
    named = []
    for program in PROGRAMS:
        process = await started("--help", program=program)
        out, err = await process.communicate()
        assert (process.returncode, err) == (0, b"")
        named.append({*re.findall(r"--[a-z][\w-]+", out.decode())} - {"--help"})
    assert named[0] == named[1]
    assert {"--port", "--speed", "--script", "--credits", "--api-key", "--quiet", "--openapi"} < named[0]


async def test_tasks_end_after_looks() -> None:
    """With --looks a task ends at that status check, and no sooner."""
    async with running("--looks", "2", "--quiet") as (_, port, _):
        task_id = submit(port)["data"]["taskId"]
        path = f"/api/v1/gpt4o-image/record-info?taskId={task_id}"
        assert [ask(port, "GET", path)["data"]["successFlag"] for _ in range(2)] == [0, 1]


def test_every_outcome_can_be_chosen() -> None:
    """The choices of --outcome are the outcomes of the emulator."""
    assert set(OutcomeName.__args__) == set(OUTCOMES)


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_port_in_use_is_one_line(program: str) -> None:
    """The line names the options and the reason of the system; the status is that of wrong usage."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, line = await refused("--port", str(port), program=program)
    assert status == 2
    reason = os.strerror(errno.EADDRINUSE)
    said = f"cannot listen at --host 127.0.0.1 --port {port}: {reason}; --port 0 picks a free one"
    assert line.partition(": ")[2] == said


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--port", "70000"), "invalid --port=70000: expected a number from 0 to 65535"),
        (("--speed", "0"), "invalid --speed=0.0: expected a number above 0"),
        (("--duration=-1",), "invalid --duration=-1.0: expected a number of seconds, 0 or more"),
        (("--callback", "soon"), "invalid --callback='soon': expected one of end, never, twice"),
        (("--api-key", "k", "--limit", "0"), "invalid --limit=0: expected an integer, 1 or more"),
        (
            ("--host", "192.0.2.1"),
            "--host='192.0.2.1' is not on loopback; --allow-remote serves other machines",
        ),
        (
            ("--host", "..", "--allow-remote", "--port", "0"),
            "cannot listen at --host .. --port 0: there is no such host",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
async def test_an_option_that_cannot_be_used_is_one_line(
    arguments: Sequence[str], words: str, program: str
) -> None:
    """Nothing is served, and the line names options and what is allowed; it is wrong usage."""
    status, line = await refused(*arguments, program=program)
    assert status == 2
    assert line.partition(": ")[2].startswith(words)


# -- the live log --------------------------------------------------------------------------------


async def test_each_request_is_one_line() -> None:
    """The time, the kind, what was asked, the answer and the balance; no key, no control character."""
    prompt = "A calm\nlake \x1b[31m" + "with many words " * 8
    async with running("--credits", "13", "--duration", "0") as (process, port, _):
        task_id = submit(port, prompt=prompt)["data"]["taskId"]
        ask(port, "GET", f"/api/v1/gpt4o-image/record-info?taskId={task_id}")
        submit(port)
        submit(port)
        submit(port, size="16:9", prompt="A wide lake")
        ask(port, "GET", "/api/v1/chat/credit")
        ask(port, "GET", "/nowhere", key="k-secret")
        lines = [(await process.stdout.readline()).decode() for _ in range(7)]
    assert all(re.match(r"\d\d:\d\d:\d\d  ", line) and line.endswith(" left)\n") for line in lines)
    shown = "A calm lake ?[31mwith many words with many words with many …"
    assert len(shown) == ASKED
    told = [re.split(r"  +", line.strip())[1:] for line in lines]
    assert told == [
        ["submit", shown, f"task {task_id[:8]}", "(7 left)"],
        ["look", f"task {task_id}", "SUCCESS 1.00", "(7 left)"],
        ["submit", "A calm lake", told[2][2], "(1 left)"],
        ["submit", "A calm lake", told[3][2], "(1 left)"],
        ["submit", "A wide lake", told[4][2], "(1 left)"],
        ["credits", "1", "(1 left)"],
        ["other", "GET /nowhere", "HTTP 404 " + told[6][2].removeprefix("HTTP 404 "), "(1 left)"],
    ]
    assert [line[2][:4] for line in told[2:5]] == ["task", "402 ", "422 "]
    assert "secret" not in "".join(lines)


async def test_callbacks_and_lost_answers_have_lines(tmp_path: Path) -> None:
    """A callback that is not accepted says why; an answer that is lost is none."""
    (tmp_path / "lost.toml").write_text('[[plan]]\nanswer = "dropped"\ncallback = "never"\n', "utf-8")
    options = ("--duration", "0", "--script", "lost.toml")
    async with running(*options, folder=tmp_path) as (process, port, _):
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            submit(port)
        submit(port, callBackUrl=f"http://127.0.0.1:{port}/nowhere")
        lines = []
        while not lines or "callback" not in lines[-1]:
            lines.append((await process.stdout.readline()).decode())
    assert "no answer" in lines[0]
    assert f"http://127.0.0.1:{port}/nowhere" in lines[-1]
    assert "HTTP 404" in lines[-1]


def test_a_repeated_callback_says_so() -> None:
    """The number of the attempt stands there from the second on."""
    record = CallRecord(
        task_id="a", url="http://127.0.0.1/", body=b"", headers={}, attempt=2, at=0, status=500
    )
    line = line_of_callback(record)
    assert (line.answer, line.good) == ("HTTP 500, attempt 2", False)


@pytest.mark.posix("pseudo-terminals")
async def test_a_terminal_has_colours() -> None:
    """On a terminal the answer is coloured, a refusal in another colour; a long line is cut at its end."""
    import pty

    shown, terminal = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kie4o.emulator", "--port", "0"),
            cwd=IMPORT_ROOT,
            env=environment(PYTHONPATH=str(IMPORT_ROOT), TERM="xterm-256color", COLUMNS="200"),
            stdout=terminal,
            stderr=asyncio.subprocess.PIPE,
        )
        text = b""
        async with asyncio.timeout(PATIENCE):
            while b"export" not in text:
                text += await asyncio.to_thread(os.read, shown, 10_000)
            port = int(re.findall(rb"127\.0\.0\.1:(\d+)", text)[0])
            submit(port)
            submit(port, size="16:9")
            while text.count(b" left)") < 2:
                text += await asyncio.to_thread(os.read, shown, 10_000)
            process.terminate()
            await process.communicate()
    finally:
        os.close(terminal)
        os.close(shown)
    assert b"\x1b[32mtask " in text
    assert b"\x1b[1;31m422 " in text


# -- scripts -------------------------------------------------------------------------------------


SCRIPT = """
[settings]
credits = 60
duration = 1.5
webhook_key = "w"
callback = { when = "end", copies = 2 }

[[plan]]
prompt = "A forbidden lake"
outcome = { kind = "failed", code = 501, message = "no" }

[[plan]]
answer = { code = 505, http_status = 500 }

[[plan]]
answer = 550

[[fault]]
kind = "submit"
code = 455
after = 2

[[fault]]
kind = "look"
record = "lag"
times = 2
"""


async def test_a_script_is_settings_and_plans(tmp_path: Path) -> None:
    """Names and numbers are as in Python, and a table is the value that has these fields."""
    file = tmp_path / "faults.toml"
    file.write_text(SCRIPT, "utf-8")
    script = read(file)
    assert script.settings == {
        "credits": 60,
        "duration": 1.5,
        "webhook_key": "w",
        "callback": Call("end", copies=2),
    }
    assert script.plans == [
        {"prompt": "A forbidden lake", "outcome": Outcome("failed", code=501, message="no")},
        {"answer": Fault("submit", code=505, http_status=500)},
        {"answer": 550},
    ]
    assert script.faults == [Fault("submit", code=455, after=2), Fault("look", record="lag", times=2)]


async def test_options_go_before_the_settings_of_a_script(tmp_path: Path) -> None:
    """The script is read by the program, and --credits replaces its balance."""
    (tmp_path / "faults.toml").write_text(SCRIPT, "utf-8")
    options = ("--script", "faults.toml", "--credits", "20", "--quiet")
    async with running(*options, folder=tmp_path) as (_, port, lines):
        assert "KIE_WEBHOOK_KEY=w" in lines[1]
        assert ask(port, "GET", "/api/v1/chat/credit")["data"] == 20
        assert [submit(port)["code"] for _ in range(4)] == [505, 550, 455, 200]


async def test_a_seed_makes_the_ids_alike() -> None:
    """With --seed the first task has the same id in every run."""
    ids = []
    for seed in ("7", "7", "8"):
        async with running("--seed", seed, "--quiet") as (_, port, _):
            ids.append(submit(port)["data"]["taskId"])
    assert ids[0] == ids[1] != ids[2]


WRONG = {
    "no TOML": ("[settings\n", "faults.toml: Expected"),
    "unknown table": (
        "[faults]\n",
        "faults.toml: unknown table 'faults': expected one of settings, plan, fault",
    ),
    "unknown setting": (
        "[settings]\ncredit = 5\n",
        "faults.toml, [settings]: unknown field 'credit': expected one of duration, looks, outcome,",
    ),
    "setting of another type": (
        '[settings]\ncredits = "5"\n',
        "faults.toml, [settings]: invalid credits='5': expected a number",
    ),
    "bool for a number": ("[settings]\nlimit = true\n", "invalid limit=True: expected a whole number"),
    "settings twice": ("[[settings]]\n", "faults.toml, [settings]: expected a table, not [{}]"),
    "impossible setting": (
        "[settings]\nlimit = 0\n",
        "faults.toml, [settings]: invalid limit=0: expected an integer, 1 or more",
    ),
    "text as a price": (
        "[settings.prices]\n1 = '6'\n",
        "faults.toml, [settings]: invalid prices={1: '6'}: expected credits, 0 or more, for 1, 2, 4",
    ),
    "endless price": ("[settings.prices]\n1 = inf\n", "invalid prices={1: inf}: expected credits, 0 or more"),
    "text as a cap": (
        "[settings.caps]\nk = '6'\n",
        "faults.toml, [settings]: invalid caps: expected credits, 0 or more, by API key",
    ),
    "truth as a cap": ("[settings.caps]\nk = true\n", "invalid caps: expected credits"),
    "field of an account": (
        "[settings.accounts.k1]\n[settings.accounts.k2]\ncredit = 1\n",
        "faults.toml, [settings]: account 2 of accounts: unknown field 'credit': expected one of duration,",
    ),
    "price of an account": (
        "[settings.accounts.k1]\nprices = {1 = '6'}\n",
        "account 1 of accounts: invalid prices={1: '6'}: expected credits, 0 or more",
    ),
    "account without a key": (
        "[settings.accounts.'']\n",
        "invalid accounts: expected an Account by API key",
    ),
    "delay of a callback": (
        "[settings]\ncallback = {delay = 'x'}\n",
        "faults.toml, [settings]: invalid delay='x': expected a number, 0 or more",
    ),
    "status of a refusal": ("[settings]\nstatus_429 = 42\n", "invalid status_429=42: expected an integer"),
    "negative delay": ("[settings]\nrecord_delay = -1\n", "invalid record_delay=-1: expected a number, 0 or"),
    "number without end": (f"[settings]\ncredits = 1{400 * '0'}\n", "0: expected a number"),
    "date in the data": (
        "[[fault]]\nkind = 'submit'\ncode = 455\ndata = 1979-05-27\n",
        "expected any JSON value",
    ),
    "unknown field": (
        "[[plan]]\n[[plan]]\nanswers = 5\n",
        "faults.toml, [[plan]] 2: unknown field 'answers': expected one of prompt, answer, duration,",
    ),
    "unknown name": (
        '[[plan]]\ncallback = "soon"\n',
        "faults.toml, [[plan]] 1: invalid callback='soon': expected a Call, or one of end,",
    ),
    "unknown outcome": (
        '[[plan]]\noutcome = "fail"\n',
        "faults.toml, [[plan]] 1: invalid outcome='fail': expected an Outcome, or one of success, partial,",
    ),
    "unknown progress": (
        '[[plan]]\nprogress = "fast"\n',
        "faults.toml, [[plan]] 1: invalid progress='fast': expected one of jump, linear",
    ),
    "unknown field of a value": (
        '[[plan]]\noutcome = { name = "failed" }\n',
        "faults.toml, [[plan]] 1: unknown field of outcome 'name': expected one of kind, code, message",
    ),
    "missing field of a value": (
        "[[plan]]\noutcome = { code = 5 }\n",
        "[[plan]] 1: invalid outcome={'code': 5}: expected at least kind",
    ),
    "unknown field of a fault": (
        '[[fault]]\nkind = "submit"\ncodes = 5\n',
        "faults.toml, [[fault]] 1: unknown field 'codes' of a fault (did you mean code?): expected",
    ),
    "fault that never fires": (
        '[[fault]]\nkind = "submit"\ncode = 455\n[[fault]]\nkind = "credits"\nimage = "cut"\n',
        "faults.toml, [[fault]] 2: fault('credits', image='cut') could never fire",
    ),
    "unknown answer": (
        "[[plan]]\nanswer = { codes = 5 }\n",
        "faults.toml, [[plan]] 1: unknown field 'codes' of a fault",
    ),
    "one fault": ("[fault]\n", "faults.toml: [fault] must be written [[fault]]"),
    "one plan": ("[plan]\n", "faults.toml: [plan] must be written [[plan]]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_script_names_the_place_and_what_is_allowed(name: str, tmp_path: Path) -> None:
    """The file, the table and its number, and the allowed fields."""
    text, words = WRONG[name]
    file = tmp_path / "faults.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        read(file)
    assert str(caught.value).count("faults.toml") == 1


def test_the_scripts_of_the_page_can_be_used(tmp_path: Path) -> None:
    """Each TOML block on the page about testing is a script."""
    scripts = [block.code for block in blocks("toml") if block.page == "docs/testing.md"]
    assert scripts
    for text in scripts:
        file = tmp_path / "faults.toml"
        file.write_text(text, "utf-8")
        assert read(file).plans


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read --script 'faults.toml': No such file or directory"),
        ("[[plan]]\nanswers = 5\n", "faults.toml, [[plan]] 1: unknown field 'answers'"),
        (
            "[[plan]]\noutcome = 'fail'\n",
            "faults.toml, [[plan]] 1: invalid outcome='fail': expected one of success, partial",
        ),
        (
            "[[plan]]\nanswer = 'lost'\n",
            "faults.toml, [[plan]] 1: invalid answer='lost': expected a code, or one of dropped",
        ),
    ],
    ids=["missing", "field", "outcome", "answer"],
)
async def test_a_script_that_cannot_be_used_is_one_line(
    text: str | None, words: str, program: str, tmp_path: Path
) -> None:
    """A file that is missing, or says something wrong, is status 2 and a line without words of Python."""
    if text is not None:
        (tmp_path / "faults.toml").write_text(text, "utf-8")
    status, line = await refused("--script", "faults.toml", program=program, folder=tmp_path)
    assert status == 2
    assert line.partition(": ")[2].startswith(words)
