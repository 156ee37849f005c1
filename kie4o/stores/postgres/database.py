"""Connections to the database, and statements that are repeated until they are answered.

Every statement of the store may be sent twice: a reply that is lost with its connection is asked for again.
An outage of up to `OUTAGE` seconds, such as a restart or a failover, is therefore only a delay. A statement
runs in a task of its own, since psycopg asks the server to cancel what runs when its task is cancelled: a
commit that waits for a replica would then end as if it had succeeded.

Connections may lead to a pooler that gives each transaction another session. So nothing is prepared, nothing
is set in a session, and names are qualified with the schema: statements say `kie4o.`, which stands for it.

The connections are kept here rather than in psycopg's pool. That connects in background tasks, of which a
virtual clock cannot know that they wait, and logs each failure. After a restart the first statement was
answered within 0.5 s, with the pool within 1.7 s.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from ... import clock
from ...errors import StoreError, reason_of
from ...events.reporter import LOG, Reporter
from .address import SCHEMA, Address

if TYPE_CHECKING:
    from psycopg import AsyncConnection

OUTAGE = 29.0  # seconds that a statement is repeated for; a call of the store is given up after 30
CONNECTIONS = 4  # for statements
_FIRST_DELAY = 0.05  # seconds before a statement is repeated; doubled each time
_LONGEST_DELAY = 1.0
_CONNECT_TIMEOUT = 5  # seconds
# A peer that has vanished is noticed in about 10 s. These are settings of our socket, not of a session.
_SOCKET = {
    "connect_timeout": _CONNECT_TIMEOUT,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
_CLOSING = 1.0  # seconds for statements that are cut short
_SHUTDOWN = "57P"  # how the codes of a server that stops begin
_NO_RIGHT = "42501"
_READ_ONLY = "25006"
_PREAMBLE = re.compile(
    r'connection (failed|is bad): (connection to server at ".*?", port \d+ failed: )?(FATAL: +)?'
)
_REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "password authentication failed|no password supplied": "Check the user and the password in its URL",
        "database .* does not exist": "Create it, as with `createdb`, or correct the URL",
        "Connection refused|No such file": "Start it, or correct the host and the port in the URL",
        "failed to resolve host": "Correct the host in the URL",
        "that are read committed": "Set default_transaction_isolation to 'read committed'",
    }
)
_T = TypeVar("_T")
Row = tuple[Any, ...]
Rows = list[Row]


class Database:
    """The database of one client, while its event loop runs."""

    def __init__(self, address: Address) -> None:
        self.address: Address = address
        self.reporter: Reporter = LOG
        self._idle: list[AsyncConnection[Row]] = []  # the last one used is the first one taken
        self._busy: set[AsyncConnection[Row]] = set()
        self._free = asyncio.Semaphore(CONNECTIONS)
        self._running: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None  # in which it is open
        self._pid = os.getpid()
        self._away_since: float | None = None  # loop time; what is asked later waits for the same outage

    async def open(self) -> None:
        """Connect once. That a database cannot be reached at all is said at once, not after an outage."""
        loop = asyncio.get_running_loop()
        if sys.platform == "win32" and isinstance(loop, asyncio.ProactorEventLoop):
            raise StoreError(
                "a store in PostgreSQL needs another event loop on Windows: "
                "with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner: runner.run(main())"
            )
        self._idle.append(await self.connect())
        self._loop, self._pid = loop, os.getpid()

    async def rows(self, statement: str, *parameters: object, durably: bool = False) -> Rows:
        """What a statement returns. It is repeated until it is answered, for up to `OUTAGE` seconds.

        Cancelling does not undo it. With `durably` a warning of the server is a failure: that is how a commit
        ends which gave up waiting for a replica.
        """
        return await self.run(lambda: self._until_answered(statement, parameters, durably))

    async def run(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """What the work returns. It goes on if the caller is cancelled, and `drain` waits for it."""
        if asyncio.current_task() in self._running:
            return await work()
        if self._loop is not asyncio.get_running_loop():
            raise StoreError("the store is not open in this event loop")
        if self._pid != os.getpid():
            raise StoreError("the store was opened before a fork; open it in the child process")
        task = asyncio.create_task(work(), name="kie4o statement")
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def drain(self) -> None:
        """Wait for what runs, also after its callers were cancelled."""
        while self._running:
            await asyncio.wait(self._running)

    async def connect(self, conninfo: str | None = None) -> AsyncConnection[Row]:
        """A connection of the caller's own. Raises `StoreError`."""
        psycopg = _psycopg()
        try:
            return await self._connect(conninfo)
        except psycopg.Error as error:
            failure = failure_of(self.address, error)
        raise failure

    async def aclose(self) -> None:
        """Close all connections, and cut short what still runs."""
        if self._loop is not asyncio.get_running_loop() or self._pid != os.getpid():
            return  # their sockets belong to another process, or their loop has ended
        self._loop = None
        running = list(self._running)
        for task in running:
            task.cancel()
        await self._drop_idle()
        if running:
            await asyncio.wait(running, timeout=_CLOSING)
        for connection in list(self._busy):  # of a server that does not even answer that it cancels
            await close(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Callable[[str], Awaitable[Rows]]]:
        """Several statements, on a connection of their own: all or none. They are not repeated."""
        psycopg, failure = _psycopg(), None
        connection = await self.connect()
        try:
            async with connection.transaction():
                yield lambda statement: self._execute(connection, statement)
        except psycopg.Error as error:
            failure = failure_of(self.address, error)
        finally:
            await close(connection)
        if failure is not None:
            raise failure

    # -- one attempt after the other --------------------------------------------------------------------

    async def _until_answered(self, statement: str, parameters: Sequence[object], durably: bool) -> Rows:
        psycopg, loop = _psycopg(), asyncio.get_running_loop()
        delay = _FIRST_DELAY
        while True:
            try:
                async with self._connection() as connection:
                    rows = await self._execute(connection, statement, parameters, durably)
                self._away_since = None
                return rows
            except psycopg.Error as error:
                failure, passes = failure_of(self.address, error), may_pass(error)
            if not passes:
                raise failure
            if self._away_since is None:
                self._away_since = loop.time()
            if loop.time() + delay > self._away_since + OUTAGE:
                raise failure
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)

    async def _execute(
        self,
        connection: AsyncConnection[Row],
        statement: str,
        parameters: Sequence[object] = (),
        durably: bool = False,
    ) -> Rows:
        query: Any = in_schema(statement, self.address.schema)  # psycopg's types want it to be a literal
        warnings: list[str] = []
        stops: list[str] = []  # it goes down, and says so after the answer

        def note(diagnostic: Any) -> None:
            if diagnostic.severity_nonlocalized == "WARNING":
                stop = str(diagnostic.sqlstate).startswith(_SHUTDOWN)
                (stops if stop else warnings).append(str(diagnostic.message_primary))

        if durably:
            connection.add_notice_handler(note)
        try:
            with working():
                cursor = await connection.execute(query, parameters or None)
                rows = [] if cursor.description is None else await cursor.fetchall()
        finally:
            if durably:
                connection.remove_notice_handler(note)
        if stops:
            raise _psycopg().OperationalError(stops[0])
        if warnings:
            raise StoreError(f"the database {self.address} may not have saved it: {warnings[0]}")
        return rows

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[AsyncConnection[Row]]:
        """One of the connections, which goes back unless it is broken."""
        async with self._free:
            connection = self._idle.pop() if self._idle else await self._connect()
            self._busy.add(connection)
            try:
                yield connection
            finally:
                self._busy.discard(connection)
                if self._is_usable(connection):
                    self._idle.append(connection)
                else:
                    await close(connection)
                    await self._drop_idle()  # what ended one has most likely ended all

    def _is_usable(self, connection: AsyncConnection[Row]) -> bool:
        """Whether another statement may follow; not while the store closes."""
        from psycopg.pq import TransactionStatus

        return connection.pgconn.transaction_status == TransactionStatus.IDLE and self._loop is not None

    async def _drop_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            await close(connection)

    async def _connect(self, conninfo: str | None = None) -> AsyncConnection[Row]:
        from psycopg import AsyncConnection
        from psycopg.conninfo import conninfo_to_dict

        conninfo = conninfo or self.address.conninfo
        given = conninfo_to_dict(conninfo)
        settings: dict[str, Any] = {name: value for name, value in _SOCKET.items() if name not in given}
        with working():
            return await AsyncConnection.connect(
                conninfo, autocommit=True, prepare_threshold=None, **settings
            )

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, also if its caller was cancelled


