"""What bytes say about an image, and what its file is called."""

import io
import random
import re
import unicodedata
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from kie4o.files.images import HEAD, TAIL, ending_of, file_name, is_whole

FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF"}
TASK = "3f1c0d2e4b5a69788796a5b4c3d2e1f0"


def picture(ending: str, side: int = 40) -> bytes:
    """An image of noise, which does not compress.

    The noise is always the same: in one of six noisy GIFs the pixel data contains the two bytes of
    the end, and an image that is cut off there cannot be told from a complete one.
    """
    buffer = io.BytesIO()
    noise = Image.frombytes("L", (side, side), random.Random(side).randbytes(side * side))
    noise.convert("P" if ending == "gif" else "RGB").save(buffer, FORMATS[ending])
    return buffer.getvalue()


def whole(body: bytes) -> bool:
    ending = ending_of(body[:HEAD])
    return ending is not None and is_whole(ending, head=body[:HEAD], tail=body[-TAIL:], size=len(body))


@pytest.mark.parametrize("ending", FORMATS)
def test_kind_and_end_of_real_images(ending: str) -> None:
    """What Pillow writes is recognised by its first bytes and whole by its last."""
    body = picture(ending)
    assert ending_of(body[:HEAD]) == ending
    assert whole(body)


@pytest.mark.parametrize("ending", FORMATS)
def test_every_cut_is_seen(ending: str) -> None:
    """No proper beginning of an image is taken for the whole, wherever it ends."""
    body = picture(ending)
    assert not [at for at in range(len(body)) if whole(body[:at])]


@pytest.mark.parametrize("ending", ["png", "jpg", "gif"])
def test_padding_is_no_fault(ending: str) -> None:
    """Zeros after the end, as some writers leave them, do not make an image broken."""
    assert whole(picture(ending) + bytes(20))


@pytest.mark.parametrize(
    "head",
    [b"", b"\x89PNG", b"<!DOCTYPE html>", b"<svg xmlns=", b"RIFF\0\0\0\0WAVE", b"GIF88a", b"%PDF-1.7", b"BM"],
)
def test_what_is_no_image(head: bytes) -> None:
    """Pages, scripts and formats that Kie does not make are not images, nor are half a magic's bytes."""
    assert ending_of(head) is None


@given(st.binary(max_size=200))
@example(b"RIFF\xff\xff\xff\xffWEBP")
def test_any_bytes_are_judged(body: bytes) -> None:
    """No bytes raise."""
    assert whole(body) in (True, False)


def test_names_of_images() -> None:
    """From task id and index, or the caller's stem, with an index only where there are several."""
    assert file_name(TASK, 0, "png") == f"{TASK}_0.png"
    assert file_name(TASK, 3, "webp", several=True) == f"{TASK}_3.webp"
    assert file_name(TASK, 0, "png", "cat") == "cat.png"
    assert file_name(TASK, 1, "jpg", "cat", several=True) == "cat_1.jpg"
    assert file_name(TASK, 0, "png", "Katze 7, süß 🐈") == "Katze 7, süß 🐈.png"


def test_an_ending_is_not_doubled() -> None:
    """`cat.png` is a common way to say cat; what the bytes are decides the ending."""
    assert file_name(TASK, 0, "png", "cat.png") == "cat.png"
    assert file_name(TASK, 0, "webp", "cat.JPEG") == "cat.webp"
    assert file_name(TASK, 0, "png", "v1.2") == "v1.2.png"


@pytest.mark.parametrize(
    ("name", "made"),
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
def test_odd_names_are_made_harmless(name: str, made: str) -> None:
    """A name is never refused and never leaves the folder."""
    assert file_name(TASK, 0, "png", name) == made


@given(st.text(max_size=300), st.integers(0, 4), st.booleans(), st.none() | st.text(max_size=400))
def test_a_name_stays_in_its_folder(task_id: str, index: int, several: bool, name: str | None) -> None:
    """One component on any system, at most 255 bytes, nothing hidden, nothing that controls."""
    made = file_name(task_id, index, "png", name, several=several)
    assert made.endswith(".png")
    assert not made.startswith((".", " "))
    assert not {"/", "\\", ":"} & set(made)
    assert len(made.encode()) <= 255
    assert not [c for c in made if unicodedata.category(c) in ("Cc", "Cf", "Cs")]
    assert Path("folder", made).resolve().parent == Path("folder").resolve()
    assert PureWindowsPath(made).parts == (made,)
    assert not re.match(r"(con|prn|aux|nul|(com|lpt)\d) *(\.|$)", made, re.IGNORECASE | re.ASCII)


@given(st.integers(0, 9), st.integers(0, 9), st.text(max_size=300))
def test_images_of_a_task_do_not_collide(first: int, second: int, name: str) -> None:
    """Two images of one task never share a file, however long the name."""
    names = [file_name(TASK, index, "png", name, several=True) for index in (first, second)]
    assert (names[0] == names[1]) == (first == second)
