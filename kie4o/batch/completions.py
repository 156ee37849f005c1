"""What became of an item: its result or its error, from this run or from the store."""

from __future__ import annotations

from ..errors import KieError, key_conflict
from ..events import Completed
from ..models import Completion, ImageResult
from ..polling.outcome import result_of
from ..stores.store import Entry, fingerprint
from ..submission.pending import NO_ANSWER, unknown_error
from .items import Item


def replayed_completion(item: Item, entry: Entry) -> Completion:
    """The completion of an item whose outcome is stored."""
    try:
        # Comparing two requests takes a third of the time of hashing them.
        if item.request is None or not (
            entry.request == item.request or entry.fingerprint == fingerprint(item.request)
        ):
            raise key_conflict(item.key)
        if entry.details is None:
            raise unknown_error(entry, NO_ANSWER)
        result = result_of(entry.details, "store", entry.request.n_variants)
        return completion_of(item, result=result, replayed=True)
    except KieError as error:
        return completion_of(item, error=error, replayed=True)


def completed_event(completion: Completion) -> Completed:
    """What hooks are told of it."""
    result, error = completion.result, completion.error
    return Completed(
        index=completion.index,
        key=completion.key,
        task_id=completion.task_id,
        outcome="succeeded" if error is None else type(error).__name__,
        images=0 if result is None else len(result),
        earlier=completion.replayed,
    )


def completion_of(
    item: Item,
    *,
    result: ImageResult | None = None,
    error: KieError | None = None,
    replayed: bool = False,
    submitted: bool = False,
) -> Completion:
    if error is not None and error.key is None:
        error.key = item.key
    return Completion(
        item.key,
        index=item.index,
        request=item.request,
        task_id=result.task_id if result is not None else getattr(error, "task_id", None),
        result=result,
        error=error,
        replayed=replayed,
        submitted=submitted,
    )
