"""One LUN over two networks: losing either one is not noticed by whoever writes."""

from __future__ import annotations

import pytest

from tests.lab import Host, Lab, iscsi, services

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CONFIGURATION = """\
defaults {
    user_friendly_names yes
    find_multipaths no
    polling_interval 1
    max_polling_interval 2
    no_path_retry queue
}
blacklist {
    devnode "^(ubd|loop|ram)"
}
"""
# Give a path up within seconds: multipath, not the session, is to hold the I/O.
QUICK = {
    "node.session.timeo.replacement_timeout": "1",
    "node.conn[0].timeo.noop_out_interval": "1",
    "node.conn[0].timeo.noop_out_timeout": "1",
}

# Writes its count, past every cache, and reports the longest time that one write took.
_WRITER = """\
import mmap, os, sys, time
disk = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
buffer, count, longest = mmap.mmap(-1, 4096), 0, 0.0
while not os.path.exists("/tmp/stop"):
    count += 1
    buffer[:8] = count.to_bytes(8, "little")
    started = time.monotonic()
    os.pwrite(disk, buffer, 0)
    longest = max(longest, time.monotonic() - started)
    with open("/tmp/count.new", "w") as file:
        file.write(str(count))
    os.rename("/tmp/count.new", "/tmp/count")
print(count, longest)
"""


def paths(host: Host, state: str) -> int:
    return host.run(["multipathd", "show", "paths", "raw", "format", "%T"]).stdout.split().count(state)


def count(host: Host) -> int:
    return int(host.run(["cat", "/tmp/count"], check=False).stdout or 0)


def wait_for_count(host: Host, enough: int) -> None:
    host.wait_for(lambda: count(host) > enough, f"write number {enough}", 30)


def test_either_network_may_go(lab: Lab) -> None:
    a, s = lab.hosts("a", "s")
    a.put(CONFIGURATION, "/etc/multipath.conf")
    services.multipathd(a)
    iqn = iscsi.export(s, "disk", s.add_disk(1 << 30), clients=[a], networks=("san1", "san2"))
    for network in ("san1", "san2"):
        iscsi.login(a, s, iqn, network, QUICK)
    a.wait_for(lambda: paths(a, "ready") == 2, "two active paths")
    writer = a.spawn(["/usr/bin/python3", "-c", _WRITER, "/dev/mapper/mpatha"])
    wait_for_count(a, 0)

    for network in ("san1", "san2"):
        a.cut(network)
        a.wait_for(lambda: paths(a, "faulty") == 1, f"path lost with {network}", 30)
        enough = count(a) + 10
        wait_for_count(a, enough)
        a.heal(network)
        a.wait_for(lambda: paths(a, "ready") == 2, f"path back with {network}", 30)

    a.run(["touch", "/tmp/stop"])
    written = writer.wait().stdout.split()
    on_disk = s.run(["od", "-An", "-tu8", "-N8", "/dev/ubdb"]).stdout
    assert int(on_disk) == int(written[0])
    print(f"{written[0]} writes, the longest took {float(written[1]):.1f} s")
