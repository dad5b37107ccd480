"""A dom0 of the lab, as a test sees it: a host like the others, but that it thaws rather than boots."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.lab import network
from tests.lab.cell import Cell
from tests.lab.errors import LabError
from tests.lab.host import Host, Machine
from tests.lab.xen.qemu import Qemu, Settings

ROOT = "root.qcow2"
BOOT_DEADLINE = 900.0
"""Seconds; a boot takes some 25 of a processor, and a busy machine ten times as long."""

# What is not the same for two labs: the time, the names of the hosts, and the keys.
_WAKE = """\
date -s "@$1" >/dev/null
cat >/etc/hosts
mkdir -m 0700 -p /root/.ssh
cd /root/.ssh
printf '%s' "$2" | base64 -d | tar -x
install -m 0600 host_key /etc/ssh/ssh_host_ed25519_key
chmod 0600 ./*
pidof sshd >/dev/null || /usr/sbin/sshd -o UsePAM=no -o "SetEnv=STORKIT_TIMEOUT_FACTOR=$STORKIT_TIMEOUT_FACTOR"
until ss -Htln sport = 22 | grep -q .; do sleep 0.1; done
"""
# QEMU takes no memory back of a processor that was frozen while it carried out a guest's own instructions.
_PAUSE = """\
xl list | awk 'NR > 2 { print $1 }' >/root/guests
if [ -s /root/guests ]; then
    xargs -n 1 xl pause </root/guests
    mv /root/guests /root/paused
fi
sync
"""
_UNPAUSE = """\
if [ -e /root/paused ]; then
    xargs -n 1 xl unpause </root/paused
    rm /root/paused
fi
"""


class Dom0(Host):
    """A machine that runs Xen. Its disks' files are in the cell; `image` is the directory of image.py.

    It has no window to this machine's files: a test's files go through the serial line, and storkit's tree comes by
    `XenLab.install`.
    """

    # a virtio port has no line discipline that a long request would fill
    longest_request = 1 << 30
    disk_prefix = "/dev/vd"
    python_environment: Mapping[str, str] = {"PYTHONPATH": "/storkit:/opt/storkit/site-packages"}

    def __init__(self, cell: Cell, name: str, index: int, image: Path, wake: Callable[[], tuple[str, bytes]]) -> None:
        """`wake` gives what the host needs to know of this lab: its /etc/hosts, and a tar of ssh's files."""
        super().__init__(cell, name, index, image)
        self._wake = wake
        self.frozen: Path | None = None
        """The state to go on from when it is next powered on with fresh disks; boot when there is none."""

    def _power_on(self, line: int) -> Machine:
        root = self._directory / ROOT
        thaw = None
        if not self._cell.path(root).exists():
            below, format = self._image / "root.raw", "raw"
            if self.frozen:
                below, format = self.frozen / f"{self.name}.qcow2", "qcow2"
                thaw = self.frozen / f"{self.name}.memory"
            self._cell.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(below), "-F", format, str(root)])
        addresses = ",".join(f"{net}={self.address(net)}/24" for net in network.NETWORKS)
        taps = [(network.tap(net, self.name), network.mac(net, self.index)) for net in network.NETWORKS]
        disks = [(Path(disk).name, Path(disk)) for disk in self._disks]
        settings = Settings(self.name, self._image, root, disks, taps, addresses, thaw)
        self._thawed = thaw is not None
        return Qemu(self._cell, self._directory, settings, line)

    def wait_until_up(self, deadline: float = BOOT_DEADLINE) -> None:
        """It answers, has the right time, and lets this lab's keys in."""
        end = time.monotonic() + deadline
        if not self._thawed:
            super().wait_until_up(deadline)
        hosts, ssh = self._wake()
        words = ["sh", "-euc", _WAKE + _UNPAUSE, "sh", f"{time.time():.3f}", base64.b64encode(ssh).decode()]
        try:
            self.spawn(words, input=hosts).wait(max(end - time.monotonic(), 60))
        except LabError as error:
            raise LabError(f"host {self.name} does not wake: {error}\n{self.console()[-3000:]}") from None

    def freeze(self, into: Path) -> None:
        """Keep it as it is now, as `NAME.memory` and `NAME.qcow2` in a directory that others may thaw from; go on."""
        machine = self._machine
        if not isinstance(machine, Qemu):
            raise LabError(f"host {self.name} is off")
        self.run(["sh", "-euc", _PAUSE])
        machine.freeze(into / f"{self.name}.memory")
        disk = into / f"{self.name}.qcow2"
        self._cell.run(["cp", "--sparse=always", str(self._directory / ROOT), str(disk)])
        self._cell.run(["qemu-img", "rebase", "-u", "-F", "raw", "-b", "../../root.raw", str(disk)])
        machine.go_on()
        self.run(["sh", "-euc", _UNPAUSE])

    def discard(self) -> None:
        super().discard()
        self._cell.path(self._directory / ROOT).unlink(missing_ok=True)

    def scrub(self) -> bool:
        """A fresh one is thawed sooner than this one is looked through."""
        return False

    def put(self, content: str | bytes | Path, path: str, mode: int = 0o644) -> None:
        data = content.read_bytes() if isinstance(content, Path) else content
        text = base64.b64encode(data if isinstance(data, bytes) else data.encode()).decode()
        script = 'mkdir -p "${1%/*}/"; base64 -d >"$1.new"; chmod "$2" "$1.new"; mv "$1.new" "$1"'
        self.run(["sh", "-euc", script, "sh", path, f"{mode:o}"], input=text)

    def get(self, path: str) -> bytes:
        return base64.b64decode(self.run(["base64", "-w", "0", path]).stdout)
