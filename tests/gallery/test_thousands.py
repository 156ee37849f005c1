"""A page of 5,000 images: how soon it shows them, how fast it filters, and what it costs to see them all."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path

import pytest
from browser import CHROMIUM, NO_CHROMIUM, Page, open_page
from runs import task_id

from kie4o.emulator import pictures
from kie4o.gallery.page import write_gallery
from kie4o.gallery.records import FILE_NAME, Record, line

pytestmark = [
    pytest.mark.proof,
    pytest.mark.sweep,
    pytest.mark.paced,
    pytest.mark.once,
    pytest.mark.posix("/proc"),
    pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM),
]

MANY = 5000
FIRST_PAINT, FIRST_SCREEN, FILTER = 1.0, 3.0, 0.2  # seconds
MEMORY = 1.5 * 2**10  # MiB, of all processes of the browser
WORDS = (
    "sea",
    "night city",
    "fox in the forest",
    "mountains at dawn",
    "desert",
    "lemons",
    "balloons",
    "snow",
)
LOADED = """[...document.images].filter(image => {
    const box = image.getBoundingClientRect();
    return box.bottom > 0 && box.top < innerHeight && box.width;
}).every(image => image.complete && image.naturalWidth > 0)"""
ONLY = "document.getElementById('only').click()"
# From the change until the page is laid out and painted again.
TIMED = """(async change => {
    const started = performance.now();
    change();
    await new Promise(resolve => requestAnimationFrame(() => setTimeout(resolve, 0)));
    return performance.now() - started;
})"""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of images that are drawn once and then linked, with their thumbnails."""
    pytest.importorskip("PIL")
    folder = tmp_path_factory.mktemp("thousands")
    drawn = [pictures.draw(words, "1:1", 0) for words in WORDS]
    first = folder / "first"
    first.mkdir()
    for number, png in enumerate(drawn):
        (first / f"{number}.png").write_bytes(png)
    write_gallery(first)
    lines = []
    for number in range(MANY):
        kind, name = number % len(WORDS), f"row-{number}.png"
        (folder / ".thumbs").mkdir(exist_ok=True)
        os.link(first / f"{kind}.png", folder / name)
        os.link(first / ".thumbs" / f"{kind}.png.webp", folder / ".thumbs" / f"{name}.webp")
        prompt = f"{WORDS[kind]}, number {number}, as a picture that hangs on the wall of a small hotel"
        facts = {"size": "1:1", "credits": 6, "seconds": number % 90, "task_id": task_id(str(number))}
        lines.append(line(Record(f"row-{number}", prompt=prompt, state="done", files=[name], **facts)))
    (folder / FILE_NAME).write_text("".join(lines))
    shutil.rmtree(first)
    started = time.perf_counter()
    path = write_gallery(folder)
    print(f"\nwritten in {time.perf_counter() - started:.2f} s, {path.stat().st_size / 1e6:.1f} MB")
    return path


async def test_a_page_of_thousands(index: Path, tmp_path: Path) -> None:
    """First paint, first screen, a filter by words and by state, an order, memory after the last image."""
    async with open_page("about:blank", tmp_path / "profile") as page:
        await page.send("Network.disable")  # it keeps what it has seen
        await page.look(width=1280, height=800)
        await page.send("Page.navigate", url=index.as_uri())
        await page.until(f"document.images.length === {MANY} && {LOADED}")
        first_screen = await page.run("performance.now()") / 1000
        paint = await page.run("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
        changes = [*(f"set('query', {words!r})" for words in ("fox", "number 49", "none", "")), *[ONLY] * 2]
        rounds = [[await timed(page, change) for change in changes] for _ in range(2)]
        filters = [*map(min, *rounds)]  # a busy machine delays one of them
        order = await timed(page, "set('order', 'prompt')") / 1000
        await timed(page, "set('order', 'index')")
        await scroll_to_the_end(page)
        memory = resident(page.pid) / 2**20
        print(f"first paint {paint:.2f} s, first screen {first_screen:.2f} s, order {order:.2f} s,")
        print(f"filters {[round(each) for each in filters]} ms, memory after the last image {memory:.0f} MiB")
        assert page.complaints == []
        assert paint < FIRST_PAINT
        assert first_screen < FIRST_SCREEN
        assert max(filters) / 1000 < FILTER
        assert memory < MEMORY


async def timed(page: Page, change: str) -> float:
    """Milliseconds until a change shows."""
    setter = """const set = (name, value) => {
        const it = document.getElementById(name);
        it.value = value;
        it.dispatchEvent(new Event('input'));
        it.dispatchEvent(new Event('change'));
    };"""
    result: float = await page.run(f"{TIMED}(() => {{ {setter} {change}; }})")
    return result


async def scroll_to_the_end(page: Page) -> None:
    """Window by window, each until its images are shown."""
    while not await page.run("scrollY + innerHeight >= document.documentElement.scrollHeight - 1"):
        await page.run("scrollBy(0, innerHeight)")
        await page.until(LOADED)
    await asyncio.sleep(1.0)  # real: the browser decodes


def resident(pid: int) -> int:
    """The bytes of a process and its descendants, with shared pages counted once."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                stat = (folder / "stat").read_text()
            except OSError:
                continue
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    total = 0
    for member in family:
        try:
            rollup = Path(f"/proc/{member}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next(int(row.split()[1]) for row in rollup.splitlines() if row.startswith("Pss:")) * 1024
    assert len(family) > 2, "a browser is several processes"
    return total
