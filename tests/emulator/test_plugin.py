"""The pytest plugin, in suites that pytest runs in another process."""

from __future__ import annotations

import importlib.util
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from paths import IMPORT_ROOT, REPOSITORY
from suites import OURS, install, run_suite, write
from work import calls

pytestmark = pytest.mark.once

BOTH = ("asyncio", "anyio", OURS)

# -- who runs async tests --------------------------------------------------------------------------

# A five-minute task in the loop of the test, a fixture of the user that needs the emulator, and code with a
# client of its own. In real time it would take more than the half minute that the test allows.
ASYNC = """
    import asyncio, time
    import pytest
    from kie4o import AsyncKieClient
    {imports}

    {fixture}
    async def service(kie):
        async with AsyncKieClient() as client:
            await client.generate("from a fixture")
            yield client

    {marker}
    @pytest.mark.kie(duration=300)
    async def test_it(kie, kie_client, service):
        loop = asyncio.get_running_loop()
        start, real = loop.time(), time.monotonic()
        await kie_client.generate("with the fixture")
        await service.generate("with a client of its own")
        assert loop.time() - start > 600
        assert time.monotonic() - real < 30
        assert kie.paid == 3

    {marker}
    async def test_it_again(kie, kie_client):
        await kie_client.generate("another emulator")
        assert kie.paid == 1
"""
MODES: dict[str, tuple[tuple[str, ...], dict[str, str], str, str]] = {
    "asyncio strict": (
        ("asyncio", OURS),
        {"asyncio_mode": "strict"},
        "@pytest_asyncio.fixture",
        "@pytest.mark.asyncio",
    ),
    "asyncio auto": (("asyncio", OURS), {"asyncio_mode": "auto"}, "@pytest.fixture", ""),
    "asyncio, loop of the module": (
        ("asyncio", OURS),
        {"asyncio_mode": "strict"},
        "@pytest_asyncio.fixture(loop_scope='module')",
        "@pytest.mark.asyncio(loop_scope='module')",
    ),
    "asyncio, loop of the session": (
        ("asyncio", OURS),
        {"asyncio_mode": "auto", "asyncio_default_test_loop_scope": "session"},
        "@pytest_asyncio.fixture(loop_scope='session')",
        "",
    ),
    "anyio": (("anyio", OURS), {}, "@pytest.fixture", "@pytest.mark.anyio"),
    "anyio auto": (("anyio", OURS), {"anyio_mode": "auto"}, "@pytest.fixture", ""),
    "anyio beside asyncio": (BOTH, {"asyncio_mode": "strict"}, "@pytest.fixture", "@pytest.mark.anyio"),
    "asyncio beside anyio": (BOTH, {"asyncio_mode": "auto"}, "@pytest.fixture", ""),
    "asyncio strict beside anyio": (
        BOTH,
        {"asyncio_mode": "strict"},
        "@pytest_asyncio.fixture",
        "@pytest.mark.asyncio",
    ),
    "ours before the others": (
        (OURS, "anyio.pytest_plugin", "pytest_asyncio.plugin"),
        {"asyncio_mode": "strict"},
        "@pytest_asyncio.fixture",
        "@pytest.mark.asyncio",
    ),
}
ANYIO_BACKEND = """
    import pytest

    @pytest.fixture
    def anyio_backend():
        return "asyncio"
"""


@pytest.mark.parametrize("mode", MODES)
def test_async_tests(mode: str, tmp_path: Path) -> None:
    """Whoever runs them, the emulator is in their loop, whose time is virtual."""
    plugins, settings, fixture, marker = MODES[mode]
    imports = "import pytest_asyncio" if "asyncio" in str(plugins) else ""
    files = {"test_it.py": ASYNC.format(imports=imports, fixture=fixture, marker=marker)}
    if "anyio" in str(plugins):
        files["conftest.py"] = ANYIO_BACKEND
    run = run_suite(tmp_path, files, plugins=plugins, settings=settings)
    assert run.counts == {"passed": 2}, run.out


def test_an_async_test_that_no_one_runs_fails_as_ever(tmp_path: Path) -> None:
    """The plugin runs no tests itself; pytest says what is missing."""
    run = run_suite(tmp_path, {"test_it.py": "async def test_it(kie): pass"}, plugins=(OURS,))
    assert run.counts == {"failed": 1}, run.out
    assert "async def functions are not natively supported" in run.out


