"""What a scene stands on, drawn from far to near."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image, ImageChops, ImageOps

from .scenes import Colour
from .sheet import Sheet, mix

_GREENS: tuple[Colour, ...] = ((92, 150, 70), (120, 158, 72), (78, 138, 84))
_AUTUMN: tuple[Colour, ...] = ((206, 104, 42), (224, 154, 52), (170, 70, 42))
_SUMMER: tuple[Colour, ...] = ((64, 120, 62), (92, 140, 66), (44, 96, 66))
_SANDS: tuple[Colour, ...] = ((226, 178, 112), (214, 150, 96), (232, 196, 140))
_WALLS: tuple[Colour, ...] = ((128, 108, 100), (104, 116, 134), (158, 138, 116), (92, 92, 108), (140, 92, 82))
_ROOMS: tuple[Colour, ...] = ((176, 190, 196), (206, 188, 166), (120, 142, 150), (196, 172, 176))
_TABLES: tuple[Colour, ...] = ((52, 96, 150), (134, 92, 62), (72, 118, 120))
_LAMP: Colour = (255, 214, 130)


def _hills(sheet: Sheet) -> None:
    rng, unit = sheet.rng, sheet.unit
    green = (226, 234, 242) if sheet.scene.weather == "snow" else rng.choice(_GREENS)
    for layer in range(5):
        level = sheet.horizon + sheet.height * (layer * 0.085 - 0.02)
        shade = mix(green, (26, 60, 48), layer * 0.13)
        line = sheet.ridge(level, unit * (5 - layer * 0.4), sheet.lit(shade, 0.85 - layer * 0.22))
        for _ in range(rng.randint(5, 12) if 0 < layer < 4 else 0):
            x, y = rng.choice(line)
            size, tree = unit * (0.6 + layer * 0.4), mix(shade, (20, 50, 40), 0.5)
            corners = (x - size, y - size * 1.6, x + size, y + size * 0.5)
            sheet.draw.ellipse(corners, fill=sheet.lit(tree, 0.8 - layer * 0.2))


def _mountains(sheet: Sheet) -> None:
    unit, height = sheet.unit, sheet.height
    for layer, (distance, rise) in enumerate(((0.85, 26), (0.6, 22), (0.35, 13))):
        level = sheet.horizon + height * (layer * 0.09 + 0.02)
        line = sheet.peaks(level, unit * rise, distance)
        if layer < 2:
            limit = level - unit * rise * 0.42
            lower = [(x, max(y, limit + sheet.rng.uniform(-1.4, 1.4) * unit)) for x, y in line if y < limit]
            upper = [(x, y) for x, y in line if y < limit]
            caps = sheet.lit((244, 248, 255), distance * 0.55)
            for number in range(len(upper) - 1):  # between two peaks there is none
                if upper[number + 1][0] - upper[number][0] < sheet.width / 100:
                    pair = slice(number, number + 2)
                    sheet.draw.polygon([*upper[pair], *reversed(lower[pair])], fill=caps)
    sheet.conifers(sheet.horizon + height * 0.24, 46, 5.0, 0.2)
    meadow = (230, 236, 244) if sheet.scene.weather == "snow" else (70, 98, 66)
    sheet.ridge(sheet.horizon + height * 0.26, unit, sheet.lit(meadow))
    sheet.conifers(sheet.horizon + height * 0.42, 20, 13.0, 0.0)


def _forest(sheet: Sheet) -> None:
    rng, unit = sheet.rng, sheet.unit
    autumn = sheet.scene.time == "sunset"
    leaves = _AUTUMN if autumn else _SUMMER
    sheet.ridge(sheet.horizon - unit * 6, unit * 3, sheet.lit(leaves[2], 0.8), rough=0.5)
    for layer in range(3):
        distance, size = 0.62 - layer * 0.3, unit * (10 + layer * 5)
        base = sheet.horizon + sheet.height * (0.02 + layer * 0.1)
        for _ in range(15 - layer * 4):
            x = rng.uniform(0, sheet.width)
            _leafy(sheet, x, base, size * rng.uniform(0.8, 1.2), rng.choice(leaves), distance)
        floor = mix(leaves[1], (50, 50, 30), 0.45 + layer * 0.1)
        sheet.ridge(base, unit, sheet.lit(floor, distance))
    fallen = [sheet.lit(leaf) for leaf in leaves]
    for _ in range(240 if autumn else 0):
        x, y = rng.uniform(0, sheet.width), rng.uniform(sheet.horizon + sheet.height * 0.24, sheet.height)
        r = unit * 0.5
        sheet.draw.ellipse((x - r, y - r * 0.5, x + r, y + r * 0.5), fill=rng.choice(fallen))


def _leafy(sheet: Sheet, x: float, base: float, size: float, leaf: Colour, distance: float) -> None:
    foot, crown = size * 0.05, size * 0.025
    trunk = [(x - foot, base), (x + foot, base), (x + crown, base - size), (x - crown, base - size)]
    sheet.draw.polygon(trunk, fill=sheet.lit((72, 52, 42), distance))
    for number in range(6):
        dx, dy = sheet.rng.gauss(0, 0.2) * size, sheet.rng.gauss(-1.05, 0.16) * size
        colour = sheet.lit(mix(leaf, (255, 240, 190), number * 0.035), distance)
        sheet.spot(x + dx, base + dy, size / sheet.unit * sheet.rng.uniform(0.2, 0.3), fill=colour)


def _desert(sheet: Sheet) -> None:
    rng, unit = sheet.rng, sheet.unit
    sand = rng.choice(_SANDS)
    sheet.peaks(sheet.horizon + unit * 2, unit * 7, 0.75)
    for layer in range(4):
        level = sheet.horizon + sheet.height * (0.03 + layer * 0.1)
        shade, distance = mix(sand, (150, 84, 52), layer * 0.14), 0.5 - layer * 0.16
        line = sheet.ridge(level, unit * (2.4 + layer), sheet.lit(shade, distance))
        crest = min(range(8, len(line) - 8), key=lambda number: line[number][1])
        lee = line[crest : crest + rng.randint(30, 60)]  # in the shadow behind the crest
        corners = [*lee, (lee[-1][0] - unit * 14, sheet.height), (lee[0][0] - unit * 10, sheet.height)]
        sheet.draw.polygon(corners, fill=sheet.lit(mix(shade, (110, 56, 44), 0.5), distance))


# -- water -------------------------------------------------------------------------------------------


def _sea(sheet: Sheet) -> None:
    if sheet.rng.random() < 0.6:
        sheet.ridge(sheet.horizon, sheet.unit * 2.4, sheet.lit((84, 104, 120), 0.8), rough=0.2)
    _water(sheet, (30, 92, 130))
    things = set(sheet.scene.things)
    if things & {"lighthouse", "house", "castle", "windmill"}:
        _rocks(sheet)
    elif things - {"boat", "whale", "birds", "balloon", "rocket", "train"}:
        shore = sheet.horizon + sheet.height * 0.24
        sheet.ridge(shore - sheet.unit, sheet.unit * 1.4, sheet.lit((240, 246, 246), 0.15))
        sheet.ridge(shore, sheet.unit * 1.4, sheet.lit(_SANDS[2]))


def _water(sheet: Sheet, deep: Colour) -> None:
    """Water from the horizon down, with the path of light below the sun."""
    rng, unit, line = sheet.rng, sheet.unit, int(sheet.horizon)
    depth = sheet.height - line
    far = mix(sheet.low, sheet.top, 0.4)
    column = Image.new("RGB", (1, 4))
    for y in range(4):
        column.putpixel((0, y), mix(far, sheet.lit(deep), (0.3, 0.62, 0.85, 1.0)[y]))
    tall = column.resize((1, depth), Image.Resampling.BICUBIC)
    sheet.image.paste(tall.resize((sheet.width, depth), Image.Resampling.NEAREST), (0, line))
    for _ in range(150):
        share, glitter = rng.random() ** 1.7, rng.random() < 0.55
        y = line + depth * share
        x = rng.gauss(sheet.sun[0], unit * (3 + share * 14)) if glitter else rng.uniform(0, sheet.width)
        wide = unit * (1.0 + share * 7) * rng.uniform(0.4, 1)
        colour = (*sheet.scene.light.sun, 150) if glitter else (*sheet.low, 60)
        thick = max(2, int(unit * (0.15 + share * 0.4)))
        sheet.glaze.line((x - wide, y, x + wide, y), fill=colour, width=thick)


def _rocks(sheet: Sheet) -> None:
    """A cliff on the right, for what needs a ground."""
    rng, unit = sheet.rng, sheet.unit
    left, top = sheet.width * 0.5, sheet.horizon + unit * 5
    right = sheet.width - left
    slope = [
        (left + right * step / 8, top + unit * 24 * (1 - step / 8) ** 2.2 + rng.uniform(-1.2, 1.2) * unit)
        for step in range(9)
    ]
    foot = [(sheet.width, sheet.height), (left - unit * 4, sheet.height)]
    sheet.draw.polygon([*slope, *foot], fill=sheet.lit((112, 102, 92)))
    shadow = [(x + unit * 3, y + unit * rng.uniform(8, 14)) for x, y in slope]
    sheet.draw.polygon([*shadow, *foot], fill=sheet.lit((86, 78, 74)))
    grass = [(x, y + unit * rng.uniform(1.4, 3.2)) for x, y in reversed(slope[3:])]
    sheet.draw.polygon([*slope[3:], *grass], fill=sheet.lit((112, 142, 74)))


def _lake(sheet: Sheet) -> None:
    unit = sheet.unit
    sheet.peaks(sheet.horizon + unit, unit * 17, 0.65)
    sheet.ridge(sheet.horizon - unit, unit * 3, sheet.lit((70, 104, 78), 0.4), rough=0.3)
    sheet.conifers(sheet.horizon + unit, 40, 4.0, 0.3)
    _mirror(sheet)
    sheet.conifers(sheet.height * 1.02, 9, 22.0, 0.0)


def _mirror(sheet: Sheet) -> None:
    """Water that reflects what is above the horizon, a little darker."""
    rng, line = sheet.rng, int(sheet.horizon + sheet.unit)
    depth = sheet.height - line
    above = ImageOps.flip(sheet.image.crop((0, line - depth, sheet.width, line)))
    darker = Image.new("RGB", above.size, (196, 208, 224))
    sheet.image.paste(ImageChops.multiply(above, darker), (0, line))
    for _ in range(60):
        x, y = rng.uniform(0, sheet.width), line + depth * rng.random() ** 1.6
        wide, thick = rng.uniform(2, 16) * sheet.unit, max(2, int(sheet.unit * 0.2))
        sheet.glaze.line((x, y, x + wide, y), fill=(*sheet.low, 90), width=thick)


# -- what people made --------------------------------------------------------------------------------


def _city(sheet: Sheet) -> None:
    rng, unit = sheet.rng, sheet.unit
    for layer in range(3):
        x, distance = -unit * rng.uniform(0, 8), 0.7 - layer * 0.33
        base = sheet.horizon + sheet.height * (0.12 + layer * 0.12)
        while x < sheet.width:
            wide = unit * rng.uniform(7, 13) * (0.7 + layer * 0.35)
            top = base - unit * rng.uniform(14, 44) * (1.15 - layer * 0.22)
            _building(sheet, x, top, wide * 0.96, distance)
            x += wide
    road, width = sheet.horizon + sheet.height * 0.34, sheet.width
    sheet.draw.rectangle((0, road, width, sheet.height), fill=sheet.lit((66, 68, 76)))
    sheet.draw.rectangle((0, road, width, road + unit), fill=sheet.lit((150, 148, 142)))
    for number in range(9):
        x, y = width * number / 8, road + unit * 6
        sheet.draw.rectangle((x, y, x + unit * 6, y + unit * 0.8), fill=sheet.lit((220, 214, 190)))


def _building(sheet: Sheet, x: float, top: float, wide: float, distance: float) -> None:
    rng, unit = sheet.rng, sheet.unit
    wall = rng.choice(_WALLS)
    sheet.draw.rectangle((x, top, x + wide, sheet.height), fill=sheet.lit(wall, distance))
    cornice = sheet.lit(mix(wall, (20, 20, 30), 0.4), distance)
    sheet.draw.rectangle((x, top, x + wide, top + unit * 0.7), fill=cornice)
    bright = {"night": 0.55, "sunset": 0.5, "dawn": 0.3}.get(sheet.scene.time, 0.1)
    if sheet.scene.weather == "rain":
        bright = max(bright, 0.45)
    lamp, glass = mix(_LAMP, sheet.low, distance * 0.5), sheet.lit((66, 84, 104), distance)
    columns, size = max(2, int(wide / (unit * 2.6))), unit * 0.85
    for column in range(columns):
        left, y = x + wide * (column + 0.5) / columns - size / 2, top + unit * 2
        while y < sheet.horizon + sheet.height * 0.3:
            colour = lamp if rng.random() < bright else glass
            sheet.draw.rectangle((left, y, left + size, y + size * 1.5), fill=colour)
            y += unit * 3


def _table(sheet: Sheet) -> None:
    """A wall, a table before it, and the light of a window."""
    rng, unit, width = sheet.rng, sheet.unit, sheet.width
    wall, table = rng.choice(_ROOMS), rng.choice(_TABLES)
    sheet.horizon = sheet.height * 0.6
    sheet.draw.rectangle((0, 0, width, sheet.height), fill=sheet.lit(wall))
    slant, pane = unit * 4, unit * 20
    for column in range(2):
        for row in range(2):
            x, y = width * 0.1 + column * pane * 1.08, unit * 8 + row * pane * 1.08
            light = [(x, y + slant), (x + pane, y), (x + pane, y + pane), (x, y + pane + slant)]
            sheet.glaze.polygon(light, fill=(*sheet.scene.light.sun, 70))
    sheet.draw.rectangle((0, sheet.horizon, width, sheet.height), fill=sheet.lit(table))
    edge = sheet.lit(mix(table, (255, 255, 255), 0.25))
    sheet.draw.rectangle((0, sheet.horizon, width, sheet.horizon + unit), fill=edge)
    grain = sheet.lit(mix(table, (0, 0, 0), 0.1))
    for _ in range(14):
        y = rng.uniform(sheet.horizon + unit * 2, sheet.height)
        sheet.draw.line((0, y, width, y + unit), fill=grain, width=int(unit * 0.4))


GROUNDS: dict[str, Callable[[Sheet], None]] = {
    "hills": _hills,
    "mountains": _mountains,
    "forest": _forest,
    "desert": _desert,
    "sea": _sea,
    "lake": _lake,
    "city": _city,
    "table": _table,
}
