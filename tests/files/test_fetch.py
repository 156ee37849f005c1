"""Images as values: fetched into memory, checked as downloads are, saved by hand."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import pytest
from aiohttp.test_utils import TestServer
from clients import client_of
from hosts import KEY, PNG, TASK, Host, Request, answer, files_for, names, no_renewal, picture
from pages import section
from portable import running_tasks
from test_verification import DAMAGED

from kie4o import (
    AsyncKieClient,
    DownloadError,
    Image,
    ImageResult,
    InvalidRequestError,
    KieError,
    TaskDetails,
    TaskState,
)
from kie4o.emulator import Emulator
from kie4o.files import disk

MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
HOW: dict[str, Any] = {"task_id": TASK, "renew": no_renewal}
IMAGE = Image(PNG, mime_type="image/png", url="https://a.example/a.png", index=0, task_id=TASK)


async def refused(host: Host, files: Any, **how: Any) -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        await files.fetch([host.url], **HOW | how)
    error = caught.value
    assert (error.task_id, error.__cause__, error.__context__) == (TASK, None, None)
    assert KEY not in repr(error) + str(error)
    return error


@pytest.mark.parametrize("kind", MIME)
async def test_an_image_is_fetched(kind: str) -> None:
    """Its bytes, its type by the bytes, the URL of the result, and its position."""
    body = picture(kind, side=500)
    async with Host(answer(body, "200 OK", "Content-Type: text/html")) as host, files_for(host.url) as files:
        urls = [f"{host.url}/a.exe", f"{host.url}/b"]
        images = await files.fetch(urls, **HOW)
        assert await files.fetch([], **HOW) == []
    assert images == [
        Image(body, mime_type=MIME[kind], url=url, index=index, task_id=TASK)
        for index, url in enumerate(urls)
    ]


async def test_it_is_checked_as_a_download_is() -> None:
    """Cut off, another file, too large, a private host: the same errors after the same tries."""
    async with Host() as host, files_for(host.url, max_image_bytes=2**20) as files:
        for reply, tries, words in (
            (answer(PNG[:-10]), 3, "cut off"),
            (answer(b"<html>no image</html>"), 1, "not an image"),
            (answer(PNG + bytes(2**20)), 1, "more than 1048576 bytes"),
            (answer(b"", "503 Busy"), 3, "HTTP 503"),
        ):
            host.replies, host.requests = [reply], []
            assert words in str(await refused(host, files))
            assert len(host.requests) == tries
        host.replies = [answer(b"", "503 Busy"), answer(PNG)]
        assert [image.data for image in await files.fetch([host.url], **HOW)] == [PNG]
    async with files_for(None) as files:  # the real Kie: only https to public addresses
        with pytest.raises(DownloadError, match="not https"):
            await files.fetch([host.url], **HOW)


async def test_it_can_be_verified() -> None:
    """A GIF that looks whole is refused if it cannot be decoded."""
    async with Host(answer(DAMAGED["a GIF"])) as host, files_for(host.url) as files:
        assert "cannot be decoded" in str(await refused(host, files, verify=True))
        assert len(await files.fetch([host.url], **HOW)) == 1
        host.replies = [answer(picture("GIF"))]
        assert len(await files.fetch([host.url], verify=True, **HOW)) == 1
        with pytest.raises(InvalidRequestError, match="verify="):
            await files.fetch([host.url], verify=1, **HOW)  # type: ignore[arg-type]  # wrong on purpose


async def test_closing_and_cancelling_stop_it() -> None:
    """At once, with an error that has the task id, and without a task that is left."""

    async def stalls(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(PNG)[:-10])
        await asyncio.Event().wait()

    async with Host(stalls) as host, files_for(host.url) as files:
        before = running_tasks()
        cancelled, closed = (asyncio.ensure_future(files.fetch([host.url], **HOW)) for _ in range(2))
        while len(host.requests) < 2:
            await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await files.aclose()
        with pytest.raises(DownloadError, match="closed") as caught:
            await closed
        assert caught.value.task_id == TASK
        assert not {task for task in running_tasks() - before if "_serve" not in repr(task)}


async def test_the_client_fetches_results_and_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result and the id of a task; nothing is written to the disk."""
    monkeypatch.chdir(tmp_path)
    async with Emulator(speed=50, pictures=False) as kie, client_of(kie.url) as client:
        task = await client.submit("A lake", n_variants=2)
        with pytest.raises(DownloadError, match="still running") as caught:
            await client.fetch(task.id)
        assert caught.value.details is not None
        assert (caught.value.task_id, caught.value.details.state) == (task.id, TaskState.RUNNING)
        result = await task
        images = await client.fetch(result)
        assert [image.url for image in images] == list(result.urls)
        assert await client.fetch(task.id) == images
        for wrong in (7, None, b"id", [task.id], "a b"):
            with pytest.raises(InvalidRequestError):
                await client.fetch(wrong)  # type: ignore[arg-type]  # wrong on purpose
            with pytest.raises(InvalidRequestError):
                await client.download(wrong, tmp_path)  # type: ignore[arg-type]  # wrong on purpose
        assert kie.leaked_keys == []
    assert names(tmp_path) == set()


