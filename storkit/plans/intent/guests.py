"""Guests: written down, started, let go on, stopped, forgotten, looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from storkit.core.errors import (
    Conflict,
    NotFound,
    StorkitError,
    Unsupported,
    UsageError,
    collected,
    in_a_line,
    raise_problems,
)
from storkit.core.guest import Guest
from storkit.core.identities import several
from storkit.core.model import DiskSource, Volume
from storkit.guests import clone as clones
from storkit.guests import files, secrets
from storkit.plans import migration, planner
from storkit.plans.guests import running
from storkit.plans.intent import definitions, views
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.disks import refuse_to_share
from storkit.plans.intent.kept import checkout, keeping, refreshing, sources
from storkit.plans.intent.kept.checkout import Difference, GuestKept
from storkit.plans.intent.making import clone_format, clone_kind, must_be_free, new_volume
from storkit.plans.intent.running import entering, starting
from storkit.plans.intent.running.entering import ConsoleDoor, GuestAddress
from storkit.plans.migration import GuestView
from storkit.plans.plan import Plan

if TYPE_CHECKING:
    from storkit.plans.intent.adopting.guests import AdoptionWish
    from storkit.plans.intent.making import Bytes
    from storkit.plans.intent.relocating.guests import GuestMoved
    from storkit.plans.intent.restoring import Restored
    from storkit.plans.intent.running.executing import GuestOutput
    from storkit.plans.intent.running.snapshotting import GuestSnapshot


@dataclass(frozen=True, slots=True)
class GuestEntry:
    """A guest in a list of them, and where it is. `error`: why that, or the guest itself, is not known."""

    name: str
    guest: Guest | None
    places: dict[str, str] = field(default_factory=dict)
    """Host to the guest's status there; `stopped` left out, `unknown` for a silent host."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why the guest is paused, by host, where nobody wanted it."""
    volumes: list[Volume] = field(default_factory=list)
    """Those of its disks that there are."""
    error: StorkitError | None = None

    @property
    def shown(self) -> str:
        """Where the guest is, for people."""
        if self.guest is None:
            return "damaged"
        if self.error:
            return "unsupported" if isinstance(self.error, Unsupported) else "unknown"
        return migration.shown(self.places, self.reasons, self.volumes)


