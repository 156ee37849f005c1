"""What `python -m kie4o.emulator` and `kie4o emulator` do: serve an emulator until Ctrl-C.

The signature of `serve` and its docstring are the options of both programs. `serving` does it, which imports
aiohttp: help and wrong options need none of it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

OutcomeName = Literal[
    "success", "partial", "no_images", "failed", "policy", "input", "create_failed", "stuck", "missing"
]
# What an error of the emulator says in terms of Python, and how both programs say it.
_ARGUMENT = re.compile(r"^(invalid )?(\w+)(?==)")
_PYTHON = re.compile(r"\ban? (?:Call|Outcome|Fault), (?:or )?(?=one of|a code)|, or a function\b")


def in_words_of_options(error: ValueError) -> str:
    """What `serve` says about an argument or a script, with the options that are typed."""
    text = _ARGUMENT.sub(lambda match: f"{match[1] or ''}--{match[2].replace('_', '-')}", str(error))
    return _PYTHON.sub("", text).replace("allow_remote=True", "--allow-remote")


async def serve(
    *,
    port: int = 8787,
    host: str = "127.0.0.1",
    allow_remote: bool = False,
    speed: float | None = None,
    script: Path | None = None,
    duration: float | None = None,
    looks: int | None = None,
    outcome: OutcomeName | None = None,
    limit: int | None = None,
    per: float | None = None,
    credits: float | None = None,  # noqa: A002  # Kie's word
    api_key: str | None = None,
    callback: str | None = None,
    webhook_key: str | None = None,
    seed: int | None = None,
    quiet: bool = False,
    openapi: bool = False,
) -> None:
    """Emulate Kie on this machine until Ctrl-C, for programs in any language. Durations are emulated seconds.

    Args:
        port: Port to listen on, 8787 by default; 0 picks a free one.
        host: Address to listen on; 0.0.0.0 is every interface.
        allow_remote: Answer other machines too, not with 403.
        speed: Emulated seconds per real second; 1 by default, up to 100 is reliable.
        script: TOML file with [settings], [[plan]] and [[fault]] tables; an option replaces a setting.
        duration: How long a task takes; 20 by default.
        looks: Status checks that end a task in place of the duration; for clients whose waits are short.
        outcome: How tasks end; success by default.
        limit: New tasks accepted in each window; 20 by default.
        per: Length of that window; 10 by default.
        credits: Balance at the start; 1000 by default. An image costs 6.
        api_key: The only key to accept; any by default.
        callback: How tasks call back; end by default.
        webhook_key: Key that signs callbacks; they are sent to this machine only.
        seed: Makes task ids, and faults with a probability, the same in every run.
        quiet: Print no line for each request.
        openapi: Print the OpenAPI document of the emulated service, and end.
    """
    settings = {
        "speed": speed,
        "duration": duration,
        "looks": looks,
        "outcome": outcome,
        "limit": limit,
        "per": per,
        "credits": credits,
        "api_key": api_key,
        "callback": callback,
        "webhook_key": webhook_key,
        "seed": seed,
    }
    from . import serving

    if openapi:
        serving.print_openapi()
        return
    address = {"host": host, "port": port, "allow_remote": allow_remote}
    given = {name: value for name, value in settings.items() if value is not None}
    await serving.serve(given, address, script=script, quiet=quiet)
