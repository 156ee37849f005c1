"""The commands that pay nothing, from `status` to `listen`."""

import asyncio
import json
import re
import signal
import time
from pathlib import Path

import aiohttp
import attrs
import pytest
from programs import AGAIN, FAST, TASK, Command, Outcome, against, outcome_of, paid, read_until

from kie4o import sign_callback
from kie4o.emulator import Emulator, pictures
from kie4o.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.once


async def test_credits(tmp_path: Path) -> None:
    """`kie4o credits` prints only the number; with --json an object."""
    async with Emulator(clock="real", credits=12.5) as kie:
        assert await against(kie, tmp_path, "credits").run() == Outcome(0, "12.5\n", "")
        assert (await against(kie, tmp_path, "credits", "--json").run()).records == [{"credits": 12.5}]


async def test_spent(tmp_path: Path) -> None:
    """What the requests in a store have cost by state, without a key: what is unknown counts."""
    words = ("generate", "--store", "run.db", "One", "A [[kie:policy]] hill", "A [[kie:dropped]] lake")
    async with Emulator(clock="real", **FAST) as kie:
        assert (await against(kie, tmp_path, *words, "--variants", "2").run()).status == 4
    outcome = await Command(tmp_path, "spent", "--store", "run.db").run()
    assert (outcome.status, outcome.err) == (0, "")
    assert [line.split() for line in outcome.out.splitlines()] == [
        ["succeeded", "1", "tasks", "12", "credits"],
        ["submitted", "0", "tasks", "0", "credits"],
        ["unknown", "1", "tasks", "12", "credits"],
        ["failed", "1", "tasks", "12", "credits"],
        ["total", "3", "tasks", "36", "credits"],
    ]
    [record] = (await Command(tmp_path, "spent", "--store", "run.db", "--json").run()).records
    assert record["total"] == {"tasks": 3, "credits": 36.0}
    assert record["unpriced"] == 0


async def test_prune(tmp_path: Path) -> None:
    """What ended is removed, without a key; what is unknown stays, and `spent` counts as before."""
    words = ("generate", "--store", "run.db", "One", "A [[kie:dropped]] lake")
    async with Emulator(clock="real", **FAST) as kie:
        assert (await against(kie, tmp_path, *words).run()).status == 4
        [task_id] = [task.id for task in kie.tasks.values() if task.request["prompt"] == "One"]
    prune = ("prune", "--store", "run.db", "--older-than")
    assert await Command(tmp_path, *prune, "30d").run() == Outcome(0, "0 removed\n", "")
    store = SQLiteStore(tmp_path / "run.db")
    await store.open()
    entry = await store.find(task_id=task_id)
    await store.save(attrs.evolve(entry, details=None, submitted_at=entry.submitted_at - 31 * 86_400))
    await store.aclose()
    [record] = (await Command(tmp_path, *prune, "30d", "--json").run()).records
    assert record == {"removed": 1}
    [record] = (await Command(tmp_path, "spent", "--store", "run.db", "--json").run()).records
    assert record["total"]["tasks"] == 2
    [record] = (await Command(tmp_path, "unfinished", "--store", "run.db", "--json").run()).records
    assert record["state"] == "unknown"
    for age in ("30", "d", "0d", "1 week", "-1d", "1.5h"):
        outcome = await Command(tmp_path, *prune[:-1], f"--older-than={age}").run()
        assert outcome.status == 2
        assert "expected a time such as 30d, 12h or 90m" in outcome.err


async def test_status(tmp_path: Path) -> None:
    """What Kie knows, as lines or as an object; a task that Kie does not know is a failure."""
    async with Emulator(clock="real", duration=1000.0) as kie:
        task = (await against(kie, tmp_path, "generate", "A lake", "--no-wait", "--quiet").run()).out.strip()
        outcome = await against(kie, tmp_path, "status", task).run()
        assert (outcome.status, outcome.err) == (0, "")
        assert f"task id        {task}" in outcome.out
        assert "state          running" in outcome.out
        [record] = (await against(kie, tmp_path, "status", task, "--json").run()).records
        assert (record["task_id"], record["state"], record["urls"]) == (task, "running", [])
        outcome = await against(kie, tmp_path, "status", TASK, "--json").run()
        assert outcome.status == 1
        assert outcome.records[0]["state"] == "missing"


async def test_wait_and_download_take_several_tasks(tmp_path: Path) -> None:
    """Each is saved; one that is not known fails alone, with status 3."""
    async with Emulator(clock="real", **FAST) as kie:
        tasks = (await against(kie, tmp_path, "generate", "One", "Two", "--no-wait").run()).out.split()
        outcome = await against(kie, tmp_path, "wait", *tasks, "--out", "a").run()
        assert outcome.status == 0
        outcome = await against(kie, tmp_path, "download", *tasks, TASK, "--out", "b", "--json").run()
    assert outcome.status == 3
    saved = {record["task_id"]: record.get("files") for record in outcome.records}
    assert saved == {**{task: [str(tmp_path / "b" / f"{task}_0.png")] for task in tasks}, TASK: None}
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(
        f"{task}_0.png" for task in tasks
    )


