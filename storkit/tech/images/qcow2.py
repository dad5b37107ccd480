"""qcow2 headers, read and written without starting a program (QEMU: docs/interop/qcow2.txt).

Writing one costs a few system calls, against some 10 ms for `qemu-img create`; reading one first is what keeps
hostile images away from qemu-img.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

MAGIC = b"QFI\xfb"
CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
MAX_SIZE = 2 << 50
"""The largest disk with 64 KiB clusters: QEMU reads L1 tables up to 32 MiB."""
BACKING_NAME_MAX = 1023

DIRTY, CORRUPT, DATA_FILE, COMPRESSION, EXTENDED_L2 = (1 << bit for bit in range(5))
"""Incompatible feature bits."""
KNOWN_FEATURES = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_EXTENSION = struct.Struct(">II")
_END, _BACKING_FORMAT, _DATA_FILE_NAME, _CRYPTO = 0, 0xE2792ACA, 0x44415441, 0x0537BE77


@dataclass(frozen=True, slots=True)
class Header:
    """What the first cluster of a qcow2 file says. Offsets and `size` (of the disk) in bytes."""

    version: int
    size: int
    cluster_bits: int
    encryption: int
    l1_entries: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    snapshots: int
    snapshots_offset: int
    incompatible: int = 0
    refcount_order: int = 4
    backing: str = ""
    backing_format: str = ""
    data_file: str = ""
    encrypted: bool = False

    @property
    def l1_needed(self) -> int:
        """The L1 entries that a disk of this size must have."""
        entry_bits = 4 if self.incompatible & EXTENDED_L2 else 3
        span = 1 << (2 * self.cluster_bits - entry_bits)
        return -(-self.size // span)


def parse(head: bytes) -> Header:
    """The header at the start of a file, of which `head` is at least the first cluster (or all there is).

    Raises ValueError with the reason: it is not one, or it contradicts itself.
    """
    if len(head) < _V2.size or head[:4] != MAGIC:
        raise ValueError("no qcow2 header")
    fields = _V2.unpack_from(head)[1:]
    version, backing_offset, backing_length, bits, size, crypt, l1, l1_offset, ref, ref_clusters, snaps, snaps_at = (
        fields
    )
    if version not in (2, 3):
        raise ValueError(f"qcow2 version {version}")
    if not 9 <= bits <= 21:
        raise ValueError(f"clusters of 2^{bits} bytes")
    incompatible, order, length = 0, 4, _V2.size
    if version == 3:
        if len(head) < _V2.size + _V3.size:
            raise ValueError("the header is cut short")
        incompatible, _, _, order, length = _V3.unpack_from(head, _V2.size)
        if length < _V2.size + _V3.size or length > min(len(head), 1 << bits) or length % 8:
            raise ValueError(f"a header of {length} bytes")
        if order > 6:
            raise ValueError(f"refcounts of 2^{order} bits")
    backing = ""
    if backing_offset:
        if not 0 < backing_length <= BACKING_NAME_MAX or backing_offset + backing_length > min(len(head), 1 << bits):
            raise ValueError("the backing file's name lies outside of the header")
        backing = head[backing_offset : backing_offset + backing_length].decode(errors="replace")
    extensions = _extensions(head, length, backing_offset or min(len(head), 1 << bits))
    return Header(
        version=version,
        size=size,
        cluster_bits=bits,
        encryption=crypt,
        l1_entries=l1,
        l1_offset=l1_offset,
        refcount_offset=ref,
        refcount_clusters=ref_clusters,
        snapshots=snaps,
        snapshots_offset=snaps_at,
        incompatible=incompatible,
        refcount_order=order,
        backing=backing,
        backing_format=extensions.get(_BACKING_FORMAT, b"").decode(errors="replace"),
        data_file=extensions.get(_DATA_FILE_NAME, b"").decode(errors="replace"),
        encrypted=bool(crypt) or _CRYPTO in extensions,
    )


_HOST = 0x00FFFFFFFFFFFE00
"""The host offset in an entry of an L1 or L2 table."""
_IS_COMPRESSED, _IS_ZERO = 1 << 62, 1


def data_end(header: Header, read: Callable[[int, int], bytes]) -> int:
    """Where the data that the L2 tables speak of ends, in bytes from the start of the file that `read(offset, length)`
    reads. Compressed data is counted in sectors of 512 bytes, and the last cluster of a disk as far as the disk goes.
    """
    cluster, extended = 1 << header.cluster_bits, bool(header.incompatible & EXTENDED_L2)
    width = 62 - (header.cluster_bits - 8)
    span = cluster // (16 if extended else 8) * cluster
    end = 0
    for number, (entry,) in enumerate(struct.iter_unpack(">Q", read(header.l1_offset, header.l1_needed * 8))):
        if not entry & _HOST:
            continue
        table = read(entry & _HOST, cluster)
        for index, fields in enumerate(struct.iter_unpack(">QQ" if extended else ">Q", table)):
            word = fields[0]
            if word & _IS_COMPRESSED:
                sectors = (word & (_IS_COMPRESSED - 1)) >> width
                end = max(end, (word & ((1 << width) - 1) & ~511) + (sectors + 1) * 512)
            elif word & _HOST and (extended or not word & _IS_ZERO):
                end = max(end, (word & _HOST) + min(cluster, header.size - number * span - index * cluster))
    return end


def _extensions(head: bytes, start: int, end: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    position = start
    while position + _EXTENSION.size <= end:
        kind, length = _EXTENSION.unpack_from(head, position)
        position += _EXTENSION.size
        if kind == _END:
            return found
        if length > end - position:
            raise ValueError(f"header extension {kind:#x} is longer than the header")
        found[kind] = head[position : position + length]
        position += -(-length // 8) * 8
    return found


@dataclass(frozen=True, slots=True)
class Layout:
    """An empty qcow2 file: the pieces to write, and its length; all else is zeros."""

    pieces: tuple[tuple[int, bytes], ...]
    length: int

    def write(self, descriptor: int) -> None:
        """Write it to an open, empty file. Raises OSError (ENOSPC)."""
        for offset, piece in self.pieces:
            if os.pwrite(descriptor, piece, offset) != len(piece):
                raise OSError(28, os.strerror(28))
        os.ftruncate(descriptor, self.length)


def empty(size: int, backing: str = "", backing_format: str = "") -> Layout:
    """The layout of a disk of `size` bytes that reads as its backing file, or as zeros.

    Version 3, 64 KiB clusters, 16-bit refcounts: header, refcount table, refcount block, L1 table, as by
    `qemu-img create`. Raises ValueError: beyond MAX_SIZE, or a backing name that is too long.
    """
    name = backing.encode()
    if not 0 < size <= MAX_SIZE:
        raise ValueError(f"qcow2 with 64 KiB clusters cannot hold {size} bytes")
    if len(name) > BACKING_NAME_MAX:
        raise ValueError("the backing file's name is too long for qcow2")
    extensions = b""
    if backing:
        kind = backing_format.encode()
        extensions += _EXTENSION.pack(_BACKING_FORMAT, len(kind)) + kind.ljust(-(-len(kind) // 8) * 8, b"\0")
    extensions += _EXTENSION.pack(_END, 0)
    length = _V2.size + _V3.size
    l1_entries = -(-size // (CLUSTER * CLUSTER // 8))
    l1_clusters = -(-l1_entries * 8 // CLUSTER)
    fixed = _V2.pack(
        MAGIC, 3, length + len(extensions) if name else 0, len(name), CLUSTER_BITS, size, 0,
        l1_entries, 3 * CLUSTER, CLUSTER, 1, 0, 0,
    )  # fmt: skip
    header = fixed + _V3.pack(0, 0, 0, 4, length) + extensions + name
    refcounts = struct.pack(">H", 1) * (3 + l1_clusters)
    pieces = ((0, header), (CLUSTER, struct.pack(">Q", 2 * CLUSTER)), (2 * CLUSTER, refcounts))
    return Layout(pieces, (3 + l1_clusters) * CLUSTER)
