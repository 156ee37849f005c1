"""Pictures for the emulator: turns a prompt into a PNG.

Separate because only this module uses Pillow, which is optional and imported when the first picture is
drawn. The same prompt, size and index always give the same picture.
"""

from __future__ import annotations

import base64
import colorsys
import hashlib
import struct
import textwrap
import zlib
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import ImageDraw


Colour = tuple[int, int, int]

PIXELS = {"1:1": (768, 768), "3:2": (768, 512), "2:3": (512, 768)}
PLAIN_SCALE = 8  # 96 pixels instead of 768: without Pillow each is computed in Python
MAX_CHARACTERS = 400  # of a prompt
FONT_SIZES = (56, 44, 34, 26, 20)
INK, SHADOW = (255, 255, 255), (30, 30, 50)

# One transparent pixel: the 70 bytes of the recorded uploads.
BLANK = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@lru_cache(maxsize=64)
def draw(prompt: str, size: str, index: int) -> bytes:
    """A gradient with the prompt written on it; without Pillow, a smaller one without text."""
    width, height = PIXELS[size]
    corners = _corners(prompt, index)
    if find_spec("PIL") is None:
        return _draw_plain(width // PLAIN_SCALE, height // PLAIN_SCALE, corners)
    return _draw_with_pillow(width, height, corners, _shortened(prompt))


def _corners(prompt: str, index: int) -> list[Colour]:
    """Four neighbouring hues, which depend on the prompt and are shifted a little for each variant."""
    seed = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
    hue = seed[0] / 256 + index * 0.15
    tints = [
        colorsys.hsv_to_rgb((hue + shift) % 1.0, saturation, value)
        for shift, saturation, value in ((0, 0.5, 0.85), (0.1, 0.45, 0.8), (0.2, 0.55, 0.7), (0.3, 0.6, 0.55))
    ]
    return [(round(r * 255), round(g * 255), round(b * 255)) for r, g, b in tints]


def _shortened(prompt: str) -> str:
    text = " ".join(prompt.encode("utf-8", "replace").decode().split())
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "\u2026"


def _draw_plain(width: int, height: int, corners: list[Colour]) -> bytes:
    """A PNG made with the standard library: 8-bit RGB, no filter, one IDAT."""

    def between(first: Colour, second: Colour, share: float) -> Colour:
        r, g, b = (round(a + (z - a) * share) for a, z in zip(first, second, strict=True))
        return r, g, b

    rows = bytearray()
    for y in range(height):
        left = between(corners[0], corners[2], y / (height - 1))
        right = between(corners[1], corners[3], y / (height - 1))
        rows.append(0)
        for x in range(width):
            rows.extend(between(left, right, x / (width - 1)))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _draw_with_pillow(width: int, height: int, corners: list[Colour], text: str) -> bytes:
    from io import BytesIO

    from PIL import Image, ImageDraw

    # Four pixels, which Pillow stretches and blends.
    image = Image.new("RGB", (2, 2))
    for position, colour in zip(((0, 0), (1, 0), (0, 1), (1, 1)), corners, strict=True):
        image.putpixel(position, colour)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    _write(ImageDraw.Draw(image), width, height, text)
    file = BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _write(draw: ImageDraw.ImageDraw, width: int, height: int, text: str) -> None:
    """Write the text in the middle, in the largest size that fits, with a shadow that keeps it legible."""
    from PIL import ImageFont

    room = (width * 0.8, height * 0.8)

    def fits(lines: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> bool:
        left, top, right, bottom = draw.multiline_textbbox((0, 0), lines, font=font)
        return right - left <= room[0] and bottom - top <= room[1]

    fonts = [(points, ImageFont.load_default(size=points)) for points in FONT_SIZES]
    tries = [
        (points, font, "\n".join(textwrap.wrap(text, int(room[0] / font.getlength("n")))))
        for points, font in fonts
    ]
    points, font, lines = next((each for each in tries if fits(each[2], each[1])), tries[-1])
    for shift, colour in ((points // 16, SHADOW), (0, INK)):
        position = (width / 2 + shift, height / 2 + shift)
        draw.multiline_text(position, lines, colour, font=font, anchor="mm", align="center")
