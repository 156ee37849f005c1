"""What a scene is drawn on: an image at twice the size, its measures, and its colours in the light."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import pairwise

from PIL import Image, ImageDraw

from .scenes import Colour, Scene

SMOOTH = 2  # shapes are drawn this many times larger
STEP = 8  # pixels between the points of a line of land


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """The colour between two; 0.0 is the first."""
    r, g, b = (round(a + (z - a) * share) for a, z in zip(first, second, strict=True))
    return r, g, b


class Sheet:
    """The image with all that is drawn so far. `unit` is a hundredth of the shorter side."""

    def __init__(self, scene: Scene, width: int, height: int) -> None:
        self.scene = scene
        self.rng: random.Random = scene.rng
        self.width: int = width * SMOOTH
        self.height: int = height * SMOOTH
        self.unit: float = min(self.width, self.height) / 100
        self.image: Image.Image = Image.new("RGB", (self.width, self.height), None)
        self.draw: ImageDraw.ImageDraw = ImageDraw.Draw(self.image)
        # For colours that let through what is below: a rectangle takes ten times as long with it.
        self.glaze: ImageDraw.ImageDraw = ImageDraw.Draw(self.image, "RGBA")
        grey = 0.0 if scene.time == "night" or scene.weather not in ("rain", "fog") else 0.55
        self.top: Colour = mix(scene.light.top, (120, 126, 138), grey)
        self.low: Colour = mix(scene.light.low, (196, 200, 206), grey)
        self.horizon: float = self.height * self.rng.uniform(0.54, 0.62)
        high = {"dawn": 0.46, "sunset": 0.5}.get(scene.time, 0.2) + self.rng.uniform(-0.05, 0.03)
        self.sun: tuple[float, float] = (self.width * self.rng.uniform(0.18, 0.82), self.height * high)

    def lit(self, colour: Colour, distance: float = 0.0, *, shade: float | None = None) -> Colour:
        """The colour in the light of the scene; what is far away (1.0) has the colour of the air."""
        light = self.scene.light
        shade = light.shade if shade is None else shade
        r, g, b = (round(part * shade) for part in mix(colour, light.sun, 0.08))
        near = mix((r, g, b), self.top, 0.04 if self.scene.time == "day" else 0.16)
        fog = 0.25 if self.scene.weather == "fog" else 0.0
        return mix(near, self.low, min(0.92, distance * 0.8 + fog))

    def lit_thing(self, colour: Colour) -> Colour:
        """The same for what the picture is about, which is not left in the dark."""
        return self.lit(colour, shade=max(0.62, self.scene.light.shade))

    def spot(self, x: float, y: float, size: float, *, fill: Colour | tuple[int, int, int, int]) -> None:
        """A circle around a point; its radius is in units."""
        r = size * self.unit
        (self.draw if len(fill) == 3 else self.glaze).ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def land(self, line: Sequence[tuple[float, float]], colour: Colour) -> None:
        """Land up to a line that goes from the left edge to the right one."""
        self.draw.polygon([(0, self.height), *line, (self.width, self.height)], fill=colour)

    def ridge(
        self, level: float, rise: float, colour: Colour, *, rough: float = 0.0
    ) -> list[tuple[float, float]]:
        """Land up to a wavy line around `level`, which is returned."""
        chance = self.rng.uniform
        waves = [(chance(0.6, 1.4) * n, chance(0, math.tau), rise / n**1.15) for n in (1, 2, 3, 5)]
        if rough:
            waves += [(chance(9, 40), chance(0, math.tau), rise * rough / 4) for _ in range(4)]
        turn = math.tau / self.width
        line = [
            (x, level - sum(size * math.sin(x * turn * speed + phase) for speed, phase, size in waves))
            for x in map(float, range(0, self.width + STEP, STEP))
        ]
        self.land(line, colour)
        return line

    def peaks(self, level: float, rise: float, distance: float) -> list[tuple[float, float]]:
        """Rock up to a jagged line: its midpoints are moved by less and less."""
        chance = self.rng.uniform
        heights = [chance(0, 0.4), chance(0.5, 1.0), chance(0.1, 0.6), chance(0.5, 0.95), chance(0, 0.4)]
        spread = 0.2
        while len(heights) < 129:
            finer = []
            for left, right in pairwise(heights):
                finer += [left, (left + right) / 2 + chance(-spread, spread)]
            heights, spread = [*finer, heights[-1]], spread * 0.52
        step = self.width / (len(heights) - 1)
        line = [(number * step, level - height * rise) for number, height in enumerate(heights)]
        self.land(line, self.lit((92, 98, 116), distance))
        return line

    def conifers(self, level: float, many: int, size: float, distance: float) -> None:
        snow = 0.45 if self.scene.weather == "snow" else 0.0
        for _ in range(many):
            x, tall = self.rng.uniform(0, self.width), self.unit * size * self.rng.uniform(0.7, 1.3)
            needles = mix((34, 66, 52), (214, 226, 236), snow)
            colour = self.lit(mix(needles, (12, 40, 36), self.rng.random() * 0.5), distance)
            for part in range(3):
                top, wide = level - tall * (1 - part * 0.24), tall * (0.13 + part * 0.06)
                foot = top + tall * 0.46
                self.draw.polygon([(x, top), (x - wide, foot), (x + wide, foot)], fill=colour)
