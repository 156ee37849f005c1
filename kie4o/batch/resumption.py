"""Waiting for everything that an earlier run left unfinished."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from ..errors import KieError, SubmissionUnknownError
from ..models import Completion, ImageResult
from ..stores.store import Entry, Store
from .completions import completion_of
from .items import Item
from .tasks import Tasks


class Resumption:
    """The outcome of every unfinished entry of a store: an async iterator that must be closed."""

    def __init__(self, store: Store, end_of: Callable[[Entry], Coroutine[Any, Any, ImageResult]]) -> None:
        self._store = store
        self._end_of = end_of
        self._tasks = Tasks()
        self._begun = False

    def __aiter__(self) -> Resumption:
        return self

    async def __anext__(self) -> Completion:
        if not self._begun:
            self._begun = True
            entries = [entry async for entry in self._store.unfinished()]
            for index, entry in enumerate(entries):
                item = Item(index, entry.callers_key or entry.key, entry.request)
                self._tasks.start(self._one(item, entry), "kie4o resume")
        task = await self._tasks.next()
        if task is None:
            raise StopAsyncIteration
        completion: Completion = task.result()
        return completion

    async def aclose(self) -> None:
        await self._tasks.cancel()

    async def _one(self, item: Item, entry: Entry) -> Completion:
        try:
            result = await self._end_of(entry)
            return completion_of(item, result=result, replayed=result.source == "store")
        except KieError as error:
            return completion_of(item, error=error, replayed=isinstance(error, SubmissionUnknownError))