def test_async_tests_of_others_are_left_alone(tmp_path: Path) -> None:
    """Those without a marker are collected and fail as without the plugin, which has no hook for loops."""
    files = {"test_it.py": "async def test_it(): pass\ndef test_sync(): pass"}
    runs = [run_suite(tmp_path, files, plugins=plugins) for plugins in (("asyncio",), ("asyncio", OURS))]
    assert runs[0].counts == runs[1].counts == {"failed": 1, "passed": 1}


OTHERS = """
    import asyncio, os, subprocess, sys, unittest
    import pytest
    from kie4o import AsyncKieClient
    from kie4o.emulator import ThreadedEmulator

    async def generate(**settings):
        async with AsyncKieClient(speed=100, **settings) as client:
            return await client.generate("a lake")

    def test_another_loop(kie):
        asyncio.run(generate())
        assert kie.paid == 1

    def test_its_loop(kie, kie_client):
        assert len(kie.run(kie_client.generate("a lake"))) == 1

    @pytest.mark.kie(clock="virtual", duration=300)
    def test_virtual_time(kie, kie_client):
        kie.run(kie_client.generate("a lake"))
        assert kie.now() > 300

    def test_another_process(kie):
        program = "import asyncio, test_it; print(asyncio.run(test_it.generate())[0])"
        out = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
        assert out.decode().startswith(kie.url)

    @pytest.mark.usefixtures("kie")
    class TestAsync(unittest.IsolatedAsyncioTestCase):
        async def test_it(self):
            await generate()

    class TestAttribute(unittest.TestCase):
        @pytest.fixture(autouse=True)
        def emulator(self, kie):
            self.kie = kie

        def test_it(self):
            asyncio.run(generate())
            self.assertEqual(self.kie.paid, 1)

    @pytest.mark.parametrize("number", [1, 2])
    def test_the_session(kie_session, number):
        assert isinstance(kie_session, ThreadedEmulator)
        assert "KIE_BASE_URL" not in os.environ
        asyncio.run(generate(api_key="k", base_url=kie_session.url))
        assert kie_session.paid == number
"""


def test_other_tests(tmp_path: Path) -> None:
    """Synchronous ones, those of unittest, and an emulator for the session: in a thread."""
    run = run_suite(tmp_path, {"test_it.py": OTHERS}, plugins=(OURS,))
    assert run.counts == {"passed": 8}, run.out


# -- the marker ------------------------------------------------------------------------------------

MARKED = """
    import pytest
    {above}
    {marker}
    def test_it(kie, kie_client):
        {body}
"""
SUBMIT = "kie.run(kie_client.submit('a lake'))"


def marked(folder: Path, marker: str, body: str = "pass", *, above: str = "") -> Any:
    files = {"test_it.py": MARKED.format(above=above, marker=f"@pytest.mark.kie({marker})", body=body)}
    return run_suite(folder, files, plugins=(OURS,))


def test_the_marker_sets_what_the_emulator_takes(tmp_path: Path) -> None:
    """The nearest marker wins."""
    above = "pytestmark = pytest.mark.kie(duration=1, credits=7)"
    body = """
        assert (kie.duration, kie.credits, kie.speed) == (1, 8, 50)
        assert len(kie.looks(kie.run(kie_client.generate('a lake')).task_id)) == 2
    """.strip()
    run = marked(tmp_path, "credits=8, looks=2, speed=50", body, above=above)
    assert run.counts == {"passed": 1}, run.out


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        ("duratoin=3", ["unknown duratoin", "credits, duration, faults,", "unused_ok"]),
        ("3", ["takes no positional arguments", "(3,)"]),
        ("outcome='good'", ["good", "policy"]),
        ("faults=[{'kind': 'submits', 'code': 455}]", ["invalid kind='submits': expected one of submit"]),
        ("faults=[{'kind': 'submit', 'cod': 455}]", ["unknown field 'cod' of a fault (did you mean code?)"]),
        ("faults=[{'code': 455}]", ["a fault without a kind"]),
        ("faults={'kind': 'submit', 'code': 455}", ["invalid faults={", "expected a list"]),
        ("credits=1, speed=0", ["invalid speed=0: expected a number above 0"]),
        ("credits='many'", ["invalid credits='many': expected a number"]),
        ("prices={1: '6'}", ["invalid prices={1: '6'}: expected credits, 0 or more"]),
        ("accounts={'k': None}", ["invalid accounts: expected an Account by API key"]),
    ],
    ids=lambda value: value.replace("[", "") if isinstance(value, str) else "",
)
def test_a_wrong_marker_is_named(marker: str, words: list[str], tmp_path: Path) -> None:
    """Before the test begins, with what is allowed."""
    run = marked(tmp_path, marker, "print('it has begun')")
    assert run.counts == {"error": 1}, run.out
    assert all(word in run.out for word in words), run.out
    assert "it has begun\n" not in run.out


