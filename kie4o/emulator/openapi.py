"""The OpenAPI document of the emulated service, from which clients in other languages can be generated.

It is kept by hand in openapi.json, and held against the routes and the answers by tests.
"""

import json
from importlib import resources
from typing import Any


def document() -> dict[str, Any]:
    """The document, anew for each call."""
    text = resources.files("kie4o.emulator").joinpath("openapi.json").read_text("utf-8")
    return dict(json.loads(text))
