"""Domains that libvirt has and storkit does not know: taken as they are, and given back.

Taking one defines it anew under its own UUID, its disks at storkit's paths, with storkit's mark; giving it back defines
it as the guest's document has it. libvirt keeps what it keeps beside the definition (autostart). A domain that runs
goes on with its disks where it has opened them, and gets the mark as well: the definition is for its next start.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from storkit.core.errors import Conflict, NotFound, StorkitError, collected, raise_problems
from storkit.core.guest import Guest
from storkit.core.model import GuestStatus, Original, Secrets, check_name
from storkit.guests import document
from storkit.hypervisors._libvirt import domain as domains
from storkit.hypervisors._libvirt.guests import Guests, KnownGuest
from storkit.hypervisors._libvirt.virsh import PAUSED, DomainListing, Virsh
from storkit.hypervisors._machine import end_command, with_secrets
from storkit.system import openers
from storkit.system.files import make_private, write_atomic

_ORIGINAL = "original.xml"
Places = dict[str, tuple[str, ...]]
"""Where a domain has its disks (domains.places)."""


def strangers(virsh: Virsh) -> list[str]:
    """The names of the domains without storkit's mark."""
    found = map(domains.read, virsh.definitions(list(virsh.look().names)))
    return sorted(one.name for one in found if not one.ours)


def originals(virsh: Virsh, names: Sequence[str]) -> list[Original]:
    """Domains as libvirt would start them the next time. A few processes, however many they are."""
    seen = virsh.look()
    uuids = {name: uuid for uuid, name in seen.names.items()}
    problems: list[StorkitError] = [
        NotFound(f"libvirt here has no domain {name}", "virsh list --all")
        for name in names
        if check_name("guest", name) not in uuids
    ]
    raise_problems(problems)
    # With their secrets: what is defined again without them would have none.
    texts = {domains.read(text).uuid: text + "\n" for text in virsh.kept([uuids[name] for name in names])}
    statuses = {name: _status(seen, uuids[name]) for name in names}
    live = _live(virsh, [uuids[name] for name, status in statuses.items() if status != "stopped"])
    with_snapshots = set(virsh("list", "--all", "--uuid", "--with-snapshot").split())
    found: list[Original] = []
    for name in names:
        with collected(problems):
            found.append(_original(virsh, name, uuids[name], texts, statuses[name], live))
        if uuids[name] in with_snapshots:
            kept = virsh("snapshot-list", uuids[name], "--name").split()
            message = f"domain {name} has snapshots of libvirt's: {', '.join(kept)}"
            problems.append(Conflict(message, f"virsh snapshot-delete {name} {kept[0] if kept else ''}".rstrip()))
        if uuids[name] in seen.saved:
            problems.append(_saved(name))
    raise_problems(problems)
    return found


def _original(
    virsh: Virsh, name: str, uuid: str, texts: Mapping[str, str], status: GuestStatus, live: Mapping[str, Places]
) -> Original:
    text = texts.get(uuid, "")
    if not text:
        raise NotFound(f"libvirt here has no domain {name} any more", "virsh list --all")
    if domains.read(text).ours:
        raise Conflict(f"guest {name} is storkit's already", f"storkit guest show {name}")
    text, secrets = document.apart("libvirt", text)
    if status == "stopped":
        return Original(name, text, status, secrets)
    if domains.places(text) != _running(live, name, uuid):
        raise _other_disks(name)
    if kept := domains.cached(text):
        # libvirt does not migrate it: it knows no storage whose hosts share a cache.
        message = f"domain {name} runs, and writes the file of its disk {', '.join(kept)} through the page cache"
        hint = "shut its guest down, and adopt it then; or give its disk cache='none', and start it anew"
        raise Conflict(message, hint)
    return Original(name, text, status, secrets, [_process(virsh, name, uuid)])


def changed(known: KnownGuest, written: str) -> Original:
    """A guest as somebody has changed it in libvirt, and as it was there before (`written`): no text has a password."""
    text, secrets = document.apart("libvirt", known.edited)
    return Original(known.name, text, known.status, secrets, before=document.apart("libvirt", written)[0])


