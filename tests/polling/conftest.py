"""The loops of this folder have exact clocks, however coarse that of the machine is."""

import pytest

from kie4o.polling import schedule


@pytest.fixture(autouse=True)
def exact_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_EARLY", 0.0)
