"""The client's settings: from arguments and the environment, checked before anything is opened. Pure.

An argument wins over the environment. Text is stripped, and blank text counts as unset. From here on the
API key is a `Secret`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import attrs

from .errors import ConfigurationError, invalid_setting
from .plain import SecretText, plain, revealed
from .urls import URLObject, is_loopback, is_web_url, url_text

API_URL = "https://api.kie.ai"
UPLOAD_URL = "https://kieai.redpandaai.co"
KEY_VARIABLES = ("KIE_API_KEY", "KIE_AI_API_KEY")

# What is pasted in place of a key, and the sentence about it, which never shows the text. The first that
# fits counts. Kie's keys are 32 hex digits; those of other hosts may be any printable ASCII.
_NO_KEYS = (
    (r".*[\r\n].*", "has more than one line; pass the key alone"),
    (r"(export|set|setx)\s.*|\$env:.*", "is a command of a shell; pass only the key in it"),
    (r"\w*(key|token|secret)\w*\s*[:=]\s*[^\s=].*", "has the name of the variable in it; pass only the key"),
    (r"(authorization\s*:\s*)?bearer(\s.*)?", "has 'Bearer' before the key; pass only the key"),
    (r"[\"'`“”„‘’«»].*|.*[\"'`“”„‘’«»]", "has quotes around it; remove them"),
    (
        r"\$\{.*\}|\$\(.*\)|\$\w+|%\w+%|\{\{.*\}\}|\{\w+\}",
        "is the name of a variable that was not replaced; pass its value",
    ),
    (
        r"<.*>|\[.*\]|(.*[\W_])?your[\W_].*|.*\.\.\.|.*…|(sk-)?x{3,}|\*+",
        "is a placeholder; create a key at kie.ai/api-key",
    ),
    (
        r"~.*|\.{1,2}[\\/].*|[a-z]:[\\/].*|file:.*|/(run|etc|home|root|var|tmp|usr|opt|mnt|srv|app|users)/.*"
        r"|.*\.(txt|env|key|pem|json|ya?ml|toml|ini)",
        "is the path of a file; pass what the file holds",
    ),
)


class Secret:
    """Text that no repr, log, format or pickle shows; `reveal()` returns it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret('***')"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled; read the key again where it is needed")


def sealed(value: Any) -> Any:
    """Text, or each text of a list, as a `Secret`; anything else as it is."""
    if isinstance(value, str):
        return Secret(value)
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [sealed(one) for one in value]
    return value


@attrs.frozen(kw_only=True)
class Settings:
    """The checked settings of one client."""

    api_key: Secret
    base_url: str
    upload_url: str
    webhook_key: tuple[Secret, ...] = ()

    @property
    def loopback(self) -> bool:
        """Whether the client talks to this machine. Only then are plain http and private addresses
        allowed for results and uploads."""
        return is_loopback(self.base_url)


class _Unusable(Exception):
    """An invalid setting. It becomes a `ConfigurationError` without the frames that hold it."""


def resolve(
    *,
    api_key: Secret | SecretText | str | None,
    base_url: URLObject | str | None,
    upload_url: URLObject | str | None,
    webhook_key: Secret | SecretText | str | Sequence[Secret | SecretText | str] | None,
    environment: Mapping[str, str],
) -> Settings:
    """Settings from arguments first, then the environment. Raises `ConfigurationError`."""
    try:
        base, upload = _hosts(base_url, upload_url, environment)
        return Settings(
            api_key=_api_key(api_key, environment),
            base_url=base,
            upload_url=upload,
            webhook_key=_webhook_keys(webhook_key, environment),
        )
    except _Unusable as error:
        sentence = str(error)
    del api_key, webhook_key, base_url, upload_url, environment  # no frame of the traceback holds a key
    raise ConfigurationError(sentence)


