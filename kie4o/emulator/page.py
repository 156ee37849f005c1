"""The page at `/`: what the emulator saw and does, for a person, on top of `control`.

It is rendered here, in fragments with ids. `/-/events` sends those that have changed, and `static/page.js`
puts them in place. Every text goes through `fill`, which escapes it. The Content-Security-Policy allows
nothing but the files beside the page.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from functools import cache
from html import escape
from importlib.resources import files
from typing import Protocol

from aiohttp import web

from . import control
from .callbacks import CallRecord
from .tasks import Task

SHOWN_TASKS, SHOWN_SUBMITS = 60, 12
LONGEST_PROMPT = 500  # characters
TICK = 0.5  # real seconds between two looks for what time alone has changed
PING = 30  # ticks without a change until a comment finds out whether anybody is there

FILES = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = control.SAFE | {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Kie(control.Kie, Protocol):
    """What the page needs of an emulator."""

    async def picture(self, path: str) -> tuple[bytes, str] | None: ...
    def next_change(self) -> asyncio.Event: ...


# -- HTML ------------------------------------------------------------------------------------------


class Html(str):
    """A text that is HTML already."""

    __slots__ = ()


def fill(template: str, **values: object) -> Html:
    """The template with these values, each of them escaped unless it is `Html`."""
    return Html(
        template.format_map(
            {
                name: value if isinstance(value, Html) else escape(_shown(value))
                for name, value in values.items()
            }
        )
    )


def join(parts: list[Html]) -> Html:
    return Html("".join(parts))


def _shown(value: object) -> str:
    """As text that UTF-8 can encode."""
    return str(value).encode("utf-8", "replace").decode()


def span(seconds: float) -> str:
    """A length of time, as `span` in page.js has it."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole // 60 % 60} min"


@cache
def _file(name: str) -> str:
    return (files("kie4o.emulator") / "static" / name).read_text("utf-8")


# -- the fragments ---------------------------------------------------------------------------------

CLOCK = '<p id="clock" class="quiet">{kind}</p>'
COUNTERS = """<dl id="counters" class="counters">
<div><dt>Paid</dt><dd>{paid} <small>{tasks}</small></dd></div>
<div><dt>Spent</dt><dd>{spent} <small>credits</small></dd></div>
<div><dt>Balance</dt><dd>{credits} <small>credits</small></dd></div>
<div><dt>Submits</dt><dd>{submits} <small>{refused} refused</small></dd></div>
<div><dt>Busiest {per} s</dt><dd class="{window_class}">{window} <small>of {limit} submits</small></dd></div>
<div><dt>Busiest second</dt><dd class="{looks_class}">{looks} <small>of {looks_limit} polls</small></dd></div>
<div><dt>Faults fired</dt><dd>{fired} <small>{planned} planned</small></dd></div>
</dl>"""
HEADING = """<div id="heading" class="heading"><h2 id="tasks-title">Tasks</h2>
<span class="quiet">{count}</span></div>"""
EMPTY = """<div id="empty" class="empty"{hidden}><p>No task yet. Point a client at this emulator:</p>
<pre><code>export KIE_BASE_URL={url}
export KIE_UPLOAD_URL={url}
export KIE_API_KEY=anything</code></pre></div>"""
PANEL = """<section id="{id}" class="panel" aria-labelledby="{id}-title"><h2 id="{id}-title">{title}</h2>
{rows}</section>"""
ROW = '<li><span class="{style}" dir="auto">{text}</span><span class="quiet">{side}</span></li>'

CARD = """<li id="task-{id}" class="card" tabindex="-1" aria-labelledby="prompt-{id}">
<div class="{images_class}">{images}</div>
<p id="prompt-{id}" class="prompt" dir="auto">{prompt}</p>
<div class="facts"><span class="badge {state}">{state}</span>{progress}{facts}</div>
<div class="actions">{buttons}</div></li>"""
IMAGE = (
    """<a href="{path}"><img src="{path}" alt="Image {number}" loading="lazy" width="96" height="96"></a>"""
)
NO_IMAGE = '<span class="none">{text}</span>'
PROGRESS = '<progress data-from="{created}" max="{duration}" value="{age}" aria-label="Progress"></progress>'
SINCE = '<span>{before}<time data-since="{moment}">{span}</time>{after}</span>'
UNTIL = '<span>ends in <time data-until="{moment}">{span}</time></span>'
FACT = "<span>{text}</span>"
BUTTON = """<button type="button" id="{action}-{id}" data-post="/-/tasks/{id}/{action}" data-body="{body}"
aria-describedby="prompt-{id}">{text}</button>"""


