"""Tasks as Kie keeps them: their requests, outcomes and records, and the answers and limits around them.

There is no socket, no clock and no sleep here: every method that depends on the time takes it as an
argument. So a test can ask what Kie answers at 9.999 and at 10.0 seconds.

Times are emulated seconds; only `create_time` and `complete_time` are unix time.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import attrs
from attrs.validators import optional

from .callbacks import Call, Report
from .values import TEXT, invalid, one_of, whole

Seconds = float | Callable[[], float]
Progress = Literal["jump", "linear"]

IMAGE_LIFETIME = 14 * 86_400  # page "download-url", as are the links
LINK_LIFETIME = 1200
MAX_FILES = 5  # this and the values below: page "generate"
FALLBACK_MODELS = ("GPT_IMAGE_1", "FLUX_MAX")
SIZES = ("1:1", "3:2", "2:3")
VARIANTS = (1, 2, 4)

TOO_FREQUENT = "Your call frequency is too high. Please try again later."
# The texts of the codes on pages "generate", "record-info" and "download-url". 430, 433 and 531 are listed
# for other endpoints of Kie only.
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
    429: TOO_FREQUENT,
    430: TOO_FREQUENT,
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


@attrs.frozen(kw_only=True)
class Answer:
    """An answer of Kie: an envelope with a code.

    Args:
        code: The code in the envelope.
        msg: The text in the envelope; by default Kie's own text for the code.
        http_status: The HTTP status. Kie sends 200 with nearly every error.
        data: The data in the envelope.
    """

    code: int = attrs.field(kw_only=False)
    msg: str = attrs.field(
        default=attrs.Factory(lambda self: MESSAGES.get(self.code, ""), takes_self=True), kw_only=False
    )
    http_status: int = 200
    data: Any = None


@attrs.frozen
class RecordState:
    """The fields of a record that tell the state of the task."""

    status: str
    flag: int
    code: int | None = None
    message: str | None = None
    images: Callable[[int], int] | None = None  # from the number of images requested to that of images made


# Page "record-info". Tasks that are "stuck" or "missing" never end: the first is GENERATING forever, the
# second has no record.
OUTCOMES = {
    "success": RecordState("SUCCESS", 1, images=lambda requested: requested),
    "partial": RecordState("SUCCESS", 1, images=lambda requested: requested - 1),
    "no_images": RecordState("SUCCESS", 1, images=lambda requested: 0),
    "failed": RecordState("GENERATE_FAILED", 3, 500, "internal error, please try again later."),
    "policy": RecordState(
        "GENERATE_FAILED", 2, 400, "Your content was flagged by OpenAI as violating content policies"
    ),
    "input": RecordState("GENERATE_FAILED", 3, 451, "Unable to download image from the provided filesUrl"),
    "create_failed": RecordState("CREATE_TASK_FAILED", 2, 500, "Failed to get user token"),
    "stuck": RecordState("GENERATING", 0),
    "missing": RecordState("GENERATING", 0),
}
RUNNING = OUTCOMES["stuck"]


@attrs.frozen(kw_only=True)
class Outcome:
    """How a task ends.

    Args:
        kind: One of the outcomes that `Emulator` lists.
        code: Replaces the errorCode of that row.
        message: Replaces its errorMessage, unless empty.
    """

    kind: str = attrs.field(validator=one_of(OUTCOMES), kw_only=False)
    code: int | None = attrs.field(default=None, validator=optional(whole(0, 999)))
    message: str = attrs.field(default="", validator=TEXT)

    @property
    def state(self) -> RecordState:
        """The state of the record once the task has ended."""
        row = OUTCOMES[self.kind]
        code = row.code if self.code is None else self.code
        return attrs.evolve(row, code=code, message=self.message or row.message)


def as_outcome(outcome: str | Outcome) -> Outcome:
    """The `Outcome` itself, or the one of this kind."""
    if isinstance(outcome, Outcome):
        return outcome
    if outcome not in OUTCOMES:
        raise invalid("outcome", outcome, f"an Outcome, or one of {', '.join(OUTCOMES)}")
    return Outcome(outcome)


def seconds(value: Seconds) -> float:
    """A duration, of which some are functions that are called for each use."""
    return value() if callable(value) else value


def most_within(times: Sequence[float], per: float) -> int:
    """The largest number of these ascending times within any window of `per` seconds."""
    most = first = 0
    for last, time in enumerate(times):
        while time - times[first] >= per:
            first += 1
        most = max(most, last - first + 1)
    return most


@attrs.define(eq=False)
class Window:
    """An exact sliding window. Refused arrivals do not count against the limit."""

    limit: int
    per: float
    arrivals: list[float] = attrs.field(factory=list, init=False)
    admitted: list[float] = attrs.field(factory=list, init=False)

    def admit(self, now: float) -> bool:
        """Whether an arrival at this time is within the limit."""
        self.arrivals.append(now)
        full = len(self.admitted) >= self.limit and now - self.admitted[-self.limit] < self.per
        if not full:
            self.admitted.append(now)
        return not full


def is_valid(body: Mapping[str, Any]) -> bool:
    """Whether Kie accepts this body of a generate request; it answers 422 otherwise."""
    prompt, files, variants = body.get("prompt"), body.get("filesUrl") or [], body.get("nVariants", 1)
    return all(
        (
            body.get("size") in SIZES,
            prompt is None or isinstance(prompt, str),
            isinstance(files, list) and len(files) <= MAX_FILES,
            bool(prompt or files or body.get("fileUrl")),
            type(variants) is int and variants in VARIANTS,  # a bool is not a number of images
            body.get("fallbackModel") in (None, *FALLBACK_MODELS),
        )
    )


def param_json(request: Mapping[str, Any]) -> str:
    """`paramJson` of a record: not the body as sent, and without fields that were not set."""
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
    """One paid task, and what record-info, callbacks and image URLs show of it."""

    id: str
    request: dict[str, Any]
    created: float
    create_time: int  # unix time
    duration: float
    outcome: Outcome
    progress: Progress
    visible: float  # before this time record-info does not know the task
    looks: list[float]  # times of all status checks, refused ones included
    same_request: list[str] = attrs.field(repr=False)  # ids of all tasks with an equal request
    call: Call = attrs.field(factory=Call, repr=False)
    price: float = 0.0  # credits
    looks_left: int = 0  # it ends at the last of these status checks, whatever the time

    @property
    def submits(self) -> int:
        """How many accepted submits had an equal request; above 1, it was paid more than once."""
        return len(self.same_request)

    @property
    def variants(self) -> int:
        """The number of images requested."""
        return int(self.request.get("nVariants", 1))

    @property
    def callback_url(self) -> str | None:
        """Where the task calls back, if anywhere."""
        url = self.request.get("callBackUrl")
        return str(url) if url else None

    @property
    def end(self) -> float | None:
        """When it ends; None if it never does, or if status checks are left before that."""
        ends = self.outcome.state.flag and not self.looks_left
        return self.created + self.duration if ends else None

    @property
    def complete_time(self) -> int:
        """When it ends, as unix time."""
        return self.create_time + math.ceil(self.duration)

    def is_known(self, now: float) -> bool:
        """Whether record-info has a record of it."""
        return self.outcome.kind != "missing" and now >= self.visible

    def state(self, now: float) -> RecordState:
        """The state that its record shows."""
        return self.outcome.state if self._has_ended(now) else RUNNING

    def look(self, now: float) -> bool:
        """Count a status check that is answered; True if the task ends at it."""
        if not self.looks_left:
            return False
        self.looks_left -= 1
        self.duration = math.nextafter(now - self.created, 0.0)  # with `created` at most `now`, once rounded
        return not self.looks_left

    def files(self, now: float) -> list[str]:
        """The paths of its images so far."""
        images = self.state(now).images
        number = images(self.variants) if images else 0
        salt = int(self.id[:4], 16) % 10_000
        return [f"/s/{self.id}_{index}_{self.complete_time}_{salt:04}.png" for index in range(number)]

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
            "progress": f"{self._progress(state, now - self.created):.2f}",
        }

    def report(self, *, url: str) -> Report:
        """What a true callback reports once the task has ended; `url` is where the images are served."""
        if self.end is None:
            when = f"ends after {self.looks_left} more status checks" if self.looks_left else "never ends"
            raise ValueError(f"task {self.id} {when}, so it has nothing to call back about")
        state = self.state(self.end)
        if state.flag != 1:
            return Report(state.code, state.message)
        return Report(200, MESSAGES[200], tuple(url + path for path in self.files(self.end)))

    def _progress(self, state: RecordState, elapsed: float) -> float:
        if state.flag or self.progress == "jump":
            return float(state.flag == 1)
        if self.looks_left:
            return 1 / (1 + self.looks_left)
        return min(0.99, elapsed / self.duration if elapsed < self.duration else 1.0)

    def _has_ended(self, now: float) -> bool:
        return not self.looks_left and now >= self.created + self.duration
