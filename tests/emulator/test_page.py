"""The page of an emulator: what it shows, what it sends on, and how it takes hostile prompts.

The tests in a browser need an installed Chromium. Their screenshots are in `build/screenshots`.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, ClientTimeout, web
from aiohttp.test_utils import TestServer
from browser import CHROMIUM, NO_CHROMIUM, Page, open_page
from clients import passed
from paths import REPOSITORY

from kie4o.emulator import Emulator, Outcome, page

SHOTS = REPOSITORY / "build" / "screenshots"
HOSTILE = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked=1'>",
    '"><svg onload=window.hacked=1>',
    "' onmouseover='window.hacked=1",
    "</li></ol><h1>Owned</h1>",
    "</script><script>window.hacked=1</script>",
    "{0} {prompt} {{id}} %s ${x}",
    "&lt;b&gt; &amp; \u202eevil\u202c \ud800 \x00 \x1b[31m \u2028",
    "data: x\n\nevent: y\ndata: z",
    "https://evil.example/" + "a" * 5000,
]


class Client:
    """A plain HTTP client."""

    def __init__(self, kie: Emulator, session: ClientSession) -> None:
        self.kie, self.session = kie, session

    async def submit(self, prompt: str, **body: Any) -> Any:
        headers = {"Authorization": "Bearer secret-key", "Content-Type": "application/json"}
        data = json.dumps({"prompt": prompt, "size": "1:1"} | body)
        url = f"{self.kie.url}/api/v1/gpt4o-image/generate"
        async with self.session.post(url, data=data, headers=headers) as response:
            return await response.json()

    async def task(self, prompt: str, **body: Any) -> str:
        return str((await self.submit(prompt, **body))["data"]["taskId"])

    async def page(self) -> str:
        async with self.session.get(self.kie.url) as response:
            assert response.status == 200
            return await response.text()


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession(timeout=ClientTimeout(30)) as session:
        yield session


class Tags(HTMLParser):
    """Every element of a page with its attributes but their values, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


# -- rendered by the server ------------------------------------------------------------------------


async def test_the_page_without_a_script(session: ClientSession) -> None:
    """It has the tasks with prompt, state, age and images, and the counters, before any script runs."""
    async with Emulator(duration=30.0, limit=2) as kie:
        client = Client(kie, session)
        kie.plan("A lake", duration=2.0)
        kie.fault("look", code=500)
        done = await client.task("A lake", nVariants=2)
        running = await client.task("A forest")
        await client.submit("One too many")
        await passed(kie, 10)
        text = " ".join(Tags(html := await client.page()).text.split())
    for shown in ("Paid 2 tasks", "Spent 18 credits", "Balance 982 credits", "Submits 3 1 refused"):
        assert shown in text
    for shown in ("Busiest 10 s 3 of 2 submits", "Faults fired 0 1 planned", "One too many 429"):
        assert shown in text
    assert "A lake succeeded ended 8 s ago, took 2 s 1:1 12 credits 0 polls" in text
    assert "A forest running 10 s old ends in 2" in text
    assert html.index(running) < html.index(done)
    assert [path.partition("_")[0] for path in re.findall(r'src="(/-/s/[^"]*)', html)] == [f"/-/s/{done}"] * 2
    assert "secret-key" not in html


@pytest.mark.parametrize("prompt", HOSTILE, ids=range(len(HOSTILE)))
async def test_hostile_prompts_are_text(session: ClientSession, prompt: str) -> None:
    """They change neither the elements of the page nor their attributes."""
    async with Emulator(callback="never") as kie:
        client = Client(kie, session)
        await client.submit("harmless", callBackUrl="http://127.0.0.1/")
        harmless = Tags(await client.page())
        kie.reset()
        await client.submit(prompt, callBackUrl="http://127.0.0.1/?<b>'\"")
        hostile = Tags(await client.page())
        update = page.Stream().update(kie)
    assert hostile.tags == harmless.tags
    assert prompt[:9].encode("utf-8", "replace").decode() in hostile.text or "\x00" in prompt
    assert update is not None
    assert update.count(b"\n") == 2  # one event


