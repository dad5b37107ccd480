"""The guest record: what a guest is, on any hypervisor. A TOML file beside the inventory, to keep in git."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from storkit.core.identities import (
    Address,
    Base64,
    Count,
    GuestName,
    Hex,
    Line,
    Mac,
    MaybeUuid,
    Uuid,
    VolumeName,
    Word,
    Words,
)
from storkit.core.model import DiskSource, Finding, Secrets


@dataclass(frozen=True, slots=True)
class Boot:
    """How the guest starts: its disk's own boot loader, or a kernel given directly."""

    kernel: Line = ""
    """A path, the same on every host; empty: the firmware boots the first disk."""
    initrd: Line = ""
    cmdline: Line = ""
    firmware: Literal["bios", "uefi"] = "bios"


@dataclass(frozen=True, slots=True)
class Root:
    """A tree that the guest mounts as its root, by NFS, from its own address."""

    volume: VolumeName
    address: Line
    """The guest's IPv4 address with its network's prefix, as 10.0.1.50/24: the tree is exported to it alone."""
    gateway: Line = ""
    options: Line = "vers=4.2,tcp"
    """Mount options, nfs(5)."""
    uuid: MaybeUuid = ""
    """The volume's UUID: which storkit fills in, as the following."""
    server: Line = ""
    """The address of the server; empty: that of the volume's home host in the inventory."""
    path: Line = ""

    @property
    def host(self) -> str:
        """The address without the prefix."""
        return self.address.partition("/")[0]

    def words(self, name: str, uuid: str) -> list[str]:
        """The words of the kernel's command line for a guest of this name and UUID
        (Documentation/admin-guide/nfs/nfsroot.rst).

        Clients that give the server one name take each other's locks, so it is made of more than the host name
        (Documentation/filesystems/nfs/client-identifier.rst).
        """
        from ipaddress import IPv4Interface

        netmask = IPv4Interface(self.address).netmask
        return [
            "root=/dev/nfs",
            f"nfsroot={self.server}:{self.path},{self.options}",
            f"ip={self.host}:{self.server}:{self.gateway}:{netmask}:{name}::off",
            f"nfs.nfs4_unique_id={uuid}",
            "rw",
        ]


@dataclass(frozen=True, slots=True)
class Disk:
    """A volume as the guest sees it."""

    volume: VolumeName
    target: Line = ""
    """The device name in the guest (vda, xvda, sda); empty: the next free one of the hypervisor's kind."""
    bus: Literal["virtio", "scsi", "ide", "sata", "xen", "flash"] = "virtio"
    """flash: the memory in which UEFI keeps its variables, which is as large as the volume."""
    readonly: bool = False
    uuid: MaybeUuid = ""
    """The volume's UUID, which storkit fills in before it renders: the guest sees it as the disk's serial number."""

    @property
    def serial(self) -> str:
        """What the guest sees as serial number: the UUID's first 20 characters, all that virtio-blk carries
        (VIRTIO_BLK_ID_BYTES), as OpenStack Nova does it: /dev/disk/by-id/virtio-SERIAL."""
        return self.uuid[:20]


@dataclass(frozen=True, slots=True)
class Nic:
    """A network card; `mac` empty: derived from the guest's UUID and the card's number."""

    bridge: Line = ""
    """The bridge of the host that it is on, where `kind` is bridge."""
    mac: Line = ""
    model: Line = "virtio"
    kind: Literal["bridge", "user", "group"] = "bridge"
    """user: QEMU's own network towards the outside, with a port of the host's loopback that leads to the guest's SSH.
    group: a network between guests of one host, by multicast on its loopback. Neither needs root."""
    group: Line = ""
    """ADDRESS:PORT of the multicast group, where `kind` is group."""


