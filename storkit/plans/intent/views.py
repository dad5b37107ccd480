"""A guest as plans need it: its record, its volumes, their exports, and where it is or may be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from storkit.core.errors import Conflict, StorkitError, Unsafe, Unsupported, UsageError, raise_problems
from storkit.core.guest import Disk, Guest, Root
from storkit.core.holds import wake
from storkit.core.model import ALIVE, Export, GuestState, Volume, guest_client, guest_of
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.kept import sources
from storkit.plans.migration import GuestView


def guest_view(coordinator: Coordinator, name: str, *hosts: str, beside: Iterable[str] = ()) -> GuestView:
    """A guest, its volumes and what is true of both. `hosts` are asked beside those that have its disks, and those of
    `beside` as far as they answer soon.

    A guest can only run where its disks are exported to: other hosts need not answer.
    """
    survey, inventory = coordinator.survey, coordinator.inventory
    guest, volumes, root = _its_own(coordinator, name)
    guest = _with_root(coordinator, guest, root)
    exports = survey.exports(volumes)
    root_exports = _root_exports(coordinator, guest, [root] if root else [])
    # One that was adopted while it ran may have its disk open at home, and without an export.
    homes = [volume.host for volume in volumes if volume.was and not exports]
    asked = dict.fromkeys([*(export.client for export in exports), *homes, *hosts, *beside])
    if not volumes:
        asked = dict.fromkeys([*inventory.hosts, *hosts])
    for host in asked:
        if config := coordinator.connections.find(host):
            coordinator.connections.inventory = coordinator.inventory.with_host(config)
    places, states = _where(coordinator, guest, asked, volumes, exports, hosts)
    running = [state for state in states.values() if state.status in ALIVE]
    machine = next((state.machine for state in running if state.machine), guest.machine)
    has = {state.host: state.volumes for state in running}
    return GuestView(
        guest, volumes, exports, places, coordinator.inventory, machine, _shared(coordinator, guest, volumes), has,
        root, root_exports, _reasons(states), [host for host, state in states.items() if state.status == "stopped"],
        [host for host, state in states.items() if state.edited],
        {host: state.pinned for host, state in states.items() if state.pinned},
    )  # fmt: skip


def wherever(coordinator: Coordinator, name: str, *hosts: str) -> GuestView:
    """A guest on any host: also where a fence has left it without its disk. `hosts` as in `guest_view`."""
    return guest_view(coordinator, name, *hosts, beside=coordinator.inventory.hosts)


def remains(coordinator: Coordinator, guest: Guest) -> GuestView:
    """A guest, with those of its volumes that there are, wherever it runs: to end it, whatever is left of it."""
    known = uuids(guest.disks)
    volumes = [v for v in coordinator.survey.present(list(known), known) if known[v.name] == v.uuid]
    found, reasons, _ = places(coordinator, guest, thorough=True)
    return GuestView(guest, volumes, coordinator.survey.exports(volumes), found, coordinator.inventory, reasons=reasons)


def tree(coordinator: Coordinator, name: str, uuid: str = "") -> Volume:
    """The tree of that name; `uuid`: the one with it, where a name stands for two."""
    (volume,) = coordinator.survey.find_all([name], {name: uuid})
    if volume.kind != "tree":
        raise UsageError(f"volume {name} is a {volume.kind}, and no tree that a guest mounts", f"write --disk {name}")
    return volume


def uuids(disks: Iterable[Disk | Root | None]) -> dict[str, str]:
    """What a record knows of its volumes beside their names."""
    return {disk.volume: disk.uuid for disk in disks if disk and disk.uuid}


def places(
    coordinator: Coordinator, guest: Guest, thorough: bool = False
) -> tuple[dict[str, str], dict[str, str], list[Volume]]:
    """Where a guest is, whatever has become of its volumes; why it is paused there, if nobody wanted it; and those of
    its volumes that there are. `thorough`: hosts that have none of these are waited for as well."""
    survey = coordinator.survey
    volumes = survey.present([disk.volume for disk in guest.disks], uuids(guest.disks))
    exports = survey.exports(volumes)
    hosts = dict.fromkeys([*coordinator.inventory.hosts, *(e.client for e in exports if not guest_of(e.client))])
    # Whom a disk is exported to that nobody can be asked about is not known: then every host counts.
    counted = volumes if len(volumes) == len(guest.disks) else []
    found, states = _where(coordinator, guest, hosts, counted, exports, hosts if thorough else ())
    return found, _reasons(states), volumes


def refuse_unless_stopped(coordinator: Coordinator, guest: Guest, so: str) -> None:
    """Raise Conflict if a guest is anywhere, or may be, or sleeps."""
    found, _, volumes = places(coordinator, guest, thorough=True)
    for hold in {volume.hold for volume in volumes if volume.hold and volume.hold.guest == guest.uuid}:
        raise Conflict(f"guest {guest.name} sleeps since {hold.since}: {so}", wake(guest.name))
    if not found:
        return
    where = ", ".join(f"{status} on {coordinator.inventory.shown(host)}" for host, status in found.items())
    strange = next((host for host in found if coordinator.inventory.lacks(host)), "")
    raise Conflict(
        f"guest {guest.name} is {where}: {so}",
        f"storkit fence {strange}" if strange else f"storkit guest stop {guest.name}",
    )


def _its_own(coordinator: Coordinator, name: str) -> tuple[Guest, list[Volume], Volume | None]:
    """A guest, with the UUIDs of its disks, their volumes, and its root. Raises Unsafe: a name stands for another."""
    guest = sources.load(coordinator, name)
    volumes = coordinator.survey.find_all([disk.volume for disk in guest.disks], uuids(guest.disks))
    for disk, volume in zip(guest.disks, volumes, strict=True):
        if disk.uuid and disk.uuid != volume.uuid:
            raise Unsafe(
                f"volume {volume.name} is not the disk of guest {name} any more: UUID {volume.uuid}, not {disk.uuid}",
                f"bring the right volume back, or: storkit guest define {name} --replace {_disk_words(guest)}",
            )
    guest = replace(guest, disks=[replace(d, uuid=v.uuid) for d, v in zip(guest.disks, volumes, strict=True)])
    if guest.root is None:
        return guest, volumes, None
    root = tree(coordinator, guest.root.volume, guest.root.uuid)
    if guest.root.uuid and guest.root.uuid != root.uuid:
        raise Unsafe(
            f"volume {root.name} is not the root of guest {name} any more: UUID {root.uuid}, not {guest.root.uuid}",
            f"bring the right volume back, or: storkit guest define {name} --replace --root {root.name}",
        )
    return guest, volumes, root


def _with_root(coordinator: Coordinator, guest: Guest, tree: Volume | None) -> Guest:
    """The guest with all that its kernel must know of its root."""
    if tree is None or guest.root is None:
        return guest
    from storkit.tech.nfs.names import resolve

    server = guest.root.server
    if not server:
        known = resolve(tree.host, coordinator.inventory.host(tree.host).reach or tree.host)
        server = next((address for address in known if ":" not in address), "")
    if not server:
        hint = f"give host {tree.host} one in the inventory, or guest {guest.name} a root.server"
        raise Unsupported(f"host {tree.host} has no IPv4 address, and a kernel mounts its root over IPv4", hint)
    return replace(guest, root=replace(guest.root, uuid=tree.uuid, server=server, path=tree.path))


def _disk_words(guest: Guest) -> str:
    """A guest's disks as `guest define` takes them."""
    return " ".join(f"--disk {disk.volume}{':ro' if disk.readonly else ''}" for disk in guest.disks)


