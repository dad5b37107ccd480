"""Content fingerprints: which blocks of a volume its hosts compare, and the digests of them.

A host's page cache may hold what another host has overwritten since, so blocks are read with O_DIRECT (open(2)).
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

BLOCK = 4096
SPREAD = 16


def spread(uuid: str, size: int) -> list[int]:
    """Offsets of up to 16 blocks: the first, the last, and others chosen by the UUID, the same on every host."""
    blocks = -(-size // BLOCK)
    chosen = {0, blocks - 1}
    for number in range(SPREAD - 2):
        digest = hashlib.sha256(f"{uuid}:{number}".encode()).digest()
        chosen.add(int.from_bytes(digest[:8]) % blocks)
    return [block * BLOCK for block in sorted(chosen)]


def wanted(uuid: str, size: int, offsets: list[int] | None) -> list[tuple[int, int]]:
    """Offsets and lengths of the blocks at `offsets` (None: the spread); the last block of a disk may be short."""
    chosen = spread(uuid, size) if offsets is None else sorted(set(offsets))
    return [(offset, min(BLOCK, size - offset)) for offset in chosen]


def read_direct(path: str | Path, ranges: Iterable[tuple[int, int]]) -> list[bytes]:
    """The bytes at offsets and lengths, multiples of the logical block size, of a device or a file. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, BLOCK) as buffer:  # page-aligned, as O_DIRECT wants it
            blocks = []
            for offset, length in ranges:
                count = os.preadv(descriptor, [memoryview(buffer)[:length]], offset)
                blocks.append(buffer[:count])
        return blocks
    finally:
        os.close(descriptor)


def digests(ranges: Iterable[tuple[int, int]], blocks: Iterable[bytes]) -> dict[str, str]:
    """Byte offset, as JSON has it, to the SHA-256 of the block there."""
    return {str(offset): hashlib.sha256(block).hexdigest() for (offset, _), block in zip(ranges, blocks, strict=True)}
