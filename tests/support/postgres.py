"""A private PostgreSQL server for the tests, from the programs of Debian's package or of the PATH.

`shared_url` is what most tests use: one server for all processes of a run, started by the first that needs
it. A process of this module watches over it, and stops it when the last user is gone, however that one ended:
each holds a shared lock on a file. `own_server` is for a test that stops, kills or restarts its server.

KIE4O_TEST_POSTGRES may name a server that runs already. Without any the tests are skipped; where CI=true they
fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
from portable import PATIENCE

from kie4o.stores.postgres.address import address_of
from kie4o.stores.postgres.database import Database, in_schema
from kie4o.stores.postgres.process import Process

_RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or f"{os.getpid()}-{time.time_ns()}"
_FOLDER = Path(tempfile.gettempdir()) / f"kie4o-postgres-{_RUN}"
_READY = "url"  # the file that holds the URL once the server accepts connections
_TEMPLATE = "template"  # the file that holds the path of a new server's folder
_schemas: set[str] = set()  # that were given since `rows_with` was last called
_users: list[int] = []  # the file whose lock this process holds until it ends


def programs() -> Path | None:
    """The folder with `initdb` and `postgres`, the newest if there are several."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda file: int(file.parts[-3]))
    found = debian[-1] if debian else shutil.which("postgres")
    return None if found is None or sys.platform == "win32" else Path(found).parent


