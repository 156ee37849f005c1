"""Values are checked when they are created, and never change."""

import pickle
import re
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, get_args, get_type_hints

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie4o import (
    Callback,
    Completion,
    ImageRequest,
    ImageResult,
    InvalidRequestError,
    KieError,
    RateLimit,
    RequestFields,
    TaskDetails,
    TaskState,
    UploadedFile,
)
from kie4o.image_request import FallbackModel, Size, Variants

URL = "https://files.example.com/a.png"
BAD_URLS: list[Any] = [
    *("", " ", "abc", "/a.png", "files.example.com/a.png", "ftp://x/a", "file:///etc/passwd", "data:,x"),
    *("http://", "https://", "https:///a", "http:a", "http://[::1", "http://x:99999/", "http://x:y/"),
    *("http://x/a b", " http://x/", "http://x/\n", "http://x/\r\nX: y", "http://x/\x00", "http://x/\ud800"),
    *(5, True, b"https://x/", ["https://x/"], {"url": "https://x/"}),
]
FLAGS = ["is_enhance", "upload_cn", "enable_fallback"]


def bad_values() -> Iterator[tuple[str, Any]]:
    for prompt in ("", " ", "\n", 5, True, b"text", ["text"], "half \ud800", "\udfff"):
        yield "prompt", prompt
    for size in ("16:9", "1:1 ", "", None, 1, ("1:1",), ["1:1"], {"1:1": 1}, "1：1"):
        yield "size", size
    for count in (True, False, 0, 3, 5, -1, 1.0, "1", "2", None, [1], 10**30):
        yield "n_variants", count
    for model in ("flux_max", "GPT_IMAGE_2", "", None, True, 1):
        yield "fallback_model", model
    for flag in FLAGS:
        for value in (None, 0, 1, "true", "false", "", []):
            if value is not None or flag != "upload_cn":
                yield flag, value
    for url in BAD_URLS:
        for name in ("mask_url", "callback_url", "file_url"):
            yield name, url
        yield "files_url", [URL, url]
    for files in ("abc", URL, b"abc", "", 5, True, {"a": URL}, [None], [URL] * 6):
        yield "files_url", files


@pytest.mark.parametrize(("name", "value"), list(bad_values()), ids=lambda value: ascii(value)[:40])
def test_a_bad_value_is_named(name: str, value: Any) -> None:
    """The error names the field, shows the value and says what is expected, on one line."""
    good: dict[str, Any] = {"prompt": "A calm lake"}
    with pytest.raises(InvalidRequestError) as caught:
        ImageRequest(**(good | {name: value}))
    assert isinstance(caught.value, ValueError)
    field, _, rest = str(caught.value).removeprefix("invalid ").partition("=")
    assert field in (name, "files_url[0]", "files_url[1]")
    assert field.startswith(name)
    shown, _, allowed = rest.partition(": expected ")
    assert shown
    assert len(allowed) >= 10
    assert "\n" not in str(caught.value)
    str(caught.value).encode()
    if name == "files_url" and value == [URL] * 6:
        assert "got 6" in allowed
        assert "5" in allowed
    elif field == name and "\ud800" not in str(value) and "\udfff" not in str(value):
        assert shown == repr(value)


def test_the_choices_are_listed() -> None:
    """The error of a field lists all its choices."""
    for name, kind in (("size", Size), ("n_variants", Variants), ("fallback_model", FallbackModel)):
        with pytest.raises(InvalidRequestError) as caught:
            ImageRequest("A", **{name: "none of them"})  # type: ignore[arg-type]  # wrong on purpose
        for choice in get_args(kind):
            assert repr(choice) in str(caught.value)


@pytest.mark.parametrize("fields", [{}, {"mask_url": URL}, {"files_url": []}, {"files_url": None}])
def test_a_request_needs_a_prompt_or_a_file(fields: dict[str, Any]) -> None:
    """Without either it is refused; any file field is enough."""
    with pytest.raises(InvalidRequestError, match="prompt"):
        ImageRequest(**fields)
    assert ImageRequest(files_url=[URL]).prompt is None
    with pytest.warns(DeprecationWarning, match="fileUrl"):
        ImageRequest(file_url=URL)


@pytest.mark.parametrize("prompt", ["A", "a\nb\tc", "\x00", "日本語", "👩‍🎨" * 1000, "x" * 100_000])
def test_any_text_is_a_prompt(prompt: str) -> None:
    """Control characters and any length are accepted: Kie documents no limit."""
    assert ImageRequest(prompt).prompt == prompt


