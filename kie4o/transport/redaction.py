"""Hiding the API key in what a server answers, before anything decodes or shows it.

An answer may echo the key: as it is, with JSON escapes (`\\u0041`, twice in JSON text within JSON), or
percent-encoded in a URL. Answers may be cut off or not be JSON at all, so this works on their bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ..settings import Secret

_SHORTEST_SECRET = 16  # characters; Kie's keys have 32. A shorter word may be part of anything, and stays
_HIDDEN = b"***"
_ESCAPE = re.compile(rb"\\(?:u00([0-7][0-9a-fA-F])|(.))|%([0-7][0-9a-fA-F])", re.DOTALL)
_LEVELS = 4  # of escapes within escapes; kie4o reads up to three, a list of URLs as text in a text
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)  # of JSON, perhaps cut off


def redactor(api_key: Secret) -> Callable[[bytes], bytes]:
    """A function that removes the key from a body. It leaves valid JSON valid."""
    key = api_key.reveal().encode()
    if len(key) < _SHORTEST_SECRET:
        return lambda body: body
    # A body is searched as text: `in` of bytes raises and drops an error first, and takes thrice as long.
    key_text = key.decode("latin-1")
    # Together with the beginning of an escape that the first letters of the key would end.
    plain = re.compile(rb"(?:(?<!\\)\\++(?:u[0-9a-fA-F]{0,3})?)?" + re.escape(key))
    escape = "\\" if set(key) & set(b'"/\\') else "\\u00"  # these three have short escapes

    def hidden(text: re.Match[bytes]) -> bytes:
        return b'"%s"' % _HIDDEN if _contains(text[0], key) else text[0]

    def redacted(body: bytes) -> bytes:
        text = body.decode("latin-1")
        if key_text in text:
            body = plain.sub(_HIDDEN, body)
        if (escape in text or "%" in text) and _contains(body, key):
            body = _STRING.sub(hidden, body)
            return _HIDDEN if _contains(body, key) else body
        return body

    return redacted


def _contains(text: bytes, key: bytes) -> bool:
    """Whether the key is in the text, at any level of escapes."""
    for _ in range(_LEVELS):
        text = _ESCAPE.sub(_unescaped, text)
        if key in text:
            return True
    return False


def _unescaped(escape: re.Match[bytes]) -> bytes:
    digits = escape[1] or escape[3]
    return bytes([int(digits, 16)]) if digits else escape[2]
