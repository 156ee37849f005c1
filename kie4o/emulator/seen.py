"""What an emulator saw: each submit and each status check, with what it was answered.

The server records them; tests, `control` and the report of a failing test read them. An API key is never
recorded. Times are emulated seconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs

from .faults import Fault
from .tasks import Answer

SECRET_HEADERS = ("Authorization", "Proxy-Authorization", "Cookie")
REF_PARAMETER = "kie4o_ref"
_REF = re.compile(r"[\w-]{22,}", re.ASCII)  # 128 bits or more in URL-safe base64
_SHOWN_PROMPT, _SHOWN_SUBMITS = 30, 5  # characters and submits in the repr of an emulator


@attrs.define(kw_only=True, eq=False)
class Seen:
    """A request that arrived, and what it was answered.

    Attributes:
        at: When it arrived, in emulated seconds on the clock of `Emulator.now()`.
        task_id: The task that it is about, or that it created; None if it created none.
        answer: What Kie answers to it; None until then, and for a submit that a fault kept from Kie.
        fault: The fault that it met, which changed or withheld that answer, or None.
    """

    at: float
    task_id: str | None = None
    answer: Answer | None = None
    fault: Fault | None = None

    @property
    def code(self) -> int | None:
        """The code that was sent; None if none was, because of a fault or because it is still to come."""
        if self.fault is not None and self.fault.replaces_answer:
            return self.fault.code
        return None if self.answer is None else self.answer.code

    @property
    def answered(self) -> bool:
        """Whether it is decided what becomes of its answer."""
        return self.answer is not None or self.fault is not None

    def outcome(self) -> str:
        """The code that was sent, or why there is none."""
        if self.code is not None:
            return f"{self.code}"
        return str(self.fault) if self.answered else "no answer yet"


@attrs.define(kw_only=True, eq=False, repr=False)
class Submit(Seen):
    """One submit whose body arrived, accepted or not. A task may exist although the answer is an error.

    Attributes:
        body: The bytes of its body; `request` is the same, decoded.
        headers: Its headers, without the API key. Names are found in any case.
    """

    body: bytes
    headers: Mapping[str, str]

    @property
    def request(self) -> dict[str, Any]:
        """The JSON object as sent; empty if the body is none."""
        try:
            request = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return request if isinstance(request, dict) else {}

    @property
    def ref(self) -> str | None:
        """The token by which kie4o finds this submit again, from `callBackUrl`; None without one.

        It is the parameter `kie4o_ref`, or else the last part of the URL that looks like a ref.
        """
        try:
            url = urlsplit(str(self.request.get("callBackUrl") or ""))
        except ValueError:
            return None
        named = parse_qs(url.query).get(REF_PARAMETER)
        found = named or _REF.findall(f"{url.path}?{url.query}")
        return str(found[-1]) if found else None

    def __repr__(self) -> str:
        task = f", task {self.task_id}" if self.task_id else ""
        return f"<Submit {self.summary()} at {self.at:.3f} s{task}>"

    def summary(self) -> str:
        """The prompt and the answer, in a few words."""
        prompt = self.request.get("prompt")
        text = repr(prompt if isinstance(prompt, str) else self.request or self.body)
        shown = text if len(text) <= _SHOWN_PROMPT else text[: _SHOWN_PROMPT - 1] + "\u2026"
        return f"{shown} -> {self.outcome()}"


@attrs.define(kw_only=True, eq=False)
class Look(Seen):
    """One status check. `task_id` is what it asked for, whether there is such a task or not."""

    @property
    def status(self) -> str | None:
        """Kie's word for the state of the task, such as "GENERATING"; None in a refusal."""
        data = self.answer.data if self.answer is not None and self.code == 200 else None
        return data.get("status") if isinstance(data, dict) else None


def without_key(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers but those that hold a secret."""
    secret = {name.lower() for name in SECRET_HEADERS}
    return [(name, value) for name, value in headers if name.lower() not in secret]


def describe(submits: Sequence[Submit]) -> str:
    """The last submits in one line, for a failing assertion."""
    if not submits:
        return "no submit"
    earlier = f"{len(submits) - _SHOWN_SUBMITS} earlier, " if len(submits) > _SHOWN_SUBMITS else ""
    return earlier + ", ".join(submit.summary() for submit in submits[-_SHOWN_SUBMITS:])
