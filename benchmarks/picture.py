"""The figures as an SVG, written without a library: three columns of bars and a scatter plot.

All colours are readable on white and on black, and there is no background, so one picture fits light and
dark pages.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from . import imports
from .clients import CLIENTS
from .report import Results, pacing_of

# Their points would nearly coincide with that of 50 tasks.
_NEARLY_THE_SAME = re.compile(r"learned, after (0|20|200|50 with exact times)$")

INK, PALE, OURS = "#6e7781", "#8c959f", "#2f81f7"
FONT = "-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
WIDTH, LABEL, COLUMN, FIGURE, LINE = 880, 150, 240, 48, 22  # FIGURE: room for the number behind a bar
POINTS = 320  # height of the scatter plot
LETTER = 6.2  # mean width of a character in the names of points

Column = tuple[str, str, dict[str, float]]  # title, number format, figures by client


def _text(
    x: float, y: float, words: str, *, size: int = 12, anchor: str = "start", ours: bool = False
) -> str:
    colour, weight = (OURS, ' font-weight="600"') if ours else (INK, "")
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}"{weight}>'
        f"{escape(words)}</text>"
    )


def bars(names: Sequence[str], columns: Sequence[Column], top: float) -> Iterator[str]:
    """One row per client, one column per kind of figure."""
    for number, name in enumerate(names):
        yield _text(
            LABEL - 8, top + 42 + number * LINE, CLIENTS[name].label, anchor="end", ours=name == "kie4o"
        )
    for at, (title, form, figures) in enumerate(columns):
        left = LABEL + at * COLUMN
        longest = max(figures.values(), default=1.0)
        yield _text(left, top + 14, title, size=13)
        for number, name in enumerate(names):
            if name not in figures:
                continue
            y, ours = top + 30 + number * LINE, name == "kie4o"
            width = max(1.0, (COLUMN - FIGURE - 12) * figures[name] / longest)
            yield (
                f'<rect x="{left}" y="{y:.1f}" width="{width:.1f}" height="15" rx="2" '
                f'fill="{OURS if ours else PALE}"/>'
            )
            yield _text(left + width + 6, y + 12, f"{figures[name]:{form}}", ours=ours)


def points(
    title: str, policies: dict[str, dict[str, float]], left: float, top: float, width: float
) -> Iterator[str]:
    """Looks to the right, lateness upwards, both by factors of ten."""
    yield _text(left, top + 14, title, size=13)
    x0, y0, x1, y1 = left + 50, top + POINTS - 40, left + width - 20, top + 34
    shown = {
        name: each
        for name, each in policies.items()
        if each["looks"] > 0 and each["lateness"] > 0 and not _NEARLY_THE_SAME.search(name)
    }
    across = _scale([each["looks"] for each in shown.values()], x0, x1)
    upwards = _scale([each["lateness"] for each in shown.values()], y0, y1)
    yield f'<path d="M{x0} {y1}V{y0}H{x1}" fill="none" stroke="{PALE}"/>'
    for value, x in _ticks(across):
        yield f'<path d="M{x:.1f} {y0}v4" stroke="{PALE}"/>' + _text(x, y0 + 18, value, anchor="middle")
    for value, y in _ticks(upwards):
        yield f'<path d="M{x0} {y:.1f}h-4" stroke="{PALE}"/>' + _text(x0 - 8, y + 4, value, anchor="end")
    yield _text((x0 + x1) / 2, y0 + 36, "polls per task", anchor="middle")
    yield _text(x0 + 6, y1 - 4, "seconds late")
    spots = {name: (across(each["looks"]), upwards(each["lateness"])) for name, each in shown.items()}
    taken = [(x - 5, x + 5, y) for x, y in spots.values()]
    for name in sorted(spots, key=lambda name: (not _is_ours(name), spots[name])):
        x, y = spots[name]
        colour = OURS if _is_ours(name) else PALE
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
        start, height = _free_place(x, y, LETTER * len(name), left + width, taken)
        taken.append((start, start + LETTER * len(name), height - 4))
        yield _text(start, height, name, size=11, ours=_is_ours(name))


def _is_ours(policy: str) -> bool:
    return policy.startswith("kie4o")


def _free_place(
    x: float, y: float, long: float, end: float, taken: Sequence[tuple[float, float, float]]
) -> tuple[float, float]:
    """A position for a name beside its point, where it overlaps no other name or point."""
    for down in (0, -13, 13, -26, 26, 39):
        for start in (x + 8, x - 8 - long):
            clear = all(
                abs(y + down - height) > 11 or start > last or start + long < first
                for first, last, height in taken
            )
            if clear and start + long < end:
                return start, y + 4 + down
    return x + 8, y + 4


class _scale:  # noqa: N801  # used like a function
    """A logarithmic axis for all values, from `low` to `high` in the picture."""

    def __init__(self, values: Sequence[float], low: float, high: float) -> None:
        logs = [math.log10(value) for value in values] or [0.0]
        margin = 0.08 * (max(logs) - min(logs)) + 0.05
        self.least, self.most = min(logs) - margin, max(logs) + margin
        self._low, self._high = low, high

    def __call__(self, value: float) -> float:
        part = (math.log10(value) - self.least) / (self.most - self.least)
        return self._low + part * (self._high - self._low)


def _ticks(scale: _scale) -> Iterator[tuple[str, float]]:
    for power in range(-3, 5):
        for first in (1, 2, 5):
            value = first * 10.0**power
            if scale.least <= math.log10(value) <= scale.most:
                yield f"{value:g}", scale(value)


def _columns(results: Results) -> Iterator[Column]:
    cpu = results.get("cpu", {}).get("20", {})
    ratios = {name: 1.0 if name == "bare" else each["task"]["median"] for name, each in cpu.items()}
    yield "CPU per task, by hand = 1", ".2f", ratios
    memory = results.get("memory", {})
    mark = "10000" if any("10000" in each for each in memory.values()) else "1000"
    sizes = {name: each[mark]["median"] for name, each in memory.items() if mark in each}
    yield f"KiB per waiting task, of {int(mark):,}", ".1f", sizes
    loads = results.get("imports", {})
    times = {
        name: loads[imports.name_of(name)]["median"] for name in CLIENTS if imports.name_of(name) in loads
    }
    yield "import, ms over bare Python", ".0f", times


def svg(results: Results) -> str:
    """The whole picture, without columns and rows that have no figures."""
    columns = [column for column in _columns(results) if column[2]]
    names = [name for name in CLIENTS if any(name in figures for _, _, figures in columns)]
    parts, top = list(bars(names, columns, 10)), 10.0 + 30 + LINE * len(names) + 20
    for distribution, policies in pacing_of(results)[:1]:
        parts += points(f"When to poll: {distribution}", policies, 20, top, WIDTH - 40)
        top += POINTS + 10
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top:.0f}" font-family="{FONT}">',
            "<title>What kie4o costs, compared with other clients</title>",
            *parts,
            "</svg>\n",
        ]
    )
