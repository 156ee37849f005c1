"""What Kie decides: which submits are accepted and what they cost, which status checks and links are granted.

There is no clock here: every method that depends on the time takes it as an argument (see `tasks`).
Times are emulated seconds; `epoch` is the unix time of emulated second 0.
"""

import json
import math
import secrets
from collections import defaultdict, deque
from typing import Any, get_args

import attrs
from attrs.validators import ge, gt, in_

from .callbacks import AT_ONCE, Call, as_call
from .tasks import (
    IMAGE_LIFETIME,
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

IMAGE_PRICE = 6  # credits for one image, as published; no price of several variants is


@attrs.frozen(kw_only=True)
class Plan:
    """Settings for one submit; None leaves a setting to the account."""

    duration: Seconds | None = None
    outcome: Outcome | None = attrs.field(default=None, converter=attrs.converters.optional(as_outcome))
    progress: Progress | None = attrs.field(
        default=None, validator=attrs.validators.optional(in_(get_args(Progress)))
    )
    answer: Answer | None = None
    callback: Call | None = attrs.field(default=None, converter=attrs.converters.optional(as_call))


@attrs.define(kw_only=True, eq=False)
class Account:
    """One account at Kie, without the network: its settings, its tasks and its answers.

    The arguments are described in `Emulator`. The limits are those of pages "generate" and "record-info".
    """

    duration: Seconds = 20.0
    outcome: Outcome = attrs.field(default=Outcome("success"), converter=as_outcome)
    progress: Progress = attrs.field(default="jump", validator=in_(get_args(Progress)))
    limit: int = attrs.field(default=20, validator=ge(1))
    per: float = attrs.field(default=10.0, validator=gt(0))
    status_429: int = 429
    looks_per_second: int = attrs.field(default=3, validator=ge(1))
    record_delay: float = 0.0
    credits: float = 1000.0
    callback: Call = attrs.field(default=Call(), converter=as_call)

    epoch: float = attrs.field(default=0.0, init=False)
    tasks: dict[str, Task] = attrs.field(factory=dict, init=False)
    accepted: int = attrs.field(default=0, init=False)
    refused: int = attrs.field(default=0, init=False)
    look_refusals: int = attrs.field(default=0, init=False)
    _window: Window = attrs.field(init=False)
    _looks: dict[str, Window] = attrs.field(factory=dict, init=False)
    _task_ids: dict[str, list[str]] = attrs.field(factory=lambda: defaultdict(list), init=False)  # by request
    _plans: dict[str, deque[Plan]] = attrs.field(factory=lambda: defaultdict(deque), init=False)  # by prompt
    _next: deque[Plan] = attrs.field(factory=deque, init=False)
    _failing_looks: deque[Answer] = attrs.field(factory=deque, init=False)

    def __attrs_post_init__(self) -> None:
        self._window = Window(self.limit, self.per)

    def fail_looks(self, n: int, code: int = 500, http_status: int = 200) -> None:
        """Answer the next `n` status checks, of any task, with this code and HTTP status."""
        self._failing_looks.extend([Answer(code, http_status=http_status)] * n)

    def expire(self, task_id: str) -> None:
        """Serve the images of this task from now on through signed links only."""
        self.tasks[task_id].expired = True

    def most_in_window(self) -> int:
        """The largest number of tasks that were accepted within any `per` seconds."""
        return most_within(self._window.admitted, self.per)

    def most_looks_per_second(self) -> int:
        """The largest number of status checks of one task within any second, refused ones included."""
        return max((most_within(looks.arrivals, 1.0) for looks in self._looks.values()), default=0)

    def submit(self, body: dict[str, Any], now: float) -> Answer:
        """Answer a submit."""
        return self.create_task(body, now)[0]

    def create_task(self, body: dict[str, Any], now: float) -> tuple[Answer, Task | None]:
        """Answer a submit. The second value is the task, if one was created, whatever the answer says."""
        answer, task = self._create_task(body, now)
        if answer.code == 429:
            self.refused += 1
        return answer, task

    def look(self, task_id: str, now: float, *, url: str) -> Answer:
        """Answer a status check; `url` is where the images are served."""
        admitted = self._looks_of(task_id).admit(now)
        if self._failing_looks:
            return self._failing_looks.popleft()
        if not admitted:
            self.look_refusals += 1
            return Answer(429)
        task = self.tasks.get(task_id)
        if task is None or not task.is_known(now):
            return Answer(422, "The record does not exist")
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

    def _create_task(self, body: dict[str, Any], now: float) -> tuple[Answer, Task | None]:
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
        if plans:  # only now: refusals by balance or limit do not use up a plan
            plans.popleft()
        task = self._new_task(body, plan, now)
        return plan.answer or Answer(200, data={"taskId": task.id}), task

    def _new_task(self, body: dict[str, Any], plan: Plan, now: float) -> Task:
        task_id = secrets.token_hex(16)
        same_request = self._task_ids[json.dumps(body, sort_keys=True)]
        same_request.append(task_id)
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
            visible=now + self.record_delay,
            looks=self._looks_of(task_id).arrivals,
            same_request=same_request,
            call=call,
        )
        return task

    def _price(self, body: dict[str, Any]) -> int:
        return IMAGE_PRICE * int(body.get("nVariants", 1))

    def _looks_of(self, task_id: str) -> Window:
        return self._looks.setdefault(task_id, Window(self.looks_per_second, 1.0))
