"""`kie4o generate`: what it pays for, saves and prints, and what it refuses before anything is paid."""

import json
import shlex
import socket
import struct
import zlib
from pathlib import Path

import attrs
import pytest
from programs import AGAIN, FAST, Command, Outcome, against, paid, submits, was_asked

from kie4o.emulator import Emulator, pictures

pytestmark = pytest.mark.once


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


# -- what it does ----------------------------------------------------------------------------------


async def test_it_saves_and_prints_the_paths(tmp_path: Path) -> None:
    """One path per line on stdout; the task id is on stderr once the task is paid."""
    async with Emulator(clock="real", **FAST) as kie:
        words = ("generate", "A calm [bold] lake", "--size", "3:2", "--variants", "2", "--out", "out")
        outcome = await against(kie, tmp_path, *words).run()
        [task] = kie.tasks.values()
    assert outcome.status == 0
    paths = [Path(line) for line in outcome.out.splitlines()]
    assert paths == [tmp_path / "out" / f"{task.id}_{index}.png" for index in (0, 1)]
    assert [size_of_png(path) for path in paths] == [(768, 512)] * 2
    assert task.request == {"prompt": "A calm [bold] lake", "size": "3:2", "nVariants": 2}
    assert outcome.notes == [f"task {task.id} is paid"]
    states = [line.rpartition(": ")[2] for line in outcome.err.splitlines() if line.startswith("   ")]
    assert states == ["waiting", "running", "saving", "saved"]


async def test_every_field_of_a_request_is_an_option(tmp_path: Path) -> None:
    """A path is uploaded, a mask too; a URL is passed on; --set passes what kie4o does not know."""
    (tmp_path / "lake.png").write_bytes(pictures.BLANK)
    (tmp_path / "mask.png").write_bytes(pictures.BLANK + b"a mask")
    words = (
        "--file",
        "lake.png",
        "--mask",
        "mask.png",
        "--enhance",
        "--fallback",
        "GPT_IMAGE_1",
        "--upload-cn",
    )
    async with Emulator(clock="real", **FAST) as kie:
        more = ("--set", "seed=5", "--set", "style=vivid", "--name", "new", "--json")
        outcome = await against(kie, tmp_path, "generate", "Add a boat", *words, *more).run()
        [task] = kie.tasks.values()
        [file], mask = task.request.pop("filesUrl"), task.request.pop("maskUrl")
        assert file.startswith(kie.url)
        assert mask.startswith(kie.url)
        assert file != mask
    assert task.request == {
        "prompt": "Add a boat",
        "size": "1:1",
        "isEnhance": True,
        "uploadCn": True,
        "enableFallback": True,
        "fallbackModel": "GPT_IMAGE_1",
        "seed": 5,
        "style": "vivid",
    }
    [report] = outcome.records
    assert report["task_id"] == task.id
    assert report["files"] == [str(tmp_path / "new.png")]
    assert len(report["urls"]) == 1
    assert outcome.status == 0