async def test_download_does_not_wait(tmp_path: Path) -> None:
    """A task that runs is an error that names the command which waits."""
    async with Emulator(clock="real", duration=1000.0) as kie:
        task = (await against(kie, tmp_path, "generate", "A lake", "--no-wait").run()).out.strip()
        outcome = await against(kie, tmp_path, "download", task, "--out", "a").run()
    assert outcome.status == 1
    assert outcome.notes == [
        f"task {task} has no images: it is still running; to go on: {AGAIN} wait {task} --out a"
    ]


async def test_only_what_is_known_of_a_task_is_said(tmp_path: Path) -> None:
    """Kie does not know the id: it is not called paid or running, and no command can get its images."""
    async with Emulator(clock="real", outcome="policy", **FAST) as kie:
        outcome = await against(kie, tmp_path, "download", "nosuch").run()
        assert outcome.status == 1
        assert outcome.notes == [
            "task nosuch has no images: Kie does not know it; check the id and the account"
        ]
        outcome = await against(kie, tmp_path, "wait", "nosuch", "--timeout", "0.5").run()
        assert outcome.status == 1
        said = "timed out waiting for task nosuch; Kie does not know it yet"
        assert outcome.notes == [f"{said}; to go on: {AGAIN} wait nosuch"]
        assert "running" not in outcome.err
        task = (await against(kie, tmp_path, "generate", "A lake", "--no-wait").run()).out.strip()
        await against(kie, tmp_path, "wait", task).run()
        outcome = await against(kie, tmp_path, "download", task).run()
        assert outcome.notes == [f"task {task} has no images: it failed"]


@pytest.mark.posix("SIGINT for a child process")
async def test_ctrl_c_in_wait_says_only_how_to_go_on(tmp_path: Path) -> None:
    """Whether the task is there at all is not known."""
    async with Emulator(clock="real") as kie:
        process = await against(kie, tmp_path, "wait", "nosuch").start()
        said = await read_until(process, b"waiting")
        process.send_signal(signal.SIGINT)
        outcome = await outcome_of(process, said)
    assert outcome.status == 130
    assert outcome.notes == [f"to go on: {AGAIN} wait nosuch", "interrupted"]


async def test_upload(tmp_path: Path) -> None:
    """A URL per file, which a request takes."""
    (tmp_path / "cat.png").write_bytes(pictures.BLANK)
    (tmp_path / "dog.png").write_bytes(pictures.BLANK)
    async with Emulator(clock="real", **FAST) as kie:
        outcome = await against(kie, tmp_path, "upload", "cat.png", "dog.png").run()
        urls = outcome.out.split()
        assert [url.rpartition("/")[2] for url in urls] == ["cat.png", "dog.png"]
        words = ("generate", "Both", *(word for url in urls for word in ("--file", url)))
        assert (await against(kie, tmp_path, *words).run()).status == 0
        outcome = await against(kie, tmp_path, "upload", "cat.png", "--json", "--path", "pets").run()
    [record] = outcome.records
    assert record["file"] == "cat.png"
    assert record["url"].endswith("/pets/cat.png")


@pytest.mark.posix("SIGINT for a child process")
async def test_what_is_unfinished_is_listed_and_resumed(tmp_path: Path) -> None:
    """`unfinished` needs no key and sends nothing; `resume` saves the images, and submits nothing."""
    async with Emulator(clock="real", duration=4.0) as kie:
        words = ("generate", "One", "Two", "--store", "run.db")
        process = await against(kie, tmp_path, *words).start()
        stderr = b""
        while stderr.count(b"is paid") < 2:
            stderr += await read_until(process, b"is paid")
        process.kill()
        await process.wait()
        listed = await Command(tmp_path, "unfinished", "--store", "run.db", "--json").run()
        assert {entry["prompt"] for entry in listed.records} == {"One", "Two"}
        assert {entry["task_id"] for entry in listed.records} == {*kie.tasks}
        assert all(entry["state"] == "submitted" for entry in listed.records)
        outcome = await against(kie, tmp_path, "resume", "--store", "run.db", "--out", "out").run()
        assert outcome.status == 0
        assert len(outcome.out.splitlines()) == 2
        assert paid(kie) == 2
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    assert (await Command(tmp_path, "unfinished", "--store", "run.db").run()).notes == [
        "nothing is unfinished"
    ]


async def test_settle_of_what_is_not_there(tmp_path: Path) -> None:
    """The message names the command that lists what can be settled."""
    async with Emulator(clock="real", **FAST) as kie:
        assert (await against(kie, tmp_path, "generate", "A lake", "--store", "run.db").run()).status == 0
    outcome = await Command(tmp_path, "settle", "k9", "--store", "run.db", "--not-charged").run()
    assert outcome.status == 2
    assert outcome.notes[0].endswith("whose outcome is unknown; kie4o unfinished lists them")


