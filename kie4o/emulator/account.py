"""What Kie decides: which submits are accepted and what they cost, which status checks and links are granted.

There is no clock here: every method that depends on the time takes it as an argument (see `tasks`).
Times are emulated seconds; `epoch` is the unix time of emulated second 0.
"""

import difflib
import json
import math
import random
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any, Literal, get_args

import attrs
from attrs.validators import optional

from .callbacks import AT_ONCE, Call, as_call
from .fault_queue import Faults
from .faults import Fault
from .magic import NONE, Magic, as_fault, magic_of
from .tasks import (
    IMAGE_LIFETIME,
    VARIANTS,
    Answer,
    Outcome,
    Progress,
    Seconds,
    Task,
    Window,
    as_outcome,
    is_valid,
    most_within,
    seconds,
)
from .values import AMOUNT, COUNT, DURATION, NOT_NEGATIVE, NUMBER, POSITIVE, STATUS, invalid, one_of

IMAGE_PRICE = 6  # credits for one image, as published; no price of several variants is
PRICES: Mapping[int, float] = {number: float(IMAGE_PRICE * number) for number in VARIANTS}


def _as_prices(prices: Mapping[int, float]) -> Mapping[int, float]:
    """Credits by number of variants; numbers that are missing keep the default."""
    known = isinstance(prices, Mapping) and all(number in VARIANTS for number in prices)
    if not (known and all(map(AMOUNT.accepts, prices.values()))):
        expected = f"credits, 0 or more, for {', '.join(map(str, VARIANTS))} variants"
        raise invalid("prices", prices, expected)
    return {**PRICES, **prices}


def _as_caps(caps: Mapping[str, float]) -> Mapping[str, float]:
    """Credits by API key."""
    if not (isinstance(caps, Mapping) and all(caps) and all(map(NOT_NEGATIVE.accepts, caps.values()))):
        raise ValueError("invalid caps: expected credits, 0 or more, by API key")  # without the keys
    return dict(caps)


@attrs.frozen(kw_only=True)
class Plan:
    """Settings for one submit; None leaves a setting to the account."""

    duration: Seconds | None = attrs.field(default=None, validator=optional(DURATION))
    looks: int | None = attrs.field(default=None, validator=optional(COUNT))
    outcome: Outcome | None = attrs.field(default=None, converter=attrs.converters.optional(as_outcome))
    progress: Progress | None = attrs.field(default=None, validator=optional(one_of(get_args(Progress))))
    answer: Fault | None = attrs.field(default=None, converter=as_fault)
    callback: Call | None = attrs.field(default=None, converter=attrs.converters.optional(as_call))

    def __attrs_post_init__(self) -> None:
        if self.duration is not None and self.looks is not None:
            raise ValueError(f"pass either duration= or looks={self.looks!r}, not both")

    def __str__(self) -> str:
        given = attrs.asdict(self, recurse=False, filter=lambda _, value: value is not None)
        return ", ".join(f"{name}={_shown(value)}" for name, value in given.items())


def _shown(value: object) -> str:
    """A setting of a plan as it was probably written."""
    if isinstance(value, Outcome) and value == Outcome(value.kind):
        return repr(value.kind)
    return str(value) if isinstance(value, Fault) else repr(value)


