"""What the user of the client gets for each fault of the emulator. Every case has its control: the same call
without the fault, whose outcome is another one unless the client is meant to notice nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest
from clients import client_of
from clocks import KIND
from faulty import row_of, rows

from kie4o import AsyncKieClient, KieError, PollPolicy, TaskState
from kie4o.emulator import Emulator
from kie4o.emulator.effects import EFFECTS, KINDS
from kie4o.emulator.magic import NAMES
from kie4o.emulator.routes import DOWNLOAD_URL, IMAGES
from kie4o.emulator.tasks import OUTCOMES

pytestmark = pytest.mark.skipif(KIND != "asyncio", reason="virtual time needs a loop of asyncio")

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 100
TIMEOUT = 30.0  # seconds that the client waits for an answer
UNKNOWN = "SubmissionUnknownError"
LOST = "APIConnectionError"
SLOW = "APITimeoutError"
ODD = "UnexpectedResponseError"
BROKEN = "InternalServerError"
GOOD = "good"


async def submitted(client: AsyncKieClient, kie: Emulator) -> str:
    await client.submit("A calm lake")
    return GOOD


async def looked_at(client: AsyncKieClient, kie: Emulator) -> str:
    details = await client.details(task_of(kie))
    good = details.state is TaskState.SUCCEEDED and len(details.urls) == 1
    return GOOD if good else f"{details.state.name} {len(details.urls)}"


async def counted(client: AsyncKieClient, kie: Emulator) -> str:
    return GOOD if await client.credits() == 1000 else "wrong"


async def linked(client: AsyncKieClient, kie: Emulator) -> str:
    task_id = task_of(kie)
    (path,) = kie.tasks[task_id].files(kie.now())
    return GOOD if "X-Amz-Signature" in await client.download_url(task_id, kie.url + path) else "wrong"


async def uploaded(client: AsyncKieClient, kie: Emulator) -> str:
    return GOOD if (await client.upload(PNG, name="a.png")).size == len(PNG) else "wrong"


async def fetched(client: AsyncKieClient, kie: Emulator) -> str:
    task_id = task_of(kie)
    await asyncio.sleep(3600)  # no longer fresh: an image of a fresh task may be missing for a while
    (image,) = await client.fetch(task_id)
    return GOOD if len(image.data) == 70 else f"{len(image.data)} bytes"


def task_of(kie: Emulator) -> str:
    """A task that has ended, created without a request."""
    task = kie.create_task({"prompt": "A calm lake", "size": "1:1"}, kie.now())[1]
    assert task is not None
    return task.id


CALLS: dict[str, Callable[[AsyncKieClient, Emulator], Awaitable[str]]] = {
    "submit": submitted,
    "look": looked_at,
    "credits": counted,
    "link": linked,
    "upload": uploaded,
    "image": fetched,
}


@attrs.frozen
class Case:
    """What the user gets if the fault fires every time: for a submit, a look, other API calls, an image."""

    options: dict[str, Any]
    submit: str
    look: str = "="  # as the next one
    others: str = "="  # as an image
    image: str = "DownloadError"

    def expected(self, kind: str) -> str:
        if kind in ("submit", "image"):
            return str(getattr(self, kind))
        others = self.others if self.others != "=" else self.look
        return (self.look if self.look != "=" else others) if kind == "look" else others


CASES = [
    Case({"code": 455}, "MaintenanceError", "MaintenanceError"),
    Case({"code": 401}, "AuthenticationError", "AuthenticationError"),
    Case({"code": 500}, UNKNOWN, BROKEN),
    Case({"code": 200}, UNKNOWN, "MISSING 0", ODD),
    Case({"page": "bad_gateway"}, UNKNOWN, BROKEN),
    Case({"page": "unavailable"}, UNKNOWN, BROKEN),
    Case({"page": "gateway_timeout"}, UNKNOWN, BROKEN),
    Case({"page": "too_large"}, "APIStatusError", "APIStatusError"),
    Case({"page": "cloudflare_1010"}, "PermissionDeniedError", "PermissionDeniedError"),
    Case({"page": "cloudflare_challenge"}, "PermissionDeniedError", "PermissionDeniedError"),
    Case({"page": "cloudflare_520"}, UNKNOWN, BROKEN),
    Case({"page": "cloudflare_522"}, UNKNOWN, BROKEN),
    Case({"page": "cloudflare_524"}, UNKNOWN, BROKEN),
    Case({"page": "login"}, UNKNOWN, ODD),
    Case({"page": "spring"}, "NotFoundError", "NotFoundError"),
    Case({"page": "empty"}, UNKNOWN, ODD),
    Case({"page": "half_json"}, UNKNOWN, ODD),
    Case({"page": "not_an_object"}, UNKNOWN, ODD),
    Case({"page": "deep_json"}, UNKNOWN, ODD),
    Case({"body": "{}"}, UNKNOWN, ODD),
    Case({"http_status": 503}, UNKNOWN, BROKEN),
    Case({"redirect": "self"}, UNKNOWN, ODD),
    Case({"redirect": "/there", "http_status": 307}, UNKNOWN, ODD),
    Case({"headers": {"Set-Cookie": "a=b"}}, GOOD, GOOD, image=GOOD),
    Case({"reset": "before"}, UNKNOWN, LOST),
    Case({"reset": "after"}, UNKNOWN, LOST),
    Case({"cut": 0}, UNKNOWN, LOST),
    Case({"cut": 30}, UNKNOWN, LOST),
    Case({"cut": -1}, GOOD, LOST),  # the task id has arrived
    Case({"stall": TIMEOUT - 1}, GOOD, GOOD, image=GOOD),
    Case({"stall": "forever"}, UNKNOWN, SLOW),
    Case({"stall": "forever", "at": 100}, UNKNOWN, SLOW),
    Case({"drip": TIMEOUT - 1}, GOOD, GOOD, image=GOOD),
    Case({"framing": "too_long"}, GOOD, GOOD, image=GOOD),
    Case({"framing": "too_short"}, UNKNOWN, LOST),
    Case({"framing": "two_lengths"}, UNKNOWN, LOST),
    Case({"framing": "length_and_chunks"}, UNKNOWN, LOST),
    Case({"framing": "bad_chunk"}, UNKNOWN, LOST),
    Case({"framing": "no_last_chunk"}, GOOD, GOOD, image=GOOD),
    Case({"framing": "bad_status_line"}, UNKNOWN, LOST),
    Case({"framing": "bad_header"}, UNKNOWN, LOST),
    Case({"framing": "huge_header"}, UNKNOWN, LOST),
    Case({"framing": "not_gzip"}, GOOD, GOOD),
    Case({"framing": "until_close"}, GOOD, GOOD, image=GOOD),
    Case({"framing": "unsolicited"}, GOOD, GOOD, image=GOOD),
    Case({"open_ended": True}, GOOD, SLOW, GOOD, image=GOOD),
    Case({"refuse": 7200}, LOST, LOST, image=LOST),  # it looks at the task first
    Case({"by": lambda arrival: {"http_status": 503}}, UNKNOWN, BROKEN),
]
RECORDS = {
    "lag": "RUNNING 0",
    "stale_status": "RUNNING 1",
    "vanish": "MISSING 0",
    "null": "MISSING 0",
    "other_task": ODD,
    "no_response": "SUCCEEDED 0",
    "no_urls": "SUCCEEDED 0",
    **dict.fromkeys(("stale_flag", "flag_4", "result_urls", "json_text", "json_list_text", "list"), GOOD),
    **dict.fromkeys(("no_status", "unknown_status", "lower_case", "empty_error", "dict_error"), GOOD),
    **dict.fromkeys(("old_error_code", "text_numbers", "text_times", "odd_progress"), GOOD),
    **dict.fromkeys(("more_fields", "fewer_fields"), GOOD),
}
PICTURES = {
    "expired": GOOD,  # by a signed link
    "trailing": "86 bytes",
    "other_type": GOOD,
    **dict.fromkeys(("missing", "cut", "broken", "html", "empty"), "DownloadError"),
}
SWEEP = [
    *((kind, case.options, case.expected(kind)) for kind in KINDS for case in CASES
      if kind in EFFECTS[row_of(case.options).partition("=")[0]].kinds),
    *(("look", {"record": name}, expected) for name, expected in RECORDS.items()),
    *(("image", {"image": name}, expected) for name, expected in PICTURES.items()),
]  # fmt: skip  # a row is a line
ELSEWHERE = {"image=expired_link": "test_an_expired_link_is_renewed"}


def name_of(case: tuple[str, dict[str, Any], str]) -> str:
    shown = {name: "function" if callable(value) else value for name, value in case[1].items()}
    return "-".join([case[0], *(f"{name}={value}" for name, value in shown.items())])


def test_every_row_is_met_by_the_client() -> None:
    """A new effect or variant fails here until what the user gets is written down."""
    tried = {(kind, row_of(options)) for kind, options, _ in SWEEP}
    wanted = {(kind, row) for row in rows() for kind in EFFECTS[row.partition("=")[0]].kinds}
    assert tried == {(kind, row) for kind, row in wanted if row not in ELSEWHERE}
    assert all(test in globals() for test in ELSEWHERE.values())


async def outcome(kie: Emulator, kind: str) -> str:
    async with client_of(kie.url, timeout=TIMEOUT, upload_url=kie.url) as client:
        try:
            return await CALLS[kind](client, kie)
        except KieError as error:
            return type(error).__name__


@pytest.mark.once
@pytest.mark.parametrize("case", SWEEP, ids=name_of)
async def test_in_the_client(case: tuple[str, dict[str, Any], str]) -> None:
    """What a call gets if the fault fires every time; with it, nothing is paid twice, and time is virtual."""
    kind, options, expected = case
    async with Emulator(duration=0.0, pictures=False) as kie:
        assert await outcome(kie, kind) == GOOD  # the control
        before = kie.paid
        always: dict[str, Any] = {} if "refuse" in options else {"times": "always"}
        kie.fault(kind, **(options | always))  # type: ignore[arg-type]  # from a table
        assert await outcome(kie, kind) == expected
        assert kie.unused() == []
        assert kie.paid - before <= 1


async def test_an_expired_link_is_renewed() -> None:
    """The image is behind a signed link, which is refused once; a second one is asked for."""
    async with Emulator(duration=0.0, pictures=False) as kie:
        kie.fault("image", image="expired", times="always")
        kie.fault("image", image="expired_link")
        async with client_of(kie.url) as client:
            result = await client.generate("A calm lake")
            assert len(await client.fetch(result)) == 1
        assert (kie.requests[DOWNLOAD_URL], kie.requests[IMAGES]) == (2, 4)
        assert kie.unused() == []


@pytest.mark.parametrize("seconds", [3, 300])
async def test_an_image_that_is_not_there_yet(seconds: int) -> None:
    """A fresh image is waited for, but not for ever."""
    async with Emulator(duration=20.0, pictures=False) as kie, client_of(kie.url) as client:
        kie.fault("image", image="missing", lasting=seconds)
        result = await client.generate("A calm lake")
        start = kie.now()
        if seconds == 3:
            assert len(await client.fetch(result)) == 1
            assert 3 <= kie.now() - start < 20
        else:
            with pytest.raises(KieError, match="404"):
                await client.fetch(result)


async def test_a_submit_is_sent_again_after_refused_connections() -> None:
    """Nothing was sent, so nothing can be paid: the client tries again, and the task is paid once."""
    async with Emulator(duration=20.0) as kie, client_of(kie.url) as client:
        kie.fault("submit", refuse=0.001)
        assert (await client.generate("A calm lake")).urls
        assert (len(kie.submits), kie.paid, kie.unused()) == (1, 1, [])


async def test_looks_survive_refused_connections() -> None:
    """A service that is away for a minute in the middle of a task costs time, and no more."""
    async with Emulator(duration=20.0) as kie, client_of(kie.url) as client:
        kie.fault("look", refuse=60.0, after=3)
        start = kie.now()
        assert (await client.generate("A calm lake")).urls
        assert 60 <= kie.now() - start < 120
        assert kie.paid == 1


async def test_the_same_seed_gives_the_same_day() -> None:
    """Faults with a probability hit the same requests in every run of a seed, and others with another one."""

    async def day(seed: int) -> tuple[int, float]:
        async with Emulator(duration=20.0, seed=seed) as kie:
            for code in (455, 550):
                kie.fault("submit", code=code, probability=0.2, times="always")
            kie.fault("look", page="bad_gateway", probability=0.2, times="always")
            start = kie.now()
            every = PollPolicy(first=0.34, maximum=0.34, jitter=False)
            async with client_of(kie.url, poll=every) as client:
                for number in range(10):
                    await client.generate(f"A calm lake {number}")
            return sum(kie.requests.values()), round(kie.now() - start, 6)

    first, again, other = await day(7), await day(7), await day(8)
    assert first == again != other


# Prompts ---------------------------------------------------------------------------------------------

MAGIC = {
    "success": GOOD,
    "partial": "NoImagesError",
    "no_images": "NoImagesError",
    "failed": "TaskFailedError",
    "policy": "ContentPolicyError",
    "input": "InputImageError",
    "create_failed": "TaskFailedError",
    "stuck": "TaskTimeoutError",
    "missing": "TaskNotFoundError",
    "dropped": UNKNOWN,
    "bad_gateway": UNKNOWN,
    "400": "BadRequestError",
    "402": "InsufficientCreditsError",
    "429": "RateLimitError",
    "433": "KeyLimitError",
    "455": "MaintenanceError",
    "500": UNKNOWN,
    "550": "QueueFullError",
    "polcy": "UnprocessableEntityError",
}


@pytest.mark.parametrize("name", MAGIC)
async def test_a_prompt_says_what_happens_to_it(name: str) -> None:
    """Every time, whatever other requests there are; with `magic=False` it is a prompt like any other."""
    prompt = f"A calm lake [[kie:{name}]]"
    async with Emulator(duration=20.0) as kie, client_of(kie.url, wait_timeout=150) as client:
        for _ in range(2):
            try:
                await client.generate(prompt)
                got = GOOD
            except KieError as error:
                got = type(error).__name__
            assert got == MAGIC[name]
        assert (await client.generate("A red kite")).urls
        assert kie.unused() == []
    async with Emulator(duration=20.0, magic=False) as kie, client_of(kie.url) as client:
        assert (await client.generate(prompt)).urls


async def test_a_plan_goes_before_a_prompt() -> None:
    """The outcome of a plan replaces that of the prompt; an answer of the prompt is not lost by a plan."""
    async with Emulator(duration=20.0) as kie, client_of(kie.url) as client:
        kie.plan("[[kie:policy]]", outcome="success")
        assert (await client.generate("[[kie:policy]]")).urls
        kie.plan("[[kie:400]]", answer=402)
        for expected in ("InsufficientCreditsError", "BadRequestError"):
            with pytest.raises(KieError) as caught:
                await client.generate("[[kie:400]]")
            assert type(caught.value).__name__ == expected


def test_every_outcome_is_tried_by_prompt() -> None:
    """A new outcome fails here until its prompt is tried."""
    assert OUTCOMES.keys() <= MAGIC.keys()
    assert MAGIC.keys() - {"polcy"} <= set(NAMES)


# What a fault waits for ------------------------------------------------------------------------------


async def test_a_charged_fault_waits_for_a_submit_that_is_accepted() -> None:
    """A refusal by balance or limit is what the real service would answer, and uses nothing up."""
    async with Emulator(duration=20.0) as kie, client_of(kie.url) as client:
        kie.credits = 5
        kie.fault("submit", cut=0)
        with pytest.raises(KieError, match="402"):
            await client.generate("A calm lake")
        assert len(kie.unused()) == 1
        kie.credits = 6
        with pytest.raises(KieError, match="outcome is unknown"):
            await client.generate("A calm lake")
        assert (kie.unused(), kie.credits) == ([], 0)


async def test_a_record_waits_for_its_state() -> None:
    """`result_urls` is for a record with images: looks at a running task do not use it up."""
    async with Emulator(duration=20.0) as kie, client_of(kie.url) as client:
        kie.fault("look", record="result_urls")
        kie.fault("look", record="lag", times=2)
        result = await client.generate("A calm lake")
        assert len(result.urls) == 1
        assert kie.unused() == ["fault('look', times=2, record='lag') did not fire; matching requests: 1"]


async def test_faults_of_one_task() -> None:
    """By its id or its prompt, for looks, links and images."""
    async with Emulator(duration=0.0, pictures=False) as kie, client_of(kie.url) as client:
        first, second = [await client.generate(prompt) for prompt in ("A calm lake", "A red kite")]
        kie.fault("link", code=422, task=first.task_id)
        kie.fault("image", image="html", prompt="A red kite")
        kie.fault("look", code=401, prompt="A calm lake")
        assert await client.download_url(second.task_id, second[0])
        assert await client.fetch(first)
        assert await client.details(second.task_id)
        for call in (
            client.download_url(first.task_id, first[0]),
            client.fetch(second),
            client.details(first.task_id),
        ):
            with pytest.raises(KieError):
                await call
        assert kie.unused() == []