def _where(
    coordinator: Coordinator,
    guest: Guest,
    hosts: Iterable[str],
    volumes: list[Volume],
    exports: list[Export],
    named: Iterable[str],
) -> tuple[dict[str, str], dict[str, GuestState]]:
    """Where a guest is, of these hosts, as Survey.where tells it. Where it sleeps is asked like a host that is `named`.

    Without an export no server lets it in: of its disks to the host, or of its root to itself. A root lets in the
    instance that was started last, and no other: where that one answers, hosts that are silent do not count.
    """
    able = {export.client for export in exports} if volumes else None
    rooted = guest.root is not None and not guest.disks
    if guest.root and rooted:
        roots = coordinator.survey.present([guest.root.volume], uuids([guest.root]))
        able = set() if roots and not _root_exports(coordinator, guest, roots) else None
    disks = {volume.uuid for volume in volumes} | set(uuids(guest.disks).values())
    named = {*named, *(volume.hold.host for volume in volumes if volume.hold)}
    found, states = coordinator.survey.where(guest, disks, hosts, able, named)
    if rooted and set(found.values()) & ALIVE:
        found = {host: status for host, status in found.items() if status != "unknown"}
    return found, states


def _reasons(states: dict[str, GuestState]) -> dict[str, str]:
    return {host: state.reason for host, state in states.items() if state.reason}


def _root_exports(coordinator: Coordinator, guest: Guest, roots: list[Volume]) -> list[Export]:
    """The exports of a guest's root to itself."""
    return [export for export in coordinator.survey.exports(roots) if export.client == guest_client(guest.name)]


def _shared(coordinator: Coordinator, guest: Guest, volumes: list[Volume]) -> frozenset[str]:
    """The read-only volumes of a guest that other guests have as well."""
    readonly = {disk.volume for disk in guest.disks if disk.readonly}
    if not readonly:
        return frozenset()
    problems: list[StorkitError] = []
    others = [other for other in sources.everybody(coordinator, problems) if other.name != guest.name]
    raise_problems(problems)
    used = {disk.volume for other in others for disk in other.disks}
    return frozenset(volume.uuid for volume in volumes if volume.name in readonly & used)
