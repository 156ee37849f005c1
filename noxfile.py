"""What is checked, and how: `nox -l` lists it. Dependencies come from pyproject.toml alone."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nox

nox.needs_version = ">=2025.10.14"
nox.options.default_venv_backend = "venv"
nox.options.download_python = "never"
nox.options.error_on_external_run = True
nox.options.error_on_missing_interpreters = False  # also under CI=true: a missing one is skipped
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests", "thorough", "lint", "typing", "docs"]

PROJECT = nox.project.load_toml("pyproject.toml")
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
# The interpreter that runs nox is always found, so that at least one session runs the tests.
PYTHONS = list(dict.fromkeys([*nox.project.python_versions(PROJECT), RUNNING]))
NEWEST = max(
    (each for each in PYTHONS if each == RUNNING or shutil.which(f"python{each}")),
    key=lambda version: tuple(map(int, version.split("."))),
)
# Most tests wait most of the time: with as many workers as cores these are idle for half of it, with twice as
# many for an eighth; one more leaves a twentieth.
PARALLEL = ["-n", str(2 * (os.cpu_count() or 2) + 1), "--dist", "worksteal", "--durations", "12"]
# The rooms through which money goes, and those that depend most on how a version runs its tasks.
MONEY = [f"tests/{room}" for room in ("laws", "submission", "transport", "stores", "polling", "callbacks")]
# Those that depend on the event loop. On uvloop, which has no virtual clock here, they take real time.
LOOPING = [*MONEY, "tests/client", "tests/files", "tests/events", "tests/otel"]
FAST = "not paced and not once and not proof"
CANCELLATION = "tests/laws/test_cancellation.py"
EVERY_TICK = f"{CANCELLATION}::test_cancel_after_every_tick"  # the longest sweep
NO_DATABASE = ["--ignore-glob=*/test_postgres_*", "--ignore=tests/laws/test_machines.py"]
# What shows that the laws hold, and says how many positions it has tried.
SWEEPS = [
    f"tests/{name}"
    for name in [
        "laws/test_cancellation.py",
        "laws/test_crash.py",
        "laws/test_machines.py",
        "laws/test_state_model.py",
        "laws/test_syscalls.py",
        "model",
        "simulation",
        "stores/test_postgres_lost_replies.py",
        "stores/test_store_damage.py",
        "submission/test_limiter_sweep.py",
        "submission/test_verdict.py",
        "transport/test_fault_matrix.py",
        "transport/test_paid_faults.py",
        "wire/test_cut_answers.py",
    ]
]
PAID = ["submission", "wire", "callbacks", "stores", "transport"]  # rooms through which money goes
# The tests that reach every branch of these, without those of other processes, which are not measured.
PAYING = [
    *(f"tests/{room}" for room in PAID),
    *("tests/client/test_client.py", "tests/client/test_prune.py", "tests/client/test_state.py"),
    *(
        f"tests/laws/test_{name}.py"
        for name in [
            *("closing", "earlier_submits", "interchangeable", "keys", "moves", "paid_ids", "refusals"),
            *("saving", "settling", "stuck_stores", "unfinished_tasks"),
        ]
    ),
    "--ignore=tests/callbacks/test_workers.py",
    "--ignore=tests/stores/test_postgres_neighbours.py",
    "--ignore=tests/stores/test_postgres_pooler.py",
    "--ignore=tests/submission/test_limiter_sweep.py",
]
# Per cent of branches and lines that the tests reach: raise them as they rise, never lower them.
FLOOR = 94
PAID_FLOOR = 100


def dependencies(group: str) -> list[str]:
    """A dependency group; what it wants of kie4o itself comes from here, not from an index."""
    wanted = nox.project.dependency_groups(PROJECT, group)
    return ["." + one.removeprefix("kie4o") if one.startswith("kie4o") else one for one in wanted]


def run_tests(
    session: nox.Session,
    *command: str,
    profile: str = "fast",
    loop: str = "asyncio",
    codes: Sequence[int] = (0,),
) -> None:
    env = {
        "HYPOTHESIS_PROFILE": profile,
        "KIE4O_TEST_LOOP": loop,
        "PYTHONDONTWRITEBYTECODE": None,  # what pytest makes of a file is compiled once, not by each worker
    }
    session.run(*command, *session.posargs, env=env, success_codes=codes)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests that take no programs and no idle machine, under every supported Python that is found.

    The Python that runs nox runs all of them, with a part of each sweep but `EVERY_TICK`: the newest runs
    that, or `thorough` where there is no other. The newest runs the sweeps of cancellation and the rooms of
    `LOOPING`, which depend most on it; those between the two run what is in `MONEY`.
    """
    session.install(*dependencies("test"))
    if session.posargs:
        run_tests(session, "pytest")
        return
    parallel = ["pytest", *PARALLEL, "-m"]
    if session.python == RUNNING:
        run_tests(session, *parallel, FAST, f"--deselect={EVERY_TICK}")
    elif session.python == NEWEST:
        run_tests(session, *parallel, f"{FAST} and not sweep", *LOOPING, "tests/wire")
        run_tests(session, *parallel, "sweep and not proof", CANCELLATION)
        run_tests(session, *parallel, "once", "tests/cli/test_starting.py")
        run_tests(session, "pytest", "-m", "paced and not sweep", "tests/laws")
    else:
        run_tests(session, *parallel, f"{FAST} and not sweep", *MONEY, *NO_DATABASE)


