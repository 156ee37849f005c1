"""The values that callers meet: frozen, keyword-only after the first field, checked when made.

Nothing here knows how a value travels (`wire`) or where it comes from; what can be wrong with a
value is said by its constructor.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Literal, TypedDict, get_args

import attrs

from .details import TaskDetails
from .errors import ConfigurationError, InvalidRequestError, KieError
from .urls import is_web_url

Size = Literal["1:1", "3:2", "2:3"]
Variants = Literal[1, 2, 4]
FallbackModel = Literal["FLUX_MAX", "GPT_IMAGE_1"]
Source = Literal["poll", "callback", "store"]

# Set while a request is read back from a store: whoever made it has been warned.
remembering: ContextVar[bool] = ContextVar("remembering", default=False)

MAX_FILES = 5  # filesUrl, Kie's generate page


# -- checks ------------------------------------------------------------------------------------


def _refuse(name: str, value: object, allowed: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name}={value!r} is not possible: {allowed}")


def _one_of(kind: Any) -> Any:
    allowed = get_args(kind)
    types = {type(choice) for choice in allowed}

    def check(_: object, field: attrs.Attribute[Any], value: object) -> None:
        if type(value) not in types or value not in allowed:
            raise _refuse(field.name, value, "use one of " + ", ".join(map(repr, allowed)))

    return check


def _flag(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise _refuse(field.name, value, "use True or False")


def _text(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str) or not value.strip():
        raise _refuse(field.name, value, "use a text that is not blank, or None")
    _encodable(field.name, value)


def _encodable(name: str, value: str) -> None:
    try:
        value.encode()
        return
    except UnicodeEncodeError as error:
        place = error.start
    raise _refuse(name, value[place : place + 1], f"character {place} is half of a pair and cannot be sent")


def _check_url(name: str, value: object) -> None:
    if not is_web_url(value):
        raise _refuse(name, value, "use a complete http:// or https:// URL without spaces")


def _url(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        _check_url(field.name, value)


def _urls(_: object, field: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    if len(value) > MAX_FILES:
        raise _refuse(field.name, f"{len(value)} URLs", f"Kie takes at most {MAX_FILES}")
    for index, url in enumerate(value):
        _check_url(f"{field.name}[{index}]", url)


def _as_tuple(value: Iterable[str] | None) -> tuple[str, ...]:
    """A tuple from any iterable but text, which would be a list of letters."""
    if value is None:
        return ()
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__iter__"):
        raise _refuse("files_url", value, "use a list of URLs, even for one")
    return tuple(value)


# -- what you ask for --------------------------------------------------------------------------


@attrs.frozen(weakref_slot=False)
class ImageRequest:
    """One request for images; every parameter of Kie's generate page under its snake_case name.

    Raises `InvalidRequestError` when made if Kie could only refuse it.

    `prompt`: what to draw or how to edit; may be left out if there is a file.
    `size`: aspect ratio, ``"1:1"``, ``"3:2"`` or ``"2:3"``.
    `files_url`: at most 5 public images to start from, at most 25 MiB each.
    `mask_url`: black is changed, white is kept; same size and format as the one reference image.
    `n_variants`: 1, 2 or 4 images; each choice has its own price.
    `callback_url`: where Kie reports the end of the task.
    `is_enhance`: let Kie enrich the prompt. `upload_cn`: fetch files by servers in China.
    `enable_fallback`, `fallback_model`: use that model while GPT-4o is down.
    `file_url`: deprecated by Kie in favour of `files_url`.
    """

    prompt: str | None = attrs.field(default=None, validator=_text)
    size: Size = attrs.field(default="1:1", kw_only=True, validator=_one_of(Size))
    files_url: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=_as_tuple, validator=_urls)
    mask_url: str | None = attrs.field(default=None, kw_only=True, validator=_url)
    n_variants: Variants = attrs.field(default=1, kw_only=True, validator=_one_of(Variants))
    callback_url: str | None = attrs.field(default=None, kw_only=True, validator=_url)
    is_enhance: bool = attrs.field(default=False, kw_only=True, validator=_flag)
    upload_cn: bool = attrs.field(default=False, kw_only=True, validator=_flag)
    enable_fallback: bool = attrs.field(default=False, kw_only=True, validator=_flag)
    fallback_model: FallbackModel = attrs.field(
        default="FLUX_MAX", kw_only=True, validator=_one_of(FallbackModel)
    )
    file_url: str | None = attrs.field(default=None, kw_only=True, validator=_url)

    def __attrs_post_init__(self) -> None:
        if self.prompt is None and not self.files_url and self.file_url is None:
            raise InvalidRequestError("a request needs a prompt or a file: set prompt or files_url")
        if remembering.get():
            return
        if self.file_url is not None:
            warnings.warn("Kie has deprecated fileUrl: use files_url=[...]", DeprecationWarning, stacklevel=3)
        if self.mask_url is not None and len(self.files_url) > 1:
            warnings.warn(
                "Kie ignores mask_url when files_url holds more than one image", UserWarning, stacklevel=3
            )


class RequestFields(TypedDict, total=False):
    """The fields of an `ImageRequest` as keywords, for type checkers and for wrappers of your own:
    ``**fields: Unpack[RequestFields]``."""

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


@attrs.frozen
class ImageResult:
    """The images of one task, as URLs that live for 14 days. Iterating gives the URLs.

    `source` tells how the end was learned: ``"poll"``, ``"callback"`` or ``"store"``. Results are
    equal if task and URLs are, however they were learned.
    """

    task_id: str
    urls: tuple[str, ...] = attrs.field(kw_only=True)
    details: TaskDetails = attrs.field(kw_only=True, eq=False, repr=False)
    source: Source = attrs.field(default="poll", kw_only=True, eq=False)
    n_variants: int | None = attrs.field(default=None, kw_only=True, eq=False, repr=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self.urls)

    def __len__(self) -> int:
        return len(self.urls)

    @property
    def partial(self) -> bool:
        """Fewer images came than were asked for (False if it is not known how many were)."""
        return self.n_variants is not None and len(self.urls) < self.n_variants


@attrs.frozen
class Completion:
    """One finished item of a batch: either `result` or `error` is set.

    `key` is the idempotency key, `index` the position in the input; `replayed` says that the
    store knew the outcome and nothing was submitted. `request` is None if what was given is not
    one (then `error` says why).
    """

    key: str
    index: int = attrs.field(kw_only=True)
    request: ImageRequest | None = attrs.field(kw_only=True)
    task_id: str | None = attrs.field(default=None, kw_only=True)
    result: ImageResult | None = attrs.field(default=None, kw_only=True)
    error: KieError | None = attrs.field(default=None, kw_only=True)
    replayed: bool = attrs.field(default=False, kw_only=True)

    @property
    def ok(self) -> bool:
        return self.result is not None

    def unwrap(self) -> ImageResult:
        """The result, or the error raised."""
        if self.error is not None:
            raise self.error
        if self.result is None:
            raise KieError("this completion has neither a result nor an error", key=self.key)
        return self.result


@attrs.frozen
class Callback:
    """What Kie posted to a callback URL: a hint that a task ended, not proof of how.

    `verified` says that the signature was checked; it covers the task id and the time only, so
    `urls` may be anybody's until a look at the task confirms them.
    """

    task_id: str
    code: int | None = attrs.field(kw_only=True)
    message: str = attrs.field(default="", kw_only=True)
    urls: tuple[str, ...] = attrs.field(default=(), kw_only=True)
    ref: str | None = attrs.field(default=None, kw_only=True, repr=False)
    verified: bool = attrs.field(default=False, kw_only=True)
    details: TaskDetails = attrs.field(kw_only=True, repr=False)


@attrs.frozen
class UploadedFile:
    """A file on Kie's upload host; `url` is good for `files_url` for about 24 hours."""

    url: str
    name: str = attrs.field(kw_only=True)
    path: str = attrs.field(kw_only=True)
    size: int = attrs.field(kw_only=True)
    mime_type: str = attrs.field(kw_only=True)
    uploaded_at: datetime | None = attrs.field(default=None, kw_only=True)


@attrs.frozen
class RateLimit:
    """At most `limit` new tasks in any `per` seconds. Kie admits 20 per 10 s to an account."""

    limit: int
    per: float = attrs.field(kw_only=True)

    def __attrs_post_init__(self) -> None:
        if type(self.limit) is not int or self.limit < 1:
            raise ConfigurationError(f"RateLimit({self.limit!r}): use a whole number from 1 on")
        if type(self.per) not in (int, float) or not 0 < self.per < float("inf"):
            raise ConfigurationError(f"RateLimit(per={self.per!r}): use a number of seconds above 0")
