"""`kie4o batch` as a person runs it: files in, a folder of images out, and the same command goes on."""

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from image_folders import Folder, charged, fetches, uploads
from programs import AGAIN, Command, against, paid, submits, was_asked

from kie4o import AsyncKieClient
from kie4o.emulator import Emulator

pytestmark = pytest.mark.once

BALANCE = 100_000.0
SPEED = 50.0
OPTIONS = ("--speed", f"{SPEED:g}")
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c63f8ffff3f0005fe02"
    "fea73581e40000000049454e44ae426082"
)


def kie_of(**settings: Any) -> Emulator:
    """An emulator that other processes can use; images are one pixel."""
    return Emulator(clock="real", **{"speed": SPEED, "credits": BALANCE, "pictures": False} | settings)


def batch(kie: Emulator, folder: Path, *words: str, **more: Any) -> Command:
    return against(kie, folder, "batch", *words, "--out", "images", *OPTIONS, **more)


def write(folder: Path, name: str, text: str) -> Folder:
    """A file of requests, and the folder that its images go to."""
    (folder / name).write_text(text, "utf-8")
    return Folder(folder / "images")


def prompts(count: int) -> str:
    return "".join(f"Lake {number}\n" for number in range(1, count + 1))


# -- what comes out --------------------------------------------------------------------------------


async def test_a_text_file_becomes_a_folder_of_images(tmp_path: Path) -> None:
    """A prompt a line: an image a line, named after the line, with a record each, a page, and a summary that
    has the balance beside what was spent."""
    folder = write(tmp_path, "prompts.txt", "A lake\n\nA hill\r\n  A harbour  \n")
    async with kie_of() as kie:
        outcome = await batch(kie, tmp_path, "prompts.txt").run()
    assert outcome.status == 0, outcome.err
    assert outcome.notes[0] == "0 done, 0 under way, 0 unknown, 3 to submit for 18 credits"
    assert folder.images == ["0001.png", "0003.png", "0004.png"]
    folder.check_images()
    records = {record["line"]: record for record in folder.records}
    assert {line: record["prompt"] for line, record in records.items()} == {
        1: "A lake",
        3: "A hill",
        4: "A harbour",
    }
    for record in records.values():
        assert (record["state"], record["credits"], record["error"]) == ("done", 6, None)
        assert record["task_id"] in kie.tasks
        assert len(record["urls"]) == len(record["files"]) == 1
        assert record["submitted_at"] > 1e9
    assert "3 of 3 done" in outcome.out
    assert "spent 18 credits in this run, 18 in all; balance 99,982" in outcome.out
    assert str(folder.path / "index.html") in outcome.out
    assert "A harbour" in (folder.path / "index.html").read_text("utf-8")


async def test_run_again_it_goes_on(tmp_path: Path) -> None:
    """The same command submits what is new, and neither pays for nor fetches the rest again. Lines may be
    added in front: each keeps the name that its image has."""
    folder = write(tmp_path, "prompts.txt", "A lake\nA hill\n")
    async with kie_of() as kie:
        assert (await batch(kie, tmp_path, "prompts.txt").run()).status == 0
        before = folder.identities()
        again = await batch(kie, tmp_path, "prompts.txt").run()
        assert again.notes == ["2 done, 0 under way, 0 unknown, 0 to submit for 0 credits"]
        assert again.status == 0
        write(tmp_path, "prompts.txt", "A harbour\nA lake\nA hill\nA lake\n")
        third = await batch(kie, tmp_path, "prompts.txt").run()
        assert third.notes == ["2 done, 0 under way, 0 unknown, 2 to submit for 12 credits"]
    assert (paid(kie), fetches(kie)) == (4, 4)
    assert len(folder.records) == 4
    assert folder.images == ["0001-2.png", "0001.png", "0002.png", "0004.png"]
    assert before.items() <= folder.identities().items()
    names = {record["prompt"]: record["name"] for record in folder.records if record["line"] != 4}
    assert names["A harbour"] == "0001-2"


async def test_a_table_has_any_field(tmp_path: Path) -> None:
    """Columns are the fields of a request under our name, Kie's or that of the option; key and name too."""
    text = (
        "key;name;prompt;size;nVariants;enhance;extra\n"
        'k1;harbour;"A harbour,\nwith ""boats""";3:2;2;yes;"{""style"": ""vivid""}"\n'
        "k2;;A hill;;;;\n"
    )
    folder = write(tmp_path, "table.csv", text)
    async with kie_of() as kie:
        outcome = await batch(kie, tmp_path, "table.csv", "--size", "2:3").run()
        assert outcome.status == 0, outcome.err
        requests = {task.request["prompt"]: task.request for task in kie.tasks.values()}
    harbour = requests['A harbour,\nwith "boats"']
    assert (harbour["size"], harbour["nVariants"], harbour["isEnhance"], harbour["style"]) == (
        "3:2",
        2,
        True,
        "vivid",
    )
    assert requests["A hill"]["size"] == "2:3"  # what was typed holds for lines without their own
    assert folder.images == ["harbour_0.png", "harbour_1.png", "k2.png"]
    assert set(folder.latest) == {"k1", "k2"}
    assert {record["line"] for record in folder.records} == {2, 4}