async def test_several_prompts_and_those_of_standard_input(tmp_path: Path) -> None:
    """A - reads a prompt per line; names are numbered."""
    async with Emulator(clock="real", **FAST) as kie:
        command = against(
            kie, tmp_path, "generate", "One", "-", "--name", "boat", "--json", stdin="Two\n\n Three \n"
        )
        outcome = await command.run()
        prompts = sorted(task.request["prompt"] for task in kie.tasks.values())
    assert outcome.status == 0
    assert prompts == ["One", "Three", "Two"]
    shown = {record["prompt"]: Path(record["files"][0]).name for record in outcome.records}
    assert shown == {"One": "boat-1.png", "Two": "boat-2.png", "Three": "boat-3.png"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boat-1.png", "boat-2.png", "boat-3.png"]


async def test_one_that_fails_harms_no_other(tmp_path: Path) -> None:
    """The others are saved, the status is 3, and each object says which prompt it is about."""
    async with Emulator(clock="real", **FAST) as kie:
        prompts = ("A lake", "A forbidden lake [[kie:policy]]")
        outcome = await against(kie, tmp_path, "generate", *prompts, "--json").run()
        assert paid(kie) == 2
    assert outcome.status == 3
    by_index = {record["index"]: record for record in outcome.records}
    assert len(by_index[0]["files"]) == 1
    assert by_index[1]["error"] == "ContentPolicyError"
    assert by_index[1]["task_id"] in outcome.err


async def test_no_wait_prints_the_ids_and_wait_goes_on(tmp_path: Path) -> None:
    """--no-wait ends once the tasks are paid; kie4o wait saves their images under numbered names."""
    async with Emulator(clock="real", **FAST) as kie:
        outcome = await against(kie, tmp_path, "generate", "One", "Two", "--no-wait").run()
        tasks = outcome.out.split()
        assert tasks == [*kie.tasks]
        assert not list(tmp_path.iterdir())
        assert outcome.notes == [f"task {task} is paid; to go on: {AGAIN} wait {task}" for task in tasks]
        outcome = await against(kie, tmp_path, "wait", *tasks, "--name", "boat", "--out", "out").run()
        assert paid(kie) == 2
    assert outcome.status == 0
    assert sorted(outcome.out.splitlines()) == [str(tmp_path / "out" / f"boat-{n}.png") for n in (1, 2)]


async def test_a_key_is_paid_once(tmp_path: Path) -> None:
    """With --store and --key the same command pays once; a second run replays what the store knows."""
    words = ("generate", "A lake", "--store", "run.db", "--key", "k1")
    async with Emulator(clock="real", **FAST) as kie:
        first = await against(kie, tmp_path, *words).run()
        second = await against(kie, tmp_path, *words).run()
        replayed = await against(kie, tmp_path, *words, "--json").run()
        assert paid(kie) == 1
        [task] = kie.tasks
    assert first.out == second.out
    assert (first.status, second.status, replayed.status) == (0, 0, 0)
    assert first.notes == [f"task {task} is paid"]
    assert second.notes == [f"task {task} is in the store, and is not paid again"]
    assert "running" not in second.err
    assert [record["replayed"] for record in replayed.records] == [True]


async def test_a_key_with_a_local_file_is_paid_once(tmp_path: Path) -> None:
    """The file has the same URL in a second run; with other contents it is another request."""
    (tmp_path / "cat.png").write_bytes(pictures.BLANK)
    words = (
        "generate",
        "A lake",
        "--file",
        "cat.png",
        "--mask",
        "cat.png",
        "--store",
        "run.db",
        "--key",
        "k",
    )
    async with Emulator(clock="real", **FAST) as kie:
        outcomes = [await against(kie, tmp_path, *words).run() for _ in range(2)]
        (tmp_path / "cat.png").write_bytes(pictures.BLANK + b"x")
        other = await against(kie, tmp_path, *words).run()
        assert paid(kie) == 1
    assert [outcome.status for outcome in outcomes] == [0, 0]
    assert outcomes[0].out == outcomes[1].out
    assert other.notes == ["key 'k' was already used for another request; use a new key for a new request"]


@pytest.mark.posix("the quotes of its shells")
@pytest.mark.parametrize(
    ("prompt", "advice"),
    [
        ("A [[kie:policy]] lake", "change the prompt 'A [[kie:policy]] lake' and the key; "),
        ("A [[kie:failed]] lake", ""),
    ],
    ids=["policy", "failed"],
)
async def test_a_failure_under_a_key_is_paid_again_with_retry_failed(
    prompt: str, advice: str, tmp_path: Path
) -> None:
    """A second run says that the failure is an earlier one; --retry-failed pays once more."""
    words = ("generate", prompt, "--store", "run.db", "--key", "k1")
    async with Emulator(clock="real", **FAST) as kie:
        outcomes = [await against(kie, tmp_path, *words, *more).run() for more in ((), (), ("--json",))]
        assert paid(kie) == 1
        again = await against(kie, tmp_path, *words, "--retry-failed").run()
        assert paid(kie) == 2
        first, second = kie.tasks
    hint = f"{advice}to submit it again, which costs again: {AGAIN} {shlex.join(words)}"
    assert [outcome.status for outcome in (*outcomes, again)] == [1] * 4
    assert outcomes[0].notes[0] == f"task {first} is paid"
    assert outcomes[0].notes[1].startswith(f"task {first} failed with code ")
    assert outcomes[0].notes[1].endswith(f"; {hint} --retry-failed")
    assert "earlier" not in outcomes[0].err
    assert outcomes[1].notes[0] == f"task {first} is in the store, and is not paid again"
    assert outcomes[1].notes[1].endswith(f"; that was in an earlier run; {hint} --retry-failed")
    assert [record["replayed"] for record in outcomes[2].records] == [True]
    assert again.notes[0] == f"task {second} is paid"
    assert again.notes[1].endswith(f"; {hint} --retry-failed")


async def test_a_task_of_an_earlier_run_is_waited_for(tmp_path: Path) -> None:
    """It runs since then: it is not called replayed, and is not paid again."""
    words = ("generate", "A lake", "--store", "run.db", "--key", "k1")
    async with Emulator(clock="real", **FAST) as kie:
        first = await against(kie, tmp_path, *words, "--no-wait").run()
        outcome = await against(kie, tmp_path, *words, "--json").run()
        assert paid(kie) == 1
    assert outcome.notes == [f"task {first.out.strip()} was paid in an earlier run"]
    assert [record["replayed"] for record in outcome.records] == [False]


# -- names that are taken --------------------------------------------------------------------------


@attrs.frozen
class Existing:
    """A run of `generate --name boat` in a folder with an older boat.png."""

    outcome: Outcome
    paid: int
    old: bytes
    names: list[str]


async def with_a_boat(folder: Path, *words: str) -> Existing:
    (folder / "boat.png").write_bytes(b"an older boat")
    (folder / "cat.png").write_bytes(pictures.BLANK)
    async with Emulator(clock="real", **FAST) as kie:
        command = against(kie, folder, "generate", "A boat", "--name", "boat", "--file", "cat.png", *words)
        outcome = await command.run()
        if not kie.tasks:
            assert not was_asked(kie)  # not even an upload
        return Existing(
            outcome,
            paid(kie),
            (folder / "boat.png").read_bytes(),
            sorted(path.name for path in folder.glob("boat*")),
        )


async def test_a_taken_name_is_refused_before_anything_is_paid(tmp_path: Path) -> None:
    """A picture is never replaced without a word: nothing is uploaded, and one line names the ways out."""
    seen = await with_a_boat(tmp_path)
    assert (seen.outcome.status, seen.paid, seen.old) == (2, 0, b"an older boat")
    [line] = seen.outcome.notes
    assert line == "'boat.png' exists: expected another --name, or --exists keep, replace or rename"


async def test_keep_pays_nothing(tmp_path: Path) -> None:
    """--exists keep prints the path of the file that is there."""
    seen = await with_a_boat(tmp_path, "--exists", "keep")
    assert (seen.outcome.status, seen.paid, seen.old) == (0, 0, b"an older boat")
    assert seen.outcome.out == f"{tmp_path / 'boat.png'}\n"


async def test_replace_and_rename_pay(tmp_path: Path) -> None:
    """--exists replace replaces the file, rename saves beside it."""
    seen = await with_a_boat(tmp_path, "--exists", "rename")
    assert (seen.outcome.status, seen.paid, seen.old) == (0, 1, b"an older boat")
    assert seen.names == ["boat (1).png", "boat.png"]
    seen = await with_a_boat(tmp_path, "--exists", "replace")
    assert (seen.outcome.status, seen.paid, seen.old[:4]) == (0, 1, b"\x89PNG")


async def test_images_of_two_tasks_are_not_mixed(tmp_path: Path) -> None:
    """Of two variants only one is there: it is not kept beside the second of another task."""
    (tmp_path / "boat_0.png").write_bytes(b"an older boat")
    async with Emulator(clock="real") as kie:
        words = ("generate", "A boat", "--variants", "2", "--name", "boat", "--exists", "keep")
        outcome = await against(kie, tmp_path, *words).run()
        assert not was_asked(kie)
    assert outcome.status == 2
    assert outcome.notes == [
        "only 1 of 2 images of --name 'boat' are there: expected another name, or --exists replace or rename"
    ]


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("A lake", "--size", "16:9"), 'Invalid value "16:9" for --size. Choose from: "1:1", "3:2", "2:3".'),
        (("A lake", "--variants", "3"), 'Invalid value "3" for --variants. Choose from: 1, 2, 4.'),
        (("A lake", "--sise", "3:2"), "Unknown option: --sise. Did you mean --size?"),
        (("A lake", "--timeout", "-1"), 'Invalid value "-1.0" for --timeout. Must be > 0.'),
        ((" ",), "invalid PROMPT=' ': expected a string that is not blank"),
        ((), "a request needs a prompt or a file: pass prompt or --file"),
        (("-",), "no prompt on standard input: expected one per line"),
        (("A lake", "--mask", "m.png"), "cannot read --mask 'm.png': No such file or directory"),
        (("A lake", "--file", "none.png"), "cannot read --file 'none.png': No such file or directory"),
        (("A lake", "--file", "empty.png"), "cannot read --file 'empty.png': it is empty"),
        (("A lake", "--file", "."), "cannot read --file '.': "),
        (("A lake", "--out", "taken"), "cannot write to --out 'taken': it is not a folder"),
        (("A lake", "--out", "taken/out"), f"cannot write to --out '{Path('taken/out')}': "),
        (("A lake", "--key", "k1"), "invalid --key 'k1': expected --store too, the file that remembers it"),
        (
            ("A lake", "--key", "", "--store", "run.db"),
            "invalid --key='': expected a string of 1 to 512 printable characters",
        ),
        (("A lake", "--retry-failed"), "--retry-failed has no effect without --key"),
        (
            ("A lake", "--set", "seed"),
            "invalid --set 'seed': expected name=value, with the name that Kie gives it",
        ),
        (
            ("A lake", "--size", "3:2", "--set", "size=16:9"),
            "invalid --set size: pass either --size or --set size, not both",
        ),
        (
            ("A lake", "--callback-url", "me"),
            "invalid --callback-url='me': expected a complete http:// or https:// URL without spaces",
        ),
        (
            ("A lake", *("--file", "images/a lake.png") * 6),
            "invalid --file=['images/a lake.png', '...']: expected at most 5 URLs, got 6",
        ),
        (
            ("A lake", *("--file", "https://example.com/a.png") * 6),
            "invalid --file=['https://example.com/a.png', '...']: expected at most 5 URLs, got 6",
        ),
    ],
    ids=lambda value: shlex.join(value)[:60] if isinstance(value, tuple) else "",
)
async def test_what_cannot_be_used_is_one_line(tmp_path: Path, arguments: tuple[str, ...], line: str) -> None:
    """It names the option that was typed and what is allowed; the status is 2 and nothing is sent."""
    (tmp_path / "taken").write_text("a file, not a folder")
    (tmp_path / "empty.png").touch()
    async with Emulator(clock="real") as kie:
        outcome = await against(kie, tmp_path, "generate", *arguments).run()
        assert not was_asked(kie)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.notes[-1].startswith(line)  # the reasons of a system are its own
    assert len(outcome.notes) == 1 + ("--mask" in arguments)  # and that a mask has no effect without a file


