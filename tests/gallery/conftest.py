"""The folder that the tests of the page share."""

from pathlib import Path

import pytest
from runs import RECORDS, write_run

from kie4o.gallery.folder import keep_command
from kie4o.gallery.page import write_gallery


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with its page. Not to be changed."""
    folder = write_run(tmp_path_factory.mktemp("sea and hills"), RECORDS)
    keep_command(folder, "kie4o batch prompts.txt --out . --retry-failed")
    write_gallery(folder, title="sea-and-hills")
    return folder
