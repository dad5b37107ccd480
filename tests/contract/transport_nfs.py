"""NFS between hosts of the lab: a serves, and mounts its own exports as b does."""

from __future__ import annotations

from storkit.core.model import Attachment
from tests.lab.host import Host
from tests.lab.remote import LabRig, LabSetup, lab_rig

# The shortest grace period that the kernel takes: after a restart the server lets clients open files when it has ended.
NFS_CONF = """\
[nfsd]
grace-time=10
lease-time=10
threads=8
vers3=n
"""


class NfsRig(LabRig):
    transport = "nfs"
    pool = "nfs"
    ignored = (
        r". files: (/etc/exports.d|/etc/nfs.conf|/var/lib/nfs|/var/lib/storkit/nfs-volumes)",
        # the server stays, with what it needs
        r". (mounts|processes|sockets): .*(nfsd|rpc_pipefs|rpc.mountd|lockd|port \d+)",
    )

    def prepare(self, host: Host) -> None:
        """What an installed system has at its boot; the server is started by the first export."""
        host.put(NFS_CONF, "/etc/nfs.conf")
        host.run(["modprobe", "-a", "nfsd", "nfs", "nfsv4"])
        host.run(["mkdir", "-p", "/var/lib/nfs/v4recovery"])

    def disconnect(self, attachment: Attachment) -> None:
        self.run(attachment.host, "umount", "-l", f"/run/storkit/nfs/{attachment.uuid}")


def lab_setups() -> dict[str, LabSetup]:
    return {"4.2": lab_rig(NfsRig)}
