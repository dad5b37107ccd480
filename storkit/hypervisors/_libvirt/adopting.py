"""Domains that libvirt has and storkit does not know: taken as they are, and given back.

Taking one defines it anew under its own UUID, its disks at storkit's paths, with storkit's mark; giving it back defines
it as the guest's document has it. libvirt keeps what it keeps beside the definition (autostart).
"""

from __future__ import annotations

import shutil

from storkit.core.errors import Conflict, NotFound, StorkitError, collected, raise_problems
from storkit.core.guest import Guest
from storkit.core.model import GuestStatus, Original, Secret, Secrets, check_name
from storkit.guests import document
from storkit.hypervisors._libvirt import domain as domains
from storkit.hypervisors._libvirt.guests import Guests
from storkit.hypervisors._libvirt.virsh import PAUSED, DomainListing, Virsh
from storkit.hypervisors._machine import end_command, with_secrets
from storkit.system.files import make_private, write_atomic

_ORIGINAL = "original.xml"


def strangers(virsh: Virsh) -> list[str]:
    """The names of the domains without storkit's mark."""
    found = map(domains.read, virsh.definitions(list(virsh.look().names)))
    return sorted(one.name for one in found if not one.ours)


def original(virsh: Virsh, name: str) -> Original:
    """A domain as libvirt would start it the next time."""
    check_name("guest", name)
    seen = virsh.look()
    uuid = next((uuid for uuid, known in seen.names.items() if known == name), "")
    if not uuid:
        raise NotFound(f"libvirt here has no domain {name}", "virsh list --all")
    # With its secrets: what is defined again without them would have none.
    text = virsh("dumpxml", uuid, "--inactive", "--security-info")
    if domains.read(text).ours:
        raise Conflict(f"guest {name} is storkit's already", f"storkit guest show {name}")
    problems: list[StorkitError] = []
    secrets: dict[str, Secret] = {}
    with collected(problems):
        text, secrets = document.apart("libvirt", text.strip() + "\n")
    if kept := virsh("snapshot-list", uuid, "--name").split():
        message = f"domain {name} has snapshots of libvirt's: {', '.join(kept)}"
        problems.append(Conflict(message, f"virsh snapshot-delete {name} {kept[0]}"))
    if uuid in seen.saved:
        problems.append(_saved(name))
    raise_problems(problems)
    return Original(name, text, _status(seen, uuid), secrets)


def refuse_to_take(virsh: Virsh, guests: Guests, guest: Guest) -> None:
    """Raise why a domain cannot be taken now."""
    seen = virsh.look()
    if seen.names.get(guest.uuid) != guest.name:
        raise NotFound(f"libvirt here has no domain {guest.name} with UUID {guest.uuid}", "virsh list --all")
    if (status := _status(seen, guest.uuid)) != "stopped":
        raise Conflict(f"domain {guest.name} is {status} here", f"virsh shutdown {guest.name}, then again")
    if guest.uuid in seen.saved:
        raise _saved(guest.name)
    if taken := guests.taken(guest):
        raise Conflict("; ".join(taken), end_command(guest.name, "running"))


def give_back(virsh: Virsh, guests: Guests, guest: Guest, secrets: Secrets) -> None:
    """Define a domain as its document has it, unless it is so already; and forget it."""
    known, foreign = guests.look([guest.name], guest.uuid)
    for one in known:
        if not one.idle:
            raise Conflict(f"guest {guest.name} is {one.status} here", end_command(guest.name, one.status))
    directory = guests.directory(guest.name)
    if not any(one.uuid == guest.uuid for one in foreign):
        make_private(directory)
        write_atomic(directory / _ORIGINAL, with_secrets("libvirt", guest.document, secrets))
        virsh("define", str(directory / _ORIGINAL))
    shutil.rmtree(directory, ignore_errors=True)


def _status(seen: DomainListing, uuid: str) -> GuestStatus:
    state = seen.states.get(uuid)
    if state is None or not state.active:
        return "stopped"
    return "paused" if state.state == PAUSED else "running"


def _saved(name: str) -> Conflict:
    hint = f"virsh start {name}, and shut it down; or virsh managedsave-remove {name}"
    return Conflict(f"domain {name} has its memory saved from an earlier run", hint)
