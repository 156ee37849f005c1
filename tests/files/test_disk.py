"""Downloaded files appear complete or not at all, also when cancelled and on a failing disk."""

import asyncio
import errno
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hosts import PNG, TASK, Host, answer, fails, files_for, names, no_renewal, open_ended, picture
from portable import running_tasks

from kie4o import DownloadError
from kie4o.files import disk
from kie4o.files.disk import PREFIX

STEPS: dict[str, tuple[Any, str]] = {
    "mkstemp": (disk.tempfile, "mkstemp"),
    "write": (disk.os, "write"),
    "fsync": (disk.os, "fsync"),
    "replace": (disk.Path, "replace"),
    "unlink": (disk.Path, "unlink"),
}


def patch_step(patch: pytest.MonkeyPatch, step: str, wrapped: Callable[..., Any]) -> None:
    """Let threads call `wrapped(original, ...)` for a disk function. The loop, which writes to a pipe of
    its own, calls the original."""
    where, name = STEPS[step]
    original, main = getattr(where, name), threading.get_ident()

    def call(*arguments: Any, **how: Any) -> Any:
        if threading.get_ident() == main:
            return original(*arguments, **how)
        return wrapped(original, *arguments, **how)

    patch.setattr(where, name, call)


def test_an_empty_file_cannot_be_committed(tmp_path: Path) -> None:
    """A file to which nothing was written is not created."""
    with pytest.raises(FileNotFoundError):
        disk.PartialFile(tmp_path).commit("cat.png")


async def test_a_cancel_leaves_nothing(tmp_path: Path) -> None:
    """A download that is cancelled after any number of loop steps leaves no temporary file and no
    task. Files under their final name are complete."""
    body = picture(side=800)
    seen_temporary = complete = 0
    async with Host(answer(body)) as host, files_for(host.url) as files:
        before = running_tasks()
        for steps in itertools.count():
            if steps >= 160 and (complete or steps >= 1000):  # a busy machine gets less done in a step
                break
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
                complete += 1
            assert not {each for each in running_tasks() - before if "_serve" not in repr(each)}
    assert seen_temporary
    assert complete


@pytest.mark.parametrize("step", ["mkstemp", "write", "fsync", "unlink"])
@pytest.mark.parametrize("cancels", [1, 3])
async def test_a_cancel_waits_for_the_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, cancels: int
) -> None:
    """A cancelled download waits for its thread, however often it is cancelled, and then cleans up."""
    reached, go_on = threading.Event(), threading.Event()

    def held(original: Callable[..., Any], *arguments: Any, **how: Any) -> Any:
        result = original(*arguments, **how)
        reached.set()
        assert go_on.wait(10)
        return result

    body = PNG[:-20] if step == "unlink" else PNG  # a truncated image leaves a file to remove
    async with Host(open_ended(body)) as host, files_for(host.url) as files:
        with monkeypatch.context() as patch:
            patch_step(patch, step, held)
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
    """The error of any failing step has the system's reason and the directory, and no file is left.

    A backslash of its name is not doubled: on Windows every path has some.
    """
    folder = tmp_path / r"a\b"

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with Host(answer(PNG)) as host, files_for(host.url) as files:
        with monkeypatch.context() as patch:
            patch_step(patch, step, full)
            error = await fails(files, folder, host.url)
    assert "No space left on device" in str(error)
    assert str(folder) in str(error)
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


@pytest.mark.posix("a limit on the size of files")
def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """If the system refuses a write halfway, a `DownloadError` is raised and the directory stays empty."""
    here = Path(__file__).parent
    support = here.parent / "support"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL_DISK, str(tmp_path), str(here), str(support)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=here.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "File too large" in done.stdout


# -- Windows -----------------------------------------------------------------------------------------


def held_open(winerror: int | None) -> PermissionError:
    """What Windows raises while another process has a file open; elsewhere there is no `winerror`."""
    error = PermissionError(errno.EACCES, "Access is denied")
    if winerror is not None:
        error.winerror = winerror  # type: ignore[attr-defined]  # only declared for Windows
    return error


def holding(
    patch: pytest.MonkeyPatch, name: str, error: OSError, times: int
) -> tuple[list[tuple[Any, ...]], list[float]]:
    """Let a function of `os` fail so many times. The calls and the pauses, which take no time."""
    original, calls, pauses = getattr(disk.os, name), [], []

    def call(*arguments: Any, **how: Any) -> Any:
        calls.append(arguments)
        if len(calls) <= times:
            raise error
        return original(*arguments, **how)

    patch.setattr(disk.os, name, call)
    patch.setattr(disk.time, "sleep", pauses.append)
    return calls, pauses


@pytest.mark.parametrize("winerror", [5, 32])
async def test_an_image_that_a_scanner_holds_is_replaced_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, winerror: int
) -> None:
    """Within a second another process lets go of the file that is there."""
    async with Host(answer(PNG)) as host, files_for(host.url) as files:
        [path] = await files.download([host.url], tmp_path, task_id=TASK, renew=no_renewal)
        path.write_bytes(b"old")
        with monkeypatch.context() as patch:
            calls, pauses = holding(patch, "replace", held_open(winerror), 5)
            assert await files.download([host.url], tmp_path, task_id=TASK, renew=no_renewal) == [path]
        assert len(calls) == 6
        assert sum(pauses) < 1
    assert path.read_bytes() == PNG
    assert names(tmp_path) == {path.name}


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (held_open(32), 1.0),
        (held_open(None), 0.0),  # a directory that cannot be written to
        (held_open(1314), 0.0),
        (OSError(errno.EIO, "Input/output error"), 0.0),
    ],
)
async def test_an_image_that_cannot_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, seconds: float
) -> None:
    """After a second, or at once if waiting does not help: an error, the old file, no temporary one."""
    async with Host(answer(PNG)) as host, files_for(host.url) as files:
        [path] = await files.download([host.url], tmp_path, task_id=TASK, renew=no_renewal)
        path.write_bytes(b"old")
        _, pauses = holding(monkeypatch, "replace", error, 1000)
        with pytest.raises(DownloadError, match=str(error.strerror)):
            await files.download([host.url], tmp_path, task_id=TASK, renew=no_renewal)
        assert sum(pauses) == pytest.approx(seconds)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {path.name}


async def test_a_temporary_file_that_a_scanner_holds_is_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scanner opens every file that appears; this one is removed as soon as it lets go."""
    async with Host(answer(PNG[:-10])) as host, files_for(host.url) as files:
        calls, pauses = holding(monkeypatch, "unlink", held_open(32), 2)
        await fails(files, tmp_path, host.url)
        assert len(calls) > 2
        assert len(pauses) == 2
