"""A process that may open few files, as in a shell of macOS: calls wait for one, and none fails."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from canary import CANARY_KEY
from paths import SUPPORT

from kie4o import AsyncKieClient, KieError, opening
from kie4o.emulator import Emulator

CHILD = SUPPORT / "few_files_child.py"
LATE = """
import asyncio, sys, tempfile
from kie4o import AsyncKieClient, PollPolicy
async def main():
    poll = PollPolicy(first=0.34, maximum=0.34)
    async with AsyncKieClient("k" * 20, base_url=sys.argv[1], poll=poll) as client:
        before = set(sys.modules)
        result = await client.generate("a")
        with tempfile.TemporaryDirectory() as folder:
            await client.download(result, folder)
        await client.upload(b"x")
        await client.upload_from_url("https://a.example/1.png")
        await client.credits()
        await client.download_url(result.task_id, result[0])
        async for _ in client.generate_many(["b", "c"]):
            pass
        async for _ in (await client.submit("d")).updates():
            pass
        print(*sorted(set(sys.modules) - before))
asyncio.run(main())
"""


async def run(*arguments: str) -> str:
    """What a Python process prints."""
    child = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=subprocess.PIPE)
    output, _ = await child.communicate()
    assert child.returncode == 0
    return output.decode()


@pytest.mark.once
@pytest.mark.posix("a limit of open files")
@pytest.mark.parametrize(("limit", "free", "items"), [(64, 50, 100), (64, 8, 100), (256, 20, 300)])
async def test_items_wait_for_files(tmp_path: Path, limit: int, free: int, items: int) -> None:
    """More items at once than files, each with a download and some with an upload: none fails, and each is
    paid once."""
    async with Emulator(clock="real", duration=0.3, limit=10_000, credits=1e6, pictures=False) as kie:
        output = await run(str(CHILD), kie.url, str(limit), str(free), str(items), str(tmp_path))
        assert json.loads(output) == {"NoneType": items}
        assert len(kie.tasks) == items
    assert len([*tmp_path.iterdir()]) == items


async def test_calls_import_nothing() -> None:
    """Everything that a call needs was imported when the client opened: later there may be no file to read
    it from."""
    async with Emulator(clock="real", duration=0.0) as kie:
        assert (await run("-c", LATE, kie.url)).split() == []


async def test_control_without_that_calls_import() -> None:
    """Control: the program above sees modules that are imported late."""
    code = LATE.replace(
        "async def main():", "from kie4o import opening\nopening.MODULES = ()\nasync def main():"
    )
    async with Emulator(clock="real", duration=0.0) as kie:
        late = (await run("-c", code, kie.url)).split()
    assert {"cattrs", "kie4o.files.downloads", "kie4o.files.uploads"} <= {*late}


async def test_a_client_that_cannot_read_its_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening it is an error of kie4o that says what to do; a module that is missing is none."""

    def no_file(name: str) -> None:
        raise OSError(24, "Too many open files", "x.py")

    def missing(name: str) -> None:
        raise ImportError(name)

    async with Emulator(clock="real", duration=0.0) as kie:
        client = AsyncKieClient(CANARY_KEY, base_url=kie.url)
        monkeypatch.setattr(opening.importlib, "import_module", no_file)
        with pytest.raises(KieError, match=r"Too many open files\); raise the limit of open files"):
            await client.credits()
        monkeypatch.setattr(opening.importlib, "import_module", missing)
        await client.credits()
        await client.aclose()
