"""What a hypervisor's hook does about a guest's disks, whichever hypervisor it is: enter, leave, hold.

`enter` decides by local facts first: a disk that storkit has attached here, whole and for writing, is the guest's, and
nobody is asked. So what a coordinator has prepared costs no connection, and its plan, which calls the hypervisor that
calls this hook, never waits for itself. Otherwise there is one connection to the disk's manager, which decides
(storkit.hosts.admitted), and the disk is attached in this process.

`leave` and `hold` give up this host's own right, and nothing but that: not while a plan is under way, which does it
itself, and not while anything on this host still has the disk. Whoever kills this process at any moment leaves at most
a right of this host's that is not in use. The next `enter` finds it; `storkit detach` takes it away.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storkit.core import calls, codec, registry
from storkit.core.backend import Transport
from storkit.core.contracts.hooks import Entered, EnterReason, HookVerbs, LeaveReason
from storkit.core.errors import (
    Conflict,
    NotAllowed,
    NotFound,
    StorkitError,
    TimedOut,
    Unsafe,
    Unsupported,
    raise_problems,
)
from storkit.core.host import Door
from storkit.core.inventory import HostConfig, Inventory
from storkit.core.model import Attachment, Offer, Volume
from storkit.hooks import hostfile, program
from storkit.hooks.hostfile import HostFile, Manager
from storkit.hosts import elsewhere
from storkit.hosts.setup import Setup
from storkit.hosts.site import site

PATIENCE = 25.0
"""Seconds after which a hook gives up, and takes back what it has done: Xen kills its script after 40."""
LAST = 10.0
"""Seconds that it has for that."""


@dataclass(frozen=True, slots=True)
class GuestDisk:
    """A guest's disk: a volume."""

    name: str
    read_only: bool = False
    device: bool = False
    """It is used as a block device, which not every way of attaching makes of it."""


@dataclass(frozen=True, slots=True)
class GuestId:
    """A guest, as its hypervisor calls it."""

    name: str
    uuid: str = ""
    """Empty: the hypervisor does not say."""


