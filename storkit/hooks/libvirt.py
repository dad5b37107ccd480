"""libvirt's hook (libvirt.org/hooks.html): `/etc/libvirt/hooks/qemu.d/storkit GUEST OPERATION SUB-OPERATION EXTRA`.

    migrate begin    a guest begins to arrive                     enter: arrive
    restore begin    one is about to be read from a file          enter: wake
    prepare begin    one is about to start, whatever it is for    enter: start; what was done for it is there already
    started begin    QEMU runs                                    the guest is awake, if it was asleep
    release end      it has ended, and nothing of it is left      leave, or hold: by the reason

All else does nothing, and says that all is well: of a hook that fails at `reconnect` libvirt kills the guest. libvirt
is never called back, which would wait for this very hook.

Why a guest has ended libvirt says in EXTRA since 10.5.0, and before that only in the guest's log, as the last words of
what it says of it: `shutting down, reason=saved`. A reason that keeps open whether the guest is to go on here leaves
the right where it is, unless another host has been let in: then the guest is that one's.

The domain's XML comes on stdin. Its disks below the directory of stable paths are storkit's; nothing else is.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from storkit.core.contracts.hooks import EnterReason, LeaveReason
from storkit.core.errors import Conflict, UsageError, raise_problems
from storkit.core.identities import check_name, check_uuid
from storkit.hooks.engine import GuestDisk, GuestId, Hooks, say
from storkit.system import openers
from storkit.system.files import make_private, write_atomic

LOGS = Path("/var/log/libvirt/qemu")
MANAGED = Path("/var/lib/libvirt/qemu/save")
"""Where `virsh managedsave` puts a guest's memory."""
LONGEST = 4 << 20
"""Bytes of a domain's XML."""
TAIL = 16 << 10
"""Bytes at the end of a log that are looked at."""

CALLS: Final = frozenset(
    {("migrate", "begin"), ("restore", "begin"), ("prepare", "begin"), ("started", "begin"), ("release", "end")}
)
"""The calls that are not ignored."""
ENTER: Final[dict[str, EnterReason]] = {"migrate": "arrive", "restore": "wake", "prepare": "start"}
LEAVE: Final[dict[str, LeaveReason]] = {
    "migrated": "moved",
    "shutdown": "ended",
    "destroyed": "ended",
    "failed": "failed",
}
"""libvirt's shutoff reasons (virDomainShutoffReason) that say that the guest is not to go on here. `saved` holds its
disks; `crashed`, `daemon`, `from snapshot`, `unknown` and what later versions may say keep the right."""
_REASON = re.compile(r"^\S+ \S+: shutting down, reason=([a-z ]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class DomainEvent:
    """What libvirt says has happened, or is about to."""

    guest: GuestId
    operation: str
    sub: str
    extra: str
    disks: list[GuestDisk]


def parse(name: str, operation: str, sub: str, extra: str, xml: bytes, dev: Path) -> DomainEvent:
    """The event that a call of the hook stands for; disks are those below `dev`. Raises UsageError: the XML is none."""
    if len(xml) > LONGEST or b"<!DOCTYPE" in xml:
        raise UsageError(f"the XML of domain {name!r} is none that libvirt writes")
    try:
        root = ET.fromstring(xml)
    except ET.ParseError as error:
        raise UsageError(f"the XML of domain {name!r} does not parse: {error}") from None
    uuid = (root.findtext("uuid") or "").strip().lower()
    guest = GuestId(check_name("guest", name), check_uuid(uuid) if uuid else "")
    disks: dict[str, GuestDisk] = {}
    for disk in (*root.findall("devices/disk"), *root.findall("os/nvram")):
        source = disk.find("source")
        path = Path((disk.text or "") if source is None else source.get("dev") or source.get("file") or "")
        if path.parent == dev:
            read_only = disk.find("readonly") is not None
            here = disks.get(check_name("volume", path.name))
            device = disk.get("type") == "block" or (here is not None and here.device)
            disks[path.name] = GuestDisk(path.name, read_only and (here is None or here.read_only), device)
    return DomainEvent(guest, operation, sub, extra, list(disks.values()))


def act(hooks: Hooks, event: DomainEvent, logs: Path = LOGS, managed: Path = MANAGED) -> None:
    """Do what an event asks for. Raises StorkitError: the guest must not start, arrive or wake up."""
    if not event.disks or (event.operation, event.sub) not in CALLS:
        return
    mark = hooks.site.run / "waking" / (event.guest.uuid or event.guest.name)
    if event.operation in ENTER:
        _refuse_taken(event, hooks.site.dev)
        why = ENTER[event.operation]
        mine = hooks.enter(event.disks, event.guest, why)
        if why == "wake" and mine:
            make_private(mark.parent)
            write_atomic(mark, "")
        elif why == "wake":  # a plan wakes it, and says so
            mark.unlink(missing_ok=True)
    elif event.operation == "release":
        mark.unlink(missing_ok=True)
        reason = event.extra if event.extra not in ("", "-") else last_reason(logs / f"{event.guest.name}.log")
        _end(hooks, event, reason, managed)
    elif mark.exists():
        hooks.woken(event.disks, event.guest)
        mark.unlink()


def _refuse_taken(event: DomainEvent, dev: Path) -> None:
    """Raise Conflict for disks that the guest is to write, and that a process of this host writes already: the storage
    lets this host write, whichever guest of its does."""
    paths = {str(dev / disk.name): disk.name for disk in event.disks if not disk.read_only}
    raise_problems(
        [
            Conflict(f"volume {paths[path]} is open for writing on this host: by {opener}", f"ps -fp {opener.pid}")
            for path, found in openers.find(paths).items()
            for opener in found
            if opener.writes and not opener.killed
        ]
    )


def _end(hooks: Hooks, event: DomainEvent, reason: str, managed: Path) -> None:
    name = event.guest.name
    if reason == "saved":
        file = managed / f"{name}.save"
        hooks.hold(event.disks, event.guest, str(file) if file.exists() else "the file of virsh save")
        return
    why = LEAVE.get(reason, "unknown")
    if why == "unknown":
        say(f"guest {name} has ended, and not because it is not to go on here ({reason or 'no reason is said'})")
    hooks.leave(event.disks, event.guest, why)


def last_reason(log: Path) -> str:
    """Why a guest has ended, as the end of its log says; empty: it does not say."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    since = text.rfind(": starting up libvirt version")
    found = _REASON.findall(text[since:] if since >= 0 else text)
    return str(found[-1]) if found else ""


def run(words: tuple[str, str, str, str], xml: bytes, load: Callable[[], Hooks]) -> None:
    """One call of the hook. Raises as `act`."""
    name, operation, sub, extra = words
    if (operation, sub) in CALLS:
        with load() as hooks:
            act(hooks, parse(name, operation, sub, extra, xml, hooks.site.dev))
