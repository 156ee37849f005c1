"""A model of how processes share keys: claims, intents, saves and leases, as the functions in sql/ do them.

Every process wants every key. Each step is one statement of the database, one message to or from Kie, what
the clock does, or a fault. A statement may be executed and answered; or executed, and its reply is lost; or
its connection is lost, and the server, which did not notice, executes it later or never. After the last two
the process asks again.

| step | what it models |
|---|---|
| claim, claim anew | `kie4o.claim`; anew is `PostgresStore._still_held`, after a lost lease |
| begin | `kie4o.begin_submit` |
| POST | the request, which Kie charges or refuses; refused stands for "not sent" too |
| save | `kie4o.save`: of SUBMITTED, of UNKNOWN, and of PLANNED after a refusal or an intent that is undone |
| release | `kie4o.release`, also after a cancel; asked until it is answered |
| gives up | no answer of the store for `OUTAGE` seconds: `Ledger.begin` has the intent undone later |
| names, sees the end | `Ledger.name_task` after a callback, and `Ledger.finish`, by any process |
| renews | `kie4o.renew`; for a lease that is lost `Process.lost`: `kie4o.enter`, then `kie4o.leave` |
| cut off, back | stands still, or does not reach the database; what it has begun it may send all the same |
| lease runs out | of one that is cut off or dead |
| restarts | of the server; after an outage all leases have run out |
| takes over | a replica, which lacks what was written since it lagged, if it is asynchronous |
| grace ends | a lease after the restart was noticed: all that run have renewed theirs |

Left out: `resubmit`, the tables `watch` and `inbox`, and that processes write again what they have written
last when a replica takes over, which narrows what an asynchronous one loses and does not close it.

`without` names rules that are left out; each is a control.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from exploring import Step

NOBODY = -1
TWICE = 99
OLD = 10  # added to a process: an id that it had before its lease was lost
ATTEMPTS = 2  # of one submit, at most

ASYNCHRONOUS, SYNCHRONOUS = "asynchronous", "synchronous"


class Row(NamedTuple):
    """A row of `entry`. States: Planned, Intent, Unknown, Submitted, Ended; the last two have the task id."""

    state: str
    mark: int  # whose submit it is
    holder: int
    attempt: int = 0


class Process(NamedTuple):
    run: str = "up"  # up, cut, dead
    lease: str = "good"  # good; out; over: it ran out while the database was away
    excused: bool = False  # others were free to take it for dead
    old: bool = False  # it is older than the last failover


class Submit(NamedTuple):
    """One submit of a process, and what it does next.

    idle: claim · held: begin · begun: POST · charged: the answer · refused, got, lost, cancelled: save ·
    release · abandon: release, then undo · undo: save · over
    """

    at: str = "idle"
    asked: bool = False  # the statement at hand before, and it may have been executed
    stale: bool = False  # the hold is of an earlier id
    seen: int = NOBODY  # the mark of what was claimed
    attempt: int = 0


class Key(NamedTuple):
    row: Row | None
    paid: int  # whose POST was charged: NOBODY's, or TWICE
    known: bool  # a task id was stored
    submits: tuple[Submit, ...]


class Late(NamedTuple):
    """A statement that the server has not executed yet, and whose connection is lost."""

    at: str
    key: int
    by: int
    me: int  # the id of that process when it was sent
    seen: int
    attempt: int


class State(NamedTuple):
    processes: tuple[Process, ...]
    keys: tuple[Key, ...]
    server: str = "same"  # changed: nobody has noticed it; grace
    promoted: bool = False
    late: Late | None = None
    replica: tuple[Row | None, ...] | None = None  # what it has, since it lags
    faults: int = 0  # that may still happen


SAVES = {"got": "S", "lost": "U", "refused": "P", "cancelled": "P", "undo": "P", "undo, held": "P"}
KEEPS = ("refused", "cancelled", "undo, held")  # the key stays held
UNDOES = ("cancelled", "undo", "undo, held")  # a begin that may not have been answered
WORDS = {
    "idle": "claims",
    "held": "begins",
    "got": "saves SUBMITTED",
    "lost": "saves UNKNOWN",
    "refused": "saves PLANNED",
    "abandon": "releases",
    "release": "releases",
    "undo": "saves PLANNED",
    "undo, held": "saves PLANNED",
    "cancelled": "saves PLANNED",
}


class KeysModel:
    """Args:
    processes, keys, faults: how many there are, and so many faults at most.
    without: rules that are left out.
    replica: what may take over, if anything.
    late: which statements may be executed late, one at a time: "saves", "any", or none. An intent that is
        saved late can stay in the hands of a live process that has done with the key. Nothing is paid twice,
        but others wait until that process ends; so "any" is for what must not happen, not for what must.
    symmetric: processes, and keys, are alike, so that one order of them stands for all. Traces are then of
        names that change.
    """

    def __init__(
        self,
        processes: int,
        keys: int,
        faults: int,
        *,
        without: str = "",
        replica: str = "",
        late: str = "saves",
        symmetric: bool = False,
    ) -> None:
        self.without = without
        self.replica = replica
        self.late = late
        self.symmetric = symmetric
        self.shared: dict[object, object] = {}  # parts of states, each of which is part of many
        key = Key(None, NOBODY, False, (Submit(),) * processes)
        self.start = State((Process(),) * processes, (key,) * keys, faults=faults)

    # -- what must hold ---------------------------------------------------------------------------

    def broken(self, state: State) -> str | None:
        for key in state.keys:
            row = key.row
            if key.paid == TWICE:
                return "a key is paid twice"
            if key.known and (row is None or row.state not in "SE"):
                return "a task id that was saved is lost"
            if key.paid != NOBODY and (row is None or row.state == "P"):
                return "what was charged looks as if it was not sent"
            if row is None or row.state != "U" or self.late == "any":
                continue
            submit, process = key.submits[row.mark], state.processes[row.mark]
            if submit.at in ("begun", "charged") and not process.excused:
                return "the intent of a live process became unknown"
            if submit.at == "held" and submit.attempt and not submit.asked and not state.promoted:
                return "what was refused became unknown"
        return None

    def finished(self, state: State) -> bool:
        """Every process that lives is done with every key."""
        return all(
            submit.at == "over"
            for key in state.keys
            for submit, process in zip(key.submits, state.processes, strict=True)
            if process.run != "dead"
        )

    # -- leases -------------------------------------------------------------------------------------

    def alive(self, state: State, which: int) -> bool:
        """`kie4o.alive`; an earlier id has no row in `process` any more."""
        if which == NOBODY or which >= OLD:
            return False
        if state.server != "same" and self.without != "grace":
            return True
        return state.processes[which].lease == "good"

    def may_lack_intent(self, state: State, row: Row) -> bool:
        return row.state == "P" and (row.holder >= OLD or state.processes[row.holder].old)

    # -- statements: what becomes of the row, and the outcome -----------------------------------------

    def claim(self, state: State, row: Row | None, me: int) -> tuple[Row | None, str]:
        while True:
            if row is None:
                return (Row("P", me, me), "held") if self.alive(state, me) else (row, "lost")
            others = row.holder not in (NOBODY, me)
            if others and self.alive(state, row.holder) and self.without != "claim":
                return row, "busy"
            if others and (row.state == "I" or self.may_lack_intent(state, row)):
                row = row._replace(state="P" if self.without == "intent" else "U", holder=NOBODY)
                continue
            if row.state != "P":
                return row, "stored"
            if row.holder == me:
                return row, "held"
            return (row._replace(holder=me), "held") if self.alive(state, me) else (row, "lost")

    def begin(
        self, state: State, row: Row | None, me: int, seen: int, attempt: int
    ) -> tuple[Row | None, str]:
        if not self.alive(state, me):
            return row, "lost"
        intent = Row("I", me, me, attempt)
        if self.without in ("begin", "claim"):
            return intent, "saved"
        if row is None or row.holder != me:
            return row, "taken"
        if (row.mark == me and row.state == "I") or (row.mark in (seen, me) and row.state == "P"):
            return intent, "saved"
        return row, "taken"

    def save(
        self, state: State, row: Row | None, me: int, mark: int, new: str, keeps: bool, attempt: int
    ) -> tuple[Row | None, str]:
        if row is not None and self.without not in ("save", "claim"):
            if row.mark != mark and row.holder != me:
                return row, "taken"
            known_more = (row.state in "SE" and new not in "SE") or (row.state == "E" and new == "S")
            if row.mark == mark and known_more and self.without != "known":
                return row, "saved"
            if row.mark == mark and new == "P" and row.attempt > attempt and self.without != "attempt":
                return row, "saved"
        holder = NOBODY
        if row is not None and row.holder not in (NOBODY, me):
            stays = self.alive(state, row.holder) or self.without == "dead holder"
            holder = row.holder if stays else NOBODY
        elif row is not None and keeps and row.holder == me and (new == "P" or row.mark != mark):
            holder = me
        return Row(new, mark, holder, attempt), "saved"

    def release(self, row: Row | None, me: int) -> Row | None:
        if row is None or row.holder != me or self.without == "release":
            return row
        if row.state == "P":
            return None
        return row if row.state == "I" else row._replace(holder=NOBODY)

    # -- steps ----------------------------------------------------------------------------------------

    def steps(self, state: State) -> Iterator[Step]:
        if not self.symmetric:
            yield from self._steps(state)
            return
        shared: Any = self.shared
        for words, fault, after in self._steps(state):
            after = canonical(after)
            parts = [shared.setdefault(part, part) for part in after.keys]
            processes = shared.setdefault(after.processes, after.processes)
            yield Step(words, fault, after._replace(processes=processes, keys=tuple(parts)))

    def _steps(self, state: State) -> Iterator[Step]:
        for number in range(len(state.keys)):
            for who, process in enumerate(state.processes):
                if process.run != "dead":
                    yield from self.steps_of(state, number, who)
            yield from self.steps_of_tasks(state, number)
        yield from self.steps_of_leases(state)
        if state.late is not None:
            yield from self.steps_of_late(state, state.late)
        if state.faults:
            yield from self.faults(state._replace(faults=state.faults - 1))

    def steps_of(self, state: State, number: int, who: int) -> Iterator[Step]:
        key, process = state.keys[number], state.processes[who]
        submit = key.submits[who]
        at, fewer = submit.at, state._replace(faults=state.faults - 1)
        claiming_anew = at == "held" and submit.stale and submit.asked

        def step(
            words: str, at: str, *, left: State = state, fault: bool = False, paid: int = key.paid
        ) -> Step:
            now = key._replace(paid=paid)._replace(submits=put(key.submits, who, submit._replace(at=at)))
            return Step((f"p{who}", words, f"key {number}"), fault, with_key(left, number, now))

        if at == "begun":
            yield step("POSTs, and is charged for", "charged", paid=who if key.paid == NOBODY else TWICE)
            yield step("POSTs, and is refused for", "refused")
            if state.faults:
                yield step("POSTs, is refused, and does not hear it for", "lost", left=fewer, fault=True)
        elif at == "charged":
            yield step("gets the task id of", "got")
            if state.faults:
                yield step("loses the answer for", "lost", left=fewer, fault=True)
        elif at != "over" and process.run == "up":
            yield from self.statements(state, number, who)
        elif process.run == "cut":
            gives_up = {"idle": "release", "held": "abandon"}
            if self.without == "release again":
                gives_up |= {"release": "over", "abandon": "undo, held"}
            if claiming_anew:
                submit = submit._replace(stale=False)  # perhaps it is held under the new id
            if at in gives_up:
                yield step("gives up", gives_up[at])
        if at in ("idle", "held") and not claiming_anew:
            began = at == "held" and submit.asked
            yield step("is cancelled for", "cancelled" if began else "release", fault=True)

    def statements(self, state: State, number: int, who: int) -> Iterator[Step]:
        """The next statement of a submit, executed or not, answered or not."""
        key = state.keys[number]
        submit = key.submits[who]
        row, outcome = self.execute(state, key.row, submit, who)
        if outcome in ("busy", "lost"):
            return
        asked = submit._replace(asked=True)
        fewer = state._replace(faults=state.faults - 1)
        stored = key._replace(row=row, known=key.known or (row is not None and row.state in "SE"))
        words = "claims anew" if submit.at == "held" and submit.stale else WORDS[submit.at]

        def step(how: str, left: State, now: Key, submit: Submit, *, fault: bool = True) -> Step:
            now = now._replace(submits=put(now.submits, who, submit))
            return Step((f"p{who}", f"{words}{how}", f"key {number}"), fault, with_key(left, number, now))

        yield step(f" ({outcome})", state, stored, after(submit, outcome, row), fault=False)
        if not state.faults:
            return
        if row != key.row or asked != submit:
            yield step(f" ({outcome}; the reply is lost)", fewer, stored, asked)
        is_begin = submit.at == "held" and not submit.stale and self.late == "any"
        if self.late and state.late is None and (is_begin or submit.at in SAVES):
            attempt = submit.attempt + (submit.at == "held" or submit.at in UNDOES)
            late = Late(submit.at, number, who, who, submit.seen, attempt)
            yield step(" (the connection is lost)", fewer._replace(late=late), key, asked)

    def execute(self, state: State, row: Row | None, submit: Submit, me: int) -> tuple[Row | None, str]:
        at = submit.at
        if at == "idle" or (at == "held" and submit.stale):
            return self.claim(state, row, me)
        if at == "held":
            return self.begin(state, row, me, submit.seen, submit.attempt + 1)
        if at in ("release", "abandon"):
            return self.release(row, me + OLD if submit.stale else me), "saved"
        attempt = submit.attempt + (at in UNDOES)
        return self.save(state, row, me, me, SAVES[at], at in KEEPS, attempt)

    def steps_of_tasks(self, state: State, number: int) -> Iterator[Step]:
        key = state.keys[number]
        row = key.row
        if row is None or row.mark != key.paid or row.state not in "US":
            return
        words, new = ("names the task of", "S") if row.state == "U" else ("sees the end of", "E")
        row = row._replace(state=new)
        yield Step(
            ("somebody", words, f"key {number}"),
            False,
            with_key(state, number, key._replace(row=row, known=True)),
        )

    def steps_of_leases(self, state: State) -> Iterator[Step]:
        processes = state.processes
        for who, process in enumerate(processes):
            name = f"p{who}"
            if process.run == "cut":
                yield Step((name, "is back"), False, with_process(state, who, process._replace(run="up")))
            if process.run == "up" and (process.lease != "good" or state.server == "changed"):
                yield Step((name, "renews its lease"), False, self.renewed(state, who))
            if process.run != "up" and process.lease == "good":
                out = process._replace(lease="out", excused=True)
                yield Step(("the lease of", name, "runs out"), False, with_process(state, who, out))
        if state.server == "grace" and all(each.lease == "good" for each in processes if each.run == "up"):
            excused = tuple(
                each if each.lease == "good" else each._replace(excused=True) for each in processes
            )
            yield Step(("grace ends",), False, state._replace(server="same", processes=excused))

    def renewed(self, state: State, who: int) -> State:
        """The lease is renewed; or it was lost, and the process begins another and leaves the old one."""
        process, kept = state.processes[who], self.alive(state, who)
        server = "grace" if state.server == "changed" else state.server
        process = process._replace(lease="good", old=process.old and kept)
        state = with_process(state._replace(server=server), who, process)
        if kept:
            return state
        if state.late is not None and state.late.by == who:
            state = state._replace(late=state.late._replace(me=who + OLD))
        for number, key in enumerate(state.keys):
            row, submit = key.row, key.submits[who]
            if row is not None and row.holder == who:
                row = row._replace(holder=who + OLD if row.state == "I" else NOBODY)
            submit = submit._replace(stale=submit.at not in ("idle", "over"))
            state = with_key(state, number, key._replace(row=row, submits=put(key.submits, who, submit)))
        return state

    def steps_of_late(self, state: State, late: Late) -> Iterator[Step]:
        key = state.keys[late.key]
        if late.at == "held":
            row, _ = self.begin(state, key.row, late.me, late.seen, late.attempt)
        else:
            new, keeps = SAVES[late.at], late.at in KEEPS
            row, _ = self.save(state, key.row, late.me, late.by, new, keeps, late.attempt)
        known = key.known or (row is not None and row.state in "SE")
        words, done = f"{WORDS[late.at]} at last", state._replace(late=None)
        now = with_key(done, late.key, key._replace(row=row, known=known))
        yield Step(("the server, for", f"p{late.by},", words, f"key {late.key}"), False, now)
        yield Step(("nothing comes of what", f"p{late.by}", "had sent"), False, done)

    def faults(self, state: State) -> Iterator[Step]:
        for who, process in enumerate(state.processes):
            if process.run == "up":
                yield Step(
                    (f"p{who}", "is cut off"), True, with_process(state, who, process._replace(run="cut"))
                )
            if process.run != "dead":
                yield Step((f"p{who}", "dies"), True, forgotten(state, who))
        if state.replica is None and (self.replica == ASYNCHRONOUS or self.without == "durable"):
            rows = tuple(key.row for key in state.keys)
            yield Step(
                ("from here on nothing is on the next server's disk",), True, state._replace(replica=rows)
            )
        restarted = state._replace(server="changed", late=None)
        if self.without == "durable":
            restarted = with_rows(restarted)
        yield Step(("the server restarts",), True, restarted)
        over = tuple(
            each._replace(lease="over") if each.lease == "good" else each for each in state.processes
        )
        yield Step(("the server restarts after an outage",), True, restarted._replace(processes=over))
        if self.replica:
            old = tuple(each._replace(old=True) for each in state.processes)
            yield Step(
                ("a replica takes over",), True, with_rows(restarted._replace(promoted=True, processes=old))
            )


def after(submit: Submit, outcome: str, row: Row | None) -> Submit:
    """What a submit does next, after the answer to its statement."""
    at, done = submit.at, submit._replace(asked=False)
    if at == "idle":
        return (
            done._replace(at="held", seen=row.mark) if row and outcome == "held" else done._replace(at="over")
        )
    if at == "held" and submit.stale:
        is_same = outcome == "held" and row is not None and row.mark == submit.seen
        return submit._replace(stale=False) if is_same else submit._replace(at="abandon", asked=False)
    if at == "held":
        saved = outcome == "saved"
        return done._replace(at="begun", attempt=submit.attempt + 1) if saved else done._replace(at="abandon")
    if at == "cancelled":
        return done._replace(at="release")
    if at == "refused":
        return done._replace(at="held" if submit.attempt < ATTEMPTS else "release")
    return Submit("undo", attempt=submit.attempt) if at == "abandon" else Submit("over")


def put(submits: tuple[Submit, ...], who: int, submit: Submit) -> tuple[Submit, ...]:
    return (*submits[:who], submit, *submits[who + 1 :])


def with_key(state: State, number: int, key: Key) -> State:
    return state._replace(keys=(*state.keys[:number], key, *state.keys[number + 1 :]))


def with_process(state: State, who: int, process: Process) -> State:
    return state._replace(processes=(*state.processes[:who], process, *state.processes[who + 1 :]))


def with_rows(state: State) -> State:
    """The rows that the next server has on its disk."""
    if state.replica is None:
        return state
    keys = tuple(key._replace(row=row) for key, row in zip(state.keys, state.replica, strict=True))
    return state._replace(keys=keys, replica=None)


def forgotten(state: State, who: int) -> State:
    """A process is dead, and what was in its memory is gone."""
    state = with_process(state, who, state.processes[who]._replace(run="dead"))
    for number, key in enumerate(state.keys):
        state = with_key(state, number, key._replace(submits=put(key.submits, who, Submit("over"))))
    return state


# -- symmetry ------------------------------------------------------------------------------------------


def canonical(state: State) -> State:
    """The same state with its processes, and its keys, in an order that depends on nothing but themselves."""
    count = range(len(state.processes))
    signs = [
        hash((state.processes[who], sum(hash(key.submits[who]._replace(seen=NOBODY)) for key in state.keys)))
        for who in count
    ]
    order = sorted(count, key=signs.__getitem__)
    if order != list(count):
        state = reordered(state, order)
    if len(state.keys) == 1:
        return state
    by_hash = sorted(range(len(state.keys)), key=lambda number: hash(state.keys[number]))
    if by_hash == list(range(len(state.keys))):
        return state
    late, replica = state.late, state.replica
    return state._replace(
        keys=tuple(state.keys[number] for number in by_hash),
        late=None if late is None else late._replace(key=by_hash.index(late.key)),
        replica=None if replica is None else tuple(replica[number] for number in by_hash),
    )


def reordered(state: State, order: list[int]) -> State:
    new = {NOBODY: NOBODY, TWICE: TWICE}
    for place, who in enumerate(order):
        new[who], new[who + OLD] = place, place + OLD

    def row_of(row: Row | None) -> Row | None:
        return None if row is None else row._replace(mark=new[row.mark], holder=new[row.holder])

    def submit_of(submit: Submit) -> Submit:
        return submit._replace(seen=new[submit.seen])

    keys = tuple(
        Key(row_of(key.row), new[key.paid], key.known, tuple(submit_of(key.submits[who]) for who in order))
        for key in state.keys
    )
    late, replica = state.late, state.replica
    if late is not None:
        late = late._replace(by=new[late.by], me=new[late.me], seen=new[late.seen])
    return state._replace(
        processes=tuple(state.processes[who] for who in order),
        keys=keys,
        late=late,
        replica=None if replica is None else tuple(map(row_of, replica)),
    )