def test_control_a_prompt_that_is_not_escaped() -> None:
    """Control: what is taken for HTML adds an element."""
    harmless = Tags(page.fill("<p>{text}</p>", text="harmless"))
    assert Tags(page.fill("<p>{text}</p>", text=HOSTILE[0])).tags == harmless.tags
    assert Tags(page.fill("<p>{text}</p>", text=page.Html(HOSTILE[0]))).tags != harmless.tags


async def test_a_strict_policy(session: ClientSession) -> None:
    """Nothing but the files beside the page may be loaded or run, and the page has nothing else."""
    async with Emulator() as kie:
        await Client(kie, session).submit("x")
        for path in ("/", "/-/page.css", "/-/page.js", "/-/icon.svg"):
            async with session.get(kie.url + path) as response:
                assert response.status == 200
                assert response.headers["Content-Security-Policy"].startswith("default-src 'none'; ")
                assert "unsafe" not in response.headers["Content-Security-Policy"]
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                text = await response.text()
                assert "://" not in text.replace("http://www.w3.org/2000/svg", "").replace(kie.url, "")
                if path == "/":
                    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?! src=)", text)


@pytest.mark.parametrize("path", ["/", "/-/events", "/-/page.js", "/-/s/x.png"])
async def test_other_origins_see_nothing(session: ClientSession, path: str) -> None:
    """The page and its parts are for this machine, as the API is."""
    async with Emulator() as kie:
        async with session.get(kie.url + path, headers={"Host": "evil.example"}) as response:
            assert response.status == 403


async def test_the_page_is_no_client(session: ClientSession) -> None:
    """What it asks for is not recorded among the requests to Kie."""
    async with Emulator(duration=0.0, pictures=False) as kie:
        client = Client(kie, session)
        await client.submit("x")
        before = kie.requests.copy()
        [path] = re.findall(r'src="(/-/s/[^"]*)', await client.page())
        async with session.get(kie.url + path) as response:
            assert (response.status, response.content_type) == (200, "image/png")
        async with session.get(kie.url + path.replace("_0_", "_3_")) as response:
            assert response.status == 404
        for method, missing in (("POST", "/"), ("GET", "/-/page.html"), ("PUT", "/-/events")):
            async with session.request(method, kie.url + missing) as response:
                assert response.status in (404, 405)
        assert kie.requests == before


async def test_many_tasks(session: ClientSession) -> None:
    """The newest are shown, and how many there are."""
    async with Emulator(limit=100) as kie:
        client = Client(kie, session)
        for number in range(page.SHOWN_TASKS + 5):
            await client.submit(f"Number {number}.")
        html = await client.page()
    assert html.count('class="card"') == page.SHOWN_TASKS
    assert f"the newest {page.SHOWN_TASKS} of {page.SHOWN_TASKS + 5}" in html
    assert "Number 5." in html
    assert "Number 4." not in html


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (59.9, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_span(seconds: float, text: str) -> None:
    """Lengths of time are short texts."""
    assert page.span(seconds) == text


# -- events ----------------------------------------------------------------------------------------


class Events:
    """The events of one viewer."""

    def __init__(self, response: Any) -> None:
        self.response = response

    async def __call__(self) -> Any:
        while not (line := await self.response.content.readline()).startswith(b"data: "):
            assert line, "the stream has ended"
        return json.loads(line.removeprefix(b"data: "))


async def test_changes_are_sent(session: ClientSession) -> None:
    """Everything at first, and then what has changed: also what time alone has changed."""
    async with Emulator(clock="real", speed=10.0, duration=2.0) as kie:
        async with session.get(f"{kie.url}/-/events") as response:
            assert response.content_type == "text/event-stream"
            events = Events(response)
            first = await events()
            assert set(first["fragments"]) == {"clock", "counters", "heading", "empty", "faults", "submits"}
            assert (first["order"], first["speed"]) == ([], 10.0)
            task_id = await Client(kie, session).task("A lake")
            added = await events()
            assert (added["order"], set(added["cards"])) == ([f"task-{task_id}"], {f"task-{task_id}"})
            assert set(added["fragments"]) == {"counters", "heading", "empty", "submits"}
            ended = await events()
            assert "succeeded" in ended["cards"][f"task-{task_id}"]
            assert ended["fragments"] == {}
            kie.reset()
            assert (await events())["order"] == []


async def test_a_viewer_does_not_drive_virtual_time(session: ClientSession) -> None:
    """Its stream sets no timer; changes come with the requests that make them."""
    async with Emulator() as kie:
        if kie.clock != "virtual":
            pytest.skip("the loop has no virtual time")
        async with session.get(f"{kie.url}/-/events") as response:
            events = Events(response)
            await events()
            start = kie.now()
            task_id = await Client(kie, session).task("A lake")
            assert (await events())["order"] == [f"task-{task_id}"]
            assert kie.now() == start
            await asyncio.sleep(30)
            async with session.post(f"{kie.url}/-/credits", json={"credits": 1}):
                pass
            event = await events()
            assert "succeeded" in event["cards"][f"task-{task_id}"]
            assert kie.now() == pytest.approx(start + 30)


async def test_closing_while_somebody_watches(session: ClientSession) -> None:
    """Ends the stream, and does not wait for it."""
    loop = asyncio.get_running_loop()
    async with Emulator(clock="real") as kie:
        response = await session.get(f"{kie.url}/-/events")
        await Events(response)()
        start = loop.time()
    assert loop.time() - start < 5
    response.close()


# -- in a browser ----------------------------------------------------------------------------------

in_browser = [pytest.mark.once, pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)]


