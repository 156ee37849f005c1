"""Errors and warnings in words of the terminal: they name options and commands, not arguments and calls.

Also which exit status an error has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from ..errors import (
    APIConnectionError,
    APIStatusError,
    ConfigurationError,
    ImageUnavailableError,
    InsufficientCreditsError,
    InvalidRequestError,
    KieError,
    RateLimitError,
    StoreLockedError,
    SubmissionUnknownError,
)
from ..stores.choosing import EXPECTED
from ..wire.decoding import shown
from .inputs import as_typed
from .options import OPTION_OF
from .terminal import Status, UsageError

LONGEST = 1000  # characters of a message
_REMEDIES: Mapping[type[APIStatusError], str] = MappingProxyType(
    {
        InsufficientCreditsError: "Top up at kie.ai; kie4o credits prints the balance.",
        RateLimitError: "Something else uses this account too; try again later.",
        ImageUnavailableError: "Make its URL public, or pass the file itself with --file.",
    }
)
_OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        **OPTION_OF,
        "wait_timeout": "--timeout",
        "speed": "--speed",
        "source": "--file",
        "key": "--key",
        "path": "--path",
        "store": "--store",
        "url": "URL",
        "task_id": "TASK",
        "allow_unsigned": "--allow-unsigned",
    }
)
# What only Python has, and what is said of it here.
_PHRASES: Mapping[str, str] = MappingProxyType(
    {
        EXPECTED: "a file such as run.db, or postgresql://user@host/database",
        "set webhook_key= (or KIE_WEBHOOK_KEY)": "set KIE_WEBHOOK_KEY",
        "client.unfinished()": "kie4o unfinished",
    }
)
# kie4o's own sentences name arguments. A value is quoted, and is left as it is; a name without an underscore
# is a word unless a sign follows it.
_NAMES = "|".join(_OPTIONS)
_WORDS = re.compile(
    r"""extra\[(?:'(?P<single>\w+)'|"(?P<double>\w+)")\]"""
    r"""|(?P<value>(?<!\w)'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
    rf"|\b(?=\w+_|\w+[=\[])(?P<name>{_NAMES})\b(?:=\[\.\.\.\]|=\[url\]|=True|=(?=[\s,;]|$))?"
    r"|(?P<python>,? or None(?: for no limit)?\b)"
)
_ADVICE = re.compile(
    r"[;,:] (?:then )?(?:call|wait for it again with) client\..*$|; wait for it first$"
    r"|; store_wait= sets for how long$"
)


def message_of(error: BaseException) -> str:
    """What an error says as one line, without the calls of Python that it advises."""
    return shown(_message_of(error), LONGEST)


def _message_of(error: BaseException) -> str:
    if isinstance(error, (InvalidRequestError, ConfigurationError)):
        return in_our_words(str(error))
    if isinstance(error, APIConnectionError) and error.retryable and error.task_id is None:
        return f"{error}; check the network, and KIE_BASE_URL if it is set"
    if isinstance(error, APIStatusError):
        for kind, remedy in _REMEDIES.items():
            if isinstance(error, kind):
                error.remedy = remedy
    if isinstance(error, OSError) and error.strerror and not isinstance(error, KieError):
        return error.strerror if error.filename is None else f"{error.strerror}: '{error.filename}'"
    return _ADVICE.sub("", str(error))


def in_our_words(text: str) -> str:
    """A sentence of kie4o about arguments, about options instead."""
    for phrase, ours in _PHRASES.items():
        text = text.replace(phrase, ours)

    def replaced(match: re.Match[str]) -> str:
        if extra := match["single"] or match["double"]:
            return f"--set {extra}"
        if match["value"] is not None:
            return match["value"]
        return "" if match["name"] is None else _OPTIONS[match["name"]]

    return as_typed(_WORDS.sub(replaced, text))


def status_of(error: BaseException) -> Status:
    """The exit status of a command that an error ended."""
    if isinstance(error, (UsageError, InvalidRequestError, ConfigurationError)):
        return Status.USAGE
    if isinstance(error, SubmissionUnknownError):
        return Status.UNKNOWN
    return Status.STORE_IN_USE if isinstance(error, StoreLockedError) else Status.ERROR
