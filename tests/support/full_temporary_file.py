"""The process whose temporary files may not grow, or that may not open one, while it runs a batch.

Three requests are sent, and a fourth waits for a slot, before SQLite needs the file: it keeps the first 2 MB
of its table in memory.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Iterator
from typing import Any

from clients import client_of
from clocks import run_scaled

from kie4o import ImageRequest, KieError, RateLimit
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore
from kie4o.stores.store import Entry, EntryState

SPEED = 20.0
FEW = [f"{number}" for number in range(4)]
LIMITS = {"full": "RLIMIT_FSIZE", "no descriptors": "RLIMIT_NOFILE"}


class Known(MemoryStore):
    """Has every key but the first four, for another request: such an item ends at once and costs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._other = Entry("other", request=ImageRequest("other"), ref="other", state=EntryState.SUCCEEDED)
        self._keys: set[str] = set()

    async def find(self, *, key: str | None = None, **other: Any) -> Entry | None:
        if key is None or key in self._keys or len(self._keys) < len(FEW):
            self._keys.update([key] if key else [])
            return await super().find(key=key, **other)
        return self._other


def prompts() -> Iterator[str]:
    yield from FEW
    for number in range(len(FEW), 100_000):
        yield f"{number}"


async def main(name: str) -> dict[str, Any]:
    import resource  # not on Windows

    limit = getattr(resource, name)
    duration, ended, finished = 1e9, 0, 0
    soft, hard = resource.getrlimit(limit)
    slots = RateLimit(3, per=600.0)
    async with (
        Emulator(clock="real", duration=lambda: duration) as kie,
        client_of(kie.url, Known(), rate_limit=slots, wait_timeout=None) as client,
    ):

        async def finish() -> None:
            """End the tasks once the batch takes no more requests."""
            nonlocal duration
            last = -1
            while last != ended:
                last = ended
                await asyncio.sleep(20.0)
            resource.setrlimit(limit, (soft, hard))
            duration = 0.0
            for task in kie.tasks.values():
                task.duration = duration

        finishing = None
        seen: dict[str, Any] = {"error": None}
        try:
            async for completion in client.generate_many(prompts()):
                ended += 1
                finished += completion.ok
                if ended == 5000:
                    resource.setrlimit(limit, (0, hard))
                    finishing = asyncio.create_task(finish())
        except KieError as error:
            seen = {"error": type(error).__name__, "message": str(error), "notes": " ".join(error.__notes__)}
        except Exception as error:
            seen = {"error": repr(error)}
        assert finishing is not None
        await finishing
        return {**seen, "finished": finished, "posts": len(kie.submits)}


if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # Python's default: the write fails instead
    print(json.dumps(run_scaled(main(LIMITS[sys.argv[1]]), SPEED)))