def refuse_to_take(virsh: Virsh, known: Guests, guests: Sequence[Guest], run: Path) -> list[Guest]:
    """Raise why domains cannot be taken now; those that run. Of one that runs the process was noted when its disks were
    adopted, on this host (`run`: Site.run)."""
    seen = virsh.look()
    running = [guest for guest in guests if _status(seen, guest.uuid) != "stopped"]
    live = _live(virsh, [guest.uuid for guest in running])
    problems: list[StorkitError] = []
    for guest in guests:
        with collected(problems):
            if seen.names.get(guest.uuid) != guest.name:
                raise NotFound(f"libvirt here has no domain {guest.name} with UUID {guest.uuid}", "virsh list --all")
            if guest in running:
                _refuse_started(virsh, guest, live, run)
            if guest.uuid in seen.saved:
                raise _saved(guest.name)
            if taken := known.taken(guest):
                raise Conflict("; ".join(taken), end_command(guest.name, "running"))
    raise_problems(problems)
    return running


def _refuse_started(virsh: Virsh, guest: Guest, live: Mapping[str, Places], run: Path) -> None:
    if _running(live, guest.name, guest.uuid) != domains.places(guest.document):
        raise _other_disks(guest.name)
    process = _process(virsh, guest.name, guest.uuid)
    if any(process not in openers.earlier(run, disk.uuid) for disk in guest.disks if not disk.readonly):
        message = f"domain {guest.name} was started here while it was adopted"
        raise Conflict(message, f"virsh shutdown {guest.name}, then again")


def mark_running(virsh: Virsh, guest: Guest) -> None:
    """Give a domain that was taken while it runs storkit's mark: libvirt tells what runs by what it runs with."""
    words = ["--uri", domains.NAMESPACE, "--key", "storkit", "--set", domains.mark(guest)]
    virsh("metadata", guest.uuid, "--live", *words)


def give_back(virsh: Virsh, guests: Guests, guest: Guest, secrets: Secrets) -> None:
    """Define a domain as its document has it, unless it is so already; and forget it. Of one that runs the definition
    goes first: as long as it has storkit's disks, the domain is storkit's."""
    seen = virsh.look()
    status = _status(seen, guest.uuid)
    if status != "stopped" and not _as_in_document(virsh, guest):
        raise Conflict(f"guest {guest.name} is {status} here", end_command(guest.name, status))
    directory = guests.directory(guest.name)
    if guest.uuid not in seen.names or any(domains.read(text).ours for text in virsh.kept([guest.uuid])):
        make_private(directory)
        write_atomic(directory / _ORIGINAL, with_secrets("libvirt", guest.document, secrets))
        virsh("define", str(directory / _ORIGINAL))
    if status != "stopped" and domains.read(virsh.definitions([guest.uuid])[0]).ours:
        virsh("metadata", guest.uuid, "--live", "--uri", domains.NAMESPACE, "--remove")
    shutil.rmtree(directory, ignore_errors=True)


def _as_in_document(virsh: Virsh, guest: Guest) -> bool:
    """Whether a domain runs with its disks where its document has them: since before it was adopted."""
    live = _live(virsh, [guest.uuid])
    return _running(live, guest.name, guest.uuid) == domains.places(guest.document)


def _live(virsh: Virsh, uuids: Sequence[str]) -> dict[str, Places]:
    """Where those of these domains that run have their disks, by their UUIDs."""
    return {domains.read(text).uuid: domains.places(text) for text in virsh.definitions(uuids)}


def _running(live: Mapping[str, Places], name: str, uuid: str) -> Places:
    """Raises Conflict: it has ended, and libvirt has forgotten it."""
    if uuid not in live:
        raise Conflict(f"domain {name} has ended", "virsh list --all")
    return live[uuid]


def _process(virsh: Virsh, name: str, uuid: str) -> int:
    """The QEMU of a domain that runs. Raises Conflict: libvirt does not say which it is."""
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}"))
    directory = Path("/run/libvirt/qemu") if virsh.uri.endswith("/system") else runtime / "libvirt/qemu/run"
    with suppress(OSError, ValueError):
        pid = int((directory / f"{name}.pid").read_text())
        if uuid.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    message = f"domain {name} runs, and which process it is cannot be seen in {directory / name}.pid"
    raise Conflict(message, f"virsh shutdown {name}, then again")


def _status(seen: DomainListing, uuid: str) -> GuestStatus:
    state = seen.states.get(uuid)
    if state is None or not state.active:
        return "stopped"
    return "paused" if state.state == PAUSED else "running"


def _other_disks(name: str) -> Conflict:
    message = f"domain {name} runs with other disks than its definition has"
    return Conflict(message, f"virsh dumpxml {name} shows them; or virsh shutdown {name}, then again")


def _saved(name: str) -> Conflict:
    hint = f"virsh start {name}, and shut it down; or virsh managedsave-remove {name}"
    return Conflict(f"domain {name} has its memory saved from an earlier run", hint)