@pytest.mark.posix("permissions of a folder")
async def test_a_folder_that_cannot_be_written_is_found_first(tmp_path: Path) -> None:
    """Neither an upload nor a submit happens before the folder is proved to take files."""
    (tmp_path / "cat.png").write_bytes(pictures.BLANK)
    async with Emulator(clock="real") as kie:
        outcome = await against(
            kie, tmp_path, "generate", "A", "--file", "cat.png", "--out", "/proc/out"
        ).run()
        assert not was_asked(kie)
    assert outcome.status == 2
    assert outcome.notes[0].startswith("cannot write to --out '/proc/out': ")


async def test_a_note_about_what_costs_for_nothing_is_in_words_of_the_terminal(tmp_path: Path) -> None:
    """Warnings of a request are notes that name options."""
    (tmp_path / "a.svg").write_text("<svg/>")
    async with Emulator(clock="real", **FAST) as kie:
        outcome = await against(kie, tmp_path, "generate", "A lake", "--file", "a.svg").run()
    assert outcome.notes[0].startswith("Kie lists no .svg files")


# -- what fails ------------------------------------------------------------------------------------


async def test_a_wrong_key_is_one_line_without_the_key(tmp_path: Path) -> None:
    """401 is status 1 and one line that names KIE_API_KEY and does not show the key."""
    async with Emulator(clock="real", api_key="right") as kie:
        outcome = await against(kie, tmp_path, "generate", "A calm lake", key="wrong-key-9876").run()
        assert paid(kie) == 0
    assert outcome.status == 1
    [line] = outcome.notes
    assert "401" in line
    assert "KIE_API_KEY" in line
    assert "wrong-key" not in outcome.err + outcome.out


