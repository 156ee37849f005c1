"""The mutants themselves: what is replaced, and that the committed lists speak of mutants that exist."""

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

from mutation.endings import keep, seen_before
from mutation.operators import mutants_of
from mutation.trial import ASSERTION, SURVIVED, Ending

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCE = '''\
import abc

LIMIT = 4  # a note with ü


class Paper:
    folded: bool = False

    def written(self, text: str, *, twice: bool = False) -> "str | None":
        """How much."""
        if self.folded and not text:
            raise ValueError(f"{text} {1}")
        try:
            self.count = len(text) + 1
        except (TypeError, KeyError):
            return None
        log.debug("written %d", 5)
        return text if self.count >= LIMIT else text["ü"]
'''
EXPECTED = """\
module: 4 -> 5 in LIMIT = 4
module: 4 -> 3 in LIMIT = 4
Paper: False -> True in folded: bool = False
Paper.written: False -> True in def written(self, text: str, *, twice: bool = False) -> "str | None":
Paper.written: self.folded and not text -> (self.folded or not text)
Paper.written: self.folded and not text -> (not text)
Paper.written: self.folded and not text -> (self.folded)
Paper.written: not text -> (text)
Paper.written: raise ValueError(f"{text} {1}") -> pass
Paper.written: self.count = len(text) + 1 -> pass
Paper.written: len(text) + 1 -> (len(text) - 1)
Paper.written: 1 -> 2 in self.count = len(text) + 1
Paper.written: (TypeError, KeyError) -> ()
Paper.written: (TypeError, KeyError) -> Exception
Paper.written: text if self.count >= LIMIT else text["ü"] -> None
Paper.written: self.count >= LIMIT -> self.count > LIMIT
Paper.written: 'ü' -> 'üx' in return text if self.count >= LIMIT else text["ü"]
"""


def test_the_mutants_of_a_module(tmp_path: Path) -> None:
    """Neither annotations, docstrings and log lines nor words in messages have mutants."""
    (tmp_path / "paper.py").write_text(SOURCE, encoding="utf-8")
    found = mutants_of(tmp_path, "paper.py")
    named = [one.name.removeprefix("paper.py ") for one in found]
    assert sorted(named) == sorted(EXPECTED.replace("'ü' ->", '"ü" ->').splitlines())
    texts = {one.applied(SOURCE) for one in found}
    assert len(texts) == len(found)
    assert SOURCE not in texts


@pytest.mark.once
def test_each_mutant_that_is_listed_exists() -> None:
    """A line that was rewritten takes its reason with it: it has to be judged anew. A killer is a test of a
    file that is there."""
    equivalent = tomllib.loads((HERE / "equivalent.toml").read_text(encoding="utf-8"))["equivalent"]
    assert all(len(one["reason"].split()) > 3 for one in equivalent)
    killers = json.loads((HERE / "killers.json").read_text(encoding="utf-8"))
    assert unknown([*(one["mutant"] for one in equivalent), *killers]) == []
    assert [test for test in killers.values() if not (ROOT / test.partition("::")[0]).exists()] == []


def unknown(mutants: Iterable[str]) -> list[str]:
    mutants = list(mutants)
    modules = {mutant.split()[0] for mutant in mutants}
    names = {one.name for module in modules for one in mutants_of(ROOT, f"kie4o/{module}", mutants)}
    return [mutant for mutant in mutants if mutant not in names]


def test_each_score_is_of_a_module() -> None:
    scores = json.loads((HERE / "score.json").read_text(encoding="utf-8"))
    assert [module for module in scores if not (ROOT / "kie4o" / module).exists()] == []
    assert all(0 < one["killed"] <= one["mutants"] for one in scores.values())


def test_a_mutant_that_a_test_has_seen_is_left_out_until_its_module_changes(tmp_path: Path) -> None:
    """One that has survived is tried again, and so is one whose test is gone."""
    module, file = tmp_path / "paper.py", tmp_path / "build/endings.json"
    module.write_text(SOURCE, encoding="utf-8")
    (tmp_path / "test_paper.py").touch()
    first, second, third, *_ = found = mutants_of(tmp_path, "paper.py")
    seen = Ending(ASSERTION, "test_paper.py::test_it", took=1.5)
    keep(file, tmp_path, found, {first.name: seen, second.name: Ending(SURVIVED)})
    keep(file, tmp_path, found, {third.name: Ending(ASSERTION, "test_gone.py::test_it")})
    assert seen_before(file, tmp_path, found) == {first.name: seen}
    module.write_text(SOURCE + "\n", encoding="utf-8")
    assert seen_before(file, tmp_path, found) == {}
