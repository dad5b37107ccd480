"""QEMUs that somebody else has started: found by their arguments, adopted without a stop, and given back.

What their arguments do not say is asked of their monitor, where they have one that takes us: which machine it is,
which disks are open. A monitor serves one client at a time, and QEMU is given no second one while it runs; so a process
without one, or whose monitor somebody holds, is adopted and stays where it is until its next stop.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePath

from storkit.core import codec
from storkit.core.backend import Site
from storkit.core.errors import Conflict, NotFound, StorkitError, Unsupported, UsageError, collected, raise_problems
from storkit.core.guest import Guest
from storkit.core.model import GuestStatus, Original, Secret, Secrets, check_name
from storkit.guests import document
from storkit.guests.command import Pair, command, pairs
from storkit.guests.documents import launch
from storkit.guests.documents.edits import DocumentDisk
from storkit.guests.documents.options import read
from storkit.hypervisors._embedded import RECORD
from storkit.hypervisors._qemu.adopted import Adopted
from storkit.hypervisors._qemu.definition import Definition, save
from storkit.hypervisors._qemu.process import ASK_TIMEOUT, STATUS, Process
from storkit.system import openers
from storkit.system.files import make_private, write_atomic
from storkit.system.qemu import qmp

_QEMU = re.compile(r"qemu-system-[\w-]+|qemu-kvm|kvm")
_LIBVIRTS = "masterKey0"
_OURS = "id=storkit-qmp,"
_OPENS = ("file", "host_device")
"""Drivers of block nodes that open a file or a device of the host."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What a process says at its monitor."""

    monitor: Path | None = None
    """None: it has none that can be had."""
    why: str = "its QEMU has no monitor for programs (-qmp unix:PATH,server=on,wait=off)"
    status: str = "running"
    machine: str = ""
    opened: list[str] = field(default_factory=list)
    """The files and devices that it writes."""


def original(name: str, process: int) -> Original:
    """The guest of a QEMU that runs here, by its name or by its process, as its arguments have it."""
    check_name("guest", name)
    pid = _process(name, process)
    words = _words(pid)
    _refuse_others(pid, words)
    text = written(words)
    given = pairs(command(text).arguments)
    said = _ask(pid, given)
    problems: list[StorkitError] = []
    if (status := _status(said.status)) is None:
        hint = "wait for the end of its migration, and adopt it where it runs then"
        problems.append(Conflict(f"the QEMU of guest {name} (pid {pid}) does not run: it says {said.status}", hint))
    secrets: dict[str, Secret] = {}
    with collected(problems):
        disks = document.find_disks("qemu", text)
        problems += _other_disks(name, pid, disks, said)
        text, secrets = document.apart("qemu", text)
    raise_problems(problems)
    assert status
    return Original(name, text, status, secrets, [pid], pinned=_pinned(text, said))


def written(words: Sequence[str]) -> str:
    """A process's arguments as a command, an option a line."""
    lines = [shlex.quote(words[0])]
    for word in words[1:]:
        lines.append(shlex.quote(word)) if word.startswith("-") else lines.append(f"{lines.pop()} {shlex.quote(word)}")
    return " \\\n  ".join(lines) + "\n"


def take(
    site: Site, process: Process, directory: Path, definition: Definition, templates: list[Path], secrets: Secrets
) -> None:
    """Know a guest by its process, which was noted when its disks were adopted. The note comes first: with the record
    alone it would be taken for stopped. Without its disks it is defined anew before it starts."""
    guest = definition.guest
    written_to = [openers.earlier(site.run, disk.uuid) for disk in guest.disks if not disk.readonly]
    pids = frozenset.intersection(*written_to) if written_to else frozenset()
    if len(pids) != 1:
        message = f"the QEMU of guest {guest.name} has ended since it was looked at"
        raise Conflict(message, f"storkit guest adopt {guest.name} --config FILE")
    (pid,) = pids
    said = _ask(pid, pairs(command(guest.document).arguments))
    pinned = _pinned(guest.document, said)
    if len(definition.disks) < len(guest.disks):
        pinned = "its disks are open in its QEMU, beside which nobody else may have them open"
    monitor, inode = (str(said.monitor), said.monitor.stat().st_ino) if said.monitor else ("", 0)
    note = Adopted(pid, openers.started(pid), monitor, inode, pinned)
    make_private(process.directory)
    write_atomic(process.note, json.dumps(codec.dump(note)) + "\n")
    if len(definition.disks) == len(guest.disks):
        save(directory, definition, process, templates, secrets or {})
        return
    make_private(directory)
    write_atomic(directory / RECORD, json.dumps(codec.dump(definition), indent=1) + "\n")


def machine(guest: Guest, run: Path) -> str:
    """The versioned machine type that a guest's own process has; empty: it does not say."""
    for disk in guest.disks:
        for pid in openers.earlier(run, disk.uuid):
            return _ask(pid, pairs(command(guest.document).arguments)).machine
    return ""


def give_back(process: Process, directory: Path, guest: Guest) -> None:
    """Know nothing of an adopted guest any more, whose process goes on."""
    if process.adopted is None and process.alive():
        raise Conflict(f"guest {guest.name} was started by storkit here", f"storkit guest stop {guest.name}")
    shutil.rmtree(directory, ignore_errors=True)
    shutil.rmtree(process.directory, ignore_errors=True)