def browsing(test: Callable[..., Any]) -> Callable[..., Any]:
    for mark in in_browser:
        test = mark(test)
    return test


@pytest.fixture
async def hook() -> AsyncIterator[tuple[str, list[Any]]]:
    received: list[Any] = []

    async def receive(request: web.Request) -> web.Response:
        received.append(await request.json())
        return web.Response()

    app = web.Application()
    app.router.add_post("/", receive)
    async with TestServer(app) as server:
        yield f"http://127.0.0.1:{server.port}/", received


async def live(browser: Page) -> None:
    await browser.until("document.getElementById('live').classList.contains('on')")


def card(task_id: str) -> str:
    return f"document.getElementById('task-{task_id}').textContent"


def badge(task_id: str) -> str:
    return f"document.querySelector('#task-{task_id} .badge')?.textContent"


@browsing
async def test_steering_tasks_by_keyboard(
    session: ClientSession, hook: tuple[str, list[Any]], tmp_path: Path
) -> None:
    """Tasks appear by themselves; the buttons end, fail and delay them and send callbacks; focus is kept."""
    url, received = hook
    async with Refusing(clock="real", duration=600.0) as kie:
        client = Client(kie, session)
        async with open_page(kie.url, tmp_path) as browser:
            await live(browser)
            assert await browser.run("document.getElementById('empty').hidden") is False
            first, second = await client.task("A lake", callBackUrl=url), await client.task("A forest")
            await browser.until(f"{badge(second)} === 'running'")
            assert await browser.run("document.getElementById('empty').hidden") is True
            order = "[...document.querySelectorAll('.card')].map(card => card.id)"
            assert await browser.run(order) == [f"task-{second}", f"task-{first}"]

            async def press(action: str, task_id: str) -> None:
                await browser.run(f"document.getElementById('{action}-{task_id}').focus()")
                await browser.press("Enter", 13)

            before = kie.tasks[second].duration
            await press("delay", second)
            await browser.until(f"document.querySelector('#task-{second} progress').max > {before + 20}")
            assert kie.tasks[second].duration == before + 30
            assert await browser.run("document.activeElement.id") == f"delay-{second}"

            await press("end", first)
            await browser.until(f"{badge(first)} === 'succeeded'")
            assert await browser.run("document.activeElement.id") == f"task-{first}"  # the button is gone
            await browser.until(f"document.querySelector('#task-{first} img')?.naturalWidth > 0")
            await browser.until(f"{card(first)}.includes('callback: 200')")
            await press("callback", first)
            await browser.until(f"{card(first)}.includes('callback: 200, 200')")
            assert len(received) == 2

            await press("fail", second)
            await browser.until(f"{badge(second)} === 'failed'")

            kie.refused = third = await client.task("A stone")
            await browser.until(f"{badge(third)} === 'running'")
            await press("end", third)
            await browser.until("document.getElementById('notice').textContent === 'it has ended already'")

            await browser.run("window.confirm = () => true")
            await browser.run("document.querySelector('[data-confirm]').focus()")
            await browser.press("Enter", 13)
            await browser.until(f"({order}).length === 0")
        assert kie.paid == 0
        assert [text for text in browser.complaints if "400 (Bad Request)" not in text] == []
        assert {address.startswith(kie.url) for address in browser.urls} == {True}


