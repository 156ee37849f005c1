"""The clients that are measured, one module each, all with the same interface.

`client(base, interval)` is an async context manager that yields `run(submitted)`. This coroutine function
submits one task to the server at `base`, calls `submitted()` once the task id is known, looks every
`interval` seconds until the task has ended, and returns the URL of the image. Each client is used as its
documentation shows, with its defaults except for address, key and interval.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import attrs

Run = Callable[[Callable[[], object]], Awaitable[str]]
Client = Callable[[str, float], AbstractAsyncContextManager[Run]]

PROMPT = "a lighthouse on a cliff at dusk, oil on canvas"
SIZE = "1:1"


@attrs.frozen
class Entry:
    """`label` is shown in tables; `package` is the distribution, for its version; `imports` is the module
    whose import is timed. A `variant` of another entry times none, and skips some measurements."""

    label: str
    package: str
    imports: str = ""
    module: str = ""
    maker: str = "client"

    @property
    def variant(self) -> bool:
        return self.maker != "client"


CLIENTS = {
    "kie4o": Entry("kie4o", "kie4o"),
    "bare": Entry("aiohttp, by hand", "aiohttp", "aiohttp"),
    "tuned": Entry("aiohttp, tuned by hand", "aiohttp", "", "tuned"),
    "runware": Entry("runware-sdk", "runware-sdk", "runware"),
    "google-genai": Entry("google-genai", "google-genai", "google.genai", "google_genai"),
    "openai-aiohttp": Entry("openai on aiohttp", "openai", "", "openai", "client_on_aiohttp"),
    "openai": Entry("openai", "openai", "openai"),
    "runwayml-aiohttp": Entry("runwayml on aiohttp", "runwayml", "", "runwayml", "client_on_aiohttp"),
    "runwayml": Entry("runwayml", "runwayml", "runwayml"),
    "httpx": Entry("httpx, by hand", "httpx", "httpx"),
    "replicate": Entry("replicate", "replicate", "replicate"),
    "fal": Entry("fal-client", "fal-client", "fal_client"),
}
OURS = ("kie4o", "bare")
LEANEST = ("runware", "google-genai")  # of the other clients
TUNED = "tuned"
OPPONENTS = (TUNED, *LEANEST)  # kie4o takes turns with each of them
HIDDEN = {
    "twice": Entry("aiohttp, each look twice", "aiohttp"),  # the control, for the tests
    "kie4o-hook": Entry("kie4o with a hook", "kie4o", "", "kie4o", "client_with_hook"),
    "kie4o-metrics": Entry("kie4o with metrics", "kie4o", "", "kie4o", "client_with_metrics"),
}


def load(name: str) -> Client:
    """The client of this name; raises what its import raises."""
    entry = (CLIENTS | HIDDEN)[name]
    module = importlib.import_module(f"{__name__}.{entry.module or name}")
    client: Client = getattr(module, entry.maker)
    return client
