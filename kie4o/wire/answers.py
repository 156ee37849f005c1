"""The answers that are not about a task: signed links, the balance, uploaded files.

Each function takes the HTTP status, the body and the seconds of a Retry-After header. It returns a
value, or raises `APIStatusError` or `UnexpectedResponseError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from ..image_request import UploadedFile
from ..urls import is_web_url
from .envelope import data_of, unreadable
from .structuring import StoredFile, structured

if TYPE_CHECKING:
    from decimal import Decimal

# Characters of a URL that stay; spaces and backslashes, which Kie's own may hold, do not.
_URL_SAFE = "!#$%&'()*+,/:;=?@[]~"


def link_of(status: int, body: bytes, retry_after: float | None = None) -> str:
    """A signed link (download-url page). It is a string; a quickstart also shows `{"downloadUrl"}`."""
    data = data_of(status, body, retry_after)
    link = data.get("downloadUrl") if isinstance(data, dict) else data
    if isinstance(link, str) and not is_web_url(link):
        link = _quoted(link)
    if not is_web_url(link):
        raise unreadable(status, body, "data")
    return str(link)


def credits_of(status: int, body: bytes, retry_after: float | None = None) -> Decimal:
    """The balance (common API page: credits). It is an integer there, and a fraction in answers."""
    from decimal import Decimal, InvalidOperation  # 2 ms of import that only this call needs

    data = data_of(status, body, retry_after)
    try:
        amount = Decimal(str(data))  # refuses what is no number, also true and null
    except InvalidOperation:
        amount = Decimal("nan")
    if not amount.is_finite():
        raise unreadable(status, body, "data")
    return amount


def uploaded_of(status: int, body: bytes, retry_after: float | None = None) -> UploadedFile:
    """An uploaded file (file upload page). `downloadUrl` is the URL in every answer seen so far."""
    stored = structured(data_of(status, body, retry_after), StoredFile, status, body)
    url = _quoted(stored.downloadUrl)
    if not is_web_url(url):
        raise unreadable(status, body, "data.downloadUrl")
    return UploadedFile(
        url,
        name=stored.fileName or "",
        path=stored.filePath or "",
        size=stored.fileSize or 0,
        mime_type=stored.mimeType or "",
        uploaded_at=stored.uploadedAt,
    )


def _quoted(url: str) -> str:
    """The URL without characters that cannot be sent. What is quoted stays so, since it may be signed."""
    return quote(url.strip().encode(errors="replace"), safe=_URL_SAFE)