def fragments(kie: Kie) -> dict[str, Html]:
    """All of the page but its cards, by id."""
    tasks = len(kie.all_tasks())
    return {
        "clock": fill(CLOCK, kind="Virtual time" if kie.clock == "virtual" else f"Speed ×{kie.speed:g}"),
        "counters": _counters(kie),
        "heading": fill(HEADING, count=_count(tasks)),
        "empty": fill(EMPTY, hidden=" hidden" if tasks else "", url=kie.url),
        "faults": _faults(kie),
        "submits": _submits(kie),
    }


def cards(kie: Kie, *, moving: bool = True) -> dict[str, Html]:
    """The newest tasks by the ids of their cards, the newest first.

    Without `moving`, times that pass by themselves are left out, so that equal cards compare equal.
    """
    newest = control.tasks_of(kie)[: -SHOWN_TASKS - 1 : -1]
    callbacks = control.callbacks_by_task(kie)
    return {f"task-{task.id}": _card(kie, task, callbacks.get(task.id, []), moving) for task in newest}


def _count(tasks: int) -> str:
    return f"the newest {SHOWN_TASKS} of {tasks}" if tasks > SHOWN_TASKS else f"{tasks}"


def _counters(kie: Kie) -> Html:
    accounts = kie.all_accounts()
    paid, window, looks = sum(one.paid for one in accounts), kie.windows(), kie.windows("look")
    faults = kie.faults.planned
    return fill(
        COUNTERS,
        paid=paid,
        tasks="task" if paid == 1 else "tasks",
        spent=f"{sum(one.spent for one in accounts):,g}",
        credits=f"{kie.credits:,g}",
        submits=len(kie.submits),
        refused=sum(submit.answered and submit.task_id is None for submit in kie.submits),
        per=f"{kie.per:g}",
        window=window,
        limit=kie.limit,
        window_class="over" if window > kie.limit else "",
        looks=looks,
        looks_limit=kie.looks_per_second,
        looks_class="over" if looks > kie.looks_per_second else "",
        fired=sum(planned.fired for planned in faults),
        planned=len(faults),
    )


def _panel(name: str, title: str, rows: list[Html], empty: str) -> Html:
    body = (
        fill('<ul class="rows">{rows}</ul>', rows=join(rows))
        if rows
        else fill('<p class="quiet">{text}</p>', text=empty)
    )
    return fill(PANEL, id=name, title=title, rows=body)


def _faults(kie: Kie) -> Html:
    rows = [
        fill(ROW, style="wrap", text=str(planned.fault), side=f"fired {planned.fired}×")
        for planned in kie.faults.planned
    ]
    return _panel("faults", "Faults", rows, "None is planned.")


def _submits(kie: Kie) -> Html:
    rows = [
        fill(ROW, style="text", text=_prompt(submit.request), side=submit.outcome())
        for submit in reversed(kie.submits[-SHOWN_SUBMITS:])
    ]
    return _panel("submits", "Latest submits", rows, "None has arrived.")


def _prompt(request: Mapping[str, object]) -> str:
    prompt = request.get("prompt")
    text = prompt if isinstance(prompt, str) and prompt.strip() else "(no prompt)"
    return text if len(text) <= LONGEST_PROMPT else text[:LONGEST_PROMPT] + "…"


def _card(kie: Kie, task: Task, callbacks: list[CallRecord], moving: bool) -> Html:
    now = kie.now()
    state = control.state_of(task, now)
    running = state == "running"
    progress, times = _times(task, now, moving) if running else (Html(""), [_ended(task, now, moving)])
    size = str(task.request.get("size"))
    failure = [] if state != "failed" else [f"{task.state(now).code} {task.state(now).message}"]
    looks = len(kie.looks(task.id))
    texts = [*failure, size, f"{task.price:g} credits", f"{looks} poll{'' if looks == 1 else 's'}"]
    if task.callback_url:
        statuses = [str(record.status or record.error) for record in callbacks[-4:]]
        texts.append(f"callback: {', '.join(statuses) or 'not sent'}")
    return fill(
        CARD,
        id=task.id,
        images_class="images many" if len(task.files(now)) > 1 else "images",
        images=_images(task, now),
        prompt=_prompt(task.request),
        state=state,
        progress=progress,
        facts=join([*times, *(fill(FACT, text=text) for text in texts)]),
        buttons=_buttons(task, running),
    )


