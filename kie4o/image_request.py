"""What callers ask for: an `ImageRequest`, checked when it is created, and the files that it may name.

Every way to write a value becomes the plain one, so that equal requests are equal. What Kie could only refuse
is refused, and what costs money for nothing is warned about. The rules are those of Kie's generate page.
"""

from __future__ import annotations

import inspect
import json
import os
import posixpath
import warnings
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from datetime import datetime
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, get_args
from urllib.parse import urlsplit

import attr
import attrs

from .details import EMPTY
from .errors import InvalidRequestError, invalid
from .plain import json_object, plain
from .urls import WEB_URL, URLObject, callback_url_fault, callback_url_text, is_web_url, url_text

if TYPE_CHECKING:
    from decimal import Decimal

    from .pricing import Prices

Size = Literal["1:1", "3:2", "2:3"]
"""The aspect ratio of an image (Kie's generate page)."""
Variants = Literal[1, 2, 4]
"""How many images one request asks for; each number has its own price (Kie's generate page)."""
FallbackModel = Literal["FLUX_MAX", "GPT_IMAGE_1"]
"""The model to use while GPT-4o is down (Kie's generate page)."""

# Set while a request is read back from a store: its author has seen the warnings already.
remembering: ContextVar[bool] = ContextVar("remembering", default=False)

MAX_FILES = 5  # filesUrl (generate page)


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


AnyURL: TypeAlias = str | Enum | URLObject | UploadedFile
"""A URL, as text or as an object whose text is one."""


# -- what is taken -----------------------------------------------------------------------------


def _as_text(value: str | Enum | None) -> str | None:
    return plain(value)  # type: ignore[no-any-return]  # the validator checks it


def _as_size(value: Size | Enum) -> Size:
    return plain(value)  # type: ignore[no-any-return]  # the validator checks it


def _as_variants(value: Variants | Enum) -> Variants:
    return plain(value)  # type: ignore[no-any-return]  # the validator checks it


def _as_model(value: FallbackModel | Enum) -> FallbackModel:
    return plain(value)  # type: ignore[no-any-return]  # the validator checks it


def _as_url(value: AnyURL | None) -> str | None:
    text: str | None = url_text(plain(value.url if isinstance(value, UploadedFile) else value))
    return text


def _as_callback_url(value: str | Enum | URLObject | None) -> str | None:
    return callback_url_text(plain(value))  # type: ignore[no-any-return]  # the validator checks it


def _as_urls(value: Iterable[AnyURL] | None) -> tuple[str, ...]:
    """A tuple from any iterable of URLs. A string would become its letters, an open file its lines."""
    if value is None or (type(value) is tuple and not value):  # left at its default
        return ()
    one = isinstance(value, (str, bytes, bytearray, memoryview, Mapping)) or hasattr(value, "read")
    if one or not hasattr(value, "__iter__"):
        expected = "a list of URLs, even for a single one: files_url=[url]"
        raise invalid("files_url", value, expected + _upload_hint(value))
    return tuple(map(_as_url, value))  # type: ignore[arg-type]  # _urls checks each


def _as_extra(value: Mapping[str, object]) -> Mapping[str, Any]:
    if type(value) is dict and not value:
        return EMPTY  # one for all, which saves each request 64 bytes
    problem = ""
    try:
        return json_object(value)
    except ValueError as error:
        problem = str(error)
    raise InvalidRequestError(
        f"invalid extra: expected a mapping from Kie's names to JSON values, but {problem}"
    )


def _comparable(extra: Mapping[str, Any]) -> str:
    return json.dumps(extra) if extra else ""


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


