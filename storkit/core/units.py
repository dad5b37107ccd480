"""Sizes are integers of bytes inside; they are parsed and printed only at the edge."""

from __future__ import annotations

import re

from storkit.core.errors import UsageError

_BINARY = "KMGTPE"
_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?) ?(?P<unit>[KMGTPEkmgtpe](?:iB|B|b)?|[bB])?", re.ASCII)

SECTOR = 512
MAX_SIZE = 2**63 - 1
"""The largest offset of Linux and QEMU (off_t)."""


def parse_size(text: str) -> int:
    """A size in bytes from `10G`, `512 MiB`, `1.5T` or `1073741824`.

    K, M, G, T, P and E are powers of 1024 (as for qemu-img and LVM), with or without `iB`; `GB` and the like are
    powers of 1000 (IEC 80000-13). A disk is whole 512-byte sectors, so a fraction is rounded up to one.

    Raises UsageError: not a size, zero, negative, or beyond 2^63 - 1 bytes.
    """
    hint = "write a size like 512MiB, 10G or 1.5T"
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a size", hint)
    unit = match["unit"] or ""
    factor = 1
    if unit and unit not in "bB":
        power = _BINARY.index(unit[0].upper()) + 1
        factor = 1000**power if unit[1:] == "B" else 1024**power
    whole, _, fraction = match["number"].partition(".")
    size = int(whole) * factor
    if fraction:
        size += -(-int(fraction) * factor // 10 ** len(fraction))
    size = -(-size // SECTOR) * SECTOR
    if size <= 0:
        raise UsageError(f"{text!r} is no size for a disk: it must be above zero", hint)
    if size > MAX_SIZE:
        raise UsageError(f"{text!r} is beyond 2^63 - 1 bytes, the largest disk Linux can address", hint)
    return size


def format_size(size: int) -> str:
    """A size for people: `1.5GiB`, exact where it is a whole number of its unit."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1024:
            return f"{size}B" if unit == "B" else f"{value:.1f}".removesuffix(".0") + unit
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + "EiB"
