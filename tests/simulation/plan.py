"""What happens in a world, drawn from its seed. A plan is data: it can be shown, stored and shrunk."""

from __future__ import annotations

import json
import random

import attrs
import cattrs

VERBS = {
    "generate": 5.0,
    "submit": 3.0,  # and wait for it
    "submit only": 1.0,
    "generate_many": 1.5,
    "resume": 1.0,
    "details": 1.0,
    "wait": 1.0,
    "updates": 0.6,
    "deliver": 0.3,
    "unfinished": 0.3,
    "settle": 0.4,
}
EVENTS = ["arrival", "answer", "look", "commit"]  # of Kie, and of the stores
LETTERS = "ab"  # of the clients; every prompt begins with that of its client


@attrs.frozen(kw_only=True)
class When:
    """A moment of a life: `seconds` after its start; or so many `turns` of the loop after it, or after the
    `nth` event of a kind."""

    seconds: float = 0.0
    turns: int | None = None
    event: str = ""
    nth: int = 1


@attrs.frozen(kw_only=True)
class Cancel:
    when: When
    again: int | None = None  # once more, after so many turns
    level: bool = False  # in each turn until the call ends, as a cancel scope of anyio does


@attrs.frozen(kw_only=True)
class Call:
    """One call of a client's."""

    verb: str
    letter: str
    at: float
    prompt: str = ""
    key: str | None = None
    timeout: float | None = None
    on_update: bool = False
    on_unknown: str = "hold"
    retry_failed: bool = False
    batch: str = ""
    items: tuple[str, ...] = ()
    lazy: bool = False
    max_in_flight: int | None = None
    stop_after: int | None = None
    cancel: Cancel | None = None


@attrs.frozen(kw_only=True)
class LifePlan:
    """One run of the program. It ends in one of four ways: "quiet", when all calls are done; "close", in the
    middle; "interrupt", as by Ctrl-C; "kill", as by `kill -9`."""

    calls: tuple[Call, ...]
    end: str
    when: When
    gap: float  # seconds until the next one
    cancel_close: float | None = None  # `aclose` is cancelled after so many seconds
    close_twice: bool = False
    reboot: bool = False  # the machine is started anew after it


