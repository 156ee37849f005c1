"""The gallery as a person meets it, in a headless Chromium.

Screenshots are kept in build/screenshots.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from axe import AXE, NO_AXE, violations
from browser import CHROMIUM, NO_CHROMIUM, Page, open_page
from paths import REPOSITORY
from runs import ODD_NAMES, ONERROR, RECORDS, SCRIPT, task_id, write_run

from kie4o.gallery import selection
from kie4o.gallery.page import write_gallery
from kie4o.gallery.records import Record

pytestmark = [pytest.mark.once, pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)]

SHOTS = REPOSITORY / "build" / "screenshots"
VISIBLE = "[...document.querySelectorAll('.card:not([hidden])')].map(card => +card.dataset.q)"
IN_VIEW = """[...document.images].filter(image => {
    const box = image.getBoundingClientRect();
    return box.bottom > 0 && box.top < innerHeight && box.width;
})"""
LOADED = f"""[...{IN_VIEW}, ...document.querySelectorAll('#stage img')].every(
    image => image.complete && image.naturalWidth > 0
)"""


@pytest.fixture
async def page(run: Path, tmp_path: Path) -> AsyncIterator[Page]:
    """The page of the run. At the end nothing was wrong with it, and nothing came from elsewhere."""
    async with open_page((run / "index.html").as_uri(), tmp_path / "profile") as page:
        await page.look(width=1280, height=800)
        yield page
        assert page.complaints == []
        assert {url for url in page.urls if not url.startswith((run.as_uri(), "blob:"))} == set()
        assert await page.run("window.hit ?? null") is None


async def press(page: Page, *keys: str) -> None:
    codes = {"Escape": 27, "Enter": 13, "ArrowLeft": 37, "ArrowRight": 39, "Tab": 9, "/": 191}
    for key in keys:
        await page.press(key, codes.get(key) or ord(key.upper()))


async def is_open(page: Page) -> bool:
    return bool(await page.run("document.getElementById('large').open"))


async def test_thumbnails_are_shown(page: Page) -> None:
    """Every image of the first screen is a thumbnail, and loads."""
    await page.until(LOADED)
    sources = await page.run(f"{IN_VIEW}.map(image => image.getAttribute('src'))")
    assert len(sources) > 4
    assert all(source.startswith(".thumbs/") for source in sources)
    assert max(await page.run(f"{IN_VIEW}.map(image => image.naturalWidth)")) == 360
    assert "10 requests" in await page.run("document.querySelector('header').innerText")


async def test_filters(page: Page) -> None:
    """By words, by state, and both; the order changes as well."""

    async def choose(name: str, value: str) -> None:
        await page.run(
            f"(it => {{ it.value = {json.dumps(value)};"
            "it.dispatchEvent(new Event('input')); it.dispatchEvent(new Event('change'));"
            f"}})(document.getElementById('{name}'))"
        )

    assert await page.run(VISIBLE) == [*range(len(RECORDS))]
    await press(page, "/")
    await page.type("SEA calm")
    assert await page.run(VISIBLE) == [0]
    assert await page.run("document.getElementById('count').textContent") == "1 of 10 requests"
    await choose("query", task_id("row-6"))
    assert await page.run(VISIBLE) == [5]
    await choose("query", "no such words")
    assert await page.run("document.getElementById('nothing').checkVisibility()")
    await choose("query", "")
    await choose("state", "failed")
    assert await page.run(VISIBLE) == [2]
    await choose("state", "")
    await choose("order", "prompt")
    prompts = [str(record.prompt).lower() for record in RECORDS]
    assert await page.run(VISIBLE) == sorted(range(len(RECORDS)), key=prompts.__getitem__)
    await choose("order", "seconds")
    assert (await page.run(VISIBLE))[:3] == [5, 8, 3]
    await choose("order", "index")
    assert await page.run(VISIBLE) == [*range(len(RECORDS))]


async def test_keys_and_favourites(page: Page, run: Path, tmp_path: Path) -> None:
    """The large view by keys alone. Favourites outlive the page, and the saved list can be copied."""
    await page.run("document.querySelector('a[data-at]').focus()")
    await press(page, "Enter")
    assert await is_open(page)
    await press(page, "f", "ArrowRight", "c")
    assert await page.run("document.querySelectorAll('#stage img').length") == 4
    await press(page, "c", "ArrowRight", "ArrowRight", "ArrowRight")
    assert await page.run("document.getElementById('text').textContent") == RECORDS[1].prompt
    await press(page, "f", "ArrowRight")  # to one that failed
    assert "content policy" in await page.run("document.getElementById('stage').innerText")
    await press(page, "f", "Escape")
    assert not await is_open(page)
    await page.until("document.activeElement.dataset.at === '2.0'")
    await page.goto((run / "index.html").as_uri())
    assert await page.run("document.querySelectorAll('a.marked').length") == 2
    await page.run("document.getElementById('only').click()")
    assert await page.run(VISIBLE) == [0, 1]
    folder = tmp_path / "saved"
    await page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    await page.run("document.getElementById('save').click()")
    await page.until("true")
    saved = folder / "favourites.txt"
    for _ in range(100):
        if saved.exists():
            break
        await page.run("new Promise(resolve => setTimeout(resolve, 50))")
    names = selection.read_list(saved)
    assert names == ["row-1_0.png", "row-2.png"]
    copies = selection.copy_images(run, names, tmp_path / "chosen")
    assert [copy.read_bytes() for copy in copies] == [(run / name).read_bytes() for name in names]


async def test_a_task_can_be_linked(page: Page, run: Path) -> None:
    """`#task=ID` opens it, and the address follows what is shown."""
    link = (run / "index.html").as_uri() + f"#task={task_id('row-2')}"
    await page.goto("about:blank")
    await page.goto(link)
    assert await is_open(page)
    assert await page.run("document.getElementById('task').textContent") == task_id("row-2")
    await press(page, "ArrowRight")
    assert await page.run("location.hash") == f"#task={task_id('row-3')}"
    await press(page, "Escape")
    await page.until("location.hash === ''")
    await page.goto((run / "index.html").as_uri() + "#task=unknown")
    assert not await is_open(page)


async def test_copying(page: Page) -> None:
    """The prompt and the task id, and the command that runs the failed requests again."""
    retry = "document.querySelector('[data-copy=retry]')"
    await page.run(f"{retry}.click()")
    await page.until(f"{retry}.textContent === 'copied'")
    await page.until(f"{retry}.textContent === 'copy command'")
    assert "--retry-failed" in await page.run("document.getElementById('retry').textContent")
    await page.run("document.querySelector('a[data-at]').click()")
    await page.run("document.querySelector('[data-copy=task]').click()")
    await page.until("document.querySelector('[data-copy=task]').textContent === 'copied'")


async def test_hostile_text_stays_text(page: Page) -> None:
    """Prompts with markup are shown as they are, in the card and in the large view."""
    prompts = await page.run("[...document.querySelectorAll('.prompt')].map(p => p.textContent)")
    assert SCRIPT in prompts
    assert ONERROR in prompts
    for at, prompt in (("3.0", SCRIPT), ("5.0", ONERROR)):
        await page.run(f"document.querySelector('a[data-at=\"{at}\"]').click()")
        assert await page.run("document.getElementById('text').textContent") == prompt
        await press(page, "c")
        await page.until(LOADED)
    assert await page.run("document.querySelectorAll('[onerror], [onload]').length") == 0
    assert await page.run("document.scripts.length") == 1


async def test_the_policy_stops_what_would_be_injected(run: Path, tmp_path: Path) -> None:
    """The control: markup that got into the page by a mistake of ours runs nothing and loads nothing."""
    html = (run / "index.html").read_text("utf-8")
    bad = tmp_path / "index.html"
    tags = "<script>window.hit = 1</script><img src='http://127.0.0.1:9/x.png' onerror='window.hit = 2'>"
    bad.write_text(html.replace("<main>", "<main>" + tags), "utf-8")
    async with open_page(bad.as_uri(), tmp_path / "profile") as page:
        await page.until("document.readyState === 'complete'")
        assert await page.run("window.hit ?? null") is None
        violated = [complaint for complaint in page.complaints if "Content Security Policy" in complaint]
        assert len(violated) >= 2
    naked = tmp_path / "naked.html"
    naked.write_text(bad.read_text("utf-8").replace("Content-Security-Policy", "x"), "utf-8")
    async with open_page(naked.as_uri(), tmp_path / "profile2") as page:
        assert await page.run("window.hit ?? null") is not None


@pytest.mark.posix("file names with these characters")
async def test_odd_file_names(tmp_path: Path) -> None:
    """Quotes, #, %, spaces, direction marks and a leading - lead to the files that have them."""
    records = [Record(name, state="done", files=[name]) for name in ODD_NAMES]
    index = write_gallery(write_run(tmp_path, records))
    async with open_page(index.as_uri(), tmp_path / "profile") as page:
        await page.look(width=1280, height=900)
        await page.until(f"{IN_VIEW}.length === {len(ODD_NAMES)} && {LOADED}")
        for number, name in enumerate(ODD_NAMES):
            await page.run(f"document.querySelector('a[data-at=\"{number}.0\"]').click()")
            assert await page.run("document.getElementById('file').textContent") == name
            await page.until(LOADED)
        assert page.complaints == []
        assert await page.run("window.hit ?? null") is None


