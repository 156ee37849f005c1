"""`kie4o demo`: generates eight pictures with the emulator."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from ..client import AsyncKieClient
from ..emulator import Emulator
from ..errors import invalid
from ..image_request import Size
from ..models import RateLimit
from ..polling.policy import GAP, PollPolicy
from .board import Board, note

_PICTURES: tuple[tuple[str, Size], ...] = (
    ("A lighthouse above a calm sea at first light", "3:2"),
    ("A fox asleep under autumn leaves, watercolour", "1:1"),
    ("A small bookshop in the rain, warm windows", "2:3"),
    ("Hot-air balloons over green hills", "3:2"),
    ("A kingfisher on a reed, macro photograph", "2:3"),
    ("A bowl of lemons on a blue table, oil on canvas", "1:1"),
    ("A night train on a viaduct under the stars", "3:2"),
    ("A tiny greenhouse full of ferns, isometric", "1:1"),
)


async def demo(*, directory: Path = Path("kie4o-demo"), speed: float = 10.0) -> None:
    """Generate eight pictures in parallel, with an emulator of Kie: free, offline, without an API key.

    Args:
        directory: Directory for the pictures.
        speed: How many times faster than real time the emulator runs.
    """
    if not 0.1 <= speed <= 1000:
        note(str(invalid("--speed", speed, "a number from 0.1 to 1000")))
        sys.exit(2)
    limit = RateLimit(20, per=10.0 / speed)
    poll = PollPolicy(first=max(GAP, 2.0 / speed), maximum=max(GAP, 5.0 / speed))

    async def generate(row: int, prompt: str, size: Size) -> Path:
        board.show(row, "submitting")
        task = await client.submit(prompt, size=size)
        board.show(row, "running")
        name = f"{row + 1:02} {prompt.partition(',')[0]}".lower().replace(" ", "-")
        [path] = await client.download(await task, directory, name=name)
        board.show(row, "saved", done=True)
        return path

    async with (
        Emulator(clock="real", speed=speed, duration=_around_20_seconds) as kie,
        AsyncKieClient("demo", base_url=kie.url, upload_url=kie.url, rate_limit=limit, poll=poll) as client,
    ):
        print(f"This is an emulator of Kie at {kie.url}, at {speed:g} times real speed.")
        print("Nothing leaves this machine, nothing is charged, and no API key is needed.", flush=True)
        with Board([prompt for prompt, _ in _PICTURES], sys.stdout) as board:
            paths = await asyncio.gather(*(generate(row, *each) for row, each in enumerate(_PICTURES)))
    print(f"{len(paths)} pictures:", *(f"  {path.absolute()}" for path in paths), sep="\n")
    print('To generate real images, set KIE_API_KEY and run: kie4o generate "A calm lake at dawn"')


def _around_20_seconds() -> float:
    return random.lognormvariate(3.0, 0.2)
