"""What the details of a task come to: images, an error, or nothing yet."""

from __future__ import annotations

import pytest

from kie4o import DownloadError, TaskDetails, TaskFailedError, TaskState
from kie4o.polling.outcome import images_of, is_final, result_of

URLS = ("https://images.example/1.png",)


@pytest.mark.parametrize(
    ("state", "urls", "final"),
    [
        (TaskState.RUNNING, (), False),
        (TaskState.RUNNING, URLS, False),  # not all of them, perhaps
        (TaskState.MISSING, (), False),
        (TaskState.SUCCEEDED, (), False),  # the record lags
        (TaskState.SUCCEEDED, URLS, True),
        (TaskState.FAILED, (), True),
        (TaskState.FAILED, URLS, True),
    ],
)
def test_which_details_are_the_last(state: TaskState, urls: tuple[str, ...], final: bool) -> None:
    """Only those of a success have images that may be taken."""
    details = TaskDetails("t", state=state, urls=urls)
    assert is_final(details) is final
    if state is TaskState.SUCCEEDED and urls:
        assert images_of(details).urls == urls
    else:
        with pytest.raises(DownloadError, match="task t has no images: ") as caught:
            images_of(details)
        assert caught.value.task_id == "t"


@pytest.mark.parametrize(
    ("code", "message", "sentence"),
    [
        (500, "no luck", "task t failed with code 500: no luck"),
        (None, "no luck", "task t failed: no luck"),
        (None, None, "task t failed: no reason given"),
    ],
)
def test_a_failure_has_its_code_and_its_words(code: int | None, message: str | None, sentence: str) -> None:
    details = TaskDetails("t", state=TaskState.FAILED, error_code=code, error_message=message)
    with pytest.raises(TaskFailedError) as caught:
        result_of(details, "poll")
    assert str(caught.value) == sentence
    assert (caught.value.task_id, caught.value.error_code) == ("t", code)
