"""Pictures for the emulator: turns a prompt into a PNG.

Pillow is optional and imported when the first picture is drawn. The same prompt, size and index always give
the same picture.
"""

from __future__ import annotations

import base64
import colorsys
import hashlib
import struct
import zlib
from functools import lru_cache
from importlib.util import find_spec

from .art.scenes import Colour, scene_of

PIXELS = {"1:1": (768, 768), "3:2": (768, 512), "2:3": (512, 768)}
PLAIN_SCALE = 8  # 96 pixels instead of 768: without Pillow each is computed in Python

# One transparent pixel: the 70 bytes of the recorded uploads.
BLANK = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@lru_cache(maxsize=64)
def draw(prompt: str, size: str, index: int) -> bytes:
    """A scene of what the prompt names; without Pillow, a small gradient."""
    width, height = PIXELS[size]
    if find_spec("PIL") is None:
        return _draw_plain(width // PLAIN_SCALE, height // PLAIN_SCALE, _corners(prompt, index))
    from .art.painting import paint

    return paint(scene_of(prompt, index), width, height)


def _corners(prompt: str, index: int) -> list[Colour]:
    """Four neighbouring hues, which depend on the prompt and are shifted a little for each variant."""
    seed = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
    hue = seed[0] / 256 + index * 0.15
    tints = [
        colorsys.hsv_to_rgb((hue + shift) % 1.0, saturation, value)
        for shift, saturation, value in ((0, 0.5, 0.85), (0.1, 0.45, 0.8), (0.2, 0.55, 0.7), (0.3, 0.6, 0.55))
    ]
    return [(round(r * 255), round(g * 255), round(b * 255)) for r, g, b in tints]


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
