"""A digest of what a volume holds: the same wherever and however its bytes lie, and it costs nothing for holes.

Blocks of zeros are left out, whether they are holes, were written, or are unallocated in an image; so an empty disk of
a terabyte is done at once, and two copies of one disk agree in whatever format each is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from storkit.core.backend import Site
from storkit.core.model import Volume
from storkit.tech.files import clonefile
from storkit.tech.files.changing import raw, shared

_BLOCK = 1 << 16
_CHUNK = 64 * _BLOCK
_ZEROS = bytes(_CHUNK)


def digest(site: Site, volume: Volume) -> str:
    """The digest of a volume that nobody writes (storkit.images.digest)."""

    def progress(done: int) -> None:
        site.progress(done / volume.size, f"comparing {volume.name}")

    with shared(site, volume), raw(site, volume) as descriptor:
        return f"blocks-sha256:{of(descriptor, volume.size, progress)}"


def of(descriptor: int, size: int, progress: Callable[[int], None]) -> str:
    """SHA-256 over the size, and over the offset and the bytes of each block of an open file that is not zeros, in
    hexadecimal. `progress` gets how many bytes are done."""
    found, at = hashlib.sha256(size.to_bytes(8, "big")), 0
    for start, end in clonefile.extents(descriptor, size):
        at = max(at, start // _BLOCK * _BLOCK)
        while at < end:
            data = os.pread(descriptor, min(_CHUNK, size - at), at)
            if not data:
                break
            if data != _ZEROS[: len(data)]:
                for offset in range(0, len(data), _BLOCK):
                    block = data[offset : offset + _BLOCK]
                    if block != _ZEROS[: len(block)]:
                        found.update((at + offset).to_bytes(8, "big") + block)
            at += len(data)
            progress(at)
    return found.hexdigest()
