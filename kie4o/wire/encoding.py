"""Undoing a Content-Encoding. kie4o asks for none, but servers and proxies compress all the same, or
announce a compression that is not there. Pure.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from types import MappingProxyType

from .envelope import envelope_of

_RAW_DEFLATE = -zlib.MAX_WBITS
# The formats that a name stands for, as zlib's `wbits`. For the last two Python has nothing that every
# supported version includes.
_FORMATS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "gzip": (16 + zlib.MAX_WBITS,),
        "x-gzip": (16 + zlib.MAX_WBITS,),
        "deflate": (zlib.MAX_WBITS, _RAW_DEFLATE),
        "br": (),
        "zstd": (),
    }
)


def decoded(body: bytes, encoding: str | None, limit: int) -> tuple[bytes, str]:
    """The body without its encoding, and what is wrong with it, or "".

    Args:
        body: What was received, perhaps not to its end.
        encoding: The Content-Encoding. What it says is not believed of a body that has an envelope as it is.
        limit: The most bytes that may come out. Of more, `limit + 1` are returned.
    """
    name = (encoding or "").strip().lower()
    if name in ("", "identity") or envelope_of(body) is not None:
        return body, ""
    if name not in _FORMATS:  # its text is not shown, since it may echo anything
        return body, "the answer cannot be decoded: its Content-Encoding is not known, and was not asked for"
    for wbits in _FORMATS[name]:
        text, whole = _decompressed(body, wbits, limit)
        if len(text) > limit:
            return text, f"the answer has more than {limit} bytes"
        if whole:
            return text, ""
        if text and wbits != _RAW_DEFLATE:  # which has no header, so anything may look like its beginning
            return text, f"the answer breaks off within its Content-Encoding {name!r}"
    return body, f"the answer cannot be decoded: its Content-Encoding is {name!r}, which was not asked for"


def _decompressed(body: bytes, wbits: int, limit: int) -> tuple[bytes, bool]:
    """The text, nothing of damaged data, and whether it is whole. What follows it may be a second part."""
    unpacker = zlib.decompressobj(wbits)
    try:
        return unpacker.decompress(body, limit + 1), unpacker.eof and not unpacker.unused_data
    except zlib.error:
        return b"", False