def _times(task: Task, now: float, moving: bool) -> tuple[Html, list[Html]]:
    """The progress of a running task, its age, and when it ends."""
    age = now - task.created
    since = fill(
        SINCE, before="", moment=f"{task.created:.3f}", span=span(age) if moving else "", after=" old"
    )
    if task.end is None or task.end == float("inf"):
        return Html(""), [since, fill(FACT, text="never ends")]
    progress = fill(
        PROGRESS,
        created=f"{task.created:.3f}",
        duration=f"{max(task.duration, 1e-9):.3f}",
        age=f"{age:.1f}" if moving else "0",
    )
    until = fill(UNTIL, moment=f"{task.end:.3f}", span=span(task.end - now + 1) if moving else "")
    return progress, [since, until]


def _ended(task: Task, now: float, moving: bool) -> Html:
    end = task.created + task.duration
    shown = span(now - end) if moving else ""
    return fill(
        SINCE, before="ended ", moment=f"{end:.3f}", span=shown, after=f" ago, took {span(task.duration)}"
    )


def _images(task: Task, now: float) -> Html:
    paths = task.files(now)
    if not paths:
        return fill(NO_IMAGE, text="none" if task.state(now).flag else "…")
    return join([fill(IMAGE, path=f"/-{path}", number=number) for number, path in enumerate(paths, 1)])


def _buttons(task: Task, running: bool) -> Html:
    wanted = [
        (running, "end", "{}", "End"),
        (running, "fail", "{}", "Fail"),
        (running and task.end is not None, "delay", '{"seconds": 30}', "Delay 30 s"),
        (bool(task.callback_url) and task.end is not None, "callback", "{}", "Send callback"),
    ]
    return join(
        [
            fill(BUTTON, action=action, id=task.id, body=body, text=text)
            for shown, action, body, text in wanted
            if shown
        ]
    )


def document(kie: Kie) -> Html:
    """The whole page."""
    address = kie.url.removeprefix("http://")
    return fill(_file("page.html"), address=address, cards=join([*cards(kie).values()]), **fragments(kie))


# -- HTTP ------------------------------------------------------------------------------------------


class Stream:
    """What one viewer has been sent."""

    def __init__(self) -> None:
        self._sent: dict[str, Html] = {}

    def update(self, kie: Kie) -> bytes | None:
        """The event with everything that has changed since the last one; None if nothing has."""
        parts, tasks = fragments(kie), cards(kie, moving=False)
        now_shown = parts | tasks
        changed = {name for name, html in now_shown.items() if self._sent.get(name) != html}
        if not changed and now_shown.keys() == self._sent.keys():
            return None
        self._sent = now_shown
        event = {
            "now": kie.now(),
            "speed": kie.speed if kie.clock == "real" else 0,
            "fragments": {name: parts[name] for name in parts if name in changed},
            "cards": {name: tasks[name] for name in tasks if name in changed},
            "order": list(tasks),
        }
        return f"data: {json.dumps(event)}\n\n".encode()


async def _events(kie: Kie, request: web.Request) -> web.StreamResponse:
    headers = control.SAFE | {"Content-Type": "text/event-stream"}
    response, stream, quiet = web.StreamResponse(headers=headers), Stream(), 0
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):  # the viewer has left
        while request.transport is not None:
            change = kie.next_change()
            event = stream.update(kie)
            quiet = 0 if event else quiet + 1
            if event or quiet % PING == 0:
                await response.write(event or b":\n\n")
            await _until(change, virtual=kie.clock == "virtual")
    return response


async def _until(change: asyncio.Event, *, virtual: bool) -> None:
    """Wait until something has changed, or time may have changed something.

    Virtual time does not wait: a timer would drive it on for as long as the page is open.
    """
    if virtual:
        await change.wait()
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(TICK):
            await change.wait()
    await asyncio.sleep(TICK / 5)  # one event for many changes


def add_routes(app: web.Application, kie: Kie) -> None:
    """Serve the page and what it needs."""

    async def index(request: web.Request) -> web.Response:
        return web.Response(text=document(kie), content_type="text/html", headers=HEADERS)

    async def events(request: web.Request) -> web.StreamResponse:
        return await _events(kie, request)

    async def image(request: web.Request) -> web.Response:
        """Not at its own path: what the page asks for is no request of a client."""
        found = await kie.picture(f"/s/{request.match_info['name']}")
        if found is None:
            raise control.RefusedError(404, f"no image at {request.path}")
        return web.Response(body=found[0], content_type=found[1], headers=HEADERS)

    async def static(request: web.Request) -> web.Response:
        name = request.path.rpartition("/")[2]
        return web.Response(text=_file(name), content_type=FILES[name], headers=HEADERS)

    handlers = {"/": index, "/-/events": events, "/-/s/{name}": image}
    for path, handler in (handlers | {f"/-/{name}": static for name in FILES}).items():
        app.router.add_get(path, control.guarded(kie, handler))
