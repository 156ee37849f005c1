"""Entries as bytes with a checksum: any damage is detected."""

from __future__ import annotations

from typing import Any

import pytest
from entries import ENTRIES, ended, plain, submitted
from hypothesis import example, given
from hypothesis import strategies as st

from kie4o import StoreError
from kie4o.stores.packing import checksum, packed, unpacked
from kie4o.stores.store import Entry


@given(entry=ENTRIES, data=st.data())
@example(entry=ended(submitted("k")), data=None)
def test_any_flipped_bit_is_detected(entry: Entry, data: Any) -> None:
    """One flipped bit, in the body or in the checksum, is an error and never another entry."""
    body = packed(entry)
    check = checksum(body)
    assert plain(unpacked(body, check)) == plain(entry)
    whole = body + check
    at = range(len(whole) * 8) if data is None else [data.draw(st.integers(0, len(whole) * 8 - 1))]
    for bit in at:
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StoreError, match="damaged"):
            unpacked(bytes(flipped[: len(body)]), bytes(flipped[len(body) :]))


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{}", b'{"key":"k"}', b"\xff", b"[" * 100_000, b'{"details":5,"request":{}}'],
    ids=lambda body: str(body[:12]),
)
def test_a_body_that_is_no_entry_is_an_error(body: bytes) -> None:
    """A matching checksum alone does not make an entry."""
    with pytest.raises(StoreError, match="damaged"):
        unpacked(body, checksum(body))