async def test_json_lines_have_any_field(tmp_path: Path) -> None:
    """Our names and Kie's, and a parameter that kie4o does not know in extra."""
    lines = [
        {"prompt": "A lake", "n_variants": 2, "name": "lake.png"},
        {"prompt": "A hill", "isEnhance": True, "extra": {"style": "vivid"}, "key": "hill"},
    ]
    folder = write(tmp_path, "requests.jsonl", "\n".join(map(json.dumps, lines)))
    async with kie_of() as kie:
        assert (await batch(kie, tmp_path, "requests.jsonl").run()).status == 0
        hill = next(task.request for task in kie.tasks.values() if task.request["prompt"] == "A hill")
    assert (hill["isEnhance"], hill["style"]) == (True, "vivid")
    assert folder.images == ["hill.png", "lake_0.png", "lake_1.png"]


async def test_standard_input_goes_on_too(tmp_path: Path) -> None:
    """`-` reads prompts, or JSON lines if they look so."""
    folder = Folder(tmp_path / "images")
    async with kie_of() as kie:
        assert (await batch(kie, tmp_path, "-", stdin="A lake\nA hill\n").run()).status == 0
        outcome = await batch(
            kie, tmp_path, "-", stdin='{"prompt": "A lake"}\n{"prompt": "A harbour"}\n'
        ).run()
    assert outcome.notes == ["1 done, 0 under way, 0 unknown, 1 to submit for 6 credits"]
    assert len(folder.images) == paid(kie) == 3


async def test_a_program_and_the_command_line_share_their_keys(tmp_path: Path) -> None:
    """What a list of prompts has paid for in the same store is not paid again."""
    write(tmp_path, "prompts.txt", "A lake\nA lake\nA hill\n")
    async with kie_of() as kie:
        (tmp_path / "images").mkdir()
        async with AsyncKieClient(
            "k", base_url=kie.url, store=tmp_path / "images" / "kie4o.db", speed=SPEED
        ) as client:
            assert [done.ok async for done in client.generate_many(["A lake", "A lake"])] == [True, True]
        outcome = await batch(kie, tmp_path, "prompts.txt").run()
    assert outcome.notes == ["2 done, 0 under way, 0 unknown, 1 to submit for 6 credits"]
    assert paid(kie) == 3


# -- names -----------------------------------------------------------------------------------------


async def test_names_never_collide(tmp_path: Path) -> None:
    """Names that some file system takes for one, that it does not accept, or that are taken by the images of
    another line, are changed; a run that goes on gives the same ones."""
    names = ["cat", "CAT", "cat_0", "../cat", "CON", "a.png.png", "A.PNG", "   .", "é", "e\u0301"]
    lines = [{"prompt": f"Cat {number}", "name": name, "n_variants": 2} for number, name in enumerate(names)]
    folder = write(tmp_path, "cats.jsonl", "\n".join(map(json.dumps, lines)))
    async with kie_of() as kie:
        first = await batch(kie, tmp_path, "cats.jsonl", "--limit", "5").run()
        assert first.status == 5, first.err
        assert (await batch(kie, tmp_path, "cats.jsonl").run()).status == 0
    assert len(folder.images) == 2 * len(names)
    assert len({name.casefold() for name in folder.images}) == 2 * len(names)
    assert all(path.parent == folder.path for path in tmp_path.rglob("*.png"))
    assert paid(kie) == len(names)


async def test_a_file_of_a_stranger_is_neither_replaced_nor_taken(tmp_path: Path) -> None:
    """An image that was there before belongs to no line. The name that a line has instead is kept, also if
    the run is cut off before the image is recorded."""
    folder = write(tmp_path, "prompts.txt", "A lake\n")
    folder.path.mkdir()
    (folder.path / "0001.png").write_bytes(PIXEL)
    async with kie_of() as kie:
        assert (await batch(kie, tmp_path, "prompts.txt").run()).status == 0
        assert folder.images == ["0001-2.png", "0001.png"]
        results = folder.path / "results.jsonl"
        named, done = results.read_text("utf-8").splitlines(keepends=True)
        assert json.loads(named)["state"] == "not_submitted"
        results.write_text(named + done[:40], "utf-8")  # as it is after a kill
        assert (await batch(kie, tmp_path, "prompts.txt").run()).status == 0
    assert (folder.path / "0001.png").read_bytes() == PIXEL
    assert [record["files"] for record in folder.records] == [[], ["0001-2.png"]]
    assert (paid(kie), fetches(kie)) == (1, 1)


# -- files of the requests -------------------------------------------------------------------------


