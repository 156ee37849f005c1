"""Batches: many keyed generates, whose requests a later run finds in the store under the same keys.

`items` takes the requests of a caller one by one and gives them their keys, `batch` runs them within their
`budget`, and `resumption` waits for what an earlier run left unfinished. `completions` says what became of an
item. `tasks` owns the tasks of a run.

A batch, a resumption and their parts are plain objects, not async generators. An event loop closes every
async generator that it collects, or that is left when it ends, all at the same time: if one of them closes
another one too, that fails. The only generators are the methods of the client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch import Batch
    from .budget import Budget
    from .items import Requests
    from .resumption import Resumption

_HOMES = {"Batch": "batch", "Budget": "budget", "Requests": "items", "Resumption": "resumption"}

__all__ = ["Batch", "Budget", "Requests", "Resumption"]


def __getattr__(name: str) -> Any:
    """Loaded on first use, or when a client opens: many programs run no batch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    return value
