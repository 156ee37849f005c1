"""What the words of a prompt mean for its picture: ground, light, weather, what stands there, style.

Pure: `painting` draws it. Words that mean nothing here leave the choice to chance, which is seeded by the
prompt, so that every prompt has a picture.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Light:
    """The colours of a time of day; `shade` is how much light falls on the ground."""

    top: Colour
    low: Colour
    sun: Colour
    shade: float


@dataclass(frozen=True, slots=True)
class Scene:
    """What is in a picture. `things` are in the order in which the prompt names them."""

    ground: str
    time: str
    light: Light
    weather: str
    things: tuple[str, ...]
    style: str
    rng: random.Random


LIGHTS: dict[str, Light] = {
    "day": Light((58, 128, 208), (206, 231, 245), (255, 252, 228), 1.0),
    "dawn": Light((92, 116, 182), (255, 206, 172), (255, 240, 204), 0.86),
    "sunset": Light((72, 58, 128), (255, 148, 92), (255, 228, 150), 0.68),
    "night": Light((7, 11, 34), (44, 62, 112), (243, 241, 222), 0.34),
}
# What a picture has, by the words that name it. The first row that is named wins, but for things.
TIMES = {
    "night": "night midnight moon moonlight moonlit star stars starry galaxy aurora neon dark",
    "dawn": "dawn sunrise morning early first daybreak",
    "sunset": "sunset dusk evening twilight golden autumn",
    "day": "day noon midday afternoon summer spring blue sunny",
}
GROUNDS = {
    "table": "bowl table fruit lemon lemons apple apples orange oranges still vase cup coffee tea bread cake",
    "city": "city town street skyline tokyo york paris london bookshop shop cafe building buildings traffic",
    "sea": "sea ocean beach coast harbour harbor lighthouse boat ship sail island waves wave whale surf",
    "lake": "lake river pond fjord reed kingfisher swan duck canoe",
    "desert": "desert dune dunes camel sand sahara pyramid cactus mars",
    "mountains": "mountain mountains peak peaks alps summit glacier viaduct snow snowy",
    "forest": "forest wood woods tree trees jungle fox bear deer owl fern ferns autumn leaves rabbit",
    "hills": "hill hills meadow field fields valley green grass sheep village balloon balloons flowers",
}
WEATHERS = {
    "rain": "rain rainy storm stormy wet drizzle thunderstorm",
    "snow": "snow snowy winter blizzard christmas",
    "fog": "fog foggy mist misty haze hazy",
    "clouds": "cloud clouds cloudy overcast sky",
}
STYLES = {
    "watercolour": "watercolour watercolor aquarelle gouache pastel",
    "ink": "ink sketch drawing pencil charcoal woodcut etching monochrome noir",
    "pixel": "pixel pixels pixelated 8bit bit voxel",
    "oil": "oil canvas painting impressionist impressionism gogh monet",
    "photograph": "photo photograph photography macro portrait bokeh cinematic film 35mm",
}
THINGS = {
    "lighthouse": "lighthouse",
    "boat": "boat boats ship sail sailboat yacht canoe",
    "balloon": "balloon balloons",
    "train": "train trains railway viaduct locomotive",
    "house": "house houses home cottage cabin hut bookshop shop cafe barn farm village",
    "greenhouse": "greenhouse conservatory",
    "castle": "castle fortress palace tower",
    "windmill": "windmill windmills mill",
    "birds": "birds gulls seagull seagulls geese swallows crows flock eagle",
    "kingfisher": "kingfisher bird robin sparrow hummingbird parrot owl",
    "cat": "cat cats kitten kittens",
    "fox": "fox foxes",
    "dog": "dog dogs puppy corgi wolf",
    "rabbit": "rabbit rabbits bunny hare",
    "bear": "bear bears panda",
    "sheep": "sheep lamb lambs goat",
    "camel": "camel camels",
    "whale": "whale whales dolphin dolphins",
    "tree": "tree oak birch willow cherry",
    "flowers": "flower flowers tulips poppies roses blossoms lavender sunflowers spring",
    "lemons": "lemon lemons fruit orange oranges apple apples bowl",
    "rocket": "rocket spaceship spacecraft astronaut",
}
# Where chance chooses, a thing may stand there, so that no picture is empty.
_USUAL = {
    "sea": ("boat", "lighthouse", "birds"),
    "lake": ("house", "boat", "birds"),
    "hills": ("tree", "house", "balloon", "windmill"),
    "mountains": ("birds", "house"),
    "desert": ("camel",),
    "table": ("lemons",),
}
_LANDSCAPES = ("hills", "sea", "mountains", "lake", "forest", "city", "desert")
_WORD = re.compile(r"\w+")


def scene_of(prompt: str, index: int) -> Scene:
    """The scene of a prompt; each index has another view of it."""
    seed = hashlib.sha256(f"{index} {prompt}".encode("utf-8", "surrogatepass")).digest()
    shared = random.Random(hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest())
    words = _WORD.findall(prompt.lower())
    ground = _named(GROUNDS, words) or shared.choice(_LANDSCAPES)
    time = _named(TIMES, words) or shared.choice(("day", "day", "dawn", "sunset", "night"))
    things = tuple(dict.fromkeys(thing for word in words if (thing := _THING_OF.get(word))))
    if not things and ground in _USUAL:
        things = (shared.choice(_USUAL[ground]),)
    return Scene(
        ground=ground,
        time=time,
        light=LIGHTS[time],
        weather=_named(WEATHERS, words) or shared.choice(("", "", "clouds")),
        things=things[:3],
        style=_named(STYLES, words) or "plain",
        rng=random.Random(seed),
    )


def _by_word(rows: Mapping[str, str]) -> dict[str, str]:
    return {word: name for name, words in reversed(list(rows.items())) for word in words.split()}


def _named(rows: Mapping[str, str], words: list[str]) -> str:
    """The first row of the table of which the prompt has a word; empty if there is none."""
    found = set(words)
    return next((name for name, row in rows.items() if found.intersection(row.split())), "")


_THING_OF = _by_word(THINGS)
