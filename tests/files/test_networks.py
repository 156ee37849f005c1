"""Uploads and downloads through proxies, over TLS, and with large headers: what errors say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from faults import FaultServer, http, raw, unused_port
from hosts import KEY, PNG, TASK, Host, RecordedSleep, answer, fails, no_renewal
from proxies import REFUSALS, Proxy

from kie4o import APIConnectionError, settings
from kie4o.files.transfers import Files
from kie4o.transport.retrying import TRIES
from kie4o.transport.transport import Transport

SENTENCES = {
    407: "the proxy answered HTTP 407: it asks for credentials",
    403: "the proxy answered HTTP 403: it does not allow this host",
    502: "the proxy answered HTTP 502: it cannot reach the host",
    503: "the proxy answered HTTP 503: it is overloaded",
    405: "the proxy answered HTTP 405: it does not connect to this host",
}


@asynccontextmanager
async def files_over(url: str, proxy: str | None = None) -> AsyncIterator[Files]:
    """The files of a client with this base URL and proxy."""
    checked = settings.resolve(api_key=KEY, base_url=url, upload_url=url, webhook_key=None, environment={})
    transport = Transport(checked, timeout=5.0, proxy=proxy)
    how: dict[str, Any] = {"timeout": 5.0, "sleep": RecordedSleep(), "jitter": float}
    files = Files(transport, checked, proxy=proxy, **how)
    try:
        yield files
    finally:
        await files.aclose()
        await transport.aclose()


@pytest.mark.parametrize("status", REFUSALS)
async def test_a_proxy_that_refuses(tmp_path: Path, status: int) -> None:
    """Both say what it answered; only what may pass is tried again."""
    tries = TRIES if status >= 500 else 1
    async with Proxy(REFUSALS[status]) as proxy, files_over("https://127.0.0.1:9", proxy.url) as files:
        error = await fails(files, tmp_path, "https://127.0.0.1:9/a.png")
        assert SENTENCES[status] in str(error)
        assert len(proxy.heads) == tries
        with pytest.raises(APIConnectionError, match=SENTENCES[status]) as caught:
            await files.upload(b"x")
        assert len(proxy.heads) == 2 * tries
    assert "hunter2" not in f"{error!r} {caught.value!r}"


async def test_a_proxy_that_cannot_be_reached(tmp_path: Path) -> None:
    """Both name it, without its password."""
    port = unused_port()
    async with files_over("https://127.0.0.1:9", f"http://me:hunter2@127.0.0.1:{port}") as files:
        error = await fails(files, tmp_path, "https://127.0.0.1:9/a.png")
        with pytest.raises(APIConnectionError, match=f"connect to the proxy 127.0.0.1:{port} "):
            await files.upload(b"x")
    assert f"cannot connect to the proxy 127.0.0.1:{port} (" in str(error)
    assert "hunter2" not in str(error)


@pytest.mark.parametrize("through_a_proxy", [False, True])
async def test_a_certificate_that_is_not_accepted(tmp_path: Path, through_a_proxy: bool) -> None:
    """It is asked for once, and nothing is sent."""
    async with FaultServer(raw(answer(PNG)), tls=True) as server, Proxy() as proxy:
        async with files_over(server.url, proxy.url if through_a_proxy else None) as files:
            error = await fails(files, tmp_path, f"{server.url}/a.png")
            assert "the TLS certificate of 127.0.0.1 is from an authority that is not trusted" in str(error)
            with pytest.raises(APIConnectionError, match="is from an authority"):
                await files.upload(b"x")
        assert server.heads == []
        assert len(proxy.heads) == 2 * through_a_proxy


LARGE = {
    "big": ["Content-Security-Policy: " + "x" * 60000],
    "many": [f"X-Field-{number}: v" for number in range(450)],
}


@pytest.mark.parametrize("fields", LARGE)
async def test_a_large_header_is_read(tmp_path: Path, fields: str) -> None:
    """By the sessions of uploads and of downloads."""
    async with Host(answer(PNG, "200 OK", *LARGE[fields])) as host, files_over(host.url) as files:
        [path] = await files.download([f"{host.url}/a"], tmp_path, task_id=TASK, renew=no_renewal)
        assert path.read_bytes() == PNG
    stored = b'{"code":200,"data":{"downloadUrl":"https://files.example/a.png"}}'
    async with FaultServer(raw(http(stored, "200 OK", *LARGE[fields]))) as server:
        async with files_over(server.url) as files:
            assert (await files.upload(b"x")).url == "https://files.example/a.png"


async def test_a_header_beyond_the_limits_is_named(tmp_path: Path) -> None:
    too_many = [f"X-Field-{number}: v" for number in range(600)]
    async with Host(answer(PNG, "200 OK", *too_many)) as host, files_over(host.url) as files:
        error = await fails(files, tmp_path, f"{host.url}/a.png")
    assert "the header of the answer is not valid HTTP, or has more than 64 KiB in a field" in str(error)
