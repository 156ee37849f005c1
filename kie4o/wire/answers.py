"""The answers that are not about a task: links, balance, uploads. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from ..models import UploadedFile
from ..urls import is_web_url
from .envelope import data_of, structured_data, unreadable

if TYPE_CHECKING:
    from decimal import Decimal


_URL_SAFE = "!#$%&'()*+,/:;=?@[]~"  # a file name may have brought spaces into an upload's URL


# -- the other answers -------------------------------------------------------------------------


def link_of(status: int, body: bytes, retry_after: float | None = None) -> str:
    """A signed link (download-url). The reference sends text; a quickstart reads `downloadUrl`."""
    data = data_of(status, body, retry_after)
    link = data.get("downloadUrl") if isinstance(data, dict) else data
    if not isinstance(link, str) or not is_web_url(link):
        raise unreadable(status, body, "data")
    return link


def credits_of(status: int, body: bytes, retry_after: float | None = None) -> Decimal:
    """The balance (common API); whole by the documents, fractional on the wire."""
    from decimal import Decimal, InvalidOperation  # not before somebody asks for the balance

    data = data_of(status, body, retry_after)
    amount = None
    if not isinstance(data, bool) and isinstance(data, (int, float, str)):
        try:
            amount = Decimal(str(data))
        except InvalidOperation:
            amount = None
    if amount is None or not amount.is_finite():
        raise unreadable(status, body, "data")
    return amount


def uploaded_of(status: int, body: bytes, retry_after: float | None = None) -> UploadedFile:
    """A stored file (file upload). Use `downloadUrl`: other names are in a quickstart only."""
    data = data_of(status, body, retry_after)
    from .structuring import Stored

    stored = structured_data(data, Stored, status, body)
    url = stored.downloadUrl.encode(errors="replace").decode()
    url = quote(url, safe=_URL_SAFE)
    if not is_web_url(url):
        raise unreadable(status, body, "data.downloadUrl")
    return UploadedFile(
        url,
        name=stored.fileName,
        path=stored.filePath,
        size=stored.fileSize,
        mime_type=stored.mimeType,
        uploaded_at=stored.uploadedAt,
    )
