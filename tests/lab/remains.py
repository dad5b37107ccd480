"""What a piece of work has left behind on hosts: their states before and after, without what comes and goes anyway."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tests import kept
from tests.lab.host import Host, changes

PASSING = (
    r". modules: ",
    r". processes: (sshd: |/usr/sbin/sshd -R|.*motd|/usr/bin/python3 .*guest/disks\.py|python3 .*guest/disks\.py)",
    r". processes: (\S*python3 -P -[sS] -c from storkit|sh -c storkit agent|\S*/udevadm )",
    r". processes: \S*python3 -I -S -c import json, mmap",
    r". files: (/run/motd|/run/utmp|/run/\w+\.pid |/var/log/|/var/cache/libvirt/)",
    ". files: " + kept.below("/run/storkit", kept.LOCKS),
    r". files: (/etc/lvm/|/run/lvm/|/run/lock/lvm/|/run/dmeventd-|/dev/mapper/control )",
    r". files: (/etc/multipath/wwids |/run/lock/iscsi/lock )",
    ". files: " + kept.below("/var/lib/storkit", kept.STATE),
    r". files: /var/lib/nfs/|. processes: /usr/libexec/nfsrahead ",
    r". files: \S*/saveconfig\.json |. configfs: /sys/kernel/config/target/iscsi(/discovery_auth)?$",
)
"""Modules, which stay loaded; ssh's sessions and their logs; the conversations of remote.py, and who reads disks for
them; what
storkit keeps by right (tests/kept.py); what LVM, multipath, open-iscsi, the NFS server and LIO keep of nothing."""


class Remains:
    """Made before the work; `left` says what is not as it was then."""

    def __init__(self, hosts: Sequence[Host], ignored: Sequence[str] = ()) -> None:
        self._passing = re.compile("|".join((*PASSING, *ignored)))
        self._booted: set[str] = set()
        self._before = {host.name: (host, host.state()) for host in hosts}

    def again(self, host: Host) -> None:
        """Go on after a boot of this host: what it has now that is not storkit's is no trace of the work."""
        before, now = self._before[host.name][1], host.state()
        known = {
            kind: [entry for entry in now[kind] if entry in entries or "storkit" not in entry.lower()]
            for kind, entries in before.items()
        }
        self._before[host.name] = (host, known)
        self._booted.add(host.name)

    def left(self) -> list[str]:
        """Lines like "b: + mounts: ..."."""
        found = []
        for host, _ in self._before.values():
            host.rest()
        for name, (host, before) in self._before.items():
            host.run(["udevadm", "settle"])
            found += [
                f"{name}: {line}"
                for line in changes(before, host.state())
                if not self._passing.match(line) and not (name in self._booted and line.startswith("- "))
            ]
        return found
