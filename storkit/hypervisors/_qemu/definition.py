"""What is kept of a guest on one host: its record, its disks there, its pinned machine type, and QEMU's arguments."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from storkit.core import codec
from storkit.core.backend import Site
from storkit.core.errors import Unsupported
from storkit.core.guest import Guest
from storkit.core.model import DiskSource, Secret
from storkit.hypervisors._embedded import RECORD
from storkit.hypervisors._machine import DEFAULT_MACHINE
from storkit.hypervisors._qemu import host
from storkit.hypervisors._qemu.process import Process
from storkit.system.files import make_private, read_json, write_atomic
from storkit.system.qemu.storagedaemon import listening_sockets

START = "args"
RECEIVE = "args.incoming"
LOG = "log"
"""QEMU's messages since its last start: a daemon's stderr would be lost, and with it why a migration did not arrive."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A guest as it was defined on this host."""

    guest: Guest
    disks: list[DiskSource]
    machine: str
    """The machine type with its version."""
    accel: str
    asked: str = ""
    """The machine type that was asked for when `machine` was pinned."""


def load(directory: Path) -> Definition:
    """The definition kept in a directory. Raises FileNotFoundError; Unsafe or UsageError for a damaged one."""
    path = directory / RECORD
    return codec.load(Definition, read_json(path, "guest record"), str(path))


def save(
    directory: Path, definition: Definition, process: Process, templates: list[Path], secrets: Mapping[str, Secret]
) -> Path:
    """Render and keep a definition; the path of QEMU's arguments. The record comes last: without it there is none.

    Raises everything that is wrong with the guest before anything is written.
    """
    firmware = _firmware(definition.guest, directory)
    started = _render(definition, process, directory, firmware, templates, incoming=False)
    receiving = _render(definition, process, directory, firmware, templates, incoming=True)
    make_private(directory)
    for name, value in secrets.items():
        write_atomic(directory / name, value.reveal())
    if firmware and all(disk.bus != "flash" for disk in definition.guest.disks):
        host.copy_variables(firmware[1], Path(firmware[2]))
    write_atomic(directory / START, started)
    write_atomic(directory / RECEIVE, receiving)
    write_atomic(directory / RECORD, json.dumps(codec.dump(definition), indent=1) + "\n")
    return directory / START


def _firmware(guest: Guest, directory: Path) -> tuple[Path, Path, Path] | None:
    """For UEFI: the code, the template of the variables, and the guest's own copy of them."""
    if guest.document or guest.boot.firmware != "uefi":
        return None
    found = host.firmware()
    if found is None:
        raise Unsupported("no UEFI firmware is installed here", "apt install ovmf")
    # Without a volume for them, the guest's variables are this host's.
    return *found, directory / "uefi-vars.fd"


def _render(
    definition: Definition,
    process: Process,
    directory: Path,
    firmware: tuple[Path, Path, Path] | None,
    templates: list[Path],
    *,
    incoming: bool,
) -> str:
    from storkit.guests.place import Place
    from storkit.guests.quoting import quote_option
    from storkit.guests.render import read_args, render

    place = Place(
        accel="kvm" if definition.accel == "kvm" else "tcg",
        machine=definition.machine,
        incoming=incoming,
        daemonize=True,
        qmp=str(process.own_monitor),
        pidfile=str(process.pidfile),
        console=str(process.console),
        agent=str(process.agent),
        uefi_code=str(firmware[0]) if firmware else "",
        uefi_vars=str(firmware[2]) if firmware else "",
        listening=frozenset(listening_sockets()),
        secrets=str(directory),
    )
    text = render(definition.guest, definition.disks, "qemu", place, templates)
    said = read_args(text) if definition.guest.document else []
    # -D keeps stderr only if something is logged: system calls, of which system emulation has none.
    log = str(directory / LOG)
    added = [
        "-chardev",
        f"socket,id=storkit-move,path={quote_option(process.own_migration)},server=on,wait=off",
        "-mon",
        "chardev=storkit-move,mode=control",
        # A `%` there is a template, which has no quoting.
        *(["-D", log, "-d", "strace"] if "%" not in log and not {"-D", "-d"} & {*said} else []),
    ]
    return "\n".join([text.rstrip(), *added, ""])


def accelerator(guest: Guest) -> str:
    """What the guest's own document wants it run by: kvm, tcg; empty: whatever there is."""
    from storkit.guests.documents import launch

    return launch.accelerator(guest.document)


def document_problems(guest: Guest, binary: str) -> list[str]:
    """Why a guest's document is none for this host's QEMU."""
    if not guest.document:
        return []
    from storkit.guests.documents import launch

    problems: list[str] = []
    wanted, program = launch.architecture(guest.document), Path(binary).name
    if wanted and program.startswith("qemu-system-") and program != f"qemu-system-{wanted}":
        problems.append(f"the guest is made for qemu-system-{wanted}, and the program here is {binary}")
    if launch.accelerator(guest.document) == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        problems.append("the guest's document wants KVM, and /dev/kvm is missing or not open to this user")
    return problems


def machine_type(site: Site, binary: str, guest: Guest, machine: str, before: Definition | None) -> str:
    """The versioned machine type of a guest: the one demanded, or the one that it was defined with `before`, or what
    the record's stands for now. Raises Unsupported: QEMU here has none of that name."""
    known = host.machines(site, binary)
    wanted = machine or guest.machine or DEFAULT_MACHINE
    same = before is not None and (before.guest.uuid, before.asked) == (guest.uuid, guest.machine)
    if before and same and not machine and before.machine in known:
        return before.machine
    if wanted not in known:
        raise Unsupported(f"QEMU here has no machine type {wanted!r}", f"{binary} -machine help")
    return known[wanted]
