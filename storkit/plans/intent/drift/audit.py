"""Where hosts, volumes, guests and plans differ from each other (`audit`), and the commands that mend it.

Everything is asked of who knows it: servers of their exports, clients of their attachments, hypervisors of their
guests, pools of their volumes. What somebody does not answer is a difference itself, and nothing is concluded from it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from storkit.core.errors import StorkitError, in_a_line
from storkit.core.guest import Guest
from storkit.core.model import (
    ALIVE,
    FILLING,
    IMPORTING,
    LEAVING,
    Attachment,
    Export,
    GuestState,
    Volume,
    closed,
    guest_of,
)
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.drift.overview import Overview, look
from storkit.plans.lookup import disk_of

Kind = Literal["host", "pool", "volume", "export", "attachment", "guest", "plan"]


@dataclass(frozen=True, slots=True)
class Drift:
    """One thing that is not as the others say it should be."""

    kind: Kind
    name: str
    """Of the host, pool, volume, guest or plan that it is about."""
    what: str
    """What is wrong, in one line."""
    mend: str
    """The command that mends it, or what a person has to look at."""
    orphan: bool = False
    """Storkit has made it, and nothing has a use for it any more: `sweep` removes it by that command."""
    client: str = ""
    """The host that has it, of an export or an attachment."""
    advice: str = ""
    """What another host says that is to be done: its word, and no command of storkit's."""
    said_by: str = ""
    """That host."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What was asked, each once."""

    overview: Overview
    volumes: dict[str, list[Volume]]
    """By UUID; several pools that see one volume are as many."""
    silent: frozenset[str]
    whole: bool
    """Whether everybody has answered: what nobody speaks of is not there then."""

    @property
    def exports(self) -> Iterator[tuple[str, Export]]:
        return ((home, each) for home, group in self.overview.exports.items() for each in group)

    @property
    def attachments(self) -> Iterator[Attachment]:
        return (each for group in self.overview.attachments.values() for each in group)

    @property
    def used(self) -> set[tuple[str, str]]:
        """The volumes (UUIDs) that guests have, or may have, on hosts."""
        there = [state for state in self.overview.guests if state.status != "stopped"]
        return {(uuid, state.host) for state in there for uuid in state.volumes}

    def alive(self) -> Iterator[GuestState]:
        return (state for state in self.overview.guests if state.status in ALIVE)


def audit(coordinator: Coordinator) -> list[Drift]:
    """Every difference; those that a person should look at first come first."""
    seen = _look(coordinator)
    found = [
        *_guests(seen),
        *_writers(seen),
        *_silent(coordinator),
        *_damaged(coordinator),
        *_plans(seen),
        *_exports(coordinator, seen),
        *_attachments(seen),
        *_volumes(seen),
        *_left_behind(coordinator, seen),
        *_records(seen),
    ]
    # What a plan that has not ended has left is that plan's: its end may need it.
    return [replace(each, orphan=False) for each in found] if seen.overview.plans else found


def _look(coordinator: Coordinator) -> Compared:
    survey = coordinator.survey
    overview = look(coordinator)
    volumes = defaultdict[str, list[Volume]](list)
    for volume in survey.volumes():
        volumes[volume.uuid].append(volume)
    whole = not (survey.silent or survey.unread or survey.failed or survey.damaged)
    return Compared(overview, dict(volumes), frozenset(survey.silent), whole)


def _silent(coordinator: Coordinator) -> Iterator[Drift]:
    survey = coordinator.survey
    for host, error in sorted(survey.silent.items()):
        if host not in survey.off:
            yield Drift("host", host, in_a_line(error), f"storkit host check {host}")
    for (host, target), why in sorted(survey.unread.items()):
        what = f"{target} cannot say all: {in_a_line(why)}"
        yield _told(Drift("host", host, what, f"storkit host check {host}"), _hint(why), survey.speaker(host))
    for pool, why in sorted(survey.failed.items()):
        host = coordinator.inventory.pools[pool].host
        what = f"it cannot be looked at: {in_a_line(why)}"
        yield _told(Drift("pool", pool, what, f"storkit host check {host}"), _hint(why), survey.speaker(host))


def _damaged(coordinator: Coordinator) -> Iterator[Drift]:
    for each in coordinator.survey.damaged.values():
        drift = Drift("volume", each.name, f"pool {each.pool}: {each.message}", f"storkit host check {each.host}")
        yield _told(drift, each.hint, coordinator.survey.speaker(each.host))


def _told(drift: Drift, hint: str, host: str) -> Drift:
    """With what is to be done: as this machine says, or as another host does."""
    return replace(drift, advice=hint, said_by=host) if host else replace(drift, mend=hint or drift.mend)


def _hint(error: StorkitError) -> str:
    return next((each.hint for each in error.each if each.hint), "")


def _plans(seen: Compared) -> Iterator[Drift]:
    for plan in seen.overview.plans:
        if plan.error:
            yield Drift("plan", plan.id, in_a_line(plan.error), plan.error.hint)
        elif plan.status != "running":
            mend = f"storkit plan resume {plan.id}; or: storkit plan rollback {plan.id}"
            yield Drift("plan", plan.id, f"it is {plan.status}: {plan.title}", mend)


