"""What every hypervisor asks of the machine that a guest is to run on, and says of the guest in the same words."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from storkit.core.errors import Conflict, Unsafe
from storkit.core.guest import Guest
from storkit.core.model import GuestStatus, Secrets
from storkit.core.units import format_size

DEFAULT_MACHINE = "pc"
"""QEMU's machine type of a guest whose record names none."""
PRESS_AGAIN = 10.0
"""Seconds between presses of the power button: a guest that is still starting loses the first one."""


def file_problems(guest: Guest) -> Iterator[str]:
    """Say which files of the guest's record this host lacks."""
    for what, path in (("kernel", guest.boot.kernel), ("initrd", guest.boot.initrd)):
        if path and not os.access(path, os.R_OK):
            yield f"the {what} {path} is missing or not readable here: copy it to this host"


def memory_problems(guest: Guest) -> Iterator[str]:
    """Say that this host lacks the memory for the guest. Not to be asked where the guest has it already."""
    available = memory_available()
    if guest.memory > available:
        yield f"{format_size(guest.memory)} of memory are wanted, {format_size(available)} are available"


def with_secrets(hypervisor: str, text: str, secrets: Secrets) -> str:
    """A configuration with the passwords that its document has names in the place of: for a 0600 file."""
    if not secrets:
        return text
    from storkit.guests import document

    return document.with_secrets(hypervisor, text, secrets)


def fingerprint(guest: Guest, started: Guest | None, accelerator: str, machine: str, native: bool) -> dict[str, str]:
    """What must be alike at both hosts of a migration, each by the name that an error gives it.

    Args:
        guest: The record.
        started: The record that the guest runs by here; None: it does not run here.
        accelerator: kvm or tcg.
        machine: The versioned machine type.
        native: The guest sees this host's own processor, so that the other host's must be the same.
    """
    changed = differences(started, guest) if started else ""
    return {
        "definition": f"changed in {changed} since it was started" if changed else "as recorded",
        "accelerator": accelerator,
        "machine type": machine,
        "processor": processor() if native else "",
        "kernel": digest(guest.boot.kernel),
        "initrd": digest(guest.boot.initrd),
        # A storkit that knows of no such channel makes none: it has no word for it here either.
        **({"agent's channel": "a virtio-serial port"} if guest.agent and not guest.document else {}),
    }


def differences(started: Guest, record: Guest) -> str:
    """The fields in which a guest's record differs from the record that it was started by."""
    names = [field.name for field in fields(Guest) if field.name != "machine"]
    return ", ".join(name for name in names if getattr(started, name) != getattr(record, name))


def taken_disks(guest: Guest, other: Guest, status: GuestStatus) -> list[str]:
    """Which disks of a guest another one has that is here, with this status, other than to read them both: the storage
    side takes both for this host, which may write."""
    readonly = {disk.uuid: disk.readonly for disk in guest.disks if disk.uuid}
    return [
        f"volume {disk.volume} is in use by guest {other.name} here: {end_command(other.name, status)}"
        for disk in other.disks
        if disk.uuid in readonly and not (readonly[disk.uuid] and disk.readonly)
    ]


def refuse_shutdown(name: str, status: GuestStatus) -> None:
    """Raise Conflict if a guest of this status cannot shut itself down."""
    if status == "starting":
        raise Conflict(f"guest {name} is just being started here", f"wait, then: {look_command(name)}")
    if status in ("paused", "unknown"):
        state = "is paused" if status == "paused" else "does not answer"
        raise Conflict(f"guest {name} {state}, so it cannot shut itself down", force_command(name))


def refuse_retire(name: str, status: GuestStatus) -> None:
    """Raise Unsafe if a guest of this status runs, or may run."""
    if status in ("running", "paused", "starting", "unknown"):
        may = ", so it may run" if status in ("starting", "unknown") else ""
        raise Unsafe(f"guest {name} is not retired: it is {status} here{may}", look_command(name))


def memory_available() -> int:
    """Bytes that new programs can have without swapping (MemAvailable of /proc/meminfo, proc(5))."""
    found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def processor() -> str:
    """The host's processor model, as the kernel names it."""
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else ""


def digest(path: str) -> str:
    """The SHA-256 of a file; empty for no path."""
    if not path:
        return ""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def look_command(name: str) -> str:
    """The command that shows where a guest is."""
    return f"storkit migrate status {name}"


def stop_command(name: str) -> str:
    """The command that stops a guest."""
    return f"storkit guest stop {name}"


def end_command(name: str, status: GuestStatus) -> str:
    """The command that ends what a host has of a guest: one that is not here yet, or any more, may run elsewhere."""
    return f"storkit migrate cleanup {name}" if status in ("incoming", "arrived", "migrated") else stop_command(name)


def resume_command(name: str) -> str:
    """The command that lets a guest go on."""
    return f"storkit guest resume {name}"


def force_command(name: str) -> str:
    """The command that ends a guest without asking it."""
    return f"{stop_command(name)} --force"
