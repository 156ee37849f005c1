"""Who is measured: one module for each client, all of the same shape.

`client(base, interval)` is an async context manager that gives `run(submitted)`: a coroutine
function that submits one task to the server at `base`, calls `submitted()` when the task is known,
looks every `interval` seconds until it has ended, and returns the image's URL. Each does it in the
way its own documentation shows, with its own defaults but for address, key and interval.
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
    """`label` for people; `package` as the index calls it, for its version; `imports` is the module
    whose import is timed. A `variant` of another entry has none, and is not measured everywhere."""

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
LEANEST = ("runware", "google-genai")  # of the peers
SETTLED = "bare, settled"  # the bare loop in a process that has freed large blocks
HIDDEN = {"twice": Entry("aiohttp, each look twice", "aiohttp")}  # a control for the tests


def load(name: str) -> Client:
    """The client of that name; raises whatever its import raises."""
    entry = (CLIENTS | HIDDEN)[name]
    module = importlib.import_module(f"{__name__}.{entry.module or name}")
    client: Client = getattr(module, entry.maker)
    return client
