"""What a task at Kie is: its request, its end, its record; answers, windows and what is valid.

Everything here is a value or a state that changes only when it is told the time: no socket, no clock,
no sleep. That is what lets a test ask what Kie would have answered at 9.999 and at 10.0 seconds.

All times are emulated seconds; only `create_time` and `complete_time` are unix time.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import attrs
from attrs.validators import in_

from .callbacks import Call, Claim

Seconds = float | Callable[[], float]
Progress = Literal["jump", "linear"]

KEPT = 14 * 86_400  # seconds an image is kept
LINK_LIFE = 1200  # seconds a signed link is good for
MAX_FILES = 5
FALLBACK_MODELS = ("GPT_IMAGE_1", "FLUX_MAX")
SIZES = ("1:1", "3:2", "2:3")
VARIANTS = (1, 2, 4)

FREQUENCY = "Your call frequency is too high. Please try again later."
MESSAGES = {
    200: "success",
    400: "Format Error - The parameter is not in a valid JSON format",
    401: (
        "Unauthorized \u2013 Authentication failed. "
        "Please check that your Authorization and Content-Type headers are correctly set."
    ),
    402: (
        "Credits insufficient : Your current balance isn't enough to run this request. "
        "Please top up to continue."
    ),
    404: "Not Found - The requested resource or endpoint does not exist",
    408: "Timeout - The upstream service gave no result within 10 minutes",
    422: "Validation Error - The request parameters failed validation checks",
    429: FREQUENCY,
    430: FREQUENCY,
    433: "Request Limit - Sub-key Usage Exceeds Limit",
    451: "Failed to fetch the image. Kindly verify any access limits set by you or your service provider",
    455: "Service Unavailable - System is currently undergoing maintenance",
    500: "Server Error - An unexpected error occurred while processing the request",
    501: "Generation Failed - Content generation task failed",
    505: "Feature Disabled - The requested feature is currently disabled",
    531: (
        "Server Error - Sorry, the generation failed due to an issue. "
        "Your credits have been refunded. Please try again"
    ),
    550: (
        "Connection Denied - Task was rejected due to a full queue, "
        "likely caused by source site's issues. Please contact the administrator to confirm."
    ),
}


@attrs.frozen
class Answer:
    """An envelope to send; without `msg` it says what Kie says for that code.

    With `task_created` a submit is accepted and paid, and gets this answer all the same. `raw` is sent
    as text/html in place of the envelope; a `lost` answer is not sent: the connection is closed.
    """

    code: int
    msg: str = attrs.Factory(lambda self: MESSAGES.get(self.code, ""), takes_self=True)
    http_status: int = 200
    data: Any = None
    task_created: bool = attrs.field(default=False, kw_only=True)
    raw: bytes | None = attrs.field(default=None, kw_only=True)
    lost: bool = attrs.field(default=False, kw_only=True)

    @classmethod
    def dropped(cls, *, task_created: bool = True) -> Self:
        """The answer to a submit that never arrives, although the task is there and paid."""
        return cls(0, lost=True, task_created=task_created)


ANSWERS = {"dropped": Answer.dropped()}


def as_answer(answer: Answer | int | str | None, *, status_429: int = 200) -> Answer | None:
    if isinstance(answer, int):
        return Answer(answer, http_status=status_429 if answer == 429 else 200)
    if isinstance(answer, str):
        if answer not in ANSWERS:
            raise ValueError(f"answer={answer!r}: an Answer, a code, or one of {', '.join(ANSWERS)}")
        return ANSWERS[answer]
    return answer


@attrs.frozen
class Ending:
    """One row of `ENDINGS`: what the record says once the task is over."""

    status: str
    flag: int
    code: int | None = None
    message: str | None = None
    images: Callable[[int], int] | None = None  # images asked for -> images made


# "stuck" and "missing" never end: the first generates for ever, the second has no record.
ENDINGS = {
    "success": Ending("SUCCESS", 1, images=lambda asked: asked),
    "partial": Ending("SUCCESS", 1, images=lambda asked: asked - 1),
    "no_images": Ending("SUCCESS", 1, images=lambda asked: 0),
    "failed": Ending("GENERATE_FAILED", 3, 500, "internal error, please try again later."),
    "policy": Ending(
        "GENERATE_FAILED", 2, 400, "Your content was flagged by OpenAI as violating content policies"
    ),
    "input": Ending("GENERATE_FAILED", 3, 451, "Unable to download image from the provided filesUrl"),
    "create_failed": Ending("CREATE_TASK_FAILED", 2, 500, "Failed to get user token"),
    "stuck": Ending("GENERATING", 0),
    "missing": Ending("GENERATING", 0),
}
RUNNING = ENDINGS["stuck"]


@attrs.frozen
class Outcome:
    """How a task ends: a row of `ENDINGS`, of which `code` and `message` may be replaced."""

    kind: str = attrs.field(validator=in_(ENDINGS))
    code: int | None = attrs.field(default=None, kw_only=True)
    message: str = attrs.field(default="", kw_only=True)

    @property
    def ending(self) -> Ending:
        row = ENDINGS[self.kind]
        code = row.code if self.code is None else self.code
        return attrs.evolve(row, code=code, message=self.message or row.message)


def as_outcome(outcome: str | Outcome) -> Outcome:
    return outcome if isinstance(outcome, Outcome) else Outcome(outcome)


def seconds(value: Seconds) -> float:
    return value() if callable(value) else value


def most_within(times: Sequence[float], per: float) -> int:
    """The largest number of ascending times that lie less than `per` apart."""
    most = first = 0
    for last, time in enumerate(times):
        while time - times[first] >= per:
            first += 1
        most = max(most, last - first + 1)
    return most


@attrs.define(eq=False)
class Window:
    """An exact sliding window: what is refused takes no place in it."""

    limit: int
    per: float
    arrivals: list[float] = attrs.field(factory=list, init=False)
    admitted: list[float] = attrs.field(factory=list, init=False)

    def admit(self, now: float) -> bool:
        self.arrivals.append(now)
        full = len(self.admitted) >= self.limit and now - self.admitted[-self.limit] < self.per
        if not full:
            self.admitted.append(now)
        return not full


def is_valid(body: Mapping[str, Any]) -> bool:
    """Whether Kie takes this body of a generate request; if not it answers 422."""
    prompt, files, variants = body.get("prompt"), body.get("filesUrl") or [], body.get("nVariants", 1)
    return all(
        (
            body.get("size") in SIZES,
            prompt is None or isinstance(prompt, str),
            isinstance(files, list) and len(files) <= MAX_FILES,
            bool(prompt or files or body.get("fileUrl")),
            type(variants) is int and variants in VARIANTS,  # True is not one image
            body.get("fallbackModel") in (None, *FALLBACK_MODELS),
        )
    )


def param_json(request: Mapping[str, Any]) -> str:
    """What the record repeats of a request: not the body as sent, and without what was not set."""
    params = {
        "callBackUrl": request.get("callBackUrl"),
        "enableFallback": bool(request.get("enableFallback")),
        "fileUrlOrPromptNotEmpty": True,
        "nVariantsValid": True,
        "prompt": request.get("prompt"),
        "size": request["size"],
    }
    known = {name: value for name, value in params.items() if value is not None}
    return json.dumps(known, ensure_ascii=False, separators=(",", ":"))


@attrs.define(kw_only=True, eq=False)
class Task:
    """One paid task and all that can be seen of it from outside."""

    id: str
    request: dict[str, Any]
    created: float
    create_time: int  # unix seconds
    duration: float
    outcome: Outcome
    progress: Progress
    visible: float  # before this time record-info does not know the task yet
    looks: list[float]  # every look that arrived, refused ones too
    equals: list[str] = attrs.field(repr=False)  # ids of the tasks with an equal request
    call: Call = attrs.field(factory=Call, repr=False)
    expired: bool = False

    @property
    def submits(self) -> int:
        """How many accepted submits had this very request; more than one was paid twice."""
        return len(self.equals)

    @property
    def variants(self) -> int:
        return int(self.request.get("nVariants", 1))

    @property
    def callback_url(self) -> str | None:
        url = self.request.get("callBackUrl")
        return str(url) if url else None

    @property
    def end(self) -> float | None:
        """When it ends; None if it never does."""
        return self.created + self.duration if self.outcome.ending.flag else None

    @property
    def complete_time(self) -> int:
        return self.create_time + math.ceil(self.duration)

    def known(self, now: float) -> bool:
        return self.outcome.kind != "missing" and now >= self.visible

    def state(self, now: float) -> Ending:
        return self.outcome.ending if now >= self.created + self.duration else RUNNING

    def files(self, now: float) -> list[str]:
        """The paths of the images that exist."""
        images = self.state(now).images
        made = images(self.variants) if images else 0
        salt = int(self.id[:4], 16) % 10_000
        return [f"/s/{self.id}_{index}_{self.complete_time}_{salt:04}.png" for index in range(made)]

    def record(self, now: float, *, url: str) -> dict[str, Any]:
        """`data` of record-info; `url` is where the images are served."""
        state = self.state(now)
        urls = [url + path for path in self.files(now)]
        return {
            "taskId": self.id,
            "paramJson": param_json(self.request),
            "completeTime": self.complete_time * 1000 if state.flag else None,
            "response": {"resultUrls": urls} if state.images else None,
            "successFlag": state.flag,
            "status": state.status,
            "errorCode": state.code,
            "errorMessage": state.message,
            "createTime": self.create_time * 1000,
            "progress": f"{self._share(state, now - self.created):.2f}",
        }

    def claim(self, *, url: str) -> Claim:
        """What its callback says; of a task that still runs, what it will say."""
        if self.end is None:
            raise ValueError(f"task {self.id} never ends: there is nothing to call back about")
        state = self.state(self.end)
        if state.flag != 1:
            return Claim(state.code, state.message)
        return Claim(200, MESSAGES[200], tuple(url + path for path in self.files(self.end)))

    def _share(self, state: Ending, elapsed: float) -> float:
        if state.flag or self.progress == "jump":
            return float(state.flag == 1)
        return min(0.99, elapsed / self.duration if elapsed < self.duration else 1.0)
