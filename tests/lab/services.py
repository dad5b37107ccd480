"""What systemd would start on a real host. Each function may be called again, and returns when the service answers."""

from __future__ import annotations

from tests.lab.host import Host

CAPABILITIES = "/var/cache/libvirt/qemu/capabilities"


def iscsid(host: Host) -> None:
    if _listens(host, "@ISCSIADM_ABSTRACT_NAMESPACE"):
        return
    host.run(["modprobe", "-a", "iscsi_tcp", "sd_mod"])
    host.run(["mkdir", "-p", "/run/lock/iscsi"])
    host.run(["iscsid"])
    host.wait_for(lambda: _listens(host, "@ISCSIADM_ABSTRACT_NAMESPACE"), "iscsid")


def target(host: Host) -> None:
    """The kernel's iSCSI target. Its database's directories must exist before the modules are loaded."""
    host.run(["mkdir", "-p", "/etc/target/pr", "/etc/target/alua"])
    host.run(["modprobe", "-a", "target_core_mod", "target_core_iblock", "target_core_file", "iscsi_target_mod"])


def multipathd(host: Host) -> None:
    host.run(["modprobe", "-a", "dm_multipath", "dm_round_robin"])
    if not _listens(host, "@/org/kernel/linux/storage/multipathd"):
        host.run(["multipathd"])
        host.wait_for(lambda: _listens(host, "@/org/kernel/linux/storage/multipathd"), "multipathd")


def nfs_server(host: Host) -> None:
    """An NFS server for version 4 only, with a short grace period, so that clients need not wait 90 s for it."""
    host.run(["modprobe", "-a", "nfsd", "nfs", "nfsv4"])
    for kind, where in (("nfsd", "/proc/fs/nfsd"), ("rpc_pipefs", "/var/lib/nfs/rpc_pipefs")):
        if host.run(["mountpoint", "-q", where], check=False).status:
            host.run(["mkdir", "-p", where], check=False)
            host.run(["mount", "-t", kind, kind, where])
    host.run(["mkdir", "-p", "/run/rpcbind", "/var/lib/nfs/v4recovery"])
    if host.run(["pidof", "rpc.mountd"], check=False).status:
        host.run(["rpc.mountd", "--no-nfs-version", "3", "--no-udp", "--no-tcp"], check=False)
        host.run(["rpc.nfsd", "--no-udp", "--no-nfs-version", "3", "--nfs-version", "4.2", "--grace-time", "1", "8"])
    host.wait_for(lambda: host.run(["cat", "/proc/fs/nfsd/threads"]).stdout.strip() != "0", "NFS server")


def nfs_client(host: Host) -> None:
    host.run(["modprobe", "-a", "nfs", "nfsv4"])


def libvirtd(host: Host) -> None:
    """libvirtd and what it needs, reachable by other hosts' ssh. What it finds out about QEMU in 20 s is kept for the
    lab's other hosts, which have the same programs."""
    if host.run(["virsh", "-q", "version"], check=False).status == 0:
        return
    host.run(["mkdir", "-p", "/run/dbus", CAPABILITIES])
    host.run(["sh", "-c", f"cp -p /lab/common/libvirt/* {CAPABILITIES}"], check=False)
    host.run(["modprobe", "tun"])
    if not _listens(host, "/run/dbus/system_bus_socket"):
        host.run(["dbus-daemon", "--system", "--fork"])
    host.run(["virtlogd", "--daemon"])
    host.run(["libvirtd", "--daemon"])
    host.wait_for(lambda: host.run(["virsh", "-q", "version"], check=False).status == 0, "libvirtd", 60)
    host.run(["sh", "-c", f"mkdir -p /lab/common/libvirt && cp -p {CAPABILITIES}/* /lab/common/libvirt/"])


def _listens(host: Host, socket: str) -> bool:
    return socket in host.run(["cat", "/proc/net/unix"]).stdout
