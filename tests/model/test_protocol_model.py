"""What processes on one database may do to each other: in every order, with a fault at every step.

The models are searched whole. Each rule of the protocol has a control: the model without the rule, which must
break, and shows the shortest way there with `-s`.
"""

from __future__ import annotations

import pytest
from exploring import Outcome, explore
from keys_model import ASYNCHRONOUS, SYNCHRONOUS, KeysModel
from proving import tried
from window_model import WindowModel

WHOLE = (pytest.mark.proof, pytest.mark.timeout(3600))
KEYS = [(2, 1, 3), (3, 1, 2), (2, 2, 1), (3, 2, 1)]  # processes, keys, faults at most
WINDOWS = [(2, 1, 2), (2, 2, 1), (3, 1, 0)]  # processes, the limit, faults at most

LOOKS_UNSENT = "what was charged looks as if it was not sent"
LOST_ID = "a task id that was saved is lost"
LIVE_INTENT = "the intent of a live process became unknown"
REFUSED = "what was refused became unknown"
STUCK = "nobody can finish any more"
TWICE = "a key is paid twice"
TOO_MANY = "Kie sees more requests in a window than the limit"

# What breaks without a rule, and the faults that it takes.
KEY_CONTROLS = {
    "claim": (LIVE_INTENT, 1),  # others respect who holds a key
    "begin": (TWICE, 2),  # only the holder sends
    "intent": (LOOKS_UNSENT, 1),  # the intent of a dead process is unknown
    "save": (LOOKS_UNSENT, 1),  # what another has under the key is not overwritten
    "known": (LOST_ID, 2),  # no save takes a task id back
    "attempt": (LOOKS_UNSENT, 1),  # an undoing that is executed late spares the next intent
    "grace": (LIVE_INTENT, 1),  # no lease runs out while the database is away
    "durable": (LOOKS_UNSENT, 2),  # what is answered is on the disk
    "dead holder": (REFUSED, 1),  # what is saved after a lost lease is in nobody's hands
    "release": (STUCK, 1),  # a key that is done with is released
    "release again": (STUCK, 1),  # also if the database was away
}
WINDOW_CONTROLS = {
    "clock": (TOO_MANY, 1),  # the sender looks at its own clock
    "before": (TOO_MANY, 1),  # a grant is good from before the question
    "sending": (TOO_MANY, 1),  # the slot of a dead process counts from when its request may have arrived
    "answer": (TOO_MANY, 1),  # others count from the answer
    "lock": (TOO_MANY, 1),  # slots are counted after the lock
    "number": (TOO_MANY, 1),  # a question that is executed late changes nothing
    "set": (TOO_MANY, 1),  # nothing is granted for a while after the clock was set
    "promotion": (TOO_MANY, 1),  # nor after a replica has taken over, which may lack slots
    "give back": (STUCK, 0),  # a grant that is too old is given back
    "cancelled": (STUCK, 0),  # the row of a cancelled waiter is deleted
    "release": (STUCK, 1),  # an answer is told until that is answered
}


def found(outcome: Outcome, what: str) -> str | None:
    print(f"\n{what}: {outcome}")
    tried(outcome.states)
    return outcome.broken


# -- keys ----------------------------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize(
    ("processes", "keys", "faults"),
    [(2, 1, 1), (3, 1, 0), *(pytest.param(*size, marks=WHOLE) for size in KEYS)],
)
def test_keys(processes: int, keys: int, faults: int) -> None:
    """Nothing is paid twice, no saved id is lost, and everybody can finish."""
    model = KeysModel(processes, keys, faults, symmetric=True)
    assert found(explore(model), f"{processes} processes, {keys} keys, {faults} faults") is None


@pytest.mark.once
@pytest.mark.parametrize("rule", KEY_CONTROLS)
def test_control_keys(rule: str) -> None:
    broken, faults = KEY_CONTROLS[rule]
    assert found(explore(KeysModel(2, 1, faults, without=rule)), f"without {rule!r}") == broken


@pytest.mark.once
@pytest.mark.parametrize("replica", [SYNCHRONOUS, ASYNCHRONOUS])
def test_failover(replica: str) -> None:
    """A synchronous replica loses nothing. Control: after an asynchronous one, what was paid looks unsent."""
    model = KeysModel(2, 1, 2 if replica == ASYNCHRONOUS else 1, replica=replica)
    assert found(explore(model), replica) == (LOOKS_UNSENT if replica == ASYNCHRONOUS else None)


@pytest.mark.proof
@pytest.mark.timeout(3600)
def test_any_statement_may_be_executed_late() -> None:
    """Nothing is paid twice then, and no id is lost."""
    assert found(explore(KeysModel(2, 1, 3, late="any", symmetric=True), finishes=False), "any late") is None


# -- the window ----------------------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize(
    ("processes", "limit", "faults"),
    [(2, 1, 0), *(pytest.param(*size, marks=WHOLE) for size in WINDOWS)],
)
def test_window(processes: int, limit: int, faults: int) -> None:
    """Kie never sees more than the limit, and everybody who waits can get a slot."""
    model = WindowModel(processes, limit, faults, symmetric=True)
    assert found(explore(model), f"{processes} processes, limit {limit}, {faults} faults") is None


@pytest.mark.once
@pytest.mark.parametrize(
    "rule",
    [rule if rule == "give back" else pytest.param(rule, marks=WHOLE) for rule in WINDOW_CONTROLS],
)
def test_control_window(rule: str) -> None:
    broken, faults = WINDOW_CONTROLS[rule]
    model = WindowModel(2, 1, faults, without=rule, symmetric=True)
    assert found(explore(model), f"without {rule!r}") == broken
