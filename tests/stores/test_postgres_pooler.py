"""The store behind a pooler of transactions, where each statement may meet another session."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import postgres
import pytest
from canary import CANARY_KEY
from entries import entry_of, submitted

from kie4o.models import RateLimit
from kie4o.settings import Secret
from kie4o.stores.postgres import PostgresStore
from kie4o.stores.postgres.address import address_of
from kie4o.stores.store import EntryState

pytestmark = pytest.mark.posix("pgbouncer")
ROUNDS = 30


@pytest.fixture
def pooler(tmp_path: Path) -> Iterator[str]:
    """The URL of a store behind pgbouncer, which is asked for few sessions."""
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin:/usr/local/sbin")
    if program is None:
        pytest.skip("no pgbouncer here: apt-get install pgbouncer")
    url = postgres.shared_url()
    server = urlsplit(address_of(url).conninfo)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    account = postgres.other_account()
    folder = tmp_path
    while account and folder != folder.parent and folder.stat().st_uid == 0 and folder.name != "tmp":
        folder.chmod(0o755)  # another user reads the file
        folder = folder.parent
    settings = tmp_path / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host=127.0.0.1 port={server.port} user=kie4o\n[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\npool_mode = transaction\n"
        "default_pool_size = 3\nunix_socket_dir =\n"
    )
    running = subprocess.Popen([program, "-q", str(settings)], cwd="/", **account)
    try:
        until = time.monotonic() + postgres.PATIENCE
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            assert running.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        yield url.replace(f":{server.port}/", f":{port}/")
    finally:
        running.kill()
        running.wait()


async def test_everything_works_behind_a_pooler(pooler: str) -> None:
    """Claims, submits, slots and leases of two processes, all at once."""
    stores = [PostgresStore(pooler, Secret(CANARY_KEY)) for _ in range(2)]
    for store in stores:
        await store.open()
    limiters = [store._machines.limiter(RateLimit(1000, per=1.0)) for store in stores]

    async def submit(number: int) -> None:
        store, key = stores[number % 2], f"key {number}"
        await store.claim(entry_of(key))
        slot = await limiters[number % 2].acquire()
        await store.begin(entry_of(key, state=EntryState.INTENT, sent_at=1.0, submitted_at=1.0))
        slot.release(counted=True)
        await store.save(submitted(key))
        assert await store.find(key=key) == submitted(key)

    await asyncio.gather(*(submit(number) for number in range(ROUNDS)))
    for store in stores:
        await store._process.renew()
        await store.aclose()


async def test_control_prepared_statements_fail_behind_a_pooler(pooler: str) -> None:
    """As psycopg prepares them by default, after some uses of the same one."""
    from psycopg import AsyncConnection, Error

    conninfo, failed = address_of(pooler).conninfo, 0

    async def ask() -> None:
        nonlocal failed
        async with await AsyncConnection.connect(conninfo, autocommit=True) as connection:
            for number in range(ROUNDS):
                try:
                    await connection.execute("SELECT %s::int", (number,))
                except Error:
                    failed += 1

    await asyncio.gather(*(ask() for _ in range(8)))
    print("failed", failed, "of", 8 * ROUNDS)
    assert failed > 0