@attrs.define(kw_only=True, eq=False)
class Account:
    """One account at Kie, without the network: its settings, its tasks and its answers.

    The arguments are described in `Emulator`. The limits are those of pages "generate" and "record-info".
    """

    duration: Seconds = attrs.field(default=20.0, validator=DURATION)
    _last_look: int | None = attrs.field(default=None, alias="looks", validator=optional(COUNT))
    outcome: Outcome = attrs.field(default=Outcome("success"), converter=as_outcome)
    progress: Progress = attrs.field(default="jump", validator=one_of(get_args(Progress)))
    limit: int = attrs.field(default=20, validator=COUNT)
    per: float = attrs.field(default=10.0, validator=POSITIVE)
    status_429: int = attrs.field(default=429, validator=STATUS)
    looks_per_second: int = attrs.field(default=3, validator=COUNT)
    record_delay: float = attrs.field(default=0.0, validator=NOT_NEGATIVE)
    credits: float = attrs.field(default=1000.0, validator=NUMBER)
    prices: Mapping[int, float] = attrs.field(default=PRICES, converter=_as_prices)
    caps: Mapping[str, float] = attrs.field(factory=dict, converter=_as_caps, repr=False)
    callback: Call = attrs.field(default=Call(), converter=as_call)
    magic: bool = True
    seed: int | None = None

    faults: Faults = attrs.field(factory=Faults, init=False, repr=False)
    chance: random.Random = attrs.field(init=False, repr=False)
    epoch: float = attrs.field(default=0.0, init=False)
    tasks: dict[str, Task] = attrs.field(factory=dict, init=False)
    _credits_at_first: float = attrs.field(default=0.0, init=False)
    _spent_by: dict[str, float] = attrs.field(
        factory=lambda: defaultdict(float), init=False, repr=False
    )  # by API key
    _window: Window = attrs.field(init=False)
    _looks: dict[str, Window] = attrs.field(factory=dict, init=False)
    _task_ids: dict[str, list[str]] = attrs.field(factory=lambda: defaultdict(list), init=False)  # by request
    _plans: dict[str, deque[Plan]] = attrs.field(factory=lambda: defaultdict(deque), init=False)  # by prompt
    _next: deque[Plan] = attrs.field(factory=deque, init=False)
    _prompts: dict[str, None] = attrs.field(factory=dict, init=False, repr=False)  # that came, in order

    def __attrs_post_init__(self) -> None:
        self._window = Window(self.limit, self.per)
        self.chance = random.SystemRandom() if self.seed is None else random.Random(self.seed)
        self._credits_at_first = self.credits

    @property
    def paid(self) -> int:
        """How many submits created a task and were charged."""
        return len(self.tasks)

    @property
    def spent(self) -> float:
        """The credits that they cost."""
        return sum(task.price for task in self.tasks.values())

    def reset(self) -> None:
        """Forget every task, status check and plan, and restore the credits that there were at first."""
        self._window = Window(self.limit, self.per)
        self.credits = self._credits_at_first
        for memory in (self.tasks, self._spent_by, self._looks, self._task_ids):
            memory.clear()
        for plans in (self._plans, self._next, self._prompts, self.faults):
            plans.clear()
        if self.seed is not None:
            self.chance.seed(self.seed)

    def share_plans_of(self, other: "Account") -> None:
        """Take plans from where the other account takes them; whichever comes first uses one up."""
        self._plans, self._next, self._prompts = other._plans, other._next, other._prompts
        if self.seed is None:
            self.chance = other.chance

    def token(self) -> str:
        """32 hexadecimal digits that occur nowhere else; with a `seed` the same in every run."""
        return f"{self.chance.getrandbits(128):032x}"

    def unused(self) -> list[str]:
        """A sentence for each fault that has not fired as planned, and for each plan that no submit used."""
        sentences = self.faults.unused()
        for prompt, plans in self._plans.items():
            near = self._nearest(prompt)
            sentences += [f"plan({prompt!r}, {plan}) did not fire; {near}" for plan in plans]
        return sentences + [f"next({plan}) did not fire" for plan in self._next]

    def windows(self, kind: Literal["submit", "look"] = "submit") -> int:
        """The largest number of submits within any `per` seconds, or of looks at one task within any second.

        Those that were refused as too many count too, but no other refusal does.
        """
        if kind == "submit":
            return most_within(self._window.arrivals, self.per)
        if kind != "look":
            raise invalid("kind", kind, "'submit' or 'look'")
        return max((most_within(looks.arrivals, 1.0) for looks in self._looks.values()), default=0)

    def submit(self, body: dict[str, Any], now: float) -> Answer:
        """Answer a submit."""
        return self.create_task(body, now)[0]

    def create_task(self, body: dict[str, Any], now: float, *, key: str = "") -> tuple[Answer, Task | None]:
        """Answer a submit, as Kie does without faults. The second value is the task, if one was created.

        `key` is the API key, whose cap the task must fit in.
        """
        if not is_valid(body):
            return Answer(422), None
        try:
            magic = self._magic_of(body)
        except ValueError as error:
            return Answer(422, str(error)), None
        plans, price = self._plans_for(body), self._price(body)
        if self._spent_by[key] + price > self.caps.get(key, math.inf):
            return Answer(433), None
        if self.credits < price:
            return Answer(402), None
        if not self._window.admit(now):
            return Answer(429, http_status=self.status_429), None
        plan = plans.popleft() if plans else Plan()  # only now: these refusals do not use up a plan
        self._spent_by[key] += price
        task = self._new_task(body, plan, magic, now)
        return Answer(200, data={"taskId": task.id}), task

    def look(self, task_id: str, now: float, *, url: str) -> Answer:
        """Answer a status check; `url` is where the images are served."""
        admitted = self._looks_of(task_id).admit(now)
        if not admitted:
            return Answer(429)
        task = self.tasks.get(task_id)
        if task is None or not task.is_known(now):
            return Answer(422, "The record does not exist")
        task.look(now)
        return Answer(200, data=task.record(now, url=url))

    def may_sign(self, task_id: str, path: str, now: float) -> Answer:
        """200 if Kie signs a link to this image, or its refusal (page "download-url")."""
        task = self.tasks.get(task_id)
        if task is None or not task.is_known(now):
            return Answer(422, "record is null")
        refusals = (
            (now - task.created >= IMAGE_LIFETIME, "Temporarily supports records within 14 days"),
            (task.state(now).flag != 1, "record status is not success"),
            (not task.files(now), "record result data is empty"),
            (path not in task.files(now), "record result data not exist"),
        )
        return next((Answer(422, msg) for applies, msg in refusals if applies), Answer(200))

    def has_planned_answers(self) -> bool:
        """Whether `planned_answer` may have one."""
        return bool(self._plans or self._next)

    def planned_answer(self, body: dict[str, Any]) -> Fault | None:
        """What this submit is answered according to its plan or its prompt. A refusal uses up the plan."""
        if not is_valid(body):
            return None
        plans = self._plans_for(body)
        fault = plans[0].answer if plans else None
        if fault is None:
            try:
                return self._magic_of(body).fault
            except ValueError:  # it is refused
                return None
        if not fault.charges:
            plans.popleft()
        return fault

    def _new_task(self, body: dict[str, Any], plan: Plan, magic: Magic, now: float) -> Task:
        task_id = self.token()
        same_request = self._task_ids[json.dumps(body, sort_keys=True)]
        same_request.append(task_id)
        call = plan.callback or self.callback
        duration = self.duration if plan.duration is None else plan.duration
        price = self._price(body)
        self.credits -= price
        looks = plan.looks or (self._last_look if plan.duration is None else None)
        at_once = body.get("callBackUrl") and call.when in AT_ONCE
        self.tasks[task_id] = task = Task(
            id=task_id,
            request=body,
            created=now,
            create_time=math.ceil(self.epoch + now),  # Kie rounds up
            duration=0.0 if at_once else seconds(duration),
            looks_left=0 if at_once or looks is None else looks,
            outcome=plan.outcome or magic.outcome or self.outcome,
            progress=plan.progress or self.progress,
            visible=now + self.record_delay,
            looks=self._looks_of(task_id).arrivals,
            same_request=same_request,
            call=call,
            price=price,
        )
        return task

    def _plans_for(self, body: dict[str, Any]) -> deque[Plan]:
        """The plans of a prompt, or else those for any; the first is for this submit."""
        prompt = body.get("prompt") or ""
        self._prompts.setdefault(prompt)
        return self._plans.get(prompt) or self._next

    def _magic_of(self, body: dict[str, Any]) -> Magic:
        return magic_of(body.get("prompt")) if self.magic else NONE

    def _nearest(self, prompt: str) -> str:
        """Which prompts came in place of one that a plan waits for."""
        if prompt in self._prompts:
            return "its prompt came too seldom"
        near = difflib.get_close_matches(prompt, self._prompts, n=1, cutoff=0.0)
        return f"the nearest prompt that came is {near[0]!r}" if near else "no prompt came"

    def _price(self, body: Mapping[str, Any]) -> float:
        return self.prices[int(body.get("nVariants", 1))]

    def _looks_of(self, task_id: str) -> Window:
        return self._looks.setdefault(task_id, Window(self.looks_per_second, 1.0))
