"""pgbouncer in transaction mode before the server of the tests: each transaction may get another session."""

from __future__ import annotations

import atexit
import functools
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import postgres
import pytest
from portable import PATIENCE

_CONFIG = """
[databases]
* = host=127.0.0.1 port={server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = 3
max_client_conn = 500
logfile = {folder}/log
pidfile = {folder}/pid
"""


def pooled_url(schema: str | None = None) -> str:
    """As `postgres.shared_url`, past which a pooler of this process leads."""
    url = postgres.shared_url(schema)
    split = urlsplit(url)
    user = (split.username or "") + "@" if split.username else ""
    return split._replace(netloc=f"{user}127.0.0.1:{_started(split.port or 5432)}").geturl()


@functools.cache
def _started(server: int) -> int:
    program = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
    if program is None:
        pytest.skip("no pgbouncer here: apt-get install pgbouncer")
    folder = Path(tempfile.mkdtemp(prefix="kie4o-pooler-"))
    port = postgres.free_port()
    (folder / "users").write_text('"kie4o" ""\n', "utf-8")
    (folder / "ini").write_text(_CONFIG.format(server=server, port=port, folder=folder), "utf-8")
    account = postgres.other_account()
    if account:  # it does not run as root either
        for path in (folder, folder / "users", folder / "ini"):
            shutil.chown(path, account["user"])
    # Its standard input ends with this process, however that ends.
    command = ["sh", "-c", '"$0" -q "$1" & read -r _; kill $!; wait', program, str(folder / "ini")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, **account)

    def stop() -> None:
        process.communicate()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    until = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            assert time.monotonic() < until, (folder / "log").read_text("utf-8", "replace")
            time.sleep(0.02)
        else:
            return port
