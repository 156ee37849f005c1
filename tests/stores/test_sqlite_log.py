"""A log that SQLite would ignore because its beginning is damaged, told from one whose first write was cut
off."""

from __future__ import annotations

import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import pytest
from entries import submitted
from test_sqlite import opened

from kie4o.stores.sqlite_file import log_of
from kie4o.stores.sqlite_log import is_damaged

HEADER, FRAME, PAGE = 32, 24, 4096  # bytes; SQLite's page "WAL-mode File Format", section 4
FIRST = HEADER + FRAME + PAGE  # where the second frame begins
KEYS = ["0", "1", "2", "3", "4", "5"]


@pytest.fixture(params=["<", ">"], ids=["little", "big"])
async def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A store as a machine of either byte order leaves it when it dies: with most entries in its log."""
    async with opened(tmp_path / "open.db") as store:
        for key in KEYS:
            await store.save(submitted(key))
        copy = tmp_path / "run.db"
        copy.write_bytes(store.path.read_bytes())
        log_of(copy).write_bytes(in_order(request.param, log_of(store.path).read_bytes()))
    return copy


@pytest.fixture
def log(path: Path) -> Path:
    return log_of(path)


def in_order(order: str, log: bytes) -> bytes:
    """The log with the checksums of machines of this byte order."""
    header = struct.pack(">I", 0x377F0682 + (order == ">")) + log[4:24]
    sums = added(order, header)
    made, salt = header + struct.pack(">2I", *sums), log[16:24]
    for at in range(HEADER, len(log), FRAME + PAGE):
        frame = log[at : at + FRAME + PAGE]
        if frame[8:16] != salt:
            return made + log[at:]  # what an earlier round has left
        sums = added(order, frame[:8] + frame[FRAME:], *sums)
        made += frame[:16] + struct.pack(">2I", *sums) + frame[FRAME:]
    return made


def added(order: str, data: bytes, first: int = 0, second: int = 0) -> tuple[int, int]:
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for at in range(0, len(words), 2):
        first = (first + words[at] + second) % 2**32
        second = (second + words[at + 1] + first) % 2**32
    return first, second


def flip(log: Path, at: int) -> None:
    data = bytearray(log.read_bytes())
    data[at] ^= 1
    log.write_bytes(data)


def keys_in(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [key for [key] in connection.execute("SELECT key FROM entry ORDER BY key")]


def test_a_log_that_sqlite_reads_is_sound(path: Path, log: Path) -> None:
    """On a machine of either byte order."""
    assert not is_damaged(log)
    assert keys_in(path) == KEYS


def test_any_byte_of_the_beginning(path: Path, log: Path) -> None:
    """SQLite reads nothing of it, though other frames follow: the last entries would be lost."""
    main, whole = path.read_bytes(), log.read_bytes()
    for at in [*range(HEADER + FRAME + 1), FIRST - 1]:
        path.write_bytes(main)
        log.write_bytes(whole)
        flip(log, at)
        assert is_damaged(log), at
        assert keys_in(path) != KEYS, at


def test_a_beginning_of_zeroes(log: Path) -> None:
    """Their checksum is zero too."""
    log.write_bytes(bytes(FIRST) + log.read_bytes()[FIRST:])
    assert is_damaged(log)


@pytest.mark.parametrize("at", [HEADER, FIRST - 1])
def test_a_damaged_first_frame_that_none_follows(log: Path, at: int) -> None:
    """A write that was cut off was not committed, whatever an earlier round has left after it."""
    flip(log, at)
    whole = log.read_bytes()
    for end in range(FIRST, FIRST + 16):
        log.write_bytes(whole[:end])
        assert not is_damaged(log)
    for salt in range(FIRST + 8, FIRST + 16):
        log.write_bytes(whole)
        flip(log, salt)
        assert not is_damaged(log)


@pytest.mark.parametrize("size", [0, 1, HEADER - 1, HEADER, HEADER + FRAME - 1, HEADER + FRAME, FIRST - 1])
def test_a_first_write_that_was_cut_off(log: Path, size: int) -> None:
    """Nothing was committed; with place for a frame its header has to be whole."""
    log.write_bytes(log.read_bytes()[:size])
    assert not is_damaged(log)
    if size:
        flip(log, 0)
        assert is_damaged(log) == (size >= HEADER + FRAME)
