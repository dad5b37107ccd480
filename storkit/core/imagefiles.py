"""The words about image files, as records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from storkit.core.identities import Count, Line, MaybePath, Word, Words
from storkit.core.model import Secret


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an image file is, and what it will take. Sizes in bytes."""

    source: Line
    format: Word
    """Of the disk image itself: raw, qcow2, vmdk, vpc or vdi."""
    compression: Word
    """gz, xz, zst, or empty."""
    file_size: Count
    virtual_size: Count
    """The size of the disk, in whole sectors."""
    required: Count
    """About what a volume with this content will allocate; 0: not known before it is unpacked."""
    details: dict[Words, Any] = field(default_factory=dict)
    """What qemu-img says of the format."""
    padding: Count = 0
    """Bytes of zeros that make whole sectors of a raw image (`format` was raw)."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file that was written, and its size in bytes."""

    file: Line
    size: Count


@dataclass(frozen=True, slots=True)
class Examined:
    """What all bytes of a volume are, and what is wrong with the files that hold them."""

    checksum: Line
    """`sha256:HEX` of the bytes as a guest reads them; empty: they cannot be read."""
    damage: list[Words] = field(default_factory=list)
    """What `qemu-img check` says is wrong."""


@dataclass(frozen=True, slots=True)
class Inside:
    """What was found in a disk image that makes one machine another than its clones."""

    filesystem: Word
    """Of the root: `ext4` (also ext2 and ext3), which can be changed without mounting it; empty: another, or none."""
    offset: Count = 0
    """Bytes from the start of the disk to the root's file system."""
    has: list[Word] = field(default_factory=list)
    """What is installed in it, of storkit.tech.images.inside.LOOKED_FOR."""
    problem: Line = ""
    """Why the file system cannot be changed offline, if it cannot."""

    @property
    def cloud_init(self) -> bool:
        return "cloud-init" in self.has


@dataclass(frozen=True, slots=True)
class FileToLay:
    """A file to be written into a file system that nobody has mounted."""

    path: MaybePath
    content: Words
    """With `slot`, something of the size that every clone's own content has, to be written over in each clone."""
    mode: Count = 0o644
    slot: bool = False
    absent: bool = False
    """It is not to be there."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Where bytes lie on a disk."""

    offset: Count
    length: Count


@dataclass(frozen=True, slots=True)
class Laid:
    """A file that was laid as a slot, and where its bytes lie on the disk, in the file's order."""

    path: MaybePath
    size: Count
    extents: list[Extent]


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes for a place on a disk, which may hold a key: base64 (RFC 4648)."""

    offset: Count
    data: Secret
