"""Sizes are integers of bytes inside; they are parsed and printed only at the edge."""

from __future__ import annotations

import re

from storkit.core.errors import UsageError

_POWERS = "KMGTPE"
_SIZE = re.compile(
    r"(?P<number>[0-9]+(?:\.[0-9]+)?) ?(?:(?P<power>[KMGTPE])(?P<kind>iB|B)?|(?P<bytes>B))?", re.ASCII | re.IGNORECASE
)
_DIGITS = 40
"""More than any size has; int() itself takes no more than some thousands."""

SECTOR = 512
MAX_SIZE = 2**63 - 1
"""The largest offset of Linux and QEMU (off_t)."""


def parse_size(text: str) -> int:
    """A size in bytes from `10G`, `512 MiB`, `1.5T` or `1073741824B`.

    K, M, G, T, P and E are powers of 1024, with or without `iB` (as for qemu-img and LVM); `KB`, `MB`, `GB` and the
    like are powers of 1000 (IEC 80000-13); upper and lower case are the same. A number without a unit is refused:
    elsewhere it means bytes, sectors or MiB. A disk is whole 512-byte sectors: what is between two is rounded up.

    Raises UsageError: not a size, no unit, zero, negative, or beyond 2^63 - 1 bytes.
    """
    hint = "write a size like 512MiB, 10G or 1.5T"
    shown = repr(text if len(text) <= _DIGITS else text[: _DIGITS - 3] + "...")
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{shown} is not a size", hint)
    whole, _, fraction = match["number"].partition(".")
    if len(match["number"]) > _DIGITS:
        raise UsageError(f"{shown} has more digits than any size", hint)
    if not match["power"] and not match["bytes"]:
        number = match["number"]
        others = f", {whole}B for bytes" if not fraction else ""
        raise UsageError(f"{shown} has no unit", f"write {number}GiB, {number}MiB or the like{others}")
    if match["bytes"] and fraction:
        raise UsageError(f"{shown} is not a size: a byte has no fractions", f"write {whole}B, or {hint[6:]}")
    factor = 1
    if match["power"]:
        power = _POWERS.index(match["power"].upper()) + 1
        factor = 1000**power if (match["kind"] or "").upper() == "B" else 1024**power
    size = int(whole) * factor
    if fraction:
        size += -(-int(fraction) * factor // 10 ** len(fraction))
    size = -(-size // SECTOR) * SECTOR
    if size <= 0:
        raise UsageError(f"{shown} is no size for a disk: it must be above zero", hint)
    if size > MAX_SIZE:
        raise UsageError(f"{shown} is beyond 2^63 - 1 bytes, the largest disk Linux can address", hint)
    return size


def format_size(size: int) -> str:
    """A size for people: `1.5GiB`, exact where it is a whole number of its unit."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1024:
            return f"{size}B" if unit == "B" else f"{value:.1f}".removesuffix(".0") + unit
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + "EiB"


def exact_size(size: int) -> str:
    """A size that can be typed and is exactly this one: `1537MiB`, `513B`."""
    for power in range(len(_POWERS), 0, -1):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{_POWERS[power - 1]}iB"
    return f"{size}B"
