"""What Kie says in words where its code says less, and how a log line repeats it. Pure.

Kie sends an empty balance as code 500, and code 400 for a failed task both if the content is against the
policy and if an input image is too large, of another format or out of reach (record-info page).

The patterns are compiled when an answer first needs one, which in most runs none does: they would take 2 of
the 50 ms of CPU time that kie4o takes to import beside aiohttp.
"""

from __future__ import annotations

import re

from ..errors import APIStatusError, SubmissionUnknownError, UnexpectedResponseError
from .decoding import shown

_BRIEF = 120  # characters
_URL = r"\w{1,20}://\S+?(?=[.,:;)]?(\s|$))"
_DATA = r'(?s)([<{]|\[").*'  # a page or JSON, which may hold prompts and URLs


def _any(*words: str) -> str:
    return rf"(?i)\b({'|'.join(words)})"


# The two words beside each other: "insufficient capacity; your credits will be refunded" says the opposite. A
# submit counts as not charged because of this, so what is in doubt does not match.
_CREDITS = _any(
    "(credits?|balance) ((is|are) )?(insufficient|not enough|isn.?t enough|too low|exhausted)",
    "(insufficient|not enough) ((account|api) )?(credits?|balance)",
)
_REFUNDED = _any("refund", "deducted", "charged")
_POLICY = _any("polic(y|ies)", "flagged", "moderation", "safety system", "prohibited", "nsfw")
_IMAGE = _any("images?", "pictures?", "files?", "filesUrl", "maskUrl", "masks?", "invalid_image")
_FAULT = _any(
    *("too large", "exceed", "size", "bytes", "formats?", "unsupported", "invalid", "corrupt"),
    *("decod", "fetch", "access", "download"),
)


def say_credits_are_insufficient(message: str) -> bool:
    """Whether a request was refused because the balance is too low, so that nothing was charged."""
    return re.search(_CREDITS, message) is not None and re.search(_REFUNDED, message) is None


def say_policy(message: str) -> bool:
    """Whether the content of a prompt or of an image is against the policy."""
    return re.search(_POLICY, message) is not None


def say_input_image(message: str) -> bool:
    """Whether an input image is too large, cannot be read or cannot be fetched."""
    return re.search(_IMAGE, message) is not None and re.search(_FAULT, message) is not None


def in_brief(code: int | None, message: str) -> str:
    """A code and its words for a log line: no URL, nothing of a page or of JSON."""
    words = re.sub(_URL, "...", re.sub(_DATA, "", message))
    return shown(words if code is None else f"{code} {words}", _BRIEF)


def cause_of(error: BaseException) -> str:
    """Why a call failed, for a log line."""
    if isinstance(error, APIStatusError):
        return in_brief(error.code, error.message)
    if isinstance(error, SubmissionUnknownError) and error.ref:  # its message goes on with ref and prompt
        return in_brief(None, str(error).partition(error.ref)[0] + "...")
    if isinstance(error, UnexpectedResponseError):  # its message has an excerpt
        return f"unreadable answer with HTTP status {error.http_status}"
    return in_brief(None, str(error)) or type(error).__name__
