"""The processes of the suite: the server, and one child for each measurement.

A child is a fresh interpreter that prints one line of JSON, so that measurements share no state. With two
cores or more the server runs on the last one and the children on the first. Children inherit no
credentials, no proxy and hardly any other setting.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
PATIENCE = 300.0  # seconds for one child; none needs nearly as long
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "SYSTEMROOT", "LD_LIBRARY_PATH")


class ChildError(Exception):
    """A child ended without an answer; the message is the last line of its stderr."""


def cores() -> tuple[int | None, int | None]:
    """The cores for the clients and for the server; None if there is no choice."""
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    ours = sorted(os.sched_getaffinity(0))
    return (ours[0], ours[-1]) if len(ours) > 1 else (None, None)


def environment() -> dict[str, str]:
    """The environment of a child, without proxies, nor NO_PROXY, which makes some clients cheaper."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}


def pin() -> None:
    """Pin this process to the core of the clients."""
    core, _ = cores()
    if core is not None:
        os.sched_setaffinity(0, {core})


def ask(
    module: str, *words: object, patience: float = PATIENCE, settings: Mapping[str, str] = NO_SETTINGS
) -> dict[str, Any]:
    """Run `python -m benchmarks.<module> <words>` with `settings` in its environment, and decode its last
    line of output."""
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{module}", *map(str, words)]
    try:
        ran = subprocess.run(
            command, cwd=ROOT, env=environment() | settings, capture_output=True, text=True, timeout=patience
        )
    except subprocess.TimeoutExpired as error:
        raise ChildError(f"no answer in {patience:g} s") from error
    return answer_of(ran.returncode, ran.stdout, ran.stderr)


def answer_of(status: int, printed: str, complained: str) -> dict[str, Any]:
    if status or not printed.strip():
        lines = complained.strip().splitlines() or [f"exit status {status}"]
        raise ChildError(lines[-1][:160])
    answer: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
    return answer


def call(base: str, path: str, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """Call the server: GET without `settings`, else POST them."""
    parts = urlsplit(base)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=30)
    with contextlib.closing(connection):
        if settings is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(settings))
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
    return answer


class Server:
    """The loopback server in its own process: `with Server() as server`.

    `http` is its address. `tls` is the same server over TLS, and `far` that at a round trip of
    `server.ROUND_TRIP`; both are empty if no certificate can be made here. A child whose settings are
    `trusting` trusts that.
    """

    def __enter__(self) -> Self:
        _, core = cores()
        pinned = [] if core is None else ["--core", str(core)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.server", *pinned],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        printed = self._process.stdout.readline()
        if not printed:
            self._process.wait()
            raise ChildError("the server did not start")
        found: dict[str, str] = json.loads(printed)
        self.http = found["http"]
        self.tls, self.far = found.get("tls", ""), found.get("far", "")
        self.trusting = {"SSL_CERT_FILE": found["authority"]} if "authority" in found else {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def set_server(base: str, **settings: float) -> None:
    call(base, "/__settings", settings)


def counts(base: str) -> dict[str, int]:
    return call(base, "/__counts")
