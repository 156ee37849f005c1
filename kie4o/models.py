"""The values that callers receive, and the limit that they set: frozen, keyword-only after the first field.

Durations are seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol, overload

import attrs

from .details import TaskDetails
from .errors import KieError, invalid_setting
from .image_request import ImageRequest
from .notebooks import figure

Exists = Literal["keep", "replace", "rename"]
"""What a download does if there is a file of its name."""
Source = Literal["poll", "callback", "store"]


class HasTaskId(Protocol):
    """Whatever names a task: an `ImageTask`, `ImageResult`, `TaskDetails`, `Completion`, `Callback`, or an
    error that has a task id."""

    @property
    def task_id(self) -> str | None:
        """The id of the task."""
        ...


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

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self.urls[index]

    @property
    def partial(self) -> bool:
        """Whether fewer images arrived than were requested; False if `n_variants` is None."""
        return self.n_variants is not None and len(self.urls) < self.n_variants

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        prompt = self.details.params.get("prompt")
        return figure(self.urls, task_id=self.task_id, prompt=prompt if isinstance(prompt, str) else None)


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
        submitted: Whether this run has submitted it, so that it was charged or may have been; not an earlier
            run, or another process on the same store.
    """

    key: str = attrs.field(kw_only=False)
    index: int
    request: ImageRequest | None
    task_id: str | None = None
    result: ImageResult | None = None
    error: KieError | None = None
    replayed: bool = False
    submitted: bool = False

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

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return figure(
            self.result or (),
            task_id=self.task_id,
            prompt=self.request.prompt if self.request is not None else None,
            error=str(self.error) if self.error is not None else "",
        )


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
