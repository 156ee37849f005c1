"""Where a task id and image URLs are looked for, in answers, records and callbacks alike.

Kie's pages, its answers and what public clients have met differ in where these two are, and in the form: an
object, a list, or either of them as JSON text. An image that is there must be found, since it is paid for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from . import decoding

_ID_NAMES = ("taskId", "task_id")
# An id without its name: real ones have 32 hex digits. A word such as "success" is not an id.
_UNNAMED_ID = re.compile(r"(?=.*[0-9])[A-Za-z0-9_-]{8,128}", re.ASCII)
_SMALLEST_ID = 10**7  # the first number of eight digits
# Where image URLs are: in records (record-info page), in callbacks (callbacks page), and names that public
# clients have met.
_URL_NAMES = ("resultUrls", "result_urls", "resultUrl", "resultImageUrl", "url")
_AROUND_URLS = ("response", "info", "resultJson", "data")
_PLACES_OF_URLS = (*_URL_NAMES, *_AROUND_URLS)
_DEPTH = 4  # of objects, lists and texts within each other


def task_id(root: Mapping[str, Any], *, anywhere: bool = True) -> str | None:
    """The task id of a message.

    It is usually in `data`, or at the root as on the webhook verification page. With `anywhere` it may also
    be deeper within `data`, be called `id`, or be all that `data` holds; then it must be the only one.
    """
    data = root.get("data")
    for fields in (data, root):
        if isinstance(fields, Mapping) and (named := _named_ids(fields)):
            return named[0]
    if not anywhere:
        return None
    if only := _unnamed_id(data):
        return only
    objects = list(_objects(data, _DEPTH))
    found = {each for fields in objects for each in _named_ids(fields)}
    if not found:
        found = {each for fields in objects if (each := _unnamed_id(fields.get("id")))}
    return found.pop() if len(found) == 1 else None


def named_ids(root: Mapping[str, Any]) -> set[str]:
    """Every task id that a message names, in `data` and beside it, or else deeper."""
    data = root.get("data")
    fields = [each for each in (data, root) if isinstance(each, Mapping)]
    found = {each for one in fields for each in _named_ids(one)}
    return found or ({only} if (only := task_id(root)) else set())


def image_urls(value: object, depth: int = _DEPTH) -> tuple[str, ...]:
    """The image URLs in a value of any shape. Only http and https URLs count."""
    if isinstance(value, str):
        if is_url(value):
            return (value,)
        value = _decoded(value)
    if depth == 0:
        return ()
    if isinstance(value, dict):
        for name in _PLACES_OF_URLS:
            if (inner := value.get(name)) and (urls := image_urls(inner, depth - 1)):
                return urls
    if isinstance(value, list):
        return tuple(url for each in value for url in image_urls(each, depth - 1))
    return ()


def is_url(text: str) -> bool:
    """Whether a text is a URL for the web, as far as its scheme tells. Kie's own may hold spaces."""
    return text.lower().startswith(("https://", "http://"))


def _named_ids(fields: Mapping[str, Any]) -> list[str]:
    return [each for name in _ID_NAMES if (each := _id_or_digits(fields.get(name)))]


def _id_or_digits(value: object) -> str | None:
    if type(value) is int and value >= _SMALLEST_ID:
        value = str(value)
    return decoding.task_id(value)


def _unnamed_id(value: object) -> str | None:
    text = _id_or_digits(value)
    return text if text is not None and _UNNAMED_ID.fullmatch(text) else None


def _objects(value: object, depth: int) -> Iterator[Mapping[str, Any]]:
    """The objects in a value, the outer ones first."""
    if isinstance(value, str):
        value = _decoded(value)
    if depth == 0:
        return
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _objects(each, depth - 1)


def _decoded(text: str) -> Any:
    """The object or the list that a text holds as JSON, or None."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return decoding.json_value(text.strip())
    except ValueError:
        return None
