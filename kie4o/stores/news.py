"""The words in which a store that processes share tells what one of them has written."""

from __future__ import annotations

from .store import hash_of_ref


def about_ref(ref: str) -> str:
    """The task of a submit whose answer was lost may be known."""
    return f"ref {hash_of_ref(ref).hex()}"


def about_task(task_id: str) -> str:
    """A task has ended, or nobody polls it."""
    return f"task {task_id}"
