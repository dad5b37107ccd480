"""What the reader of a format (libvirt XML, xl.cfg, a QEMU command line) has found of a guest, and of its disks."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

from storkit.core.errors import StorkitError, UsageError
from storkit.core.guest import Boot, Disk, Nic
from storkit.core.model import DiskSource

MOST_DISKS = 256


@dataclass(slots=True)
class GuestDraft:
    """What a format's reader has found so far."""

    name: str = ""
    uuid: str = ""
    memory: int = 0
    vcpus: int = 1
    hypervisor: str = ""
    machine: str = ""
    cpu: str = ""
    boot: Boot = field(default_factory=Boot)
    disks: list[tuple[Disk, DiskSource]] = field(default_factory=list)
    nics: list[Nic] = field(default_factory=list)
    console: str = ""
    extra: list[str] = field(default_factory=list)
    warned: dict[str, None] = field(default_factory=dict)
    refused: list[StorkitError] = field(default_factory=list)
    """What no record can be made of."""

    @property
    def warnings(self) -> list[str]:
        """What was not understood, each once."""
        return list(self.warned)

    def warn(self, text: str) -> None:
        self.warned[text] = None

    def add_disk(self, source: DiskSource, target: str = "", bus: str = "virtio", readonly: bool = False) -> None:
        """Add a disk. Its target is kept only where it is not the one it would get anyway."""
        if len(self.disks) == MOST_DISKS:
            raise UsageError(f"the guest has more than {MOST_DISKS} disks", "check what the file is")
        if bus not in ("virtio", "scsi", "ide", "sata", "xen"):
            self.warn(f"disk {source.uri}: bus {bus} becomes virtio")
            bus = "virtio"
        if target and not re.fullmatch(r"(?:vd|xvd|sd|hd)[a-z]{1,2}", target):
            self.warn(f"disk {source.uri}: target {target} is not kept")
            target = ""
        self.disks.append((Disk("", target, bus, readonly), source))  # type: ignore[arg-type]


def path_source(path: str, format: str) -> DiskSource:
    """A local path as a disk source: what lies below /dev is a device."""
    return DiskSource("block" if path.startswith("/dev/") else "file", path, format)


def uri_source(uri: str, format: str = "raw") -> DiskSource | None:
    """An NBD URI, or QEMU's older nbd:HOST:PORT:exportname=NAME (qemu(1)), as a disk source; None for any other."""
    old = re.fullmatch(r"nbd:(?:unix:(?P<socket>[^:]+)|(?P<host>[^:\[\]]+|\[[^]]+\]):(?P<port>\d+))"
                       r"(?::exportname=(?P<export>.*))?", uri)  # fmt: skip
    if old:
        host = (old["host"] or "").strip("[]")
        export = old["export"] or ""
        return DiskSource("network", "", format, "nbd", export, old["socket"] or "", host, int(old["port"] or 0))
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        return None
    scheme, _, transport = parts.scheme.partition("+")
    if scheme not in ("nbd", "nbds") or transport not in ("", "unix", "tcp"):
        return None
    socket = parse_qs(parts.query).get("socket", [""])[0] if transport == "unix" else ""
    export = unquote(parts.path.removeprefix("/"))
    host = "" if socket else parts.hostname or ""
    tls: Literal["", "x509"] = "x509" if scheme == "nbds" else ""
    return DiskSource("network", "", format, "nbd", export, socket, host, 0 if socket else port or 10809, tls)