def _guests(seen: Compared) -> Iterator[Drift]:
    places = defaultdict[tuple[str, str], list[GuestState]](list)
    for state in seen.alive():
        places[state.name, state.uuid].append(state)
    for (name, _), states in places.items():
        hosts = " and ".join(state.host for state in states)
        if len(states) > 1:
            mend = f"storkit migrate status {name}; then stop the one that should not run, or fence its host"
            yield Drift("guest", name, f"it runs on {hosts}", mend)
    known = {guest.uuid: guest.name for guest in seen.overview.records}
    for state in seen.alive():
        if state.name != (name := known.get(state.uuid, "")):
            its_own = f": its own calls it {name}" if name else ""
            what = f"it runs on {state.host}, and no record has its name{its_own}"
            process = f"; its process there is {state.pid}" if state.pid else ""
            mend = f"end it by its hypervisor's own command{process}; or storkit fence {state.host}"
            yield Drift("guest", state.name, what, mend)
    rights = {(export.uuid, export.client): export for _, export in seen.exports}
    readonly = {(guest.uuid, disk.uuid) for guest in seen.overview.records for disk in guest.disks if disk.readonly}
    for state in seen.overview.guests:
        if state.status in ALIVE:
            yield from _without_right(seen, state, rights, readonly)
        if state.reason and state.status == "paused":
            what = f"it is paused on {state.host}: {state.reason}"
            yield Drift("guest", state.name, what, f"storkit guest resume {state.name}")
        if state.edited:
            what = f"its configuration was changed on {state.host}, and storkit has another"
            yield Drift(
                "guest", state.name, what, f"storkit guest diff {state.name}; storkit guest refresh {state.name}"
            )


def _without_right(
    seen: Compared, state: GuestState, rights: dict[tuple[str, str], Export], readonly: set[tuple[str, str]]
) -> Iterator[Drift]:
    """What a guest that runs has of its disks, by their servers."""
    for uuid, name in state.volumes.items():
        homes = {volume.host for volume in seen.volumes.get(uuid, [])}
        if homes & seen.silent or (not homes and not seen.whole):
            continue
        export = rights.get((uuid, state.host))
        mend = f"storkit migrate cleanup {state.name}; or, if it is lost: storkit guest stop {state.name} --force"
        if export is None:
            what = f"it runs on {state.host}, and volume {name} is not exported to that host"
            yield Drift("guest", state.name, what, mend)
        elif not export.writable and (state.uuid, uuid) not in readonly:
            what = f"it runs on {state.host}, and that host may not write volume {name}"
            yield Drift("guest", state.name, what, mend)


def _writers(seen: Compared) -> Iterator[Drift]:
    may = defaultdict[tuple[str, str], set[str]](set)  # of a volume that is moved one host may write both
    for _, export in seen.exports:
        if export.writable:
            may[export.uuid, export.volume].add(export.client)
        if export.others:
            yield Drift("volume", export.volume, f"it is open for writing past its server: by {export.others}", "")
    owners = {disk.uuid: guest.name for guest in seen.overview.records for disk in guest.disks if disk.uuid}
    for (uuid, name), clients in may.items():
        if len(clients) > 1:
            guest = owners.get(uuid)
            mend = f"storkit migrate finish {guest}; or: storkit migrate cleanup {guest}" if guest else ""
            what = f"{' and '.join(sorted(clients))} may write it: a migration that was not finished"
            yield Drift("volume", name, what, mend or f"storkit detach {name} --on {max(clients)}")


def _exports(coordinator: Coordinator, seen: Compared) -> Iterator[Drift]:
    attached = {(each.uuid, each.host) for each in seen.attachments}
    used = seen.used
    for home, export in seen.exports:
        if not export.live:
            what = f"{home} does not serve it to {export.client}, who may have it"
            yield Drift("export", export.volume, what, f"storkit host restore {home}", client=export.client)
        if export.uuid not in seen.volumes and seen.whole:
            what = f"{home} exports it to {export.client}, and no pool has it"
            mend = f"look on {home} for its bytes; if they are gone: storkit fence {export.client}"
            yield Drift("export", export.volume, what, mend, client=export.client)
            continue
        if guest_of(export.client):
            continue
        detach = f"storkit detach {export.volume} --on {export.client}"
        if coordinator.inventory.lacks(export.client):
            what = f"it is exported to {export.client}, which is not in the inventory"
            mend = f"take that host in again; or {detach}; or storkit fence {export.client}"
            yield Drift("export", export.volume, what, mend, client=export.client)
        elif (
            export.client in seen.overview.attachments
            and (export.client, f"transport:{export.transport}") not in coordinator.survey.unread
            and not {(export.uuid, export.client)} & (attached | used)
        ):
            what = f"it is exported to {export.client}, and is not attached there"
            # One of a volume that is moved is the move's.
            alone = len(seen.volumes.get(export.uuid, [])) == 1
            yield Drift("export", export.volume, what, detach, alone, export.client)