async def test_a_single_request(tmp_path: Path) -> None:
    """It is no plural."""
    index = write_gallery(write_run(tmp_path, RECORDS[1:2]))
    async with open_page(index.as_uri(), tmp_path / "profile") as page:
        await page.until("document.getElementById('count').textContent === '1 of 1 request'")
        assert "1 image of 1 request" in await page.run("document.querySelector('header').innerText")


async def test_without_script(run: Path, tmp_path: Path) -> None:
    """Everything can be read, and each image opens by its link; the tools are hidden."""
    async with open_page("about:blank", tmp_path / "profile") as page:
        await page.look(width=1280, height=800)
        await page.send("Emulation.setScriptExecutionDisabled", value=True)
        await page.goto((run / "index.html").as_uri())
        assert not await page.run("document.getElementById('tools').checkVisibility()")
        text = await page.run("document.body.innerText")
        wanted = [
            task_id("row-1"),
            "content policy",
            "24 credits",
            "32 s",
            "--retry-failed",
            "outcome unknown",
        ]
        assert [words for words in wanted if words not in text] == []
        assert await page.run("document.querySelector('a[data-at]').getAttribute('href')") == "row-1_0.png"
        SHOTS.mkdir(parents=True, exist_ok=True)
        await page.screenshot(SHOTS / "gallery-without-script.png")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