@nox.session
def thorough(session: nox.Session) -> None:
    """What `tests` leaves out: what runs programs or reads files, what is `paced`, and other event loops.

    What is `paced` runs alone: tests one by one, and sweeps, which mostly wait, beside each other.
    """
    session.install(*dependencies("test"))
    parallel = ["pytest", *PARALLEL, "-m"]
    run_tests(session, *parallel, "once and not paced and not proof")
    run_tests(session, "pytest", "-m", "paced and not sweep")
    run_tests(session, *parallel, "paced and sweep and not proof")
    if NEWEST == RUNNING:
        run_tests(session, *parallel, "sweep and not proof", EVERY_TICK)
    if sys.platform == "win32":
        session.warn("uvloop does not run on Windows: nothing is tested on it")
    else:
        run_tests(session, *parallel, f"{FAST} and not sweep", *LOOPING, loop="uvloop")
        run_tests(session, "pytest", "-m", "paced and not sweep and not once", *LOOPING, loop="uvloop")


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format."""
    session.install(*dependencies("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def typing(session: nox.Session) -> None:
    """Types of the package, and of a program that uses all of it."""
    # pyright runs on node, which the extra brings as a wheel; without it node would be downloaded.
    session.install(*dependencies("typing"), "pyright[nodejs]")
    session.run("mypy", "--strict", "kie4o")
    session.run("mypy", "--strict", "tests/typing")
    python = str(Path(session.bin) / "python")
    quiet = {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "PYRIGHT_PYTHON_GLOBAL_NODE": "0"}
    session.run("pyright", "--pythonpath", python, env=quiet)  # both, by pyproject.toml
    verify = ["pyright", "--verifytypes", "kie4o", "--ignoreexternal"]  # of the kie4o that is installed
    report = str(session.run(*verify, env=quiet, silent=True))
    if "Type completeness score: 100%" not in report:
        session.error(report)


@nox.session
def docs(session: nox.Session) -> None:
    """The API reference, in build/reference; a warning or a missing name is an error."""
    session.install(*dependencies("docs"))
    session.run("python", "-W", "error", "docs/reference.py")


@nox.session
def sdist(session: nox.Session) -> None:
    """The source distribution, built and unpacked: it holds all that its own tests need."""
    session.install("build")
    folder = Path(session.create_tmp())
    shutil.rmtree(folder)  # what an earlier run has left there
    session.run("python", "-m", "build", "--sdist", "--outdir", str(folder))
    [archive] = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder, filter="data")
    session.chdir(folder / archive.name.removesuffix(".tar.gz"))
    session.install(*dependencies("test"))
    run_tests(session, "pytest", "-m", "not sweep", "tests/project", "tests/wire")


@nox.session
def coverage(session: nox.Session) -> None:
    """Branch coverage of the rooms through which money goes, which is complete, by a few minutes of tests.

    It needs PostgreSQL. `-- all` runs all tests but those for `proof`, and has a floor for the package too.
    """
    session.install(*dependencies("test"))
    whole = session.posargs == ["all"]
    chosen = ["not proof"] if whole else ["not proof and not paced and not sweep", *PAYING]
    env = {"HYPOTHESIS_PROFILE": "fast"}
    # In one process, as coverage sees no other; with the same examples in each run.
    session.run("coverage", "run", "-m", "pytest", "--hypothesis-seed=1", "-m", *chosen, env=env)
    paid = ",".join(f"*/kie4o/{room}/*" for room in PAID)
    session.run("coverage", "report", f"--include={paid}", f"--fail-under={PAID_FLOOR}")
    if whole:
        session.run("coverage", "report", f"--fail-under={FLOOR}")


@nox.session(name="property")
def property_(session: nox.Session) -> None:
    """The property tests alone, with far more examples."""
    session.install(*dependencies("test"))
    run_tests(session, "pytest", "-m", "hypothesis", profile="deep")


@nox.session
def proof(session: nox.Session) -> None:
    """Every sweep at its whole size, 100,000 simulated worlds, and what needs an idle machine: some hours.

    It writes the table in docs/reliability.md, also of what failed, and its reports to proof/. With arguments
    it runs these tests alone at their whole size, and writes nothing.
    """
    session.install(*dependencies("test"))
    if session.posargs:
        run_tests(session, "pytest", profile="deep")
        return
    shutil.rmtree("proof", ignore_errors=True)  # a part that does not end must not count as it once did
    reports = ["proof/sweeps.xml", "proof/others.xml", "proof/worlds.json"]
    whole: dict[str, Any] = {"profile": "deep", "codes": [0, 1]}  # the report says what failed
    beside = ["-n", "logical", "--dist", "worksteal"]
    run_tests(session, "pytest", *beside, *SWEEPS, f"--junitxml={reports[0]}", **whole)
    others = ["-m", "sweep or proof", *(f"--ignore={path}" for path in SWEEPS)]
    run_tests(session, "pytest", *others, "tests", f"--junitxml={reports[1]}", **whole)
    worlds = ["--seeds", "100000", "--keep-going", "--report", reports[2]]
    session.run("python", "-m", "simulation", *worlds, env={"PYTHONPATH": "tests"}, success_codes=[0, 1])
    session.run("python", "tests/support/proof_report.py", "--write", *reports)


@nox.session
def contract(session: nox.Session) -> None:
    """A program that knows only the OpenAPI document asks the emulator, and each answer is as described.

    Whether a request is accepted is not checked: like Kie, the emulator refuses with HTTP status 200.
    """
    session.install(".[emulator]", *dependencies("contract"))
    program = [str(Path(session.bin) / "python"), "-m", "kie4o.emulator", "--port", "0", "--quiet"]
    plenty = ["--duration", "0", "--credits", "1000000", "--limit", "1000000"]
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    with subprocess.Popen([*program, *plenty], stdout=subprocess.PIPE, text=True) as emulator:
        try:
            url = re.findall(r"http://[\w.:]+", emulator.stdout.readline() if emulator.stdout else "")[0]
            how = ["--url", url, "--header", "Authorization: Bearer k", "--checks", checks]
            bounded = ["--max-examples", "100", "--seed", "1", "--warnings", "off"]
            session.run("schemathesis", "run", "kie4o/emulator/openapi.json", *how, *bounded)
        finally:
            emulator.terminate()


@nox.session
def bench(session: nox.Session) -> None:
    """What kie4o costs, beside the peers: `nox -s bench`, or with `--quick`; `nox -s bench -- --help` tells
    the rest. `nox -s bench -- limiter` and its arguments: that one alone."""
    session.install(".[emulator]")
    if session.posargs and not session.posargs[0].startswith("-"):
        name, *arguments = session.posargs
        session.log("benchmark %s", shlex.join([name, *arguments]))
        session.run("python", f"benchmarks/{name}.py", *arguments)
        return
    if not {"-h", "--help", "--readme"} & {*session.posargs}:
        for peer in dependencies("bench"):  # one by one: what cannot be had is left out
            try:
                session.install(peer)
            except nox.command.CommandFailed:
                session.warn(f"{peer} cannot be installed here: it is left out")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def simulate(session: nox.Session) -> None:
    """Whole worlds in virtual time, in which every law must hold: `nox -s simulate -- --seeds 100000`.

    It prints the seed of one that breaks a law, its smallest plan, and the command that shows it step by
    step. `--mutants` says after how many worlds each fault that is put back is seen.
    """
    session.install(*dependencies("test"))
    session.run("python", "-m", "simulation", *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session
def mutants(session: nox.Session) -> None:
    """Small faults put into a copy of kie4o, each of which a test must see: `nox -s mutants -- wire`.

    Without a module all through which money goes, for hours; `--sample 10` tries some of each module, and
    `--iterate` leaves out what a test has seen since its module changed. What survives is named, unless
    `tests/mutation/equivalent.toml` says why nobody can see it, and the score of a module may not fall below
    that in `tests/mutation/score.json`.
    """
    session.install(*dependencies("test"))
    path = os.pathsep.join(["tests", "tests/support"])
    session.run("python", "-m", "mutation", *session.posargs, env={"PYTHONPATH": path})


@nox.session
def soak(session: nox.Session) -> None:
    """Every fault at once for 15 minutes: `nox -s soak`, or with `-- --minutes 1 --loop uvloop`.

    `-- steady` starts 50 tasks a second for half an hour, of which 5 of 100 meet a fault: half of the time on
    asyncio, half on uvloop. Memory, descriptors and tasks have to stay flat.
    """
    session.install(".[emulator]", *(one for one in dependencies("bench") if one.startswith("uvloop")))
    kind = "steady" if "steady" in session.posargs else "soak"
    arguments = [word for word in session.posargs if word != "steady"]
    session.run("python", "-m", f"benchmarks.{kind}", *arguments)
