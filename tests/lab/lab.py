"""The lab: a cell, its networks, and hosts made when they are first asked for."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests import xstate
from tests.lab import image, modules, network
from tests.lab.cell import Cell
from tests.lab.errors import LabError, Unsupported
from tests.lab.host import BOOT_DEADLINE, Host

MEMORY = "768M"


def missing() -> str:
    """Why this machine cannot run the lab, or nothing."""
    wanted = {
        "linux.uml": "user-mode-linux", "mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "ip": "iproute2",
        "bridge": "iproute2", "unshare": "util-linux", "nsenter": "util-linux", "ssh-keygen": "openssh-client",
        "apt-get": "apt",
    }  # fmt: skip
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return f"the lab needs Linux on x86_64, this is {sys.platform} on {os.uname().machine}"
    if os.geteuid() != 0:
        return "the lab needs root, to make namespaces, bridges and taps"
    absent = {package for tool, package in wanted.items() if not shutil.which(tool)}
    if xstate.needed() and not xstate.compiler():
        absent.add("tcc")
    if absent:
        return f"the lab needs packages that are not installed: apt-get install {' '.join(sorted(absent))}"
    if not Path("/dev/net/tun").exists():
        return "the lab needs /dev/net/tun for its hosts' networks"
    if not any(Path("/usr/lib/uml/modules").glob("*/modules.dep")):
        return "the lab needs the modules of user-mode-linux in /usr/lib/uml/modules"
    return ""


class Lab:
    def __init__(self, say: Callable[[str], None] = lambda text: None, nvme: bool = False) -> None:
        """Make the cell and its networks, and first the image if it is not in the cache. Raises Unsupported.

        `nvme`: the hosts' kernels have NVMe/TCP. Where its modules cannot be built, they have not, and it is said why.
        """
        if reason := missing():
            raise Unsupported(reason)
        self._modules = modules.DEBIAN
        if nvme:
            try:
                self._modules = modules.modules(say)
            except Unsupported as reason:
                say(f"no NVMe/TCP: {reason}")
        self._image = image.image(say)
        self._hosts: dict[str, Host] = {}
        self._added: list[Host] = []
        self.cell = Cell(image.cache() / "run")
        try:
            self._furnish()
        except BaseException as error:
            self.close()
            if isinstance(error, LabError):
                raise Unsupported(f"this machine has no networks for the lab: {error}") from error
            raise

    def _furnish(self) -> None:
        run = self.cell.run_dir
        self.shared = self.cell.path(run / "shared")
        for directory in (self.shared / "ssh", self.cell.path(run / "common"), self.cell.path(run / "tree")):
            directory.mkdir(parents=True)
        self.cell.run(["mount", "--bind", "-o", "ro", str(image.TREE), str(run / "tree")])
        if xstate.needed():
            xstate.build(self.cell.path(run / "common"))
        network.make_bridges(self.cell)
        ssh = run / "shared/ssh"
        for key in ("id_ed25519", "host_key"):
            self.cell.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(ssh / key)])
        there = self.cell.path(ssh)
        (there / "authorized_keys").write_bytes((there / "id_ed25519.pub").read_bytes())
        (there / "known_hosts").write_text(f"* {(there / 'host_key.pub').read_text()}")
        (there / "config").write_text(
            f"User root\nIdentityFile {ssh}/id_ed25519\nUserKnownHostsFile {ssh}/known_hosts\nLogLevel ERROR\n"
            f"ControlMaster auto\nControlPersist yes\nControlPath {ssh}/to-%h\n"
        )
        self._write_names()
        # the names are known to whatever runs inside the cell too, whose mounts are its own
        self.cell.run(["mount", "--bind", str(run / "shared/hosts"), "/etc/hosts"])

    def _write_names(self) -> None:
        lines = ["127.0.0.1 localhost"]
        for host in self.known():
            names = [f"{host.address(net)} {host.name}-{net}" for net in network.NETWORKS]
            lines += [f"{names[0]} {host.name}", *names[1:]]
        (self.shared / "hosts").write_text("\n".join(lines) + "\n")

    def host(self, name: str, memory: str = MEMORY) -> Host:
        """A host that is up, booted first if need be."""
        return self.hosts(name, memory=memory)[0]

    def hosts(self, *names: str, memory: str = MEMORY) -> list[Host]:
        """Several hosts that are up; those that are not boot at the same time, with fresh disks if their `memory` was
        another so far."""
        new = [name for name in names if name not in self._hosts]
        for name in new:
            if not (name.isalnum() and name.islower() and len(name) <= 8):
                raise ValueError(f"a host's name is up to 8 lower-case letters and digits, not {name!r}")
            self._hosts[name] = Host(self.cell, name, 11 + len(self._hosts), Path(self._image.name), self._modules)
        if new:
            self._write_names()
        wanted = [self._hosts[name] for name in names]
        for host in wanted:
            if host.memory != memory:
                host.discard()
                host.memory = memory
        booting = [host for host in wanted if not host.is_on()]
        for host in booting:
            host.start()
        end = time.monotonic() + BOOT_DEADLINE + 15 * len(booting)
        for host in booting:
            host.wait_until_up(end - time.monotonic())
        for host in booting:
            host.remember_clean()
        return wanted

    def add(self, *hosts: Host) -> None:
        """Hosts that somebody else made on this lab's networks: the others know them by name, and they end with it."""
        self._added += hosts
        self._write_names()

    def known(self) -> Sequence[Host]:
        """Every host that was asked for or added so far, on or off."""
        return [*self._hosts.values(), *self._added]

    def tidy(self) -> None:
        """Make every host fit for the next test: those left as they were, but for storkit's own files, stay up, and the
        others are thrown away. What a test leaves is its own business before that."""

        def rest(host: Host) -> None:
            host.resume()
            host.heal()
            host.log.clear()
            with contextlib.suppress(LabError, TimeoutError):  # `scrub` finds out
                host.rest()

        def tidy(host: Host) -> None:
            if not host.scrub():
                host.discard()

        with ThreadPoolExecutor() as pool:
            list(pool.map(rest, self.known()))
            list(pool.map(tidy, self.known()))

    def ssh(self, name: str, argv: Sequence[str], *, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command in a host as a person would, through ssh from the cell."""
        return self.cell.run(self.ssh_argv(name, argv), timeout=timeout)

    def ssh_argv(self, name: str, argv: Sequence[str] = ()) -> list[str]:
        return ["ssh", "-F", str(self.cell.run_dir / "shared/ssh/config"), name, *argv]

    def close(self) -> None:
        for host in self.known():
            with contextlib.suppress(LabError):
                host.power_off()
        self.cell.close()
        self._image.close()

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
