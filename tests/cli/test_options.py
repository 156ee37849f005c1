"""The fields of a request as options and as columns."""

import subprocess
import sys

import attrs
import pytest
from paths import IMPORT_ROOT

from kie4o.cli.options import OPTIONS, column, extra_of
from kie4o.cli.terminal import UsageError
from kie4o.image_request import ImageRequest

NEW_FIELD = """
import attrs, sys
from kie4o import image_request

@attrs.frozen(kw_only=True)
class ImageRequest(image_request.ImageRequest):
    '''A later version.

    Attributes:
        guidance_scale: How closely to follow the prompt.
            More about it.
        seed: Makes it repeatable.
    '''
    guidance_scale: float | None = None
    seed: int | None = None

image_request.ImageRequest = ImageRequest
from kie4o.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


def test_every_field_is_an_option() -> None:
    """Under a shorter name where it has one; the prompt, --set and what is implied or deprecated are not."""
    assert {option.field: option.flag for option in OPTIONS} == {
        "size": "--size",
        "files_url": "--file",
        "mask_url": "--mask",
        "n_variants": "--variants",
        "callback_url": "--callback-url",
        "is_enhance": "--enhance",
        "upload_cn": "--upload-cn",
        "fallback_model": "--fallback",
    }
    others = {field.name for field in attrs.fields(ImageRequest)} - {option.field for option in OPTIONS}
    assert others == {"prompt", "enable_fallback", "file_url", "extra"}


@pytest.mark.once
def test_a_new_field_appears_by_itself() -> None:
    """In the help, with its description, and as an option that is checked."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", NEW_FIELD, *arguments]
        return subprocess.run(words, cwd=IMPORT_ROOT, capture_output=True, text=True, check=False)

    shown = run("generate", "--help").stdout
    assert "--guidance-scale" in shown
    assert "How closely to follow the prompt." in shown
    assert "--seed" in shown
    refused = run("generate", "A", "--seed", "x")
    assert refused.returncode == 2
    assert "--seed" in refused.stderr


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("size", "3:2", "3:2"),
        ("n_variants", "4", 4),
        ("variants", " 2 ", 2),
        ("nVariants", "1", 1),
        ("isEnhance", "TRUE", True),
        ("enhance", "no", False),
        ("filesUrl", "https://a/b.png  https://a/c.png", ("https://a/b.png", "https://a/c.png")),
        ("callBackUrl", "https://me.example/{ref}", "https://me.example/{ref}"),
        ("fallback", "gpt_image_1", "GPT_IMAGE_1"),
    ],
)
def test_a_column_is_parsed(name: str, text: str, value: object) -> None:
    """Under our name, Kie's, or that of the option."""
    option = column(name)
    assert option is not None
    assert option.parse(text) == value


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("n_variants", "3", "invalid n_variants '3': expected one of 1, 2, 4"),
        ("is_enhance", "maybe", "invalid is_enhance 'maybe': expected true or false"),
    ],
)
def test_a_wrong_cell_says_what_is_allowed(name: str, text: str, message: str) -> None:
    """The name of the column, the value, and the allowed ones."""
    option = column(name)
    assert option is not None
    with pytest.raises(UsageError, match=message):
        option.parse(text)


def test_other_columns_are_none() -> None:
    """What is no field is left to the caller."""
    assert column("key") is None
    assert column("prompt") is None


def test_set_reads_json() -> None:
    """A value that is JSON is taken as such, anything else as text."""
    given = extra_of(["seed=5", "style=vivid", 'tags=["a"]', "size=16:9", "on=true", "empty="])
    assert given == {"seed": 5, "style": "vivid", "tags": ["a"], "size": "16:9", "on": True, "empty": ""}
