"""What Kie's words say where its codes say less: its own messages, and public reports of others."""

import time

import pytest

from kie4o import SubmissionUnknownError, UnexpectedResponseError
from kie4o.emulator.tasks import MESSAGES
from kie4o.wire.words import cause_of, in_brief, say_credits_are_insufficient, say_input_image, say_policy

REFUNDED = MESSAGES[531]


@pytest.mark.parametrize(
    ("message", "insufficient"),
    [
        (MESSAGES[402], True),
        ("Credits insufficient", True),
        ("Insufficient credits. Please recharge", True),
        ("Your balance is not enough", True),
        ("your current balance isn’t enough to run this request", True),
        ("The balance is too low", True),
        (REFUNDED, False),
        ("This field is required", False),
        ("insufficient permissions", False),
        ("", False),
        ("Insufficient capacity; your credits will be refunded", False),
        ("Credits insufficient; the credits of this task were refunded", False),
        ("The balance was charged, but there are not enough workers", False),
        *((message, False) for code, message in MESSAGES.items() if code != 402),
    ],
)
def test_credits(message: str, insufficient: bool) -> None:
    assert say_credits_are_insufficient(message) is insufficient


@pytest.mark.parametrize(
    ("message", "policy", "image"),
    [
        ("Your content was flagged by OpenAI as violating content policies", True, False),
        ("The prompt was rejected by the safety system", True, False),
        ("Content moderation: prohibited", True, False),
        ("The image exceeds 26,214,400 bytes", False, True),
        ("invalid_image_format", False, True),
        ("Unable to download image from the provided filesUrl", False, True),
        (MESSAGES[451], False, True),
        ("Image format is not supported", False, True),
        ("The picture was flagged by our content policy", True, False),
        ("GPT 4O failed to edit the picture", False, False),
        ("internal error, please try again later.", False, False),
        ("You do not have access permissions", False, False),
        ("The parameter is not in a valid JSON format", False, False),
        ("", False, False),
    ],
)
def test_why_a_task_failed(message: str, policy: bool, image: bool) -> None:
    assert (say_policy(message), say_input_image(message)) == (policy, image)


def test_a_cause_has_nothing_of_a_prompt() -> None:
    """The errors of submits go on with ref and prompt, those of answers with an excerpt."""
    unknown = SubmissionUnknownError("the outcome is unknown. It is 'a prompt' (ref r-1): check", ref="r-1")
    assert cause_of(unknown) == "the outcome is unknown. It is 'a prompt' (ref ..."
    assert cause_of(SubmissionUnknownError("the outcome is unknown")) == "the outcome is unknown"
    unreadable = UnexpectedResponseError("data.taskId: a prompt", http_status=200)
    assert cause_of(unreadable) == "unreadable answer with HTTP status 200"


def test_long_words_are_read_once() -> None:
    """The time grows with the length, not with its square: 200,000 letters took two minutes."""
    start = time.process_time()
    assert in_brief(None, "a" * 200_000) == "a" * 119 + "…"
    assert in_brief(500, "see " + "a" * 30 + "://h/secret?x=1, please").endswith("..., please")
    assert time.process_time() - start < 5