def _attachments(seen: Compared) -> Iterator[Drift]:
    rights, used = {(export.uuid, export.client) for _, export in seen.exports}, seen.used
    for each in seen.attachments:
        mend = f"storkit attach {each.volume} --on {each.host}{'' if each.writable else ' --read-only'}"
        if each.broken:
            yield Drift(
                "attachment", each.volume, f"on {each.host} it is broken: {each.broken}", mend, client=each.host
            )
        # Of one that a guest has there, the guest is what differs.
        if (each.uuid, each.host) in rights | used or not seen.whole:
            continue
        if each.uuid in seen.volumes:
            what = f"{each.host} has it attached, and it is not exported to that host"
            detach = f"storkit detach {each.volume} --on {each.host}"
            yield Drift("attachment", each.volume, what, detach, True, each.host)
        else:
            what = f"{each.host} has {each.path} attached, and no pool has such a volume"
            yield Drift("attachment", each.volume, what, f"storkit fence {each.host}, or restart it", client=each.host)


def _left_behind(coordinator: Coordinator, seen: Compared) -> Iterator[Drift]:
    """Volumes of a manager that was declared off, and that nobody has taken over yet."""
    for volume in (each for group in seen.volumes.values() for each in group):
        if volume.manager and volume.manager in coordinator.survey.off and volume.manager in seen.silent:
            what = f"{volume.manager} has served it last, and is off"
            yield Drift("volume", volume.name, what, f"storkit fence {volume.manager} --confirmed-off")


def _volumes(seen: Compared) -> Iterator[Drift]:
    names = Counter(volumes[0].name for volumes in seen.volumes.values())
    served = {export.uuid for _, export in seen.exports}
    running = any(plan.status == "running" for plan in seen.overview.plans)
    guests = {guest.uuid: guest.name for guest in seen.overview.records}
    there = [each for group in seen.volumes.values() for each in group]
    snapshots = [(each.name, each.origin) for each in there if each.kind == "snapshot"]
    for uuid, volumes in seen.volumes.items():
        volume = volumes[0]
        where = " and ".join(f"pool {each.pool}" for each in volumes)
        if running:
            pass  # perhaps it is just being copied
        elif any(each.made in LEAVING for each in volumes) or (len(volumes) > 1 and disk_of(volumes)):
            yield _cut_short(volumes)
            continue
        if len(volumes) > 1 and not disk_of(volumes):
            mend = "if it is one storage, take one pool out of the inventory; if one is a copy, never use both"
            yield Drift("volume", volume.name, f"{where} have it, with one UUID", mend)
        if names[volume.name] > 1:
            what = f"another volume has its name: this one is in {where}"
            yield Drift("volume", volume.name, what, f"write {volume.pool}/{volume.name}, and rename one")
        if volume.made in (IMPORTING, FILLING) and not running:
            what = f"its content never came into it ({where}, {volume.created})"
            if kept := next((name for name, origin in snapshots if origin == uuid), ""):
                mend = f"storkit volume restore {volume.name} {kept}"  # it was just being restored, perhaps
                yield Drift("volume", volume.name, what, mend)
                continue
            mend = f"storkit volume delete {volume.pool}/{volume.name}"
            yield Drift("volume", volume.name, what, mend, uuid not in served and volume.hold is None)
        if (hold := volume.hold) and hold.guest not in guests and seen.whole:
            what = f"guest {hold.name} sleeps on it since {hold.since}, and nothing is known of such a guest"
            yield Drift("volume", volume.name, what, f"storkit guest discard {hold.name} --force")


def _cut_short(volumes: list[Volume]) -> Drift:
    """A move that has not ended: nobody uses two of them, and what it has left is no orphan."""
    disk = disk_of(volumes) or volumes[0]
    others = [each.pool for each in volumes if each is not disk]
    if not closed(disk):  # what is left is what it was before
        others = []
    to = others[0] if others else disk.pool
    what = f"its move was cut short: the disk is in pool {disk.pool}" + (f", its copy in pool {to}" if others else "")
    off = f"; or, to call it off: storkit volume move {disk.name} --to {disk.pool}" if others else ""
    return Drift("volume", disk.name, what, f"storkit volume move {disk.name} --to {to}{off}")


def _records(seen: Compared) -> Iterator[Drift]:
    by_name = {volume.name: volume.uuid for volumes in seen.volumes.values() for volume in volumes}
    for guest in seen.overview.records:
        for name, uuid in _wanted(guest):
            there = by_name.get(name)
            if there is None and seen.whole:
                what = f"its volume {name} is in no pool"
                yield Drift("guest", guest.name, what, f"bring it back; or storkit guest delete {guest.name}")
            elif there and uuid and uuid not in seen.volumes and seen.whole:
                what = f"volume {name} is not the disk that it was defined with"
                yield Drift("guest", guest.name, what, f"storkit guest show {guest.name}")


def _wanted(guest: Guest) -> Iterator[tuple[str, str]]:
    yield from ((disk.volume, disk.uuid) for disk in guest.disks)
    if guest.root:
        yield guest.root.volume, guest.root.uuid
