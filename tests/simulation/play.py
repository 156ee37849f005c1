"""A plan, played: the lives of a program one after the other, and what is known afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kie4o.errors import KieError
from kie4o.stores.memory import MemoryStore
from kie4o.stores.store import Entry, Store
from simulation.calls import Outcome
from simulation.kie import Kie, listening_socket
from simulation.loop import HangError, WorldLoop
from simulation.plan import LETTERS, Plan
from simulation.run import Run, end_coroutine_of
from simulation.store import reading_store

LIMIT = 60_000.0  # virtual seconds of a world
SHM = Path("/dev/shm")  # where fsync takes no time

Tracer = Callable[[WorldLoop, str, object], None]


class World:
    """A world while it is played, and what is known of it afterwards."""

    def __init__(self, plan: Plan, folder: Path, tracer: Tracer | None) -> None:
        self.plan = plan
        self.folder = folder
        self.tracer = tracer
        self.loop = WorldLoop(limit=LIMIT)
        self.kie = Kie(self.loop, plan, event=self.happened, note=self.note)
        self.memory = {letter: MemoryStore() for letter in LETTERS}
        self.receiving = listening_socket() if plan.http else None  # holds the port of the receiver
        self.runs: list[Run] = []
        self.outcomes: list[Outcome] = []
        self.entries: list[Entry] = []  # of all stores, at the end
        self.kept: dict[str, set[str]] = {}  # the task ids that callbacks have named, by ref
        self.reported: set[str] = set()  # the task ids in events
        self.broken: list[tuple[str, str]] = []  # laws, and how

    # -- for those who take part -----------------------------------------------------------------------

    def note(self, who: str, what: object) -> None:
        if self.tracer is not None:
            self.tracer(self.loop, who, what)

    def breaks(self, law: str, how: object) -> None:
        self.broken.append((law, str(how)))
        self.note("LAW", f"{law}: {how}")

    def happened(self, event: str, prompt: str = "") -> None:
        self.runs[-1].happened(event, prompt)

    def path_of(self, letter: str) -> Path:
        return self.folder / f"{letter}.db"

    @property
    def crashed(self) -> bool:
        return any(life.end in ("kill", "interrupt") for life in self.plan.lives)

    @property
    def disconnected(self) -> bool:
        """Whether a connection may have been refused or reset before a request."""
        return bool(self.kie.resets_at_accept or self.plan.outage)

    # -- the whole of it -------------------------------------------------------------------------------

    def play(self) -> None:
        self.loop.set_exception_handler(self._unhandled)
        try:
            self.loop.run_until_complete(self._play())
        except HangError as error:
            self.breaks("hang", error)
        finally:
            self.loop.set_exception_handler(lambda loop, context: None)  # what is dead is collected now
            self.kie.close()
            if self.receiving is not None:
                self.receiving.close()
            with contextlib.suppress(HangError):
                for run in self.runs:
                    self.loop.run_until_complete(run.bury())
                self.loop.run_until_complete(asyncio.sleep(0.01))  # closed transports close their sockets
            for task in asyncio.all_tasks(self.loop):  # some wait for a dead one when they close
                end_coroutine_of(task)
            self.loop.close()

    async def _play(self) -> None:
        plan = self.plan
        await self.kie.start()
        if plan.outage is not None:
            self.kie.spawn(self.kie.be_down(*plan.outage))
        for after, seconds in plan.steps:
            self.loop.call_later(after, self._step_clock, seconds)
        for number, life in enumerate(plan.lives):
            self.kie.life = number
            self.runs.append(Run(self, number, life))
            await self.runs[-1].live()
            self.kie.receivers.clear()
            if life.reboot:
                self.loop.kie4o_clock.restart()
            await asyncio.sleep(life.gap)
        for letter in LETTERS[: plan.clients]:
            store = self.memory[letter] if plan.store == "memory" else reading_store(self.path_of(letter))
            try:
                await self._read_store(store)
            except KieError as error:
                self.breaks("store", f"it cannot be read afterwards: {error!r}")

    def _step_clock(self, seconds: float) -> None:
        self.note("machine", f"its wall clock is set by {seconds:g} s")
        self.loop.kie4o_clock.step(seconds)

    async def _read_store(self, store: Store) -> None:
        """What the next life would find, by all the names that are known from outside."""
        await store.open()
        found = {entry.ref: entry async for entry in store.unfinished()}
        names = [{"key": call.key} for call in self.plan.calls if call.key]
        names += [{"task_id": task_id} for task_id in self.kie.tasks]
        names += [{"ref": post.ref} for post in self.kie.posts if post.ref]
        for name in names:
            entry = await store.find(**name)
            if entry is not None:
                found[entry.ref] = entry
        for ref in found:
            self.kept[ref] = set(await store.callbacks_of(ref))
        self.entries += found.values()
        await store.aclose()

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.breaks("nothing is unhandled", {name: str(value)[:300] for name, value in context.items()})


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """What was killed complains when it is collected."""
    old, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook = old


def play(plan: Plan, tracer: Tracer | None = None) -> World:
    """Play it to its end; `laws.broken` says what it has broken."""
    random.seed(plan.seed)  # the jitter of polls and resends
    with (
        _unheard(),
        tempfile.TemporaryDirectory(prefix="world-", dir=SHM if SHM.is_dir() else None) as folder,
    ):
        world = World(plan, Path(folder), tracer)
        world.play()
        if world.crashed or world.broken:
            gc.collect()
    return world
