"""How much a program does, in function calls: what else the machine does changes CPU time, and not these."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from paths import IMPORT_ROOT

COUNTED = """
import sys

calls = 0

def count(frame, event, argument):
    global calls
    calls += event in ("call", "c_call")

program = compile(sys.argv.pop(1), "program", "exec")
sys.setprofile(count)
try:
    exec(program, {"__name__": "__main__"})
finally:
    sys.setprofile(None)
    print(calls, file=sys.stderr)
"""


def calls(
    program: str, *arguments: str, folder: Path = IMPORT_ROOT, settings: Mapping[str, str] | None = None
) -> int:
    """Calls of functions, in Python or C, by the main thread of a process that runs a program."""
    # The first run compiles what it imports: that is not counted.
    for _ in range(2):
        run = subprocess.run(
            [sys.executable, "-c", COUNTED, program, *arguments],
            cwd=folder,
            env=os.environ | (settings or {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=True,
        )
    return int(run.stderr.split()[-1])