class Refusing(Emulator):
    """Refuses to end one task, as if it had ended just now."""

    refused = ""

    def end(self, task_id: str, outcome: str | Outcome | None = None) -> None:
        if task_id == self.refused:
            raise ValueError("it has ended already")
        super().end(task_id, outcome)


@browsing
async def test_tab_reaches_every_control(session: ClientSession, tmp_path: Path) -> None:
    """In the order in which they are read, beginning with the link past the head."""
    async with Emulator(clock="real", duration=600.0) as kie:
        task_id = await Client(kie, session).task("A lake")
        async with open_page(kie.url, tmp_path) as browser:
            await live(browser)
            seen, focused = [], "document.activeElement.id || document.activeElement.textContent"
            for _ in range(6):
                await browser.press("Tab", 9)
                seen.append(await browser.run(focused))
    ids = [f"{action}-{task_id}" for action in ("end", "fail", "delay")]
    assert seen == ["Skip to the tasks", "Reset", *ids, "GET /-/state"]


@browsing
async def test_hostile_prompts_in_a_browser(session: ClientSession, tmp_path: Path) -> None:
    """Nothing of them runs or loads, whether they were there before the page or came later."""
    async with Emulator(clock="real", limit=100, duration=0.0, pictures=False) as kie:
        client = Client(kie, session)
        for prompt in HOSTILE:
            await client.submit(prompt)
        async with open_page(kie.url, tmp_path) as browser:
            await live(browser)
            for prompt in HOSTILE:
                last = await client.task(prompt)
            await browser.until(f"{badge(last)} === 'succeeded'")
            assert await browser.run("document.querySelectorAll('.card').length") == 2 * len(HOSTILE)
            assert await browser.run("[typeof window.hacked, document.querySelectorAll('h1').length]") == [
                "undefined",
                1,
            ]
        assert browser.complaints == []
        assert {address.startswith(kie.url) for address in browser.urls} == {True}


@browsing
@pytest.mark.parametrize(
    ("name", "width", "dark"),
    [("light", 1280, False), ("dark", 1280, True), ("narrow", 360, False)],
)
async def test_screenshots(
    session: ClientSession, hook: tuple[str, list[Any]], tmp_path: Path, name: str, width: int, dark: bool
) -> None:
    """The page fits the window, has the colours that the user prefers, and its buttons are large enough."""
    url, _ = hook
    async with Emulator(clock="real", limit=6) as kie:
        client = Client(kie, session)
        kie.plan("A sunset over the mountains, oil on canvas", duration=0.0)
        kie.plan("Four stamps of birds", duration=0.0)
        kie.plan("A forbidden lake", duration=0.0, outcome="policy")
        kie.plan("An order that never ends", outcome="stuck")
        await client.submit("A sunset over the mountains, oil on canvas", size="3:2", callBackUrl=url)
        await client.submit("Four stamps of birds", nVariants=4)
        await client.submit("A forbidden lake", size="2:3")
        await client.submit("An order that never ends")
        await client.submit("<img src=x onerror=alert(1)> " + "W" * 300)
        await client.submit("A lighthouse in the fog", size="2:3", callBackUrl=url)
        await client.submit("One too many")
        async with open_page(kie.url, tmp_path) as browser:
            await browser.look(width=width, height=900, dark=dark)
            await live(browser)
            await browser.until(
                "[...document.images].length === 5 && [...document.images].every(one => one.complete)"
            )
            assert await browser.run("document.documentElement.scrollWidth") <= width
            back = await browser.run("getComputedStyle(document.body).backgroundColor")
            assert (int(re.findall(r"\d+", back)[0]) < 128) is dark
            heights = "[...document.querySelectorAll('.actions button')].map(one => one.offsetHeight)"
            assert min(await browser.run(heights)) >= (40 if width < 500 else 30)
            SHOTS.mkdir(parents=True, exist_ok=True)
            await browser.screenshot(SHOTS / f"emulator-{name}.png")
        assert browser.complaints == []
