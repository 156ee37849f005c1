"""`kie4o batch` in several processes with one database: they share the lines, and each saves all images."""

from __future__ import annotations

import asyncio
from pathlib import Path

import postgres
import pytest
from image_folders import Folder
from programs import Command, against, paid

from kie4o.emulator import Emulator

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c63f8ffff3f0005fe02"
    "fea73581e40000000049454e44ae426082"
)
pytestmark = [pytest.mark.once, pytest.mark.posix("PostgreSQL")]
LINES = 24


def kie_of() -> Emulator:
    return Emulator(clock="real", duration=0.5, limit=1000, credits=10_000, pictures=False)


def batch(
    kie: Emulator, folder: Path, number: int, store: str, *words: str, file: str = "prompts.txt"
) -> Command:
    words = (file, "--out", f"images {number}", "--store", store, "--max-in-flight", "3", *words)
    return against(kie, folder, "batch", *words)


@pytest.fixture
def store(tmp_path: Path) -> str:
    (tmp_path / "prompts.txt").write_text("".join(f"Lake {n}\n" for n in range(LINES)), "utf-8")
    return postgres.shared_url()


async def test_two_processes_share_the_lines_of_a_file(tmp_path: Path, store: str) -> None:
    """Each says what it has paid itself, and how many the other has submitted since; one that begins late
    finds lines that are done. Run again, neither pays."""
    async with kie_of() as kie:
        outcomes = await asyncio.gather(*(batch(kie, tmp_path, n, store, "--json").run() for n in range(2)))
        assert paid(kie) == LINES
        summaries = [outcome.records[-1] for outcome in outcomes]
        print(summaries)
        for number, (outcome, summary) in enumerate(zip(outcomes, summaries, strict=True)):
            assert outcome.status == 0, outcome.err
            assert (summary["done"], summary["images"], summary["spent_in_all"]) == (LINES, LINES, LINES * 6)
            assert 0 < summary["spent"] <= 6 * (LINES - summary["elsewhere"])
            assert len(Folder(tmp_path / f"images {number}").images) == LINES
        assert sum(summary["spent"] for summary in summaries) == 6 * LINES
        assert min(summary["elsewhere"] for summary in summaries) > 0
        again = await batch(kie, tmp_path, 0, store).run()
        assert f"spent 0 credits in this run, {LINES * 6} in all" in again.out
        assert "by other processes" not in again.out
        assert paid(kie) == LINES


async def test_local_files_are_those_of_whoever_submits(tmp_path: Path, store: str) -> None:
    """Each process uploads them, and the URLs differ. What the other has submitted is the same request."""
    lines = "".join(f'{{"prompt": "Lake {n}", "file": "a.png"}}\n' for n in range(8))
    (tmp_path / "prompts.txt").rename(tmp_path / "unused.txt")
    (tmp_path / "prompts.jsonl").write_text(lines, "utf-8")
    (tmp_path / "a.png").write_bytes(PIXEL)
    async with kie_of() as kie:
        commands = [batch(kie, tmp_path, n, store, "--json", file="prompts.jsonl") for n in range(2)]
        outcomes = await asyncio.gather(*(command.run() for command in commands))
        assert paid(kie) == 8
        for outcome in outcomes:
            assert outcome.status == 0, outcome.out + outcome.err
            assert outcome.records[-1]["done"] == 8


async def test_the_other_commands_know_the_database(tmp_path: Path, store: str) -> None:
    """With the API key, which tells accounts apart. No command that is shown repeats the password."""
    hidden = store.replace("kie4o@", "kie4o:s3cret@")
    async with kie_of() as kie:
        dry = await batch(kie, tmp_path, 0, hidden, "--dry-run").run()
        assert "24 to submit for 144 credits" in dry.out
        limited = await batch(kie, tmp_path, 0, hidden, "--limit", "2").run()
        assert "2 of 24 done" in limited.out
        assert "kie4o:***@" in limited.out
        assert "s3cret" not in limited.out + limited.err
        spent = await against(kie, tmp_path, "spent", "--store", store).run()
        assert "2 tasks" in spent.out
        assert "12 credits" in spent.out
        without = await Command(tmp_path, "spent", "--store", store).run()
        assert without.status != 0
        assert "KIE_API_KEY" in without.err
