"""What a thing is drawn with, in measures of its own: (0, 0) is its foot and 1.0 its height."""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import ImageDraw

from .scenes import Colour

Point = tuple[float, float]
LAMP: Colour = (255, 214, 130)


class Pen:
    """Draws a thing whose foot is at `x`, `y` of the picture and that is `size` high.

    Colours are in the light of the scene, but for lamps that are on.
    """

    def __init__(
        self,
        draw: ImageDraw.ImageDraw,
        glaze: ImageDraw.ImageDraw,
        x: float,
        y: float,
        size: float,
        *,
        lit: Callable[[Colour], Colour],
        lamps: bool,
        rng: random.Random,
    ) -> None:
        self.lamps = lamps
        self.rng = rng
        self.left: float = -1.0  # the edges of the picture
        self.right: float = 1.0
        self._draw, self._glaze, self._lit = draw, glaze, lit
        self._x, self._y, self._size = x, y, size

    def polygon(self, *points: Point, fill: Colour, lamp: bool = False) -> None:
        self._draw.polygon([self._at(*point) for point in points], fill=self._colour(fill, lamp))

    def box(
        self, left: float, bottom: float, right: float, top: float, *, fill: Colour, lamp: bool = False
    ) -> None:
        self.polygon((left, bottom), (right, bottom), (right, top), (left, top), fill=fill, lamp=lamp)

    def oval(self, x: float, y: float, wide: float, tall: float, *, fill: Colour, lamp: bool = False) -> None:
        """An ellipse around a point, by its half axes."""
        corners = (*self._at(x - wide, y + tall), *self._at(x + wide, y - tall))
        self._draw.ellipse(corners, fill=self._colour(fill, lamp))

    def line(self, *points: Point, width: float, fill: Colour) -> None:
        pixels = max(2, round(width * self._size))
        self._draw.line([self._at(*p) for p in points], fill=self._lit(fill), width=pixels, joint="curve")

    def glow(self, x: float, y: float, size: float) -> None:
        """The light around a lamp, if it is on."""
        for step in range(5 if self.lamps else 0):
            share = 1 - step / 5
            corners = (
                *self._at(x - size * share, y + size * share),
                *self._at(x + size * share, y - size * share),
            )
            self._glaze.ellipse(corners, fill=(*LAMP, 30))

    def beam(self, *points: Point) -> None:
        if self.lamps:
            self._glaze.polygon([self._at(*point) for point in points], fill=(*LAMP, 60))

    def _colour(self, fill: Colour, lamp: bool) -> Colour:
        return fill if lamp and self.lamps else self._lit(fill)

    def _at(self, x: float, y: float) -> Point:
        return self._x + x * self._size, self._y - y * self._size
