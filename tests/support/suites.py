"""Test suites as users write them, run by pytest in another process and another folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import attrs
from paths import IMPORT_ROOT

OURS = "kie4o.pytest_plugin"
QUIET = {"asyncio_default_fixture_loop_scope": "function"}  # without it pytest-asyncio warns


@attrs.frozen
class Run:
    """What pytest said."""

    out: str

    @property
    def counts(self) -> dict[str, int]:
        """How many tests passed, failed and so on."""
        last = self.out.rstrip().rpartition("\n")[2]
        return {
            kind.removesuffix("s"): int(count) for count, kind in re.findall(r"(\d+) (\w+?)(?=,| in)", last)
        }


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(textwrap.dedent(text), "utf-8")


def install(folder: Path) -> None:
    """Let pytest find the plugin in this folder as in an installed kie4o: by the entry point."""
    metadata = folder / "kie4o-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kie4o\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(f"[pytest11]\nkie4o = {OURS}\n")


def run_suite(
    folder: Path,
    files: Mapping[str, str],
    *options: str,
    plugins: tuple[str, ...] = ("asyncio", OURS),
    settings: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Run:
    """Run these files in a folder, with these plugins only; `settings` are those of pytest."""
    lines = [f"{name} = {value}" for name, value in (settings or {}).items()]
    if "asyncio" in str(plugins):
        lines += [f"{name} = {value}" for name, value in QUIET.items()]
    ini = "\n".join(["[pytest]", "addopts = --strict-markers", "filterwarnings = error", *lines])
    write(folder, files | {"pytest.ini": ini})
    loaded = [argument for name in plugins for argument in ("-p", name)]
    command = [sys.executable, "-m", "pytest", *loaded, "-p", "no:cacheprovider", "-rA", *options]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("KIE_", "PYTEST_"))}
    paths = {"PYTHONPATH": str(IMPORT_ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=clean | paths | dict(environment or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    return Run(done.stdout + done.stderr)
