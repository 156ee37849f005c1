"""What a person has found out about an unknown outcome: checked, and saved.

Kie's logs show a person what kie4o cannot see: which task a lost answer was about, or that there is none. A
task is confirmed by a poll before it is saved, as after a callback.
"""

from __future__ import annotations

import functools
import unicodedata
from enum import Enum

import attrs

from .callbacks.delivery import Delivery
from .details import TaskDetails, TaskState
from .errors import InvalidRequestError, KieError, TaskNotFoundError, invalid
from .events import Settled
from .events.reporter import Reporter
from .plain import plain
from .polling.outcome import is_final
from .polling.poller import TaskPoller
from .stores.ledger import Ledger, being_submitted
from .stores.store import PROMPT_SHOWN, Entry, EntryState, Store, duplicate_task
from .submission.submissions import Submissions
from .transport.retrying import repeated
from .wire.decoding import shown


@attrs.frozen(eq=False, kw_only=True)
class Settlement:
    """Settles the entries of one client. It reads from the store and writes through the ledger."""

    store: Store
    ledger: Ledger
    submissions: Submissions
    poller: TaskPoller
    delivery: Delivery
    reporter: Reporter

    async def settle(self, which: Entry | str | Enum, task_id: str | None) -> Entry:
        """Save that the entry has this task, or with None that it was not charged. Three steps:

        1. Whether the entry can be settled; nothing is sent if not.
        2. Kie confirms it. Until then nothing has changed.
        3. It is saved, unless a callback was faster, and those who wait for the name of the task are woken.
        """
        entry = await self._entry(which)
        if _is_settled(entry, task_id):
            return entry
        if self.submissions.is_live(entry.callers_key or entry.key):
            raise being_submitted(entry)
        details = await (self._check_unpaid(entry) if task_id is None else self._confirmed(entry, task_id))
        entry = await self.ledger.settle(entry, task_id, self.submissions.is_live)
        if not _is_settled(entry, task_id):
            raise KieError(f"{entry.label} could not be settled; call settle again")
        settled = Settled(ref_hash=entry.ref_hash, key=entry.callers_key, task_id=task_id)
        self.reporter(settled, entry.name)
        self.delivery.wake(entry)
        if details is None or not is_final(details):
            return entry
        await self.ledger.finish(details)
        return await self.ledger.find(entry.ref) or entry

    async def _entry(self, which: Entry | str | Enum) -> Entry:
        name = which.ref if isinstance(which, Entry) else plain(which)
        if not isinstance(name, str) or name == "":
            raise invalid("key", which, "a key, a ref, or an entry of unfinished()")
        entry = await self.ledger.find(name)
        if entry is None:
            raise InvalidRequestError(
                f"the store has no entry under {name[:80]!r}: expected the key or the ref of a submit whose "
                "outcome is unknown; client.unfinished() lists them"
            )
        return entry

    async def _check_unpaid(self, entry: Entry) -> None:
        """A callback that could not be confirmed when it arrived may name the task."""
        for task_id in await self.store.callbacks_of(entry.ref):
            details = await self._polled(task_id)
            if details.state is not TaskState.MISSING:
                raise _refused(entry, f"a callback has named its task {task_id}", task_id)

    async def _confirmed(self, entry: Entry, task_id: str) -> TaskDetails:
        """The details of a task that can be that of the entry."""
        owner = await self.store.find(task_id=task_id)
        if owner is not None:
            raise duplicate_task(task_id, owner)
        details = await self._polled(task_id)
        if details.state is TaskState.MISSING:
            message = f"Kie does not know task {task_id}; check the id and the account. Nothing was changed"
            raise TaskNotFoundError(message, task_id=task_id)
        prompt = details.params.get("prompt")
        if _differ(prompt, entry):
            raise _refused(entry, f"task {task_id} was asked for {shown(prompt, PROMPT_SHOWN)!r}", task_id)
        return details

    async def _polled(self, task_id: str) -> TaskDetails:
        return await repeated(functools.partial(self.poller.look, task_id), reporter=self.reporter)


def _is_settled(entry: Entry, task_id: str | None) -> bool:
    """Whether the entry is as if it had been settled like this; False if it can be. Raises if it cannot."""
    if entry.task_id is not None:
        if entry.task_id == task_id:
            return True
        earlier = "; earlier submits under its key are settled by their refs" if entry.earlier else ""
        raise _refused(entry, f"its outcome is known: {entry.state.value}{earlier}", entry.task_id)
    if entry.state is EntryState.INTENT:
        raise being_submitted(entry)
    if not entry.unnamed:
        raise _refused(entry, "it was not sent")
    return task_id is None and entry.state is EntryState.FAILED


def _differ(prompt: object, entry: Entry) -> bool:
    """Whether the record of a task has another prompt than the entry, if both are known.

    Kie may keep the prompt that it enriched.
    """
    asked = entry.request.prompt
    if not isinstance(prompt, str) or not prompt.strip() or asked is None or entry.request.is_enhance:
        return False
    return _plain(prompt) != _plain(asked)


def _plain(prompt: str) -> str:
    return " ".join(unicodedata.normalize("NFC", prompt).split())


def _refused(entry: Entry, reason: str, task_id: str | None = None) -> InvalidRequestError:
    return InvalidRequestError(
        f"nothing was changed: {entry.label}: {reason}", task_id=task_id, ref=entry.ref, key=entry.callers_key
    )
