"""Image formats by their bytes, and the names of image files."""

import io
import random
import re
import unicodedata
import zlib
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from kie4o.files import images
from kie4o.files.images import Inspection, file_name, suffix_of

FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF"}
TASK = "3f1c0d2e4b5a69788796a5b4c3d2e1f0"


def picture(suffix: str, side: int = 40, **how: Any) -> bytes:
    """An image of noise, which does not compress; always the same one."""
    buffer = io.BytesIO()
    noise = Image.frombytes("L", (side, side), random.Random(side).randbytes(side * side))
    noise.convert("P" if suffix == "gif" else "RGB").save(buffer, FORMATS[suffix], **how)
    return buffer.getvalue()


def with_thumbnail(body: bytes) -> bytes:
    """A JPEG with a whole JPEG in a segment before its picture, as cameras write them."""
    inner = picture("jpg", side=10)
    return body[:20] + b"\xff\xe1" + (len(inner) + 2).to_bytes(2, "big") + inner + body[20:]


def animation() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.frombytes("P", (9, 9), random.Random(seed).randbytes(81)) for seed in range(4)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], loop=0, comment=b"\0;")
    return buffer.getvalue()


IMAGES: dict[str, bytes] = {suffix: picture(suffix) for suffix in FORMATS} | {
    "progressive jpg": picture("jpg", progressive=True),
    "jpg with restarts": picture("jpg", restart_marker_rows=1),
    "jpg with a thumbnail": with_thumbnail(picture("jpg")),
    "animated gif": animation(),
}
AFTER_THE_END = {
    "newline": b"\n",
    "line end": b"\r\n",
    "fill bytes": b"\xff\xff",
    "half a tag": b"<?xpacket end='w",
    "zeros": bytes(5000),
    "metadata": b"\xff\xe1metadata" * 10_000,
    "half an image": picture("jpg")[:-50],
}


def inspected(body: bytes, step: int = 100_000) -> Inspection:
    """The inspection of an image that arrives in pieces of `step` bytes."""
    seen = Inspection()
    for start in range(0, len(body), step):
        seen.feed(body[start : start + step])
    return seen


def whole(body: bytes, step: int = 100_000) -> bool:
    seen = inspected(body, step)
    return seen.suffix is not None and seen.problem is None


@pytest.mark.parametrize("suffix", FORMATS)
def test_real_images(suffix: str) -> None:
    """Images written by Pillow are recognised by their first bytes and complete by their last."""
    body = picture(suffix)
    assert inspected(body).suffix == suffix
    assert whole(body)


@pytest.mark.parametrize("name", IMAGES)
def test_every_truncation_is_detected(name: str) -> None:
    """An image that is cut off anywhere is not complete, whatever its thumbnail or its data look like."""
    body = IMAGES[name]
    Image.open(io.BytesIO(body)).load()
    assert whole(body)
    assert not [at for at in range(len(body)) if whole(body[:at])]


@pytest.mark.parametrize("after", AFTER_THE_END)
@pytest.mark.parametrize("name", IMAGES)
def test_what_follows_the_end_does_not_matter(name: str, after: str) -> None:
    """A decoder takes such an image, and servers and programs do append bytes. Without the last byte of
    the image itself it is not complete: the control."""
    body, appended = IMAGES[name], AFTER_THE_END[after]
    Image.open(io.BytesIO(body + appended)).load()
    for step in (1, 7, 100_000):
        assert whole(body + appended, step)
    if not name.endswith("webp"):  # its length is all that is known of its end
        assert not whole(body[:-4] + bytes(5000))


def test_the_end_is_not_found_in_the_data() -> None:
    """The pixels of one noisy GIF in six hold the two bytes of its end."""
    for side in range(40, 52):
        body = picture("gif", side)
        assert whole(body)
        assert not whole(body[:-1])
        for match in re.finditer(rb"\0;", body[:-2]):
            assert not whole(body[: match.end()])


MOST_PARTS = images._MOST_PARTS
EMPTY_PARTS: dict[str, tuple[bytes, bytes]] = {
    "gif: blocks of one byte": (b"GIF89a" + bytes(7) + b"!\xfe", b"\x01a"),
    "gif: extensions": (b"GIF89a" + bytes(7), b"!\xfe\0"),
    "gif: pictures": (b"GIF89a" + bytes(7), b"," + bytes(9) + b"\x02\0"),
    "jpg: markers": (b"\xff\xd8\xff", b"\xff\x01"),
    "jpg: segments": (b"\xff\xd8", b"\xff\xe0\0\x02"),
    "png: chunks": (picture("png")[:8], bytes(4) + b"teXt" + zlib.crc32(b"teXt").to_bytes(4, "big")),
}


