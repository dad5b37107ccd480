"""What libvirt and its QEMU can do on one host, and which disks they can open."""

from __future__ import annotations

import os
import re
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from storkit.core.errors import CommandFailed, StorkitError, Unsupported
from storkit.core.guest import Guest
from storkit.core.model import DiskSource
from storkit.hypervisors._libvirt.virsh import Virsh
from storkit.system import acl

CONFIGURATION = Path("/etc/libvirt/qemu.conf")
NBD_CERTIFICATES = Path("/etc/pki/libvirt-nbd")
CERTIFICATES = Path("/etc/pki/qemu")


@dataclass(frozen=True, slots=True)
class Offered:
    """What libvirt offers for one machine type."""

    virttype: str
    """kvm or qemu, the domain's type."""
    machine: str
    """The versioned machine type."""


def offered(virsh: Virsh, machine: str, accel: str) -> Offered:
    """How a guest of a machine type would run here; `accel` empty: with KVM where the host has it.

    Raises Unsupported: there is no such machine type, or accelerator.
    """
    virttype = {"tcg": ["--virttype", "qemu"], "kvm": ["--virttype", "kvm"]}.get(accel, [])
    try:
        return parse_offered(virsh("domcapabilities", "--machine", machine, *virttype))
    except CommandFailed as error:
        if "failed to connect" in error.stderr:
            raise
        reason = error.stderr.splitlines()[-1].removeprefix("error: ")
        raise Unsupported(f"libvirt here has no machine type {machine!r}: {reason}", "virsh capabilities") from None


def parse_offered(xml: str) -> Offered:
    """`virsh domcapabilities` (libvirt.org/formatdomaincaps.html)."""
    root = ET.fromstring(xml)
    return Offered(root.findtext("domain", ""), root.findtext("machine", ""))


def processor_problem(virsh: Virsh, cpu: str, offer: Offered) -> str:
    """Why this host cannot show a guest the named processor model, as libvirt's own comparison says it."""
    if cpu in ("", "host", "host-model"):
        return ""
    with tempfile.NamedTemporaryFile("w", suffix=".xml", prefix="storkit-cpu-") as file:
        file.write(f'<cpu mode="custom" match="exact"><model>{escape(cpu)}</model></cpu>')
        file.flush()
        words = ["hypervisor-cpu-compare", file.name, "--virttype", offer.virttype, "--machine", offer.machine]
        try:
            virsh(*words, "--error")
        except CommandFailed as error:
            return error.stderr.splitlines()[-1].removeprefix("error: ")
    return ""


def qemu_user(virsh: Virsh, sources: Sequence[DiskSource]) -> int:
    """The user that has to reach the files and sockets of these disks: libvirt's QEMU; root where there are none."""
    return parse_user(virsh("capabilities")) if any(_path(source) for source in sources) else 0


def let_in(user: int, sources: Sequence[DiskSource], own: Sequence[Path]) -> None:
    """Open those of storkit's `own` directories, which only root enters, that lead to disks' files: to libvirt's QEMU
    user, and nobody else."""
    files = [Path(source.path) for source in sources if source.kind == "file"]
    for directory in dict.fromkeys(one for file in files for one in _directories(file)):
        if user and any(directory.is_relative_to(one) for one in own) and not acl.may_search(directory, user):
            acl.let_search(directory, user)


def variables(guest: Guest | None) -> str:
    """What `virsh undefine` is to do with UEFI variables: those that libvirt made for a record of storkit's go with it.
    A document's are its administrator's. Those that are a volume stay: libvirt would remove its file or node."""
    own = guest is not None and not guest.document and all(disk.bus != "flash" for disk in guest.disks)
    return "--nvram" if own else "--keep-nvram"


def disk_problems(user: int, sources: Sequence[DiskSource]) -> list[StorkitError]:
    """The disks that libvirt's QEMU, which runs as `user`, could not open here, each with what to do about it."""
    problems: list[StorkitError] = []
    if any(source.tls == "x509" for source in sources):
        taken = nbd_certificates(CONFIGURATION.read_text() if CONFIGURATION.exists() else "")
        problems += [
            Unsupported(
                f"libvirt opens NBD disks with the certificates in {taken} alone, not with those in {source.tls_dir}",
                f'write tls_dir = "{taken}" in [transports.nbd], or attach the disk as a block device',
            )
            for source in sources
            if source.tls == "x509" and Path(source.tls_dir) != taken
        ]
    for path in filter(None, map(_path, sources)):
        if closed := closed_to(user, path):
            problems.append(
                Unsupported(
                    f"libvirt runs QEMU as user {user}, who cannot enter {closed} to open {path}",
                    f"attach the disk as a block device, or set user and group in {CONFIGURATION}",
                )
            )
    return problems


def nbd_certificates(configuration: str) -> Path:
    """Where libvirt's QEMU finds its certificates for NBD, by qemu.conf and the defaults that it documents."""
    for key in ("nbd_tls_x509_cert_dir", "default_tls_x509_cert_dir"):
        found = re.search(rf'^\s*{key}\s*=\s*"([^"]+)"', configuration, re.MULTILINE)
        if found:
            return Path(found[1])
    return NBD_CERTIFICATES if NBD_CERTIFICATES.is_dir() else CERTIFICATES


def parse_user(xml: str) -> int:
    """The user that libvirt runs QEMU as, from `virsh capabilities`: the label of its DAC security model."""
    for model in ET.fromstring(xml).findall("host/secmodel"):
        if model.findtext("model") == "dac":
            label = next((label.text or "" for label in model.findall("baselabel")), "")
            return int(label.lstrip("+").partition(":")[0] or 0)
    return os.geteuid()


def closed_to(user: int, path: Path) -> Path | None:
    """The first directory on the way to a path that a user cannot enter, groups left aside; None: there is none."""
    for directory in _directories(path) if user else []:
        try:
            if not acl.may_search(directory, user):
                return directory
        except OSError:
            return directory
    return None


def _path(source: DiskSource) -> Path | None:
    """The file or socket that QEMU opens by itself; libvirt gives it block devices."""
    return Path(source.socket or source.path) if source.socket or source.kind == "file" else None


def _directories(path: Path) -> list[Path]:
    """Those above a path, and above what it leads to."""
    above = [*reversed(path.absolute().parents), *reversed(Path(os.path.realpath(path)).parents)]
    return list(dict.fromkeys(above))
