"""What a guest needs of a host that runs under Xen."""

from __future__ import annotations

from storkit.core.errors import Unsupported
from storkit.core.guest import Guest
from storkit.core.units import format_size
from storkit.guests.limits import xen_type
from storkit.hypervisors._xl import toolstack
from storkit.hypervisors._xl.toolstack import XenDomain, XenMachine


def machine_problems(guest: Guest, arrives: bool, running: bool) -> list[str]:
    """What Xen here lacks for this guest, which runs here already or is to; each in one line."""
    machine, problems = toolstack.machine(), list[str]()
    comes_from = guest.machine.partition("-")[2]
    if comes_from and _numbers(machine.version) < _numbers(comes_from):
        problems.append(
            f"it runs under Xen {comes_from}, and Xen here is {machine.version}: a guest never moves to an older one;"
            f" storkit guest stop {guest.name}, and start it here"
        )
    wanted = "pv" if xen_type(guest) == "pv" else "hvm"
    if wanted not in machine.abilities:
        abilities = " ".join(sorted(machine.abilities))
        problems.append(
            f"Xen here cannot run {xen_type(guest)} guests (virt_caps: {abilities}): look into the BIOS's settings"
        )
    if arrives and not can_move(guest, machine):
        error = no_live_pv(guest.name)
        problems.append(f"{error.message}: {error.hint}")
    if not running and machine.free is not None and guest.memory > machine.free:
        wants, has = format_size(guest.memory), format_size(machine.free)
        problems.append(f"{wants} of memory are wanted, and Xen here has {has}: xl mem-set 0 with less, or stop guests")
    return problems


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdecimal()]


def can_move(guest: Guest, machine: XenMachine | None = None) -> bool:
    """Whether Xen here, which is `machine`, can send or receive a guest that runs."""
    return xen_type(guest) != "pv" or "shadow" in (machine or toolstack.machine()).abilities


def no_live_pv(name: str) -> Unsupported:
    """The error of a live migration that this Xen has no means for."""
    return Unsupported(
        f"guest {name} is of type pv, and Xen here has no shadow paging, so that it cannot be moved while it runs",
        f"storkit guest save {name} FILE, and storkit guest restore {name} FILE --on the other host;"
        ' or make it pvh: machine = "pvh" in its file',
    )


def in_the_way(domain: XenDomain) -> str:
    """Why a guest cannot have its name here."""
    there = f"Xen here has a domain {domain.name} ({domain.uuid})"
    return f"{there} that is not this guest: xl rename {domain.id} NEW-NAME moves it away"
