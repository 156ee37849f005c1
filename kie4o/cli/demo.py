"""`kie4o demo`: generates eight pictures with the emulator."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from ..image_request import Size
from ..models import RateLimit
from .board import Board
from .parameters import OUTPUT, Out, Output
from .saving import Folder
from .terminal import command_line, program

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

Speed = Annotated[
    float,
    Parameter(
        validator=validators.Number(gte=0.1, lte=1000),
        show_default=True,
        help="How many times faster than real time the emulator runs.",
    ),
]


async def demo(*, out: Out = Path("kie4o-demo"), speed: Speed = 10.0, terminal: Output = OUTPUT) -> None:
    """Generate eight pictures in parallel, with an emulator of Kie: free, offline, without an API key."""
    from ..client import AsyncKieClient
    from ..emulator import Emulator
    from ..polling.policy import GAP, PollPolicy

    Folder(out).check()
    limit = RateLimit(20, per=10.0 / speed)
    poll = PollPolicy(first=max(GAP, 2.0 / speed), maximum=max(GAP, 5.0 / speed))

    async def generate(row: int, prompt: str, size: Size) -> Path:
        board.show(row, "waiting")
        task = await client.submit(prompt, size=size)
        board.show(row, "running")
        name = f"{row + 1:02} {prompt.partition(',')[0]}".lower().replace(" ", "-")
        [path] = await client.download(await task, out, name=name)
        board.show(row, "saved", done=True)
        return path

    async with (
        Emulator(clock="real", speed=speed, duration=_around_20_seconds) as kie,
        AsyncKieClient("demo", base_url=kie.url, upload_url=kie.url, rate_limit=limit, poll=poll) as client,
    ):
        terminal.note(f"this is an emulator of Kie at {kie.url}, at {speed:g} times real speed")
        terminal.note("nothing leaves this machine, nothing is charged, and no API key is needed")
        async with Board([prompt for prompt, _ in _PICTURES], terminal) as board:
            paths = await asyncio.gather(*(generate(row, *each) for row, each in enumerate(_PICTURES)))
    files = [str(path.absolute()) for path in paths]
    terminal.show("\n".join(files), files=files)
    terminal.note("to generate real images, set KIE_API_KEY and run the next line")
    terminal.show(command_line([*program(), "generate", "A calm lake at dawn"]) if not terminal.json else "")


def _around_20_seconds() -> float:
    return random.lognormvariate(3.0, 0.2)
