"""The calls of the program, and what becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import attrs

from kie4o import AsyncKieClient
from kie4o.stores.store import EntryState
from simulation.kie import Kie, Post, Task
from simulation.plan import Call


@attrs.define(eq=False)
class Outcome:
    """What became of a call."""

    call: Call
    life: int
    started_at: float | None = None
    waits_from: float | None = None  # for its task
    ended_at: float | None = None
    cancelled_at: float | None = None
    error: BaseException | None = None
    results: list[Any] = attrs.field(factory=list)
    errors: list[BaseException] = attrs.field(factory=list)
    completions: list[Any] = attrs.field(factory=list)
    task_ids: set[str] = attrs.field(factory=set)
    not_charged: list[Post] = attrs.field(factory=list)  # as it told the client

    def failed(self, error: BaseException) -> None:
        self.errors.append(error)
        self.knows(getattr(error, "task_id", None))
        for note in getattr(error, "__notes__", ()):
            if note.startswith("Task "):
                self.knows(note.split()[1])

    def knows(self, task_id: str | None) -> None:
        if task_id is not None:
            self.task_ids.add(task_id)

    def __str__(self) -> str:
        what = self.call.prompt or self.call.batch
        return f"{self.call.verb} {what} of life {self.life} -> {self.error or self.results!r}"


@attrs.frozen
class Calling:
    """One call while it is made."""

    client: AsyncKieClient
    kie: Kie
    call: Call
    outcome: Outcome

    async def make(self) -> None:
        await getattr(self, "_" + self.call.verb.replace(" ", "_"))()

    def _arguments(self) -> dict[str, Any]:
        return {
            "key": self.call.key,
            "on_unknown": self.call.on_unknown,
            "retry_failed": self.call.retry_failed,
        }

    def _timeout(self) -> dict[str, float]:
        return {} if self.call.timeout is None else {"timeout": self.call.timeout}

    async def _generate(self) -> None:
        more = self._arguments() | self._timeout()
        if self.call.on_update:
            more["on_update"] = lambda details: asyncio.sleep(0.05)
        result = await self.client.generate(self.call.prompt, **more)
        self.outcome.results.append(result)
        self.outcome.knows(result.task_id)

    async def _submit_only(self) -> Any:
        task = await self.client.submit(self.call.prompt, **self._arguments())
        self.outcome.knows(task.id)
        self.outcome.results.append(task)
        return task

    async def _submit(self) -> None:
        task = await self._submit_only()
        self.outcome.waits_from = _now()
        self.outcome.results[:] = [await task.wait(**self._timeout())]

    async def _generate_many(self) -> None:
        async def lazily() -> AsyncGenerator[str]:
            for item in self.call.items:
                await asyncio.sleep(0.01)
                yield item

        completions = self.client.generate_many(
            lazily() if self.call.lazy else self.call.items,
            batch=self.call.batch,
            max_in_flight=self.call.max_in_flight,
            on_unknown=self.call.on_unknown,
            retry_failed=self.call.retry_failed,
        )
        async with contextlib.aclosing(completions):
            if self.call.stop_after != 0:
                await self._take(completions, self.call.stop_after)

    async def _resume(self) -> None:
        async with contextlib.aclosing(self.client.resume()) as completions:
            await self._take(completions, None)

    async def _take(self, completions: AsyncGenerator[Any], most: int | None) -> None:
        async for completion in completions:
            self.outcome.completions.append(completion)
            self.outcome.knows(completion.task_id)
            if completion.ok:
                self.outcome.results.append(completion.result)
            else:
                self.outcome.failed(completion.error)
            if len(self.outcome.completions) == most:
                break

    def _tasks(self) -> list[Task]:
        """Two tasks that this client has submitted in this life or an earlier one."""
        return [task for task in self.kie.tasks.values() if task.prompt[0] == self.call.letter][-2:]

    async def _details(self) -> None:
        for task in self._tasks():
            for _ in range(4):  # as fast as it admits
                await self.client.details(task.id)

    async def _wait(self) -> None:
        for task in self._tasks():
            self.outcome.waits_from = _now()
            self.outcome.results.append(await self.client.wait(task.id, **self._timeout()))

    async def _updates(self) -> None:
        for task in self._tasks():
            self.outcome.waits_from = _now()
            async with contextlib.aclosing(self.client.task(task.id).updates(**self._timeout())) as updates:
                async for _ in updates:
                    pass

    async def _deliver(self) -> None:
        for task in self._tasks():
            if task.ref is not None:
                body, headers = self.kie.callback_of(task), self.kie.signature_of(task.id)
                await self.client.deliver(self.client.parse_callback(body, headers, ref=task.ref))

    async def _unfinished(self) -> None:
        async for entry in self.client.unfinished():
            self.outcome.knows(entry.task_id)

    async def _settle(self) -> None:
        """A person looks at Kie's logs, and finds the one submit of this prompt, or that there was none."""
        async for entry in self.client.unfinished():
            posts = [post for post in self.kie.posts if post.prompt == entry.request.prompt]
            if entry.state is EntryState.UNKNOWN and len(posts) == 1:
                [post] = posts
                finding = {"task_id": post.task.id} if post.task else {"charged": False}
                if not post.task:
                    self.outcome.not_charged.append(post)
                settled = await self.client.settle(entry, **finding)
                self.outcome.knows(settled.task_id)


def _now() -> float:
    return asyncio.get_running_loop().time()
