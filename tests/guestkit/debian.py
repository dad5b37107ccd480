"""A golden image as an administrator has one: Debian with systemd and sshd on ext4, and a kernel and an initrd to boot
it by. It has one host name, one machine id and one set of SSH host keys, as every image has. It is made by mmdebstrap
from the machine's own package registries.

    python -m tests.guestkit.debian OUTDIR       makes vmlinuz, initrd and root.img there
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from storkit.system.run import run
from tests.guestkit import linux
from tests.lab.image import sources

HERE = Path(__file__).parent
MODULES = (*linux.MODULES, "net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net")
PACKAGES = ("systemd-sysv", "udev", "openssh-server", "iproute2", "netbase", "iputils-ping")
EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/zoneinfo/*",
            "/usr/lib/x86_64-linux-gnu/gconv/*", "/usr/lib/udev/hwdb.d/*")  # fmt: skip
CMDLINE = f"{linux.CMDLINE} systemd.show_status=no systemd.log_target=null net.ifnames=1"
MEMORY = "256MiB"
SIZE = "448M"
NETWORKD = "multi-user.target.wants/systemd-networkd.service"
# What no member of a fleet needs, and what costs seconds where a processor is emulated.
MASKED = (
    "systemd-hwdb-update", "systemd-logind", "dbus", "systemd-sysusers", "systemd-modules-load",
    "systemd-sysctl", "systemd-remount-fs", "systemd-tmpfiles-setup-dev",
    "systemd-update-utmp-runlevel", "systemd-tmpfiles-clean.timer", "kmod-static-nodes",
    "systemd-ask-password-wall.path", "systemd-ask-password-console.path", "getty-static", "serial-getty@ttyS0",
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_reap", "systemd-update-utmp",
    "getty@tty1", "systemd-pstore", "fstrim.timer", "e2scrub_all.timer", "systemd-journal-flush",
    "systemd-binfmt", "modprobe@drm", "modprobe@configfs", "modprobe@fuse", "modprobe@dm_mod",
    "modprobe@efi_pstore", "modprobe@loop", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
    "dev-hugepages.mount", "dev-mqueue.mount",
)  # fmt: skip


def build() -> linux.Kit:
    """The files of the guest from the cache, built if they are not there yet."""
    recipe = [HERE / name for name in ("linux.py", "debian.py", "debian.initramfs")]
    target = linux.cached("debian", recipe, _build)
    return linux.Kit(target / "vmlinuz", target / "initrd", target / "root.img")


def _build(scratch: Path, done: Path) -> None:
    linux.boot_files(scratch, done, HERE / "debian.initramfs", MODULES)
    make_root(scratch, done, PACKAGES, SIZE)


def make_root(scratch: Path, done: Path, packages: Iterable[str], size: str, more: Iterable[str] = ()) -> None:
    """Make root.img, with these packages in it. `more`: further hooks of mmdebstrap's, which have its root as $1."""
    suite = sources()[0].split()[2].split("-")[0]
    masked = [unit if "." in unit else f"{unit}.service" for unit in MASKED]
    hooks = [
        'echo golden > "$1/etc/hostname"',
        'rm -f "$1/etc/resolv.conf"',
        f'mkdir -p "$1/etc/systemd/system/{NETWORKD}" && rmdir "$1/etc/systemd/system/{NETWORKD}"',
        f'ln -s /lib/systemd/system/systemd-networkd.service "$1/etc/systemd/system/{NETWORKD}"',
        *(f'ln -sf /dev/null "$1/etc/systemd/system/{shlex.quote(unit)}"' for unit in masked),
        'echo 0123456789abcdef0123456789abcdef > "$1/etc/machine-id"',
        'rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*',
        *more,
    ]
    root = scratch / "root"
    run(
        ["mmdebstrap", "--quiet", "--mode=auto", "--format=directory", "--variant=minbase", "--components=main",
         f"--include={','.join(packages)}", *(f"--dpkgopt=path-exclude={glob}" for glob in EXCLUDED),
         *(f"--customize-hook={hook}" for hook in hooks), suite, root, *sources()],
        timeout=1800, package="mmdebstrap",
    )  # fmt: skip
    run(["mke2fs", "-q", "-t", "ext4", "-L", "root", "-E", "root_owner=0:0", "-d", root, done / "root.img", size],
        package="e2fsprogs", timeout=300)  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(linux.hand_out(build, sys.argv[1:]))