async def test_looks(page: Page, width: int, dark: bool) -> None:
    """No violation of axe-core in the grid, the open tools and the large view, and nothing is cut off."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    name = f"gallery-{width}-{'dark' if dark else 'light'}"
    await page.look(width=width, height=800, dark=dark)
    await page.run("document.querySelector('a[data-at]').focus(); 0")
    await press(page, "f")
    await page.run("document.activeElement.blur(); scrollTo(0, 0)")
    await page.until(LOADED)
    await page.screenshot(SHOTS / f"{name}.png", whole=False)
    found = [await problems(page)]
    if width == 360:
        await page.run("document.getElementById('fold').click()")
        await page.screenshot(SHOTS / f"{name}-tools.png", whole=False)
        found.append(await problems(page))
        await page.run("document.getElementById('fold').click()")
    for at, keys in (("0.0", "c"), ("1.0", ""), ("2.0", ""), ("7.0", "")):
        await page.run(f"document.querySelector('a[data-at=\"{at}\"]').click()")
        await press(page, *keys)
        await page.until(LOADED)
        await page.screenshot(SHOTS / f"{name}-large-{at[0]}{keys}.png", whole=False)
        found.append(await problems(page))
        await press(page, *keys, "Escape")
    assert [each for each in found if each] == []


async def problems(page: Page) -> list[str]:
    """What is wrong with the page as it is shown now."""
    found = await violations(page) if AXE else []
    if await page.run("document.documentElement.scrollWidth > innerWidth"):
        found.append("it scrolls sideways")
    return found


@pytest.mark.skipif(AXE is None, reason=NO_AXE)
async def test_control_axe_sees_a_violation(page: Page) -> None:
    """An image without a text, and grey on grey."""
    await page.run(
        "document.querySelector('img').removeAttribute('alt');"
        "document.querySelector('h1').style.color = 'rgb(200, 200, 200)'"
    )
    found = " ".join(await violations(page))
    assert "image-alt" in found
    assert "color-contrast" in found
