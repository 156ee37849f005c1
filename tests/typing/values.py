"""Every public verb with the values that a web back end has in hand, without a cast: never run, only
type-checked."""

import enum
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import anyio
import pydantic
import yarl
from aiohttp import web
from fastapi import UploadFile
from starlette.datastructures import URL as StarletteURL

from kie4o import AsyncKieClient, Completion, ImageRequest, ImageResult, KieError, UploadedFile


class Size(enum.StrEnum):
    WIDE = "3:2"


class Style(str, enum.Enum):  # noqa: UP042  # as it was written before Python 3.11
    LAKE = "A calm lake"
    MODEL = "GPT_IMAGE_1"


class Name(enum.Enum):
    ORDER = "order-1"


class Count(enum.IntEnum):
    TWO = 2


class Settings(pydantic.BaseModel):
    key: pydantic.SecretStr
    hook_key: pydantic.SecretStr | None
    base: pydantic.HttpUrl
    hook: pydantic.AnyHttpUrl | None
    proxy: pydantic.AnyUrl | None
    folder: Path
    store: pydantic.FilePath


def client(settings: Settings) -> AsyncKieClient:
    AsyncKieClient(
        settings.key, webhook_key=[settings.key, "old"], proxy=settings.key, store=Path("~/run.db")
    )
    return AsyncKieClient(
        api_key=settings.key,
        base_url=settings.base,
        upload_url=yarl.URL("https://upload.example"),
        callback_url=settings.hook,
        webhook_key=settings.hook_key,
        proxy=settings.proxy,
        store=settings.store,
    )


async def generate(client: AsyncKieClient, settings: Settings, photo: UploadedFile) -> ImageResult:
    request = ImageRequest(
        Style.LAKE,
        size=Size.WIDE,
        n_variants=Count.TWO,
        fallback_model=Style.MODEL,
        enable_fallback=True,
        files_url=[photo, settings.base, yarl.URL("https://a.example/a.png"), "https://a.example/b.png"],
        mask_url=photo,
        callback_url=StarletteURL("https://a.example/hook"),
        upload_cn=None,
        extra={"quality": "high"},
    )
    await client.submit(Style.LAKE, key=Style.LAKE, size=Size.WIDE, extra={"seed": 5, "more": [1, None]})
    await client.submit(
        request, n_variants=Count.TWO, mask_url=settings.hook, callback_url=urlsplit("https://a")
    )
    await client.generate("A", files_url=[photo], upload_cn=False, fallback_model=Style.MODEL)
    async for done in client.generate_many([request, "A", Style.LAKE, Name.ORDER], batch=Style.LAKE):
        await client.wait(done)
    await client.settle(Name.ORDER, charged=False)
    return await client.generate(request, key="order", files_url=(photo,), mask_url=photo)


async def tasks(client: AsyncKieClient, result: ImageResult, done: Completion, error: KieError) -> None:
    task = client.task(result)
    for each in (task, result, result.details, done, error, task.id):
        client.task(each)
        await client.details(each)
        await client.wait(each, timeout=60)
        await client.download_url(each, yarl.URL(result.urls[0]))


async def files(client: AsyncKieClient, form: UploadFile, field: web.FileField, settings: Settings) -> None:
    await client.upload(form, name=form.filename)
    await client.upload(field)
    await client.upload(settings.store)
    async with await anyio.open_file(settings.folder / "a.png", "rb") as file:
        await client.upload(file)
    async with aiohttp.request("GET", settings.base.unicode_string()) as answer:
        await client.upload(answer.content, name="a.png")
    await client.upload_from_url(settings.base)
    await client.backup(settings.store)


async def refused(client: AsyncKieClient, form: UploadFile, photo: UploadedFile) -> None:
    """What type checkers refuse: an ignore that is not needed is an error."""
    ImageRequest("A", files_url=[Path("a.png")])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    ImageRequest("A", files_url=photo)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ImageRequest("A", files_url=[b"a"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    ImageRequest("A", n_variants="2")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ImageRequest("A", upload_cn="no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ImageRequest("A", extra={1: 2})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    await client.generate({"prompt": "A"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.generate("A", mask_url=form)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await client.wait(photo)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with Path("a.txt").open() as text:
        await client.upload(text)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async with await anyio.open_file("a.txt") as lines:
        await client.upload(lines)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncKieClient(yarl.URL("https://a.example"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncKieClient(base_url=Path("a"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


CLIENT: Callable[[Settings], AsyncKieClient] = client
