"""Files that appear complete or not at all: cancels and failing disks."""

import asyncio
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hosts import (
    PNG,
    TASK,
    Host,
    answer,
    fails,
    files_for,
    names,
    no_renewal,
    open_ended,
    picture,
)

from kie4o.files import disk
from kie4o.files.disk import PREFIX


def test_nothing_written_is_nothing_to_keep(tmp_path: Path) -> None:
    """A draft without a byte makes no file."""
    with pytest.raises(FileNotFoundError):
        disk.Draft(tmp_path).keep("cat.png")


async def test_a_cancel_leaves_nothing(tmp_path: Path) -> None:
    """Cancelled after any number of steps of the loop: no temporary file, no task; a file that is
    there is whole."""
    body = picture(side=800)
    seen_temporary = ended_whole = 0
    async with Host(answer(body)) as host, files_for(host.url) as files:
        before = asyncio.all_tasks()
        for steps in range(160):
            folder = tmp_path / str(steps)
            folder.mkdir()
            urls = [f"{host.url}/{n}" for n in range(2)]
            task = asyncio.ensure_future(files.download(urls, folder, task_id=TASK, renew=no_renewal))
            for _ in range(steps):
                await asyncio.sleep(0.0005 if steps % 4 == 0 else 0)
            seen_temporary += any(name.startswith(PREFIX) for name in names(folder))
            was_done = task.done()
            task.cancel()
            if was_done:
                await task
            else:
                with pytest.raises(asyncio.CancelledError):
                    await task
            for name in names(folder):
                assert not name.startswith(PREFIX)
                assert (folder / name).read_bytes() == body
                ended_whole += 1
            assert not {each for each in asyncio.all_tasks() - before if "_serve" not in repr(each)}
    assert seen_temporary
    assert ended_whole


@pytest.mark.parametrize("step", ["open", "write", "fsync", "unlink"])
@pytest.mark.parametrize("cancels", [1, 3])
async def test_a_cancel_waits_for_the_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, cancels: int
) -> None:
    """A thread cannot be cancelled: the download ends when it has ended, however often it is
    cancelled meanwhile, and then cleans up."""
    reached, go_on = threading.Event(), threading.Event()

    def held(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **how: Any) -> Any:
            result = function(*arguments, **how)
            reached.set()
            assert go_on.wait(10)
            return result

        return call

    where, name = {
        "open": (disk.tempfile, "mkstemp"),
        "write": (disk.os, "write"),
        "fsync": (disk.os, "fsync"),
        "unlink": (disk.Path, "unlink"),
    }[step]
    body = PNG[:-20] if step == "unlink" else PNG  # what is cut off has a file to remove
    async with Host(open_ended(body)) as host, files_for(host.url) as files:
        with monkeypatch.context() as patch:
            if step == "write":  # the loop writes to its own pipe: only our thread is held
                original = os.write
                main = threading.get_ident()
                patch.setattr(
                    disk.os,
                    "write",
                    lambda *a: original(*a) if threading.get_ident() == main else held(original)(*a),
                )
            else:
                patch.setattr(where, name, held(getattr(where, name)))
            task = asyncio.ensure_future(files.download([host.url], tmp_path, task_id=TASK, renew=no_renewal))
            while not reached.is_set():
                await asyncio.sleep(0.001)
            for _ in range(cancels):
                task.cancel()
                for _ in range(10):
                    await asyncio.sleep(0)
            assert not task.done()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert names(tmp_path) == ({f"{TASK}_0.png"} if step == "fsync" else set())


@pytest.mark.parametrize("step", ["mkstemp", "write", "fsync", "replace"])
async def test_a_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Whichever step fails, the error has the system's words and the folder, and nothing is left."""

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    original, main = os.write, threading.get_ident()
    async with Host(answer(PNG)) as host, files_for(host.url) as files:
        with monkeypatch.context() as patch:
            match step:
                case "mkstemp":
                    patch.setattr(disk.tempfile, "mkstemp", full)
                case "write":
                    patch.setattr(
                        disk.os, "write", lambda *a: (original if threading.get_ident() == main else full)(*a)
                    )
                case "fsync":
                    patch.setattr(disk.os, "fsync", full)
                case "replace":
                    patch.setattr(disk.Path, "replace", full)
            error = await fails(files, tmp_path, host.url)
    assert "No space left on device" in str(error)
    assert str(tmp_path) in str(error)
    assert len(host.requests) == 1


FULL_DISK = """
import asyncio, os, resource, sys
sys.path[:0] = sys.argv[2:]
from hosts import Host, TASK, answer, files_for, no_renewal, picture
from kie4o.errors import DownloadError

async def main():
    body = picture(side=700)
    assert len(body) > 300_000, len(body)
    async with Host(answer(body)) as host, files_for(host.url) as files:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            await files.download([host.url], sys.argv[1], task_id=TASK, renew=no_renewal)
        except DownloadError as error:
            assert error.task_id == TASK and error.__context__ is None
            print(error)
asyncio.run(main())
assert os.listdir(sys.argv[1]) == [], os.listdir(sys.argv[1])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE")
def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """The system itself stops the write in the middle: an error of ours, and an empty folder."""
    here = Path(__file__).parents[1] / "support"
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            FULL_DISK,
            str(tmp_path),
            str(here.parent / "files"),
            str(here),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=here.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "File too large" in done.stdout
