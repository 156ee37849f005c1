"""Uploads and downloads that are stopped, by closing the client or by cancelling the caller."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from clients import until
from hosts import KEY, PNG, TASK, Host, Request, answer, files_for, names, no_renewal, picture
from portable import PATIENCE, running_tasks
from test_disk import patch_step

from kie4o import AsyncKieClient, DownloadError, ImageResult, KieError, TaskDetails, TaskState
from kie4o.files import transfers
from kie4o.files.disk import PREFIX
from kie4o.files.transfers import Files

BODY = picture(side=800)  # several chunks


async def stalls(_: Request, writer: asyncio.StreamWriter) -> None:
    """Sends all but the last bytes and waits."""
    writer.write(answer(BODY)[:-10])
    await writer.drain()
    await asyncio.Event().wait()


async def silent(_: Request, __: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


@contextlib.contextmanager
def a_disk_that_hangs(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Writes to the disk return once the event is set."""
    go_on = threading.Event()

    def held(original: Callable[..., Any], *arguments: Any, **how: Any) -> Any:
        assert go_on.wait(30)
        return original(*arguments, **how)

    with monkeypatch.context() as patch:
        patch_step(patch, "write", held)
        try:
            yield go_on
        finally:
            go_on.set()


@contextlib.asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    start = time.monotonic()
    async with asyncio.timeout(PATIENCE):
        yield
    assert time.monotonic() - start < seconds


def ours(before: set[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    """The tasks that have been started since, except those of the server."""
    return {task for task in running_tasks() - before if "_serve" not in repr(task)}


# -- closing -----------------------------------------------------------------------------------------


async def test_closing_stops_downloads(tmp_path: Path) -> None:
    """Each caller gets a `DownloadError` with its task id, at once; no partial file and no task is left."""
    async with Host(stalls) as host, files_for(host.url) as files:
        before = running_tasks()
        calls = [
            asyncio.create_task(
                files.download([host.url] * 2, tmp_path, task_id=f"task{n}", renew=no_renewal)
            )
            for n in range(3)
        ]
        await until(lambda: len(names(tmp_path)) == 6)
        async with within(1.0):
            await files.aclose()
            errors = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in errors] == [DownloadError] * 3
        assert [getattr(error, "task_id", None) for error in errors] == ["task0", "task1", "task2"]
        assert all("the client is closed" in str(error) for error in errors)
        assert all(error.__context__ is None for error in errors if isinstance(error, DownloadError))
        assert names(tmp_path) == set()
        assert not ours(before)


async def test_closing_stops_uploads(tmp_path: Path) -> None:
    """Each caller gets the error of a closed client, and the source is closed."""
    path = tmp_path / "a.png"
    path.write_bytes(BODY)
    async with Host(silent) as host, files_for(host.url) as files:
        before = running_tasks()
        calls = [
            asyncio.create_task(call)
            for call in (files.upload(path), files.upload_from_url("https://a.example/1.png"))
        ]
        await until(lambda: len(host.requests) == 2)
        async with within(1.0):
            await files.aclose()
            errors = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in errors] == [KieError] * 2
        assert all("the client is closed" in str(error) for error in errors)
        await until(lambda: not ours(before))  # aiohttp's writer first awaits the thread that reads the file


@pytest.mark.parametrize("turns", range(12))
async def test_closing_after_any_number_of_turns(tmp_path: Path, turns: int) -> None:
    """Wherever a transfer is, its caller gets an error of the client and never a cancel."""
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    folder = tmp_path / "images"
    async with Host(stalls) as host, files_for(host.url) as files:
        calls = [
            asyncio.create_task(files.download([host.url], folder, task_id=TASK, renew=no_renewal)),
            asyncio.create_task(files.upload(path)),
        ]
        for _ in range(turns):
            await asyncio.sleep(0)
        async with within(1.0):
            await files.aclose()
            errors = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in errors] == [DownloadError, KieError]
        assert not folder.exists() or names(folder) == set()


async def test_nothing_starts_after_closing() -> None:
    """An upload is refused like a download, before its source is opened."""
    async with Host(answer(PNG)) as host, files_for(host.url) as files:
        await files.aclose()
        for call in (files.upload("missing.png"), files.upload_from_url("https://a.example/1.png")):
            with pytest.raises(KieError, match="the client is closed"):
                await call
    assert not host.requests


