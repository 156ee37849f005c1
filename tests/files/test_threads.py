"""Uploads and downloads where the system starts no more threads: an error of kie4o, and nothing half done."""

from __future__ import annotations

import asyncio
import io
import threading
from pathlib import Path
from typing import Any

import pytest
from hosts import TASK, Host, answer, fails, files_for, names, no_renewal, picture
from test_uploads import OnePass, UploadHost

from kie4o import DownloadError, InvalidRequestError, KieError
from kie4o.files import disk
from kie4o.files.disk import NoThreadError, in_thread, start_in_thread

BODY = picture(side=800)  # several chunks


class Threads:
    """How many more threads the system starts; then it refuses, as with a limit of processes.

    Only those of an executor count: a loop closes its executor in a thread of its own.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left = 1000
        self.refused = 0
        original = threading.Thread.start

        def start(thread: threading.Thread) -> None:
            if not thread.name.startswith(("asyncio_", "uvloop_")):
                return original(thread)
            if self.left < 1:
                self.refused += 1
                raise RuntimeError("can't start new thread")
            self.left -= 1
            return original(thread)

        patch.setattr(threading.Thread, "start", start)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    monkeypatch.setattr(disk, "_PATIENCE", 0.1)
    return Threads(monkeypatch)


async def test_what_cleans_up_is_called_although_its_caller_is_cancelled(threads: Threads) -> None:
    """While it waits for a thread, of which there are none."""
    threads.left, called = 0, []
    cleaning = asyncio.create_task(disk.in_thread_or_here(lambda: called.append("cleaned up")))
    await asyncio.sleep(0.02)
    cleaning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cleaning
    assert called == ["cleaned up"]


async def test_a_function_that_found_no_thread_is_never_called(threads: Threads) -> None:
    """Neither then nor later, when the executor has threads again: it had queued it."""
    threads.left, called = 0, []
    with pytest.raises(NoThreadError, match="raise the limit of threads"):
        await in_thread(called.append, "late")
    assert threads.refused == 1
    threads.left = 1000
    assert await in_thread(lambda: "works again") == "works again"
    await asyncio.gather(*(in_thread(lambda: None) for _ in range(8)))
    assert called == []


async def test_a_running_thread_takes_over(threads: Threads) -> None:
    """With one thread everything takes longer, and works."""
    threads.left = 1
    assert await asyncio.gather(*(in_thread(lambda n=n: n) for n in range(20))) == [*range(20)]
    assert threads.refused > 0


async def test_a_cancelled_call_that_found_no_thread(threads: Threads) -> None:
    """It ends, and the function is not called."""
    threads.left, called = 0, []
    work = asyncio.create_task(in_thread(called.append, "late"))
    await asyncio.sleep(0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    reading = start_in_thread(called.append, "late")
    reading.cancel()
    await asyncio.sleep(0)
    threads.left = 1000
    await in_thread(lambda: None)
    await asyncio.sleep(0.2)
    assert called == []


async def test_a_download_without_threads(threads: Threads, tmp_path: Path) -> None:
    """A `DownloadError` that says what to do; no file is left. Later it works."""
    async with Host(answer(BODY)) as host, files_for(host.url) as files:
        threads.left = 0
        error = await fails(files, tmp_path, host.url)
        assert "raise the limit of threads" in str(error)
        assert names(tmp_path) == set()
        threads.left = 1000
        [path] = await files.download([host.url], tmp_path, task_id=TASK, renew=no_renewal)
        assert path.read_bytes() == BODY
        assert names(tmp_path) == {path.name}


@pytest.mark.parametrize("verify", [False, True])
async def test_a_download_that_loses_its_threads_halfway(
    threads: Threads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: bool
) -> None:
    """Wherever that is, there is a complete file or an error, and no partial file."""
    monkeypatch.setattr(disk, "_PATIENCE", 0.0)
    loop, calls, left, errors = asyncio.get_running_loop(), 0, 1000, 0
    original = loop.run_in_executor

    def run_in_executor(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > left:
            raise RuntimeError("can't start new thread")
        return original(*arguments)

    monkeypatch.setattr(loop, "run_in_executor", run_in_executor)
    async with Host(answer(BODY)) as host, files_for(host.url) as files:
        how: dict[str, Any] = {"task_id": TASK, "renew": no_renewal, "verify": verify}
        await files.download([host.url], tmp_path, **how)
        complete, needed = names(tmp_path), calls
        for left in range(needed):
            calls, folder = 0, tmp_path / str(left)
            folder.mkdir()
            try:
                await files.download([host.url], folder, **how)
            except DownloadError as error:
                errors += 1
                assert "raise the limit of threads" in str(error)
                assert names(folder) == set()
            else:
                assert names(folder) == complete  # only the cleaning up was left
    assert errors >= needed - 2


@pytest.mark.parametrize("pipe", [False, True])
async def test_an_upload_without_threads(threads: Threads, tmp_path: Path, pipe: bool) -> None:
    """An `InvalidRequestError` that says what to do, before anything is sent; the source is closed."""

    path = tmp_path / "a.png"
    path.write_bytes(BODY)
    async with UploadHost() as host, files_for(host.url) as files:
        threads.left = 0
        with pytest.raises(InvalidRequestError, match="raise the limit of threads"):
            await files.upload(OnePass(BODY) if pipe else path)
        assert not host.forms
        threads.left = 1000
        await files.upload(OnePass(BODY) if pipe else path)
        assert len(host.forms) == 1


async def test_an_upload_that_loses_its_threads_halfway(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says why, and not only that the request could not be written."""

    class Source(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                threads.left = 0
            return super().read(size)

    loop = asyncio.get_running_loop()
    original = loop.run_in_executor

    def run_in_executor(*arguments: Any) -> Any:
        if threads.left == 0:
            raise RuntimeError("can't start new thread")
        return original(*arguments)

    monkeypatch.setattr(loop, "run_in_executor", run_in_executor)
    async with UploadHost() as host, files_for(host.url) as files:
        source = Source(bytes(10**6))
        with pytest.raises(KieError, match="cannot be read: no thread can be started"):
            await files.upload(source)
        assert not host.forms
        assert not source.closed
