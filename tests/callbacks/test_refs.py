"""The ref in a callback URL: both receivers find it wherever it may be, and what misses it is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse, urlsplit

import aiohttp
import httpx2
import pydantic
import pytest
import yarl
from aiohttp import web
from canary import CANARY_KEY
from clients import client_of
from starlette.datastructures import URL as StarletteURL

from kie4o import AsyncKieClient, ConfigurationError, ImageRequest, InvalidRequestError
from kie4o.callbacks.receiving import CallbackReceiver
from kie4o.emulator import Emulator
from kie4o.stores.packing import checksum, packed, unpacked
from kie4o.stores.store import Entry
from kie4o.webhooks import asgi_app, routes

HOST = "https://me.example"
Post = Callable[[str, bytes], Any]


@asynccontextmanager
async def aiohttp_server(routes: list[web.RouteDef]) -> AsyncIterator[Post]:
    """An application with these routes; yields a function that posts to a path and returns the status."""
    app = web.Application()
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    _, port = runner.addresses[0]

    async def post(target: str, body: bytes) -> int:
        headers = {"Content-Type": "application/json"}
        url = f"http://127.0.0.1:{port}{target}"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=body, headers=headers) as answer,
        ):
            return answer.status

    try:
        yield post
    finally:
        await runner.cleanup()


async def post_by_asgi(app: Any, target: str, body: bytes) -> int:
    path, _, query = target.partition("?")
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": unquote(path), "query_string": query.encode()}
    await app(scope | {"headers": [(b"content-type", b"application/json")]}, receive, send)
    return int(sent[0]["status"])


# The client's callback_url, and the path of the routes for aiohttp.
URLS = [
    ("/kie", "/kie"),
    ("/kie?job=7", "/kie"),
    ("/kie?ref=newsletter", "/kie"),
    ("/kie?job=7&ref=", "/kie"),
    ("/kie?ref=0123456789abcdef0123456789abcdef", "/kie"),
    ("/kie?kie4o=1#top", "/kie"),
    ("/kie?ref=a&x={ref}", "/kie"),
    ("/kie?x=1&x={ref}&ref=a", "/kie"),
    ("/kie?token=job-7.{ref}", "/kie"),
    ("/kie?ref={ref}", "/kie"),
    ("/kie/{ref}", "/kie/{ref}"),
    ("/kie/{ref}?ref=newsletter", "/kie/{ref}"),
    ("/kie/{ref}?ref=newsletter", "/kie/{token}"),
    ("/kie/job-7.{ref}/done?x=", "/kie/{tail:.*}"),
    ("/newsletter?a=1", "/{ref}"),  # a variable of the router that happens to have this name
]
# A request's own URL: at the path variable `ref`, at `kie4o_ref` or `ref`, whatever the client's URL is.
OWN_URLS = [("/kie?ref=newsletter", "/kie"), ("/kie?ref={ref}", "/kie"), ("/kie/{ref}?ref=a", "/kie/{ref}")]
OTHER_URLS = [None, HOST + "/hook/{ref}", HOST + "/hook?job={ref}", HOST + "/hook?ref=a"]


async def statuses(client: AsyncKieClient, kie: Emulator, path: str, **fields: Any) -> dict[str, int]:
    """What both receivers answer to the callback of a new task, and to one with another ref. It is unsigned,
    so that nothing but the ref tells which request it belongs to."""
    kie.plan("x", callback="never", duration=600.0)
    task = await client.submit("x", **fields)
    parts = urlsplit(kie.tasks[task.id].request["callBackUrl"])
    assert parts.fragment == ""
    [entry] = [entry async for entry in client.unfinished()]
    target, other = f"{parts.path}?{parts.query}", "A" * len(entry.ref)
    body = json.dumps({"code": 200, "msg": "", "data": {"taskId": task.id}}).encode()
    app = asgi_app(client, path if "ref" in path else None, allow_unsigned=True)
    async with aiohttp_server(routes(client, path, allow_unsigned=True)) as post:
        return {
            "aiohttp": await post(target, body),
            "ASGI": await post_by_asgi(app, target, body),
            "another ref, aiohttp": await post(target.replace(entry.ref, other), body),
            "another ref, ASGI": await post_by_asgi(app, target.replace(entry.ref, other), body),
        }


RIGHT = {"aiohttp": 200, "ASGI": 200, "another ref, aiohttp": 404, "another ref, ASGI": 404}


@pytest.mark.parametrize(("url", "path"), URLS)
async def test_both_receivers_find_the_ref_of_the_clients_url(url: str, path: str) -> None:
    """Wherever it has `{ref}`, and beside parameters of the user's own, `ref` among them."""
    async with Emulator() as kie, client_of(kie.url, callback_url=HOST + url) as client:
        assert await statuses(client, kie, path) == RIGHT


@pytest.mark.parametrize("client_url", OTHER_URLS)
@pytest.mark.parametrize(("url", "path"), OWN_URLS)
async def test_both_receivers_find_the_ref_of_a_requests_url(
    url: str, path: str, client_url: str | None
) -> None:
    """Also if the client's own URL has its ref elsewhere."""
    async with Emulator() as kie, client_of(kie.url, callback_url=client_url) as client:
        assert await statuses(client, kie, path, callback_url=HOST + url) == RIGHT


