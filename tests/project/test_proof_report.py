"""The report of `nox -s proof`: what its table counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from proof_report import Row, rows_of, sentence_of_mutants, sentence_of_worlds

LAWS, CRASH = "tests/laws/test_closing.py", "tests/laws/test_crash.py"


def report(path: Path, *cases: str) -> Path:
    path.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>", "utf-8")
    return path


def case(file: str, name: str, positions: int, inside: str = "") -> str:
    counted = f'<properties><property name="positions" value="{positions}"/></properties>'
    module = file.removesuffix(".py").replace("/", ".")
    return f'<testcase classname="{module}" name="{name}" time="1.5">{counted}{inside}</testcase>'


def test_the_tests_of_a_file_are_a_row(tmp_path: Path) -> None:
    """With its controls and failures; what was skipped, or has tried no position, is in none."""
    cases = [
        case(LAWS, "test_a", 5),
        case(LAWS, "test_control_b", 2, "<failure/>"),
        case(LAWS, "test_c", 0, "<error/>"),
        case(LAWS, "test_d", 9, "<skipped/>"),
        case(CRASH, "test_e", 0),
    ]
    rows = rows_of([report(tmp_path / "a.xml", *cases)])
    assert rows == {LAWS: Row(positions=7, tests=3, controls=1, failed=2, seconds=4.5)}


def test_a_file_that_ran_again_counts_once(tmp_path: Path) -> None:
    """As it was in the last of the reports; the others stay."""
    first = report(tmp_path / "a.xml", case(LAWS, "test_a", 5, "<failure/>"), case(CRASH, "test_e", 3))
    again = report(tmp_path / "b.xml", case(LAWS, "test_a", 4))
    rows = rows_of([first, again])
    assert rows == {LAWS: Row(4, 1, seconds=1.5), CRASH: Row(3, 1, seconds=1.5)}


@pytest.mark.parametrize(("failed", "words"), [(0, "no law was broken"), (2, "a law was broken 2 times")])
def test_the_worlds_have_a_sentence(tmp_path: Path, failed: int, words: str) -> None:
    """With what happened in them."""
    counts = {"worlds": 1000, "submits": 4321, "polls": 9, "callbacks": 8, "kills": 7, "turns": 6}
    path = tmp_path / "worlds.json"
    path.write_text(json.dumps({"seconds": 90, "jobs": 2, "failed": failed, "counts": counts}))
    assert sentence_of_worlds(path) == (
        "Beside these 1,000 simulated worlds, with 4,321 submits, 9 polls, 8 callbacks, 7 kills, in "
        f"1.5 minutes of 2 processes: {words}."
    )


@pytest.mark.parametrize(("killed", "words"), [(60, "all"), (59, "1,059")])
def test_the_mutants_have_a_sentence(tmp_path: Path, killed: int, words: str) -> None:
    """That of the scores that are kept, of all modules together."""
    path = tmp_path / "score.json"
    scores = {
        "a.py": {"mutants": 1000, "killed": 1000, "equivalent": 3},
        "b.py": {"mutants": 60, "killed": killed, "equivalent": 4},
    }
    path.write_text(json.dumps(scores))
    assert sentence_of_mutants(path) == (
        "Of 1,060 mutants of the 2 modules in `tests/mutation/score.json` the tests see "
        f"{words}; 7 more change nothing that anyone can see."
    )