class GuestActs:
    """Define, start, stop and look at guests."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def path(self, name: str) -> Path:
        """The file of a guest's record."""
        return files.path(self._coordinator.guests, name)

    def text(self, guest: Guest) -> str:
        """A record as its file has it (TOML)."""
        return files.dumps(guest)

    def names(self) -> list[str]:
        """The guests that have files here, in the order of their names; nobody is asked."""
        return files.names(self._coordinator.guests)

    def load(self, name: str) -> Guest:
        """A guest's record as it is written, with nobody asked where it has files here; otherwise as a pool keeps it.
        Raises NotFound, UsageError."""
        return sources.load(self._coordinator, name)

    def define(self, name: str, wanted: definitions.GuestWish, change: bool = False) -> Guest:
        """Write the record of a new guest. `change`: of one that may be there, what is wanted to be different."""
        return definitions.define(self._coordinator, name, wanted, change)

    def import_(self, file: str | Path, volumes: Mapping[str, str], name: str = "", local: Sequence[str] = ()) -> Guest:
        """Write a record from a configuration of libvirt, xl or QEMU. `volumes`: each of its disks, by its target or by
        its path, as it has them, to the volume that it is now; `ADDRESS:PATH` for a root on NFS. `local`: what else it
        opens, of which each host has its own."""
        return definitions.import_file(self._coordinator, Path(file), volumes, several(local), name)

    def adopt(self, names: Sequence[str], wish: AdoptionWish | None = None) -> list[Guest]:
        """Make guests storkit's that their hypervisor has already, with their disks in place; their records. Each keeps
        its name, its UUID and its configuration."""
        from storkit.plans.intent.adopting import guests as adoption

        return adoption.adopt(self._coordinator, names, wish or adoption.AdoptionWish())

    def release(self, name: str) -> Guest:
        """Give an adopted guest that does not run back: to its hypervisor, with its disks where they were."""
        from storkit.plans.intent.adopting import guests as adoption

        return adoption.release(self._coordinator, name)

    def clone(self, source: str, names: Sequence[str], settings: Sequence[str] = ()) -> list[Guest]:
        """Guests like another one, with clones of the volumes that it writes, made in one plan. `settings`: KEY=VALUE
        of their records."""
        return _clone(self._coordinator, self.load(source), several(names), several(settings))

    def refresh(self, name: str, force: bool = False) -> tuple[int, list[Difference]]:
        """Keep a guest as its hypervisor has it, where an administrator has changed it there; the new generation, 0 if
        nothing keeps it, and what was changed. `force`: also what opens more of another host than before."""
        return refreshing.refresh(self._coordinator, name, force)

    def differences(self, source: str, made: Guest) -> str:
        """What a clone of a guest has that the guest has not, and the other way round, line by line."""
        return clones.differences(self.load(source), made)

    def start(self, name: str, host: str = "") -> str:
        """Give a guest its disks on a host, its first disk's home if none is named, and start it; that host."""
        return self.start_all([name], host)[name]

    def start_all(self, names: Sequence[str], host: str = "") -> dict[str, str]:
        """As `start`, for many guests in one plan; the host of each."""
        return starting.start(self._coordinator, dict.fromkeys(several(names), host))

    def console(self, name: str) -> ConsoleDoor:
        """Where the console of a guest is that runs. Raises Conflict: it does not; Unsupported: it has none."""
        return entering.console(self._coordinator, name)

    def execute(self, name: str, words: Sequence[str], stdin: bytes = b"", timeout: float = 600.0) -> GuestOutput:
        """Run a command in a guest that runs, by its guest agent, as root there; what it leaves. `words`: the program
        and its arguments, which no shell takes apart; `timeout`: seconds, after which it is killed.

        Raises Conflict: the guest does not run; Unsupported: no agent is in it; TimedOut: the agent does not answer, or
        the command did not end."""
        from storkit.plans.intent.running import executing

        return executing.execute(self._coordinator, name, words, stdin, timeout)

    def addresses(self, names: Sequence[str]) -> list[GuestAddress]:
        """Where guests can be reached, as far as their hosts know; nothing of one that does not run."""
        return entering.addresses(self._coordinator, names)

    def snapshot(self, name: str, label: str) -> GuestSnapshot:
        """Keep every disk that a guest writes as it is, all at one instant, as VOLUME.LABEL; one that runs with several
        disks stands still meanwhile."""
        from storkit.plans.intent.running import snapshotting

        return snapshotting.snapshot(self._coordinator, name, label)

    def revert(self, name: str, label: str, discard: bool = False) -> list[Restored]:
        """Set every disk that a stopped guest writes back to what `snapshot` kept. What they are now is kept as well,
        unless that is to be discarded."""
        from storkit.plans.intent.running import snapshotting

        return snapshotting.revert(self._coordinator, name, label, discard)

    def resume(self, name: str) -> tuple[str, bool]:
        """Let a guest go on that stands still; its host, and whether it stood still."""
        found: list[GuestView] = []

        def build() -> Plan:
            found.append(views.wherever(self._coordinator, name))
            return running.wake(found[-1], self._coordinator.inventory)

        ran = self._coordinator.change(build)
        return found[-1].running[0], bool(ran.plan.steps)

    def stop(self, name: str, host: str = "", force: bool = False, timeout: float = 60.0) -> None:
        """Stop a guest wherever it is, or on one host, and take its disks from there. `timeout`: the seconds that it
        has to shut down; `force`: none."""
        self.stop_all([name], host, force, timeout)

    def stop_all(self, names: Sequence[str], host: str = "", force: bool = False, timeout: float = 60.0) -> None:
        """As `stop`, for many guests in one plan, all at the same time."""
        starting.stop(self._coordinator, several(names), host, force, timeout)

    def move(
        self,
        name: str,
        host: str,
        pool: str = "",
        stop: bool = False,
        start: bool = False,
        rate: Bytes | None = None,
    ) -> GuestMoved:
        """Move the disks that a guest writes to a pool of a host, its only one if none is named. `stop`: it is shut
        down before, if it runs, and started there afterwards; `start`: it does not run, and is started there
        afterwards. `rate`: bytes a second at most. What it only reads stays where it is."""
        from storkit.plans.intent.relocating import guests as relocating

        return relocating.move(self._coordinator, name, host, pool, stop, start, rate)

    def rename(self, name: str, new: str) -> Guest:
        """Give a guest that is stopped another name; its UUID, its volumes and their names stay."""
        from storkit.plans.intent.relocating import renaming

        return renaming.rename_guest(self._coordinator, name, new)

    def delete(self, name: str) -> None:
        """Forget a guest that is stopped, and have its pool forget it; its volumes stay."""
        guest = self.load(name)
        views.refuse_unless_stopped(self._coordinator, guest, "it cannot be forgotten")
        keeping.forget(self._coordinator, guest)
        files.delete(self._coordinator.guests, name)
        secrets.forget(self._coordinator.state, guest.uuid)

    def kept(self, name: str) -> GuestKept:
        """What is kept of a guest with its first volume, and whether its files here say the same."""
        return checkout.state(self._coordinator, name)

    def commit(self, name: str) -> int:
        """Keep what a guest's files say with its first volume, as a new generation unless it is kept already; the
        generation. 0: nothing keeps it. Raises Conflict: somebody else has changed it since."""
        return checkout.commit(self._coordinator, name)

    def checkout(self, name: str, force: bool = False, generation: int = 0) -> Path:
        """Write a guest's files from what is kept of it, or from an earlier generation; the record's. `force`: over
        what they say and nothing keeps."""
        return checkout.checkout(self._coordinator, name, force, generation)

    def changes(self, name: str) -> list[Difference]:
        """Where the files of a guest say something else than what is kept, and where a host has it otherwise."""
        edits = refreshing.edits(self._coordinator, name)
        try:
            return checkout.differences(self._coordinator, name) + edits
        except NotFound:  # nothing keeps it
            if not edits:
                raise
            return edits

    def edit(self, name: str, edited: Callable[[dict[str, str]], dict[str, str]]) -> int:
        """Have a guest's texts edited, keep them, and write them to its files if it has any here. `edited` is given
        texts by the names of files, and gives them back. The generation; 0: nothing was changed."""
        return checkout.edit(self._coordinator, name, edited)

    def listing(self) -> list[GuestEntry]:
        """All guests, and where each is; what is wrong with one keeps no other from being listed."""
        return [self._entry(name) for name in sources.names(self._coordinator)]

    def show(self, name: str) -> GuestView:
        """A guest, its volumes, and where it is, as the hosts say that have its disks."""
        return views.guest_view(self._coordinator, name)

    def render(self, name: str, kind: str = "", host: str = "") -> tuple[str, str]:
        """A hypervisor, the guest's own by default, and the guest's configuration for it: on a host, the one that it
        runs on by default; where it runs nowhere, with the disks' stable paths."""
        from storkit.guests import render as rendering

        coordinator = self._coordinator
        what = self.show(name)
        where = coordinator.host(host) if host else next(iter(what.running), "")
        sources = [DiskSource("block", path=f"/dev/storkit/{volume.name}") for volume in what.volumes]
        if where:
            found = {a.uuid: a.source for a in coordinator.survey.attachments([where], what.volumes)[where]}
            missing = [volume.name for volume in what.volumes if volume.uuid not in found]
            if missing:
                raise NotFound(
                    f"{', '.join(missing)} is not attached on {where}", f"storkit attach {missing[0]} --on {where}"
                )
            sources = [found[volume.uuid] for volume in what.volumes]
        templates = [coordinator.inventory.directory / "templates"]
        kind = kind or what.guest.hypervisor
        return kind, rendering.render(what.guest, sources, kind, templates=templates)

    def _entry(self, name: str) -> GuestEntry:
        guest: Guest | None = None
        try:
            guest = self.load(name)
            return GuestEntry(name, guest, *views.places(self._coordinator, guest))
        except StorkitError as error:
            self._coordinator.warn(f"guest {name}: {in_a_line(error)}")
            return GuestEntry(name, guest, error=error)


