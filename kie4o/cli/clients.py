"""Where every command gets its client."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, StoreError, StoreLockedError
from ..settings import KEY_VARIABLES
from ..stores.choosing import is_shared
from .inputs import expanded
from .terminal import Terminal, UsageError

if TYPE_CHECKING:
    from ..client import AsyncKieClient
    from ..events import Event

_PATIENCE = 0.5  # seconds until it is said that the end takes a while


def new_client(*, offline: bool = False, **settings: Any) -> AsyncKieClient:
    """A client with the key of the environment, which is the only way to pass one here.

    `offline` is for what only reads the store: it needs no key, unless several accounts are in the store.
    """
    from ..client import AsyncKieClient

    if not any(os.environ.get(name, "").strip() for name in KEY_VARIABLES):
        if not offline or is_shared(settings.get("store")):
            raise ConfigurationError("no API key; create one at kie.ai/api-key and set KIE_API_KEY")
        settings["api_key"] = "offline"
    return AsyncKieClient(**settings)


@contextlib.asynccontextmanager
async def opened(
    terminal: Terminal, *, offline: bool = False, **settings: Any
) -> AsyncIterator[AsyncKieClient]:
    """A client that is open inside of the block. While nothing happens, it is said why; also if closing it
    after Ctrl-C takes a while. Raises `UsageError` if the file of its store cannot be used."""
    from .pauses import pause_of, wait_for_store

    def show(event: Event) -> None:
        if (waiting := wait_for_store(event)) is not None:
            terminal.note(waiting)
        elif (pause := pause_of(event, terminal.speed)) is not None:
            terminal.pause(*pause)

    client = new_client(offline=offline, speed=terminal.speed, on_event=show, **settings)
    said = "stopping: waiting for the answers to what was sent; Ctrl-C again stops at once"
    with contextlib.ExitStack() as closed:
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(client)
            except StoreError as error:
                if isinstance(error, StoreLockedError) or is_shared(settings.get("store")):
                    raise
                raise UsageError(str(error)) from None
            try:
                yield client
            except asyncio.CancelledError:
                loop = asyncio.get_running_loop()
                closed.callback(loop.call_later(_PATIENCE, terminal.note, said).cancel)
                raise


def existing_store(store: str) -> str:
    """A store whose file must be there: a command that only reads it would create an empty one."""
    if not is_shared(store) and not expanded(Path(store), "--store").is_file():
        raise UsageError(f"invalid --store '{store}': expected the file of an earlier run")
    return store