@pytest.mark.parametrize("duration", [0.0, 5.0], ids=["ended", "running"])
async def test_settle_names_the_task_of_an_unknown_outcome(duration: float, tmp_path: Path) -> None:
    """The task that was found is waited for under the key, and nothing is paid again; whether it has ended
    or not, the note names the command that saves its images."""
    words = ("generate", "A lake", "--store", "run.db", "--key", "k1")
    async with Emulator(clock="real", duration=duration) as kie:
        kie.fault("submit", cut=0, charged=True)
        outcome = await against(kie, tmp_path, *words).run()
        assert outcome.status == 4
        [task] = kie.tasks
        settled = await against(kie, tmp_path, "settle", "k1", "--store", "run.db", "--task", task).run()
        save = f"wait {task} --store run.db"
        note = f"kie4o: to save its images: {AGAIN} {save}\n"
        assert settled == Outcome(0, f"k1 has task {task}\n", note)
        assert (await against(kie, tmp_path, *save.split(), "--out", "out").run()).status == 0
        outcome = await against(kie, tmp_path, *words).run()
        assert (outcome.status, paid(kie)) == (0, 1)


@pytest.mark.posix("SIGINT for a child process")
async def test_listen_prints_and_keeps_callbacks(tmp_path: Path) -> None:
    """A callback is verified, confirmed by a poll, printed as a line and kept; a forged one is refused."""
    async with Emulator(clock="real", duration=1000.0) as kie:
        words = (
            "generate",
            "A lake",
            "--callback-url",
            "https://me.example/kie",
            "--store",
            "run.db",
            "--no-wait",
        )
        task = (await against(kie, tmp_path, *words).run()).out.strip()
        [request] = [each.request for each in kie.tasks.values()]
        ref = request["callBackUrl"].partition("kie4o_ref=")[2]
        listen = ("listen", "--port", "0", "--store", "run.db", "--json")
        process = await against(kie, tmp_path, *listen, KIE_WEBHOOK_KEY="w").start()
        said = await read_until(process, b"listening at")
        url = re.search(rb"http://\S+/kie/callback", said)
        assert url is not None
        body = json.dumps(
            {"code": 200, "msg": "success", "data": {"taskId": task, "info": {"result_urls": []}}}
        )
        headers = {"Content-Type": "application/json"}
        async with aiohttp.ClientSession() as session:
            where = f"{url[0].decode()}?kie4o_ref={ref}"
            async with session.post(where, data=body, headers=headers) as response:
                assert response.status == 401
            kie.end(task)
            headers |= sign_callback(task, key="w", timestamp=int(time.time()))
            async with session.post(where, data=body, headers=headers) as response:
                assert response.status == 200
        assert process.stdout is not None
        line = json.loads(await asyncio.wait_for(process.stdout.readline(), 20))
        assert (line["task_id"], line["code"], line["verified"]) == (task, 200, True)
        await asyncio.sleep(1.0)  # for the poll that confirms it
        process.send_signal(signal.SIGINT)
        outcome = await outcome_of(process, said)
        assert outcome.status == 0
        assert outcome.notes[-1] == "refused a callback with 401"  # and nothing of the Ctrl-C that ends it
    left = await Command(tmp_path, "unfinished", "--store", "run.db").run()
    assert left.notes == ["nothing is unfinished"]


async def test_listen_wants_a_key_or_says_so(tmp_path: Path) -> None:
    """Without KIE_WEBHOOK_KEY callbacks would not be verified: the line names the option that allows it."""
    async with Emulator(clock="real") as kie:
        outcome = await against(kie, tmp_path, "listen", "--port", "0").run()
    assert outcome.status == 2
    assert outcome.notes == [
        "callbacks would not be verified: set KIE_WEBHOOK_KEY to the webhookHmacKey of kie.ai/settings, or "
        "pass --allow-unsigned"
    ]


async def test_speed_shortens_what_a_command_waits_for(tmp_path: Path) -> None:
    """Ten seconds after a 429, and the polls; the command that goes on has it too."""
    async with Emulator(clock="real", speed=50.0, duration=20.0) as kie:
        kie.fault("submit", code=429)
        began = time.monotonic()
        outcome = await against(kie, tmp_path, "generate", "A lake", "--speed", "50", "--out", "a").run()
        assert outcome.status == 0
        assert time.monotonic() - began < 9.0
        assert [submit.code for submit in kie.submits] == [429, 200]
        kie.next(outcome="stuck")
        words = ("generate", "A fox", "--speed", "50", "--timeout", "0.2")
        outcome = await against(kie, tmp_path, *words).run()
        assert outcome.status == 1
        assert outcome.notes[-1].endswith("--speed 50")


async def test_speed_is_for_an_emulator_only(tmp_path: Path) -> None:
    """Kie itself is not hurried, and nothing is sent."""
    environment = {"KIE_API_KEY": "k", "KIE_BASE_URL": "https://kie.example"}
    outcome = await Command(tmp_path, "credits", "--speed", "20", **environment).run()
    assert outcome.status == 2
    assert outcome.notes[0].startswith("invalid --speed=20.0: expected 1.0, since https://kie.example is not")