@dataclass(frozen=True, slots=True)
class Guest:
    """One virtual machine. Sizes in bytes."""

    name: GuestName
    uuid: Uuid
    memory: int
    vcpus: int = 1
    hypervisor: Word = "qemu"
    machine: Word = ""
    """QEMU's machine type; empty: the hypervisor's default, pinned to its version when the guest first starts."""
    cpu: Line = ""
    boot: Boot = field(default_factory=Boot)
    root: Root | None = None
    disks: list[Disk] = field(default_factory=list)
    nics: list[Nic] = field(default_factory=list)
    console: Line = ""
    """A file on the host that takes the serial console's output; empty: none."""
    agent: bool = False
    """It has a channel for the QEMU guest agent, where its hypervisor has such a thing. New guests have it; one from
    before there was any has none, and gets none by being migrated."""
    extra: list[Line] = field(default_factory=list)
    """Further words for the hypervisor, as they are (QEMU arguments, lines of xl.cfg)."""
    document: Words = ""
    """The guest's own configuration, in its hypervisor's language: the truth, of which storkit changes where the disks
    are and nothing else. What else stands here is what it says. Empty: templates make the configuration."""
    local: list[Line] = field(default_factory=list)
    """What the document opens of which each host has its own, by the names that it has there. All else is a volume."""

    @property
    def cmdline(self) -> str:
        """The kernel's command line: the guest's own, then what mounts its root. An `ip=` of its own stays."""
        own = self.boot.cmdline.split()
        words = self.root.words(self.name, self.uuid) if self.root else []
        if any(word.startswith("ip=") for word in own):
            words = [word for word in words if not word.startswith("ip=")]
        return " ".join(filter(None, [self.boot.cmdline, *words]))

    def mac(self, number: int) -> str:
        """The MAC address of network card `number`: the one it has, or one derived from the guest's UUID."""
        return self.nics[number].mac or derived_mac(self.uuid, number)


@dataclass(frozen=True, slots=True)
class TakenGuest:
    """A guest that its hypervisor has already, and that becomes storkit's."""

    guest: Guest
    disks: list[DiskSource]
    """In the order of the guest's disks; none: nobody else may open what it has open."""
    secrets: Secrets = None
    """The passwords that its document has names in the place of, by these."""


@dataclass(frozen=True, slots=True)
class Console:
    """How a person gets at the serial console of a guest, on the host where it runs."""

    kind: Literal["socket", "program"]
    """A Unix socket, which has the console's bytes in both directions; or a program for a terminal."""
    words: list[Line]
    """The socket's path, or the program and its arguments."""


@dataclass(frozen=True, slots=True)
class Executed:
    """What a command left that ran inside a guest, as the guest's agent says."""

    name: GuestName
    """The guest's."""
    status: Count
    """Its exit status."""
    signal: Count = 0
    """The signal that ended it; 0: none did."""
    stdout: Base64 = ""
    stderr: Base64 = ""
    cut: list[Literal["stdout", "stderr"]] = field(default_factory=list)
    """Of what there was more than the agent keeps."""


@dataclass(frozen=True, slots=True)
class GuestCard:
    """A network card with its addresses, as the guest itself says."""

    device: Line
    """The guest's own name of it."""
    mac: Mac
    addresses: list[Address]


@dataclass(frozen=True, slots=True)
class Frozen:
    """Whether the file systems of a guest stand still, and if not, why."""

    name: GuestName
    systems: Count
    """How many do."""
    why: Words = ""


@dataclass(frozen=True, slots=True)
class KeptGuest:
    """What a pool keeps of a guest beside the first volume that it writes: one generation of its record and document.

    Once another host has said it, it is data: who reads it as a guest checks it as an import is checked.
    """

    volume: VolumeName
    uuid: Uuid
    """The volume's."""
    name: GuestName
    guest: Uuid
    generation: Count
    """From 1 on, one more each time that it is changed."""
    hypervisor: Word = ""
    record: Words = ""
    """The text of the guest's file (TOML)."""
    document: Words = ""
    gone: bool = False
    """The guest was deleted: it has no texts any more, and the next one that has the volume goes on counting."""
    by: Line = ""
    """Who has kept it, by their own word."""
    since: Line = ""
    digest: Hex = ""
    """SHA-256 of the texts, which stays where they are left out."""


@dataclass(frozen=True, slots=True)
class KeptHere:
    """The guests that a pool keeps, without their texts, and what is wrong with others."""

    guests: list[KeptGuest]
    damaged: list[Finding] = field(default_factory=list)


def digest_of(record: str, document: str) -> str:
    """What the texts of a guest are compared by."""
    import hashlib

    return hashlib.sha256(b"\0".join(text.encode(errors="surrogatepass") for text in (record, document))).hexdigest()


def derived_mac(uuid: str, number: int) -> str:
    """A MAC address for a guest's network card `number`.

    40 bits of a hash, so that thousands of guests do not collide; 52 as its first octet makes it a locally administered
    unicast address (IEEE 802).
    """
    import hashlib  # it loads OpenSSL, which an agent has no other use for

    digest = hashlib.sha256(f"{uuid}/{number}".encode()).digest()
    return ":".join(["52", *(f"{octet:02x}" for octet in digest[:5])])


def derived_serial(uuid: str, number: int) -> str:
    """A serial number for a guest's disk `number`, as long as virtio-blk carries."""
    import hashlib

    return hashlib.sha256(f"{uuid}/disk/{number}".encode()).hexdigest()[:20]
