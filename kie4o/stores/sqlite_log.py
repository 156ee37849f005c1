"""Detects damage to a SQLite write-ahead log that SQLite itself ignores.

SQLite reads a log up to the first frame whose checksum does not match, and treats the rest as a write that
was cut off. If the header or the first frame is damaged it finds nothing and opens the file without an
error, and everything committed since the last checkpoint is lost: INTENTs, and task ids that were paid for.
A first write that was cut off has no frames after it; a damaged log has. Source: SQLite's page "WAL-mode
File Format", section 4.
"""

from __future__ import annotations

import struct
from pathlib import Path

_HEADER = 32  # bytes
_FRAME = 24  # bytes before each page
_MAGIC = (0x377F0682, 0x377F0683)  # the last bit: checksums read big-endian words


def is_damaged(log: Path) -> bool:
    """Whether the log holds frames that cannot be read because its beginning is damaged."""
    if not log.exists() or log.stat().st_size < _HEADER + _FRAME:
        return False
    with log.open("rb") as file:
        header = file.read(_HEADER)
        magic, _, page, _, *_ = struct.unpack(">8I", header)
        if magic not in _MAGIC:
            return True
        order = ">" if magic & 1 else "<"
        sums = _checksum(header[:24], order, (0, 0))
        if struct.pack(">2I", *sums) != header[24:]:
            return True
        first = file.read(_FRAME + page)
        if len(first) < _FRAME + page or _matches(first, header, order, sums):
            return False
        return file.read(_FRAME)[8:16] == header[16:24]  # a second frame with the same salt follows


def _matches(frame: bytes, header: bytes, order: str, sums: tuple[int, int]) -> bool:
    sums = _checksum(frame[:8] + frame[_FRAME:], order, sums)
    return frame[8:16] == header[16:24] and struct.pack(">2I", *sums) == frame[16:_FRAME]


def _checksum(data: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    for even, odd in struct.iter_unpack(f"{order}2I", data):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second
