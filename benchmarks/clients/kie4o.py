"""kie4o, as its README shows it, without limits and delays."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs

from kie4o import AsyncKieClient, PollPolicy, RateLimit, events
from kie4o.polling import policy as pacing
from kie4o.polling import poller as polling

from . import PROMPT, SIZE, Run

ENOUGH = 10**6  # more than any measurement needs
_COUNTS: Counter[type[events.Event]] = Counter()


def unpaced(interval: float) -> PollPolicy:
    """A policy that looks every `interval` seconds, however short that is.

    Only this function changes internals: kie4o never looks at one task more often than every 0.34 s, and the
    other clients have no such bound. Comparing what a look costs requires that all look as fast as they can,
    so the bound is removed in this process.
    """
    for module in (pacing, polling):
        if hasattr(module, "GAP"):
            setattr(module, "GAP", 0.0)  # noqa: B010  # to type checkers it is a constant
    settings: dict[str, Any] = {"first": interval, "factor": 1.0, "maximum": interval, "jitter": False}
    if "looks_per_second" in attrs.fields_dict(PollPolicy):  # over all tasks
        settings["looks_per_second"] = float(ENOUGH)
    return PollPolicy(**settings)


def client(base: str, interval: float) -> AbstractAsyncContextManager[Run]:
    return _client(base, interval)


def client_with_hook(base: str, interval: float) -> AbstractAsyncContextManager[Run]:
    """With a hook that counts all events."""
    return _client(base, interval, on_event=_count)


def client_with_metrics(base: str, interval: float) -> AbstractAsyncContextManager[Run]:
    """With a hook that counts what the recipe for Prometheus does."""
    kinds = (events.Submitted, events.Refused, events.Unknown, events.Paused, events.Finished)
    return _client(base, interval, on_event=dict.fromkeys(kinds, _count))


def _count(event: events.Event) -> None:
    _COUNTS[type(event)] += 1


@asynccontextmanager
async def _client(base: str, interval: float, **more: Any) -> AsyncIterator[Run]:
    async with AsyncKieClient(
        "key",
        base_url=base,
        rate_limit=RateLimit(ENOUGH, per=0.001),
        poll=unpaced(interval),
        max_in_flight=ENOUGH,
        **more,
    ) as kie:

        async def run(submitted: Callable[[], object]) -> str:
            task = await kie.submit(PROMPT, size=SIZE)
            submitted()
            result = await task
            return result.urls[0]

        yield run
