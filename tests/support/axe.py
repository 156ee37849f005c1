"""axe-core, which finds what keeps people from using a page. It comes with a package of the tests."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from browser import Page

_PACKAGES = ("axe_playwright_python", "axe_core_python")  # either has it; the first is the newer one


def _script() -> Path | None:
    for name in _PACKAGES:
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:
            return Path(spec.origin).with_name("axe.min.js")
    return None


AXE = _script()
NO_AXE = "needs axe-core (pip install axe-core-python)"


async def violations(page: Page) -> list[str]:
    """What axe-core finds wrong with the page as it is shown now: the rule and where."""
    assert AXE is not None
    await page.run(AXE.read_text("utf-8") + "; 0")
    found: list[dict[str, Any]] = await page.run("axe.run().then(results => results.violations)")
    return [f"{rule['id']}: {node['html'][:200]}" for rule in found for node in rule["nodes"]]