@pytest.mark.parametrize("name", EMPTY_PARTS)
def test_a_file_of_empty_parts_is_not_read_for_long(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB of them would take the processor for half a minute. They are no image: nothing more is read."""
    monkeypatch.setattr(images, "_MOST_PARTS", 1000)
    start, part = EMPTY_PARTS[name]
    assert inspected(start + 3000 * part).problem == "is damaged: it has too many parts"
    assert "cut off" in str(inspected(start + 100 * part).problem)


@pytest.mark.parametrize("suffix", FORMATS)
def test_control_real_images_have_few_parts(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 64 MiB, the largest that is downloaded, may have one per 64 bytes."""
    body = picture(suffix, side=400)
    monkeypatch.setattr(images, "_MOST_PARTS", len(body) // 64)
    assert whole(body)
    assert MOST_PARTS == 64 * 2**20 // 64


def test_every_flipped_bit_of_a_png_is_detected() -> None:
    """In the picture, in a checksum, in the length or the type of a chunk, or in the signature."""
    body = picture("png", side=12)
    assert whole(body)
    for bit in range(len(body) * 8):
        flipped = bytearray(body)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not whole(bytes(flipped)), bit


def test_zeros_in_the_middle_of_a_png_are_detected() -> None:
    """A hole that some program filled with zeros, whose first and last bytes are as they were."""
    body = picture("png")
    for start in range(50, len(body) - 150, 97):
        seen = inspected(body[:start] + bytes(100) + body[start + 100 :])
        assert seen.problem in (
            "is damaged: it does not match its checksums",
            f"is cut off after {len(body)} bytes",
        )


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("step", [1, 2, 3, 7, 11, 12, 13, 64, 1000])
def test_the_size_of_the_pieces_does_not_matter(suffix: str, step: int) -> None:
    """A whole image is whole, and a damaged PNG is damaged, however its bytes arrive."""
    body = picture(suffix)
    assert whole(body, step)
    damaged = body[: len(body) // 2] + bytes(8) + body[len(body) // 2 + 8 :]
    assert whole(damaged, step) is (suffix != "png")
    assert not whole(body[:-13], step)


@pytest.mark.parametrize(
    "head",
    [b"", b"\x89PNG", b"<!DOCTYPE html>", b"<svg xmlns=", b"RIFF\0\0\0\0WAVE", b"GIF88a", b"%PDF-1.7", b"BM"],
)
def test_other_formats(head: bytes) -> None:
    """Pages, scripts, formats that Kie does not return and partial magic bytes are not images."""
    assert suffix_of(head) is None


@given(st.binary(max_size=200))
@example(b"RIFF\xff\xff\xff\xffWEBP")
def test_any_bytes_are_accepted(body: bytes) -> None:
    """No bytes raise an error."""
    assert whole(body) in (True, False)


def test_names_of_images() -> None:
    """The name is the task id and index, or the given name, with an index only for several images."""
    assert file_name(TASK, 0, "png") == f"{TASK}_0.png"
    assert file_name(TASK, 3, "webp", several=True) == f"{TASK}_3.webp"
    assert file_name(TASK, 0, "png", "cat") == "cat.png"
    assert file_name(TASK, 1, "jpg", "cat", several=True) == "cat_1.jpg"
    assert file_name(TASK, 0, "png", "Katze 7, süß 🐈") == "Katze 7, süß 🐈.png"


def test_a_suffix_is_not_doubled() -> None:
    """A suffix in the given name is replaced by the one of the format."""
    assert file_name(TASK, 0, "png", "cat.png") == "cat.png"
    assert file_name(TASK, 0, "webp", "cat.JPEG") == "cat.webp"
    assert file_name(TASK, 0, "png", "v1.2") == "v1.2.png"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../etc/passwd", "_.._etc_passwd.png"),
        ("..\\..\\x", "_.._x.png"),
        ("/etc/passwd", "_etc_passwd.png"),
        ("C:\\x", "C__x.png"),
        ("a\0b", "a_b.png"),
        ("a\r\nb", "a__b.png"),
        ("gnp.\u202etxt", "gnp._txt.png"),
        (".bashrc", "bashrc.png"),
        ("CON", "_CON.png"),
        ("nul.tar", "_nul.tar.png"),
        ("lpt1 .x", "_lpt1 .x.png"),
        ("COM¹", "_COM¹.png"),
        ("a. ", "a.png"),
        ("x" * 300, "x" * 120 + ".png"),
        ("%2e%2e%2f", "%2e%2e%2f.png"),
        ("a\ud800b", "a_b.png"),
        ("", f"{TASK}_0.png"),
        ("..", f"{TASK}_0.png"),
        (" . ", f"{TASK}_0.png"),
        (".png", f"{TASK}_0.png"),
    ],
)
def test_unsafe_names_are_changed(name: str, expected: str) -> None:
    """No name is refused, and none leads out of the directory."""
    assert file_name(TASK, 0, "png", name) == expected


@given(st.text(max_size=300), st.integers(0, 4), st.booleans(), st.none() | st.text(max_size=400))
def test_a_name_stays_in_its_directory(task_id: str, index: int, several: bool, name: str | None) -> None:
    """A name is one path component on any system, of at most 255 bytes, not hidden and without controls."""
    result = file_name(task_id, index, "png", name, several=several)
    assert result.endswith(".png")
    assert not result.startswith((".", " "))
    assert not {"/", "\\", ":"} & set(result)
    assert len(result.encode()) <= 255
    assert not [c for c in result if unicodedata.category(c) in ("Cc", "Cf", "Cs")]
    assert Path("folder", result).resolve().parent == Path("folder").resolve()
    assert PureWindowsPath(result).parts == (result,)
    assert not re.match(r"(con|prn|aux|nul|(com|lpt)\d) *(\.|$)", result, re.IGNORECASE | re.ASCII)


@given(st.integers(0, 9), st.integers(0, 9), st.text(max_size=300))
def test_images_of_a_task_do_not_collide(first: int, second: int, name: str) -> None:
    """Two images of one task never have the same file name, however long the given name is."""
    names = [file_name(TASK, index, "png", name, several=True) for index in (first, second)]
    assert (names[0] == names[1]) == (first == second)
