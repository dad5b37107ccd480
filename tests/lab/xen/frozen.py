"""The dom0s as they were once booted: memory and disks, from which every test goes on.

Two states: `idle`, and `guest`, where h1 runs a guest that writes. They are kept with their image.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.lab.xen.dom0 import BOOT_DEADLINE, Dom0
from tests.lab.xen.image import HERE, Image, size

IDLE, GUEST = "idle", "guest"
LOG = "/var/log/xen/console/guest-g1*.log"
"""The console of guest g1; that of one that came by a migration has a longer name."""

# A guest's disk under a device-mapper name, so that a test may put another disk below it while the guest runs.
_START = """\
modprobe -a loop dm-mod
losetup /dev/loop0 /root/guest.img
dmsetup create guest --table "0 $(blockdev --getsz /dev/loop0) linear /dev/loop0 0"
xl create /root/g1.cfg
"""


def config(name: str, disk: str) -> str:
    """xl.cfg of a guest whose root disk is `disk`: a device of the dom0."""
    return f"""\
type = "pvh"
name = "{name}"
kernel = "/root/vmlinux"
ramdisk = "/root/initrd"
memory = 96
cmdline = "console=hvc0 quiet mitigations=off rdinit=/init"
disk = [ "format=raw, vdev=xvda, access=rw, target={disk}" ]
"""


def frozen(image: Image, hosts: Sequence[Dom0], say: Callable[[str], None] = lambda text: None) -> Path:
    """The directory of the frozen states, made first if it is not in the cache: the hosts are booted for it."""
    path = image.path / "frozen"
    with image.alone():
        if not path.exists():
            started = time.monotonic()
            say("booting the Xen hosts, to freeze them (once; a minute of two processors)")
            unfinished = path.with_suffix(".new")
            shutil.rmtree(unfinished, ignore_errors=True)
            _make(unfinished, hosts)
            unfinished.rename(path)
            say(f"Xen hosts frozen in {time.monotonic() - started:.0f} s, {size(path) >> 20} MiB")
    return path


def recipe() -> list[str]:
    """What they depend on, beside the image. They can go on in the same machine only: QEMU's version and words, and the
    processor, by whose clock they count."""
    version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    processor = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    here = [(HERE / name).read_text() for name in ("qemu.py", "dom0.py", "frozen.py")]
    return [version, processor, *here]


def _make(into: Path, hosts: Sequence[Dom0]) -> None:
    for state in (IDLE, GUEST):
        (into / state).mkdir(parents=True)
    try:
        for host in hosts:
            host.discard()
            host.frozen = None
            host.start()
        for host in hosts:
            host.wait_until_up(BOOT_DEADLINE)
        for host in hosts:
            host.freeze(into / IDLE)
        first = hosts[0]
        first.put(config("g1", "/dev/mapper/guest"), "/root/g1.cfg")
        first.run(["sh", "-euc", _START], timeout=BOOT_DEADLINE)
        first.wait_for(lambda: written(first) > 20, "line of the guest", BOOT_DEADLINE, every=1)
        first.freeze(into / GUEST)
        for other in hosts[1:]:
            for file in (into / IDLE).glob(f"{other.name}.*"):
                (into / GUEST / file.name).hardlink_to(file)
    finally:
        for host in hosts:
            host.discard()


def written(host: Dom0) -> int:
    """The last line that the guest has told of on this host."""
    found = host.run(["sh", "-c", f"tail -qn 50 {LOG} 2>/dev/null | grep -ao 'seq [0-9]*'"], check=False).stdout
    return max((int(line.split()[1]) for line in found.splitlines()), default=0)
