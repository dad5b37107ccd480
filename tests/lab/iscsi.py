"""Disks over iSCSI between hosts of the lab, by rtslib and iscsiadm alone: for the tests that need a shared disk."""

from __future__ import annotations

from tests.lab import services
from tests.lab.host import Host

IQN = "iqn.2026-01.lab.storkit"

_EXPORT = """\
import sys
import rtslib_fb as lio
name, device, iqn, *rest = sys.argv[1:]
portals, clients = (words.split(",") for words in rest)
backstore = lio.BlockStorageObject(name, dev=device)
group = lio.TPG(lio.Target(lio.FabricModule("iscsi"), iqn), 1)
group.set_attribute("authentication", "0")
group.enable = True
for portal in portals:
    lio.NetworkPortal(group, portal, 3260)
lun = lio.LUN(group, 0, backstore)
for client in clients:
    lio.MappedLUN(lio.NodeACL(group, client), 0, lun)
"""


def initiator(host: Host) -> str:
    return f"{IQN}:{host.name}"


def export(server: Host, name: str, device: str, clients: list[Host], networks: tuple[str, ...] = ("lan",)) -> str:
    """Offer a block device of `server` to clients; returns the target's IQN."""
    services.target(server)
    iqn = f"{IQN}:{server.name}.{name}"
    portals = ",".join(server.address(net) for net in networks)
    server.python(_EXPORT, name, device, iqn, portals, ",".join(initiator(client) for client in clients))
    return iqn


def login(client: Host, server: Host, iqn: str, network: str = "lan", settings: dict[str, str] | None = None) -> str:
    """Attach a target's LUN 0; returns its device, as udev names it by path."""
    services.iscsid(client)
    portal = f"{server.address(network)}:3260"
    node = ["iscsiadm", "-m", "node", "-T", iqn, "-p", portal]
    client.run([*node, "-o", "new"])
    for name, value in (settings or {}).items():
        client.run([*node, "-o", "update", "-n", name, "-v", value])
    client.run([*node, "--login"])
    device = f"/dev/disk/by-path/ip-{portal}-iscsi-{iqn}-lun-0"
    client.wait_for(lambda: client.run(["test", "-b", device], check=False).status == 0, device)
    return client.run(["readlink", "-f", device]).stdout.strip()