def _clone(coordinator: Coordinator, original: Guest, names: list[str], settings: list[str]) -> list[Guest]:
    """Make guests of these names (GuestActs.clone)."""
    guests = _records(coordinator, original, names, settings)
    copies: dict[str, list[str]] = {}
    for guest in guests:
        new_names = clones.volume_names(original, guest.name)
        for old, new in [(original.root, guest.root), *zip(original.disks, guest.disks, strict=False)]:
            if old and new and new.volume == new_names.get(old.volume):
                copies.setdefault(old.volume, []).append(new.volume)
    made: list[tuple[Volume, list[Volume]]] = []

    def build() -> Plan:
        wanted = views.uuids([original.root, *original.disks])
        originals = coordinator.survey.find_all(list(copies), wanted)
        if not made:
            must_be_free(coordinator, [name for each in copies.values() for name in each])
            for volume in originals:
                pool, kind = coordinator.inventory.pool(volume.pool), clone_kind(volume)
                format = clone_format(coordinator, pool)
                each = [
                    new_volume(pool, name, volume.size, origin=volume.uuid, kind=kind, format=format)
                    for name in copies[volume.name]
                ]
                made.append((volume, each))
        return planner.clone(made, coordinator.inventory)

    if copies:
        coordinator.change(build)
    guests = _bound(coordinator, guests)
    refuse_to_share(coordinator, *guests)
    if not coordinator.planning:
        passwords = secrets.load(coordinator.state, original)
        for guest in guests:
            secrets.keep(coordinator.state, guest.uuid, passwords)
        definitions.write(coordinator, guests)
    return guests


