"""Faults put back into kie4o, one at a time: the controls of the simulation.

A mutant is one function with a piece of it replaced. Blanks match any white space, so that code may be
formatted anew. One of the first `seeds` worlds shows it, or a law, a fault or a verb was lost since.
"""

from __future__ import annotations
import __future__

import contextlib
import functools
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import attrs

SUBMISSIONS = "kie4o.submission.submissions:Submissions"
LIMITER = "kie4o.submission.rate_limit:RateLimiter"
LEDGER = "kie4o.stores.ledger:Ledger"
DELIVERY = "kie4o.callbacks.delivery:Delivery"
POLLER = "kie4o.polling.poller:TaskPoller"
LIFECYCLE = "kie4o.lifecycle:Lifecycle"


@attrs.frozen
class Mutant:
    name: str
    function: str  # module:Class.function
    find: str
    replacement: str
    seeds: int
    law: str = ""


MUTANTS = [
    Mutant(
        "a permit is never let go",
        "kie4o.submission.permit:Permit.release",
        "if self._holders == 0:",
        "if False:",
        2,
    ),
    Mutant(
        "a permit is let go early",
        "kie4o.submission.permit:Permit.release",
        "if self._holders == 0:",
        "if True:",
        2,
    ),
    Mutant(
        "the slot of a lost answer is given back",
        f"{SUBMISSIONS}._attempts",
        "counted=submit.attempt.sent",
        "counted=False",
        2,
    ),
    Mutant(
        "an unknown outcome is sent again",
        f"{SUBMISSIONS}._record",
        "elif judgement.verdict is not Verdict.UNKNOWN:",
        "elif True:",
        2,
    ),
    Mutant(
        "an unknown key is sent again",
        "kie4o.submission.resending:Resubmit.allows",
        "and self.after_unknown",
        "",
        2,
    ),
    Mutant(
        "a failed key is sent again",
        "kie4o.submission.resending:Resubmit.allows",
        "and self.after_failure",
        "",
        2,
    ),
    Mutant(
        "slots count a second less",
        f"{LIMITER}.release",
        "self._window.answered(self._loop.time()",
        "self._window.answered(self._loop.time() - 1",
        2,
    ),
    Mutant("slots count from the sending", f"{LIMITER}.release", "if counted:", "if False:", 2),
    Mutant(
        "no intent is written",
        f"{SUBMISSIONS}._attempt",
        "await self._ledger.begin(entry, submit.previous)",
        "pass",
        40,
    ),
    Mutant(
        "intents are not made unknown at opening",
        "kie4o.stores.sqlite_file:_check",
        "for intent in check_rows(connection, path, report):",
        "for intent in ():",
        40,
    ),
    Mutant(
        "polls 0.3 s apart",
        f"{POLLER}._plan",
        "max(at, watch.last_look_at + GAP)",
        "watch.last_look_at + 0.3",
        40,
    ),
    Mutant(
        "a poll at once after a poll", f"{POLLER}._look_soon", "max(now, watch.last_look_at + GAP)", "now", 40
    ),
    Mutant("any callback is trusted", f"{DELIVERY}._trusts", "self._trusting and is_named", "is_named", 40),
    Mutant(
        "the owner of a task is not asked",
        f"{DELIVERY}._name",
        "(owner is not None and owner.ref != entry.ref)",
        "False",
        400,
    ),
    Mutant(
        "a task that Kie does not know is named",
        f"{DELIVERY}._name",
        "and details.state is not TaskState.MISSING",
        "",
        400,
    ),
    Mutant(
        "a callback is confirmed once",
        f"{DELIVERY}._repeat",
        "while loop.time() < since + _GIVE_UP / self._speed:",
        "while False:",
        400,
    ),
    Mutant(
        "an earlier poll confirms a callback",
        f"{DELIVERY}._check",
        "self._poller.look(callback.task_id, since=since)",
        "self._poller.look(callback.task_id)",
        400,
    ),
    Mutant("a submit begins while closing", f"{SUBMISSIONS}._start", "if self._closing:", "if False:", 400),
    Mutant("slots are not remembered", f"{LIMITER}.remember", "for age in ages]", "for age in ()]", 400),
    Mutant(
        "what was sent is called off",
        f"{SUBMISSIONS}._call_off",
        "not submit.attempt.withdraw()",
        "False",
        400,
    ),
    Mutant(
        "other callers are called off",
        f"{SUBMISSIONS}._outcome_of",
        "if not submit.callers:",
        "if True:",
        400,
    ),
    Mutant("no caller calls off", f"{SUBMISSIONS}._outcome_of", "if not submit.callers:", "if False:", 400),
    Mutant(
        "a submit that is cut short is not recorded",
        f"{SUBMISSIONS}._cut_short",
        "submitted = await self._record(submit, judgement)",
        "submitted = None",
        3000,
    ),
    Mutant(
        "a refusal that is cut short is unknown",
        f"{SUBMISSIONS}._cut_short",
        "judgement = _judged(submit.attempt, submit.entry.request)",
        "judgement = attrs.evolve(_judged(submit.attempt, submit.entry.request), verdict=Verdict.UNKNOWN)",
        3000,
    ),
    Mutant(
        "a caller is told twice",
        "kie4o.submission.pending:PendingSubmit.notify",
        "if caller.done(): continue",
        "pass",
        3000,
    ),
    Mutant(
        "the slot of a cancelled waiter is kept",
        f"{LIMITER}._granted",
        "self._window.give_back() self._grant()",
        "self._grant()",
        3000,
    ),
    Mutant(
        "a salvaged id is not read",
        "kie4o.submission.verdict:judge",
        "else decoding.salvaged_task_id(body)",
        "else None",
        3000,
    ),
    Mutant(
        "a lost answer is a refusal",
        "kie4o.submission.verdict:judge",
        "status is not None and not fault and 400 <= status < 500",
        "status is not None and 400 <= status",
        400,
    ),
    Mutant(
        "a time-out is a refusal", "kie4o.submission.verdict:judge", "and status != _REQUEST_TIMEOUT", "", 400
    ),
    Mutant(
        "closing does not drain",
        f"{SUBMISSIONS}.drain",
        "await asyncio.wait(tasks, timeout=DRAIN)",
        "pass",
        400,
    ),
    Mutant(
        "closing calls nothing off",
        f"{SUBMISSIONS}.drain",
        'self._call_off(submit, "the client was closed")',
        "pass",
        400,
    ),
    Mutant(
        "an accepted id is not saved",
        f"{SUBMISSIONS}._accepted",
        "await self._ledger.submitted(submit.accept(task_id))",
        "submit.accept(task_id)",
        400,
    ),
    Mutant(
        "an unknown outcome is not saved",
        f"{SUBMISSIONS}._record",
        "await self._ledger.unknown(entry)",
        "pass",
        400,
    ),
    Mutant(
        "a refusal undoes no intent",
        f"{SUBMISSIONS}._record",
        "submit.entry = await self._ledger.unpaid(submit.entry, submit.previous)",
        "pass",
        400,
    ),
    Mutant(
        "what stood before is not restored",
        f"{LEDGER}.unpaid",
        "await self._keep(restored or planned)",
        "await self._keep(planned)",
        3000,
    ),
    Mutant(
        "what stood before is dropped",
        f"{LEDGER}.begin",
        "None if previous is None else previous.superseded()",
        "None",
        3000,
    ),
    Mutant(
        "no pause after a 429",
        f"{SUBMISSIONS}._attempt",
        "held = self._limiter.hold_all()",
        "held = 0.0",
        3000,
    ),
    Mutant(
        "a failed write is not repeated",
        f"{LEDGER}._start_writer",
        "if self._unsaved and self._writer is None and not self._closed:",
        "if False:",
        3000,
    ),
    Mutant(
        "an older entry overwrites a newer one",
        f"{LEDGER}._save_again",
        "if self._unsaved.get(entry.key) is not entry:",
        "if False:",
        3000,
    ),
    Mutant(
        "an older entry drops a newer one",
        f"{LEDGER}._saved",
        "if self._unsaved.get(entry.key) is entry: del self._unsaved[entry.key]",
        "self._unsaved.pop(entry.key, None)",
        3000,
    ),
    Mutant(
        "an intent that may be written is not undone",
        f"{LEDGER}.begin",
        "self._save_later(_planned(entry) if previous is None else previous)",
        "pass",
        3000,
    ),
    Mutant(
        "the last write at closing is left out",
        f"{LEDGER}.aclose",
        "await self._save_unsaved()",
        "pass",
        3000,
    ),
    Mutant(
        "a store error of forgetting escapes",
        f"{LEDGER}._keep",
        "except StoreError as error: self._start_writer() return error",
        "except ZeroDivisionError as error:\n            return error",
        3000,
    ),
    Mutant(
        "the end of a task is not saved",
        f"{LIFECYCLE}._finished",
        "await self.ledger.finish(waiter.result())",
        "pass",
        3000,
    ),
    Mutant("a waiter does not leave", f"{LIFECYCLE}.wait", "self.poller.leave(waiter)", "pass", 400),
    Mutant("an error names no task", f"{LIFECYCLE}.wait", "name_task(error, task_id)", "pass", 3000),
    Mutant(
        "a callback does not name a lost submit",
        f"{LIFECYCLE}._named",
        "entry = await self.delivery.wait_for_name(submitted.entry)",
        "raise TimeoutError",
        3000,
    ),
    Mutant(
        "the receiver raises",
        "kie4o.callbacks.receiving:CallbackReceiver.receive",
        "except KieError as error:",
        "except ZeroDivisionError as error:",
        400,
    ),
    Mutant(
        "remembered slots are not sorted",
        "kie4o.submission.rate_limit:SlidingWindow.__init__",
        "deque(sorted(answered))",
        "deque(answered)",
        3000,
    ),
    Mutant(
        "a group of two fails as one",
        "kie4o.stores.sqlite_worker:run_group",
        "if len(group) > 1:",
        "if len(group) > 2:",
        3000,
    ),
    Mutant(
        "ids at the root are not read",
        "kie4o.wire.envelope:Envelope.task_id",
        "finding.task_id(self.root, anywhere=self.code == 200)",
        "finding.task_id({'data': self.data}, anywhere=True)",
        3000,
    ),
    Mutant(
        "the body's connection is not checked",
        "kie4o.transport.paid_body:PaidBody.write",
        "if protocol.should_close or not protocol.is_connected():",
        "if False:",
        3000,
    ),
    Mutant(
        "an attempt is not withdrawn",
        "kie4o.transport.paid_body:PaidBody._take",
        "if self._attempt.withdrawn:",
        "if False:",
        3000,
    ),
    Mutant(
        "a batch forgets an item",
        "kie4o.batch.batch:Batch.aclose",
        "await self._tasks.cancel()",
        "pass",
        3000,
    ),
]
OF_NAME = {mutant.name: mutant for mutant in MUTANTS}


@contextlib.contextmanager
def put_back(mutant: Mutant) -> Iterator[None]:
    """While this lasts, kie4o has the fault."""
    path, _, names = mutant.function.partition(":")
    module = importlib.import_module(path)
    found: Any = functools.reduce(getattr, names.split(".")[:-1], module)
    found = vars(found)[names.rpartition(".")[2]]
    function = inspect.unwrap(found.fget if isinstance(found, property) else found)
    source = textwrap.dedent(inspect.getsource(function))
    pattern = r"\s+".join(map(re.escape, mutant.find.split()))
    changed, count = re.subn(pattern, lambda _: mutant.replacement, source)
    if count != 1:
        raise LookupError(f"{mutant.name}: {mutant.find!r} is {count} times in {mutant.function}")
    made: dict[str, Any] = {}
    exec(compile(changed, path, "exec", flags=__future__.annotations.compiler_flag), vars(module), made)
    replaced = made[function.__name__]
    replaced = inspect.unwrap(replaced.fget if isinstance(replaced, property) else replaced)
    original = function.__code__
    function.__code__ = replaced.__code__  # wherever the function was imported to
    try:
        yield
    finally:
        function.__code__ = original
