"""Xen's hotplug script for a guest's disk, `script=block-storkit,target=VOLUME` in its xl.cfg: `storkit hook xen`.

xl runs it with XENBUS_PATH=backend/vbd/DOMAIN/DEVICE before a domain gets its disk, and after it has lost it. What
`add` does is downtime of a guest that arrives: the source has suspended it already. Nothing that a guest can write is
believed: a domain's own name and UUID are dom0's keys (docs/misc/xenstore-paths.pandoc of Xen).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from storkit.core.errors import Conflict, NotFound, StorkitError, Unsupported, UsageError
from storkit.core.identities import check_name
from storkit.hooks.engine import GuestDisk, GuestId, Hooks
from storkit.hooks.xenevents import Enter, Keep, Leave, PutToSleep, XenEvent, decide
from storkit.hooks.xenstore import Xenstore
from storkit.hypervisors._xl import toolstack
from storkit.hypervisors._xl.processes import wait_until, xl_above
from storkit.hypervisors._xl.toolstack import SCRIPT
from storkit.system import locks, syslog
from storkit.system.block import devmapper
from storkit.system.files import make_private
from storkit.system.timeouts import scaled

PATIENCE = 30.0
"""Seconds for a call. What has to be taken back then is, in the rest of the 40 after which Xen kills its script."""
OTHERS = scaled(60.0)
"""Seconds to wait for another call for the same volume: more than a call may take, whose own deadline ends it."""
CLOSING = scaled(3.0)
"""Seconds to wait for the kernel to close a device; one that is open after that has another user."""
CONFIGURATIONS = Path("/var/lib/xen")
"""Where libxl keeps the configuration of each domain, for as long as there is the domain."""
_PATH = re.compile(r"(?:/local/domain/[0-9]+/)?backend/(vbd)/([0-9]{1,9})/([0-9]{1,9})")
_VM = re.compile(r"/vm/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_BACKENDS = "/local/domain/0/backend"
_CUT_SHORT = "storkit-entering"
"""A key beside the device's, while `add` is at its work."""


@dataclass(frozen=True, slots=True)
class XenDisk:
    """A disk of a domain, as dom0's part of the xenstore has it."""

    kind: str
    domain: int
    device: int
    params: str = ""
    """What `target=` says: a volume's name with our script; with others a path, perhaps behind `aio:` and the like."""
    script: str = ""
    mode: str = ""
    number: str = ""
    """physical-device, as `fd:3`; empty: it is not connected."""

    @property
    def path(self) -> str:
        return f"{_BACKENDS}/{self.kind}/{self.domain}/{self.device}"

    @property
    def reads(self) -> bool:
        """Whether it only reads."""
        return "w" not in self.mode

    def uses(self, volume: str, path: Path, number: str) -> bool:
        """Whether it is connected to the volume whose stable path and device are these."""
        if Path(self.script).name == SCRIPT:
            return bool(self.number) and self.params == volume
        return (bool(self.number) and self.number == number) or self.params.rpartition(":")[2] == str(path)


def hook(kind: Literal["add", "remove"], place: str, file: Path | None = None) -> None:
    """Do what xl asks for by XENBUS_PATH `place`. `file` says who this host is. Raises StorkitError: it could not be
    done."""
    disk, store = parse_path(place), Xenstore()
    with Hooks.load(file) as hooks:
        XenHook(hooks, store, _read(store, disk)).run(kind)


def parse_path(text: str) -> XenDisk:
    """Of which domain and device XENBUS_PATH is. Raises UsageError."""
    found = _PATH.fullmatch(text)
    if not found:
        raise UsageError(f"XENBUS_PATH is {text!r}, not backend/vbd/DOMAIN/DEVICE", f"{SCRIPT} is run by xl alone")
    return XenDisk(found[1], int(found[2]), int(found[3]))


