"""What Kie decides: which submit is accepted, what it costs, which look is answered, which link signed.

A state that changes only when it is told the time, like all that it is made of (see `tasks`).
All times are emulated seconds; `epoch` says which unix time the emulated second 0 was.
"""

import json
import math
import secrets
from collections import defaultdict, deque
from typing import Any

import attrs
from attrs.validators import ge, gt, in_

from .callbacks import AT_ONCE, Call, as_call
from .tasks import (
    KEPT,
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

IMAGE_PRICE = 6  # credits for one image


@attrs.frozen
class Plan:
    """What was arranged for one submit; None leaves it to the defaults."""

    duration: Seconds | None = None
    outcome: Outcome | None = attrs.field(default=None, converter=attrs.converters.optional(as_outcome))
    progress: Progress | None = None
    answer: Answer | None = None
    callback: Call | None = attrs.field(default=None, converter=attrs.converters.optional(as_call))


@attrs.define(kw_only=True, eq=False)
class Kie:
    """One account at Kie, without the network: what it is told, and what it would answer."""

    duration: Seconds = 20.0
    outcome: Outcome = attrs.field(default=Outcome("success"), converter=as_outcome)
    progress: Progress = attrs.field(default="jump", validator=in_(("jump", "linear")))
    limit: int = attrs.field(default=20, validator=ge(1))
    per: float = attrs.field(default=10.0, validator=gt(0))
    status_429: int = 429
    looks_per_second: int = attrs.field(default=3, validator=ge(1))
    grace: float = 0.0
    credits: float = 1000.0
    callback: Call = attrs.field(default=Call(), converter=as_call)

    epoch: float = attrs.field(default=0.0, init=False)
    tasks: dict[str, Task] = attrs.field(factory=dict, init=False)
    accepted: int = attrs.field(default=0, init=False)
    refused: int = attrs.field(default=0, init=False)
    look_refusals: int = attrs.field(default=0, init=False)
    _window: Window = attrs.field(init=False)
    _looks: dict[str, Window] = attrs.field(factory=dict, init=False)
    _equals: dict[str, list[str]] = attrs.field(factory=lambda: defaultdict(list), init=False)
    _plans: dict[str, deque[Plan]] = attrs.field(factory=lambda: defaultdict(deque), init=False)
    _next: deque[Plan] = attrs.field(factory=deque, init=False)
    _failing: deque[Answer] = attrs.field(factory=deque, init=False)

    def __attrs_post_init__(self) -> None:
        self._window = Window(self.limit, self.per)

    def fail_looks(self, n: int, code: int = 500, http_status: int = 200) -> None:
        """Let the next `n` looks, at whatever task, get this error."""
        self._failing.extend([Answer(code, http_status=http_status)] * n)

    def expire(self, task_id: str) -> None:
        """From now on the images of this task are reached by a signed link only."""
        self.tasks[task_id].expired = True

    def most_in_window(self) -> int:
        return most_within(self._window.admitted, self.per)

    def most_looks_per_second(self) -> int:
        """The most looks at one task that arrived within a second, refused ones too."""
        return max((most_within(looks.arrivals, 1.0) for looks in self._looks.values()), default=0)

    def submit(self, body: dict[str, Any], now: float) -> Answer:
        return self.take(body, now)[0]

    def take(self, body: dict[str, Any], now: float) -> tuple[Answer, Task | None]:
        """The answer to a submit, and the task if there is one: an answer need not tell."""
        answer, task = self._take(body, now)
        self.refused += answer.code == 429
        return answer, task

    def look(self, task_id: str, now: float, *, url: str) -> Answer:
        admitted = self._looks_at(task_id).admit(now)
        if self._failing:
            return self._failing.popleft()
        if not admitted:
            self.look_refusals += 1
            return Answer(429)
        task = self.tasks.get(task_id)
        if task is None or not task.known(now):
            return Answer(422, "The record does not exist")
        return Answer(200, data=task.record(now, url=url))

    def may_sign(self, task_id: str, path: str, now: float) -> Answer:
        """Whether Kie signs a link to this image: 200, or why not."""
        task = self.tasks.get(task_id)
        if task is None or not task.known(now):
            return Answer(422, "record is null")
        reasons = (
            (now - task.created >= KEPT, "Temporarily supports records within 14 days"),
            (task.state(now).flag != 1, "record status is not success"),
            (not task.files(now), "record result data is empty"),
            (path not in task.files(now), "record result data not exist"),
        )
        return next((Answer(422, why) for wrong, why in reasons if wrong), Answer(200))

    def _take(self, body: dict[str, Any], now: float) -> tuple[Answer, Task | None]:
        if not is_valid(body):
            return Answer(422), None
        plans = self._plans.get(body.get("prompt", "")) or self._next
        plan = plans[0] if plans else Plan()
        if plan.answer and not plan.answer.task_created:
            plans.popleft()
            return plan.answer, None
        if self.credits < self._price(body):
            return Answer(402), None
        if not self._window.admit(now):
            return Answer(429, http_status=self.status_429), None
        if plans:  # only now: a plan outlives the refusals before its task
            plans.popleft()
        task = self._create(body, plan, now)
        return plan.answer or Answer(200, data={"taskId": task.id}), task

    def _create(self, body: dict[str, Any], plan: Plan, now: float) -> Task:
        task_id = secrets.token_hex(16)
        equals = self._equals[json.dumps(body, sort_keys=True)]
        equals.append(task_id)
        call = plan.callback or self.callback
        duration = self.duration if plan.duration is None else plan.duration
        self.accepted += 1
        self.credits -= self._price(body)
        self.tasks[task_id] = task = Task(
            id=task_id,
            request=body,
            created=now,
            create_time=math.ceil(self.epoch + now),  # Kie rounds up
            duration=0.0 if body.get("callBackUrl") and call.when in AT_ONCE else seconds(duration),
            outcome=plan.outcome or self.outcome,
            progress=plan.progress or self.progress,
            visible=now + self.grace,
            looks=self._looks_at(task_id).arrivals,
            equals=equals,
            call=call,
        )
        return task

    def _price(self, body: dict[str, Any]) -> int:
        return IMAGE_PRICE * int(body.get("nVariants", 1))

    def _looks_at(self, task_id: str) -> Window:
        return self._looks.setdefault(task_id, Window(self.looks_per_second, 1.0))