def _process(name: str, process: int) -> int:
    """The QEMU of this number, or the one that calls its guest so."""
    if process:
        if not (words := _words(process)) or not _QEMU.fullmatch(PurePath(words[0]).name):
            raise UsageError(f"process {process} is no QEMU here", f"see which it is: pgrep -af 'qemu.*{name}'")
        if (own := _name(words)) and own != name:
            raise UsageError(f"process {process} is the QEMU of {own!r}, and not of {name!r}", "name the right one")
        return process
    found = [pid for pid, words in _all() if _name(words) == name and not any(_OURS in word for word in words)]
    if not found:
        raise NotFound(f"no QEMU here has a guest {name}", f"pgrep -af qemu; then: guest adopt {name} --pid PID")
    if len(found) > 1:
        numbers = ", ".join(map(str, found))
        raise Conflict(f"several QEMUs here call their guest {name}: {numbers}", "say which one: --pid PID")
    return found[0]


def _all() -> Iterator[tuple[int, list[str]]]:
    """The QEMUs of this host that can be seen, with their words."""
    for entry in os.listdir("/proc"):  # noqa: PTH208
        if entry.isdigit() and (words := _words(int(entry))) and _QEMU.fullmatch(PurePath(words[0]).name):
            yield int(entry), words


def _words(pid: int) -> list[str]:
    """The arguments of a process, its program first; none: it has ended, or they are no text."""
    with suppress(OSError, UnicodeDecodeError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    return []


def _name(words: Sequence[str]) -> str:
    """What a QEMU's arguments call its guest: the last -name counts."""
    named = [value for option, value in pairwise(words) if option in ("-name", "--name")]
    with suppress(UsageError):
        return read(named[-1], "guest").get("guest") if named else ""
    return ""


def _refuse_others(pid: int, words: Sequence[str]) -> None:
    """Raise Conflict if somebody else commands a QEMU."""
    if any(_OURS in word for word in words):
        raise Conflict(f"process {pid} is a guest of storkit's already", "storkit guest list")
    if any(_LIBVIRTS in word for word in words):
        raise Conflict(f"process {pid} is a domain of libvirt's", "adopt it by its name there: virsh list")


def _monitors(pid: int, given: Sequence[Pair]) -> Iterator[Path]:
    """The sockets of a process at which it takes commands of QMP, as its arguments name them."""
    sockets: dict[str, str] = {}
    for pair in given:
        if pair.option == "-chardev":
            argument = read(pair.text, "backend")
            if argument.get("backend") == "socket" and argument.get("server") not in ("", "off"):
                sockets[argument.get("id")] = argument.get("path")
    places: list[str] = []
    for pair in given:
        if pair.option in ("-qmp", "-qmp-pretty") and pair.text.startswith("unix:"):
            places.append(read(pair.text.removeprefix("unix:"), "path").get("path"))
        elif pair.option == "-mon" and read(pair.text, "chardev").get("mode") == "control":
            places.append(sockets.get(read(pair.text, "chardev").get("chardev"), ""))
    for place in filter(None, places):
        with suppress(OSError):
            yield Path(f"/proc/{pid}/cwd").readlink() / place


def _ask(pid: int, given: Sequence[Pair]) -> _Said:
    """What a process says at the first of its monitors that takes us."""
    import asyncio

    why = ""
    for place in _monitors(pid, given):
        try:
            return asyncio.run(_asked(place))
        except StorkitError as error:
            why = f"its QEMU's monitor cannot be had ({error.message}): another client may hold it"
    return _Said(why=why) if why else _Said()


async def _asked(place: Path) -> _Said:
    async with qmp.connect(place, timeout=ASK_TIMEOUT) as qemu:
        status = str((await qemu.execute("query-status"))["status"])
        kind = str(await qemu.execute("qom-get", {"path": "/machine", "property": "type"}))
        nodes = await qemu.execute("query-named-block-nodes", {"flat": True})
        opened = [str(node["image"]["filename"]) for node in nodes if node["drv"] in _OPENS and not node["ro"]]
        return _Said(place, "", status, kind.removesuffix("-machine"), opened)


def _status(said: str) -> GuestStatus | None:
    """A guest's status by QEMU's run state; None: it is not whole here."""
    status = STATUS.get(said, "paused")
    return status if status in ("running", "paused") else None


def _other_disks(name: str, pid: int, disks: Sequence[DocumentDisk], said: _Said) -> Iterator[StorkitError]:
    """What a process has open otherwise than its arguments say: disks come and go by a monitor."""
    named = {os.path.realpath(each.place) for each in disks if each.place.startswith("/")}
    hint = "its arguments are all that would be known of it at its next start: start it with those that it has now"
    for place in sorted({os.path.realpath(each) for each in said.opened} - named):
        yield Conflict(f"the QEMU of guest {name} (pid {pid}) writes {place}, which its arguments do not have", hint)
    mapped = {each.source.path for each in disks if each.mapped and each.source and each.source.path}
    opened = openers.find(mapped)
    for place in sorted(mapped):
        if pid not in {each.pid for each in opened.get(place, ())}:
            yield Conflict(f"the QEMU of guest {name} (pid {pid}) does not have {place} open", hint)


def _pinned(text: str, said: _Said) -> str:
    """Why a guest cannot leave its host while its process lives."""
    if not said.monitor:
        return said.why
    if launch.accelerator(text) != "kvm" and launch.grows(text):
        return "it has no KVM, and QEMU loses writes to memory of whole 256 KiB without it (docs/migrate.md)"
    return ""


def refuse_without_monitor(name: str, process: Process) -> None:
    """Raise Unsupported if an adopted process takes no commands."""
    found = process.adopted
    if found and not found.socket():
        message = f"guest {name} was started without a monitor that storkit could press its power button by"
        raise Unsupported(message, f"shut it down from within; or: storkit guest stop {name} --force")
