"""One QEMU machine without KVM as a process of the cell, and its monitor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.cell import Cell, child_of
from tests.lab.channel import socketpair
from tests.lab.errors import LabError

# SMAP and SMEP: QEMU 7.2 faults when the dom0 first returns to its user space. RDTSCP: QEMU gives Xen the wrong reason
# for leaving a guest that used it, and Xen ends the guest.
_CPU = "max,-smap,-smep,-rdtscp"
# With lazy switching of the FPU's state QEMU loses registers as soon as a guest runs: ssh and migrations break.
_XEN = "console=com1 com1=115200,8n1 dom0_max_vcpus=1 spec-ctrl=no,eager-fpu xpti=no guest_loglvl=info"
_LINUX = "console=hvc0 quiet mitigations=off net.ifnames=0 rdinit=/init"
MEMORY, DOM0_MEMORY = 768, 448
"""MiB of a machine, and of its dom0; the rest is for guests."""
SECONDS = 300.0
"""A monitor that has not answered after so long never will."""


@dataclass(frozen=True)
class Settings:
    """What a machine is started with. Paths are those of the cell."""

    name: str
    image: Path
    root: Path  # the root disk, a qcow2 layer
    disks: Sequence[tuple[str, Path]]  # raw, each with its name
    taps: Sequence[tuple[str, str]]  # each with the MAC address of the host's end
    networks: str  # for the first program: NAME=ADDRESS/PREFIX, in the order of the taps, with commas
    memory: Path | None = None  # what `freeze` wrote: go on from there rather than boot


class Qemu:
    def __init__(self, cell: Cell, directory: Path, settings: Settings, line: int) -> None:
        """Start the machine; its console goes to `directory`/console. `line` becomes its port to the agent, then it is
        closed here."""
        self._cell, self.name = cell, settings.name
        self._asking, self._greeted = threading.Lock(), False
        self._monitor, monitor = socketpair()
        self._answers = self._monitor.makefile("rb")
        try:
            with cell.path(directory / "console").open("ab") as console:
                self._process = cell.spawn(
                    argv(settings, line, monitor), pass_fds=[line, monitor], stdin=subprocess.DEVNULL,
                    stdout=console, stderr=console,
                )  # fmt: skip
        finally:
            os.close(line)
            os.close(monitor)

    def is_on(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End it now, as a power cut would: nothing in the host gets to know."""
        self._process_of_machine(signal.SIGKILL)
        self._process.wait(timeout=30)
        self._answers.close()
        self._monitor.close()

    def pause(self) -> None:
        self._process_of_machine(signal.SIGSTOP)

    def resume(self) -> None:
        self._process_of_machine(signal.SIGCONT)

    def plug(self, name: str, file: Path) -> None:
        """Add a disk while it runs."""
        self._ask("blockdev-add", **_block(name, file))
        self._ask("device_add", driver="virtio-blk-pci", id=name, drive=f"{name}-file", serial=name)

    def freeze(self, memory: Path) -> None:
        """Write its memory to a file and stand still, every write on its disks' files."""
        self._ask("migrate", uri=f"exec:cat >{memory}")
        end = time.monotonic() + SECONDS
        while (state := self._ask("query-migrate")["status"]) != "completed":
            if state in ("failed", "cancelled") or time.monotonic() > end:
                raise LabError(f"host {self.name}: its memory cannot be written: {state}")
            time.sleep(0.1)

    def go_on(self) -> None:
        """After `freeze`."""
        self._ask("cont")

    def _ask(self, command: str, **arguments: Any) -> Any:
        with self._asking:
            self._monitor.settimeout(SECONDS)
            if not self._greeted:
                self._say("qmp_capabilities", {})
                self._greeted = True
            return self._say(command, arguments)

    def _say(self, command: str, arguments: dict[str, Any]) -> Any:
        try:
            self._monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            for line in self._answers:
                answer = json.loads(line)
                if "error" in answer:
                    raise LabError(f"host {self.name}: {command}: {answer['error']['desc']}")
                if "return" in answer:
                    return answer["return"]
        except OSError as error:
            raise LabError(f"host {self.name}: {command}: {error}") from None
        raise LabError(f"host {self.name} went off")

    def _process_of_machine(self, number: signal.Signals) -> None:
        # nsenter -> unshare -> shell -> QEMU
        try:
            os.kill(child_of(child_of(child_of(self._process.pid))), number)
        except (FileNotFoundError, ProcessLookupError, LabError):
            if self.is_on() and number != signal.SIGKILL:
                raise LabError(f"host {self.name} is not running") from None


def argv(settings: Settings, line: int, monitor: int) -> list[str]:
    """QEMU's words. Xen is a multiboot kernel, and its modules are the dom0's kernel, with its command line, and
    initrd: no boot loader."""
    kernel = f"{settings.image}/vmlinux {_LINUX} lab.name={settings.name} lab.networks={settings.networks}"
    words = [
        "qemu-system-x86_64", "-name", settings.name, "-accel", "tcg,tb-size=128", "-machine", "pc", "-cpu", _CPU,
        "-smp", "1", "-m", str(MEMORY), "-display", "none", "-nodefaults", "-no-user-config", "-no-reboot",
        "-serial", "stdio",
        "-kernel", f"{settings.image}/xen", "-append", f"dom0_mem={DOM0_MEMORY}M,max:{DOM0_MEMORY}M {_XEN}",
        "-initrd", f"{kernel.replace(',', ',,')},{settings.image}/initrd",
        "-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control",
        # the first on the bus, so /dev/vda
        "-drive", f"file={settings.root},format=qcow2,if=none,id=root,cache=unsafe",
        "-device", "virtio-blk-pci,drive=root",
        "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=agent,fd={line}", "-device", "virtserialport,chardev=agent,name=agent",
    ]  # fmt: skip
    for n, (tap, mac) in enumerate(settings.taps):
        words += ["-netdev", f"tap,id=net{n},ifname={tap},script=no,downscript=no",
                  "-device", f"virtio-net-pci,netdev=net{n},mac={mac},romfile="]  # fmt: skip
    for name, file in settings.disks:
        words += ["-blockdev", json.dumps(_block(name, file)),
                  "-device", f"virtio-blk-pci,id={name},drive={name}-file,serial={name}"]  # fmt: skip
    if settings.memory:
        words += ["-incoming", f"exec:cat {settings.memory}"]
    return words


def _block(name: str, file: Path) -> dict[str, Any]:
    # write-through to a file that lives in memory: nothing is lost at a power cut but what the host had not written
    return {"driver": "raw", "node-name": f"{name}-file", "file": {"driver": "file", "filename": str(file)}}
