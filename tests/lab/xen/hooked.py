"""Two dom0s whose xl attaches disks by block-storkit, and the storage host that admits their hooks: no coordinator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from storkit.hooks.hostfile import HostFile, Manager, dumps
from storkit.hosts import accept
from storkit.hosts.accept import Accepted, GuestHost
from tests.lab.errors import LabError
from tests.lab.host import Result
from tests.lab.image import TREE
from tests.lab.world import storage
from tests.lab.xen import Dom0, XenLab
from tests.lab.xen.world import CMDLINE, IMAGE, PATIENT, XenWorld

CONFIG = "/root/g1.cfg"
UUID = "5c0d1e8a-4a57-4c34-9c37-1f5f3a0c6b01"
XL_CFG = f"""\
name = "g1"
uuid = "{UUID}"
type = "pvh"
memory = 96
kernel = "/root/vmlinux"
ramdisk = "/root/initrd"
cmdline = "{CMDLINE} sysrq_always_enabled"
disk = [ "format=raw, vdev=xvda, access=rw, script=block-storkit, target=g1" ]
"""


SYSLOG = """\
import os, socket
listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listener.bind("/dev/log")
while True:
    print(listener.recv(65536).decode(errors="replace"), flush=True)
"""
"""What hooks say is for a system's log, which these dom0s have not."""
LOG = "/root/syslog"


class HookedXen(XenWorld):
    """g1 has a disk, an xl.cfg, and nobody who has started it yet."""

    def __init__(self, xen: XenLab, scratch: Path, stored: str = "nbd-kernel") -> None:
        super().__init__(xen, scratch, storage(stored))
        address, kind = self.s.address("san1"), self.storage.transport
        self.admit("h1", "h2")
        for host in self.dom0s:
            manager = Manager("ssh://root@s", addresses=[address])
            settings: dict[str, dict[str, Any]] = {kind: dict(self.storage.transport_settings)}
            content = HostFile(host.name, {"s": manager}, transports=settings)
            host.put(dumps(content), "/etc/storkit/host.toml")
            text = (TREE / "storkit/hooks/block-storkit.sh").read_text()
            text = text.replace("@STORKIT@", "storkit").replace("@OPTIONS@", "")
            host.put(text, "/etc/xen/scripts/block-storkit", mode=0o755)
            host.put(XL_CFG, CONFIG)
            host.put(SYSLOG, "/root/syslog.py")
            host.run(["sh", "-c", 'setsid python3 /root/syslog.py >"$0" 2>&1 </dev/null &', LOG])
        self.s.put(xen.guest_disk, IMAGE)
        self.storkit("volume", "import", IMAGE, "g1")

    def _hosts(self) -> list[str]:
        # What a host asks for it asks by itself; the storage host is looked at alone, which is quick.
        return super()._hosts()[:1]

    def admit(self, *names: str) -> None:
        """Write the storage host's own file, which lets the hooks of these hosts in."""
        kind = self.storage.transport
        accepted = Accepted(
            pools={"default": {"type": self.storage.pool, **self.storage.pool_settings}},
            transports={kind: dict(self.storage.transport_settings)},
            host="s",
            address=self.s.address("san1"),
            transport_of={"default": kind},
            guest_hosts={
                host.name: GuestHost(["default/*"], host.address("san1")) for host in self.dom0s if host.name in names
            },
        )
        file = self.scratch / "accept.toml"
        accept.save(file, accepted)
        self.s.put(file.read_text(), "/etc/storkit/accept.toml")

    def xl(self, host: Dom0, *words: str) -> str:
        """What xl says; it must succeed."""
        done = self.try_xl(host, *words)
        assert done.status == 0, f"xl {' '.join(words)} on {host.name}: {done.status}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def try_xl(self, host: Dom0, *words: str) -> Result:
        return host.run(["xl", *words], check=False, timeout=PATIENT)

    def volume(self, name: str = "g1") -> Any:
        return self.storkit("volume", "show", name)

    def writers(self, name: str = "g1") -> list[str]:
        return sorted(each["client"] for each in self.volume(name)["exports"] if each["writable"])

    def domain(self, host: Dom0) -> int:
        """The id of the guest's domain."""
        return int(host.run(["xl", "domid", "g1"]).stdout)

    def crash(self, host: Dom0) -> None:
        """Make the guest's kernel fail."""
        self.xl(host, "sysrq", "g1", "c")

    def devices(self, host: Dom0) -> str:
        """What is there of disks: storkit's, and those that Xen gives to domains."""
        return host.run(["sh", "-c", "ls /dev/storkit; xenstore-ls /local/domain/0/backend/vbd; true"]).stdout

    def clean(self, host: Dom0) -> bool:
        """Whether nothing of the guest is left there: no domain, no device, no export."""
        there = self.devices(host)
        assert not self.domains(host) and "g1" not in there, f"{host.name}: {self.domains(host)}\n{there}"
        return host.name not in [each["client"] for each in self.volume()["exports"]]

    def wait_for_nobody(self, host: Dom0) -> None:
        """Wait until the hook of a host has given up its right, and xl has forgotten the disk: it does that after."""
        try:
            host.wait_for(lambda: self.writers() == [], "end of the guest's right", PATIENT / 4, every=2)
            host.wait_for(lambda: "g1" not in self.devices(host), "end of the guest's disk", PATIENT / 4, every=2)
        except LabError as error:
            raise AssertionError(f"{error}\n{host.run(['cat', LOG]).stdout}\n{self.xl(host, 'list')}") from error

    def end(self, host: Dom0) -> None:
        """Shut the guest down: its xl gives the disk up, which has all that was written."""
        self.xl(host, "shutdown", "-w", "g1")
        self.wait_for_nobody(host)
        assert self.clean(host)
        report = self.report()
        assert report.clean and not report.recovered and report.starts == 1, report
