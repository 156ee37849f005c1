"""What stands, swims or flies in a scene, each drawn with a few shapes.

In the measures of its `Pen`, (0, 0) is the foot of a thing and 1.0 its height, x to the right and y up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .pen import LAMP, Pen
from .scenes import Colour


@dataclass(frozen=True, slots=True)
class Thing:
    draw: Callable[[Pen], None]
    size: float  # per cent of the shorter side of the picture
    flies: bool = False
    floats: bool = False


# -- buildings ---------------------------------------------------------------------------------------


def _lighthouse(pen: Pen) -> None:
    white, red = (244, 242, 236), (190, 58, 50)
    pen.beam((0, 0.91), (-2.6, 1.2), (-2.6, 0.76))
    pen.polygon((-0.13, 0), (0.13, 0), (0.085, 0.8), (-0.085, 0.8), fill=white)
    for low in (0.12, 0.44):
        wide, narrow = 0.13 - low * 0.056, 0.13 - (low + 0.16) * 0.056
        pen.polygon((-wide, low), (wide, low), (narrow, low + 0.16), (-narrow, low + 0.16), fill=red)
    pen.box(-0.12, 0.79, 0.12, 0.82, fill=(60, 62, 70))
    pen.box(-0.06, 0.82, 0.06, 0.93, fill=LAMP, lamp=True)
    pen.polygon((-0.09, 0.93), (0.09, 0.93), (0, 1.02), fill=red)
    pen.glow(0, 0.88, 0.24)
    pen.box(0.16, 0, 0.44, 0.15, fill=(232, 226, 214))
    pen.polygon((0.12, 0.15), (0.48, 0.15), (0.3, 0.27), fill=(150, 70, 56))


def _house(pen: Pen) -> None:
    wall = pen.rng.choice(((206, 188, 160), (188, 120, 96), (222, 214, 200), (126, 150, 158)))
    pen.box(-0.62, 0, 0.62, 0.55, fill=wall)
    pen.box(0.28, 0.6, 0.42, 1.05, fill=(120, 84, 74))
    pen.polygon((-0.74, 0.53), (0.74, 0.53), (0.46, 0.95), (-0.46, 0.95), fill=(112, 62, 54))
    pen.box(-0.12, 0, 0.12, 0.36, fill=(88, 62, 52))
    for x in (-0.42, 0.42):
        pen.box(x - 0.15, 0.16, x + 0.15, 0.42, fill=(240, 236, 226))
        pen.box(x - 0.12, 0.19, x + 0.12, 0.39, fill=LAMP if pen.lamps else (92, 116, 136), lamp=True)
        pen.box(x - 0.01, 0.19, x + 0.01, 0.39, fill=(240, 236, 226))
        pen.glow(x, 0.29, 0.3)


def _greenhouse(pen: Pen) -> None:
    for number in range(9):
        x = -0.75 + number * 0.185
        pen.oval(x, 0.2, 0.13, pen.rng.uniform(0.2, 0.38), fill=(58, 128 + pen.rng.randint(-20, 30), 70))
    frame = (240, 246, 246)
    pen.glow(0, 0.4, 0.8)
    for number in range(8):
        x = -0.84 + number * 0.24
        pen.line((x, 0), (x, 0.6), (x * 0.5, 0.98), width=0.018, fill=frame)
    for y, wide in ((0.0, 0.84), (0.3, 0.84), (0.6, 0.84), (0.79, 0.63), (0.98, 0.42)):
        pen.line((-wide, y), (wide, y), width=0.02, fill=frame)


def _castle(pen: Pen) -> None:
    stone, dark = (150, 146, 150), (74, 70, 82)
    pen.box(-0.6, 0, 0.6, 0.42, fill=stone)
    for x, top in ((-0.6, 0.72), (0.6, 0.72), (-0.22, 0.92), (0.26, 0.8)):
        pen.box(x - 0.13, 0, x + 0.13, top, fill=(166, 160, 162))
        pen.polygon((x - 0.17, top), (x + 0.17, top), (x, top + 0.3), fill=(124, 62, 66))
        pen.box(x - 0.025, top - 0.2, x + 0.025, top - 0.1, fill=LAMP if pen.lamps else dark, lamp=True)
    for number in range(8):
        pen.box(-0.5 + number * 0.13, 0.42, -0.43 + number * 0.13, 0.47, fill=stone)
    pen.box(-0.1, 0, 0.1, 0.18, fill=dark)
    pen.oval(0, 0.18, 0.1, 0.1, fill=dark)


def _windmill(pen: Pen) -> None:
    pen.polygon((-0.2, 0), (0.2, 0), (0.12, 0.66), (-0.12, 0.66), fill=(216, 204, 186))
    pen.polygon((-0.15, 0.66), (0.15, 0.66), (0, 0.82), fill=(116, 70, 56))
    pen.box(-0.05, 0, 0.05, 0.16, fill=(92, 66, 54))
    for x, y in ((0.42, 0.2), (-0.2, 0.42), (-0.42, -0.2), (0.2, -0.42)):
        tip, side = (x, 0.68 + y), (x * 0.96 - y * 0.24, 0.68 + y * 0.96 + x * 0.24)
        pen.polygon((0, 0.68), tip, side, fill=(246, 240, 228))
        pen.line((0, 0.68), tip, width=0.022, fill=(82, 62, 52))


def _train(pen: Pen) -> None:
    """A viaduct from edge to edge with a train on it."""
    stone, dark = (142, 128, 118), (104, 94, 92)
    pen.box(pen.left, 0.78, pen.right, 0.94, fill=stone)
    x = pen.left
    while x < pen.right:
        pen.box(x, -1.6, x + 0.16, 0.8, fill=stone)
        pen.box(x + 0.12, -1.6, x + 0.16, 0.8, fill=dark)
        for side in (0.16, 0.9):  # the shoulders of an arch
            inner = x + (0.42 if side == 0.16 else 0.64)
            pen.polygon((x + side, 0.8), (inner, 0.8), (x + side, 0.45), fill=stone)
        x += 0.9
    for number in range(4):
        left = -1.35 + number * 0.72
        pen.box(left, 0.97, left + 0.68, 1.3, fill=(150, 46, 48) if number < 3 else (42, 50, 62))
        pen.box(left, 1.26, left + 0.68, 1.32, fill=(60, 54, 58))
        for window in range(5 if number < 3 else 1):
            at = left + 0.07 + window * 0.12
            pen.box(at, 1.1, at + 0.08, 1.22, fill=LAMP if pen.lamps else (186, 208, 220), lamp=True)
    pen.oval(1.52, 1.1, 0.05, 0.05, fill=LAMP, lamp=True)
    pen.beam((1.5, 1.12), (pen.right, 1.3), (pen.right, 0.9))


def _rocket(pen: Pen) -> None:
    pen.polygon((-0.1, 0.2), (0.1, 0.2), (0, -0.28), fill=LAMP, lamp=True)
    pen.glow(0, 0.05, 0.3)
    for side in (-1, 1):
        pen.polygon((side * 0.12, 0.2), (side * 0.3, 0.1), (side * 0.12, 0.46), fill=(188, 62, 54))
    pen.oval(0, 0.56, 0.16, 0.42, fill=(238, 238, 242))
    pen.oval(0, 0.66, 0.07, 0.07, fill=(76, 132, 168))


# -- on the water and in the air ---------------------------------------------------------------------


def _boat(pen: Pen) -> None:
    sail = pen.rng.choice(((250, 246, 236), (232, 120, 84), (246, 220, 150)))
    pen.polygon((-0.46, 0.17), (0.5, 0.17), (0.34, 0), (-0.34, 0), fill=(122, 66, 50))
    pen.box(-0.46, 0.15, 0.49, 0.19, fill=(240, 236, 228))
    pen.line((0, 0.17), (0, 1), width=0.022, fill=(82, 60, 50))
    pen.polygon((0.03, 0.97), (0.03, 0.24), (0.44, 0.24), fill=sail)
    pen.polygon((-0.03, 0.88), (-0.03, 0.24), (-0.34, 0.24), fill=_darker(sail))


def _darker(colour: Colour) -> Colour:
    """A darker tone of a colour."""
    r, g, b = (part * 5 // 6 for part in colour)
    return r, g, b


def _balloon(pen: Pen) -> None:
    for x, y, size in ((0.0, 0.0, 1.0), (-1.0, 0.42, 0.55), (0.9, 0.6, 0.42)):
        first, second = pen.rng.choice(_STRIPES)
        for number in range(4):  # the gores, from the outside in
            wide = 0.4 * (1, 0.74, 0.44, 0.14)[number] * size
            pen.oval(x, y + 0.62 * size, wide, 0.42 * size, fill=first if number % 2 == 0 else second)
        pen.polygon(
            (x - 0.29 * size, y + 0.33 * size),
            (x + 0.29 * size, y + 0.33 * size),
            (x + 0.08 * size, y + 0.12 * size),
            (x - 0.08 * size, y + 0.12 * size),
            fill=_darker(first),
        )
        for side in (-0.07, 0.07):
            pen.line(
                (x + side * size, y + 0.13 * size), (x + side * 0.8 * size, y), width=0.012, fill=(70, 56, 48)
            )
        pen.box(x - 0.065 * size, y - 0.1 * size, x + 0.065 * size, y + 0.01 * size, fill=(120, 82, 52))


_STRIPES: tuple[tuple[Colour, Colour], ...] = (
    ((204, 62, 56), (246, 220, 160)),
    ((46, 110, 160), (244, 238, 226)),
    ((232, 150, 52), (252, 226, 130)),
    ((108, 80, 150), (238, 176, 190)),
)


def _birds(pen: Pen) -> None:
    for _ in range(9):
        x, y = pen.rng.uniform(-3, 3), pen.rng.uniform(0, 2.4)
        size, lift = pen.rng.uniform(0.22, 0.5), pen.rng.uniform(0.2, 0.5)
        ink = (44, 46, 58)
        for side in (-1, 1):
            pen.line(
                (x, y),
                (x + side * size * 0.5, y + size * lift),
                (x + side * size, y + size * lift * 0.7),
                width=0.06,
                fill=ink,
            )


def _whale(pen: Pen) -> None:
    body = (58, 82, 108)
    turns = [math.pi * step / 24 for step in range(25)]
    pen.polygon(*((0.9 * math.cos(turn), 0.52 * math.sin(turn)) for turn in turns), fill=body)
    for x, y in ((-0.1, -0.05), (0.24, -0.12), (0.0, -0.19)):
        pen.line((x - 0.9, y), (x + 0.8, y), width=0.03, fill=(190, 216, 230))
    pen.polygon((0.7, 0.2), (1.16, 0.5), (1.08, 0.72), fill=body)
    pen.polygon((1.08, 0.72), (0.82, 0.78), (1.1, 0.5), fill=body)
    pen.polygon((1.08, 0.72), (1.36, 0.7), (1.1, 0.5), fill=body)
    pen.oval(-0.56, 0.16, 0.04, 0.04, fill=(240, 244, 248))
    for x in (-0.34, -0.26, -0.18):
        pen.line((-0.26, 0.52), (x * 1.6 + 0.16, 0.95), width=0.035, fill=(226, 240, 248))


# -- plants and fruit --------------------------------------------------------------------------------


def _tree(pen: Pen) -> None:
    pen.polygon((-0.06, 0), (0.07, 0), (0.03, 0.6), (-0.03, 0.6), fill=(84, 60, 46))
    base = pen.rng.choice(((74, 130, 66), (216, 132, 52), (236, 170, 186)))
    for number in range(16):
        x, y, r = pen.rng.gauss(0, 0.19), pen.rng.gauss(0.7, 0.12), pen.rng.uniform(0.09, 0.17)
        lift = number * 2
        pen.oval(x, y, r, r, fill=(base[0] + lift // 2, base[1] + lift // 2, base[2] + lift // 3))


def _flowers(pen: Pen) -> None:
    colours = ((226, 72, 78), (246, 196, 72), (236, 130, 170), (150, 110, 200), (250, 246, 240))
    for _ in range(46):
        x, y = pen.rng.uniform(pen.left, pen.right), pen.rng.uniform(-1.9, 0.0)
        size = 0.2 - y * 0.16
        pen.line((x, y), (x, y + size * 1.6), width=0.03, fill=(62, 116, 58))
        colour = pen.rng.choice(colours)
        for dx, dy in ((-0.32, 0), (0.32, 0), (0, 0.32), (0, -0.32)):
            pen.oval(x + dx * size, y + size * 1.7 + dy * size, size * 0.3, size * 0.3, fill=colour)
        pen.oval(x, y + size * 1.7, size * 0.2, size * 0.2, fill=(250, 214, 90))


def _lemons(pen: Pen) -> None:
    pen.oval(0.06, 0.02, 1.0, 0.1, fill=(30, 34, 44))
    fruits = ((-0.5, 0.72), (0.5, 0.72), (-0.16, 0.78), (0.2, 0.76), (-0.3, 0.98), (0.32, 0.96), (0.02, 1.1))
    for x, y in fruits:
        pen.oval(x, y, 0.29, 0.22, fill=(238, 198, 52))
        pen.oval(x + 0.27, y + 0.02, 0.06, 0.06, fill=(226, 184, 44))
        pen.oval(x - 0.07, y + 0.07, 0.14, 0.08, fill=(252, 226, 112))
    pen.polygon((0.1, 1.28), (0.46, 1.5), (0.34, 1.22), fill=(74, 132, 64))
    for number in range(18):  # the bowl, row by row
        y = 0.72 - number * 0.038
        wide = 0.95 * (1 - (number / 18) ** 2.2 * 0.66)
        tone = 236 - number * 5
        pen.box(-wide, y - 0.042, wide, y, fill=(tone, tone, tone + 6))
    pen.box(-0.36, 0.0, 0.36, 0.06, fill=(150, 152, 162))
    pen.box(-0.9, 0.58, 0.9, 0.61, fill=(70, 110, 168))
    pen.oval(-1.35, 0.14, 0.29, 0.2, fill=(240, 200, 54))
    pen.oval(-1.42, 0.21, 0.13, 0.07, fill=(252, 228, 116))


# -- animals -----------------------------------------------------------------------------------------


def _sitting(
    coat: Colour, belly: Colour, *, ears: str = "pointed", tail: float = 0.5, snout: float = 0.0
) -> Callable[[Pen], None]:
    """An animal that sits and looks at you."""

    def draw(pen: Pen) -> None:
        dark = (44, 38, 40)
        pen.oval(0.02, 0.0, 0.44, 0.06, fill=(52, 60, 48))
        if tail:
            pen.line((0.2, 0.08), (0.42, 0.1), (0.5, 0.3), (0.42, 0.3 + tail * 0.4), width=0.1, fill=coat)
            pen.oval(0.42, 0.32 + tail * 0.4, 0.07, 0.1, fill=belly)
        pen.oval(0, 0.24, 0.27, 0.28, fill=coat)
        pen.oval(0, 0.4, 0.19, 0.26, fill=coat)
        pen.oval(0, 0.34, 0.11, 0.22, fill=belly)
        for side in (-1, 1):
            pen.oval(side * 0.13, 0.05, 0.1, 0.06, fill=belly if ears == "pointed" else coat)
            _ear(pen, side, coat, ears)
        pen.oval(0, 0.72, 0.22, 0.19, fill=coat)
        pen.oval(0, 0.65, 0.12 + snout, 0.09 + snout, fill=belly)
        for side in (-1, 1):
            pen.oval(side * 0.09, 0.75, 0.028, 0.036, fill=dark)
            pen.oval(side * 0.082, 0.762, 0.01, 0.01, fill=(250, 250, 250))
        pen.oval(0, 0.68, 0.032, 0.024, fill=dark)

    return draw


def _ear(pen: Pen, side: int, coat: Colour, kind: str) -> None:
    if kind == "pointed":
        pen.polygon((side * 0.04, 0.84), (side * 0.21, 0.76), (side * 0.18, 1.0), fill=coat)
        pen.polygon((side * 0.09, 0.85), (side * 0.18, 0.81), (side * 0.165, 0.94), fill=(226, 168, 160))
    elif kind == "long":
        pen.oval(side * 0.1, 1.02, 0.055, 0.22, fill=coat)
        pen.oval(side * 0.1, 1.0, 0.028, 0.16, fill=(230, 176, 172))
    elif kind == "round":
        pen.oval(side * 0.17, 0.87, 0.08, 0.08, fill=coat)
    else:  # hanging
        pen.oval(side * 0.22, 0.7, 0.07, 0.15, fill=_darker(coat))


def _sheep(pen: Pen) -> None:
    for x, y, size in ((0.0, 0.0, 1.0), (-1.5, 0.3, 0.7), (1.4, 0.45, 0.6)):
        for leg in (-0.3, -0.12, 0.2, 0.34):
            pen.box(x + leg * size, y, x + (leg + 0.07) * size, y + 0.4 * size, fill=(60, 54, 56))
        for dx, dy in ((-0.34, 0.5), (-0.14, 0.62), (0.1, 0.62), (0.3, 0.5), (-0.1, 0.42), (0.14, 0.42)):
            pen.oval(x + dx * size, y + dy * size, 0.22 * size, 0.2 * size, fill=(242, 238, 228))
        pen.oval(x + 0.56 * size, y + 0.6 * size, 0.13 * size, 0.17 * size, fill=(66, 58, 60))
        pen.oval(x + 0.46 * size, y + 0.72 * size, 0.1 * size, 0.07 * size, fill=(242, 238, 228))


def _camel(pen: Pen) -> None:
    coat = (166, 116, 70)
    for leg in (-0.38, -0.26, 0.22, 0.34):
        pen.polygon((leg, 0), (leg + 0.05, 0), (leg + 0.1, 0.55), (leg - 0.03, 0.55), fill=_darker(coat))
    pen.oval(0, 0.6, 0.46, 0.17, fill=coat)
    pen.oval(-0.16, 0.78, 0.15, 0.16, fill=coat)
    pen.oval(0.16, 0.78, 0.15, 0.16, fill=coat)
    pen.line((0.38, 0.6), (0.56, 0.62), (0.64, 0.92), width=0.12, fill=coat)
    pen.oval(0.72, 0.95, 0.14, 0.08, fill=coat)
    pen.polygon((0.6, 1.0), (0.66, 1.0), (0.61, 1.1), fill=coat)
    pen.line((-0.45, 0.62), (-0.56, 0.36), width=0.03, fill=coat)
    pen.box(-0.05, 0.62, 0.07, 0.82, fill=(176, 52, 50))


def _kingfisher(pen: Pen) -> None:
    """A bird on a reed, close up."""
    for x in (-0.75, -0.5, 0.42, 0.8):
        lean = pen.rng.uniform(-0.2, 0.2)
        pen.line((x, -1.4), (x + lean, pen.rng.uniform(0.7, 1.3)), width=0.035, fill=(104, 130, 62))
    pen.line((-0.06, -1.4), (0.1, 0.1), (0.3, 1.3), width=0.05, fill=(124, 142, 70))
    pen.oval(0.34, 1.32, 0.06, 0.2, fill=(112, 72, 44))
    pen.polygon((-0.02, 0.22), (0.12, 0.1), (0.42, -0.22), (0.3, -0.26), fill=(24, 88, 140))
    pen.oval(0.0, 0.36, 0.22, 0.3, fill=(232, 128, 50))
    pen.polygon((0.0, 0.64), (0.24, 0.52), (0.26, 0.12), (0.04, 0.2), fill=(28, 122, 176))
    pen.oval(-0.06, 0.68, 0.2, 0.18, fill=(30, 132, 186))
    pen.polygon((-0.22, 0.72), (-0.22, 0.62), (-0.62, 0.66), fill=(40, 40, 48))
    pen.oval(-0.1, 0.6, 0.1, 0.06, fill=(250, 246, 240))
    pen.oval(-0.12, 0.71, 0.035, 0.035, fill=(20, 20, 26))
    pen.oval(-0.13, 0.72, 0.011, 0.011, fill=(255, 255, 255))


THINGS: dict[str, Thing] = {
    "lighthouse": Thing(_lighthouse, 40),
    "boat": Thing(_boat, 24, floats=True),
    "balloon": Thing(_balloon, 30, flies=True),
    "train": Thing(_train, 20),
    "house": Thing(_house, 20),
    "greenhouse": Thing(_greenhouse, 26),
    "castle": Thing(_castle, 30),
    "windmill": Thing(_windmill, 32),
    "birds": Thing(_birds, 9, flies=True),
    "kingfisher": Thing(_kingfisher, 44),
    "cat": Thing(_sitting((92, 84, 88), (216, 208, 204)), 32),
    "fox": Thing(_sitting((212, 106, 44), (246, 236, 222), tail=0.75), 32),
    "dog": Thing(_sitting((172, 128, 84), (236, 218, 192), ears="hanging", snout=0.02), 34),
    "rabbit": Thing(_sitting((186, 172, 158), (244, 238, 230), ears="long", tail=0.0), 28),
    "bear": Thing(_sitting((112, 78, 56), (178, 140, 104), ears="round", tail=0.0, snout=0.01), 38),
    "sheep": Thing(_sheep, 17),
    "camel": Thing(_camel, 27),
    "whale": Thing(_whale, 17, floats=True),
    "tree": Thing(_tree, 40),
    "flowers": Thing(_flowers, 12),
    "lemons": Thing(_lemons, 32),
    "rocket": Thing(_rocket, 40, flies=True),
}
