"""How mutants ended in earlier runs: what a test has seen is not tried again until its module changes."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from mutation.operators import Mutant
from mutation.trial import UNSEEN, Ending


def seen_before(file: Path, root: Path, mutants: Iterable[Mutant]) -> dict[str, Ending]:
    """Those of an unchanged module, if the file of the test that saw them is still there."""
    kept = _read(file)
    found = {}
    for one in mutants:
        endings = kept.get(_version(root, one.module), {})
        if one.name in endings:
            ending = Ending(**endings[one.name])
            if ending.how not in UNSEEN and (root / ending.test.partition("::")[0]).exists():
                found[one.name] = ending
    return found


def keep(file: Path, root: Path, mutants: Iterable[Mutant], endings: Mapping[str, Ending]) -> None:
    kept = defaultdict(dict, _read(file))
    for one in mutants:
        if one.name in endings:
            kept[_version(root, one.module)][one.name] = attrs.asdict(endings[one.name])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(kept), encoding="utf-8")


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """By the version of a module and the name of a mutant, the fields of its ending."""
    kept: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return kept


def _version(root: Path, module: str) -> str:
    return f"{module} {hashlib.sha256((root / module).read_bytes()).hexdigest()}"