@contextmanager
def deadline(seconds: float = PATIENCE) -> Iterator[None]:
    """End what is done in the block after so many seconds. Raises TimedOut there; what is being taken back then has
    LAST seconds more, and the process ends after that whatever it does. Only for a process's main thread."""

    def over(number: int, frame: object) -> None:
        signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, LAST)
        raise TimedOut(f"it is not done within {seconds:g} seconds", "storkit hooks status")

    def end(number: int, frame: object) -> None:
        os.write(2, b"storkit: a hook hangs: ended\n")
        os._exit(1)

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def say(text: str) -> None:
    """A line for the hypervisor's log."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    print(f"storkit: {shown}", file=sys.stderr, flush=True)


class Hooks:
    """The hooks of this host, for one event of its hypervisor. To be closed."""

    def __init__(self, content: HostFile) -> None:
        self.content = content
        self.site = site(Setup(content.name, state=content.state))
        self._open: dict[str, tuple[HookVerbs, Callable[[], None]]] = {}

    @classmethod
    def load(cls, file: Path | None = None) -> Hooks:
        """By this host's file. Raises NotFound: it has none."""
        return cls(hostfile.load(file or hostfile.default_file()))

    def __enter__(self) -> Hooks:
        return self

    def __exit__(self, *unused: object) -> None:
        for _, close in self._open.values():
            close()
        self._open.clear()

    # What hypervisors tell

    def enter(self, disks: Sequence[GuestDisk], guest: GuestId, why: EnterReason, ask: bool = False) -> bool:
        """See to it that these disks are attached here, and writable for this host; all of them, or none is changed.
        False: a plan that is under way has done so, and does what is to follow.

        After `wake` the guest sleeps on until `woken`. `ask`: the manager also where they are so already, since another
        host may write them too.
        """
        here = self._attached(disks)
        if why == "wake":
            if all(_ready(disk, here) for disk in disks) and self._planned(disks):
                return False
            missing = list(disks)
        else:
            missing = [disk for disk in disks if ask or not _ready(disk, here)]
        with ExitStack() as undo:
            for name, group in self._by_manager(missing).items():
                for read_only in (False, True):
                    some = [disk for disk in group if disk.read_only == read_only]
                    if some:
                        self._enter(name, some, guest, why, read_only, here, undo)
            undo.pop_all()
        return True

    def woken(self, disks: Sequence[GuestDisk], guest: GuestId) -> None:
        """End the guest's sleep: it goes on now, and its memory is of no use any more."""
        for name, group in self._by_manager(_written(disks)).items():
            self._manager(name).woken([disk.name for disk in group], guest.uuid)

    def leave(self, disks: Sequence[GuestDisk], guest: GuestId, why: LeaveReason) -> None:
        """Detach these disks, and give up the right to them, unless somebody here still has one, or a plan does it."""
        for name, group in self._by_manager(disks).items():
            leaving = self._may_leave(name, [disk.name for disk in group], why)
            if leaving and self._detach(leaving):
                self._manager(name).leave(leaving, why)

    def hold(self, disks: Sequence[GuestDisk], guest: GuestId, file: str) -> None:
        """Keep the disks of a guest whose memory was saved into `file` for it, detach them, and give up the right."""
        for name, group in self._by_manager(disks).items():
            leaving = self._may_leave(name, [disk.name for disk in group], "ended")
            if written := [disk.name for disk in _written(group) if disk.name in leaving]:
                self._manager(name).hold(written, guest.name, guest.uuid, file)
            if leaving and self._detach(leaving):
                self._manager(name).leave(leaving, "ended")

    # Entering

    def _enter(
        self, manager: str, disks: list[GuestDisk], guest: GuestId, why: EnterReason, read_only: bool,
        here: dict[str, Attachment], undo: ExitStack,
    ) -> None:  # fmt: skip
        verbs, names = self._manager(manager), [disk.name for disk in disks]
        entered = verbs.enter(names, guest.name, guest.uuid, why, read_only)
        if entered.given:
            undo.callback(_quietly, verbs.leave, entered.given, "failed")
        self._check(manager, entered, names)
        groups: dict[str, list[Offer]] = {}
        for offer in entered.offers:
            groups.setdefault(offer.transport, []).append(offer)
        for name, offers in groups.items():
            transport = self._transport(name)
            new = [_volume(offer) for offer in offers if offer.volume not in here]
            if new:
                undo.callback(_quietly, transport.detach, new)
            _refuse_no_device(transport.attach(offers), disks)
            had = [_volume(offer) for offer in offers if offer.volume in here]
            if had and transport.claims and not read_only:
                transport.claim(had, entered.writers)

    def _check(self, manager: str, entered: Entered, names: list[str]) -> None:
        """Raise Unsafe for offers that are not for this host, or lead elsewhere than to the manager."""
        content = self.content.managers[manager]
        doors = [Door(address, 0, 0) for address in content.servers]
        for offer in entered.offers:
            if offer.client != self.content.name or ((offer.socket or offer.path) and not content.here):
                message = f"host {manager} offers volume {offer.volume} to {offer.client}, or by a path of its own"
                raise Unsafe(message, "believe nothing that it says until you know why")
            elsewhere.refuse(offer, doors, manager, self.content.name, content.here)

    # Leaving

    def _may_leave(self, manager: str, names: list[str], why: LeaveReason) -> list[str]:
        """What this host may leave of these volumes, now."""
        try:
            leaving = self._manager(manager).may_leave(names, why)
        except (Conflict, NotAllowed) as error:
            # A plan is under way, or a coordinator alone gives this host the volume: they take it as well.
            say(f"{error.message}: {', '.join(names)} stay as they are")
            return []
        if staying := sorted(set(names) - set(leaving)):
            say(f"{', '.join(staying)} stay attached: nobody else is to write them")
        return leaving

    def _detach(self, names: list[str]) -> bool:
        """Detach what is attached of these volumes. False: somebody here still has one, and nothing is detached."""
        groups: dict[str, list[Volume]] = {}
        for each in self._attached([GuestDisk(name) for name in names]).values():
            groups.setdefault(each.transport, []).append(Volume(each.volume, each.uuid, each.size))
        try:
            for name, volumes in groups.items():
                self._transport(name).detach(volumes)
        except Conflict as error:
            say(f"{error.message}: {', '.join(names)} stay attached")
            return False
        return True

    def _planned(self, disks: Sequence[GuestDisk]) -> bool:
        """Whether a plan of a coordinator is under way with one of these disks' managers."""
        for name, group in self._by_manager(disks).items():
            try:
                self._manager(name).may_leave([disk.name for disk in group], "ended")
            except Conflict:
                return True
        return False

    # This host

    def _attached(self, disks: Sequence[GuestDisk]) -> dict[str, Attachment]:
        """What is attached of these disks, by name."""
        names = {disk.name for disk in disks if os.path.lexists(self.site.dev / disk.name)}
        found: dict[str, Attachment] = {}
        if names:
            for name in self._used():
                there = self._transport(name).find_attachments()
                found.update((each.volume, each) for each in there if each.volume in names)
        return found

    def _used(self) -> list[str]:
        """The transports that have something attached here, or had."""
        entries = [entry.name for entry in self.site.state.iterdir()] if self.site.state.is_dir() else []
        names = registry.names(Transport)  # type: ignore[type-abstract]
        return [name for name in names if any(entry.startswith(name) for entry in entries)]

    def _transport(self, name: str) -> Transport:
        kind = registry.transport(name)
        given = self.content.transports.get(name, {})
        settings: Any = codec.load(kind.Settings, given, f"transports.{name}")
        return kind(self.site, settings)

    # The managers

    def _by_manager(self, disks: Sequence[GuestDisk]) -> dict[str, list[GuestDisk]]:
        groups: dict[str, list[GuestDisk]] = {}
        problems: list[StorkitError] = []
        for disk in disks:
            names = [name for name, each in self.content.managers.items() if each.has(disk.name)]
            if not names:
                hint = "storkit hooks install --manager NAME=ssh://USER@HOST"
                problems.append(NotFound(f"no manager has a volume {disk.name}, by this host's file", hint))
            else:
                groups.setdefault(names[0] if len(names) == 1 else self._having(names, disk), []).append(disk)
        raise_problems(problems)
        return groups

    def _having(self, managers: list[str], disk: GuestDisk) -> str:
        """Which of several managers has a volume for this host."""
        refused: list[StorkitError] = []
        for name in managers:
            try:
                self._manager(name).may_leave([disk.name], "ended")
                return name
            except NotAllowed as error:
                refused.append(error)
            except Conflict:
                return name
        raise_problems(refused)
        raise AssertionError

    def _manager(self, name: str) -> HookVerbs:
        if name not in self._open:
            self._open[name] = connect(name, self.content.managers[name], self.content.name)
        return self._open[name][0]


