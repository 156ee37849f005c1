"""Errors, warnings and log lines in words of the terminal."""

import re
import shutil
import subprocess

import attrs
import pytest

from kie4o import events
from kie4o.callbacks.receiving import unverified
from kie4o.cli.messages import in_our_words, message_of, status_of
from kie4o.cli.pauses import pause_of, wait_for_store
from kie4o.cli.terminal import Status, UsageError, command_line, program
from kie4o.errors import (
    APIConnectionError,
    ConfigurationError,
    DownloadError,
    InvalidRequestError,
    KieError,
    RateLimitError,
    StoreLockedError,
    SubmissionUnknownError,
    TaskTimeoutError,
    invalid,
    invalid_setting,
)
from kie4o.image_request import ImageRequest
from kie4o.stores.choosing import EXPECTED


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            RateLimitError("too many", code=429),
            "Kie returned 429: too many. Something else uses this account too; try again later.",
        ),
        (
            TaskTimeoutError(
                "timed out waiting for task t1; Kie does not know it yet: call client.wait('t1') to resume"
            ),
            "timed out waiting for task t1; Kie does not know it yet",
        ),
        (
            APIConnectionError("cannot connect to a.example:443 (refused)"),
            "cannot connect to a.example:443 (refused); check the network, and KIE_BASE_URL if it is set",
        ),
        (
            unverified(),
            "callbacks would not be verified: set KIE_WEBHOOK_KEY to the webhookHmacKey of kie.ai/settings, "
            "or pass --allow-unsigned",
        ),
        (
            StoreLockedError(
                "a client has the store run.db open. Waited 10 s; store_wait= sets for how long"
            ),
            "a client has the store run.db open. Waited 10 s",
        ),
        (
            invalid_setting("store", "runs/", EXPECTED),
            "invalid --store='runs/': expected a file such as run.db, or postgresql://user@host/database",
        ),
        (invalid("path", "../x", "directories"), "invalid --path='../x': expected directories"),
        (invalid("mask_url", "a.png", "a URL"), "invalid --mask='a.png': expected a URL"),
        (invalid("files_url[1]", "a.png", "a URL"), "invalid --file[1]='a.png': expected a URL"),
        (invalid("size", "16:9", "'mask_url=x'"), "invalid --size='16:9': expected 'mask_url=x'"),
        (
            invalid("wait_timeout", -1, "a number, or None for no limit"),
            "invalid --timeout=-1: expected a number",
        ),
        (DownloadError("https://example.com/?source=a is gone"), "https://example.com/?source=a is gone"),
        (DownloadError("gone; call client.download('x', ...) to try again"), "gone"),
        (
            SubmissionUnknownError("sent: check kie.ai/logs, then call client.settle('k')"),
            "sent: check kie.ai/logs",
        ),
        (FileNotFoundError(2, "No such file", "a.png"), "No such file: 'a.png'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_messages_are_about_the_command_line(error: Exception, expected: str) -> None:
    """Errors name commands and options instead of calls and arguments; values are left alone."""
    assert message_of(error) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "fallback_model has no effect without enable_fallback=True",
            "--fallback has no effect without --fallback",
        ),
        ("Kie ignores mask_url when files_url holds more", "Kie ignores --mask when --file holds more"),
        ("mask_url has no effect: pass files_url=[...]", "--mask has no effect: pass --file"),
        (
            "takes Kie's names; pass n_variants= or extra['nVariants']",
            "takes Kie's names; pass --variants or --set nVariants",
        ),
        ("the size of a prompt at a url, as prompt text", "the size of a prompt at a url, as prompt text"),
    ],
)
def test_sentences_name_options(text: str, expected: str) -> None:
    """Every argument is named as it is typed; words that only look like one stay."""
    assert in_our_words(text) == expected


