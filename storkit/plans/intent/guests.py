"""Guests: written down, started, let go on, stopped, forgotten, looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from storkit.core.errors import Conflict, NotFound, StorkitError, Unsupported, in_a_line, raise_problems
from storkit.core.guest import Guest
from storkit.core.identities import check_seconds, several
from storkit.core.model import DiskSource, Volume
from storkit.guests import files
from storkit.plans import migration, planner
from storkit.plans.intent import definitions, views
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.disks import refuse_to_share
from storkit.plans.intent.making import clone_kind, must_be_free, new_volume
from storkit.plans.migration import GuestView
from storkit.plans.plan import Plan


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
        """The guests that have a record, in the order of their names."""
        return files.names(self._coordinator.guests)

    def load(self, name: str) -> Guest:
        """A guest's record as it is written, with nobody asked. Raises NotFound, UsageError."""
        return files.load(self._coordinator.guests, name)

    def define(self, name: str, wanted: definitions.GuestWish, change: bool = False) -> Guest:
        """Write the record of a new guest. `change`: of one that may be there, what is wanted to be different."""
        return definitions.define(self._coordinator, name, wanted, change)

    def import_(self, file: str | Path, volumes: Mapping[str, str], name: str = "", local: Sequence[str] = ()) -> Guest:
        """Write a record from a configuration of libvirt, xl or QEMU. `volumes`: each of its disks, by its target or by
        its path, as it has them, to the volume that it is now; `ADDRESS:PATH` for a root on NFS. `local`: what else it
        opens, of which each host has its own."""
        return definitions.import_file(self._coordinator, Path(file), volumes, several(local), name)

    def clone(self, source: str, name: str, settings: Sequence[str] = ()) -> Guest:
        """A guest like another one, with clones of the volumes that it writes. `settings`: KEY=VALUE of its record."""
        from storkit.guests import clone as cloning

        coordinator = self._coordinator
        original = self.load(source)
        if name in self.names():
            raise Conflict(f"guest {name} exists already", f"storkit guest show {name}")
        guest = cloning.clone(original, name, several(settings))
        refuse_to_share(coordinator, guest)
        names = cloning.volume_names(original, name)
        copies = {
            old.volume: new.volume
            for old, new in [(original.root, guest.root), *zip(original.disks, guest.disks, strict=False)]
            if old and new and new.volume == names.get(old.volume)
        }

        made: list[tuple[Volume, list[Volume]]] = []

        def build() -> Plan:
            wanted = views.uuids([original.root, *original.disks])
            originals = coordinator.survey.find_all(list(copies), wanted)
            if not made:
                must_be_free(coordinator, list(copies.values()))
                for volume in originals:
                    pool, kind = coordinator.inventory.pool(volume.pool), clone_kind(volume)
                    copy = new_volume(pool, copies[volume.name], volume.size, origin=volume.uuid, kind=kind)
                    made.append((volume, [copy]))
            return planner.clone(made, coordinator.inventory)

        if copies:
            coordinator.change(build)
        if guest.root:
            tree = views.tree(coordinator, guest.root.volume)
            guest = replace(guest, root=replace(guest.root, uuid=tree.uuid))
        return definitions.save(coordinator, replace(guest, disks=definitions.bind(coordinator, guest.disks)))

    def start(self, name: str, host: str = "") -> str:
        """Give a guest its disks on a host, its first disk's home if none is named, and start it; that host."""
        coordinator = self._coordinator
        guest = self.load(name)
        first = next((disk for disk in [*guest.disks, guest.root] if disk), None)
        home = "local"
        if first and not host:
            home = coordinator.survey.find_all([first.volume], views.uuids([first]))[0].host
        where = coordinator.host(host or home, given=True)

        def build() -> Plan:
            what = views.guest_view(coordinator, name, where)
            if not what.running:
                hypervisor = coordinator.connections.to(where).hypervisor(what.target)
                problems = coordinator.once((where, "check", what.guest), lambda: hypervisor.check(what.guest))
                raise_problems([Conflict(f"{where}: {problem}", f"storkit host check {where}") for problem in problems])
            return migration.start(what, where, coordinator.inventory)

        self._coordinator.change(build)
        return where

    def resume(self, name: str) -> tuple[str, bool]:
        """Let a guest go on that stands still; its host, and whether it stood still."""
        found: list[GuestView] = []

        def build() -> Plan:
            found.append(views.wherever(self._coordinator, name))
            return migration.wake(found[-1], self._coordinator.inventory)

        ran = self._coordinator.change(build)
        return found[-1].running[0], bool(ran.plan.steps)

    def stop(self, name: str, host: str = "", force: bool = False, timeout: float = 60.0) -> None:
        """Stop a guest wherever it is, or on one host, and take its disks from there. `timeout`: the seconds that it
        has to shut down; `force`: none."""
        check_seconds(timeout)
        only = self._coordinator.host(host) if host else ""

        def build() -> Plan:
            what = views.wherever(self._coordinator, name, *([only] if only else []))
            return migration.stop(what, force, timeout, only, self._coordinator.inventory)

        self._coordinator.change(build)

    def delete(self, name: str) -> None:
        """Forget a guest that is stopped; its volumes stay."""
        views.refuse_unless_stopped(self._coordinator, self.load(name), "it cannot be forgotten")
        if not self._coordinator.planning:
            files.delete(self._coordinator.guests, name)

    def listing(self) -> list[GuestEntry]:
        """All guests, and where each is; what is wrong with one keeps no other from being listed."""
        return [self._entry(name) for name in self.names()]

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
