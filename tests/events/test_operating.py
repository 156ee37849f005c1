"""docs/operating.md: its tables are those of the code, and its recipe for Prometheus works."""

from __future__ import annotations

import inspect
import logging
import re
import subprocess
import sys
from collections.abc import Iterator

import attrs
import pytest
from faults import unused_port
from pages import section, table
from paths import IMPORT_ROOT
from portable import environment

from kie4o import ClientState, events
from kie4o.emulator import Emulator
from kie4o.events import Event

pytestmark = pytest.mark.once


def rows_of_events() -> Iterator[list[str]]:
    """A row for each kind of event, in the order of the source: its first sentence is what has happened."""
    modules = (events.calls, events.submits, events.tasks, events.stores)
    members = [(module.__name__, *member) for module in modules for member in vars(module).items()]
    for where, name, kind in members:
        if isinstance(kind, type) and issubclass(kind, Event) and kind.__module__ == where:
            text = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].replace("\n", " ")
            values = ", ".join(f"`{field}`" for field in kind.fields)
            yield [f"`{name}`", text, values, logging.getLevelName(kind.level)]


def test_the_table_of_events_is_that_of_the_code() -> None:
    """Each kind with its values and its level."""
    documented = table("event", "what has happened", "its values", "level").rows
    expected = list(rows_of_events())
    assert documented == expected, "\n".join(f"| {' | '.join(row)} |" for row in expected)


def test_the_table_of_the_state_is_that_of_the_code() -> None:
    """Each value, in the words of its docstring."""
    text = inspect.cleandoc(ClientState.__doc__ or "").partition("Attributes:\n")[2]
    described = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", text, re.MULTILINE)
    expected = [[f"`{name}`", " ".join(words.split())] for name, words in described]
    assert [name for name, _ in described] == [field.name for field in attrs.fields(ClientState)]
    assert table("value", "meaning").rows == expected


SERVED = """
import asyncio, sys, urllib.request
from prometheus_client import start_http_server
from kie4o import AsyncKieClient

async def main(url, port):
    start_http_server(port, addr="127.0.0.1")
    async with AsyncKieClient("key", base_url=url, on_event=dict.fromkeys(KINDS, count)) as client:
        for prompt in ("a harbour", "a policy"):
            try:
                await client.generate(prompt)
            except Exception as error:
                print(type(error).__name__, file=sys.stderr)
    print(urllib.request.urlopen(f"http://127.0.0.1:{port}").read().decode())

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def test_prometheus_scrapes_what_the_recipe_counts() -> None:
    """Two tasks, one of which fails, and one submit that is refused for too many calls."""
    [block] = section("Prometheus").blocks
    with Emulator.in_thread(clock="real", duration=0.0) as kie:
        kie.plan("a policy", outcome="policy")
        kie.next(answer=422)
        done = subprocess.run(
            [sys.executable, "-c", block.code + SERVED, kie.url, str(unused_port())],
            env=environment() | {"PYTHONPATH": str(IMPORT_ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    lines = dict(line.rpartition(" ")[::2] for line in done.stdout.splitlines() if not line.startswith("#"))
    assert lines["kie4o_credits_total"] == "6.0"
    assert lines['kie4o_refused_total{code="422"}'] == "1.0"
    assert lines['kie4o_tasks_total{state="failed"}'] == "1.0"
    assert lines["kie4o_task_seconds_count"] == "1.0"
    assert lines["kie4o_unknown_total"] == "0.0"
