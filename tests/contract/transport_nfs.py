"""NFS between hosts of the lab: a serves, and mounts its own exports as b does."""

from __future__ import annotations


from tests.lab.host import Host
from tests.lab.remote import Hosts, LabRig, LabSetup, lab_rig

# A short grace period: after a restart the server lets clients in for new business only when it has ended.
NFS_CONF = """\
[mountd]
manage-gids=n
[nfsd]
grace-time=3
lease-time=5
threads=8
vers3=n
"""


class NfsRig(LabRig):
    transport = "nfs"
    pool = "nfs"
    ignored = (
        r". files: (/etc/exports.d|/etc/nfs.conf|/var/lib/nfs/|/var/lib/storkit/nfs-volumes)",
        r". (mounts|processes): \S*(nfsd|rpc_pipefs|rpc.mountd|/m)",
        r". (processes|sockets|listening): .*(nfsd|lockd|mountd|rpc\.|2049|sunrpc|NFS)",
    )

    def prepare(self, host: Host) -> None:
        prepare(host)


def prepare(host: Host) -> None:
    """What an installed system has at its boot; the server is started by the first export."""
    host.put(NFS_CONF, "/etc/nfs.conf")
    host.run(["modprobe", "-a", "nfsd", "nfs", "nfsv4"])
    host.run(["mkdir", "-p", "/var/lib/nfs/v4recovery"])


def lab_setups() -> dict[str, LabSetup]:
    return {"4.2": lab_rig(NfsRig)}
