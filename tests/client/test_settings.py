"""Settings: where they come from, what is refused, and that a key is never shown."""

import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie4o import ConfigurationError
from kie4o.settings import _NO_KEYS, API_URL, UPLOAD_URL, Settings, count, resolve, seconds, seconds_or_none
from kie4o.urls import is_loopback


def settings(environment: dict[str, str] | None = None, **arguments: Any) -> Settings:
    given_: dict[str, Any] = dict.fromkeys(["api_key", "base_url", "upload_url", "webhook_key"])
    return resolve(**(given_ | arguments), environment=environment or {})


def keys(found: Settings) -> list[str]:
    return [secret.reveal() for secret in found.webhook_key]


# -- the key ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("around", ["{}", " {}", "{}\n", "{}\r\n", "\t{} ", "\u2003{}\u00a0"])
def test_a_key_is_stripped(around: str, api_key: str) -> None:
    """Whitespace around a key, as files and shells leave it, is removed."""
    assert settings(api_key=around.format(api_key)).api_key.reveal() == api_key
    assert settings({"KIE_API_KEY": around.format(api_key)}).api_key.reveal() == api_key


@pytest.mark.parametrize("inside", ["\r\n", "\n", "\x00", " ", "\t", "é", "\ud800", "\u200b", "\x7f", "“"])
@pytest.mark.parametrize("origin", ["api_key", "KIE_API_KEY", "KIE_AI_API_KEY"])
def test_an_unusable_key_is_refused_without_an_echo(inside: str, origin: str, api_key: str) -> None:
    """Control characters, blanks and non-ASCII are refused; the error names the source of the key only."""
    bad = api_key[:8] + inside + api_key
    with pytest.raises(ConfigurationError) as caught:
        settings(api_key=bad) if origin == "api_key" else settings({origin: bad})
    error = caught.value
    assert origin in str(error)
    assert api_key[:8] not in f"{error} {error!r} {error.args} {vars(error)}"
    assert error.__cause__ is error.__context__ is None


@pytest.mark.parametrize("blank", [None, "", " ", "\n", "\t \r\n"])
def test_no_key(blank: str | None) -> None:
    """Blank counts as unset; the error names the variable and the page where keys are created."""
    for environment in ({}, {"KIE_API_KEY": blank or "", "KIE_AI_API_KEY": " "}):
        with pytest.raises(ConfigurationError, match="KIE_API_KEY") as caught:
            settings(environment, api_key=blank)
        assert "kie.ai/api-key" in str(caught.value)


@pytest.mark.parametrize("key", [5, b"sk-bytes", ["sk-list"], True])
def test_a_key_is_text(key: Any) -> None:
    """The error names the wrong type and does not show the value."""
    with pytest.raises(ConfigurationError, match=type(key).__name__) as caught:
        settings(api_key=key)
    assert "sk-" not in str(caught.value)


def test_where_the_key_comes_from() -> None:
    """The argument, then KIE_API_KEY, then KIE_AI_API_KEY."""
    both = {"KIE_API_KEY": "first", "KIE_AI_API_KEY": "second"}
    assert settings(both, api_key="argument").api_key.reveal() == "argument"
    assert settings(both, api_key=" ").api_key.reveal() == "first"
    assert settings(both | {"KIE_API_KEY": " "}).api_key.reveal() == "second"
    assert settings({"KIE_AI_API_KEY": "second"}).api_key.reveal() == "second"


def test_a_secret_is_not_shown(api_key: str) -> None:
    """Not by repr, str, format or the settings that hold it; it cannot be pickled or copied."""
    found = settings(api_key=api_key, webhook_key=api_key)
    secret = found.api_key
    shown = f"{secret!r} {secret!s} {secret} {found!r} {found} {[secret]} {(secret,)!s}"
    assert api_key not in shown
    assert "***" in shown
    for dump in (pickle.dumps, json.dumps, copy.deepcopy):
        with pytest.raises(TypeError):
            dump(secret)
    with pytest.raises(TypeError):
        pickle.dumps(found)
    with pytest.raises((TypeError, AttributeError)):
        vars(secret)