def test_every_field_that_a_message_may_name_has_a_word() -> None:
    """Whatever `ImageRequest` complains of, no name of a field is left."""
    for field in attrs.fields(ImageRequest):
        if field.name in ("file_url", "extra"):
            continue
        with pytest.raises(InvalidRequestError) as caught:
            ImageRequest(**{"prompt": "x", field.name: object()})
        said = message_of(caught.value)
        assert "_" not in re.sub("<.*?>|'.*?'", "", said)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("x"), Status.USAGE),
        (InvalidRequestError("x"), Status.USAGE),
        (ConfigurationError("x"), Status.USAGE),
        (SubmissionUnknownError("x"), Status.UNKNOWN),
        (StoreLockedError("x"), Status.STORE_IN_USE),
        (KieError("x"), Status.ERROR),
        (OSError("x"), Status.ERROR),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_exit_status_of_an_error(error: Exception, status: Status) -> None:
    """By its class."""
    assert status_of(error) == status


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            events.Resent(ref_hash="abc", seconds=60.0, attempt=1, most=3, cause="455 maintenance"),
            ("Kie is under maintenance (455)", 60.0),
        ),
        (
            events.Paused(seconds=8.2, cause="the limit of 20 in 10 s is used up"),
            ("the limit of 20 in 10 s is used up", 8.2),
        ),
        (
            events.Paused(seconds=10.0, cause="Kie refused one for too many calls"),
            ("Kie refused a request for too many calls", 10.0),
        ),
        (events.Retried(seconds=2.0, cause="500 wrong"), ("500 wrong", 2.0)),
        (
            events.PollFailed(task_id="abc", seconds=5.0, cause="455 maintenance", others=3),
            ("Kie is under maintenance (455)", 5.0),
        ),
        (events.Resent(ref_hash="abc", seconds=0.5, attempt=1, most=2, cause="refused"), None),
        (events.Finished(task_id="abc", state="succeeded", seconds=42.7, source="poll"), None),
    ],
    ids=str,
)
def test_a_pause_is_found_among_the_events(event: events.Event, expected: tuple[str, float] | None) -> None:
    """Its reason and its seconds; one below a second is not worth a line."""
    assert pause_of(event) == expected


@pytest.mark.parametrize(
    ("event", "seconds"),
    [
        (events.Resent(ref_hash="abc", seconds=60.0, attempt=1, most=3, cause="455 maintenance"), 12.0),
        (events.Resent(ref_hash="abc", seconds=2.0, attempt=1, most=5, cause="429 too many"), 2.0),
        (events.PollFailed(task_id="abc", seconds=30.0, cause="500 wrong", others=3), 6.0),
        (events.Retried(seconds=30.0, cause="429 too many"), 6.0),
        (events.Paused(seconds=2.0, cause="the limit of 20 in 10 s is used up"), 2.0),
        (events.Retried(seconds=2.0, cause="500 wrong"), None),
    ],
    ids=str,
)
def test_a_pause_is_told_in_real_seconds(event: events.Event, seconds: float | None) -> None:
    """With --speed 5 a client repeats a call after a fifth of the time; its limiter has real seconds."""
    pause = pause_of(event, 5.0)
    assert (None if pause is None else pause[1]) == seconds


def test_a_store_that_is_waited_for_is_no_pause() -> None:
    """Nothing is tried after it: it may be free sooner."""
    event = events.StoreAwaited(seconds=10.0, cause="a client has the store run.db open; close it first")
    assert pause_of(event) is None
    assert wait_for_store(event) == "a client has the store run.db open; waiting up to 10 s for it"


def test_a_command_is_quoted_for_the_shell_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """A POSIX shell and one of Windows read the same words."""
    words = ["kie4o", "wait", "id", "--name", "it's a boat"]
    assert command_line(words) == """kie4o wait id --name 'it'"'"'s a boat'"""
    monkeypatch.setattr("sys.platform", "win32")
    assert command_line(words) == 'kie4o wait id --name "it\'s a boat"'


@pytest.mark.parametrize(
    ("started", "path", "expected"),
    [
        ("/venv/bin/kie4o", "/usr/bin:/venv/bin", ["kie4o"]),
        ("/venv/bin/kie4o", "/usr/bin", ["/venv/bin/kie4o"]),
        (".venv/bin/kie4o", "/usr/bin", [".venv/bin/kie4o"]),
        ("/src/kie4o/__main__.py", "", ["python3", "-m", "kie4o"]),
    ],
)
@pytest.mark.posix("paths with /")
def test_a_hint_calls_the_program_as_it_was_called(
    started: str, path: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name if the shell finds it, else by its path, or as a module."""
    monkeypatch.setattr("sys.argv", [started])
    monkeypatch.setattr("sys.orig_argv", ["python3", "-m", "kie4o"])
    monkeypatch.setenv("PATH", path)
    assert program() == expected


@pytest.mark.posix("bash")
@pytest.mark.skipif(shutil.which("bash") is None, reason="without bash")
@pytest.mark.parametrize(
    "word", ["A lake\nand a hill", "two  spaces\t", "it's \x1b[31m \\x41", "caf\u00e9\u2028"], ids=ascii
)
def test_a_command_that_is_typed_again_has_the_same_words(word: str) -> None:
    """Line ends and control characters are escaped, so that a hint is one line and changes no prompt."""
    line = command_line(["printf", "%s", word])
    assert line.isprintable()
    done = subprocess.run(["bash", "-c", line], check=True, capture_output=True)
    assert done.stdout.decode() == word
