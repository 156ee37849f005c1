"""Puts small faults into a copy of kie4o, and says which of them no test sees: `nox -s mutants`."""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import shutil
import tempfile
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path

import postgres

from mutation.endings import keep, seen_before
from mutation.operators import Mutant, mutants_of
from mutation.recording import FAST, ROOMS, Record, not_recorded, read_record, write_record
from mutation.trial import LIMIT, UNSEEN, Ending, ending_of

ROOT = Path(__file__).parents[2]
MODULES = ["submission", "wire", "callbacks", "settling.py", "stores", "transport/paid_body.py"]
OF_POSTGRES = "stores/postgres"  # needs a server
LEFT_OUT = {"file_lock.py", "durability.py"}  # of the stores: each platform runs another part of them
EQUIVALENT = Path(__file__).with_name("equivalent.toml")
SCORE = Path(__file__).with_name("score.json")
KILLERS = Path(__file__).with_name("killers.json")  # the tests of mutants that others see late, or not
LATE = 10.0  # seconds
RECORD = ROOT / "build/mutation/record.json"
ENDINGS = RECORD.with_name("endings.json")
IMPORTED = ["pytest", "aiohttp.web", "attrs", "cattrs", "backoff", "sqlite3"]  # once, not by each mutant


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__)
    parser.add_argument(
        "what", nargs="*", help="modules such as wire or stores/ledger.py, or words of a mutant's name"
    )
    parser.add_argument("--sample", type=int, help="so many mutants of each module, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants tried at a time")
    parser.add_argument(
        "--limit", type=float, default=10.0, help="seconds for a test, and five times what it took without"
    )
    parser.add_argument(
        "--budget", type=float, default=30.0, help="seconds of tests that a mutant may survive"
    )
    parser.add_argument("--rooms", nargs="*", default=ROOMS, help="folders of the tests to try")
    parser.add_argument(
        "--record", type=Path, default=RECORD, help="where it stands which test runs which line"
    )
    parser.add_argument(
        "--iterate", action="store_true", help="leave out what a test has seen since the module changed"
    )
    parser.add_argument("--list", action="store_true", help="name the mutants and try none")
    parser.add_argument(
        "--write", action="store_true", help="keep the score of the modules that were tried whole"
    )
    return parser.parse_args()


def main() -> int:
    options = arguments()
    equivalent = {one["mutant"]: one["reason"] for one in tomllib.loads(EQUIVALENT.read_text())["equivalent"]}
    found, whole = chosen(options)
    gone = [
        name for name in equivalent if name.split()[0] in whole and name not in {one.name for one in found}
    ]
    if gone:
        print("no such mutant any more: " + "; ".join(gone))
    if options.list:
        print(*(one.name for one in found), sep="\n")
        return 0
    judged = [one for one in found if one.name not in equivalent]
    endings = seen_before(ENDINGS, ROOT, judged) if options.iterate else {}
    tried = [one for one in judged if one.name not in endings]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [copied(Path(folder) / str(number)) for number in range(min(options.jobs, len(tried) or 1))]
        record = recorded(options, copies[0])
        began = time.monotonic()
        endings |= dict(attempts(options, tried, copies, record))
    took = time.monotonic() - began
    keep(ENDINGS, ROOT, found, endings)
    print(f"{len(tried)} mutants, {took / max(len(tried), 1):.1f} s each with {len(copies)} jobs")
    fell = report(found, endings, equivalent, whole, write=options.write)
    return int(bool(fell or gone or any(ending.how in UNSEEN for ending in endings.values())))


# -- what is tried -----------------------------------------------------------------------------------


def chosen(options: argparse.Namespace) -> tuple[list[Mutant], set[str]]:
    """The mutants, and the modules of which none is left out."""
    modules = [word for word in options.what if any(files(word))]
    words = [word for word in options.what if word not in modules]
    found: list[Mutant] = []
    whole = set()
    standard = [*MODULES, OF_POSTGRES] if postgres.programs() else MODULES
    for file in sorted({file for pattern in modules or standard for file in files(pattern)}):
        mutants = mutants_of(ROOT, file.relative_to(ROOT).as_posix())
        kept = [one for one in mutants if not words or any(word in one.name for word in words)]
        if options.sample is not None and options.sample < len(kept):
            drawn = {one.name for one in random.Random(options.seed).sample(kept, options.sample)}
            kept = [one for one in kept if one.name in drawn]
        if len(kept) == len(mutants):
            whole.add(file.relative_to(ROOT / "kie4o").as_posix())
        found += kept
    return found, whole


