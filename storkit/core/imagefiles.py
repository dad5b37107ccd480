"""The words about image files, as records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from storkit.core.identities import Count, Line, Word, Words


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