async def test_local_files_are_uploaded_once(tmp_path: Path) -> None:
    """A file that many lines name is uploaded once, paths are relative to the file of requests, and a run
    that goes on uploads nothing for what is paid."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cat.png").write_bytes(PIXEL)
    (tmp_path / "in" / "mask.png").write_bytes(PIXEL[:-1])
    lines = [{"prompt": f"Cat {number}", "file": "cat.png", "mask": "mask.png"} for number in range(5)]
    folder = write(tmp_path, "in/cats.jsonl", "\n".join(map(json.dumps, lines)))
    async with kie_of() as kie:
        first = await batch(kie, tmp_path, "in/cats.jsonl", "--limit", "3").run()
        assert first.status == 5, first.err
        assert (uploads(kie), paid(kie)) == (2, 3)
        assert (await batch(kie, tmp_path, "in/cats.jsonl").run()).status == 0
        assert (uploads(kie), paid(kie)) == (4, 5)
        assert (await batch(kie, tmp_path, "in/cats.jsonl").run()).status == 0
        assert (uploads(kie), paid(kie)) == (4, 5)
        urls = {url for task in kie.tasks.values() for url in task.request["filesUrl"]}
        assert all(url.startswith(kie.url) for url in urls)
        (tmp_path / "in" / "cat.png").write_bytes(PIXEL + b"\0")  # another cat
        changed = await batch(kie, tmp_path, "in/cats.jsonl", "--dry-run").run()
    assert "0 done" in changed.out
    assert len(folder.images) == 5


async def test_a_retry_uploads_its_file_again(tmp_path: Path) -> None:
    """Kie keeps an uploaded file for a day: a failed request gets a new URL when it is submitted again."""
    (tmp_path / "cat.png").write_bytes(PIXEL)
    folder = write(tmp_path, "cats.jsonl", '{"prompt": "Cat", "file": "cat.png", "key": "cat"}\n')
    async with kie_of() as kie:
        kie.plan("Cat", outcome="failed")
        assert (await batch(kie, tmp_path, "cats.jsonl").run()).status == 3
        assert (await batch(kie, tmp_path, "cats.jsonl").run()).status == 3
        assert (uploads(kie), paid(kie)) == (1, 1)
        assert (await batch(kie, tmp_path, "cats.jsonl", "--retry-failed").run()).status == 0
        assert (uploads(kie), paid(kie)) == (2, 2)
        assert (await batch(kie, tmp_path, "cats.jsonl", "--retry-failed").run()).status == 0
    assert (uploads(kie), paid(kie)) == (2, 2)
    assert folder.latest["cat"]["state"] == "done"
    assert folder.images == ["cat.png"]


# -- failures --------------------------------------------------------------------------------------


async def test_failures_are_told_written_and_retried(tmp_path: Path) -> None:
    """A failed line harms no other. It is in --failed as it came, and --retry-failed submits it again."""
    text = 'prompt,name\nA lake,lake\n"A hill [[kie:policy]]",hill\nA harbour,\n'
    folder = write(tmp_path, "table.csv", text)
    async with kie_of() as kie:
        outcome = await batch(kie, tmp_path, "table.csv", "--failed", "failed.csv").run()
        assert outcome.status == 3
        assert "line 3: task" in outcome.err
        assert "2 of 3 done, 1 failed" in outcome.out
        retry = next(line for line in outcome.out.splitlines() if "--retry-failed" in line)
        assert retry.endswith(
            f"batch table.csv --failed failed.csv --out images {' '.join(OPTIONS)} --retry-failed"
        )
        assert (tmp_path / "failed.csv").read_text() == 'prompt,name\n"A hill [[kie:policy]]",hill\n'
        again = await batch(kie, tmp_path, "table.csv").run()
        assert (again.status, paid(kie)) == (3, 3)
        assert "1 failed (--retry-failed submits them again), 0 to submit" in again.notes[0]
        retried = await batch(kie, tmp_path, "table.csv", "--retry-failed").run()
        assert (retried.status, paid(kie)) == (3, 4)
    assert folder.images == ["0004.png", "lake.png"]
    assert "hill" in (folder.path / "index.html").read_text("utf-8")


async def test_the_page_has_the_command_of_the_batch(tmp_path: Path) -> None:
    """Also if it is written again by `kie4o gallery`: the store and the file are those of the batch. A killed
    batch has left it too."""
    folder = write(tmp_path, "prompts.txt", "A lake [[kie:policy]]\nA hill [[kie:stuck]]\n")
    words = ("prompts.txt", "--store", "run.db")
    retry = f"{AGAIN} batch prompts.txt --store run.db --out images {' '.join(OPTIONS)} --retry-failed"
    async with kie_of() as kie:
        process = await batch(kie, tmp_path, *words).start()
        results = folder.path / "results.jsonl"
        while not results.is_file() or not results.read_bytes():
            await asyncio.sleep(0.01)
        process.kill()
        await process.communicate()
    assert (await Command(tmp_path, "gallery", "images").run()).status == 0
    page = (folder.path / "index.html").read_text("utf-8")
    assert f'<code id="retry">{retry}</code>' in page


async def test_an_unknown_outcome_is_never_sent_again(tmp_path: Path) -> None:
    """The answer of a submit is lost: status 4, also when it is run again, and the task is paid once."""
    folder = write(tmp_path, "prompts.txt", "A lake [[kie:dropped]]\nA hill\n")
    async with kie_of() as kie:
        first = await batch(kie, tmp_path, "prompts.txt", "--failed", "failed.txt").run()
        second = await batch(kie, tmp_path, "prompts.txt", "--retry-failed").run()
    assert (first.status, second.status) == (4, 4)
    assert second.notes[0] == "1 done, 0 under way, 1 unknown, 0 to submit for 0 credits"
    assert paid(kie) == submits(kie) == 2
    assert (tmp_path / "failed.txt").read_bytes() == b""
    assert {record["state"] for record in folder.records} == {"done", "unknown"}
    assert len(folder.records) == 2


@pytest.mark.parametrize("prompt", ["A lake [[kie:dropped]]", "A lake"], ids=["unknown", "paid"])
@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--retry-failed",)], ids=["run", "dry", "retry"])
async def test_another_store_pays_for_nothing_again(
    tmp_path: Path, prompt: str, more: tuple[str, ...]
) -> None:
    """What was submitted with one store is not submitted with another, which does not know of it."""
    folder = write(tmp_path, "prompts.txt", f"A hill\n{prompt}\n{prompt}\n")
    async with kie_of() as kie:
        await batch(kie, tmp_path, "prompts.txt", "--store", "run.db").run()
        before = submits(kie)
        for name in ("0002.png", "0003.png"):
            (folder.path / name).unlink(missing_ok=True)
        outcome = await batch(kie, tmp_path, "prompts.txt", "--store", "other.db", *more).run()
        assert (outcome.status, submits(kie)) == (2, before)
        assert outcome.notes == [
            "'images/results.jsonl' has lines 2 and 3 as submitted, and the store other.db does not know "
            "them: expected the --store of that run; nothing was sent. To submit them again, which may pay "
            "twice, remove them from that file"
        ]


async def test_another_store_is_said_and_a_failed_task_is_not_paid_again(tmp_path: Path) -> None:
    """Images that are saved need no store, and new lines are submitted. What has failed is submitted again
    by --retry-failed alone."""
    write(tmp_path, "prompts.txt", "A lake [[kie:policy]]\nA hill\n")
    async with kie_of() as kie:
        await batch(kie, tmp_path, "prompts.txt", "--store", "run.db").run()
        write(tmp_path, "prompts.txt", "A lake [[kie:policy]]\nA hill\nA harbour\n")
        outcome = await batch(kie, tmp_path, "prompts.txt", "--store", "other.db").run()
        assert outcome.notes == [
            "the store other.db does not know line 2, whose images are saved: they were submitted with "
            "another --store, or it was pruned",
            "1 done, 0 under way, 0 unknown, 1 failed (--retry-failed submits them again), 1 to submit for 6 "
            "credits",
        ]
        assert paid(kie) == 3
        words = ("prompts.txt", "--store", "third.db", "--retry-failed", "--dry-run")
        assert "1 to submit" in (await batch(kie, tmp_path, *words).run()).out


async def test_what_was_settled_as_not_charged_is_submitted(tmp_path: Path) -> None:
    """Its key is free in the store that knows of it."""
    folder = write(tmp_path, "prompts.txt", "A lake\n")
    async with kie_of() as kie:
        kie.plan("A lake", answer=500)
        assert (await batch(kie, tmp_path, "prompts.txt").run()).status == 4
        [record] = folder.records
        store = ("--store", "images/kie4o.db")
        settled = await against(kie, tmp_path, "settle", record["key"], *store, "--not-charged").run()
        assert settled.status == 0, settled.err
        outcome = await batch(kie, tmp_path, "prompts.txt", "--dry-run").run()
        assert outcome.out.startswith("0 done, 0 under way, 0 unknown, 1 to submit")


async def test_a_wrong_key_stops_the_batch(tmp_path: Path) -> None:
    """Every further request would fail too: it is said once, nothing is charged, and the rest can go on."""
    write(tmp_path, "prompts.txt", prompts(50))
    async with kie_of(api_key="another") as kie:
        outcome = await batch(kie, tmp_path, "prompts.txt", "--max-in-flight", "5").run()
    assert outcome.status == 1
    assert outcome.notes[1:] == [
        "line 1: Kie returned 401: Unauthorized – Authentication failed. Please check that your "
        "Authorization and Content-Type headers are correctly set. Check KIE_API_KEY; keys are created at "
        "kie.ai/api-key.",
        "lines 2, 3, 4 and 5: the same as line 1",
        "stopped because of line 1",
    ]
    assert "to go on: " in outcome.out
    assert paid(kie) == 0
    assert submits(kie) <= 5


@pytest.mark.parametrize("option", ["--json", "--quiet"])
async def test_why_it_stopped_is_said_in_full_where_lines_are_not(tmp_path: Path, option: str) -> None:
    """To a program, and with --quiet."""
    write(tmp_path, "prompts.txt", prompts(5))
    async with kie_of(api_key="another") as kie:
        outcome = await batch(kie, tmp_path, "prompts.txt", option).run()
    assert outcome.notes[-1].startswith("stopped: Kie returned 401: Unauthorized")


async def test_the_same_failure_is_said_once(tmp_path: Path) -> None:
    """With the lines that failed like the first, whatever else differs, and without the hash that is the key
    of a line that has none."""
    lines = [f"Lake {number} [[kie:dropped]]\n" for number in range(3)]
    lines += [f"Hill {number} [[kie:policy]]\n" for number in range(9)]
    lines += ["A boat [[kie:failed]]\n"]
    folder = write(tmp_path, "prompts.txt", "".join(lines))
    async with kie_of() as kie:
        words = ("prompts.txt", "--max-in-flight", "1")
        first = await batch(kie, tmp_path, *words).run()
        again = await batch(kie, tmp_path, *words).run()
    ref, said = folder.records[0]["ref"], first.notes[1:]
    assert [note.partition(": ")[0] for note in said[:3]] == ["line 1", "line 4", "line 13"]
    assert said[3:] == [
        "lines 2 and 3: the same as line 1",
        "lines 5, 6, 7, 8, 9 and 3 more: the same as line 4",
    ]
    assert re.search(rf"It is a submit with ref {ref} \(sent [\d-]+ [\d:]+ UTC, prompt 'Lake 0 \[", said[0])
    assert said[0] == f"line 1: {folder.records[0]['error']}"
    assert [note.partition(": ")[0] for note in again.notes[1:]] == ["line 1", "lines 2 and 3"]


async def test_lost_answers_in_a_row_stop_it(tmp_path: Path) -> None:
    """It says so once, and how many."""
    write(tmp_path, "prompts.txt", "".join(f"Lake {number} [[kie:dropped]]\n" for number in range(9)))
    async with kie_of() as kie:
        outcome = await batch(kie, tmp_path, "prompts.txt", "--max-in-flight", "1").run()
    assert outcome.notes[2] == "lines 2, 3, 4 and 5: the same as line 1"
    assert re.fullmatch(
        r"stopped: 5 submits in a row have an unknown outcome, the latest is a submit with ref \S+ "
        r"\(sent [\d-]+ [\d:]+ UTC, prompt 'Lake 4 \[\[kie:dropped\]\]'\)\. Check kie.ai/logs",
        outcome.notes[3],
    )


async def test_images_that_could_not_be_fetched_are_fetched_by_the_next_run(tmp_path: Path) -> None:
    """The task is paid and done; the next run fetches its image and pays nothing."""
    folder = write(tmp_path, "prompts.txt", "A lake\nA hill\n")
    async with kie_of() as kie:
        kie.fault("image", http_status=410, times="always")
        assert (await batch(kie, tmp_path, "prompts.txt").run()).status == 3
        assert {record["error_type"] for record in folder.records} == {"DownloadError"}
        kie.faults.clear()
        assert (await batch(kie, tmp_path, "prompts.txt").run()).status == 0
    assert paid(kie) == len(folder.images) == 2


# -- money -----------------------------------------------------------------------------------------


async def limited(folder: Path, seed: int) -> None:
    folder.mkdir()
    write(folder, "prompts.txt", prompts(120))
    async with kie_of(seed=seed, latency=0.5, limit=10_000) as kie:
        kie.fault("submit", code=455, probability=0.1, times="always")
        words = ("prompts.txt", "--variants", "4", "--max-in-flight", "100", "--max-credits", "600")
        outcome = await batch(kie, folder, *words).run()
        assert charged(kie, BALANCE) <= 600
        assert outcome.status == 5, outcome.err + outcome.out
        assert "--max-credits 600 is reached" in outcome.out
        assert charged(kie, BALANCE) >= 576


async def test_max_credits_is_never_passed(tmp_path: Path) -> None:
    """With 4 variants a request, 100 in flight and refused submits a run spends at most its limit."""
    await limited(tmp_path / "one", 0)


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(1, 6))  # over 20 in tests/client/test_budget.py
async def test_max_credits_is_never_passed_over_seeds(tmp_path: Path, seed: int) -> None:
    """The same with other faults."""
    await limited(tmp_path / "one", seed)


async def test_each_run_has_the_whole_limit(tmp_path: Path) -> None:
    """Run again it goes on, and what earlier runs have paid is not counted. --limit counts requests."""
    folder = write(tmp_path, "prompts.txt", prompts(5))
    async with kie_of() as kie:
        limit = ("--max-credits", "12")
        statuses = [(await batch(kie, tmp_path, "prompts.txt", *limit).run()).status for _ in range(3)]
        assert statuses == [5, 5, 0]
        assert (await batch(kie, tmp_path, "prompts.txt", "--limit", "0").run()).status == 0
    assert paid(kie) == len(folder.images) == 5


LIMITED = {
    "requests are left": ("A lake\nA hill\n", 5),
    "and one has failed": ("A lake [[kie:policy]]\nA hill\n", 5),
    "and one is unknown": ("A lake [[kie:dropped]]\nA hill\n", 4),
    "and the key is wrong": ("A lake [[kie:401]]\nA hill\n", 1),
    "nothing is left": ("A lake\n", 0),
    "nothing is left, and one has failed": ("A lake [[kie:policy]]\n", 3),
}


@pytest.mark.parametrize("case", LIMITED)
async def test_a_limit_of_requests_has_a_status(tmp_path: Path, case: str) -> None:
    """It says that requests are left, unless there is something worse to say."""
    text, status = LIMITED[case]
    write(tmp_path, "prompts.txt", text)
    async with kie_of() as kie:
        outcome = await batch(kie, tmp_path, "prompts.txt", "--limit", "1").run()
    assert (outcome.status, submits(kie)) == (status, 1)


# -- what goes on ----------------------------------------------------------------------------------

FAILED = "A lake [[kie:policy]]\n"
REFUSED = "A hill [[kie:422]]\n"
PLAIN, RETRY = "to go on: {again}", "to submit the failed ones again: {again} --retry-failed"
GOING_ON = {
    "all is done": ("A lake\n", [], []),
    "a task has failed": (FAILED, [], [RETRY]),
    "it has failed once more": (FAILED, ["--retry-failed"], ["to submit the failed ones again: {again}"]),
    "a request was refused": (REFUSED, [], [PLAIN]),
    "one has failed, one was refused": (FAILED + REFUSED, [], [PLAIN]),
    "one has failed, one is left": (FAILED + "A hill\n", ["--limit", "1"], [PLAIN]),
    "the key is wrong": ("A lake [[kie:401]]\n" + prompts(30), [], [PLAIN]),
    "the limit is too low": (
        "A lake\n",
        ["--max-credits", "5", "--retry-failed"],
        ["to go on, raise --max-credits to 6 or more"],
    ),
    "the limit is too low for the last": (
        '{"prompt": "A lake"}\n{"prompt": "A hill", "variants": 4}\n',
        ["--max-credits", "12", "--format", "jsonl"],
        ["to go on, raise --max-credits to 24 or more"],
    ),
    "the limit is reached": (prompts(2), ["--max-credits", "6"], [PLAIN]),
}


@pytest.mark.parametrize("case", GOING_ON)
async def test_one_command_goes_on(tmp_path: Path, case: str) -> None:
    """The one that pays for nothing again, as long as there is something that it brings further. The page
    has none that could never submit anything."""
    text, more, expected = GOING_ON[case]
    folder = write(tmp_path, "prompts.txt", text)
    async with kie_of() as kie:
        outcome = await batch(kie, tmp_path, "prompts.txt", *more).run()
    options = f"{' '.join(more)} --out images {' '.join(OPTIONS)}".strip()
    again = f"{AGAIN} batch prompts.txt {options}"
    lines = [line for line in outcome.out.splitlines() if line.startswith("to ")]
    assert lines == [line.format(again=again) for line in expected]
    command = (folder.path / ".kie4o.command").read_text("utf-8")
    assert bool(command) == ("raise" not in "".join(expected))


async def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    """Nothing was paid: the same command goes on."""
    write(tmp_path, "prompts.txt", prompts(3))
    async with kie_of() as kie:
        command = batch(kie, tmp_path, "prompts.txt")
    outcome = await command.run()
    assert outcome.status == 3
    assert re.fullmatch(
        r"line \d: no answer from POST \S+ cannot connect to 127.0.0.1:\d+ \(.*\); the request was not sent "
        r"and nothing was charged; check the network, and KIE_BASE_URL if it is set",
        outcome.notes[-2],
    )
    assert re.fullmatch(r"lines \d and \d: the same as line \d", outcome.notes[-1])
    assert outcome.out.splitlines()[0] == (
        "0 of 3 done, 3 failed, 0 unknown, 0 not submitted; 0 images in 'images'"
    )
    assert [line for line in outcome.out.splitlines() if line.startswith("to ")] == [
        f"to go on: {AGAIN} batch prompts.txt --out images {' '.join(OPTIONS)}"
    ]


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("count", [1, 2])
async def test_unknown_outcomes_name_the_command_that_settles_them(
    tmp_path: Path, keyed: bool, count: int
) -> None:
    """Of one the whole command, of several also the one that lists them."""
    lines = [
        {"prompt": "A lake [[kie:dropped]]"} | ({"key": f"lake-{number}"} if keyed else {})
        for number in range(count)
    ]
    folder = write(tmp_path, "requests.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
    async with kie_of() as kie:
        outcome = await batch(kie, tmp_path, "requests.jsonl", "--store", "run.db").run()
        assert outcome.status == 4
        said = [line for line in outcome.out.splitlines() if "settle" in line or "unfinished" in line]
        ref = folder.records[0]["ref"]
        name = "lake-0" if keyed else folder.records[0]["key"] if ref.startswith("-") else ref
        if count == 1:
            settle = f"{AGAIN} settle {name} --store run.db"
            assert said == [
                f"look for line 1 at kie.ai/logs, then tell kie4o: {settle} --task ID, or --not-charged"
            ]
            task = next(iter(kie.tasks))
            words = [*settle.split()[3:], "--task", task]
            assert (await against(kie, tmp_path, *words).run()).status == 0
            again = await batch(kie, tmp_path, "requests.jsonl", "--store", "run.db").run()
            assert again.status == 0, again.err
        else:
            assert said == [
                f"to list the unknown outcomes: {AGAIN} unfinished --store run.db",
                f"look for each at kie.ai/logs, then tell kie4o: {AGAIN} settle KEY --store run.db "
                "--task ID, or --not-charged",
            ]


async def test_a_dry_run_sends_and_writes_nothing(tmp_path: Path) -> None:
    """It tells the price. Without an API key, too."""
    write(tmp_path, "prompts.txt", prompts(5))
    async with kie_of() as kie:
        words = ("batch", "prompts.txt", "--out", "images", "--variants", "2", "--dry-run")
        outcome = await Command(tmp_path, *words, KIE_BASE_URL=kie.url).run()
    assert outcome.status == 0
    assert outcome.out == "0 done, 0 under way, 0 unknown, 5 to submit for 60 credits; nothing was sent\n"
    assert not was_asked(kie)
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


# -- what cannot be used ---------------------------------------------------------------------------

BAD = {
    "csv": (
        "requests.csv",
        "prompt,size,variants,file\nA lake,9:9,1,\nA hill,1:1,3,\n,,,\nA harbour,,,missing.png\nok,,,,,\n",
        [
            "line 2: invalid size '9:9'",
            "line 3: invalid n_variants '3'",
            "line 5: cannot read",
            "line 6: 6 cells",
        ],
    ),
    "columns": (
        "requests.csv",
        "promt,size,size\nA lake,1:1,1:1\n",
        ["line 1: unknown column 'promt'", "is there twice"],
    ),
    "a column, and rows": (
        "requests.csv",
        "prompt,sise,variants\nA lake,1:1,3\nA hill,1:1,1,1\nA harbour,1:1,1\n",
        [
            "line 1: unknown column 'sise': expected prompt",
            "line 2: invalid n_variants '3'",
            "line 3: 4 cells: expected at most 3",
        ],
    ),
    "json in a cell": (
        "requests.csv",
        'prompt,extra\nA lake,"{""a"": }"\n',
        ["line 2: invalid extra '{\"a\": }': expected JSON (Expecting value at column 7)\n"],
    ),
    "where json is wrong": (
        "requests.jsonl",
        '{"prompt": "A lake", "size":\r\n{"prompt" 1}\n{"prompt": "A hill"',
        [
            "line 1: invalid JSON: Expecting value at column 29\n",
            "line 2: invalid JSON: Expecting ':' delimiter at column 11\n",
            "line 3: invalid JSON: Expecting ',' delimiter at column 20\n",
        ],
    ),
    "quotes": ("requests.csv", 'prompt\n"A lake\n', ["line 2: invalid CSV"]),
    "jsonl": (
        "requests.jsonl",
        '{"prompt": "A lake", "size": "9:9"}\n\n{"prompt"}\n[1]\n{"promt": "A hill"}\n{}\n'
        '{"prompt": "a", "key": "k"}\n{"prompt": "b", "key": "k"}\n{"prompt": "c", "name": 5}\n'
        '{"prompt": 7}\n{"prompt": "d", "files_url": {"a": 1}}\n',
        [
            "line 1: invalid size='9:9'",
            "line 3: invalid JSON",
            "line 4: expected a JSON object",
            "line 5: unknown field 'promt'",
            "line 6: a request needs a prompt or a file",
            "line 8: key 'k' is that of line 7",
            "line 9: invalid name 5",
            "line 10: invalid prompt=7",
            "line 11: invalid file",
        ],
    ),
    "encoding": ("prompts.txt", b"A lake\nA caf\xe9\n", ["line 2: byte 0xe9 is not UTF-8"]),
}


@pytest.mark.parametrize("case", BAD)
async def test_every_bad_line_is_told_before_anything_is_sent(tmp_path: Path, case: str) -> None:
    """Each with its number and what is allowed; status 2, and nothing is sent or created."""
    name, contents, expected = BAD[case]
    (tmp_path / name).write_bytes(contents.encode() if isinstance(contents, str) else contents)
    async with kie_of() as kie:
        outcome = await batch(kie, tmp_path, name).run()
    assert outcome.status == 2
    assert outcome.out == ""
    for words in expected:
        assert words in outcome.err
    assert "nothing was sent" in outcome.notes[-1]
    assert len(outcome.notes) == len(expected) + 1
    assert not was_asked(kie)
    assert not (tmp_path / "images").exists()


UNUSABLE = {
    "no such file": ("missing.txt", [], "cannot read 'missing.txt': No such file"),
    "no format": ("prompts", [], "the format of 'prompts' is not known: expected .csv"),
    "empty": ("empty.txt", [], "no request in 'empty.txt'"),
    "a folder in the way": ("prompts.txt", ["--out", "prompts"], "cannot write to --out 'prompts'"),
    "failed is the file": (
        "prompts.txt",
        ["--failed", "./prompts.txt"],
        "--failed 'prompts.txt' is FILE itself",
    ),
    "failed is a folder": ("prompts.txt", ["--failed", "."], "cannot write to --failed '.'"),
    "a negative limit": ("prompts.txt", ["--limit", "-1"], "--limit"),
    "no task at once": ("prompts.txt", ["--max-in-flight", "0"], "--max-in-flight"),
    "a size": ("prompts.txt", ["--size", "9:9"], "--size"),
}


@pytest.mark.parametrize("case", UNUSABLE)
async def test_what_cannot_be_used_is_told_before_anything_is_sent(tmp_path: Path, case: str) -> None:
    """One line that names the option or the file; status 2."""
    name, more, expected = UNUSABLE[case]
    write(tmp_path, "prompts.txt", prompts(2))
    write(tmp_path, "prompts", prompts(2))
    write(tmp_path, "empty.txt", "\n\n")
    async with kie_of() as kie:
        words = ["batch", name, *OPTIONS, *more]
        outcome = await against(
            kie, tmp_path, *words, *([] if "--out" in more else ["--out", "images"])
        ).run()
    assert outcome.status == 2
    assert expected in outcome.err
    assert len(outcome.notes) == 1
    assert not was_asked(kie)


async def test_a_key_of_another_request_is_a_bad_line(tmp_path: Path) -> None:
    """A key belongs to one request for ever: a line that uses it for another is told before the others are
    sent."""
    write(tmp_path, "requests.jsonl", '{"prompt": "A lake", "key": "k"}\n')
    async with kie_of() as kie:
        assert (await batch(kie, tmp_path, "requests.jsonl").run()).status == 0
        write(tmp_path, "requests.jsonl", '{"prompt": "A hill"}\n{"prompt": "A harbour", "key": "k"}\n')
        (tmp_path / "images" / "results.jsonl").unlink()
        outcome = await batch(kie, tmp_path, "requests.jsonl").run()
    assert outcome.status == 2
    assert "line 2: key 'k' was already used for another request" in outcome.err
    assert paid(kie) == 1


# -- for programs ----------------------------------------------------------------------------------


async def test_events_for_a_program(tmp_path: Path) -> None:
    """With --json each line of stdout is an object with `event`, errors included."""
    folder = write(tmp_path, "prompts.txt", "A lake\nA hill [[kie:policy]]\n")
    async with kie_of() as kie:
        outcome = await batch(kie, tmp_path, "prompts.txt", "--json", "--progress-every", "0.1").run()
        assert outcome.status == 3
        bad = await batch(kie, tmp_path, "missing.txt", "--json").run()
    events: dict[str, list[Any]] = {}
    for record in outcome.records:
        events.setdefault(record.pop("event"), []).append(record)
    assert list(events) == ["plan", "progress", "item", "summary"]
    assert events["plan"] == [
        {"done": 0, "under_way": 0, "unknown": 0, "failed": 0, "to_submit": 2, "price": 12.0}
    ]
    assert sorted(map(str, events["item"])) == sorted(map(str, folder.records))
    assert events["progress"][0]["total"] == 2
    [summary] = events["summary"]
    assert (summary["done"], summary["failed"], summary["spent"], summary["balance"]) == (
        1,
        1,
        12.0,
        BALANCE - 12,
    )
    [error] = bad.records
    assert (error["event"], error["error"]) == ("error", "UsageError")


async def test_a_line_now_and_then_where_nothing_can_be_drawn(tmp_path: Path) -> None:
    """In a pipe there is one plain line every --progress-every seconds, and none with --quiet."""
    write(tmp_path, "prompts.txt", prompts(3))
    async with kie_of(duration=100.0) as kie:
        began = time.monotonic()
        outcome = await batch(kie, tmp_path, "prompts.txt", "--progress-every", "0.3").run()
        seconds = time.monotonic() - began
        quiet = await batch(kie, tmp_path, "prompts.txt", "--quiet").run()
    lines = [line for line in outcome.notes if " waiting · " in line]
    assert 1 <= len(lines) <= seconds / 0.3 + 2
    assert any("0 of 3 · 0 waiting · 3 running · 0 done" in line for line in lines)
    assert "\x1b" not in outcome.err + outcome.out
    assert quiet.err == ""
    assert "3 of 3 done" in quiet.out


async def test_a_reader_that_goes_away_ends_nothing(tmp_path: Path) -> None:
    """`| head -1`: what is paid is saved all the same."""
    folder = write(tmp_path, "prompts.txt", prompts(10))
    async with kie_of() as kie:
        process = await batch(kie, tmp_path, "prompts.txt", "--json").start()
        assert process.stdout is not None
        await process.stdout.readline()
        process.stdout._transport.close()  # type: ignore[attr-defined]  # as the reader of a pipe does
        assert process.stderr is not None
        err = await asyncio.wait_for(process.stderr.read(), 30)
        status = await asyncio.wait_for(process.wait(), 30)
    assert (status, b"Traceback" in err) == (0, False)
    assert len(folder.images) == 10


async def test_a_store_that_is_in_use(tmp_path: Path) -> None:
    """Two runs at once on one store: the second says so, with status 6, and harms nothing."""
    write(tmp_path, "prompts.txt", prompts(2))
    (tmp_path / "images").mkdir()
    async with kie_of() as kie, AsyncKieClient("k", base_url=kie.url, store=tmp_path / "run.db"):
        outcome = await batch(kie, tmp_path, "prompts.txt", "--store", "run.db").run()
    assert outcome.status == 6
    assert not was_asked(kie)
