"""Checksums of files, as sha256sum(1) and sha512sum(1) make them."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from storkit.core.backend import Site
from storkit.core.errors import UsageError

_DIGITS = {"sha256": 64, "sha512": 128}
_CHUNK = 1 << 20


def parse(checksum: str) -> tuple[str, str] | None:
    """Algorithm and hexadecimal digits of `ALGORITHM:HEX`; None for an empty text. Raises UsageError."""
    if not checksum:
        return None
    name, _, value = checksum.partition(":")
    value = value.strip().lower()
    if name not in _DIGITS or len(value) != _DIGITS[name] or not re.fullmatch(r"[0-9a-f]+", value):
        raise UsageError(f"{checksum!r} is not a checksum", "write sha256:HEX or sha512:HEX, as by sha256sum FILE")
    return name, value


def verify(site: Site, path: Path, file: int, name: str, wanted: str) -> None:
    """Compare an open file with a checksum; `path` is for messages. Raises UsageError: it has another."""
    size = max(1, os.lseek(file, 0, os.SEEK_END))
    digest = hashlib.new(name)
    offset = 0
    while piece := os.pread(file, _CHUNK, offset):
        digest.update(piece)
        offset += len(piece)
        if offset % (64 * _CHUNK) == 0:
            site.progress(0.0, f"checksum of {path.name}: {100 * offset // size}%")
    if digest.hexdigest() != wanted:
        found = f"{name}:{digest.hexdigest()}"
        raise UsageError(f"{path} has the checksum {found}, not {name}:{wanted}", "get the file again")
