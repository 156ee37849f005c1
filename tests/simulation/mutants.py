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

SUBMISSIONS = "kie4o.submission.submissions:Submissions."
LIMITER = "kie4o.submission.rate_limit:RateLimiter."
DELIVERY = "kie4o.callbacks.delivery:Delivery."
POLLER = "kie4o.polling.poller:TaskPoller."
RESUBMIT = "kie4o.submission.resending:Resubmit."
PERMIT = "kie4o.submission.permit:Permit."


@attrs.frozen
class Mutant:
    name: str
    function: str  # module:Class.function
    find: str
    replacement: str
    seeds: int  # one of so many shows it


MUTANTS = [
    Mutant("a permit is never let go", PERMIT + "release", "if self._holders == 0:", "if False:", 1),
    Mutant("a permit is let go early", PERMIT + "release", "if self._holders == 0:", "if True:", 1),
    Mutant(
        "the slot of a lost answer is given back",
        SUBMISSIONS + "_attempts",
        "counted=submit.attempt.sent",
        "counted=False",
        1,
    ),
    Mutant(
        "an unknown outcome is sent again",
        SUBMISSIONS + "_record",
        "elif judgement.verdict is not Verdict.UNKNOWN:",
        "elif True:",
        1,
    ),
    Mutant("an unknown key is sent again", RESUBMIT + "allows", "and self.after_unknown", "", 1),
    Mutant("a failed key is sent again", RESUBMIT + "allows", "and self.after_failure", "", 31),
    Mutant(
        "slots count a second less",
        LIMITER + "release",
        "self._window.answered(self._loop.time()",
        "self._window.answered(self._loop.time() - 1",
        1,
    ),
    Mutant("slots count from the sending", LIMITER + "release", "if counted:", "if False:", 1),
    Mutant(
        "no intent is written",
        SUBMISSIONS + "_attempt",
        "await self._ledger.begin(entry, submit.previous)",
        "pass",
        45,
    ),
    Mutant(
        "intents are not made unknown at opening",
        "kie4o.stores.sqlite_file:_check",
        "for intent in check_rows(connection, path, report):",
        "for intent in ():",
        9,
    ),
    Mutant(
        "polls 0.3 s apart",
        POLLER + "_plan",
        "max(at, watch.last_look_at + GAP)",
        "watch.last_look_at + 0.3",
        2,
    ),
    Mutant(
        "a poll at once after a poll", POLLER + "_look_soon", "max(now, watch.last_look_at + GAP)", "now", 7
    ),
    Mutant("any callback is trusted", DELIVERY + "_trusts", "self._trusting and is_named", "is_named", 178),
    Mutant(
        "the owner of a task is not asked",
        DELIVERY + "_name",
        "(owner is not None and owner.ref != entry.ref)",
        "False",
        29,
    ),
    Mutant(
        "a task that Kie does not know is named",
        DELIVERY + "_name",
        "if details.state is not TaskState.MISSING:",
        "if True:",
        17,
    ),
    Mutant(
        "a callback is confirmed once",
        DELIVERY + "_repeat",
        "while loop.time() < confirmation.since + _GIVE_UP / self._speed:",
        "while False:",
        18,
    ),
    Mutant("slots are not remembered", LIMITER + "remember", "for age in ages]", "for age in ()]", 137),
    Mutant("no caller calls off", SUBMISSIONS + "_outcome_of", "if not submit.callers:", "if False:", 57),
    Mutant(
        "a submit that is cut short is not recorded",
        SUBMISSIONS + "_cut_short",
        "submitted = await self._record(submit, judgement)",
        "submitted = None",
        41,
    ),
    Mutant(
        "a refusal that is cut short is unknown",
        SUBMISSIONS + "_cut_short",
        "judgement = _judged(submit.attempt, submit.entry.request)",
        "judgement = attrs.evolve(_judged(submit.attempt, submit.entry.request), verdict=Verdict.UNKNOWN)",
        41,
    ),
    Mutant(
        "a lost answer is a refusal",
        "kie4o.submission.verdict:judge",
        "status is not None and not fault and 400 <= status < 500",
        "status is not None and 400 <= status",
        29,
    ),
    Mutant(
        "an accepted id is not saved",
        SUBMISSIONS + "_accepted",
        "await self._ledger.submitted(submit.accept(task_id))",
        "submit.accept(task_id)",
        6,
    ),
    Mutant(
        "an unknown outcome is not saved",
        SUBMISSIONS + "_record",
        "await self._ledger.unknown(entry)",
        "pass",
        1,
    ),
    Mutant(
        "a refusal undoes no intent",
        SUBMISSIONS + "_record",
        "submit.entry = await self._ledger.unpaid(submit.entry, submit.previous)",
        "pass",
        27,
    ),
    Mutant(
        "the receiver raises",
        "kie4o.callbacks.receiving:CallbackReceiver.receive",
        "except KieError as error:",
        "except ZeroDivisionError as error:",
        6,
    ),
    Mutant(
        "ids at the root are not read",
        "kie4o.wire.envelope:Envelope.task_id",
        "finding.task_id(self.root, anywhere=self.code == 200)",
        "finding.task_id({'data': self.data}, anywhere=True)",
        1,
    ),
    Mutant(
        "what was sent is called off",
        SUBMISSIONS + "_call_off",
        "not submit.attempt.withdraw()",
        "False",
        167,
    ),
    Mutant(
        "the key is in the address of a poll",
        "kie4o.transport.transport:Transport._requested",
        "method, url,",
        "method, url.update_query(key=self._key_header['Authorization']),",
        1,
    ),
    Mutant(
        "an error shows the key",
        "kie4o.transport.transport:Transport._no_answer",
        "no answer from",
        "no answer to {self._key_header} from",
        30,
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
