"""What a style does to a whole picture. Chance comes from the scene, so that a picture is the same again."""

from __future__ import annotations

import math
import random

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from .scenes import Colour

PAPER: Colour = (252, 249, 241)
_BICUBIC = Image.Resampling.BICUBIC


def styled(image: Image.Image, style: str, rng: random.Random) -> Image.Image:
    """The picture in this style; in one that is not known, as it is."""
    if style == "watercolour":
        return _watercolour(image, rng)
    if style == "oil":
        return _oil(image, rng)
    if style == "ink":
        return _ink(image)
    if style == "pixel":
        return _pixel(image)
    if style == "photograph":
        return _photograph(image)
    return image


def _noise(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Grey pixels by chance: `Image.effect_noise` takes a seed of its own."""
    return Image.frombytes("L", size, rng.randbytes(size[0] * size[1]))


def _watercolour(image: Image.Image, rng: random.Random) -> Image.Image:
    """Pale and blotched, with an uneven margin of paper."""
    width, height = image.size
    blotches = _noise((width // 40, height // 40), rng).resize(image.size, _BICUBIC)
    paint = blotches.point([255 - level // 6 for level in range(256)])
    mask = Image.new("L", (width // 4, height // 4))
    ImageDraw.Draw(mask).polygon(_torn(width // 4, height // 4, rng), fill=226)
    edge = mask.filter(ImageFilter.GaussianBlur(0.7)).resize(image.size, _BICUBIC)
    paper = Image.new("RGB", image.size, PAPER)
    return Image.composite(image, paper, ImageChops.multiply(edge, paint))


def _torn(width: int, height: int, rng: random.Random) -> list[tuple[float, float]]:
    """The corners of a rectangle with an uneven edge."""
    points = []
    for degree in range(0, 360, 3):
        x, y = math.cos(math.radians(degree)), math.sin(math.radians(degree))
        reach = (0.455 + rng.uniform(-0.008, 0.012)) / max(abs(x), abs(y))
        points.append((width * (0.5 + x * reach), height * (0.5 + y * reach)))
    return points


def _oil(image: Image.Image, rng: random.Random) -> Image.Image:
    """Strokes: the picture is moved a little along them, in flat colours, with their relief in the light."""
    width, height = image.size
    strokes = _noise((width // 26, height // 11), rng).resize(image.size, _BICUBIC)
    relief = ImageChops.offset(strokes, 0, 2)
    shine = ImageChops.subtract(strokes, relief, scale=3.6, offset=128)
    moved = image.copy()
    moved.paste(image, (5, 3))
    mixed = Image.composite(image, moved, strokes.point([255 if level > 128 else 0 for level in range(256)]))
    strong = ImageOps.posterize(mixed, 5)
    return ImageChops.overlay(strong, Image.merge("RGB", (shine, shine, shine)))


def _ink(image: Image.Image) -> Image.Image:
    """Four washes of grey with dark outlines on paper."""
    grey = ImageOps.autocontrast(image.convert("L"), cutoff=2)
    washes = grey.point([92 + 54 * min(3, level // 58) for level in range(256)])
    outlines = grey.filter(ImageFilter.FIND_EDGES).point([max(40, 255 - 5 * level) for level in range(256)])
    ImageDraw.Draw(outlines).rectangle((0, 0, image.width - 1, image.height - 1), outline=255, width=2)
    return ImageOps.colorize(ImageChops.multiply(washes, outlines), (26, 26, 36), PAPER)


def _pixel(image: Image.Image) -> Image.Image:
    """A picture of few colours with pixels eight times as large."""
    small = image.reduce(8).quantize(32, dither=Image.Dither.NONE).convert("RGB")
    return small.resize(image.size, Image.Resampling.NEAREST)


def _photograph(image: Image.Image) -> Image.Image:
    """Sharp in the middle and soft around it, with darker corners."""
    soft = image.reduce(4).filter(ImageFilter.GaussianBlur(2)).resize(image.size, _BICUBIC)
    focus = Image.radial_gradient("L").resize(image.size)  # black in the middle
    edges = focus.point([min(255, max(0, 3 * level - 260)) for level in range(256)])
    blurred = Image.composite(soft, image, edges)
    corners = focus.point([255 - max(0, level - 110) * 2 // 3 for level in range(256)])
    return ImageChops.multiply(blurred, Image.merge("RGB", (corners, corners, corners)))
