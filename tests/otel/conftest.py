"""Tasks that are short, where time is real too."""

import pytest

from kie4o.emulator import Emulator


@pytest.fixture
def kie(kie: Emulator) -> Emulator:
    kie.duration = 0.4
    return kie
