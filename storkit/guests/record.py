"""The guest record: what a guest is, on any hypervisor. A TOML file beside the inventory, to keep in git."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Boot:
    """How the guest starts: its disk's own boot loader, or a kernel given directly."""

    kernel: str = ""
    """A path, the same on every host; empty: the firmware boots the first disk."""
    initrd: str = ""
    cmdline: str = ""
    firmware: Literal["bios", "uefi"] = "bios"


@dataclass(frozen=True, slots=True)
class Disk:
    """A volume as the guest sees it."""

    volume: str
    target: str = ""
    """The device name in the guest (vda, xvda, sda); empty: the next free one of the hypervisor's kind."""
    bus: Literal["virtio", "scsi", "ide", "sata", "xen"] = "virtio"
    readonly: bool = False
    uuid: str = ""
    """The volume's UUID, which storkit fills in before it renders: the guest sees it as the disk's serial number."""

    @property
    def serial(self) -> str:
        """What the guest sees as serial number: the UUID's first 20 characters, all that virtio-blk carries
        (VIRTIO_BLK_ID_BYTES), as OpenStack Nova does it: /dev/disk/by-id/virtio-SERIAL."""
        return self.uuid[:20]


@dataclass(frozen=True, slots=True)
class Nic:
    """A network card on a bridge of the host; `mac` empty: derived from the guest's UUID and the card's number."""

    bridge: str
    mac: str = ""
    model: str = "virtio"


@dataclass(frozen=True, slots=True)
class Guest:
    """One virtual machine. Sizes in bytes."""

    name: str
    uuid: str
    memory: int
    vcpus: int = 1
    hypervisor: str = "qemu"
    machine: str = ""
    """QEMU's machine type; empty: the hypervisor's default, pinned to its version when the guest first starts."""
    cpu: str = ""
    boot: Boot = field(default_factory=Boot)
    disks: list[Disk] = field(default_factory=list)
    nics: list[Nic] = field(default_factory=list)
    console: str = ""
    """A file on the host that takes the serial console's output; empty: none."""
    extra: list[str] = field(default_factory=list)
    """Further words for the hypervisor, as they are (QEMU arguments, lines of xl.cfg)."""

    def mac(self, number: int) -> str:
        """The MAC address of network card `number`: the one it has, or one derived from the guest's UUID.

        40 bits of a hash, so that thousands of guests do not collide; 52 as its first octet makes it a locally
        administered unicast address (IEEE 802).
        """
        if self.nics[number].mac:
            return self.nics[number].mac
        digest = hashlib.sha256(f"{self.uuid}/{number}".encode()).digest()
        return ":".join(["52", *(f"{octet:02x}" for octet in digest[:5])])
