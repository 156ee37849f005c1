"""What an import costs: CPU time of fresh interpreters, minus that of one that imports nothing.

CPU time is used because wall-clock time would include other processes on the machine; with warm caches the
two agree. The interpreters are isolated (-I). Everything is imported once before, to compile its bytecode.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from .clients import CLIENTS, OURS
from .processes import ROOT, ChildError, cores, environment

NOTHING = "bare Python"
PARTS = "aiohttp, attrs, cattrs"  # the dependencies of kie4o
READY = "kie4o, a client ready to send"
CODES = {
    NOTHING: "pass",
    "kie4o": "import kie4o",
    "kie4o.callbacks": "import kie4o.callbacks",
    READY: "from kie4o import AsyncKieClient; AsyncKieClient('key', base_url='http://127.0.0.1:9')",
    PARTS: "import aiohttp, attrs, cattrs",
}
# From the start to the first image, so that modules that are imported late are included.
FIRST = """
import asyncio, sys
from benchmarks.clients import load
async def main():
    async with load({name!r})({base!r}, 0.01) as run:
        await run(lambda: None)
asyncio.run(main())
"""


def name_of(client: str) -> str:
    """The name of a client's import in the results."""
    return READY if client == "kie4o" else CLIENTS[client].imports


def codes(names: Sequence[str], base: str) -> dict[str, str]:
    """The programs to run, by name."""
    others = [CLIENTS[name].imports for name in names if CLIENTS[name].imports]
    ours = {f"{CLIENTS[name].label}, first image": name for name in OURS if name in names}
    return (
        CODES
        | {module: f"import {module}" for module in others}
        | {label: FIRST.format(name=name, base=base) for label, name in ours.items()}
    )


def once(code: str) -> float:
    """User and system time of one interpreter, in milliseconds."""
    core, _ = cores()
    place = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    process = subprocess.Popen(
        [sys.executable, "-I", "-W", "ignore", "-c", place + code],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),
    )
    assert process.stderr is not None
    complaint = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # otherwise Popen would wait for it again
    process.stderr.close()
    if status:
        raise ChildError((complaint.strip().splitlines() or ["it failed"])[-1][:160])
    return 1e3 * (usage.ru_utime + usage.ru_stime)
