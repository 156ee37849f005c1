"""The canary works: the search after every test finds each way to leak a key."""

import logging

import pytest
from canary import KEPT, WATCH

from kie4o import APIConnectionError, APIStatusError, KieError, TaskFailedError
from kie4o.wire.answers import credits_of


class Unpicklable(KieError):
    """An error that loses its facts in a pickle."""

    def __reduce__(self) -> tuple[type[KieError], tuple[str]]:
        return KieError, ("something else",)


def test_a_clean_run_has_no_leaks(api_key: str) -> None:
    """Errors and records without the key are not reported."""
    logging.getLogger("kie4o").debug("a submit with %s", len(api_key))
    TaskFailedError("task t failed", task_id="t")
    assert WATCH.leaks() == []


@pytest.mark.parametrize("name", ["kie4o", "aiohttp.client", "asyncio", "another.library"])
def test_a_key_in_a_log_record_is_seen(api_key: str, name: str) -> None:
    """In the text, in the arguments and in extra fields, at DEBUG of any logger."""
    logging.getLogger(name).debug("key " + api_key)
    assert len(WATCH.leaks()) == 1
    logging.getLogger(name).debug("headers %r", {"Authorization": api_key})
    assert len(WATCH.leaks()) == 1
    logging.getLogger(name).debug("fine", extra={"headers": api_key})
    assert len(WATCH.leaks()) == 1


def test_a_key_in_a_logged_traceback_is_seen(api_key: str) -> None:
    """The exception of a record is searched too."""
    try:
        raise ValueError(api_key)
    except ValueError:
        logging.getLogger("kie4o").exception("it broke")
    assert len(WATCH.leaks()) == 1


def test_a_key_in_a_message_is_seen(api_key: str) -> None:
    """In str, repr, args and pickle."""
    APIConnectionError(f"no answer with {api_key}")
    leaks = WATCH.leaks()
    assert any("chain" in leak for leak in leaks)
    assert any("pickle" in leak for leak in leaks)


def test_a_key_in_an_attribute_is_seen(api_key: str) -> None:
    """Attributes are searched, even those that no message shows."""
    APIStatusError("no").hint = api_key  # type: ignore[attr-defined]  # wrong on purpose
    assert WATCH.leaks()


@pytest.mark.parametrize("hidden", [False, True])
def test_a_key_in_the_context_is_seen(api_key: str, hidden: bool) -> None:
    """Even if `from None` hides it from the traceback."""

    def fail() -> None:
        try:
            raise OSError(api_key)
        except OSError:
            if hidden:
                raise KieError("failed") from None
            raise KieError("failed")  # noqa: B904  # wrong on purpose

    with pytest.raises(KieError):
        fail()
    assert any("OSError" in leak for leak in WATCH.leaks())


def test_a_key_in_a_local_variable_is_seen(api_key: str) -> None:
    """Error reporters send the local variables of each frame, so they are searched."""
    with pytest.raises(KieError):
        credits_of(401, b"nothing to read", retry_after=api_key)  # type: ignore[arg-type]  # wrong on purpose
    assert any("retry_after in credits_of" in leak for leak in WATCH.leaks())


def test_an_error_that_a_pickle_changes_is_seen() -> None:
    """A class, an argument or an attribute that is lost in a pickle is reported."""
    Unpicklable("a task", task_id="t")
    assert any("changed" in leak for leak in WATCH.leaks())


def test_the_last_errors_are_kept(api_key: str) -> None:
    """Of many errors only the last are kept and searched."""
    for _ in range(3 * KEPT):
        KieError("fine")
    KieError(api_key)
    assert len(WATCH.errors) == KEPT
    assert WATCH.leaks()