def files(pattern: str) -> Iterator[Path]:
    for path in (ROOT / "kie4o").glob(pattern) if " " not in pattern else ():
        if path.is_dir():
            yield from (file for file in path.glob("*.py") if file.name not in LEFT_OUT)
        else:
            yield path


def copied(target: Path) -> Path:
    """A tree that mutants may change; tests start programs, which import it too."""
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    return Path(shutil.copytree(ROOT, target, ignore=ignored, symlinks=True))


def recorded(options: argparse.Namespace, copy: Path) -> Record:
    """The record of the tests of these rooms; made now for the files that have changed."""
    file: Path = options.record.absolute()
    names = not_recorded(file, copy, options.rooms)
    if names:
        print(f"recording which test of {len(names)} files runs which line ({FAST})", flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        log = file.with_suffix(".log")
        process = context().Process(target=write_record, args=(str(copy), str(file), names, str(log)))
        process.start()
        process.join()
        if process.exitcode != 0:
            raise SystemExit(f"no record was made: see {log}")
    return read_record(file, copy, options.rooms)


# -- trying ------------------------------------------------------------------------------------------


def context():  # type: ignore[no-untyped-def]  # a context of multiprocessing has no public class
    method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    made = get_context(method)
    made.set_forkserver_preload(IMPORTED)
    return made


def attempts(
    options: argparse.Namespace, mutants: list[Mutant], copies: list[Path], record: Record
) -> Iterator[tuple[str, Ending]]:
    free: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for copy in copies:
        free.put(copy)
    killers: defaultdict[str, list[str]] = defaultdict(list)
    noted: dict[str, str] = json.loads(KILLERS.read_text())

    def attempt(mutant: Mutant) -> tuple[Mutant, Ending]:
        copy = free.get()
        try:
            named = noted.get(mutant.name, "")
            ending = ending_of(
                context(), mutant, copy, record, killers[mutant.module], named, options.limit, options.budget
            )
            if ending.test in record.seconds:
                killers[mutant.module].append(ending.test)
            return mutant, ending
        finally:
            free.put(copy)

    with ThreadPoolExecutor(len(copies)) as pool:
        for done, future in enumerate(as_completed([pool.submit(attempt, one) for one in mutants]), 1):
            mutant, ending = future.result()
            print(f"{done}/{len(mutants)} {ending.how} ({ending.took:.1f} s): {mutant.name}", end="")
            print(f"  [{ending.test} {ending.error}]" if ending.test or ending.error else "", flush=True)
            yield mutant.name, ending


# -- the score ---------------------------------------------------------------------------------------


def report(
    found: list[Mutant],
    endings: dict[str, Ending],
    equivalent: dict[str, str],
    whole: set[str],
    *,
    write: bool,
) -> list[str]:
    """Print the score of each module and every survivor; returns the modules whose score fell."""
    kept: dict[str, dict[str, int]] = json.loads(SCORE.read_text())
    fell = []
    for module in sorted({one.module for one in found}):
        names = [one.name for one in found if one.module == module]
        ends = Counter(endings[name].how for name in names if name in endings)
        listed, module = sum(name in equivalent for name in names), module.removeprefix("kie4o/")
        killed = ends.total() - sum(ends[how] for how in UNSEEN)
        told = ", ".join(f"{count} {how}" for how, count in sorted(ends.items()))
        print(
            f"{module}: {killed} of {ends.total()} killed, {per_cent(killed, ends.total())} ({told}; ", end=""
        )
        print(f"{listed} equivalent)" + ("" if module in whole else ", a part of them"))
        if module not in whole or not ends:  # or nothing is tried: all are equivalent
            continue
        before = kept.get(module)
        if before and killed * before["mutants"] < before["killed"] * ends.total():
            print(f"  fell from {per_cent(before['killed'], before['mutants'])}")
            fell.append(module)
        kept[module] = {"mutants": ends.total(), "killed": killed, "equivalent": listed}
    if write and not fell:
        SCORE.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")
        ends_late = {name: end for name, end in endings.items() if end.took > LATE and end.how != LIMIT}
        late = {name: end.test for name, end in ends_late.items() if end.test}
        late = json.loads(KILLERS.read_text()) | late
        KILLERS.write_text(json.dumps(late, indent=2, sort_keys=True) + "\n")
    for name, ending in endings.items():
        if ending.how in UNSEEN:
            print(f"{ending.how}: {name}")
    by_time = sum(ending.how == LIMIT for ending in endings.values())
    if by_time:
        print(f"{by_time} were seen by the time limit alone: their tests need a limit of their own")
    return fell


def per_cent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"


if __name__ == "__main__":
    raise SystemExit(main())
