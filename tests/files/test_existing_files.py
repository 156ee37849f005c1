"""Files that are there already: kept, replaced, or left alone under another name."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from clients import client_of
from hosts import PNG, TASK, Host, answer, fails, files_for, names, no_renewal, picture
from portable import PATIENCE
from test_verification import DAMAGED

from kie4o import AsyncKieClient, DownloadError, ImageResult, InvalidRequestError, TaskDetails, TaskState
from kie4o.details import EXPIRY
from kie4o.emulator import Emulator
from kie4o.files import disk

OTHER = picture(side=30)
OURS = f"{TASK}_0.png"
HOW: dict[str, Any] = {"task_id": TASK, "renew": no_renewal}


def result_of(*urls: str) -> ImageResult:
    details = TaskDetails(TASK, state=TaskState.SUCCEEDED, urls=urls)
    return ImageResult(TASK, urls=urls, details=details)


@pytest.mark.parametrize(
    ("name", "exists", "kept"),
    [
        (None, None, True),
        (None, "keep", True),
        (None, "replace", False),
        ("cat", None, False),  # it may be an image of another task
        ("cat", "keep", True),
        ("cat", "replace", False),
    ],
)
async def test_what_is_there_is_kept_or_replaced(
    tmp_path: Path, name: str | None, exists: Any, kept: bool
) -> None:
    """What is kept is not requested; the client is not even connected."""
    path = tmp_path / (OURS if name is None else f"{name}.png")
    path.write_bytes(OTHER)
    before = path.stat().st_ino
    async with Host(answer(PNG)) as host, files_for(host.url) as files:
        assert await files.download([host.url], tmp_path, name=name, exists=exists, **HOW) == [path]
    assert path.read_bytes() == (OTHER if kept else PNG)
    assert len(host.requests) == (0 if kept else 1)
    assert (path.stat().st_ino == before) is kept
    assert names(tmp_path) == {path.name}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
async def test_every_format_is_kept(tmp_path: Path, kind: str) -> None:
    """Which one a task has is known only from its files."""
    async with Host(answer(picture(kind))) as host, files_for(host.url) as files:
        urls = [host.url] * 2
        paths = await files.download(urls, tmp_path, **HOW)
        assert await files.download(urls, tmp_path, **HOW) == paths
        paths[1].unlink()
        assert await files.download(urls, tmp_path, **HOW) == paths
    assert len(host.requests) == 3


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(
    "there",
    [b"", PNG[:-1], PNG[:100] + b"\0\0\0" + PNG[103:], b"<html>", picture("JPEG"), None],
    ids=["empty", "cut off", "damaged", "another file", "another format", "a directory"],
)
async def test_what_is_no_whole_image_is_fetched_again(
    tmp_path: Path, there: bytes | None, verify: bool
) -> None:
    """And replaced. A directory of that name is an error, as without `keep`."""
    path = tmp_path / OURS
    path.mkdir() if there is None else path.write_bytes(there)
    async with Host(answer(PNG)) as host, files_for(host.url) as files:
        if there is None:
            with pytest.raises(DownloadError, match="directory"):
                await files.download([host.url], tmp_path, verify=verify, **HOW)
        else:
            assert await files.download([host.url], tmp_path, verify=verify, **HOW) == [path]
            assert path.read_bytes() == PNG
    assert len(host.requests) == 1


@pytest.mark.parametrize("verify", [False, True])
async def test_verify_decodes_what_is_there(tmp_path: Path, verify: bool) -> None:
    """A GIF that looks whole and cannot be decoded is kept without `verify`, and fetched again with it."""
    damaged, whole = DAMAGED["a GIF"], picture("GIF", side=300)
    path = tmp_path / f"{TASK}_0.gif"
    path.write_bytes(damaged)
    async with Host(answer(whole)) as host, files_for(host.url) as files:
        await files.download([host.url], tmp_path, verify=verify, **HOW)
        assert path.read_bytes() == (whole if verify else damaged)
        await files.download([host.url], tmp_path, verify=verify, **HOW)
    assert len(host.requests) == verify


@pytest.mark.posix("named pipes")
async def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    """It would wait for a writer. It is replaced, as every file is."""
    os.mkfifo(tmp_path / OURS)
    async with asyncio.timeout(PATIENCE):
        async with Host(answer(PNG)) as host, files_for(host.url) as files:
            [path] = await files.download([host.url], tmp_path, **HOW)
    assert path.read_bytes() == PNG


@pytest.mark.posix("permissions")
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root reads every file")
async def test_a_file_that_cannot_be_read_is_replaced(tmp_path: Path) -> None:
    """As one that is missing."""
    (tmp_path / OURS).write_bytes(OTHER)
    (tmp_path / OURS).chmod(0)
    async with Host(answer(PNG)) as host, files_for(host.url) as files:
        [path] = await files.download([host.url], tmp_path, **HOW)
    assert path.read_bytes() == PNG


@pytest.mark.parametrize("exists", ["", "skip", True, 1, b"keep", ["keep"]])
async def test_another_word_is_refused(tmp_path: Path, exists: Any) -> None:
    """Before any network use, also for the id of a task."""
    async with Host(answer(PNG)) as host, AsyncKieClient("k" * 32, base_url=host.url) as client:
        for result in (TASK, result_of(host.url)):
            with pytest.raises(InvalidRequestError, match="exists="):
                await client.download(result, tmp_path, exists=exists)
    assert not host.connections


# -- rename --------------------------------------------------------------------------------------------


@pytest.fixture(params=["hard links", "no hard links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAT, exFAT and some network file systems have no hard links."""

    def link(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if request.param == "no hard links":
        monkeypatch.setattr(disk.os, "link", link)


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize("name", [None, "v1.2"])
async def test_a_free_name_is_found(tmp_path: Path, name: str | None) -> None:
    """No file is replaced, not even one that is no image; a gap in the numbers is used."""
    stem = f"{TASK}_0" if name is None else name
    (tmp_path / f"{stem}.png").write_bytes(b"mine")
    (tmp_path / f"{stem} (2).png").write_bytes(b"mine too")
    async with Host(answer(PNG)) as host, files_for(host.url) as files:
        found = [
            (await files.download([host.url], tmp_path, name=name, exists="rename", **HOW))[0].name
            for _ in range(2)
        ]
    assert found == [f"{stem} (1).png", f"{stem} (3).png"]
    assert {(tmp_path / each).read_bytes() for each in found} == {PNG}
    assert (tmp_path / f"{stem}.png").read_bytes() == b"mine"
    assert len(names(tmp_path)) == 4


@pytest.mark.usefixtures("links")
async def test_downloads_at_once_find_different_names(tmp_path: Path) -> None:
    """Twenty downloads of different images under one name: every image is there in the end."""
    bodies = [picture(side=20 + number) for number in range(20)]

    async def reply(request: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(bodies[int(request.target[1:])]))

    async with Host(reply) as host, files_for(host.url) as files:
        downloads = [
            files.download([f"{host.url}/{number}"], tmp_path, name="cat", exists="rename", **HOW)
            for number in range(20)
        ]
        paths = [paths[0] for paths in await asyncio.gather(*downloads)]
    assert [path.read_bytes() for path in paths] == bodies
    assert names(tmp_path) == {"cat.png", *(f"cat ({number}).png" for number in range(1, 20))}


@pytest.mark.usefixtures("links")
async def test_a_rename_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a draft nor the empty file that took the name."""

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    async with Host(answer(PNG)) as host, files_for(host.url) as files:
        with monkeypatch.context() as patch:
            patch.setattr(disk.os, "link", full)
            patch.setattr(disk.Path, "replace", full)
            error = await fails(files, tmp_path, host.url, exists="rename")
    assert "Input/output error" in str(error)


# -- the client ----------------------------------------------------------------------------------------


async def test_a_result_whose_files_are_there_needs_no_network(tmp_path: Path) -> None:
    """Neither the host nor Kie is asked."""
    (tmp_path / OURS).write_bytes(PNG)
    async with Host(b"") as host, AsyncKieClient("k" * 32, base_url=host.url) as client:
        assert await client.download(result_of(f"{host.url}/a"), tmp_path) == [tmp_path / OURS]
        assert host.connections == 0


async def test_a_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `~` is the user's; where there is none, that is a `DownloadError`."""
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    async with Host(answer(PNG)) as host, AsyncKieClient("k" * 32, base_url=host.url) as client:
        for directory in ("~/a/b", Path("~/a/b")):
            paths = await client.download(result_of(host.url), directory)
            assert paths == [tmp_path / "a" / "b" / OURS]
        with pytest.raises(DownloadError, match="could not create the directory"):
            await client.download(result_of(host.url), "~there-is-no-such-user/a")
    assert len(host.requests) == 1


async def test_a_batch_after_its_images_were_deleted(tmp_path: Path) -> None:
    """The same program after 14 days: replayed results, images from the disk, and no request at all. An image
    that is missing has a sentence of its own."""
    prompts = [f"A lake {number}" for number in range(3)]
    run: dict[str, Any] = {"store": tmp_path / "run.db"}
    images = tmp_path / "images"

    async def batch(url: str) -> tuple[list[Path], list[str]]:
        saved, failed = [], []
        async with client_of(url, **run) as client:
            async for done in client.generate_many(prompts):
                try:
                    saved += await client.download(done.unwrap(), images)
                except DownloadError as error:
                    failed.append(str(error))
        return saved, failed

    async with Emulator(speed=50, pictures=False) as kie:
        first, failed = await batch(kie.url)
        assert (len(first), failed) == (3, [])
        for task in kie.tasks.values():
            task.created -= EXPIRY
        requests = kie.requests.copy()
        again, failed = await batch(kie.url)
        assert (sorted(again), failed) == (sorted(first), [])
        assert kie.requests == requests
        first[1].unlink()
        again, failed = await batch(kie.url)
        task_id = first[1].name.partition("_")[0]
        assert failed == [f"the images of task {task_id} were deleted: Kie keeps them for 14 days"]
        assert len(again) == 2


@pytest.mark.parametrize("stored", [False, True])
async def test_a_task_that_kie_has_deleted(tmp_path: Path, stored: bool) -> None:
    """By its id: what is on the disk, under the names of the task only. How many images there were is known
    if the store has the task: then one that is missing is missed."""
    async with Emulator(speed=50, pictures=False, wall=lambda: time.time() - EXPIRY - 3600) as kie:
        store: dict[str, Any] = {"store": tmp_path / "run.db"}
        async with client_of(kie.url, **store) as client:
            result = await client.generate("A lake", n_variants=2)
            paths = await client.download(result, tmp_path / "images")
        del kie.tasks[result.task_id]
        async with client_of(kie.url, **(store if stored else {})) as client:
            assert await client.download(result.task_id, tmp_path / "images") == paths
            for how in ({"exists": "replace"}, {"name": "lake"}, {"name": "lake", "exists": "keep"}):
                with pytest.raises(DownloadError):
                    await client.download(result.task_id, tmp_path / "images", **how)  # type: ignore[arg-type]  # any of them
            paths[1].unlink()
            if stored:
                with pytest.raises(DownloadError, match="were deleted"):
                    await client.download(result.task_id, tmp_path / "images")
            else:
                assert await client.download(result.task_id, tmp_path / "images") == paths[:1]
            paths[0].unlink()
            with pytest.raises(DownloadError):
                await client.download(result.task_id, tmp_path / "images")
