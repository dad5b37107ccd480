"""The lab's networks: one bridge each in the cell, one tap for each host on it, and switch ports that can be cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.lab.cell import Cell

# Every host is on each of these: one for people and guests, two for storage, so that paths can be lost.
NETWORKS = ("lan", "san1", "san2")


def address(network: str, index: int) -> str:
    """The address of host number `index` on a network; 1 is the cell itself, where the test process comes from."""
    return f"10.77.{NETWORKS.index(network)}.{index}"


def tap(network: str, host: str) -> str:
    return f"{network}-{host}"


def mac(network: str, index: int) -> str:
    """The Ethernet address, the same after every boot, as real hosts' are: neighbours remember it for a while."""
    return f"52:54:00:77:{NETWORKS.index(network):02x}:{index:02x}"


def make_bridges(cell: Cell) -> None:
    commands = []
    for network in NETWORKS:
        commands += [
            f"link add {network} type bridge stp_state 0 forward_delay 0",
            f"addr add {address(network, 1)}/24 dev {network}",
            f"link set {network} up",
        ]
    _ip(cell, commands)


def make_taps(cell: Cell, host: str) -> None:
    commands = []
    for network in NETWORKS:
        name = tap(network, host)
        commands += [f"tuntap add dev {name} mode tap", f"link set {name} master {network} up"]
    _ip(cell, commands)


def remove_taps(cell: Cell, host: str) -> None:
    _ip(cell, [f"link del {tap(network, host)}" for network in NETWORKS])


def set_port(cell: Cell, host: str, networks: Iterable[str], connected: bool) -> None:
    """Cut or heal a host's ports. The bridge drops frames both ways, and the host's own link stays up: as when a switch
    dies further away, the hardest case."""
    for network in networks:
        state = "forwarding" if connected else "disabled"
        cell.run(["bridge", "link", "set", "dev", tap(network, host), "state", _STATES[state]])


_STATES = {"disabled": "0", "forwarding": "3"}


def _ip(cell: Cell, commands: Sequence[str]) -> None:
    cell.run(["ip", "-batch", "-"], input="\n".join(commands) + "\n")