@given(st.text(max_size=20))
def test_any_text_as_a_key(text: str) -> None:
    """A key is printable ASCII or refused with `ConfigurationError`, by its form or as what is no key."""
    try:
        key = settings(api_key=text).api_key.reveal()
    except ConfigurationError as error:
        given = text.strip()
        named = any(str(error).endswith(sentence) for _, sentence in _NO_KEYS)
        assert named or not given or not given.isascii() or not given.isprintable() or " " in given
    else:
        assert key == text.strip()
        assert key.isascii()
        assert key.isprintable()
        assert " " not in key


# -- the hosts -------------------------------------------------------------------------------------


def test_the_hosts_by_default() -> None:
    """Kie's two hosts, with https."""
    found = settings(api_key="k")
    assert (found.base_url, found.upload_url) == (API_URL, UPLOAD_URL)
    assert (API_URL, UPLOAD_URL) == ("https://api.kie.ai", "https://kieai.redpandaai.co")
    assert not found.loopback


def test_where_the_hosts_come_from() -> None:
    """An argument wins over the environment; blank counts as unset."""
    environment = {"KIE_BASE_URL": "https://env.example", "KIE_UPLOAD_URL": " https://up.example/\n"}
    found = settings(environment, api_key="k")
    assert (found.base_url, found.upload_url) == ("https://env.example", "https://up.example")
    found = settings(environment, api_key="k", base_url="https://arg.example", upload_url=" ")
    assert (found.base_url, found.upload_url) == ("https://arg.example", "https://up.example")
    found = settings({"KIE_BASE_URL": " "}, api_key="k")
    assert found.base_url == API_URL


def test_an_emulator_serves_both() -> None:
    """A loopback base URL serves uploads too, unless another is set; another base URL does not."""
    found = settings(api_key="k", base_url="http://127.0.0.1:8080/")
    assert (found.base_url, found.upload_url) == ("http://127.0.0.1:8080",) * 2
    assert found.loopback
    assert (
        settings(api_key="k", base_url="http://[::1]:1", upload_url="https://u.example").upload_url[-1] == "e"
    )
    assert settings(api_key="k", base_url="https://proxy.example").upload_url == UPLOAD_URL


@pytest.mark.parametrize("elsewhere", [UPLOAD_URL, "http://127.0.0.1:9"])
def test_an_emulator_that_is_passed_serves_uploads_whatever_the_environment_says(elsewhere: str) -> None:
    """Or a test would upload to Kie, or to the emulator of a shell. An argument still counts."""
    environment = {"KIE_BASE_URL": "http://127.0.0.1:9", "KIE_UPLOAD_URL": elsewhere}
    emulator = {"api_key": "k", "base_url": "http://127.0.0.1:8080"}
    assert settings(environment, **emulator).upload_url == emulator["base_url"]
    assert settings(environment, **emulator, upload_url=elsewhere).upload_url == elsewhere
    for base_url in (None, " "):
        assert settings(environment, api_key="k", base_url=base_url).upload_url == elsewhere


GOOD_HOSTS = [
    *("https://proxy.example", "https://proxy.example:8443/kie", "HTTPS://API.KIE.AI", "https://10.0.0.1"),
    *("http://localhost:8080", "http://LOCALHOST", "http://kie.localhost", "http://127.0.0.1:1"),
    *("http://127.8.9.10", "http://[::1]:8080", "https://bücher.example"),
]


@pytest.mark.parametrize("url", GOOD_HOSTS)
def test_a_usable_host(url: str) -> None:
    """https anywhere, plain http on this machine; a trailing slash makes no difference."""
    for name in ("base_url", "upload_url"):
        assert getattr(settings(api_key="k", **{name: url}), name) == url
        assert getattr(settings(api_key="k", **{name: url + "/"}), name) == url


BAD_HOSTS = [
    *("api.kie.ai", "ftp://api.kie.ai", "https://", "https:///path", "//api.kie.ai", "https:api.kie.ai", "x"),
    *("https://user:password@api.kie.ai", "https://sk-secret@api.kie.ai", "https://a?b=c", "https://a#b"),
    *("https://a:99999", "https://a:x", "https://[::1", "https://a b.example", "https://a.example/\r\nX: y"),
    *("https://a?", "https://a#", "https://a\\b", "https://a.example/\x00", "https://\ud800.example"),
    "https://a.example/x y",
]