async def test_an_empty_balance_ends_the_other_prompts(tmp_path: Path) -> None:
    """402 is said in terms of the command line, and with --json as one object."""
    async with Emulator(clock="real", credits=0.0) as kie:
        outcome = await against(kie, tmp_path, "generate", "A calm lake", "--json").run()
    assert outcome.status == 1
    assert "kie4o credits" in outcome.notes[-1]
    [record] = outcome.records
    assert record["error"] == "InsufficientCreditsError"
    assert record["message"] == outcome.notes[-1]
    assert record["task_id"] is None


async def test_a_refused_connection_is_one_line(tmp_path: Path) -> None:
    """A refused connection is status 1 and one line with the address, which says that nothing was charged.

    Before it a slow machine may say that it tries again. The port is kept, so that no other server gets it.
    """
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{kept.getsockname()[1]}"
        outcome = await Command(
            tmp_path, "generate", "A calm lake", KIE_API_KEY="k-123", KIE_BASE_URL=url
        ).run()
    assert outcome.status == 1
    line = outcome.notes[-1]
    assert url in line
    assert "nothing was charged" in line
    assert sum("charged" in note for note in outcome.notes) == 1
    assert "Traceback" not in outcome.err


async def test_a_failed_task_says_why(tmp_path: Path) -> None:
    """A failed task is status 1 with Kie's reason; the prompt can be changed, and nothing goes on."""
    async with Emulator(clock="real", **FAST, outcome="policy") as kie:
        outcome = await against(kie, tmp_path, "generate", "A calm lake").run()
        [task] = kie.tasks
        waited = await against(kie, tmp_path, "wait", task).run()
    assert (outcome.status, waited.status) == (1, 1)
    reason = "Your content was flagged by OpenAI as violating content policies"
    said = f"task {task} failed with code 400: {reason}; change the prompt 'A calm lake'"
    assert outcome.notes[-1] == said
    assert waited.notes == [said]