@pytest.mark.parametrize(
    "url",
    [
        *("http://x/", "HTTPS://X/", "https://x:8443/a?b=c#d", "https://user@x/", "https://x"),
        *("https://bücher.example/ü.png", "http://[::1]:8000/a", "https://x/%20?q=a+b"),
    ],
)
def test_any_http_url_passes(url: str) -> None:
    """Every complete http or https URL is kept unchanged."""
    request = ImageRequest("A", files_url=[url], mask_url=url, callback_url=url)
    assert (request.files_url, request.mask_url, request.callback_url) == ((url,), url, url)


def test_every_choice_passes() -> None:
    """All sizes, counts, models and flags of Kie's page "generate"."""
    for size in get_args(Size):
        for count in get_args(Variants):
            for model in get_args(FallbackModel):
                choices: dict[str, Any] = {"size": size, "n_variants": count, "fallback_model": model}
                request = ImageRequest("A", **choices, enable_fallback=True)
                assert (request.size, request.n_variants, request.fallback_model) == (size, count, model)
    assert get_args(Size) == ("1:1", "3:2", "2:3")
    assert get_args(Variants) == (1, 2, 4)
    for flag in FLAGS:
        assert getattr(ImageRequest("A", **{flag: True}), flag) is True  # type: ignore[arg-type]  # wrong on purpose


def test_files_url_takes_any_iterable() -> None:
    """A list, a tuple or an iterator of up to five URLs becomes a tuple."""
    urls = [f"{URL}?{index}" for index in range(5)]
    for given_ in (urls, tuple(urls), iter(urls), (url for url in urls)):
        assert ImageRequest(files_url=given_).files_url == tuple(urls)  # type: ignore[arg-type]  # wrong on purpose