def test_a_marker_without_the_fixture_is_an_error(tmp_path: Path) -> None:
    """It would do nothing. One for a whole module may find tests that have no use for it."""
    text = "import pytest\n{}\ndef test_it(): pass"
    for line, counts in (
        ("@pytest.mark.kie(credits=3)", {"failed": 1}),
        ("pytestmark = pytest.mark.kie(credits=3)", {"passed": 1}),
    ):
        run = run_suite(tmp_path, {"test_it.py": text.format(line)}, plugins=(OURS,))
        assert run.counts == counts, run.out


def test_an_outcome_that_no_task_had_is_an_error(tmp_path: Path) -> None:
    """The test passes although what it is about never happened."""
    run = marked(tmp_path, "outcome='policy'")
    assert run.counts == {"failed": 1}, run.out
    assert "outcome='policy'" in run.out
    assert marked(tmp_path, "outcome='policy', unused_ok=True").counts == {"passed": 1}
    assert marked(tmp_path, "outcome='policy'", SUBMIT).counts == {"passed": 1}


FAULT = "faults=[{'kind': 'submit', 'code': 422}]"


@pytest.mark.parametrize(
    ("marker", "body", "counts"),
    [
        (FAULT, "pass", {"failed": 1}),
        (f"{FAULT}, unused_ok=True", "pass", {"passed": 1}),
        (FAULT, f"pytest.raises(Exception, lambda: {SUBMIT})", {"passed": 1}),
        ("", "kie.plan('a sea', outcome='policy')", {"failed": 1}),
        ("", "kie.next(answer=455); assert 0, 'the reason'", {"failed": 1}),
        ("", "kie.next(answer=455); pytest.skip('no')", {"skipped": 1}),
        ("faults=[{'kind': 'nothing'}]", "pass", {"error": 1}),
    ],
    ids=["fault", "allowed", "fired", "plan", "failed", "skipped", "unknown"],
)
def test_what_did_not_happen_fails_the_test(
    marker: str, body: str, counts: dict[str, int], tmp_path: Path
) -> None:
    """Unless that is allowed, or the test has failed or was skipped already."""
    run = marked(tmp_path, marker, body)
    assert run.counts == counts, run.out
    assert ("did not fire" in run.out) == (counts == {"failed": 1} and "the reason" not in body), run.out


# -- what a failing test shows ---------------------------------------------------------------------


def test_a_failing_test_shows_what_the_emulator_saw(tmp_path: Path) -> None:
    """Submits, tasks, callbacks and requests; one that passes shows nothing."""
    body = f"kie.plan('a lake', outcome='policy', callback='early'); {SUBMIT}; assert {{}}"
    run = marked(tmp_path, "", body.format(0))
    assert "1 of 1 submits paid, 994 credits left" in run.out, run.out
    assert "'a lake' -> 200, policy, 0 status checks" in run.out
    assert "/api/v1/gpt4o-image/generate" in run.out
    assert "credits left" not in marked(tmp_path, "", body.format(1)).out


# -- the same in every run -------------------------------------------------------------------------

SEQUENCE = """
    import asyncio, json, os, random
    from kie4o import AsyncKieClient

    async def test_it(kie, kie_client):
        if "UNSEEDED" in os.environ:
            random.seed()
        start = kie.now()
        kie.next(answer=429)
        url = "http://127.0.0.1:9/{ref}"
        async for done in kie_client.generate_many([f"p{n}" for n in range(8)], max_in_flight=3):
            assert done.ok
        await kie_client.submit("with a callback", callback_url=url)
        seen = [
            (task.id, task.request, [round(look - start, 6) for look in task.looks])
            for task in kie.tasks.values()
        ]
        with open("seen.jsonl", "a") as file:
            print(json.dumps(seen), file=file)
"""
TWENTY = """
    import pytest
    for _ in range(20):
        assert pytest.main(["-p", "asyncio", "-p", "kie4o.pytest_plugin", "-p", "no:cacheprovider"]) == 0

    def test_none(): pass
"""


def sequences(folder: Path, environment: Mapping[str, str]) -> set[str]:
    """The different sequences of requests in twenty runs of the same test."""
    settings = {"asyncio_mode": "auto", "python_files": "it_*.py"}
    files = {"it_runs.py": SEQUENCE, "twenty.py": TWENTY}
    run = run_suite(folder, files, "twenty.py", settings=settings, environment=environment)
    assert "20 passed" not in run.out
    lines = (folder / "seen.jsonl").read_text().splitlines()
    assert len(lines) == 20, run.out
    return {*lines}