def unavailable(reason: str) -> NoReturn:
    """Skip the test; where CI=true it fails, but for Windows."""
    if os.environ.get("CI") == "true" and sys.platform != "win32":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def required() -> Path:
    """The programs, or the end of the test."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        unavailable("psycopg is missing: pip install 'kie4o[postgres]'")
    return programs() or unavailable("no PostgreSQL here: apt-get install postgresql")


class PostgresServer:
    """A server in a temporary folder, reached over 127.0.0.1 and over a socket in that folder.

    It runs as another user if this one is root, whom `initdb` refuses.
    """

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self._bin = required()
        self.folder = Path(tempfile.mkdtemp(prefix="kie4o-pg-"))
        self.data = self.folder / "data"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._account: dict[str, Any] = other_account()
        if self._account:
            shutil.chown(self.folder, self._account["user"])
        self.settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            "max_connections": "400",
            "log_destination": "stderr",
            **(settings or {}),
        }

    @property
    def url(self) -> str:
        return f"postgresql://kie4o@127.0.0.1:{self.port}/postgres"

    def run(self, program: str, *arguments: str) -> None:
        """One of PostgreSQL's programs, to its end."""
        done = subprocess.run(
            [str(self._bin / program), *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
            **self._account,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def create(self) -> PostgresServer:
        """As a copy of a new one that another process keeps: `initdb` takes ten times longer."""
        template = _FOLDER / _TEMPLATE
        if template.exists():
            self._copy_folder(Path(template.read_text("utf-8")), self.data)
        else:
            trusting = ["--auth=trust", "--username=kie4o", "--encoding=UTF8", "--locale=C"]
            self.run("initdb", "--no-sync", "-D", str(self.data), *trusting)
        return self

    def keep_new(self) -> Path:
        """A copy, before it is started, from which others are created."""
        kept = self.folder / _TEMPLATE
        self._copy_folder(self.data, kept)
        return kept

    def _copy_folder(self, source: Path, to: Path) -> None:
        command = ["cp", "-R", "-p", str(source), str(to)]
        subprocess.run(command, check=True, timeout=PATIENCE, **self._account)

    def copy(self, primary: PostgresServer) -> PostgresServer:
        """As a replica of another server, in place of `create`."""
        source = ["-h", "127.0.0.1", "-p", str(primary.port), "-U", "kie4o"]
        how = ["-R", "-X", "stream", "-c", "fast", "--no-sync"]
        self.run("pg_basebackup", *source, "-D", str(self.data), *how)
        return self

    def promote(self) -> None:
        self.run("pg_ctl", "promote", "-D", str(self.data), "-w")

    def start(self) -> PostgresServer:
        """Start it, and wait until it accepts connections."""
        options = [word for name, value in self.settings.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._bin / "postgres"), "-D", str(self.data), "-p", str(self.port), *options],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the tests
                **self._account,
            )
        self._wait_until_ready()
        return self

    def stop(self, mode: signal.Signals = signal.SIGINT) -> None:
        """`SIGINT` is a fast stop, `SIGQUIT` an immediate one, which is a crash to the next start."""
        if self._process is not None:
            self._process.send_signal(mode)
            self._process.wait(PATIENCE)
            self._process = None

    def restart(self, mode: signal.Signals = signal.SIGINT) -> None:
        self.stop(mode)
        self.start()

    def close(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> PostgresServer:
        try:
            return self.create().start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait_until_ready(self) -> None:
        import psycopg

        until = time.monotonic() + PATIENCE
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                alive = self._process is not None and self._process.poll() is None
                if not alive or time.monotonic() > until:
                    log = (self.folder / "log").read_text("utf-8", "replace")
                    raise AssertionError(f"PostgreSQL did not start: {log[-2000:]}") from None
            time.sleep(0.02)


def shared_url(schema: str | None = None) -> str:
    """The URL of a schema on the server that all tests of this run share; without a name a new one.

    A schema is created by whoever opens a store on it. It disappears with the server.
    """
    name = schema or f"t_{uuid.uuid4().hex[:20]}"
    _schemas.add(name)
    server = os.environ.get("KIE4O_TEST_POSTGRES") or _shared_server()
    return f"{server}{'&' if '?' in server else '?'}schema={name}"


def rows_with(text: str) -> list[str]:
    """The tables that hold this text, or its bytes, in all schemas that were given since the last call."""
    schemas = list(_schemas)
    _schemas.clear()
    if not schemas:
        return []
    import psycopg

    server = os.environ.get("KIE4O_TEST_POSTGRES") or _shared_server()
    found = []
    with psycopg.connect(server, autocommit=True) as database:
        named = "SELECT format('%%I.%%I', schemaname, tablename) FROM pg_tables WHERE schemaname = ANY (%s)"
        for (table,) in database.execute(named, [schemas]).fetchall():
            held = f"SELECT EXISTS (SELECT FROM {table} AS t WHERE t::text LIKE ANY (%s))"
            if database.execute(held, [[f"%{text}%", f"%{text.encode().hex()}%"]]).fetchone() == (True,):
                found.append(table)
    return found


def _shared_server() -> str:
    required()
    import fcntl  # not on Windows, where there are no `programs`

    while not _users:
        _FOLDER.mkdir(exist_ok=True)
        lock = os.open(_FOLDER / "users", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if (_FOLDER / "users").stat().st_ino == os.fstat(lock).st_ino:
                _users.append(lock)
                break
        os.close(lock)  # the last users have just gone, and the folder with them
    with (_FOLDER / "starting").open("w") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)
        ready = _FOLDER / _READY
        if not ready.exists():
            _start_watcher(ready)
    return ready.read_text("utf-8")


def _start_watcher(ready: Path) -> None:
    with (_FOLDER / "log").open("ab") as log:
        watcher = subprocess.Popen(
            [sys.executable, __file__, str(_FOLDER)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    until = time.monotonic() + PATIENCE
    while not ready.exists():
        if watcher.poll() is not None or time.monotonic() > until:
            pytest.fail((_FOLDER / "log").read_text("utf-8", "replace")[-2000:], pytrace=False)
        time.sleep(0.02)
    watcher.returncode = 0  # it outlives this process; no warning that it was not waited for


def _watch(folder: Path) -> None:
    """Run a server until nobody uses it any more."""
    import fcntl

    server = PostgresServer()
    try:
        template = server.create().keep_new()
        server.start()
        (folder / _TEMPLATE).write_text(str(template), "utf-8")
        draft = folder / f"{_READY}.draft"
        draft.write_text(server.url, "utf-8")
        draft.rename(folder / _READY)
        with (folder / "users").open("r+") as users:
            fcntl.flock(users, fcntl.LOCK_EX)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        server.close()


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def other_account() -> dict[str, Any]:
    """Another user for `subprocess`, if this one is root."""
    import pwd

    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            account = pwd.getpwnam(name)
            return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    unavailable("no user but root, as whom PostgreSQL does not run")


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """A database as the store uses it."""
    database = Database(address_of(url))
    await database.open()
    try:
        yield database
    finally:
        await database.aclose()


@contextlib.contextmanager
def own_server(**settings: str) -> Iterator[PostgresServer]:
    """A server that one test has for itself."""
    if not os.environ.get("KIE4O_TEST_POSTGRES"):
        _shared_server()  # which keeps a new one to copy
    with PostgresServer(settings) as server:
        yield server


if __name__ == "__main__":
    _watch(Path(sys.argv[1]))


async def renewed(process: Process) -> None:
    """Renew the lease of a process, and wait for what follows."""
    await process.renew()
    if process._following is not None:
        await process._following


async def lock_rows(database: Database, table: str, seconds: float) -> None:
    """Lock all rows of a table, for so long."""
    connection = await database.connect()
    await connection.execute("BEGIN")
    query = in_schema(f"SELECT FROM kie4o.{table} FOR UPDATE", database.address.schema)
    await connection.execute(query)  # type: ignore[arg-type]  # psycopg wants a literal
    asyncio.get_running_loop().call_later(seconds, asyncio.ensure_future, connection.close())
