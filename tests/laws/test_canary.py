"""The canary sings: each way to leak a key is seen by the scan that follows every test."""

import logging

import pytest
from canary import KEPT, WATCH

from kie4o import APIConnectionError, APIStatusError, KieError, TaskFailedError
from kie4o.wire.answers import credits_of


class Unpicklable(KieError):
    """Loses what it knows in a pickle."""

    def __reduce__(self) -> tuple[type[KieError], tuple[str]]:
        return KieError, ("something else",)


def test_a_clean_run_has_no_leaks(api_key: str) -> None:
    """Errors and records that do not hold the key are not reported."""
    logging.getLogger("kie4o").debug("a submit with %s", len(api_key))
    TaskFailedError("task t failed", task_id="t")
    assert WATCH.leaks() == []


@pytest.mark.parametrize("name", ["kie4o", "aiohttp.client", "asyncio", "somebody.else"])
def test_a_key_in_a_log_record_is_seen(api_key: str, name: str) -> None:
    """At DEBUG of any logger, in the text and in the arguments."""
    logging.getLogger(name).debug("key " + api_key)
    assert len(WATCH.leaks()) == 1
    logging.getLogger(name).debug("headers %r", {"Authorization": api_key})
    assert len(WATCH.leaks()) == 1
    logging.getLogger(name).debug("fine", extra={"headers": api_key})
    assert len(WATCH.leaks()) == 1


def test_a_key_in_a_logged_traceback_is_seen(api_key: str) -> None:
    """The exception that goes with a record is part of it."""
    try:
        raise ValueError(api_key)
    except ValueError:
        logging.getLogger("kie4o").exception("it broke")
    assert len(WATCH.leaks()) == 1


def test_a_key_in_a_message_is_seen(api_key: str) -> None:
    """In str, repr, args and pickle alike."""
    APIConnectionError(f"no answer with {api_key}")
    leaks = WATCH.leaks()
    assert any("chain" in leak for leak in leaks)
    assert any("pickle" in leak for leak in leaks)


def test_a_key_in_an_attribute_is_seen(api_key: str) -> None:
    """Facts travel with the error, also those that no message shows."""
    APIStatusError("no").hint = api_key  # type: ignore[attr-defined]  # wrong on purpose
    assert WATCH.leaks()


@pytest.mark.parametrize("hidden", [False, True])
def test_a_key_in_the_context_is_seen(api_key: str, hidden: bool) -> None:
    """Also where `from None` hides it from the usual traceback."""

    def fail() -> None:
        try:
            raise OSError(api_key)
        except OSError:
            if hidden:
                raise KieError("failed") from None
            raise KieError("failed")  # noqa: B904  # the leak that is wanted here

    with pytest.raises(KieError):
        fail()
    assert any("OSError" in leak for leak in WATCH.leaks())


def test_a_key_in_a_local_of_ours_is_seen(api_key: str) -> None:
    """Error reporters send the local variables of each frame."""
    with pytest.raises(KieError):
        credits_of(401, b"nothing to read", retry_after=api_key)  # type: ignore[arg-type]  # wrong on purpose
    assert any("retry_after in credits_of" in leak for leak in WATCH.leaks())


def test_an_error_that_does_not_pickle_as_it_is_is_seen() -> None:
    """A class, an argument or an attribute that gets lost is reported."""
    Unpicklable("a task", task_id="t")
    assert any("changed" in leak for leak in WATCH.leaks())


def test_the_last_errors_are_kept(api_key: str) -> None:
    """A flood of errors costs little; the last ones are searched."""
    for _ in range(3 * KEPT):
        KieError("fine")
    KieError(api_key)
    assert len(WATCH.errors) == KEPT
    assert WATCH.leaks()
