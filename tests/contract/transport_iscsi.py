"""iSCSI to test, in the lab alone: it is the kernel's at both ends. Of thin volumes, thick ones, and by two paths."""

from __future__ import annotations

from typing import Any

from storkit.core.model import Attachment
from tests.lab import services
from tests.lab.host import Host
from tests.lab.remote import Hosts, LabRig, LabSetup, lab_rig

VG = "vg"


class IscsiThick(LabRig):
    transport, pool = "iscsi", "lvm"

    def prepare(self, host: Host) -> None:
        services.target(host)
        services.iscsid(host)
        host.run(["modprobe", "-a", "dm-mod", "dm-thin-pool"])

    def pool_settings(self, host: Host) -> dict[str, Any]:
        if host.run(["test", "-e", f"/etc/lvm/backup/{VG}"], check=False).status:  # quicker than to ask LVM
            host.run(["vgcreate", "-q", VG, host.add_disk(1 << 30)])
            self.fill(host)
        return {"vg": VG}

    def fill(self, host: Host) -> None:
        """Make what volumes come from."""

    def disconnect(self, attachment: Attachment) -> None:
        self.run(attachment.host, "iscsiadm", "-m", "node", "-T", f"iqn.2026-11.org.storkit:{attachment.uuid}", "-u")


class IscsiThin(IscsiThick):
    def pool_settings(self, host: Host) -> dict[str, Any]:
        settings = super().pool_settings(host)
        if host.run(["test", "-e", f"/dev/mapper/{VG}-thin"], check=False).status:  # another rig has made the group
            IscsiThin.fill(self, host)
        return {**settings, "thinpool": "thin"}

    def fill(self, host: Host) -> None:
        host.run(["lvcreate", "-q", "--type", "thin-pool", "-L", "512M", "-n", "thin", VG])
        # A pool that has had a volume keeps a device-mapper node which a new one has not.
        host.run(["lvcreate", "-q", "-V", "16M", "-n", "first", "--thinpool", "thin", VG])
        host.run(["lvremove", "-q", "-f", f"{VG}/first"])


class IscsiPaths(IscsiThick):
    """Host a listens on both storage networks."""

    def __init__(self, hosts: Hosts) -> None:
        a = hosts.lab.host("a")
        self.settings = {"portals": [a.address("san1"), a.address("san2")]}
        super().__init__(hosts)


def lab_setups() -> dict[str, LabSetup]:
    return {"thin": lab_rig(IscsiThin), "thick": lab_rig(IscsiThick), "paths": lab_rig(IscsiPaths)}
