"""What commands do with several prompts or tasks at once: the failure of one is said, and harms no other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs

from ..errors import AuthenticationError, InsufficientCreditsError, KeyLimitError, KieError
from .board import Board
from .going_on import GoingOn, Item
from .messages import message_of, status_of
from .terminal import Status, Terminal

if TYPE_CHECKING:
    from ..client import AsyncKieClient
    from ..models import ImageResult

_AT_ONCE = 100  # tasks in flight, as many as a client admits
_FATAL = (AuthenticationError, InsufficientCreditsError, KeyLimitError)  # every further call would fail too
_T = TypeVar("_T", bound=Item)


@attrs.define(kw_only=True)
class Work(Generic[_T]):
    """Items that are worked on side by side."""

    items: Sequence[_T]
    client: AsyncKieClient
    going_on: GoingOn
    several: bool
    _board: Board = attrs.field(init=False)
    _fatal: KieError | None = attrs.field(init=False, default=None)
    _turns: asyncio.Semaphore = attrs.field(init=False, factory=lambda: asyncio.Semaphore(_AT_ONCE))

    @property
    def terminal(self) -> Terminal:
        return self.going_on.terminal

    async def each(self, do: Callable[[_T], Awaitable[None]]) -> Status:
        """Do something with every item, and return the exit status."""
        async with self.shown():
            await asyncio.gather(*(self.one(do, item) for item in self.items))
        return self.status()

    @contextlib.asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """The state of every item is shown inside of it."""
        async with Board([item.label for item in self.items], self.terminal) as self._board:
            yield

    def status(self) -> Status:
        """What the items came to: of a single one, that of its error."""
        statuses = [status_of(item.error) for item in self.items if item.error is not None]
        if not self.several or not statuses:
            return max(statuses, default=Status.OK)
        return Status.UNKNOWN if Status.UNKNOWN in statuses else Status.SOME_FAILED

    def state(self, item: _T, state: str, *, done: bool = False) -> None:
        """Show the state of an item."""
        self._board.show(self.items.index(item), state, done=done)

    async def save(self, item: _T, result: ImageResult | None = None) -> None:
        """Save the images of an item, and print their paths. Without a result its task is asked for it."""
        self.state(item, "saving")
        files = await self.going_on.folder.save(self.client, result or item.task_id or "", item.name)
        item.saved = True
        self.state(item, "saved", done=True)
        show_files(item, files, self.terminal, **({} if result is None else {"urls": [*result]}))

    async def one(self, do: Callable[[_T], Awaitable[None]], item: _T) -> None:
        """Do something with an item. If it fails, that is said and kept in it."""
        async with self._turns:
            try:
                if self._fatal is not None:
                    raise KieError(f"not tried: {message_of(self._fatal)}")
                await do(item)
            except KieError as error:
                self.state(item, "failed", done=True)
                self._tell(item, error)

    def _tell(self, item: _T, error: KieError) -> None:
        if isinstance(error, _FATAL):
            self._fatal = self._fatal or error
        item.error, item.task_id = error, item.task_id or error.task_id
        message = self.going_on.explained(error, item)
        where = f"{item.label}: " if self.several else ""
        self.terminal.fail(where + message, error=type(error).__name__, **item.fields())


def show_files(item: Item, files: Sequence[Path], terminal: Terminal, **more: Any) -> None:
    """Print the paths of the images of an item."""
    paths = [str(path.absolute()) for path in files]
    terminal.show("\n".join(paths), **item.fields(), **more, files=paths)
