"""The tables and functions of a store: created, and brought up to date, by the first that opens it.

They have a schema of their own. `script` is the same SQL as text, for a database in which the application may
not create anything.
"""

from __future__ import annotations

from importlib.resources import files

from ...errors import StoreError
from .address import SCHEMA
from .database import Database, in_schema

# The files of each version, in order: they bring a schema of the version before up to it.
MIGRATIONS: tuple[tuple[str, ...], ...] = (("tables", "process", "window", "entries", "news", "watches"),)
VERSION: int = len(MIGRATIONS)

_LOCK = "SELECT pg_advisory_xact_lock(1801020724, hashtext('kie4o.'))"  # "kie4", and the schema
_EXISTS = "SELECT to_regclass('kie4o.version') IS NOT NULL"
_VERSION = "SELECT coalesce(max(number), 0) FROM kie4o.version"


async def migrate(database: Database) -> None:
    """Bring the schema up to this version. Raises `StoreError` if it is of a newer one.

    Only that needs the right to create anything: one transaction, and a lock for as long as it lasts.
    """
    if await _version(database) == VERSION:
        return
    async with database.transaction() as execute:
        await execute(_LOCK)
        [(exists,)] = await execute(_EXISTS)
        if not exists:
            await execute(_creation(database.address.schema))
        [(version,)] = await execute(_VERSION)
        for statements in _steps(version):
            await execute(statements)


def script(schema: str = SCHEMA) -> str:
    """What creates the schema in a database that has none."""
    return in_schema("\n".join(["BEGIN;", _creation(schema), *_steps(0), "COMMIT;\n"]), schema)


async def _version(database: Database) -> int:
    """The version of the schema; 0 if there is none."""
    [(exists,)] = await database.rows(_EXISTS)
    [(version,)] = await database.rows(_VERSION) if exists else [(0,)]
    if version > VERSION:
        raise StoreError(
            f"the schema {database.address.schema} of {database.address} was made by a newer kie4o (version "
            f"{version}); upgrade kie4o"
        )
    return int(version)


def _creation(schema: str) -> str:
    return f'CREATE SCHEMA IF NOT EXISTS "{schema}";\nCREATE TABLE kie4o.version (number integer NOT NULL);'


def _steps(version: int) -> list[str]:
    """The SQL that follows on a version, ready to be executed one after the other."""
    steps, folder = [], files("kie4o.stores.postgres").joinpath("sql")
    for number, names in enumerate(MIGRATIONS[version:], version + 1):
        steps += [folder.joinpath(f"{name}.sql").read_text("utf-8") for name in names]
        steps.append(f"INSERT INTO kie4o.version VALUES ({number});")  # noqa: S608  # an integer of ours
    return steps