@pytest.mark.posix("the quotes of its shells")
async def test_an_unknown_outcome_is_status_4(tmp_path: Path) -> None:
    """The line says what may have been charged, and with a store the command that settles it, whole."""
    async with Emulator(clock="real") as kie:
        words = ("generate", "A [[kie:dropped]] lake", "--store", "my run.db", "--json")
        outcome = await against(kie, tmp_path, *words).run()
        assert outcome.status == 4
        [record] = outcome.records
        assert record["error"] == "SubmissionUnknownError"
        assert "may have been charged" in record["message"]
        listed = await against(kie, tmp_path, "unfinished", "--store", "my run.db", "--json").run()
        [entry] = listed.records
        settle = f"settle {entry['key']} --store 'my run.db' --json"
        assert record["message"].endswith(f"{AGAIN} {settle} --task ID, or --not-charged")
        settled = await against(kie, tmp_path, *shlex.split(settle), "--not-charged").run()
        assert settled.status == 0
        listed = await against(kie, tmp_path, "unfinished", "--store", "my run.db").run()
        assert listed.notes == ["nothing is unfinished"]


@pytest.mark.posix("the quotes of its shells")
async def test_a_task_that_timed_out_goes_on_with_every_option(tmp_path: Path) -> None:
    """After --timeout the status is 1, and the command in the line saves the image where it was wanted.

    It does not repeat a time that was too short."""
    async with Emulator(clock="real", **FAST) as kie:
        words = ("A slow lake", "--timeout", "0.1", "--out", "my images", "--name", "it's", "--json")
        outcome = await against(kie, tmp_path, "generate", *words).run()
        [task] = kie.tasks.values()
        assert outcome.status == 1
        rest = f"""{task.id} --out 'my images' --name 'it'"'"'s' --json"""
        said = f"timed out waiting for task {task.id}; it is still running; to go on: {AGAIN} wait {rest}"
        assert outcome.notes[-1] == said
        [record] = outcome.records
        assert {name: record[name] for name in ("error", "message", "task_id")} == {
            "error": "TaskTimeoutError",
            "message": said,
            "task_id": task.id,
        }
        words = shlex.split(outcome.notes[-1].partition("to go on: ")[2])[3:]
        outcome = await against(kie, tmp_path, *words).run()
        assert paid(kie) == 1
    assert json.loads(outcome.out)["files"] == [str(tmp_path / "my images" / "it's.png")]


async def test_a_download_that_fails_names_the_command_that_saves(tmp_path: Path) -> None:
    """The task is paid: its images are downloaded again at no cost."""
    async with Emulator(clock="real", **FAST) as kie:
        kie.fault("image", body="no image", times=10)
        words = ("generate", "A lake", "--out", "out", "--store", "run.db")
        outcome = await against(kie, tmp_path, *words).run()
        [task] = kie.tasks.values()
        assert outcome.status == 1
        hint = f"download {task.id} --out out"
        assert outcome.notes[-1].endswith(f"; to go on: {AGAIN} {hint}")
        kie.faults.clear()
        assert (await against(kie, tmp_path, *hint.split()).run()).status == 0
        assert submits(kie) == 1
