"""`python -m kie4o.emulator`: the emulator for a shell, until Ctrl-C."""

import argparse
import asyncio
import contextlib
import sys

from .callbacks import CALLS
from .server import Emulator
from .tasks import ENDINGS


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m kie4o.emulator", description="A Kie on localhost.")
    parser.add_argument("--port", type=int, default=8787, help="0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--speed", type=float, default=1.0, help="emulated seconds per second")
    parser.add_argument("--duration", type=float, default=20.0, help="emulated seconds a task takes")
    parser.add_argument("--outcome", choices=ENDINGS, default="success", help="how tasks end")
    parser.add_argument("--limit", type=int, default=20, help="new tasks ...")
    parser.add_argument("--per", type=float, default=10.0, help="... in so many emulated seconds")
    parser.add_argument("--callback", choices=CALLS, default="end", help="how tasks call back")
    parser.add_argument("--webhook-key", help="signs the callbacks, which go to this machine only")
    return parser.parse_args()


async def _serve(emulator: Emulator) -> None:
    async with emulator as kie:
        print(f"A Kie on {kie.url} (Ctrl-C ends it)")
        print(f"export KIE_BASE_URL={kie.url} KIE_UPLOAD_URL={kie.url} KIE_API_KEY=anything", flush=True)
        await asyncio.Event().wait()


def main() -> None:
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_serve(Emulator(**vars(_arguments()))))
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(f"kie4o.emulator: {error}")


if __name__ == "__main__":
    main()