def test_twenty_runs_are_alike(tmp_path: Path) -> None:
    """The same ids, refs and requests at the same moments. The control: without the seed none are."""
    (tmp_path / "seeded").mkdir()
    (tmp_path / "unseeded").mkdir()
    assert len(sequences(tmp_path / "seeded", {})) == 1
    assert len(sequences(tmp_path / "unseeded", {"UNSEEDED": "1"})) > 10


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """The state of `random`, the environment and the source of refs are as before; ids differ by test."""
    text = """
        import os, random
        from kie4o.submission import pending
        before = random.getstate(), dict(os.environ), pending.new_ref
        ids = []

        async def test_with(kie, kie_client):
            assert os.environ["KIE_BASE_URL"] == kie.url
            ids.append((await kie_client.submit("a lake")).id)
            assert random.getstate() != before[0]

        async def test_with_another(kie, kie_client):
            ids.append((await kie_client.submit("a lake")).id)

        def test_without():
            del os.environ["PYTEST_CURRENT_TEST"]
            before[1].pop("PYTEST_CURRENT_TEST", None)
            assert (random.getstate(), dict(os.environ), pending.new_ref) == before
            assert len({*ids}) == 2
    """
    environment = {"KIE_API_KEY": "a-real-key", "KIE_WEBHOOK_KEY": "a-real-one"}
    settings = {"asyncio_mode": "auto"}
    run = run_suite(tmp_path, {"test_it.py": text}, settings=settings, environment=environment)
    assert run.counts == {"passed": 3}, run.out


def test_the_real_key_is_out_of_reach(tmp_path: Path) -> None:
    """Settings of the machine are replaced, so that no test reaches Kie itself."""
    text = """
        import os
        from kie4o import AsyncKieClient

        def test_it(kie):
            assert {name: os.environ[name] for name in os.environ if name.startswith("KIE_")} == {
                "KIE_BASE_URL": kie.url, "KIE_API_KEY": "any-key"
            }
    """
    names = ("KIE_API_KEY", "KIE_AI_API_KEY", "KIE_BASE_URL", "KIE_UPLOAD_URL", "KIE_WEBHOOK_KEY")
    environment = dict.fromkeys(names, "https://api.kie.ai")
    run = run_suite(tmp_path, {"test_it.py": text}, plugins=(OURS,), environment=environment)
    assert run.counts == {"passed": 1}, run.out


# -- what it costs those who do not use it ---------------------------------------------------------

UNUSED = """
    import sys

    def test_it():
        heavy = {"aiohttp", "attrs", "kie4o.emulator", "kie4o.client", "asyncio"} & {*sys.modules}
        assert heavy == set()
"""


def test_nothing_is_imported_before_a_fixture_is_used(tmp_path: Path) -> None:
    """Neither aiohttp nor the emulator; and it is seen where it is."""
    run = run_suite(tmp_path, {"test_it.py": UNUSED}, plugins=(OURS,))
    assert run.counts == {"passed": 1}, run.out
    run = run_suite(tmp_path, {"test_it.py": UNUSED, "conftest.py": "import kie4o.emulator"}, plugins=(OURS,))
    assert run.counts == {"failed": 1}, run.out


def test_it_costs_little(tmp_path: Path) -> None:
    """It adds at most a tenth of the work that the import of the emulator adds."""
    write(tmp_path, {"test_it.py": "def test_it(): pass", "heavy.py": "import kie4o.emulator.server"})
    settings = {"PYTHONPATH": f"{IMPORT_ROOT}{os.pathsep}{tmp_path}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    program = "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    usual = ("-p", "no:cacheprovider", "-p", "asyncio", "-p")
    nothing, ours, heavy = (
        calls(program, *usual, plugin, folder=tmp_path, settings=settings)
        for plugin in ("asyncio", OURS, "heavy")
    )
    print(f"{ours - nothing} calls more, {heavy - nothing} with the emulator")
    assert 0 < ours - nothing < (heavy - nothing) / 10


# -- the entry point -------------------------------------------------------------------------------


def test_pytest_finds_it() -> None:
    """The entry point names the module."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"] == {"pytest11": {"kie4o": OURS}}
    assert importlib.util.find_spec(OURS) is not None


def test_an_installed_one_is_loaded_by_itself(tmp_path: Path) -> None:
    """By the metadata of a distribution; its marker is then known, and documented."""
    install(tmp_path)
    run = run_suite(tmp_path, {}, "--markers", plugins=("kie4o",))
    assert "@pytest.mark.kie(duration=" in run.out, run.out
