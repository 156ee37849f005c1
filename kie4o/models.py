"""The values that callers pass and receive: frozen, keyword-only after the first field, checked when
created.

`wire` turns them into bytes and back. Durations are seconds.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Literal, TypedDict, get_args

import attrs

from .details import TaskDetails
from .errors import InvalidRequestError, KieError, invalid, invalid_setting
from .urls import callback_url_fault, is_web_url

Size = Literal["1:1", "3:2", "2:3"]
"""The aspect ratio of an image (Kie's generate page)."""
Variants = Literal[1, 2, 4]
"""How many images one request asks for; each number has its own price (Kie's generate page)."""
FallbackModel = Literal["FLUX_MAX", "GPT_IMAGE_1"]
"""The model to use while GPT-4o is down (Kie's generate page)."""
Source = Literal["poll", "callback", "store"]

# Set while a request is read back from a store: its author has seen the warnings already.
remembering: ContextVar[bool] = ContextVar("remembering", default=False)

MAX_FILES = 5  # filesUrl (generate page)


# -- checks ------------------------------------------------------------------------------------


def _one_of(kind: Any) -> Any:
    allowed = get_args(kind)
    types = {type(choice) for choice in allowed}

    def check(_: object, field: attrs.Attribute[Any], value: object) -> None:
        if type(value) not in types or value not in allowed:
            raise invalid(field.name, value, "one of " + ", ".join(map(repr, allowed)))

    return check


def _flag(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise invalid(field.name, value, "True or False")


def _text(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str) or not value.strip():
        raise invalid(field.name, value, "a string that is not blank, or None")
    _check_encodable(field.name, value)


def _check_encodable(name: str, value: str) -> None:
    try:
        value.encode()
        return
    except UnicodeEncodeError as error:
        index = error.start
    expected = f"text that UTF-8 can encode, but character {index} is a lone surrogate"
    raise invalid(name, value[index : index + 1], expected)


def _check_url(name: str, value: object) -> None:
    if not is_web_url(value):
        raise invalid(name, value, "a complete http:// or https:// URL without spaces")


def _url(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        _check_url(field.name, value)


def _callback_url(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if remembering.get():  # a store may hold one that was valid when it was submitted
        _url(_, field, value)
        return
    fault = None if value is None else callback_url_fault(value)
    if fault is not None:
        raise invalid(field.name, value, fault)


def _urls(_: object, field: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    if len(value) > MAX_FILES:
        raise invalid(field.name, [*value[:1], "..."], f"at most {MAX_FILES} URLs, got {len(value)}")
    for index, url in enumerate(value):
        _check_url(f"{field.name}[{index}]", url)


def _as_tuple(value: Iterable[str] | None) -> tuple[str, ...]:
    """A tuple from any iterable except a string, which would become its letters."""
    if value is None:
        return ()
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__iter__"):
        raise invalid("files_url", value, "a list of URLs, even for a single one")
    return tuple(value)


# -- requests ----------------------------------------------------------------------------------


@attrs.frozen(kw_only=True, weakref_slot=False)
class ImageRequest:
    """One request for images: every parameter of Kie's generate page under its snake_case name.

    Creating one raises `InvalidRequestError` if Kie could only refuse it.

    Attributes:
        prompt: What to draw, or how to edit the files. Optional if there is a file.
        size: Aspect ratio: ``"1:1"``, ``"3:2"`` or ``"2:3"``.
        files_url: Up to 5 public URLs of images to start from, at most 25 MiB each.
        mask_url: URL of a mask for a single file, of its size and format: black is changed, white is kept.
        n_variants: 1, 2 or 4 images; each choice has its own price.
        callback_url: Where Kie reports the end of the task; it may hold ``{ref}``, as the client's may.
        is_enhance: Let Kie enrich the prompt.
        upload_cn: Let Kie fetch the files through servers in China.
        enable_fallback: Use `fallback_model` while GPT-4o is unavailable.
        fallback_model: ``"FLUX_MAX"`` or ``"GPT_IMAGE_1"``.
        file_url: Deprecated by Kie; use `files_url`.
    """

    prompt: str | None = attrs.field(default=None, validator=_text, kw_only=False)
    size: Size = attrs.field(default="1:1", validator=_one_of(Size))
    files_url: tuple[str, ...] = attrs.field(default=(), converter=_as_tuple, validator=_urls)
    mask_url: str | None = attrs.field(default=None, validator=_url)
    n_variants: Variants = attrs.field(default=1, validator=_one_of(Variants))
    callback_url: str | None = attrs.field(default=None, validator=_callback_url)
    is_enhance: bool = attrs.field(default=False, validator=_flag)
    upload_cn: bool = attrs.field(default=False, validator=_flag)
    enable_fallback: bool = attrs.field(default=False, validator=_flag)
    fallback_model: FallbackModel = attrs.field(default="FLUX_MAX", validator=_one_of(FallbackModel))
    file_url: str | None = attrs.field(default=None, validator=_url)

    def __attrs_post_init__(self) -> None:
        if self.prompt is None and not self.files_url and self.file_url is None:
            raise InvalidRequestError("a request needs a prompt or a file: pass prompt or files_url")
        if remembering.get():
            return
        if self.file_url is not None:
            warnings.warn("Kie has deprecated fileUrl: use files_url=[...]", DeprecationWarning, stacklevel=3)
        if self.mask_url is not None and len(self.files_url) > 1:
            warnings.warn(
                "Kie ignores mask_url when files_url holds more than one image", UserWarning, stacklevel=3
            )


class RequestFields(TypedDict, total=False):
    """The fields of an `ImageRequest` as keywords, for wrappers of your own:
    ``def draw(**fields: Unpack[RequestFields])``."""

    prompt: str | None
    size: Size
    files_url: Iterable[str] | None
    mask_url: str | None
    n_variants: Variants
    callback_url: str | None
    is_enhance: bool
    upload_cn: bool
    enable_fallback: bool
    fallback_model: FallbackModel
    file_url: str | None


# -- results -----------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class ImageResult:
    """The images of one task. Iterating gives the URLs, and ``result[0]`` the first.

    Results are equal if their task and URLs are.

    Attributes:
        task_id: The id of the task.
        urls: The images; they are kept for 14 days.
        details: The final `TaskDetails`.
        source: How the client learned the outcome: ``"poll"``, ``"callback"`` or ``"store"``.
        n_variants: How many images were requested, or None if that is not known.
    """

    task_id: str = attrs.field(kw_only=False)
    urls: tuple[str, ...]
    details: TaskDetails = attrs.field(eq=False, repr=False)
    source: Source = attrs.field(default="poll", eq=False)
    n_variants: int | None = attrs.field(default=None, eq=False, repr=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self.urls)

    def __len__(self) -> int:
        return len(self.urls)

    def __getitem__(self, index: int) -> str:
        return self.urls[index]

    @property
    def partial(self) -> bool:
        """Whether fewer images arrived than were requested; False if `n_variants` is None."""
        return self.n_variants is not None and len(self.urls) < self.n_variants


@attrs.frozen(kw_only=True)
class Completion:
    """One finished item of a batch. Either `result` or `error` is set.

    Attributes:
        key: The idempotency key of the item.
        index: Its position in the input, from 0.
        request: The `ImageRequest`, or None if the input was not a valid one.
        task_id: The id of its task, if it has one.
        result: The images.
        error: What went wrong.
        replayed: Whether the store knew the outcome, so that nothing was submitted.
    """

    key: str = attrs.field(kw_only=False)
    index: int
    request: ImageRequest | None
    task_id: str | None = None
    result: ImageResult | None = None
    error: KieError | None = None
    replayed: bool = False

    @property
    def ok(self) -> bool:
        """Whether there is a result."""
        return self.result is not None

    def unwrap(self) -> ImageResult:
        """Return the result, or raise the error."""
        if self.error is not None:
            raise self.error
        if self.result is None:
            raise KieError("this completion has neither a result nor an error", key=self.key)
        return self.result


@attrs.frozen(kw_only=True)
class Callback:
    """What Kie posted to a callback URL: a hint that a task has ended, no proof of its outcome.

    Attributes:
        task_id: The id of the task.
        code: Kie's code; 200 is success.
        message: Kie's words.
        urls: The images of a success. Anyone may have written them until a poll of the task confirms them.
        ref: What the callback URL carried.
        verified: Whether the signature was checked. It covers the task id and the time only.
        details: The same as `TaskDetails`.
    """

    task_id: str = attrs.field(kw_only=False)
    code: int | None
    message: str = ""
    urls: tuple[str, ...] = ()
    ref: str | None = attrs.field(default=None, repr=False)
    verified: bool = False
    details: TaskDetails = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class UploadedFile:
    """A file on Kie's upload host (file upload page). Kie deletes it after about 24 hours.

    Attributes:
        url: What to pass in `files_url` or as `mask_url`.
        name: Its file name.
        path: Its folder and name on the host.
        size: Bytes.
        mime_type: As Kie detected it.
        uploaded_at: An aware UTC datetime, or None.
    """

    url: str = attrs.field(kw_only=False)
    name: str
    path: str
    size: int
    mime_type: str
    uploaded_at: datetime | None = None


@attrs.frozen(kw_only=True)
class RateLimit:
    """At most `limit` new tasks in any `per` seconds.

    Kie admits 20 per 10 s to an account (generate page).
    """

    limit: int = attrs.field(kw_only=False)
    per: float

    def __attrs_post_init__(self) -> None:
        if type(self.limit) is not int or self.limit < 1:
            raise invalid_setting("RateLimit.limit", self.limit, "a positive integer")
        if type(self.per) not in (int, float) or not 0 < self.per < float("inf"):
            raise invalid_setting("RateLimit.per", self.per, "a positive number of seconds")