@dataclass(frozen=True, slots=True)
class XenHook:
    """One call of the script."""

    hooks: Hooks
    store: Xenstore
    disk: XenDisk

    def run(self, kind: Literal["add", "remove"]) -> None:
        volume = check_name("volume", self.disk.params)
        with self._alone(volume):
            if kind == "add":
                self._add(volume)
            else:
                self._remove(volume)

    @property
    def _path(self) -> Path:
        return self.hooks.site.dev / self.disk.params

    @contextmanager
    def _alone(self, volume: str) -> Iterator[None]:
        """One call for a volume at a time: two guests that start at once must see each other."""
        directory = self.hooks.site.run / "xen"
        make_private(directory)
        path, what = directory / f"{volume}.lock", f"volume {volume}"
        held = locks.acquire(path, what, holder=f"an xl, by {SCRIPT}", wait=OTHERS)
        try:
            yield
        finally:
            held.release()

    # --- add

    def _add(self, volume: str) -> None:
        if self.disk.number:
            return
        domain = self.disk.domain
        name, uuid = _name(self.store, domain), _uuid(self.store, domain)
        if not name:
            raise NotFound(f"domain {domain} has no name in the xenstore", f"xl list {domain}")
        event = XenEvent("add", name, xl_above(os.getppid()))
        guest = GuestId(check_name("guest", event.guest), uuid)
        self._refuse_shared(volume, uuid)
        if self._path.exists() and not device_number(self._path):
            raise no_device(volume)
        act = decide(event)
        assert isinstance(act, Enter)
        disks = [GuestDisk(volume, self.disk.reads)]
        self.store.write({f"{self.disk.path}/{_CUT_SHORT}": act.why})
        try:
            mine = self.hooks.enter(disks, guest, act.why, act.ask)  # what it gives it takes back itself if it fails
            self._hand_over(act, disks, guest, event, mine)
        except StorkitError:
            self.store.remove(f"{self.disk.path}/{_CUT_SHORT}")
            raise
        self.store.remove(f"{self.disk.path}/{_CUT_SHORT}")
        _say(f"{event.name}: volume {volume} is here: {act.why}")

    def _hand_over(self, act: Enter, disks: list[GuestDisk], guest: GuestId, event: XenEvent, mine: bool) -> None:
        """Let the guest have what is attached; `mine`: by this hook, and not by a plan."""
        try:
            number = device_number(self._path)
            if not number:
                raise no_device(disks[0].name)
            if act.why == "wake" and mine:
                self.hooks.woken(disks, guest)
            self._connect(number)
        except StorkitError:
            with suppress(StorkitError):
                if mine and event.xl and act.why == "wake":
                    self.hooks.hold(disks, guest, _line(event.xl.file))
                elif mine:
                    self.hooks.leave(disks, guest, "failed")
            raise

    def _refuse_shared(self, volume: str, uuid: str) -> None:
        """Another guest of this host writes the volume, or reads what this one is to write. One that moves within a
        host has two domains."""
        for other in self._others(volume):
            if other.reads and self.disk.reads:
                continue
            if uuid and _uuid(self.store, other.domain) == uuid:
                continue
            who = _name(self.store, other.domain)
            raise Conflict(f"volume {volume} is a disk of guest {who} here", f"xl block-list {other.domain}")

    def _connect(self, number: str) -> None:
        """Tell blkback the device, and xl that it is there, as Xen's own block-common.sh does."""
        place = self.disk.path
        self.store.write(
            {
                f"{place}/physical-device": number,
                f"{place}/physical-device-path": str(self._path.resolve()),
                f"{place}/hotplug-status": "connected",
            }
        )

    # --- remove

    def _remove(self, volume: str) -> None:
        domain = self.disk.domain
        event = XenEvent(
            "remove",
            _name(self.store, domain),
            xl_above(os.getppid()),
            connected=bool(self.disk.number),
            cut_short=self.store.read(f"{self.disk.path}/{_CUT_SHORT}") or "",
        )
        uuid = _uuid(self.store, domain)
        act = decide(event)
        if isinstance(act, Keep | PutToSleep) and event.connected:
            # What xl list says takes a while to find out, and does not change what is certain without it.
            event = replace(event, domain=_listed(domain), policies=_policies(domain, uuid))
            act = decide(event)
        if isinstance(act, Keep):
            return _say(f"{event.name}: volume {volume} is kept: {act.reason}")
        if others := self._others(volume):
            # It comes before the `remove` of the old domain when a guest moves within its host.
            named = ", ".join(_name(self.store, other.domain) for other in others)
            return _say(f"{event.name}: volume {volume} is kept: {named} uses it here")
        wait_until(lambda: not self._open(), CLOSING)
        guest = GuestId(check_name("guest", event.guest or volume), uuid)
        disks = [GuestDisk(volume, self.disk.reads)]
        if isinstance(act, PutToSleep):
            self.hooks.hold(disks, guest, _line(act.file))
            return _say(f"{event.name}: volume {volume} is held: its guest sleeps in {act.file}")
        assert isinstance(act, Leave)
        self.hooks.leave(disks, guest, act.why)
        return _say(f"{event.name}: volume {volume} is left: {act.why}")

    def _open(self) -> bool:
        """Whether anybody has the device open still: blkback closes it a moment after its state says that it has."""
        place = self._path.resolve()
        return any(node.opens and Path(node.path).resolve() == place for node in devmapper.find())

    def _others(self, volume: str) -> list[XenDisk]:
        """The disks of domains of this host, but for this one, that are connected to a volume."""
        number = device_number(self._path)
        return [
            disk
            for disk in _disks(self.store)
            if disk.path != self.disk.path
            and disk.uses(volume, self._path, number)
            and _name(self.store, disk.domain)  # else its domain is gone already
        ]


