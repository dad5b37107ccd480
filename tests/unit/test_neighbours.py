"""Which addresses a host has seen network cards with: real neighbours, and the leases that DHCP servers write."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from storkit.core.host import Neighbour
from storkit.hosts.neighbours import seen
from storkit.system.run import run

MAC, OTHER = "52:54:00:00:00:09", "52:54:00:00:00:0a"


def test_neighbours_of_the_kernel() -> None:
    """In a network of its own."""
    script = f"""
set -eu
ip link add v0 type veth peer name v1
ip link set v0 up
ip link set v1 up
ip neigh add 10.9.9.9 lladdr {MAC} dev v0 nud reachable
ip neigh add fe80::9 lladdr {MAC} dev v0 nud reachable
ip neigh add fd00::9 lladdr {MAC} dev v0 nud stale
ip neigh add 10.9.9.8 lladdr {MAC} dev v0 nud failed
ip neigh add 10.9.9.10 lladdr {OTHER} dev v0 nud reachable
exec {sys.executable} -c "from storkit.hosts.neighbours import seen; print(*sorted(n.address for n in seen(['{MAC}'])))"
"""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    assert run(["unshare", *user, "--net", "sh", "-c", script]).stdout.split() == ["10.9.9.9", "fd00::9"]


def test_leases_that_are_not_over(tmp_path: Path) -> None:
    later, earlier = int(time.time()) + 60, int(time.time()) - 60
    leases = tmp_path / "dnsmasq.leases"
    leases.write_text(
        f"{later} {MAC} 10.0.0.9 web 01:{MAC}\n{earlier} {MAC} 10.0.0.7 * *\n0 {OTHER.upper()} 10.0.0.10 * *\n"
        f"{later} {MAC} forged\\x1b[2J * *\nduid 00:01\n{later}\n"
    )
    networks = tmp_path / "networks"
    networks.mkdir()
    of_libvirt = [
        {"ip-address": "192.168.122.9", "mac-address": MAC, "expiry-time": later},
        {"ip-address": "192.168.122.7", "mac-address": MAC, "expiry-time": earlier},
        {"ip-address": 7, "mac-address": MAC, "expiry-time": later}, "damaged",
    ]  # fmt: skip
    (networks / "default.status").write_text(json.dumps(of_libvirt))
    (networks / "half.status").write_text('[{"ip-addr')
    (networks / "empty.status").write_text("")
    found = seen([MAC, OTHER], [str(leases), str(tmp_path / "none")], str(networks))
    assert found == [
        Neighbour(MAC, "10.0.0.9", "lease"), Neighbour(OTHER, "10.0.0.10", "lease"),
        Neighbour(MAC, "192.168.122.9", "lease"),
    ]  # fmt: skip
    assert seen([], [str(leases)]) == []
