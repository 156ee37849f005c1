"""Downloads of several images in one call, and a round trip through the emulator."""

import asyncio
from pathlib import Path

import pytest
from hosts import PNG, TASK, Host, Request, answer, fails, files_for, names, no_renewal, picture

from kie4o.errors import DownloadError, InvalidRequestError
from kie4o.transport.transport import USER_AGENT


async def test_several_images_keep_their_order(tmp_path: Path) -> None:
    """Paths are in the order of the URLs, and at most four downloads run at once."""
    running, most = 0, 0
    release = asyncio.Event()
    bodies = {f"/{n}": picture(side=20 + n) for n in range(6)}

    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 4:
            for _ in range(200):  # enough for a fifth request to arrive
                await asyncio.sleep(0)
            release.set()
        await release.wait()
        running -= 1
        writer.write(answer(bodies[request.target]))

    async with Host(reply) as host, files_for(host.url) as files:
        urls = [host.url + path for path in bodies]
        paths = await files.download(urls, tmp_path, task_id=TASK, name="cat", renew=no_renewal)
    assert [path.name for path in paths] == [f"cat_{n}.png" for n in range(6)]
    assert [path.read_bytes() for path in paths] == list(bodies.values())
    assert most == 4


async def test_no_urls(tmp_path: Path) -> None:
    """Without URLs there are no paths."""
    async with files_for(None) as files:
        assert await files.download([], tmp_path, task_id=TASK, renew=no_renewal) == []


async def test_one_failure_cancels_the_others(tmp_path: Path) -> None:
    """The other downloads are cancelled and leave no file; files that are already complete stay."""
    stuck = asyncio.Event()

    async def reply(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.target == "/whole":
            writer.write(answer(PNG))
        elif request.target == "/bad":
            await stuck.wait()
            writer.write(answer(b"<html>no image at all</html>"))
        else:
            writer.write(answer(PNG)[:-10])
            await writer.drain()
            while not (tmp_path / f"{TASK}_0.png").exists():
                await asyncio.sleep(0.001)
            stuck.set()
            await asyncio.Event().wait()

    async with Host(reply) as host, files_for(host.url) as files:
        urls = [host.url + path for path in ("/whole", "/hangs", "/bad")]
        with pytest.raises(DownloadError, match="not an image") as caught:
            await files.download(urls, tmp_path, task_id=TASK, renew=no_renewal)
    assert caught.value.__context__ is None
    assert names(tmp_path) == {f"{TASK}_0.png"}


async def test_a_name_must_be_text(tmp_path: Path) -> None:
    """Another type is refused before any network use."""
    async with Host(answer(PNG)) as host, files_for(host.url) as files:
        with pytest.raises(InvalidRequestError, match="name=7"):
            await files.download([host.url], tmp_path, task_id=TASK, name=7, renew=no_renewal)  # type: ignore[arg-type]  # wrong on purpose
    assert not host.requests


async def test_a_closed_client_downloads_nothing(tmp_path: Path) -> None:
    """A download after `aclose` opens no new session."""
    async with Host(answer(PNG)) as host, files_for(host.url) as files:
        await files.aclose()
        assert "closed" in str(await fails(files, tmp_path, host.url))
    assert not host.requests


async def test_a_directory_that_cannot_be_created(tmp_path: Path) -> None:
    """The download fails before any request, with the system's reason."""
    (tmp_path / "file").write_bytes(b"")
    async with Host(answer(PNG)) as host, files_for(host.url) as files:
        for folder in (tmp_path / "file", tmp_path / "file" / "deeper", tmp_path / "a\0b"):
            with pytest.raises(DownloadError, match="could not create the directory") as caught:
                await files.download([host.url], folder, task_id=TASK, renew=no_renewal)
            assert (caught.value.task_id, caught.value.__context__) == (TASK, None)
            assert ("it is not a folder. Task" in str(caught.value)) == (folder.name == "file")
        (tmp_path / "cat.png").mkdir()
        with pytest.raises(DownloadError, match="directory"):
            await files.download([host.url], tmp_path, task_id=TASK, name="cat", renew=no_renewal)
    assert len(host.requests) == 1
    assert names(tmp_path) == {"cat.png", "file"}


async def test_against_the_emulator(tmp_path: Path) -> None:
    """Uploaded files can be downloaded again, and no key is sent to a file host."""
    emulator = pytest.importorskip("kie4o.emulator")
    async with emulator.Emulator() as kie, files_for(kie.url) as files:
        stored = await files.upload(PNG, name="a.png")
        copied = await files.upload_from_url(stored.url, name="b.png")
        paths = await files.download([stored.url, copied.url], tmp_path, task_id=TASK, renew=no_renewal)
        assert [path.read_bytes() for path in paths] == [PNG, PNG]
        assert kie.leaked_keys == []
        assert kie.user_agents == {USER_AGENT}
