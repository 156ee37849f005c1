"""The tree of errors: as drawn, with remedies, and whole after a pickle."""

import ast
import copy
import inspect
import pickle
import re
from typing import Any

import pytest
from paths import PACKAGE

import kie4o
from kie4o import errors
from kie4o.details import TaskDetails, TaskState
from kie4o.errors import (
    ERROR_OF_CODE,
    APIStatusError,
    KieError,
    TaskError,
    TaskFailedError,
    UnexpectedResponseError,
)
from kie4o.wire.envelope import status_error, unreadable

# Each class and its parent, independent of the module.
TREE = {
    "KieError": None,
    "ConfigurationError": "KieError",
    "InvalidRequestError": "KieError",
    "APIConnectionError": "KieError",
    "APITimeoutError": "APIConnectionError",
    "UnexpectedResponseError": "KieError",
    "APIStatusError": "KieError",
    "BadRequestError": "APIStatusError",
    "AuthenticationError": "APIStatusError",
    "InsufficientCreditsError": "APIStatusError",
    "PermissionDeniedError": "APIStatusError",
    "NotFoundError": "APIStatusError",
    "UnprocessableEntityError": "APIStatusError",
    "RateLimitError": "APIStatusError",
    "KeyLimitError": "APIStatusError",
    "ImageUnavailableError": "APIStatusError",
    "MaintenanceError": "APIStatusError",
    "InternalServerError": "APIStatusError",
    "FeatureDisabledError": "APIStatusError",
    "QueueFullError": "APIStatusError",
    "SubmissionUnknownError": "KieError",
    "TaskError": "KieError",
    "TaskFailedError": "TaskError",
    "ContentPolicyError": "TaskFailedError",
    "InputImageError": "TaskFailedError",
    "NoImagesError": "TaskError",
    "TaskNotFoundError": "TaskError",
    "TaskTimeoutError": "TaskError",
    "CreditLimitError": "KieError",
    "CallbackError": "KieError",
    "MalformedCallbackError": "CallbackError",
    "InvalidSignatureError": "CallbackError",
    "DownloadError": "KieError",
    "StoreError": "KieError",
    "StoreLockedError": "StoreError",
    "KeyConflictError": "StoreError",
}
ALSO = {
    "ConfigurationError": ValueError,
    "InvalidRequestError": ValueError,
    "APITimeoutError": TimeoutError,
    "TaskTimeoutError": TimeoutError,
}
CLASSES: dict[str, type[KieError]] = {
    name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, KieError)
}
DETAILS = TaskDetails("t", state=TaskState.FAILED, error_code=400, raw={"paramJson": "{}"})
FACTS: dict[str, Any] = {
    **dict.fromkeys(["task_id", "ref", "key", "path", "excerpt"], "abc"),
    **dict.fromkeys(["code", "http_status", "error_code"], 400),
    "retry_after": 7.0,
    "details": DETAILS,
}


def drawn_tree(drawing: str) -> dict[str, str | None]:
    """Class and parent as an ASCII tree draws them: branches by their column, siblings on one line."""
    above: dict[int, str] = {}
    tree: dict[str, str | None] = {}
    for line in drawing.splitlines():
        names = re.findall(r"\b[A-Z]\w*Error\b", re.sub(r"\((?:ValueError|TimeoutError)\)", "", line))
        if not names:
            continue
        column = line.index(names[0])
        above = {at: name for at, name in above.items() if at < column}
        for name in names:
            tree[name] = above[max(above)] if above else None
        above[column] = names[-1]
    return tree


def test_the_tree_is_as_drawn() -> None:
    """The classes, the drawing at the top of the module and `TREE` are the same."""
    assert {name: kind.__bases__[0].__name__ for name, kind in CLASSES.items()} == {
        name: parent or "Exception" for name, parent in TREE.items()
    }
    drawing = (errors.__doc__ or "").partition("KieError\n")
    assert drawn_tree(drawing[1] + drawing[2].partition("\n\n")[0]) == TREE


def test_control_the_drawing_is_read() -> None:
    """Control: a class that is drawn elsewhere is seen."""
    drawing = "KieError\n├─ AError\n│  └─ BError · CError\n└─ DError (ValueError)\n   └─ EError"
    tree = drawn_tree(drawing.replace("Kie", "Root"))
    expected = {"AError": "RootError", "BError": "AError", "CError": "AError", "DError": "RootError"}
    assert tree == {"RootError": None, "EError": "DError"} | expected


@pytest.mark.parametrize("name", CLASSES)
def test_bases_that_programs_know(name: str) -> None:
    """Invalid arguments are ValueErrors, timeouts are TimeoutErrors, and nothing else is either."""
    for base in (ValueError, TimeoutError, OSError):
        expected = name in ALSO and issubclass(ALSO[name], base)
        assert issubclass(CLASSES[name], base) is expected


@pytest.mark.parametrize("name", CLASSES)
def test_every_error_is_public_and_described(name: str) -> None:
    """Each is in the root, with a docstring of its own that is a sentence."""
    kind = CLASSES[name]
    assert getattr(kie4o, name) is kind
    assert kind.__doc__
    assert kind.__doc__ != (kind.__bases__[0].__doc__ or "")
    assert kind.__doc__.rstrip().endswith((".", "`"))


