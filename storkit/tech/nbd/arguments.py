"""The arguments of the storage daemons that serve a volume (qemu-storage-daemon(1))."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from storkit.core.errors import UsageError
from storkit.core.model import Volume
from storkit.system import files
from storkit.tech.nbd import wire

FOREVER = 10 * 365 * 86400
"""Seconds that I/O is held for a server that went away: a guest stalls, and goes on when it is back."""


def image_node(volume: Volume, node: str, cache: str, aio: str) -> dict[str, Any]:
    """The --blockdev of a volume's image (qemu-storage-daemon(1)). Images and snapshots are opened for reading only.

    QEMU's own locks would let every other QEMU write a raw image: the server inherits better ones (imagelocks).
    """
    frozen = volume.kind != "disk"
    rights: dict[str, Any] = {"read-only": frozen, "auto-read-only": not frozen, "discard": "unmap"}
    rights["cache"] = {"direct": cache == "none", "no-flush": False}
    block = files.is_device(Path(volume.path))
    file = {"driver": "host_device" if block else "file", "filename": volume.path, "locking": "off", "aio": aio}
    return {"driver": volume.format, "node-name": node, **rights, "file": {**file, **rights}}


def front_arguments(socket: Path, inner: wire.ExportInfo) -> list[str]:
    """The arguments of a front that passes one export on, with its name, description and rights."""
    node = {
        "driver": "nbd",
        "node-name": "inner",
        "server": {"type": "unix", "path": str(socket)},
        "export": inner.name,
        # A server that died comes back under the same socket: until then its clients wait instead of failing.
        "reconnect-delay": FOREVER,
        "read-only": not inner.writable,
        "discard": "unmap",
    }
    export = {
        "type": "nbd",
        "id": "outer",
        "node-name": "inner",
        "name": inner.name,
        "writable": inner.writable,
        "description": inner.description,
    }
    return ["--blockdev", json.dumps(node), "--export", json.dumps(export)]


def x509_authorization(client: str) -> dict[str, Any]:
    """Let in only the certificate whose common name is `client`, wherever it stands in the subject (RFC 4514)."""
    if not all(letter.isalnum() or letter in "._-" for letter in client):
        raise UsageError(f"host {client!r} cannot be the common name of a certificate", "use the psk method of nbd")
    subjects = [f"CN={client}", f"CN={client},*", f"*,CN={client}", f"*,CN={client},*"]
    rules = [{"match": subject, "policy": "allow", "format": "glob"} for subject in subjects]
    return {"qom-type": "authz-list", "id": "authz0", "policy": "deny", "rules": rules}


def check_x509(directory: Path, files: tuple[str, ...]) -> None:
    """Raise UsageError if one of the credential's files is missing."""
    missing = [name for name in files if not (directory / name).is_file()]
    if missing:
        raise UsageError(f"nbd: tls_dir {directory} has no {', '.join(missing)}", "make them with certtool(1)")