async def test_a_task_is_as_good_as_its_id(tmp_path: Path) -> None:
    """For `fetch` and for `download`."""
    async with Emulator(speed=50, pictures=False) as kie, client_of(kie.url) as client:
        task = await client.submit("A lake", n_variants=2)
        result = await task
        assert await client.fetch(task) == await client.fetch(result)
        assert await client.download(task, tmp_path) == await client.download(result, tmp_path)


async def test_the_client_passes_it_on() -> None:
    """`client.fetch(..., verify=True)` refuses what `client.fetch(...)` gives."""
    async with Host(answer(DAMAGED["a GIF"])) as host, AsyncKieClient(KEY, base_url=host.url) as client:
        details = TaskDetails(TASK, state=TaskState.SUCCEEDED, urls=(host.url,))
        result = ImageResult(TASK, urls=(host.url,), details=details)
        with pytest.raises(DownloadError, match="cannot be decoded"):
            await client.fetch(result, verify=True)
        assert len(await client.fetch(result)) == 1


async def test_the_recipe_for_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The application of docs/files.md serves an image, and 404 for a task that has none."""
    [code] = [block.code for block in section("Images in memory").blocks if "web.Application" in block.code]
    async with Emulator(speed=50) as kie:
        monkeypatch.setenv("KIE_API_KEY", KEY)
        monkeypatch.setenv("KIE_BASE_URL", kie.url)
        names: dict[str, Any] = {}
        exec(code, names)  # the page's own code
        async with TestServer(names["app"]) as server, aiohttp.ClientSession() as session:
            result = await names["client"].generate("A lake")
            async with session.get(server.make_url(f"/images/{result.task_id}")) as response:
                assert (response.status, response.content_type) == (200, "image/png")
                assert await response.read() == (await names["client"].fetch(result))[0].data
            async with session.get(server.make_url(f"/images/{TASK}")) as response:
                assert (response.status, "no images" in await response.text()) == (404, True)


# -- the value -----------------------------------------------------------------------------------------


def test_a_value() -> None:
    """Frozen, equal by its bytes, hashable, pickled; its repr is short; a notebook shows it."""
    assert pickle.loads(pickle.dumps(IMAGE)) == IMAGE
    assert attrs.evolve(IMAGE, data=b"x") != IMAGE
    assert len({IMAGE, attrs.evolve(IMAGE)}) == 1
    assert len(repr(IMAGE)) < 200
    assert f"data:image/png;base64,{base64.b64encode(PNG).decode()}" in IMAGE._repr_html_()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        IMAGE.data = b""  # type: ignore[misc]  # wrong on purpose
    with pytest.raises(TypeError):
        Image(PNG, "image/png", "https://a.example", 0, TASK)  # type: ignore[misc]  # wrong on purpose


def test_it_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under exactly that name, in place of a file that is there; `~` is the home directory."""
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lake.png").write_bytes(b"older")
    for path in (str(tmp_path / "lake.png"), tmp_path / "lake.png", "~/lake.png", Path("~/lake.png")):
        assert IMAGE.save(path) == tmp_path / "lake.png"
    assert IMAGE.save("boat") == Path("boat")
    assert (tmp_path / "lake.png").read_bytes() == (tmp_path / "boat").read_bytes() == PNG
    assert names(tmp_path) == {"lake.png", "boat"}


@pytest.mark.parametrize(
    "path",
    ["missing/lake.png", "", ".", "..", "lake\0.png", "~there-is-no-such-user/a.png", 7, None, b"a.png"],
)
def test_a_path_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Any) -> None:
    """A `DownloadError` with the task id and the reason, and no file."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(KieError, match="could not save image 0 of task") as caught:
        IMAGE.save(path)
    assert type(caught.value) is DownloadError
    assert caught.value.task_id == TASK
    assert caught.value.__context__ is None
    assert names(tmp_path / "here") == set()
    assert names(tmp_path) == {"here"}


@pytest.mark.parametrize("step", ["write", "fsync"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """The file that is there stays, and no draft is left."""

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "lake.png").write_bytes(b"older")
    with monkeypatch.context() as patch:
        patch.setattr(disk.os, step, full)
        with pytest.raises(DownloadError, match="No space left on device"):
            IMAGE.save(tmp_path / "lake.png")
    assert (tmp_path / "lake.png").read_bytes() == b"older"
    assert names(tmp_path) == {"lake.png"}


async def test_it_is_saved_in_a_thread(tmp_path: Path) -> None:
    """As the docstring says for a server."""
    path = await asyncio.to_thread(IMAGE.save, tmp_path / "lake.png")
    assert path.read_bytes() == PNG


def test_other_programs_take_its_bytes() -> None:
    """They are plain bytes: Pillow, a hash, a response of a web framework."""
    from PIL import Image as Pillow

    assert Pillow.open(io.BytesIO(IMAGE.data)).size == (60, 60)
    assert hashlib.sha256(IMAGE.data).digest() == hashlib.sha256(PNG).digest()