@pytest.mark.parametrize("url", BAD_HOSTS, ids=ascii)
@pytest.mark.parametrize("name", ["base_url", "upload_url"])
def test_an_unusable_host(name: str, url: str) -> None:
    """Refused before any network use; the error names argument and variable, but no password."""
    for arguments, environment in (({name: url}, {}), ({}, {f"KIE_{name.upper()}": url})):
        with pytest.raises(ConfigurationError, match=name) as caught:
            settings(environment, api_key="k", **arguments)
        assert f"KIE_{name.upper()}" in str(caught.value)
        assert "secret" not in str(caught.value)
        assert "password" not in str(caught.value)


PLAIN = [
    *("http://api.kie.ai", "http://10.0.0.1", "http://192.168.1.1", "http://0.0.0.0", "http://[::]"),
    *("http://127.0.0.1.evil.example", "http://localhost.evil.example", "http://evil-localhost"),
    *(
        "http://2130706433",
        "http://0x7f000001",
        "http://127.1",
        "http://①②⑦.0.0.1",
        "http://[64:ff9b::7f00:1]",
    ),
]


@pytest.mark.parametrize("url", PLAIN)
def test_plain_http_is_for_loopback(url: str) -> None:
    """The API key goes there, so a host that only looks like this machine is refused."""
    assert not is_loopback(url)
    with pytest.raises(ConfigurationError, match="https"):
        settings(api_key="k", base_url=url)


@pytest.mark.parametrize("value", [5, b"https://a", ["https://a"], True])
def test_a_host_is_text(value: Any) -> None:
    """The error of another type names the argument."""
    for name in ("base_url", "upload_url"):
        with pytest.raises(ConfigurationError, match=name):
            settings(api_key="k", **{name: value})


def test_hosts_do_not_show_the_key_in_frames(api_key: str) -> None:
    """With an invalid host, no local variable in the frames of the error holds the key."""
    with pytest.raises(ConfigurationError):
        settings(api_key=api_key, base_url="http://api.kie.ai")


# -- the webhook key -------------------------------------------------------------------------------


def test_where_webhook_keys_come_from() -> None:
    """One, several for rotation, or KIE_WEBHOOK_KEY; blank counts as unset."""
    environment = {"KIE_WEBHOOK_KEY": " env "}
    assert keys(settings(api_key="k")) == []
    assert keys(settings(environment, api_key="k")) == ["env"]
    assert keys(settings(environment, api_key="k", webhook_key="arg")) == ["arg"]
    assert keys(settings(environment, api_key="k", webhook_key=["new", " old\n", ""])) == ["new", "old"]
    assert keys(settings(environment, api_key="k", webhook_key=" ")) == ["env"]
    assert keys(settings({"KIE_WEBHOOK_KEY": " "}, api_key="k", webhook_key=[])) == []
    assert keys(settings(api_key="k", webhook_key="schlüssel")) == ["schlüssel"]


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [0, -1, -0.5, True, False, "5", None, float("nan"), float("inf"), [5]], ids=repr
)
def test_a_duration(value: Any) -> None:
    """A number above zero; the error names the argument and shows the value."""
    with pytest.raises(ConfigurationError, match="timeout=") as caught:
        seconds("timeout", value)
    assert repr(value) in str(caught.value)
    if value is not None:
        with pytest.raises(ConfigurationError, match="None"):
            seconds_or_none("timeout", value)


def test_a_usable_duration() -> None:
    """An int or a float; None only where it means forever."""
    assert seconds("timeout", 5) == 5.0
    assert seconds("timeout", 0.001) == 0.001
    assert seconds_or_none("timeout", None) is None


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "5", None, float("inf")], ids=repr)
def test_a_count(value: Any) -> None:
    """A whole number from 1."""
    with pytest.raises(ConfigurationError, match="max_in_flight="):
        count("max_in_flight", value)
    assert count("max_in_flight", 1) == 1