def seconds(name: str, value: Any, *, or_else: str = "") -> float:
    """A duration: a positive number; `or_else` is what a caller that allows more says of it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise invalid_setting(name, value, "a positive number of seconds" + or_else)
    return float(value)


def seconds_or_none(name: str, value: Any) -> float | None:
    """A duration, or None for no limit."""
    return None if value is None else seconds(name, value, or_else=", or None for no limit")


def seconds_or_zero(name: str, value: Any) -> float:
    """A duration, or 0."""
    return 0.0 if type(value) in (int, float) and value == 0 else seconds(name, value, or_else=", or 0")


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise invalid_setting(name, value, "True or False")
    return value


def count(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise invalid_setting(name, value, "a positive integer")
    return value


def _text(value: str | None) -> str | None:
    return (value.strip() or None) if value is not None else None


def _revealed(value: object) -> Any:
    return value.reveal() if isinstance(value, Secret) else revealed(value)


def _api_key(argument: object, environment: Mapping[str, str]) -> Secret:
    given = _revealed(argument)
    if given is not None and not isinstance(given, str):
        raise _Unusable(f"invalid api_key: expected the key as str, got {type(given).__name__}")
    key, origin = _text(given), "the api_key argument"
    for name in KEY_VARIABLES:
        if key is None:
            key, origin = _text(environment.get(name)), name
    if key is None:
        raise _Unusable(
            "no API key: set the environment variable KIE_API_KEY or pass api_key= (create one at "
            "kie.ai/api-key)"
        )
    _check_key(key, origin)
    if not all("!" <= character <= "~" for character in key):  # the key is not shown
        raise _Unusable(f"{origin} contains a space, control or non-ASCII character; copy the key again")
    return Secret(key)


def _webhook_keys(argument: object, environment: Mapping[str, str]) -> tuple[Secret, ...]:
    several = [argument] if argument is not None else []
    if isinstance(argument, Iterable) and not isinstance(argument, str):
        several = list(argument)
    texts = [_revealed(one) for one in several]
    if not all(isinstance(text, str) for text in texts):
        raise _Unusable("invalid webhook_key: expected a string, or a list of strings while keys are rotated")
    keys, origin = [text for text in map(_text, texts) if text is not None], "the webhook_key argument"
    from_environment = _text(environment.get("KIE_WEBHOOK_KEY"))
    if not keys and from_environment is not None:
        keys, origin = [from_environment], "KIE_WEBHOOK_KEY"
    for key in keys:
        _check_key(key, origin)
    return tuple(map(Secret, keys))


def _check_key(key: str, origin: str) -> None:
    """Refuse what is no key but something around one or in its place."""
    for pattern, sentence in _NO_KEYS:
        if re.fullmatch(pattern, key, re.IGNORECASE | re.DOTALL):
            raise _Unusable(f"{origin} {sentence}")


def _hosts(base_url: object, upload_url: object, environment: Mapping[str, str]) -> tuple[str, str]:
    """Kie has a separate host for files, an emulator serves both.

    If an emulator is passed, the variable is about another one, or about Kie, and does not count.
    """
    passed = _host("base_url", "KIE_BASE_URL", base_url, {})
    base = passed or _host("base_url", "KIE_BASE_URL", None, environment) or API_URL
    variables = {} if passed is not None and is_loopback(passed) else environment
    upload = _host("upload_url", "KIE_UPLOAD_URL", upload_url, variables)
    return base, upload or (base if is_loopback(base) else UPLOAD_URL)


def _host(name: str, variable: str, argument: object, environment: Mapping[str, str]) -> str | None:
    given = url_text(plain(argument))
    if given is not None and not isinstance(given, str):
        raise _Unusable(f"invalid {name}: expected a URL as str, got {type(given).__name__}")
    url = _text(given) or _text(environment.get(variable))
    if url is None:
        return None
    if not is_web_url(url) or any(sign in url for sign in "@?#"):
        raise _Unusable(
            f"invalid {name} (or {variable}): expected a URL like {API_URL}, without user or query"
        )
    if url.startswith("http:") and not is_loopback(url):
        raise _Unusable(
            f"invalid {name} (or {variable}): expected https, since the API key is sent there; plain http is "
            "for loopback"
        )
    return url.rstrip("/")