def full(kind: type[KieError]) -> KieError:
    """An error with every fact that it can carry."""
    names = set(inspect.signature(kind).parameters) - {"message"}
    assert names <= set(FACTS)
    return kind("what happened", **{name: FACTS[name] for name in names})


@pytest.mark.parametrize("name", CLASSES)
def test_errors_pickle_as_they_are(name: str) -> None:
    """Class, message and every fact survive a pickle and a copy, including facts set later."""
    error = full(CLASSES[name])
    error.task_id, error.ref, error.key = "later", "ref", "order-1"
    copies = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for again in [*copies, copy.copy(error), copy.deepcopy(error)]:
        assert type(again) is type(error)
        assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
        assert (again.task_id, again.ref, again.key) == ("later", "ref", "order-1")


@pytest.mark.parametrize("name", CLASSES)
def test_facts_are_optional(name: str) -> None:
    """Created without arguments, an error has every fact, empty, and a message of at most one line."""
    error = CLASSES[name]()
    none = "" if issubclass(CLASSES[name], TaskError) else None  # which is a str, as its type says
    assert (error.task_id, error.ref, error.key) == (none, None, None)
    for fact in set(inspect.signature(CLASSES[name]).parameters) - {"message"}:
        assert not getattr(error, fact)
        assert getattr(full(CLASSES[name]), fact) == FACTS[fact]
    assert len(str(error).splitlines()) <= 1


REMEDIES = {
    400: "Change the request",
    401: "KIE_API_KEY",
    402: "Top up",
    403: "allow-list",
    404: "base URL",
    422: "Change the request",
    429: "rate_limit",
    430: "rate_limit",
    433: "limit",
    451: "upload",
    455: "minutes",
    500: "later",
    505: "support",
    550: "minutes",
}


@pytest.mark.parametrize("code", REMEDIES)
def test_a_refusal_names_a_remedy(code: int) -> None:
    """One line: the code, Kie's message, and what to do."""
    error = status_error(code, "some reason", http_status=200)
    text = str(error)
    assert text.startswith(f"Kie returned {code}: some reason. ")
    assert REMEDIES[code] in text
    assert "\n" not in text
    assert type(error).remedy != APIStatusError.remedy
    assert "no reason given" in str(status_error(code, ""))


def test_every_refusal_has_its_own_remedy() -> None:
    """Some code leads to every class of refusals, and each class has a remedy of its own."""
    leaves = {CLASSES[name] for name, parent in TREE.items() if parent == "APIStatusError"}
    assert leaves == {type(status_error(code, "")) for code in REMEDIES}
    assert leaves - {errors.InternalServerError} == set(ERROR_OF_CODE.values())


@pytest.mark.parametrize("code", range(-1, 700))
def test_only_what_may_work_later_is_retryable(code: int) -> None:
    """429, 430, 455, 550, what may work later (408, 451), and failures of the server.

    505 is a decision, not a failure.
    """
    retryable = status_error(code, "").retryable
    assert retryable is (code in (408, 429, 430, 451, 455) or (500 <= code < 600 and code != 505))


def test_facts_of_a_failed_task() -> None:
    """The error has the task id, the code and the last details."""
    error = TaskFailedError("task t failed", task_id="t", error_code=400, details=DETAILS)
    assert (error.task_id, error.error_code, error.details) == ("t", 400, DETAILS)


# Names that hold such a class where an error is made; `result_of` takes it from `failure_kind`.
TASK_ERRORS = {name for name, kind in CLASSES.items() if issubclass(kind, TaskError)} | {"kind"}


def without_task_id(source: str) -> list[str]:
    """The calls that create an error of a task without its id."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        ast.unparse(call)
        for call in calls
        if ast.unparse(call.func).rpartition(".")[2] in TASK_ERRORS
        and not any(word.arg == "task_id" and ast.unparse(word.value) != "None" for word in call.keywords)
    ]


def test_every_error_of_a_task_is_made_with_its_id() -> None:
    """Nowhere in the package is one created without."""
    sources = {file.name: file.read_text("utf-8") for file in PACKAGE.rglob("*.py")}
    found = [(name, call) for name, source in sources.items() for call in without_task_id(source)]
    # `kind` is a class of errors of a task in outcome.py only.
    assert [(name, call) for name, call in found if name == "outcome.py" or "kind(" not in call] == []


def test_control_an_error_without_an_id_is_seen() -> None:
    """Control: with no id, or None for it."""
    assert without_task_id("raise errors.TaskTimeoutError('late')") == ["errors.TaskTimeoutError('late')"]
    assert without_task_id("TaskFailedError('x', task_id=None)") == ["TaskFailedError('x', task_id=None)"]
    assert without_task_id("kind('x', task_id=a.task_id); KieError('x')") == []


def test_facts_of_an_unreadable_answer() -> None:
    """The path to the wrong value, the HTTP status and an excerpt of one line."""
    error = unreadable(502, b"<html>\r\n" + b"x" * 5000, "data.status")
    assert isinstance(error, UnexpectedResponseError)
    assert (error.path, error.http_status) == ("data.status", 502)
    assert 100 < len(error.excerpt) <= 200
    assert "data.status" in str(error)
    assert "502" in str(error)
    assert "\n" not in str(error)
