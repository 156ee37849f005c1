"""The whole public API as a program uses it: never run, only type-checked."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from email.message import Message
from http import HTTPStatus
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal, Unpack, assert_type
from wsgiref.headers import Headers
from wsgiref.types import WSGIEnvironment

from aiohttp import web

from kie4o import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncKieClient,
    AuthenticationError,
    BadRequestError,
    Callback,
    CallbackError,
    CallbackReceiver,
    ClientState,
    Completion,
    ConfigurationError,
    ContentPolicyError,
    CreditLimitError,
    DownloadError,
    Entry,
    EntryState,
    Exists,
    FallbackModel,
    FeatureDisabledError,
    Image,
    ImageRequest,
    ImageResult,
    ImageTask,
    ImageUnavailableError,
    InputImageError,
    InsufficientCreditsError,
    InternalServerError,
    InvalidRequestError,
    InvalidSignatureError,
    KeyConflictError,
    KeyLimitError,
    KieError,
    MaintenanceError,
    MalformedCallbackError,
    NoImagesError,
    NotFoundError,
    OnUnknown,
    OnUpdate,
    PermissionDeniedError,
    PollPolicy,
    Prices,
    QueueFullError,
    RateLimit,
    RateLimitError,
    RequestFields,
    Size,
    Spent,
    Store,
    StoreError,
    StoreLockedError,
    SubmissionUnknownError,
    TaskDetails,
    TaskError,
    TaskFailedError,
    TaskNotFoundError,
    TaskPoller,
    TaskState,
    TaskTimeoutError,
    UnexpectedResponseError,
    UnprocessableEntityError,
    UploadedFile,
    Variants,
    __version__,
    parse_callback,
    sign_callback,
)

version: str = __version__


def requests() -> list[ImageRequest]:
    size: Literal["1:1", "3:2", "2:3"] = "3:2"
    request = ImageRequest(
        "A calm lake",
        size=size,
        files_url=("https://example.com/a.png",),
        mask_url="https://example.com/m.png",
        n_variants=4,
        callback_url="https://example.com/hook",
        is_enhance=True,
        upload_cn=False,
        enable_fallback=True,
        fallback_model="GPT_IMAGE_1",
        file_url=None,
    )
    assert_type(request.prompt, str | None)
    assert_type(request.files_url, tuple[str, ...])
    return [request, ImageRequest("A"), ImageRequest(files_url=["https://example.com/a.png"])]


async def one_line() -> None:
    async with AsyncKieClient() as client:
        result = await client.generate("A beautiful sunset over the mountains", size="3:2")
        assert_type(result, ImageResult)
        assert_type(await client.download(result, "images"), list[Path])


def client() -> AsyncKieClient:
    return AsyncKieClient(
        "key",
        base_url="https://api.kie.ai",
        upload_url=None,
        timeout=30,
        wait_timeout=None,
        max_in_flight=100,
        rate_limit=RateLimit(20, per=10),
        poll=PollPolicy(first=2.0, factor=1.5, maximum=5, jitter=False),
        callback_url="https://example.com/hook",
        webhook_key=["new", "old"],
        store="run.db",
        store_wait=0,
        proxy=None,
        trust_env=False,
        speed=1.0,
    )


async def tasks(client: AsyncKieClient, request: ImageRequest) -> None:
    task = await client.submit(request, key="order-1234")
    assert_type(task, ImageTask)
    assert_type(task.id, str)
    assert_type(task.request, ImageRequest | None)
    assert_type(await task, ImageResult)
    assert_type(await task.wait(timeout=60), ImageResult)
    assert_type(await task.details(), TaskDetails)
    async for look in task.updates(timeout=None):
        assert_type(look, TaskDetails)

    again = client.task("0123456789abcdef0123456789abcdef")
    assert_type(again, ImageTask)
    assert_type(await client.submit("A", n_variants=2), ImageTask)
    assert_type(await client.generate(prompt="A", files_url=["https://example.com/a.png"]), ImageResult)
    assert_type(await client.wait(again.id, timeout=None, on_update=print), ImageResult)
    assert_type(await client.details(again.id), TaskDetails)

    async def show(details: TaskDetails) -> None:
        print(details.progress)

    assert_type(await client.generate(request, key="k", timeout=60, on_update=show), ImageResult)


async def wrapper(client: AsyncKieClient, town: str, **fields: Unpack[RequestFields]) -> ImageResult:
    return await client.generate(f"A postcard of {town}", **fields)


class Postcards:
    """A wrapper that names the types of what it passes on."""

    def __init__(self, size: Size = "3:2", variants: Variants = 1, model: FallbackModel = "FLUX_MAX") -> None:
        self.request = ImageRequest("A", size=size, n_variants=variants, fallback_model=model)

    async def draw(
        self, client: AsyncKieClient, on_update: OnUpdate | None = None, on_unknown: OnUnknown = "hold"
    ) -> ImageResult:
        return await client.generate(self.request, on_update=on_update, on_unknown=on_unknown)


async def refused(client: AsyncKieClient) -> None:
    """What type checkers refuse: an ignore that is not needed is an error."""
    await client.submit("A", size="16:9")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.submit("A", siez="3:2")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await client.submit("A", n_variants=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def files(client: AsyncKieClient, result: ImageResult, path: os.PathLike[str]) -> None:
    with Path("a.png").open("rb") as file:
        for source in ("a.png", path, b"bytes", bytearray(b"x"), memoryview(b"x"), file):
            uploaded = await client.upload(source, name="a.png", path="kie4o")
            assert_type(uploaded, UploadedFile)
    assert_type(await client.upload_from_url("https://example.com/a.png"), UploadedFile)
    assert_type(await client.download("task id", path, name="lake", verify=True), list[Path])
    assert_type(await client.download(result, "images", exists="keep"), list[Path])
    exists: Exists = "rename"
    await client.download(result, "images", exists=exists)
    await client.download(result, "images", exists="skip")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    for image in await client.fetch(result, verify=True):
        assert_type(image, Image)
        assert_type((image.data, image.mime_type, image.url), tuple[bytes, str, str])
        assert_type((image.index, image.task_id), tuple[int, str])
        assert_type(image.save(path), Path)
    assert_type(await client.fetch("task id"), list[Image])
    task = await client.submit("A")
    assert_type((await client.fetch(task), await client.download(task, path)), tuple[list[Image], list[Path]])
    assert_type(await client.download_url(result.task_id, result.urls[0]), str)
    assert_type(await client.credits(), Decimal)
    await client.aclose()


def values(result: ImageResult, uploaded: UploadedFile, limit: RateLimit) -> None:
    assert_type(list(result), list[str])
    assert_type(result[0], str)
    assert_type(result[:2], tuple[str, ...])
    assert_type(len(result), int)
    assert_type(result.partial, bool)
    assert_type(result.source, Literal["poll", "callback", "store"])
    details = result.details
    assert_type(details.state, TaskState)
    assert_type(details.state.ended, bool)
    assert_type(details.status, str | None)
    assert_type(details.progress, float | None)
    assert_type(details.error_code, int | None)
    assert_type(details.created_at, datetime | None)
    assert_type(details.params, Mapping[str, Any])
    assert_type(details.raw, Mapping[str, Any])
    if details.state is TaskState.MISSING:
        print(details.error_message)
    assert_type(uploaded.url, str)
    assert_type(uploaded.size, int)
    assert_type(uploaded.uploaded_at, datetime | None)
    assert_type(limit.per, float)
    done = Completion("k", index=0, request=ImageRequest("A"), result=result)
    assert_type(done.ok, bool)
    assert_type(done.unwrap(), ImageResult)
    assert_type(done.error, KieError | None)


async def serve(client: AsyncKieClient, body: bytes, headers: Mapping[str, str]) -> HTTPStatus:
    receiver = client.receiver(allow_unsigned=True, tolerance=60, pending=10)
    assert_type(receiver, CallbackReceiver)
    await receiver.receive(headers, body, "ref")
    return await receiver.receive(headers.items(), body, "ref")


def receive(client: AsyncKieClient, body: bytes, headers: Mapping[str, str]) -> Callback:
    callback = parse_callback(body, headers, key=("new", b"old"), ref="r", tolerance=300, now=0.0)
    assert_type(callback.verified, bool)
    assert_type(callback.code, int | None)
    assert_type(callback.ref, str | None)
    assert_type(callback.details, TaskDetails)
    assert_type(sign_callback(callback.task_id, key="new", timestamp=0), dict[str, str])
    parse_callback({"data": {"taskId": "t"}}, [("X-Webhook-Timestamp", "0")])
    return client.parse_callback(body, headers, ref="r")


class Handler(BaseHTTPRequestHandler):
    client: AsyncKieClient

    def do_POST(self) -> None:
        self.client.parse_callback(self.rfile.read(), self.headers)


def receive_anywhere(
    client: AsyncKieClient,
    body: bytes,
    environ: WSGIEnvironment,
    mail: Message,
    wsgi: Headers,
    request: web.Request,
    answer: HTTPMessage,
    lists: dict[str, list[str]],
    scope: list[tuple[bytes, bytes]],
) -> None:
    parse_callback(body, environ)
    parse_callback(body, mail)
    parse_callback(body, wsgi)
    parse_callback(body, answer)
    client.parse_callback(body, request.headers)
    client.parse_callback(body, request.raw_headers)
    client.parse_callback(body, lists)
    client.parse_callback(body, scope)
    client.parse_callback(body, os.environ)


async def serve_anywhere(receiver: CallbackReceiver, environ: WSGIEnvironment, mail: Message) -> None:
    await receiver.receive(environ, bytearray())
    await receiver.receive(mail, b"", receiver.ref_of("/kie", "kie4o_ref=x", variable=None))


async def poll(task_id: str) -> AsyncIterator[TaskDetails]:
    async def look(task_id: str) -> TaskDetails:
        return TaskDetails(task_id, state=TaskState.RUNNING)

    poller = TaskPoller(look, policy=PollPolicy(), timeout=60, chance=lambda: 0.5)
    assert_type(await poller.wait(task_id, timeout=None), ImageResult)
    assert_type(await poller.look(task_id), TaskDetails)
    assert_type(poller.notify(task_id), bool)
    poller.notify_late(task_id)
    poller.notify_stray(task_id)
    async for details in poller.watch(task_id):
        yield details
    await poller.aclose()


async def errors(client: AsyncKieClient) -> object:
    try:
        return await client.generate("A")
    except (ConfigurationError, InvalidRequestError) as error:
        return list[ValueError]([error])
    except (APITimeoutError, TaskTimeoutError) as error:
        return list[TimeoutError]([error])
    except APIConnectionError as error:
        return assert_type(error.key, str | None)
    except UnexpectedResponseError as error:
        return assert_type((error.path, error.excerpt), tuple[str | None, str])
    except (BadRequestError, UnprocessableEntityError, NotFoundError, ImageUnavailableError) as error:
        return assert_type(error.code, int | None)
    except (AuthenticationError, PermissionDeniedError, KeyLimitError, InsufficientCreditsError) as error:
        return assert_type(error.message, str)
    except (RateLimitError, MaintenanceError, QueueFullError, InternalServerError) as error:
        return assert_type(error.retry_after, float | None)
    except FeatureDisabledError as error:
        return assert_type(error.retryable, bool)
    except APIStatusError as error:
        return assert_type(error.http_status, int | None)
    except SubmissionUnknownError as error:
        return assert_type(error.ref, str | None)
    except (ContentPolicyError, InputImageError) as error:
        return assert_type(error.error_code, int | None)
    except TaskFailedError as error:
        return assert_type(error.details, TaskDetails | None)
    except NoImagesError as error:
        return assert_type(error.details, TaskDetails | None)
    except TaskNotFoundError as error:
        return assert_type(error.task_id, str)
    except TaskError as error:
        return client.task(error.task_id)
    except (MalformedCallbackError, InvalidSignatureError, CallbackError) as error:
        return str(error)
    except (StoreLockedError, KeyConflictError, StoreError) as error:
        return str(error)
    except DownloadError as error:
        return assert_type(error.task_id, str | None)
    except KieError as error:
        return assert_type(error.task_id, str | None)


async def updated(details: TaskDetails) -> None:
    assert_type(details.task_id, str)


async def many(client: AsyncKieClient, prompts: list[str], own: Store) -> None:
    async for done in client.generate_many(prompts, max_in_flight=5, batch="postcards"):
        assert_type(done, Completion)
    async for done in client.generate_many(
        {"a": ImageRequest("A")}, on_unknown="resubmit", retry_failed=True
    ):
        assert_type(done.request, ImageRequest | None)
    async for entry in client.unfinished():
        assert_type(entry, Entry)
        assert_type(entry.state, EntryState)
        assert_type(await client.settle(entry, charged=False), Entry)
    async for done in client.resume():
        assert_type(done.ok, bool)
    async for done in client.generate_many(prompts, on_update=print):
        assert_type(done, Completion)
    async for done in client.resume(on_update=updated):
        assert_type(done, Completion)
    assert_type(await client.settle("a", task_id="..."), Entry)
    pairs = ((f"id-{number}", prompt) for number, prompt in enumerate(prompts))
    async for done in client.generate_many(pairs, stop=asyncio.Event()):
        assert_type(done, Completion)
    assert_type(await client.find("k"), Entry | None)
    spent = await client.spent()
    assert_type(spent, Spent)
    assert_type((spent.credits, spent.failed.credits), tuple[Decimal, Decimal])
    assert_type((spent.tasks, spent.unknown.tasks, spent.unpriced), tuple[int, int, int])
    state = await client.state()
    assert_type(state, ClientState)
    assert_type((state.in_flight, state.window_used, state.store_failure), tuple[int, int | None, str | None])
    assert_type([(each.call, each.cause, each.ago) for each in state.failures], list[tuple[str, str, float]])
    per_image: Prices = 6.5
    by_variants: Prices = {1: 6, 2: 11.5, 4: Decimal(20)}
    for prices in (per_image, by_variants, None):
        AsyncKieClient("key", prices=prices)
        assert_type(ImageRequest("A").price(prices), Decimal)
    try:
        async for done in client.generate_many(prompts, max_credits=600):
            assert_type(done, Completion)
    except CreditLimitError as error:
        assert_type((error.spent, error.limit), tuple[Decimal | None, Decimal | None])
    await client.backup("copy.db")
    await client.backup(Path("copy.db"))
    assert_type(await client.prune(older_than=86_400), int)
    assert_type(await client.prune(older_than=timedelta(days=30)), int)
    for store in (None, "run.db", "sqlite:///run.db", "postgresql://host/database", Path("run.db"), own):
        AsyncKieClient("key", store=store)
