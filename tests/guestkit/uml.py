"""A tiny User-Mode Linux guest: busybox as its init, on an ext4 root that it counts its boots in.

What it says on its console is all that anybody gets to know of it while it runs: `boot N of NAME`, `serial UUID` (of
its first disk), `sees NAME` of each other one of ASK=NAME,NAME that answers, and `bye` when it shuts down.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from storkit.system.run import run, which
from tests import xstate

BUSYBOX = Path("/bin/busybox")
CMDLINE = "root=/dev/ubda rw init=/sbin/init quiet"
MEMORY = "80MiB"
COUNT = "/boots"
INITTAB = """\
::sysinit:/etc/begin
::once:/etc/look
::ctrlaltdel:/bin/busybox reboot
::shutdown:/etc/end
tty1::respawn:/bin/busybox sh
"""
BEGIN = f"""\
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
n=$(($($b cat {COUNT}) + 1))
echo $n >{COUNT}
$b sync
echo "boot $n of $($b cat /etc/hostname)"
echo "serial $($b cat /sys/block/ubda/serial 2>/dev/null)"
"""
LOOK = """\
#!/bin/busybox sh
b=/bin/busybox
own=$($b sed -n 's/^\\taddress //p' /etc/network/interfaces.d/* 2>/dev/null)
[ "$own" ] || exit 0
$b ip addr add $own dev eth0
$b ip link set eth0 up
for member in $($b echo $ASK | $b tr , ' '); do
    [ $member != $($b cat /etc/hostname) ] || continue
    address=$($b awk -v name=$member '$2 == name { print $1 }' /etc/hosts)
    until $b ping -c1 -W1 $address >/dev/null; do :; done
    echo "sees $member"
done
"""
END = """\
#!/bin/busybox sh
echo bye
/bin/busybox mount -o remount,ro /
"""

needed = pytest.mark.skipif(
    not (which("linux.uml") and which("mke2fs") and which("qemu-storage-daemon") and BUSYBOX.exists()),
    reason="linux.uml, mke2fs, qemu-storage-daemon or busybox is not installed"
    " (user-mode-linux, e2fsprogs, qemu-system-common, busybox-static)",
)


def build(image: Path) -> Path:
    """The guest's disk."""
    tree = image.with_suffix(".tree")
    for name in ("bin", "sbin", "dev", "proc", "sys", "etc/network"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(BUSYBOX, tree / "bin" / "busybox")
    (tree / "sbin/init").symlink_to(BUSYBOX)
    for name, text in {"inittab": INITTAB, "hostname": "golden\n", "network/interfaces": ""}.items():
        (tree / "etc" / name).write_text(text)
    for name, text in {"begin": BEGIN, "look": LOOK, "end": END}.items():
        (tree / "etc" / name).write_text(text)
        (tree / "etc" / name).chmod(0o755)
    (tree / COUNT.lstrip("/")).write_text("0\n")
    run(["mke2fs", "-q", "-t", "ext4", "-d", tree, image, "16M"])
    return image


def boots(disk: Path) -> int:
    """How often the guest of this disk, which nobody has open, has booted."""
    run(["e2fsck", "-fp", disk], ok=(0, 1))  # a guest that was killed has left a journal
    return int(run(["debugfs", "-R", f"cat {COUNT}", disk]).stdout)


def preload(directory: Path) -> dict[str, str]:
    """The environment that linux.uml needs on this machine's processor."""
    if not xstate.needed():
        return {}
    if not xstate.compiler():
        pytest.skip("linux.uml needs a library on a processor with AMX, and no C compiler is installed (tcc)")
    return {"LD_PRELOAD": str(xstate.build(directory))}
