"""Undoing a Content-Encoding: what is compressed comes out, within a limit, and anything else as it was."""

from __future__ import annotations

import gzip
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie4o.wire.encoding import decoded

NAMES = st.sampled_from([None, "", "identity", "gzip", "X-GZIP", " deflate ", "br", "zstd", "other"])
ENVELOPE = b'{"code":200,"msg":"success","data":1}'


@given(body=st.binary(), name=NAMES | st.text(), limit=st.integers(0, 64))
def test_from_any_bytes_nothing_is_raised(body: bytes, name: str | None, limit: int) -> None:
    """What comes out is the body, or within the limit; a problem is said only of a compression."""
    text, problem = decoded(body, name, limit)
    assert text == body or len(text) <= limit + 1
    assert not problem or name


@given(body=st.binary(max_size=64))
def test_what_is_compressed_comes_out(body: bytes) -> None:
    for name, packed in (("gzip", gzip.compress(body, mtime=0)), ("Deflate", zlib.compress(body))):
        assert decoded(packed, name, len(body)) == (body, "")


@pytest.mark.parametrize("name", ["gzip", "x-gzip"])
def test_gzip_is_one_format_in_full(name: str) -> None:
    """It may refer back by 32 KiB, and the deflate of another name is not meant."""
    body = random.Random(1).randbytes(30_000) * 2
    assert decoded(gzip.compress(body, mtime=0), name, 10**5) == (body, "")
    other = zlib.compress(ENVELOPE)
    text, problem = decoded(other, name, 64)
    assert text == other
    assert (
        problem == f"the answer cannot be decoded: its Content-Encoding is {name!r}, which was not asked for"
    )


def test_deflate_without_a_header_counts_as_a_whole_only() -> None:
    """Anything may look like the beginning of it."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    raw = packer.compress(ENVELOPE) + packer.flush()
    assert decoded(raw, "deflate", 64) == (ENVELOPE, "")
    text, problem = decoded(raw[:-3], "deflate", 64)
    assert text == raw[:-3]
    assert (
        problem == "the answer cannot be decoded: its Content-Encoding is 'deflate', which was not asked for"
    )


@pytest.mark.parametrize("name", ["gzip", "deflate", "br", "zstd", "other"])
def test_an_envelope_is_taken_as_it_is(name: str) -> None:
    assert decoded(ENVELOPE, name, 5) == (ENVELOPE, "")


def test_what_breaks_off_is_kept_and_said() -> None:
    text, problem = decoded(gzip.compress(ENVELOPE, mtime=0)[:-8], "gzip", 64)
    assert text == ENVELOPE
    assert problem == "the answer breaks off within its Content-Encoding 'gzip'"


def test_no_more_than_the_limit_comes_out() -> None:
    text, problem = decoded(gzip.compress(bytes(10**7)), "gzip", 100)
    assert text == bytes(101)
    assert problem == "the answer has more than 100 bytes"


@pytest.mark.parametrize("name", ["other", "gzip, gzip", "gzip, br", "compress"])
def test_an_encoding_that_is_not_known_is_a_problem(name: str) -> None:
    """What is in the body is not known either; only an envelope is believed. The name may echo anything."""
    text, problem = decoded(b"<html>", name, 64)
    assert text == b"<html>"
    assert problem
    assert name not in problem
    assert decoded(b"<html>", " Identity ", 64) == (b"<html>", "")


@pytest.mark.parametrize("rest", [gzip.compress(ENVELOPE[20:], mtime=0), b"\r\n"])
def test_what_follows_the_compressed_text_may_belong_to_it(rest: bytes) -> None:
    text, problem = decoded(gzip.compress(ENVELOPE[:20], mtime=0) + rest, "gzip", 64)
    assert text == ENVELOPE[:20]
    assert problem == "the answer breaks off within its Content-Encoding 'gzip'"