@pytest.mark.parametrize("url", ["/kie?ref=newsletter", "/kie?job=7&ref=", "/kie?ref=a&x={ref}"])
async def test_a_receiver_that_takes_the_first_ref_is_seen(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: it takes the user's own parameter for the ref."""

    def first_ref(_: object, path: str, query: str, *, variable: str | None = None) -> str | None:
        values = parse_qs(query, keep_blank_values=True)
        return variable or values.get("ref", [None])[0]

    monkeypatch.setattr(CallbackReceiver, "ref_of", first_ref)
    async with Emulator() as kie, client_of(kie.url, callback_url=HOST + url) as client:
        assert await statuses(client, kie, "/kie") != RIGHT


REFUSED = {
    "another form": [
        *("/{REF}", "/{Ref}", "/{ref }", "/{ ref}", "/{{ref}}", "/${ref}", "/{ref}}", "/{ref", "/ref}"),
        *("/%7Bref%7D", "/%7bREF%7d", "/%257Bref%257D", "/<ref>", "/%3Cref%3E", "/:ref", "/:ref/x"),
        *("?x=:ref", "?x=$ref", "?x=[ref]", "?x=%ref%", "?x=%(ref)s", "?x={kie4o_ref}&y", "/{ref}/{REF}"),
        *("/{}", "/{task_id}", "/{taskId}"),
    ],
    "in the path or as the value": ["?{ref}", "?{ref}=1", "/kie#{ref}", "/{ref}#{ref}"],
    "no parameter kie4o_ref": ["?kie4o_ref=1", "/{ref}?kie4o_ref=", "?kie4o_ref={ref}", "?kie4o%5Fref=1"],
}
ACCEPTED = [
    *("", "/", "/{ref}", "/{ref}/{ref}", "/a-{ref}.json", "?x={ref}", "?ref=1", "?a[ref]=5", "/ref/:id"),
    *("?m=%7B%7D", "?m=%7B%22ref%22%3A1%7D", "?t=Foo(ref)", "/:reference", "?x=$refs", "/%7Bprefer%7D"),
    *("#top", "/%23{ref}", "/{ref}:", "/:{ref}"),
]


@pytest.mark.parametrize(
    ("expected", "url"), [(expected, url) for expected, urls in REFUSED.items() for url in urls]
)
def test_another_placeholder_is_refused(expected: str, url: str) -> None:
    """In the same words by the client and by a request, which say what to write instead."""
    expected = {"another form": r"\{ref\} in exactly this form"}.get(expected, expected)
    with pytest.raises(ConfigurationError, match=f"callback_url=.*expected .*{expected}") as by_client:
        AsyncKieClient(CANARY_KEY, callback_url=HOST + url)
    with pytest.raises(InvalidRequestError) as by_request:
        ImageRequest("x", callback_url=HOST + url)
    assert str(by_client.value) == str(by_request.value)


@pytest.mark.parametrize("url", [*ACCEPTED, *(url for url, _ in URLS)])
def test_what_is_no_mistake_is_accepted(url: str) -> None:
    """A URL whose own words only resemble the placeholder is the user's business."""
    AsyncKieClient(CANARY_KEY, callback_url=HOST + url)
    assert ImageRequest("x", callback_url=HOST + url).callback_url == HOST + url


@pytest.mark.parametrize(
    "kind", [yarl.URL, pydantic.HttpUrl, pydantic.AnyUrl, httpx2.URL, StarletteURL, urlsplit, urlparse]
)
def test_the_placeholder_in_a_url_object_counts(kind: Callable[[str], Any]) -> None:
    """Most of them quote its braces, so their owner cannot write it in another way."""
    url = HOST + "/kie/{ref}?a=%7B"
    assert ImageRequest("x", callback_url=kind(url)).callback_url == url
    assert (
        AsyncKieClient(CANARY_KEY, callback_url=kind(url))
        .receiver(allow_unsigned=True)
        .ref_of("/kie/" + "r" * 24)
        == "r" * 24
    )
    with pytest.raises(ConfigurationError, match="exactly this form"):
        AsyncKieClient(CANARY_KEY, callback_url=kind(HOST + "/{REF}"))


@pytest.mark.parametrize("quoted", ["%7Bref%7D", "%257Bref%257D"])
def test_a_quoted_placeholder_is_named_as_such(quoted: str) -> None:
    """It would read as if the right one were refused."""
    with pytest.raises(ConfigurationError, match=r"it holds \{ref\} percent-encoded$"):
        AsyncKieClient(CANARY_KEY, callback_url=f"{HOST}/{quoted}")


def test_a_stored_request_is_read_whatever_its_callback_url() -> None:
    """It was submitted under the rules of its time, and its task is paid."""
    old = HOST + "/kie?kie4o_ref=1"
    request = ImageRequest("x", callback_url=HOST + "/kie?aaaaa_ref=1")
    stored = packed(Entry("k", request=request, ref="r")).replace(b"aaaaa", b"kie4o")
    assert unpacked(stored, checksum(stored)).request.callback_url == old