@attrs.frozen(kw_only=True)
class Plan:
    """A whole world. `faults` is between 0 and 1."""

    seed: int
    clients: int
    store: str  # "memory", "sqlite", or "thread" for SQLite with its own thread
    faults: float
    callbacks: bool
    webhook_key: str | None
    http: bool  # callbacks arrive at a server of aiohttp
    trust: bool
    max_in_flight: int
    limit: int
    poll: str
    slow: float  # seconds that the store takes at most, twice for each call
    failing: float  # the share of its calls that fail
    per: float = 2.0
    timeout: float = 3.0
    wait_timeout: float = 30.0
    outage: tuple[float, float] | None = None  # when Kie is down, and for how long
    steps: tuple[tuple[float, float], ...] = ()  # when the wall clock is set, and by how much
    lives: tuple[LifePlan, ...] = ()

    def to_json(self) -> str:
        return json.dumps(attrs.asdict(self, filter=lambda field, value: value != field.default), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        return cattrs.structure(json.loads(text), cls)

    @property
    def calls(self) -> list[Call]:
        return [call for life in self.lives for call in life.calls]


def plan_of(seed: int) -> Plan:
    return _Drawing(seed).plan()


class _Drawing:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(f"plan:{seed}")
        self.prompts = 0
        self.letters = LETTERS[: self.one_of(1, 1, 1, 2)]
        self.callbacks = self.sometimes(0.5)

    def one_of(self, *choices):
        return self.random.choice(choices)

    def sometimes(self, share: float) -> bool:
        return self.random.random() < share

    def seconds(self, *limits: float) -> float:
        """Up to one of the limits."""
        return round(self.random.uniform(0, self.one_of(*limits)), 4)

    def plan(self) -> Plan:
        store = self.one_of(*["sqlite"] * 6, *["memory"] * 2, "sqlite", "thread")
        lives = self.one_of(1, 1, 2, 2, 3)
        calls = max(1, self.random.randint(5, 15) // lives)
        steps = [(self.seconds(60.0), self.one_of(1, -1) * self.seconds(0.5, 20.0, 900.0)) for _ in range(2)]
        stepping = self.sometimes(0.2)
        return Plan(
            seed=self.seed,
            clients=len(self.letters),
            store=store,
            faults=self.one_of(0.0, 0.3, 0.6, 1.0),
            callbacks=self.callbacks,
            webhook_key=self.one_of("whk", None),
            http=self.sometimes(0.2),  # of those with callbacks
            trust=self.sometimes(0.15),
            max_in_flight=self.random.randint(1, 5),
            limit=self.random.randint(2, 5),
            wait_timeout=self.one_of(8.0, 30.0, 60.0),
            poll=self.one_of("default", "adaptive", "fast"),
            slow=self.one_of(0.0, 0.0, 0.05, 1.0),
            failing=self.one_of(*[0.0] * 8, 0.05, 0.3) if store == "sqlite" else 0.0,
            outage=(self.seconds(10.0), self.one_of(0.3, 2.0, 10.0)) if self.sometimes(0.15) else None,
            steps=tuple(steps) if stepping else (),
            lives=tuple(
                self.life(number, calls, last=number + 1 == lives, store=store, stepping=stepping)
                for number in range(lives)
            ),
        )

    def life(self, number: int, calls: int, *, last: bool, store: str, stepping: bool) -> LifePlan:
        ends = ["close", "quiet", "quiet"] if last else ["close", "close", "quiet", "quiet"]
        if store == "sqlite":  # memory would be lost, and a thread cannot be killed
            ends += ["interrupt"] if last else ["interrupt", "kill", "kill"]
        end = self.one_of(*ends)
        closing = end == "close"
        return LifePlan(
            calls=tuple(self.call(number) for _ in range(calls)),
            end=end,
            when=self.moment(600, 1.0, 8.0, 40.0),
            gap=self.one_of(0.0, 0.1, self.seconds(3.0), 20.0),
            cancel_close=self.one_of(0.0, 0.001, self.seconds(3.0))
            if closing and self.sometimes(0.15)
            else None,
            close_twice=closing and self.sometimes(0.1),
            reboot=not stepping and self.sometimes(0.1),  # with a wrong clock nothing tells the age of a slot
        )

    def moment(self, turns: int, *limits: float) -> When:
        kind = self.random.random()
        if kind < 0.4:
            return When(seconds=self.seconds(*limits))
        if kind < 0.6:
            return When(turns=self.random.randint(1, self.one_of(turns // 10, turns, 5 * turns)))
        return When(
            event=self.one_of(*EVENTS), nth=self.random.randint(1, 6), turns=self.random.randint(0, 12)
        )

    def call(self, life: int) -> Call:
        weights = {**VERBS, "resume": VERBS["resume"] + life}
        verb = self.random.choices([*weights], [*weights.values()])[0]
        letter = self.one_of(*self.letters)
        at = self.one_of(0.0, self.seconds(1.0), self.seconds(20.0))
        call = Call(verb=verb, letter=letter, at=at)
        if verb in ("generate", "submit", "submit only"):
            self.prompts += 1
            keyed = self.sometimes(0.5)
            name = f"{letter}-key{self.random.randint(1, 2)}" if keyed else f"{letter}{self.prompts}"
            call = attrs.evolve(call, prompt=name)
            if keyed:
                call = attrs.evolve(call, key=name, **self.resubmits())
            if self.sometimes(0.2):
                call = attrs.evolve(call, timeout=0.001 + self.seconds(0.001, 5.0, 60.0))
            call = attrs.evolve(call, on_update=verb == "generate" and self.sometimes(0.15))
        elif verb == "generate_many":
            batch = f"{letter}-batch{self.one_of(1, 2)}"
            call = attrs.evolve(
                call,
                batch=batch,
                items=tuple(f"{batch}-{number}" for number in range(self.random.randint(1, 5))),
                lazy=self.sometimes(0.3),
                max_in_flight=self.random.randint(1, 3) if self.sometimes(0.4) else None,
                stop_after=self.random.randint(0, 2) if self.sometimes(0.3) else None,
                **self.resubmits(),
            )
        elif verb in ("wait", "updates") and self.sometimes(0.4):
            call = attrs.evolve(call, timeout=0.01 + self.seconds(0.01, 20.0))
        if verb in ("details", "deliver", "wait", "updates", "settle"):
            call = attrs.evolve(call, at=1.0 + self.seconds(20.0))
        return attrs.evolve(call, cancel=self.cancel(call) if self.sometimes(0.4) else None)

    def resubmits(self):
        return {
            "on_unknown": "resubmit" if self.sometimes(0.15) else "hold",
            "retry_failed": self.sometimes(0.15),
        }

    def cancel(self, call: Call) -> Cancel:
        when = self.moment(200, 0.001, 0.3, 4.0, 30.0)
        if not when.event and when.turns is None:
            when = attrs.evolve(when, seconds=round(call.at + when.seconds, 4))
        return Cancel(when=when, again=self.one_of(None, None, 0, 1, 3), level=self.sometimes(0.25))
