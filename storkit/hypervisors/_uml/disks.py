"""What User-Mode Linux opens as a disk: a raw file or a device, as it is; everything else by way of FUSE.

A qemu-storage-daemon of the guest's own (qemu-storage-daemon(1), --export type=fuse) opens an NBD export or an image as
QEMU would, and shows it as a raw file. So a guest has its disk by every transport, with the rights that the storage
side gives its host.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storkit.core.guest import Disk, Guest
from storkit.core.model import DiskSource
from storkit.guests.quoting import quote_json, quote_option

RECONNECT = 300
"""Seconds in which a server that went away is tried again before the guest's requests fail, as for QEMU's guests."""


def opened_by_itself(source: DiskSource) -> bool:
    """Whether User-Mode Linux opens this disk without help."""
    return source.kind != "network" and source.format == "raw"


def shown(directory: Path, sources: Sequence[DiskSource]) -> list[DiskSource]:
    """The disks as the guest's kernel has them: those that it cannot open are files of `directory`."""
    return [
        source if opened_by_itself(source) else DiskSource("file", str(mountpoint(directory, number)))
        for number, source in enumerate(sources)
    ]


def mountpoint(directory: Path, number: int) -> Path:
    """Where disk `number` is shown. The file is empty: what is in it only the guest's own processes see."""
    return directory / f"disk{number}"


def daemon_arguments(directory: Path, guest: Guest, sources: Sequence[DiskSource]) -> list[str]:
    """The arguments of the daemon that shows a guest's disks; none: it needs no daemon."""
    words: list[str] = []
    for number, (disk, source) in enumerate(zip(guest.disks, sources, strict=True)):
        if not opened_by_itself(source):
            words += _show(mountpoint(directory, number), f"disk{number}", disk, source)
    return words


def _show(path: Path, node: str, disk: Disk, source: DiskSource) -> list[str]:
    words: list[str] = []
    if source.tls:
        user = f",username={quote_option(source.tls_user)}" if source.tls == "psk" and source.tls_user else ""
        verify = ",verify-peer=on" if source.tls == "x509" else ""
        directory = quote_option(source.tls_dir)
        words += ["--object", f"tls-creds-{source.tls},id=tls-{node},endpoint=client,dir={directory}{verify}{user}"]
    rights = {"read-only": disk.readonly, "discard": "unmap"}
    image = {"driver": source.format, "node-name": node, **rights, "file": {**_protocol(source, node), **rights}}
    # Nobody but the guest's processes is to read it; and it is as long as the volume.
    export = {"type": "fuse", "id": node, "node-name": node, "mountpoint": str(path), "writable": not disk.readonly,
              "growable": False, "allow-other": "off"}  # fmt: skip
    return [*words, "--blockdev", quote_json(image), "--export", quote_json(export)]


def _protocol(source: DiskSource, node: str) -> dict[str, Any]:
    if source.kind == "block":
        return {"driver": "host_device", "filename": source.path}
    if source.kind == "file":
        return {"driver": "file", "filename": source.path, "locking": "on"}
    where = (
        {"type": "unix", "path": source.socket}
        if source.socket
        else {"type": "inet", "host": source.server, "port": str(source.port), "keep-alive": True}
    )
    said = {"driver": source.protocol, "export": source.export, "server": where, "reconnect-delay": RECONNECT}
    return {**said, "tls-creds": f"tls-{node}"} if source.tls else said