def _records(coordinator: Coordinator, original: Guest, names: list[str], settings: list[str]) -> list[Guest]:
    """The new guests' records. Raises all that speaks against them, before anything is made."""
    problems: list[StorkitError] = []
    taken = set(sources.names(coordinator))
    for name in names:
        if name in taken:
            problems.append(Conflict(f"guest {name} exists already", f"storkit guest show {name}"))
        taken.add(name)
    raise_problems(problems)
    guests: list[Guest] = []
    others = sources.everybody(coordinator, [])
    for name in names:
        with collected(problems):
            guests.append(clones.clone(original, name, settings))
    with collected(problems):
        refuse_to_share(coordinator, *guests)
    raise_problems([*problems, *_met(guests), *clones.met(guests, others)])
    return guests


def _met(guests: list[Guest]) -> list[StorkitError]:
    """The volumes that two of the new guests would both write."""
    writers: dict[str, str] = {}
    found: list[StorkitError] = []
    for guest in guests:
        for volume in [
            *(disk.volume for disk in guest.disks if not disk.readonly),
            *([guest.root.volume] if guest.root else []),
        ]:
            if writers.setdefault(volume, guest.name) != guest.name:
                message = f"guests {writers[volume]} and {guest.name} would both write {volume}"
                found.append(UsageError(message, "leave out --set for their disks"))
    return found


def _bound(coordinator: Coordinator, guests: list[Guest]) -> list[Guest]:
    """The guests, with the UUIDs of their disks."""
    disks = iter(definitions.bind(coordinator, [disk for guest in guests for disk in guest.disks]))
    bound = [replace(guest, disks=[next(disks) for _ in guest.disks]) for guest in guests]
    return [
        replace(guest, root=replace(guest.root, uuid=views.tree(coordinator, guest.root.volume).uuid))
        if guest.root
        else guest
        for guest in bound
    ]
