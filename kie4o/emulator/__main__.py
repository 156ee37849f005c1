"""`python -m kie4o.emulator`: runs an emulator until Ctrl-C and prints the variables that point to it."""

import argparse
import asyncio
import contextlib
import shlex
import sys

from .callbacks import CALLS
from .server import Emulator
from .tasks import OUTCOMES


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m kie4o.emulator",
        description="Emulate Kie on this machine. Durations are emulated seconds.",
    )
    parser.add_argument("--port", type=int, default=8787, help="port to listen on; 0 picks a free one")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is all")
    parser.add_argument("--allow-remote", action="store_true", help="answer other machines too, not with 403")
    parser.add_argument("--speed", type=float, default=1.0, help="emulated seconds per real second")
    parser.add_argument("--duration", type=float, default=20.0, help="how long a task takes")
    parser.add_argument("--outcome", choices=OUTCOMES, default="success", help="how tasks end")
    parser.add_argument("--limit", type=int, default=20, help="new tasks accepted in each window")
    parser.add_argument("--per", type=float, default=10.0, help="length of that window")
    parser.add_argument("--callback", choices=CALLS, default="end", help="how tasks call back")
    parser.add_argument("--webhook-key", help="key that signs callbacks; they are sent to this machine only")
    return parser.parse_args()


async def _serve(emulator: Emulator) -> None:
    async with emulator as kie:
        whom = "any machine" if kie.allow_remote else "this machine only (--allow-remote serves others)"
        print(f"Kie emulator at {kie.url} for {whom}; press Ctrl-C to stop")
        webhook = "" if kie.webhook_key is None else f" KIE_WEBHOOK_KEY={shlex.quote(str(kie.webhook_key))}"
        print(
            f"export KIE_BASE_URL={kie.url} KIE_UPLOAD_URL={kie.url} KIE_API_KEY=anything{webhook}",
            flush=True,
        )
        await asyncio.Event().wait()


def main() -> None:
    """Run the program. A setting or a port that cannot be used is one line on stderr and status 1."""
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_serve(Emulator(clock="real", **vars(_arguments()))))
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(f"kie4o.emulator: {error}")


if __name__ == "__main__":
    main()