async def test_closing_the_client_stops_a_download(tmp_path: Path) -> None:
    """The same through the client, and the images that are complete stay."""

    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.target == "/whole":
            writer.write(answer(PNG))
        else:
            await stalls(request, writer)

    async with Host(reply) as host:
        urls = (f"{host.url}/whole", f"{host.url}/stalls")
        result = ImageResult(
            TASK, urls=urls, details=TaskDetails(TASK, state=TaskState.SUCCEEDED, urls=urls), source="poll"
        )
        client = AsyncKieClient(KEY, base_url=host.url)
        call = asyncio.create_task(client.download(result, tmp_path))
        await until(lambda: tmp_path.joinpath(f"{TASK}_0.png").exists() and len(names(tmp_path)) == 2)
        async with within(1.0):
            await client.aclose()
        with pytest.raises(DownloadError) as caught:
            await call
        assert caught.value.task_id == TASK
        assert names(tmp_path) == {f"{TASK}_0.png"}


# -- a disk that does not answer -----------------------------------------------------------------------


async def test_closing_does_not_wait_for_a_disk_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The transfer is left behind after a while, which is logged; its file goes when the disk answers."""
    monkeypatch.setattr(transfers, "STUCK", 0.2)
    async with Host(answer(BODY)) as host, files_for(host.url) as files:
        before = running_tasks()
        with a_disk_that_hangs(monkeypatch) as go_on:
            call = asyncio.create_task(files.download([host.url], tmp_path, task_id=TASK, renew=no_renewal))
            await until(lambda: names(tmp_path))
            async with within(2.0):
                await files.aclose()
                with pytest.raises(DownloadError, match="the client is closed"):
                    await call
            assert [record.levelname for record in caplog.records if "left behind" in record.message] == [
                "WARNING"
            ]
            go_on.set()
            await until(lambda: not names(tmp_path))
            await until(lambda: not ours(before))


@pytest.mark.parametrize("repeatedly", [False, True])
async def test_a_cancel_does_not_wait_for_a_disk_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, repeatedly: bool
) -> None:
    """Nor does a caller that is cancelled, and closing does not wait for what it left any longer."""
    monkeypatch.setattr(transfers, "STUCK", 0.2)
    async with Host(answer(BODY)) as host, files_for(host.url) as files:
        with a_disk_that_hangs(monkeypatch) as go_on:
            call = asyncio.create_task(files.download([host.url], tmp_path, task_id=TASK, renew=no_renewal))
            await until(lambda: names(tmp_path))
            async with within(2.0):
                for _ in range(5 if repeatedly else 1):
                    call.cancel()
                    await asyncio.sleep(0)
                with pytest.raises(asyncio.CancelledError):
                    await call
                assert "left behind" in caplog.text
                await files.aclose()
            go_on.set()
            await until(lambda: not names(tmp_path))


# -- a caller that is cancelled again and again --------------------------------------------------------


@pytest.mark.paced
@pytest.mark.parametrize("way", ["download", "upload"])
async def test_level_cancellation_does_not_spin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A scope of anyio cancels its task in every turn of the loop. While a slow disk is waited for, that
    costs next to no CPU time, and the partial file is removed."""
    path, folder = tmp_path / "a.png", tmp_path / "images"
    path.write_bytes(BODY)
    folder.mkdir()

    async def transfer(files: Files, url: str) -> None:
        if way == "download":
            await files.download([url], folder, task_id=TASK, renew=no_renewal)
        else:
            await files.upload(SlowFile(path))

    async with Host(answer(BODY) if way == "download" else silent) as host, files_for(host.url) as files:
        before = running_tasks()
        with a_disk_that_hangs(monkeypatch) as go_on:
            SlowFile.go_on = go_on
            threading.Timer(1.2, go_on.set).start()
            start, used = time.monotonic(), time.process_time()
            with anyio.move_on_after(0.2) as scope:
                await transfer(files, host.url)
            took, used = time.monotonic() - start, time.process_time() - used
        assert scope.cancelled_caught
        assert took > 1.0, "the control: it waited for the disk"
        assert used < took / 4
        assert names(folder) == set()
        assert not ours(before)


class SlowFile:
    """An open file whose second read takes long."""

    go_on: threading.Event

    def __init__(self, path: Path) -> None:
        self._body = path.read_bytes()
        self._at = self._reads = 0

    def seek(self, at: int, whence: int = 0) -> int:
        self._at = at + (len(self._body) if whence else 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, count: int) -> bytes:
        if count:
            self._reads += 1
        if self._reads > 1:
            assert self.go_on.wait(30)
        return self._body[self._at : self._at + count]


@pytest.mark.parametrize("after", [0.0, 0.002, 0.01, 0.05])
async def test_level_cancellation_leaves_nothing(tmp_path: Path, after: float) -> None:
    """Wherever it strikes, no partial file, no task and no open transfer is left."""
    async with Host(stalls) as host, files_for(host.url) as files:
        before = running_tasks()
        with anyio.move_on_after(after) as scope:
            await files.download([host.url] * 3, tmp_path, task_id=TASK, renew=no_renewal)
        assert scope.cancelled_caught
        assert not {name for name in names(tmp_path) if name.startswith(PREFIX)}
        assert not ours(before)