def connect(name: str, manager: Manager, own: str) -> tuple[HookVerbs, Callable[[], None]]:
    """The verbs of a manager for the host `own`, by a connection of their own; and what closes it."""
    from storkit.hosts.remote.ssh import SshConnection

    config = HostConfig(name, manager.url)
    argv = agent_argv(manager, own)
    connection = SshConnection(
        config, Inventory({name: config}, {}), argv, f"try it by hand: {shlex.join(argv)} < /dev/null"
    )
    connection.greet()
    return calls.hook(connection.call), connection.close


def agent_argv(manager: Manager, own: str) -> list[str]:
    """The command line that reaches the agent of a manager."""
    from storkit.hosts.remote.ssh import ssh_argv

    words = ["agent", "--for", own]
    if manager.here:
        return [*program.command(), *words]
    # Never by somebody's master connection: that has another key, and another agent.
    options = ["-oControlPath=none", "-oControlMaster=no"]
    if manager.identity:
        options += ["-oIdentitiesOnly=yes", "-i", manager.identity]
    ssh, *rest = ssh_argv(manager.url, shlex.join(["storkit", *words]))
    return [ssh, *options, *rest]


def _ready(disk: GuestDisk, here: dict[str, Attachment]) -> bool:
    """Whether a disk is attached, works as far as the kernel knows, and can be written if it is to be."""
    there = here.get(disk.name)
    if there is None or there.broken:
        return False
    return disk.read_only or (there.writable and not _kernel_refuses(there))


def _kernel_refuses(attachment: Attachment) -> bool:
    """Whether the kernel has a block device for reading only (sysfs, block/ro)."""
    if attachment.source.kind != "block":
        return False
    number = os.stat(attachment.path).st_rdev
    with suppress(OSError):
        return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/ro").read_text().strip() == "1"
    return False


def _refuse_no_device(attachments: Sequence[Attachment], disks: Sequence[GuestDisk]) -> None:
    """Raise Unsupported for disks that are to be devices, and are attached as what only QEMU can open."""
    wanted = {disk.name for disk in disks if disk.device}
    raise_problems(
        [
            Unsupported(
                f"volume {each.volume} is attached as {each.source.uri}, and the guest wants a block device",
                f"storkit hooks install --set {each.transport}.attach=kernel",
            )
            for each in attachments
            if each.source.kind == "network" and each.volume in wanted
        ]
    )


def _written(disks: Sequence[GuestDisk]) -> list[GuestDisk]:
    return [disk for disk in disks if not disk.read_only]


def _volume(offer: Offer) -> Volume:
    return Volume(offer.volume, offer.uuid, offer.size)


def _quietly(undo: Callable[..., None], *args: Any) -> None:
    """Take something back. The error for which it is done is the one that counts."""
    with suppress(StorkitError):
        undo(*args)
