"""A model of the window that processes share: what `kie4o.take` does, and the pump of `SharedLimiter`.

Time is whole: a tick is the time for which a grant is good, GOOD, and all other times are ticks too. A window
is 2, a request arrives at Kie within 1 tick of being sent or never, so that its slot counts 2 ticks after it
was taken if its process is gone, and a lease is 3. Kie counts what arrives. Each process has one request at a
time, for ever.

| step | what it models |
|---|---|
| asks | `SharedLimiter._ask_once` sends `kie4o.take`, with what the client has at that moment |
| is answered | `kie4o.take` is executed, and its answer arrives if it says no more than that it was done |
| hears of its slot | the answer with a grant, which may be too old by then (`SharedLimiter._grant`) |
| loses the reply | the question is executed, and the client asks again |
| sends late | a question whose connection is lost; the server executes it after a later one |
| POSTs | `PaidBody.write`, which looks at the clock of the sender |
| gives back | a grant that is too old, or whose request was not sent |
| arrives, is answered by Kie | the request and its answer |
| cancels | the waiter of a client |
| cut off, back, dies | as in `keys_model`; a process that is back has a new id if its lease had run out |
| a replica takes over | without any row of `slot`; all are held for a window and what may be under way |
| the clock is set | of the server, forward by more than a window; each client notices when it asks |

All processes have asked before: a client that asks for the first time cannot know that the clock was set.

`without` names a rule that is left out; each is a control.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from exploring import Step

GOOD = 1
ARRIVES = 1  # after it was sent
SENDING = 2 * GOOD
WINDOW = 2
LEASE = 3
GONE = SENDING + WINDOW  # the age at which the slot of a dead process does not count any more
GHOST = 10  # added to a process: a waiting row that nobody waits for


class Question(NamedTuple):
    """What a client says that it has: waiting, held, answered, or nothing."""

    says: str
    age: int = 0  # since it was sent
    granted: bool = False  # it was executed, and this is the answer
    counted: bool | None = None  # a slot was free when it was counted, before the lock


class Process(NamedTuple):
    run: str = "up"  # up, cut, dead
    lease: int = 0  # ticks since it was renewed
    at: str = "nothing"  # waiting, held, sent, answered
    grant: int = 0  # ticks since the question for it was asked
    flight: int = -1  # ticks since the request was sent which may still arrive
    question: Question | None = None  # on its way
    late: str = ""  # what an earlier question says
    row: int | None = None  # of `slot`: WAITING, TOLD, or ticks since it was taken
    moved: bool = False  # its row is of an earlier id
    lost: int = 0  # rows of grants that were forgotten
    knows: bool = True  # what the clock of the server shows


WAITING, TOLD = -1, -2  # TOLD: answered, which the client does not know to be stored


class State(NamedTuple):
    processes: tuple[Process, ...]
    queue: tuple[int, ...] = ()  # waiting rows by ticket
    answered: tuple[int, ...] = ()  # ticks since, of answered slots that count
    arrived: tuple[int, ...] = ()  # ticks since, at Kie
    paused: int = 0  # ticks
    faults: int = 0
    over: bool = False  # Kie has seen too many


class WindowModel:
    def __init__(
        self, processes: int, limit: int, faults: int, *, without: str = "", symmetric: bool = False
    ) -> None:
        self.limit = limit
        self.without = without
        self.symmetric = symmetric
        self.start = State((Process(),) * processes, faults=faults)

    def broken(self, state: State) -> str | None:
        return "Kie sees more requests in a window than the limit" if state.over else None

    def finished(self, state: State) -> bool:
        """No process that lives waits, or has anything to say."""
        return all(each.at == "nothing" for each in state.processes if each.run != "dead")

    def steps(self, state: State) -> Iterator[Step]:
        if not self.symmetric:
            yield from self._steps(state)
            return
        for words, fault, after in self._steps(state):
            yield Step(words, fault, canonical(after))

    def _steps(self, state: State) -> Iterator[Step]:
        for who, process in enumerate(state.processes):
            if process.run != "dead":
                yield from self.steps_of(state, who, process)
            if process.flight >= 0:
                yield Step((f"the request of p{who} arrives",), False, self.arrive(state, who))
        yield Step(("a tick passes",), False, self.tick(state))
        if state.faults:
            yield from self.faults(state._replace(faults=state.faults - 1))

    # -- a client -----------------------------------------------------------------------------------

    def steps_of(self, state: State, who: int, process: Process) -> Iterator[Step]:
        def step(words: str, left: State = state, fault: bool = False, **changes: object) -> Step:
            return Step((f"p{who}", words), fault, with_process(left, who, process._replace(**changes)))

        fewer = state._replace(faults=state.faults - 1)
        at, question = process.at, process.question
        if at == "held":
            fresh = process.grant <= GOOD
            if fresh or self.without == "clock":
                yield step("POSTs", at="sent", flight=0)
            if not fresh and self.without == "give back":
                yield step(
                    "forgets its slot, and waits", at="waiting", row=None, lost=min(9, process.lost + 1)
                )
            else:
                yield step("gives its slot back", at="returned", fault=fresh)
        if at == "sent" and process.flight < 0:
            told = {"answer": ("nothing", None)}  # it has been told at the grant
            after, row = told.get(self.without, ("answered", process.row))
            yield step("is answered by Kie", at=after, row=row)
        if at == "waiting":
            yield step("cancels", fault=True, at="cancelled")
        if process.run == "cut":
            yield step("is back", run="up")
            return
        if process.lease >= LEASE:  # a process that runs and whose lease is lost begins another
            yield step("begins another lease", lease=0, moved=True)
            return
        if question is None:
            if at == "nothing":
                yield step("waits for a slot", fault=True, at="waiting")
            elif at != "sent":
                says = at if at in ("waiting", "held", "answered") else "nothing"
                yield step(f"asks, and has {says}", question=Question(says), fault=at == "held")
            return
        if question.granted:
            yield from self.hears(state, who, process, question)
        else:
            yield from self.executions(state, who)
        if state.faults and not question.granted and not process.late:
            yield step("loses the connection", fewer, True, question=None, late=question.says)
        if process.late and self.without == "number":
            done = with_process(state, who, process._replace(late=""))
            yield Step((f"p{who}'s question is executed late",), False, self.take(done, who, process.late)[0])

    def hears(self, state: State, who: int, process: Process, question: Question) -> Iterator[Step]:
        heard = process._replace(question=None)
        age = 0 if self.without == "before" else question.age
        if process.at == "waiting" and age <= GOOD:
            heard = heard._replace(at="held", grant=age)
        yield Step((f"p{who}", "hears of its slot"), False, with_process(state, who, heard))

    def executions(self, state: State, who: int) -> Iterator[Step]:
        process = state.processes[who]
        question = process.question
        assert question is not None
        if not process.knows and self.without != "set":
            paused = max(state.paused, WINDOW + SENDING)
            doubtful = with_process(state, who, process._replace(question=None, knows=True))
            yield Step(
                (f"p{who}", "notices the clock, and holds all"), False, doubtful._replace(paused=paused)
            )
            return
        after, granted = self.take(state, who, question.says)
        if self.without == "lock" and question.says == "waiting" and question.counted is None:
            counted = process._replace(question=question._replace(counted=granted))
            yield Step((f"p{who}'s question is counted",), False, with_process(state, who, counted))
            return
        told = after.processes[who]
        if granted:
            heard = told._replace(question=question._replace(granted=True))
        else:
            heard = told._replace(question=None)
            if question.says == "answered":
                heard = heard._replace(at="nothing", row=None)
            elif process.at in ("returned", "cancelled") and question.says == "nothing":
                heard = heard._replace(at="waiting" if process.at == "returned" else "nothing")
        outcome = "granted" if granted else "done"
        yield Step((f"p{who}", f"is answered: {outcome}"), False, with_process(after, who, heard))
        if not state.faults:
            return
        if self.without == "release" and question.says == "answered":
            forgets = process._replace(question=None, at="nothing", row=None, lost=min(9, process.lost + 1))
            left = state._replace(faults=state.faults - 1)
            yield Step((f"p{who}", "cannot say that it was answered"), True, with_process(left, who, forgets))
        else:
            left = after._replace(faults=state.faults - 1)
            lost = told._replace(question=None)
            yield Step((f"p{who}", f"loses the reply: {outcome}"), True, with_process(left, who, lost))

    # -- the database: `kie4o.take` ---------------------------------------------------------------------

    def take(self, state: State, who: int, says: str) -> tuple[State, bool]:
        process, queue, answered = state.processes[who], state.queue, state.answered
        row = process.row
        if says == "answered":
            if row != TOLD:
                answered = tuple(sorted((*answered, 0)))
            row = TOLD
        elif says == "nothing":
            if row == WAITING and self.without == "cancelled":
                ghost = () if who + GHOST in queue else (who + GHOST,)
                queue = (*(each for each in queue if each != who), *ghost)
            row = None
        elif says == "waiting" and row != TOLD:
            row = WAITING
        queue = tuple(each for each in queue if each != who or row == WAITING)
        if row == WAITING and who not in queue:
            queue = (*queue, who)
        process = process._replace(row=row, moved=False)
        state = with_process(state, who, process)._replace(queue=queue, answered=answered)
        if row != WAITING or state.paused:
            return state, False
        question = process.question
        there = [each for each in queue if state.processes[each % GHOST].run == "up"]
        is_free = there.index(who) < self.limit - self.in_use(state, who)
        if self.without == "lock" and question is not None and question.counted is not None:
            is_free = question.counted
        if not is_free:
            return state, False
        queue = tuple(each for each in queue if each != who)
        if self.without == "answer":  # it counts from now on, and is never open
            state = state._replace(answered=tuple(sorted((*answered, 0))))
            return with_process(state, who, process._replace(row=TOLD))._replace(queue=queue), True
        return with_process(state, who, process._replace(row=0))._replace(queue=queue), True

    def in_use(self, state: State, who: int) -> int:
        count = sum(age < WINDOW for age in state.answered)
        for number, each in enumerate(state.processes):
            gone = number != who and (each.lease >= LEASE or each.moved)
            sending = 0 if self.without == "sending" else SENDING
            if each.row is not None and each.row >= 0:
                count += not gone or each.row < sending + WINDOW
            count += 0 if gone else each.lost
        return count

    # -- Kie, and time -----------------------------------------------------------------------------------

    def arrive(self, state: State, who: int) -> State:
        arrived = tuple(sorted((*state.arrived, 0)))
        state = with_process(state, who, state.processes[who]._replace(flight=-1))
        return state._replace(arrived=arrived, over=len(arrived) > self.limit)

    def tick(self, state: State) -> State:
        return state._replace(
            processes=tuple(map(older, state.processes)),
            answered=tuple(age + 1 for age in state.answered if age + 1 < WINDOW),
            arrived=tuple(age + 1 for age in state.arrived if age + 1 < WINDOW),
            paused=max(0, state.paused - 1),
        )

    def faults(self, state: State) -> Iterator[Step]:
        processes = state.processes
        for who, process in enumerate(processes):
            if process.run == "up":
                cut = process._replace(run="cut", question=None)
                yield Step((f"p{who}", "is cut off"), True, with_process(state, who, cut))
            if process.run != "dead":
                dead = Process(
                    "dead", process.lease, flight=process.flight, row=process.row, lost=process.lost
                )
                yield Step((f"p{who}", "dies"), True, with_process(state, who, dead))
        bare = tuple(each._replace(row=None, late="", question=None) for each in processes)
        hold = 0 if self.without == "promotion" else WINDOW + SENDING
        after = state._replace(processes=bare, queue=(), answered=(), paused=max(state.paused, hold))
        yield Step(("a replica takes over, without any slot",), True, after)
        set_ = tuple(
            each._replace(
                knows=False, lease=LEASE, row=GONE if each.row is not None and each.row >= 0 else each.row
            )
            for each in processes
        )
        yield Step(("the clock is set forward",), True, state._replace(processes=set_, answered=(), paused=0))


def older(process: Process) -> Process:
    question, row = process.question, process.row
    if question is not None:
        question = question._replace(age=min(question.age + 1, GOOD + 1))
    flight = process.flight
    if flight >= 0:
        flight = flight + 1 if flight < ARRIVES else -1
    return process._replace(
        lease=0 if process.run == "up" and process.lease < LEASE else min(process.lease + 1, LEASE),
        grant=min(process.grant + 1, GOOD + 1) if process.at == "held" else 0,
        flight=flight,
        question=question,
        row=min(row + 1, GONE) if row is not None and row >= 0 else row,
    )


def with_process(state: State, who: int, process: Process) -> State:
    return state._replace(processes=(*state.processes[:who], process, *state.processes[who + 1 :]))


def canonical(state: State) -> State:
    """The same state with its processes in an order that depends on nothing but themselves."""
    count = range(len(state.processes))
    places = [state.queue.index(who) if who in state.queue else -1 for who in count]
    signs = [hash((state.processes[who], places[who], state.queue.count(who + GHOST))) for who in count]
    order = sorted(count, key=signs.__getitem__)
    if order == list(count):
        return state
    new = {who: place for place, who in enumerate(order)}
    queue = tuple(new[each % GHOST] + each // GHOST * GHOST for each in state.queue)
    return state._replace(processes=tuple(state.processes[who] for who in order), queue=queue)