def test_warnings_point_at_the_caller() -> None:
    """A mask beside several files, which Kie ignores, and the deprecated fileUrl warn at the call."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ImageRequest("A", files_url=[URL, URL], mask_url=URL)
        ImageRequest("A", file_url=URL)
        ImageRequest("A", files_url=[URL], mask_url=URL)
    assert [(one.category, one.filename) for one in seen] == [
        (UserWarning, __file__),
        (DeprecationWarning, __file__),
    ]


DETAILS = TaskDetails(
    "t", state=TaskState.SUCCEEDED, urls=(URL,), created_at=datetime(2026, 3, 29, tzinfo=UTC)
)
VALUES: list[Any] = [
    ImageRequest("A", files_url=[URL], n_variants=2),
    DETAILS,
    ImageResult("t", urls=(URL,), details=DETAILS),
    Completion("k", index=0, request=ImageRequest("A"), task_id="t"),
    Callback("t", code=200, urls=(URL,), details=DETAILS),
    UploadedFile(URL, name="a.png", path="kieai/1/a.png", size=70, mime_type="image/png"),
    RateLimit(20, per=10.0),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_are_frozen_and_compare(value: Any) -> None:
    """No field can be set, equal values are equal, and a pickle gives the same value back."""
    for field in attrs.fields(type(value)):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(value, field.name, None)
    again = pickle.loads(pickle.dumps(value))
    assert again == value
    assert again is not value
    first = attrs.fields(type(value))[0].name
    other = attrs.evolve(value, **{first: 21 if isinstance(value, RateLimit) else "https://other.example/"})
    assert other != value
    assert repr(value).startswith(type(value).__name__)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_are_hashable(value: Any) -> None:
    """Equal values have equal hashes, so they work in sets and as keys."""
    assert hash(pickle.loads(pickle.dumps(value))) == hash(value)
    assert len({value, pickle.loads(pickle.dumps(value))}) == 1


@pytest.mark.parametrize("kind", [type(value) for value in VALUES])
def test_all_but_the_first_are_keywords(kind: Any) -> None:
    """After the first field everything is keyword-only."""
    positional = [field.name for field in attrs.fields(kind) if field.init and not field.kw_only]
    assert positional == [attrs.fields(kind)[0].name]


def test_equality_ignores_how_a_result_was_learned() -> None:
    """`raw`, `source`, progress and `n_variants` do not matter: the images are the same."""
    assert attrs.evolve(DETAILS, raw={"a": 1}) == DETAILS
    one = ImageResult("t", urls=(URL,), details=DETAILS, source="poll", n_variants=1)
    other = ImageResult("t", urls=(URL,), details=attrs.evolve(DETAILS, progress=1.0), source="callback")
    assert one == other
    assert one != attrs.evolve(one, urls=())


def test_a_result_is_its_urls() -> None:
    """Iteration and len are those of the URLs, in order."""
    urls = (URL, URL + "?2")
    result = ImageResult("t", urls=urls, details=DETAILS)
    assert (tuple(result), len(result)) == (urls, 2)


@pytest.mark.parametrize(
    ("requested", "received", "partial"),
    [(4, 4, False), (4, 3, True), (4, 0, True), (1, 1, False), (1, 2, False), (None, 0, False)],
)
def test_partial(requested: int | None, received: int, partial: bool) -> None:
    """Fewer images than requested; unknown if the request is unknown."""
    assert ImageResult("t", urls=(URL,) * received, details=DETAILS, n_variants=requested).partial is partial


def test_states_end_or_not() -> None:
    """Succeeded and failed tasks have ended; running and missing ones have not."""
    assert [state for state in TaskState if state.ended] == [TaskState.SUCCEEDED, TaskState.FAILED]
    assert len(TaskState) == 4


@given(st.one_of(st.none(), st.integers(), st.text(), st.lists(st.integers()), st.binary(), st.floats()))
def test_params_are_an_object_or_empty(text: Any) -> None:
    """Whatever paramJson holds, `params` is a mapping."""
    assert isinstance(attrs.evolve(DETAILS, raw={"paramJson": text}).params, dict)


def test_params_are_decoded() -> None:
    """The object that Kie stored; empty if there is none or it cannot be read."""
    assert attrs.evolve(DETAILS, raw={"paramJson": '{"size":"1:1"}'}).params == {"size": "1:1"}
    for text in ("", "[]", "null", "{", "[" * 100_000, "9" * 5000):
        assert attrs.evolve(DETAILS, raw={"paramJson": text}).params == {}
    assert DETAILS.params == {}


def test_a_completion_is_unwrapped() -> None:
    """The result if there is one, else the same error object; `ok` says which."""
    request, result = ImageRequest("A"), ImageResult("t", urls=(URL,), details=DETAILS)
    good = Completion("k", index=0, request=request, result=result)
    assert good.ok
    assert good.unwrap() is result
    error = KieError("failed", task_id="t")
    bad = Completion("k", index=0, request=request, error=error)
    assert not bad.ok
    with pytest.raises(KieError) as caught:
        bad.unwrap()
    assert caught.value is error
    with pytest.raises(KieError) as caught:
        Completion("k", index=0, request=request).unwrap()
    assert caught.value.key == "k"


def test_the_ref_is_not_shown() -> None:
    """The ref authenticates callbacks, so it is in no repr."""
    assert "secret-ref" not in repr(Callback("t", code=200, ref="secret-ref", details=DETAILS))


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "20", None, [20], float("nan")], ids=repr)
def test_a_bad_limit_is_refused(limit: Any) -> None:
    """`limit` is a whole number above zero; the error shows the value."""
    with pytest.raises(KieError, match=re.escape(repr(limit))) as caught:
        RateLimit(limit, per=10.0)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("per", [0, -1.0, True, "10", None, float("nan"), float("inf")], ids=repr)
def test_a_bad_window_is_refused(per: Any) -> None:
    """`per` is a finite number of seconds above zero; the error names it."""
    with pytest.raises(KieError, match=re.escape(f"per={per!r}")) as caught:
        RateLimit(20, per=per)
    assert isinstance(caught.value, ValueError)


def test_the_keywords_are_the_fields() -> None:
    """The keywords that type checkers accept in `submit` and `generate` are fields of `ImageRequest`, with
    what their converters accept."""
    hints = get_type_hints(RequestFields)
    fields = attrs.fields_dict(attrs.resolve_types(ImageRequest))
    assert hints.keys() == fields.keys()
    for name, field in fields.items():
        converter: Any = field.converter
        accepted = field.type if converter is None else get_type_hints(converter)["value"]
        assert hints[name] == accepted, name


def test_a_result_is_a_sequence_of_urls() -> None:
    """It can be iterated, measured and indexed."""
    urls = ("https://images.example/1.png", "https://images.example/2.png")
    details = TaskDetails("task", state=TaskState.SUCCEEDED, urls=urls)
    result = ImageResult("task", urls=urls, details=details)
    assert [*result] == [*urls]
    assert (len(result), result[0], result[-1], result[:1]) == (2, *urls, urls[:1])
    with pytest.raises(IndexError):
        result[2]
