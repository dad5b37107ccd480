"""NVMe/TCP to test: in the lab, over a directory of logical volumes, with keys and on a trusted network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from storkit.core.model import Attachment
from storkit.tech.nvme.names import TRUSTED
from tests.contract.transport_iscsi import IscsiThin
from tests.lab.host import Host
from tests.lab.remote import LabSetup, lab_rig

_FIND = 'grep -lx "$1" /sys/class/nvme/nvme*/subsysnqn'
_DELETE = f"for f in $({_FIND}); do echo 1 >${{f%subsysnqn}}delete_controller; done"


class NvmeThin(IscsiThin):
    """The same pool as iSCSI's."""

    transport = "nvme"

    def prepare(self, host: Host) -> None:
        modules = ["nvmet", "nvmet-tcp", "nvme-tcp", "dm-mod", "dm-flakey", "dm-thin-pool"]
        host.run(["modprobe", "-a", *modules])

    def disconnect(self, attachment: Attachment) -> None:
        nqn = f"nqn.2026-11.org.storkit:{attachment.uuid}:{attachment.host}"
        self.run(attachment.host, "sh", "-c", _DELETE, "sh", nqn)


class NvmeTrusted(NvmeThin):
    settings: Mapping[str, Any] = {"trusted_network": TRUSTED}


def lab_setups() -> dict[str, LabSetup]:
    return {"chap": lab_rig(NvmeThin), "trusted": lab_rig(NvmeTrusted)}