def _flag_or_none(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not isinstance(value, bool):
        raise invalid(field.name, value, "True, False or None")


def _text(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str) or not value.strip():
        raise invalid(field.name, value, "a string that is not blank, or None with a file")
    _check_encodable(field.name, value)


def _check_encodable(name: str, value: str) -> None:
    try:
        value.encode()
        return
    except UnicodeEncodeError as error:
        index = error.start
    expected = f"text that UTF-8 can encode, but character {index} is a lone surrogate"
    raise invalid(name, value[index : index + 1], expected)


def _url(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not is_web_url(value):
        raise invalid(field.name, value, WEB_URL)


def _file_url(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        _check_file_url(field.name, value)


def _callback_url(_: object, field: attrs.Attribute[Any], value: object) -> None:
    if value is None:
        return
    if remembering.get():  # a store may hold one that was valid when it was submitted
        _url(_, field, value)
        return
    fault = callback_url_fault(value)
    if fault is not None:
        raise invalid(field.name, value, fault)


def _urls(_: object, field: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    if len(value) > MAX_FILES:
        raise invalid(field.name, [*value[:1], "..."], f"at most {MAX_FILES} URLs, got {len(value)}")
    for index, url in enumerate(value):
        _check_file_url(f"{field.name}[{index}]", url)


def _check_file_url(name: str, value: object) -> None:
    if not is_web_url(value):
        raise invalid(name, value, WEB_URL + _upload_hint(value))


def _upload_hint(value: object) -> str:
    """Kie fetches files by their URLs: what to do with one that is on this machine or in memory."""
    return "; for a local file pass what upload() returned" if is_local(value) else ""


def is_local(value: object) -> bool:
    """Whether what was passed as a URL is a file, or a path of one."""
    if isinstance(value, str):
        return bool(value.strip()) and not value.lstrip().lower().startswith(("http:", "https:"))
    return isinstance(value, (os.PathLike, bytes, bytearray, memoryview)) or hasattr(value, "read")


# -- requests ----------------------------------------------------------------------------------


@attrs.frozen(kw_only=True, weakref_slot=False)
class ImageRequest:
    """One request for images: every parameter of Kie's generate page under its snake_case name.

    Creating one raises `InvalidRequestError` if Kie could only refuse it.

    Attributes:
        prompt: What to draw, or how to edit the files. Optional if there is a file.
        size: Aspect ratio: ``"1:1"``, ``"3:2"`` or ``"2:3"``.
        files_url: Up to 5 public URLs of images to start from, at most 25 MiB each. Here and below a URL is
            text, a URL object (pydantic, yarl, httpx, Starlette, urllib), or what `upload` returned.
        mask_url: URL of a mask for a single file, of its size and format: black is changed, white is kept.
        n_variants: 1, 2 or 4 images; each choice has its own price.
        callback_url: Where Kie reports the end of the task; it may hold ``{ref}``, as the client's may.
        is_enhance: Let Kie enrich the prompt.
        upload_cn: Whether Kie fetches the files through servers in China; None leaves it to Kie.
        enable_fallback: Use `fallback_model` while GPT-4o is unavailable.
        fallback_model: ``"FLUX_MAX"`` or ``"GPT_IMAGE_1"``.
        file_url: Deprecated by Kie; use `files_url`.
        extra: Parameters, or values of the fields above, that kie4o does not know yet, under Kie's names:
            ``extra={"size": "16:9"}``. They are sent as they are.
    """

    prompt: str | None = attrs.field(default=None, converter=_as_text, validator=_text, kw_only=False)
    size: Size = attrs.field(default="1:1", converter=_as_size, validator=_one_of(Size))
    files_url: tuple[str, ...] = attrs.field(default=(), converter=_as_urls, validator=_urls)
    mask_url: str | None = attrs.field(default=None, converter=_as_url, validator=_file_url)
    n_variants: Variants = attrs.field(default=1, converter=_as_variants, validator=_one_of(Variants))
    callback_url: str | None = attrs.field(default=None, converter=_as_callback_url, validator=_callback_url)
    is_enhance: bool = attrs.field(default=False, validator=_flag)
    upload_cn: bool | None = attrs.field(default=None, validator=_flag_or_none)
    enable_fallback: bool = attrs.field(default=False, validator=_flag)
    fallback_model: FallbackModel = attrs.field(
        default="FLUX_MAX", converter=_as_model, validator=_one_of(FallbackModel)
    )
    file_url: str | None = attrs.field(default=None, converter=_as_url, validator=_file_url)
    extra: Mapping[str, Any] = attrs.field(factory=dict, converter=_as_extra, eq=_comparable, hash=False)

    def __attrs_post_init__(self) -> None:
        for name in self.extra:
            _check_extra(self, name)
        if self.prompt is None and "prompt" not in self.extra and not _has_file(self):
            raise InvalidRequestError("a request needs a prompt or a file: pass prompt or files_url")
        if not remembering.get():
            for category, text in notices(self):
                warn_caller(text, category)

    def price(self, prices: Prices | None = None) -> Decimal:
        """What it costs, in credits.

        Args:
            prices: As `AsyncKieClient` takes them; by default the published rate of 6 credits for an image.

        Raises:
            InvalidRequestError: `prices` are not prices, or there is none for its number of variants.
        """
        from .pricing import price_list  # which loads decimal; reading a callback does without

        return price_list(prices, invalid).price(images_asked(self))


def images_asked(request: ImageRequest) -> object:
    """How many images a request asks for. What `extra` says of it may be any JSON."""
    return request.extra.get("nVariants", request.n_variants)


class RequestFields(TypedDict, total=False):
    """The fields of an `ImageRequest` as keywords, for wrappers of your own:
    ``def draw(**fields: Unpack[RequestFields])``."""

    prompt: str | Enum | None
    size: Size | Enum
    files_url: Iterable[AnyURL] | None
    mask_url: AnyURL | None
    n_variants: Variants | Enum
    callback_url: str | Enum | URLObject | None
    is_enhance: bool
    upload_cn: bool | None
    enable_fallback: bool
    fallback_model: FallbackModel | Enum
    file_url: AnyURL | None
    extra: Mapping[str, object]


def _kies_name(name: str) -> str:
    if name == "callback_url":
        return "callBackUrl"  # the only name of the generate page that is not plain camelCase
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


DEFAULTS: Mapping[str, object] = MappingProxyType(
    {field.name: field.default for field in attrs.fields(ImageRequest) if field.name != "extra"}
)
KIES_NAMES: Mapping[str, str] = MappingProxyType({name: _kies_name(name) for name in DEFAULTS})
"""Kie's name of every field (generate page)."""


def _folded(name: str) -> str:
    return name.replace("_", "").casefold()


_OUR_NAMES = {_folded(name): name for name in DEFAULTS}


def our_name(name: str) -> str | None:
    """The field that a name means: ours, Kie's, or either in other capitals."""
    return _OUR_NAMES.get(_folded(name))


def _check_extra(request: ImageRequest, name: str) -> None:
    """A known parameter may be in `extra` under Kie's name, while our field of it is left at its default."""
    ours = our_name(name)
    if ours is None:
        return
    kies = KIES_NAMES[ours]
    if ours == "callback_url":
        problem = "pass callback_url=, which carries the ref that names the request"
    elif name != kies:
        problem = f"extra takes Kie's names; pass {ours}= or extra[{kies!r}]"
    elif getattr(request, ours) != DEFAULTS[ours]:
        problem = f"pass either {ours}= or extra[{kies!r}], not both"
    else:
        return
    raise InvalidRequestError(f"invalid extra[{name!r}]: {problem}")


# -- warnings about what money buys nothing for ----------------------------------------------------

# filesUrl (generate page); the value is the format.
FORMATS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys((".jfif", ".pjpeg", ".jpeg", ".pjp", ".jpg"), "JPEG"),
        ".png": "PNG",
        ".webp": "WebP",
    }
)
# Suffixes that say plainly that a file has another format. A URL may end in anything else, such as .php.
_OTHER_FORMATS = {
    *(".ai", ".avif", ".bmp", ".dng", ".eps", ".gif", ".heic", ".heif", ".ico", ".jp2", ".jxl", ".mov"),
    *(".mp4", ".pdf", ".psd", ".raw", ".svg", ".tga", ".tif", ".tiff", ".webm"),
}
# Files of this package, of attrs, whose generated constructors are in no file, and of asyncio, which runs the
# items of a batch: their caller is what runs the loop.
_FOLDERS = (Path(__file__).parent, Path(attr.__file__).parent, Path(os.__file__).parent / "asyncio")
_OURS = (*(str(folder) + os.sep for folder in _FOLDERS), "<attrs generated")


def notices(request: ImageRequest) -> list[tuple[type[Warning], str]]:
    """What the author of a request should know before paying for it."""
    found: list[tuple[type[Warning], str]] = []
    if request.file_url is not None:
        found.append((DeprecationWarning, "Kie has deprecated fileUrl: use files_url=[...]"))
    enabled = request.enable_fallback or "enableFallback" in request.extra
    if request.fallback_model != DEFAULTS["fallback_model"] and not enabled:
        found.append((UserWarning, "fallback_model has no effect without enable_fallback=True"))
    if request.mask_url is None and not _has_file(request):
        return found
    files = [url for url in (*request.files_url, request.file_url) if url is not None]
    for url in (*files, *([request.mask_url] if request.mask_url is not None else [])):
        if _suffix(url) in _OTHER_FORMATS:
            known = ", ".join(FORMATS)
            found.append((UserWarning, f"Kie lists no {_suffix(url)} files, only {known}: the task may fail"))
    if request.mask_url is None:
        return found
    mask, formats = FORMATS.get(_suffix(request.mask_url)), {FORMATS.get(_suffix(url)) for url in files}
    if len(request.files_url) > 1:
        found.append((UserWarning, "Kie ignores mask_url when files_url holds more than one image"))
    elif not _has_file(request):
        found.append((UserWarning, "mask_url has no effect without a file: pass files_url=[...]"))
    elif mask is not None and formats and formats.isdisjoint({mask, None}):
        text = f"the mask is a {mask} file and the image is not: Kie expects the same format for both"
        found.append((UserWarning, text))
    return found


def warn_caller(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called this package."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_code.co_filename.startswith(_OURS):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level)


def _has_file(request: ImageRequest) -> bool:
    named = "filesUrl" in request.extra or "fileUrl" in request.extra
    return named or bool(request.files_url) or request.file_url is not None


def _suffix(url: str) -> str:
    return posixpath.splitext(urlsplit(url).path)[1].lower()