def no_device(volume: str) -> Unsupported:
    message = f"volume {volume} is no block device here, and {SCRIPT} needs one"
    return Unsupported(message, 'take NBD with attach = "kernel", or iSCSI; a file is for `storkit guest start`')


def device_number(path: Path) -> str:
    """A block device's numbers, as the key physical-device has them: in hexadecimal. Empty: it is none."""
    try:
        found = path.stat()
    except OSError:
        return ""
    if found.st_mode & 0o170000 != 0o060000:
        return ""
    return f"{os.major(found.st_rdev):x}:{os.minor(found.st_rdev):x}"


def _read(store: Xenstore, disk: XenDisk) -> XenDisk:
    """A disk with its keys."""
    params, script, mode, number = (
        store.read(f"{disk.path}/{key}") or "" for key in ("params", "script", "mode", "physical-device")
    )
    return replace(disk, params=params, script=script, mode=mode, number=number)


def _disks(store: Xenstore) -> Iterator[XenDisk]:
    """All disks that this dom0 gives to its guests."""
    for kind in ("vbd", "qdisk"):
        for domain in store.list(f"{_BACKENDS}/{kind}"):
            for device in store.list(f"{_BACKENDS}/{kind}/{domain}"):
                if domain.isdecimal() and device.isdecimal():
                    yield _read(store, XenDisk(kind, int(domain), int(device)))


def _name(store: Xenstore, domain: int) -> str:
    """What xl calls a domain now; empty: it is gone."""
    return store.read(f"/local/domain/{domain}/name") or ""


def _uuid(store: Xenstore, domain: int) -> str:
    """A domain's UUID, which is its guest's; empty: it is gone. The key is `/vm/UUID`, at times with a `-1` behind."""
    found = re.match(
        r"/vm/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", store.read(f"/local/domain/{domain}/vm") or ""
    )
    return found[1] if found else ""


def _listed(domain: int) -> toolstack.XenDomain | None:
    """What xl says of a domain; None: nothing that is understood."""
    with suppress(StorkitError):
        return next((each for each in toolstack.domains() if each.id == domain), None)
    return None


def _policies(domain: int, uuid: str) -> Mapping[str, str] | None:
    """`on_reboot` and the like of a domain. Not `xl list -l`, which may wait for the lock of whoever runs this."""
    try:
        text = (CONFIGURATIONS / f"userdata-d.{domain}.{uuid}.libxl-json").read_text()
        found = json.loads(text.rstrip("\0"))  # libxl keeps the end of its string as well
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    said = {key: value for key, value in found.items() if key.startswith("on_")}
    return said if all(isinstance(value, str) for value in said.values()) else None


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _say(text: str) -> None:
    syslog.log(f"{SCRIPT}: {_line(text)}")
