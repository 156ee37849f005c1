"""`verify=True`: images are decoded with Pillow before they appear."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from hosts import KEY, PNG, TASK, Host, answer, fails, files_for, names, no_renewal, picture
from PIL import Image

from kie4o import AsyncKieClient, ConfigurationError, ImageResult, InvalidRequestError, TaskDetails, TaskState


def chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(width: int, height: int, pixels: bytes) -> bytes:
    """A grey PNG whose checksums are right, whatever its compressed pixels are."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def animation(frames: int, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    pictures = [Image.new("L", (side, side), 10 * number) for number in range(frames)]
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:])
    return buffer.getvalue()


def gradient() -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((300, 300)).save(buffer, "WEBP")
    return buffer.getvalue()


def zeroed(body: bytes, start: int, count: int) -> bytes:
    return body[:start] + bytes(count) + body[start + count :]


GOOD = png(8, 8, zlib.compress(bytes(9 * 8)))
DAMAGED: dict[str, bytes] = {
    "a PNG with checksums of broken pixels": png(8, 8, zlib.compress(bytes(9 * 8))[:-6] + bytes(6)),
    "a GIF": zeroed(picture("GIF", side=300), 5000, 300),
    "a JPEG without its tables": zeroed(picture("JPEG", side=300), 30, 500),
    "a WebP": zeroed(gradient(), 100, 100),
}


@pytest.mark.parametrize(
    "body",
    [*(picture(kind, side=300) for kind in ("PNG", "JPEG", "WEBP", "GIF")), animation(5), GOOD],
    ids=["PNG", "JPEG", "WEBP", "GIF", "animation", "GOOD"],
)
async def test_a_whole_image_is_saved(tmp_path: Path, body: bytes) -> None:
    """Unchanged, as without `verify`."""
    async with Host(answer(body)) as host, files_for(host.url) as files:
        [path] = await files.download([host.url], tmp_path, task_id=TASK, verify=True, renew=no_renewal)
    assert path.read_bytes() == body
    assert names(tmp_path) == {path.name}


@pytest.mark.parametrize("name", DAMAGED)
async def test_an_image_that_cannot_be_decoded_is_not_saved(tmp_path: Path, name: str) -> None:
    """It is tried three times as one that is cut off. Without `verify` it is saved: the control."""
    async with Host(answer(DAMAGED[name])) as host, files_for(host.url) as files:
        assert "cannot be decoded" in str(await fails(files, tmp_path, host.url, verify=True))
        assert len(host.requests) == 3
        [path] = await files.download([host.url], tmp_path, task_id=TASK, renew=no_renewal)
        assert path.read_bytes() == DAMAGED[name]


@pytest.mark.parametrize(
    "body",
    [png(30_000, 30_000, zlib.compress(bytes(1000))), png(12_000, 9_000, b"")],
    ids=["an error to Pillow", "a warning to Pillow"],
)
async def test_an_image_with_too_many_pixels_is_not_decoded(tmp_path: Path, body: bytes) -> None:
    """It is refused at once, since another try has as many, and without the warning of Pillow."""
    async with Host(answer(body)) as host, files_for(host.url) as files:
        error = await fails(files, tmp_path, host.url, verify=True)
    assert "more pixels than Pillow decodes (PIL.Image.MAX_IMAGE_PIXELS)" in str(error)
    assert len(host.requests) == 1


async def test_the_limit_of_pillow_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow refuses a WebP that is far too large as soon as it is opened; that is no damage either."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    async with Host(answer(gradient())) as host, files_for(host.url) as files:
        assert "more pixels" in str(await fails(files, tmp_path, host.url, verify=True))
    assert len(host.requests) == 1


async def test_the_frames_of_an_animation_count_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is the user's, for one image or for all frames of one."""
    async with Host(answer(animation(5))) as host, files_for(host.url) as files:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4 * 64)
        assert "more pixels" in str(await fails(files, tmp_path, host.url, verify=True))
        for limit in (5 * 64, None):
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
            await files.download([host.url], tmp_path, task_id=TASK, verify=True, renew=no_renewal)


async def test_without_pillow_nothing_is_requested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install, before any network use; without `verify` Pillow is not needed."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    folder = tmp_path / "images"
    async with Host(answer(PNG)) as host, files_for(host.url) as files:
        with pytest.raises(ConfigurationError, match="pip install pillow") as caught:
            await files.download([host.url], folder, task_id=TASK, verify=True, renew=no_renewal)
        assert caught.value.__context__ is None
        assert not host.requests
        assert not folder.exists()
        await files.download([host.url], folder, task_id=TASK, renew=no_renewal)


@pytest.mark.parametrize("verify", [None, 1, "yes"])
async def test_verify_is_true_or_false(tmp_path: Path, verify: Any) -> None:
    """Another value is refused before any network use."""
    async with Host(answer(PNG)) as host, files_for(host.url) as files:
        with pytest.raises(InvalidRequestError, match="verify="):
            await files.download([host.url], tmp_path, task_id=TASK, verify=verify, renew=no_renewal)
    assert not host.requests


async def test_the_client_passes_it_on(tmp_path: Path) -> None:
    """`client.download(..., verify=True)` refuses what `client.download(...)` saves."""
    async with Host(answer(DAMAGED["a GIF"])) as host, AsyncKieClient(KEY, base_url=host.url) as client:
        details = TaskDetails(TASK, state=TaskState.SUCCEEDED, urls=(host.url,))
        result = ImageResult(TASK, urls=(host.url,), details=details, source="poll")
        with pytest.raises(Exception, match="cannot be decoded"):
            await client.download(result, tmp_path, verify=True)
        assert len(await client.download(result, tmp_path)) == 1
