"""Which machines an emulator serves, and the address that it tells them."""

import aiohttp
import pytest
from aiohttp import web
from clients import QUICK

from kie4o import AsyncKieClient
from kie4o.emulator import Emulator
from kie4o.emulator.addresses import is_loopback
from kie4o.emulator.routes import GENERATE, RECORD_INFO


@pytest.mark.parametrize(("host", "url"), [("0.0.0.0", "http://127.0.0.1:"), ("::", "http://[::1]:")])
async def test_listening_on_every_interface_gives_a_url_that_clients_accept(host: str, url: str) -> None:
    async with Emulator(host=host, duration=0.1) as kie:
        assert kie.url.startswith(url)
        async with AsyncKieClient("any", base_url=kie.url, poll=QUICK) as client:
            result = await client.generate("x")
        assert all(each.startswith(kie.url) for each in result.urls)


@pytest.mark.parametrize("allowed", [False, True])
async def test_another_machine_is_refused_unless_it_is_allowed(allowed: bool, monkeypatch) -> None:
    """Its address is simulated: connections of a test have loopback addresses at both ends."""
    monkeypatch.setattr(web.BaseRequest, "remote", "192.0.2.7")
    emulator = Emulator(host="0.0.0.0", duration=0, allow_remote=allowed)
    async with emulator as kie, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.2:{kie.port}"
        body, headers = {"prompt": "x", "size": "1:1"}, {"Authorization": "Bearer any"}
        async with session.post(url + GENERATE, json=body, headers=headers) as response:
            assert response.status == (200 if allowed else 403)
            assert allowed or "--allow-remote" in await response.text()
        assert len(kie.submits) == allowed
        if allowed:
            query = {"taskId": next(iter(kie.tasks))}
            async with session.get(url + RECORD_INFO, params=query, headers=headers) as response:
                urls = (await response.json())["data"]["response"]["resultUrls"]
            assert [each.startswith(url) for each in urls] == [True]  # the address that it asked


@pytest.mark.parametrize("host", ["192.0.2.7", "me.example", "2001:db8::1"])
def test_an_address_of_the_network_needs_permission(host: str) -> None:
    with pytest.raises(ValueError, match="allow_remote=True"):
        Emulator(host=host)
    assert Emulator(host=host, allow_remote=True).host == host


@pytest.mark.parametrize(
    ("host", "local"),
    [
        (None, True),
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::1%lo", True),
        ("::ffff:192.0.2.7", False),
        ("192.0.2.7", False),
        ("fe80::1%eth0", False),
        ("me.example", False),
        ("127.0.0.1.me.example", False),
    ],
)
def test_the_addresses_of_this_machine(host: str | None, local: bool) -> None:
    assert is_loopback(host) is local