def in_schema(statement: str, schema: str) -> str:
    """The statement for the tables of a schema; it is written for that of the default."""
    return statement.replace("kie4o.", f'"{schema}".')


def working() -> AbstractContextManager[None]:
    """Around a wait for the server: a virtual clock stands still meanwhile."""
    return clock.working_thread(asyncio.get_running_loop())


async def close(connection: AsyncConnection[Row]) -> None:
    with suppress(Exception):  # it may be broken in any way
        await connection.close()


def failure_of(address: Address, error: Exception) -> StoreError:
    """What psycopg or the server says, without the values of a statement, which stand in its details."""
    diagnostic = getattr(error, "diag", None)
    reason = getattr(diagnostic, "message_primary", None) or reason_of(error)
    first = _PREAMBLE.sub("", str(reason).partition("\n")[0].strip())
    state = getattr(error, "sqlstate", None)
    code = f" ({state})" if state else ""
    sentence = f"the database {address} cannot be used: {first}{code}; nothing is submitted without the store"
    remedy = _remedy(address, first, state)
    return StoreError(f"{sentence}. {remedy}" if remedy else sentence)


def _remedy(address: Address, reason: str, state: str | None) -> str | None:
    """What to do about it. A connection that is refused has no code, but English words unless the server is
    set to another language."""
    if state == _NO_RIGHT:
        program = "python -m kie4o.stores.postgres" + (f" {address.schema}" * (address.schema != SCHEMA))
        return f"Let its owner run the SQL and the GRANTs which `{program}` prints"
    if state == _READ_ONLY:
        return "Connect to the server that accepts writes: this one is a replica, or set to read only"
    for words, remedy in _REMEDIES.items():
        if re.search(words, reason):
            return remedy
    return None


def may_pass(error: Exception) -> bool:
    """Whether the same statement may succeed later: the connection or the server was lost, or stopped it.

    A read-only server is one that was demoted, or that is not promoted yet.
    """
    from psycopg import InterfaceError, OperationalError, errors

    return isinstance(error, (OperationalError, InterfaceError, errors.ReadOnlySqlTransaction))


def _psycopg() -> Any:
    """The driver, which is loaded when a store is opened."""
    try:
        import psycopg
    except ImportError as error:  # also of its library
        reason = str(error)
    else:
        return psycopg
    raise StoreError(
        f"a store in PostgreSQL needs psycopg, which cannot be loaded ({reason}); in a checkout of kie4o, "
        "run: pip install '.[postgres]'"
    )
