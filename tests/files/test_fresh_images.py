"""Images of a task that has just ended: the host may not have them yet."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hosts import KEY, PNG, TASK, Host, RecordedSleep, Request, answer, fails, files_for, no_renewal

from kie4o import (
    APIConnectionError,
    AsyncKieClient,
    DownloadError,
    ImageResult,
    InternalServerError,
    KieError,
    TaskDetails,
    TaskState,
    UnprocessableEntityError,
)
from kie4o.details import EXPIRY
from kie4o.files import transfers

NOT_THERE = ["404 Not Found", "403 Forbidden", "410 Gone"]
EXPIRED = UnprocessableEntityError("Temporarily supports records within 14 days", code=422)
FRESH = [0.0, 29.0, None]  # seconds since the end; None: not known
WRONG_CLOCK = [-3600.0, EXPIRY + 3600.0]


def renewals(host: Host) -> tuple[list[str], Callable[[str], Any]]:
    """The URLs that a new link was asked for, and the function that gives one."""
    asked: list[str] = []

    async def renew(url: str) -> str:
        asked.append(url)
        return f"{host.url}/signed"

    return asked, renew


def refusing(error: KieError) -> Callable[[str], Any]:
    async def renew(url: str) -> str:
        raise error

    return renew


@pytest.mark.parametrize("age", FRESH + WRONG_CLOCK)
@pytest.mark.parametrize("status", NOT_THERE)
async def test_an_image_that_is_not_there_yet_is_waited_for(
    tmp_path: Path, status: str, age: float | None
) -> None:
    """Up to seven tries within 16 to 32 s, by turns with the URL of the result and a signed link."""
    delays, gone = RecordedSleep(), answer(b"", status)
    async with Host(*[gone] * 6, answer(PNG)) as host, files_for(host.url, sleep=delays) as files:
        asked, renew = renewals(host)
        how: dict[str, Any] = {"renew": renew, "age": age}
        [path] = await files.download([f"{host.url}/a"], tmp_path, task_id=TASK, **how)
        assert path.read_bytes() == PNG
        path.unlink()
        assert [request.target for request in host.requests] == ["/a", "/signed"] * 3 + ["/a"]
        assert asked == [f"{host.url}/a"] * 3
        assert delays == [0.5, 1, 2, 4, 8, 16]
        host.replies = [gone]
        assert status[:3] in str(await fails(files, tmp_path, host.url, **how))
    assert len(host.requests) == 14


async def test_the_tries_are_spread(tmp_path: Path) -> None:
    """However chance decides, at least half of each delay is waited: 15.75 s in all."""
    delays = RecordedSleep()
    options: dict[str, Any] = {"sleep": delays, "jitter": lambda delay: 0.0}
    async with Host(answer(b"", "404 No")) as host, files_for(host.url, **options) as files:
        _, renew = renewals(host)
        await fails(files, tmp_path, host.url, renew=renew, age=1.0)
    assert sum(delays) == 15.75


async def test_a_busy_host_has_as_long(tmp_path: Path) -> None:
    """A 503 just after the end is tried as often, with the same link."""
    async with Host(*[answer(b"", "503 Busy")] * 6, answer(PNG)) as host, files_for(host.url) as files:
        await files.download([f"{host.url}/a"], tmp_path, task_id=TASK, renew=no_renewal, age=1.0)
    assert [request.target for request in host.requests] == ["/a"] * 7


@pytest.mark.parametrize("reply", [answer(PNG[:-10]), answer(PNG)[:-10], b"", b"\0\0"])
async def test_a_broken_image_or_connection_is_tried_three_times(tmp_path: Path, reply: bytes) -> None:
    """As at any other time: a host that hangs must not hold the caller for minutes."""
    async with Host(reply) as host, files_for(host.url) as files:
        await fails(files, tmp_path, host.url, age=1.0)
    assert len(host.requests) in (3, 6)  # aiohttp repeats a GET of which the connection was closed


async def test_a_broken_image_after_refusals_is_tried_again(tmp_path: Path) -> None:
    """What was refused because the image was not there yet does not count against the three tries."""
    replies = [*[answer(b"", "404 No")] * 4, answer(PNG[:-10]), answer(PNG[:-10]), answer(PNG)]
    async with Host(*replies) as host, files_for(host.url) as files:
        _, renew = renewals(host)
        [path] = await files.download([f"{host.url}/a"], tmp_path, task_id=TASK, renew=renew, age=1.0)
        assert path.read_bytes() == PNG
        host.replies = [*replies[:4], answer(PNG[:-10])]
        path.unlink()
        await fails(files, tmp_path, host.url, renew=renew, age=1.0)
    assert len(host.requests) == 7 + 7


@pytest.mark.parametrize("age", [30.0, 3600.0, EXPIRY])
@pytest.mark.parametrize("status", NOT_THERE)
async def test_later_the_error_comes_at_once(tmp_path: Path, status: str, age: float) -> None:
    """The control: the link is renewed once, and nothing is waited for."""
    delays = RecordedSleep()
    async with Host(answer(b"", status)) as host, files_for(host.url, sleep=delays) as files:
        asked, renew = renewals(host)
        assert status[:3] in str(await fails(files, tmp_path, host.url, renew=renew, age=age))
    assert (len(host.requests), len(asked), delays) == (2, 1, [])


@pytest.mark.parametrize(
    "refusal",
    [
        UnprocessableEntityError("record status is not success", code=422),
        InternalServerError("Server exception", code=500),
        APIConnectionError("no response"),
    ],
)
async def test_kie_may_not_sign_a_link_yet(tmp_path: Path, refusal: KieError) -> None:
    """Then the URL of the result is tried on."""
    async with Host(*[answer(b"", "404 No")] * 3, answer(PNG)) as host, files_for(host.url) as files:
        how: dict[str, Any] = {"task_id": TASK, "renew": refusing(refusal), "age": 1.0}
        await files.download([f"{host.url}/a"], tmp_path, **how)
    assert [request.target for request in host.requests] == ["/a"] * 4


@pytest.mark.parametrize(
    ("age", "refusal"),
    [(age, EXPIRED) for age in (1.0, 3600.0, EXPIRY + 1, None)]
    + [(EXPIRY + 1, UnprocessableEntityError("record is null", code=422))],
)
async def test_images_that_were_deleted(tmp_path: Path, age: float | None, refusal: KieError) -> None:
    """Kie says so, or does not know an old task any more: there is one try, and a sentence of its own."""
    delays = RecordedSleep()
    async with Host(answer(b"", "403 Forbidden")) as host, files_for(host.url, sleep=delays) as files:
        error = await fails(files, tmp_path, host.url, renew=refusing(refusal), age=age)
    assert str(error) == f"the images of task {TASK} were deleted: Kie keeps them for 14 days"
    assert (len(host.requests), delays) == (1, [])


@pytest.mark.parametrize("refusal", [InternalServerError("busy", code=500), APIConnectionError("no answer")])
async def test_another_failure_says_nothing_about_the_images(tmp_path: Path, refusal: KieError) -> None:
    """The control: an old task, and a Kie that does not answer."""
    async with Host(answer(b"", "403 Forbidden")) as host, files_for(host.url) as files:
        error = await fails(files, tmp_path, host.url, renew=refusing(refusal), age=EXPIRY + 1)
    assert "deleted" not in str(error)


# -- what counts as the image --------------------------------------------------------------------------


def partial(range_: str) -> bytes:
    return answer(PNG, "206 Partial Content", *([f"Content-Range: {range_}"] if range_ else []))


@pytest.mark.parametrize(
    "reply", [answer(PNG, "203 Non-Authoritative"), partial(f"bytes 0-{len(PNG) - 1}/{len(PNG)}")]
)
async def test_other_successes_are_images(tmp_path: Path, reply: bytes) -> None:
    """A proxy that changed headers says 203, and a cache may say 206 of a whole image."""
    async with Host(reply) as host, files_for(host.url) as files:
        [path] = await files.download([host.url], tmp_path, task_id=TASK, renew=no_renewal)
    assert path.read_bytes() == PNG
    assert len(host.requests) == 1


@pytest.mark.parametrize(
    "range_", [f"bytes 0-{len(PNG) - 1}/{len(PNG) + 1}", "bytes 1-99/100", "bytes 0-99/*", "items 0-0/1", ""]
)
async def test_a_part_is_no_image(tmp_path: Path, range_: str) -> None:
    """Even if its bytes look whole: a range that is not the whole one, or of which that is not known."""
    async with Host(partial(range_)) as host, files_for(host.url) as files:
        assert "only a part" in str(await fails(files, tmp_path, host.url))
        assert len(host.requests) == 3
        host.replies = [answer(b"", "204 No Content")]
        assert "HTTP 204" in str(await fails(files, tmp_path, host.url))


# -- the client ----------------------------------------------------------------------------------------


class KieAndHost(Host):
    """Answers as Kie does for a task and for links, and as a file host that has the image after `missing`
    requests."""

    def __init__(self, missing: int, *, completed: datetime | None, link: str = "/signed") -> None:
        super().__init__(self._reply)
        self.missing, self.completed, self.link = missing, completed, link

    async def _reply(self, request: Request, writer: Any) -> None:
        if "record-info" in request.target:
            ended = None if self.completed is None else int(self.completed.timestamp() * 1000)
            response = {"resultUrls": [f"{self.url}/a"]}
            data: Any = {"taskId": TASK, "successFlag": 1, "status": "SUCCESS", "completeTime": ended}
            body = {"code": 200, "msg": "success", "data": data | {"response": response}}
            writer.write(answer(json.dumps(body).encode(), "200 OK", "Content-Type: application/json"))
        elif "download-url" in request.target:
            body = {"code": 200, "msg": "success", "data": self.url + self.link}
            writer.write(answer(json.dumps(body).encode(), "200 OK", "Content-Type: application/json"))
        else:
            self.missing -= 1
            writer.write(answer(PNG) if self.missing < 0 else answer(b"", "404 Not Found"))

    def targets(self) -> list[str]:
        return [request.target.rpartition("/")[2].partition("?")[0] for request in self.requests]


@pytest.mark.parametrize("seconds", [0, 25, -7200])
async def test_the_client_knows_when_the_task_ended(tmp_path: Path, seconds: int) -> None:
    """By `completed_at` and the wall clock; the moment may lie in the future if a clock is wrong."""
    async with (
        KieAndHost(2, completed=datetime.now(UTC) - timedelta(seconds=seconds)) as host,
        AsyncKieClient(KEY, base_url=host.url) as client,
    ):
        assert len(await client.download(TASK, tmp_path)) == 1
    assert host.targets() == ["record-info", "a", "download-url", "signed", "a"]


async def test_a_task_that_ended_earlier_fails_at_once(tmp_path: Path) -> None:
    """The control: a minute later there is one renewal."""
    async with (
        KieAndHost(2, completed=datetime.now(UTC) - timedelta(seconds=60)) as host,
        AsyncKieClient(KEY, base_url=host.url) as client,
    ):
        with pytest.raises(DownloadError, match="HTTP 404"):
            await client.download(TASK, tmp_path)
    assert host.targets() == ["record-info", "a", "download-url", "signed"]


@pytest.mark.parametrize("fetched", [False, True])
@pytest.mark.parametrize("link", ["/s/my cat.png?e=1", "/s/a\\b.png", "/s/it's%20(1).png"])
async def test_a_renewed_link_is_sent_as_it_is_meant(tmp_path: Path, link: str, fetched: bool) -> None:
    """Spaces and backslashes of Kie's links, and of the URL that is renewed, are quoted; the rest is not."""
    async with (
        KieAndHost(1, completed=datetime.now(UTC) - timedelta(seconds=60), link=link) as host,
        AsyncKieClient(KEY, base_url=host.url) as client,
    ):
        url = host.url + link
        details = TaskDetails(TASK, state=TaskState.SUCCEEDED, urls=(url,), completed_at=host.completed)
        result = ImageResult(TASK, urls=(url,), details=details)
        await (client.fetch(result) if fetched else client.download(result, tmp_path))
    quoted = link.replace(" ", "%20").replace("\\", "%5C")
    assert [request.target for request in host.requests][::2] == [quoted, quoted]


def test_the_age_of_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is measured on the wall clock, and not known without `completed_at`."""
    ended = datetime(2026, 5, 1, tzinfo=UTC)
    monkeypatch.setattr(transfers.clock, "unix_time", lambda: ended.timestamp() + 5)
    details = TaskDetails(TASK, state=TaskState.SUCCEEDED, completed_at=ended)
    assert transfers.age_of(details) == 5.0
    assert transfers.age_of(TaskDetails(TASK, state=TaskState.SUCCEEDED)) is None
