"""The URL of a PostgreSQL store: which words are ours, and what is shown of it."""

from __future__ import annotations

import pytest

from kie4o import ConfigurationError
from kie4o.settings import Secret
from kie4o.stores.postgres.address import account_id, address_of


def test_our_words_are_taken_out() -> None:
    """psycopg refuses words that it does not know."""
    address = address_of(
        "postgresql://kie:s3cret@db.example:5433/images?sslmode=require&schema=shop_2"
        "&listen=postgresql://kie:s3cret@direct.example/images&account=shop&connect_timeout=3"
    )
    assert address.conninfo == (
        "postgresql://kie:s3cret@db.example:5433/images?sslmode=require&connect_timeout=3"
    )
    assert address.listen == "postgresql://kie:s3cret@direct.example/images"
    assert (address.schema, address.account) == ("shop_2", "shop")


def test_a_plain_url() -> None:
    """The schema is kie4o, and notifications come from the same server."""
    address = address_of("postgres://localhost/images")
    assert address.conninfo == address.listen == "postgres://localhost/images"
    assert (address.schema, address.account) == ("kie4o", None)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://kie:s3cret@db.example:5433/images?sslpassword=s3cret",
        "postgresql://kie:s3cret@one.example,two.example/images?listen=postgresql://kie:s3cret@db.example",
        "postgresql://kie:s3c#ret@db.example/",
        "postgresql://kie:s3c%40ret@[::1]:5433,db.example/",
        "postgresql:///images?host=/run/postgresql&password=s3cret",
    ],
)
def test_only_host_port_and_database_are_shown(url: str) -> None:
    address = address_of(url)
    assert "s3c" not in f"{address} {address!r}"
    assert "example" in str(address) or "/run/postgresql" in str(address)


@pytest.mark.parametrize("url", ["postgresql://", "postgresql://kie:s3cret@", "postgresql:///images"])
def test_a_url_may_leave_the_server_to_the_environment(url: str) -> None:
    """psycopg reads PGHOST and the like; the URL reaches it with all its slashes."""
    address = address_of(url)
    assert address.conninfo == url
    assert str(address) in ("postgresql://", "/images")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:/s3cret@db.example/images",
        "postgresql://kie:s3cret@ret@db.example/",
        "postgresql://kie:s3cret/ret@db.example/images",
        "postgresql://kie:s3cret?x=ret@db.example/images",
        "postgresql://kie:s3cret%ret@db.example/images",
        "postgresql://db.example:s3cret/images",
        "postgresql://db.example,db.example:s3cret/images",
        "postgresql://s3cret@db.example/images?schema=Shop",
        'postgresql://s3cret@db.example/images?schema=a"b',
        "postgresql://s3cret@db.example/images?schema=pg_toast",
        f"postgresql://s3cret@db.example/images?schema={'a' * 49}",
        "postgresql://s3cret@db.example/images?schema=",
        "postgresql://s3cret@db.example/images?schema=a&schema=b",
        "postgresql://s3cret@db.example/images?schema",
        "postgresql://s3cret@db.example/images?account=",
        "postgresql://s3cret@db.example/images?listen=db.example",
    ],
)
def test_an_invalid_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^invalid store='postgresql://\.\.\.': ") as caught:
        address_of(url)
    assert "s3cret" not in str(caught.value)


def test_a_url_to_listen_at_is_named_by_its_word() -> None:
    with pytest.raises(ConfigurationError, match="listen= is a URL like that of the store"):
        address_of("postgresql://db.example/images?listen=db.example")


def test_an_account_is_a_hash_of_the_key_or_of_its_name() -> None:
    """The same in every process; a name is never taken for a key."""
    plain, named = address_of("postgresql://db/images"), address_of("postgresql://db/images?account=shop")
    key, another = Secret("key"), Secret("another")
    assert account_id(plain, key) == account_id(plain, Secret("key")) != account_id(plain, another)
    assert account_id(named, key) == account_id(named, another)
    assert account_id(named, key) != account_id(plain, Secret("shop"))
    assert b"key" not in account_id(plain, key)
    assert len(account_id(plain, key)) == 16
