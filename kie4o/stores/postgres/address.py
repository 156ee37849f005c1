"""The URL of a PostgreSQL store: what is psycopg's in it, and what is ours. Pure.

`?schema=` names the schema of the tables, `?listen=` another server to listen at, past a pooler, and
`?account=` the account whose limit is shared, where it is not that of the API key. Everything else is for
psycopg. No repr and no error shows more than host, port and database: the rest may hold a password.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import parse_qsl, quote, urlencode

import attrs

from ...errors import ConfigurationError
from ...settings import Secret

SCHEMA = "kie4o"  # unless the URL says otherwise
SERVER = "postgresql://"  # is shown where a URL names none: that of the environment, or of this machine
PREFIXES = ("postgresql://", "postgres://")
_SCHEMA_NAME = re.compile(r"[a-z_][a-z0-9_]{0,47}", re.ASCII)  # PostgreSQL cuts names at 63 bytes
_HOST = re.compile(r"(\[[^\]@]*\]|[^:@\[\]]*)(:[0-9]*)?")
_HALF_ENCODED = re.compile(r"%(?![0-9A-Fa-f]{2})")
_OURS = ("schema", "listen", "account")
_ACCOUNT_BYTES = 16


@attrs.frozen(kw_only=True)
class Address:
    """A checked URL. `conninfo` and `listen` are secrets."""

    conninfo: str = attrs.field(repr=False)
    listen: str = attrs.field(repr=False)  # where notifications are listened for
    schema: str = SCHEMA
    account: str | None = None
    shown: str  # host, port and database

    def __str__(self) -> str:
        return self.shown


def address_of(url: str) -> Address:
    """Raises `ConfigurationError`, which shows nothing of the URL."""
    if not url.startswith(PREFIXES):
        raise _invalid("expected postgresql://user@host/database")
    head, _, query = url.partition("?")
    shown = _shown(head)
    try:
        # "+" is not a space to psycopg
        words = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        words = [("?", "")]
    ours = {name: value for name, value in words if name in _OURS}
    theirs = [(name, value) for name, value in words if name not in _OURS]
    if ("?", "") in words or len(ours) + len(theirs) != len(words):
        raise _invalid("its query is not name=value&name=value, or repeats a name")
    schema = ours.get("schema", SCHEMA)
    if not _SCHEMA_NAME.fullmatch(schema) or schema.startswith("pg_"):
        raise _invalid("schema= is not a name of up to 48 lower case letters, digits and underscores")
    listen, account = ours.get("listen"), ours.get("account")
    if (listen is not None and not listen.startswith(PREFIXES)) or account == "":
        raise _invalid("listen= is a URL like that of the store, and account= a name, where they are given")
    conninfo = f"{head}?{urlencode(theirs, quote_via=quote)}" if theirs else head
    return Address(
        conninfo=conninfo,
        listen=conninfo if listen is None else address_of(listen).conninfo,
        schema=schema,
        account=account,
        shown=shown if shown[:1] not in ("", "/") else f"{dict(theirs).get('host', '')}{shown}" or SERVER,
    )


def _shown(head: str) -> str:
    """Host, port and database of a URL without its query.

    A character of a password that is not encoded would move the rest of it to where these are, or into an
    error of psycopg's.
    """
    authority, slash, path = head.partition("://")[2].partition("/")
    credentials, _, hosts = authority.rpartition("@")
    plain = all(map(_HOST.fullmatch, hosts.split(","))) and "@" not in credentials + path
    if not plain or _HALF_ENCODED.search(head):
        raise _invalid(
            "host and port cannot be told apart from a password; in a password, write %40 for @, %3A for :, "
            "%2F for /, %3F for ? and %25 for %"
        )
    return hosts + slash + path


def account_id(address: Address, api_key: Secret) -> bytes:
    """What names the account in the tables: a hash from which an API key cannot be found."""
    if address.account is not None:
        return _hash(address.account, b"account")
    return _hash(api_key.reveal(), b"api key")


def _hash(name: str, kind: bytes) -> bytes:
    return hashlib.blake2b(name.encode(), person=kind, digest_size=_ACCOUNT_BYTES).digest()


def _invalid(reason: str) -> ConfigurationError:
    return ConfigurationError(f"invalid store='postgresql://...': {reason}")
