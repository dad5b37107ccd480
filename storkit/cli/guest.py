"""`storkit guest ...`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from storkit.cli import output
from storkit.cli.disks import refuse_to_share
from storkit.cli.session import Session
from storkit.cli.volume import must_be_free, new_volume
from storkit.core import codec
from storkit.core.errors import (
    Conflict,
    NotFound,
    StorkitError,
    Unsafe,
    Unsupported,
    UsageError,
    in_a_line,
    raise_problems,
)
from storkit.core.guest import Disk, Guest, Root
from storkit.core.holds import wake
from storkit.core.model import DiskSource, Export, GuestState, Volume, guest_client
from storkit.core.units import format_size
from storkit.guests import files
from storkit.plans import migration, planner
from storkit.plans.migration import Subject
from storkit.plans.plan import Plan


def tree(session: Session, name: str, uuid: str = "") -> Volume:
    """The tree of that name; `uuid`: the one with it, where a name stands for two."""
    (volume,) = session.survey.find_all([name], {name: uuid})
    if volume.kind != "tree":
        raise UsageError(f"volume {name} is a {volume.kind}, and no tree that a guest mounts", f"write --disk {name}")
    return volume


def _with_root(session: Session, guest: Guest) -> tuple[Guest, Volume | None]:
    """The guest with all that its kernel must know of its root, and that tree."""
    from storkit.tech.nfs.names import resolve

    root = guest.root
    if root is None:
        return guest, None
    volume = tree(session, root.volume, root.uuid)
    if root.uuid and root.uuid != volume.uuid:
        raise Unsafe(
            f"volume {volume.name} is not the root of guest {guest.name} any more: UUID {volume.uuid}, not {root.uuid}",
            f"bring the right volume back, or: storkit guest define {guest.name} --replace --root {volume.name}",
        )
    server = root.server
    if not server:
        known = resolve(volume.host, session.inventory.host(volume.host).reach or volume.host)
        server = next((address for address in known if ":" not in address), "")
    if not server:
        hint = f"give host {volume.host} one in the inventory, or guest {guest.name} a root.server"
        raise Unsupported(f"host {volume.host} has no IPv4 address, and a kernel mounts its root over IPv4", hint)
    return replace(guest, root=replace(root, uuid=volume.uuid, server=server, path=volume.path)), volume


def import_(session: Session, options: Namespace) -> None:
    from storkit.guests import parse

    mapping: dict[str, str] = {}
    for text in options.disk:
        path, equals, volume = text.partition("=")
        if not equals:
            raise UsageError(f"{text!r} is no PATH=VOLUME", "for example --disk /dev/vg/web=web")
        mapping[path] = volume
    try:
        text = Path(options.file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{options.file} cannot be read: {error}", "name the configuration file") from None
    found = parse.parse(text, options.file, name=options.name or "")
    guest = found.guest
    disks: list[Disk] = []
    problems: list[StorkitError] = []
    for disk, source in zip(guest.disks, found.sources, strict=True):
        place = source.path or source.export
        if place in mapping:
            disks.append(replace(disk, volume=mapping[place]))
        else:
            problems.append(UsageError(f"disk {place} has no volume yet", f"import it, then: --disk {place}=VOLUME"))
    root = guest.root
    if root:
        place = f"{root.server}:{root.path}"
        if place in mapping:
            found_tree = tree(session, mapping[place])
            root = replace(root, volume=found_tree.name, uuid=found_tree.uuid, server="", path="")
        else:
            hint = f"storkit volume import --tree {root.path} {root.volume}; then: --disk {place}={root.volume}"
            problems.append(UsageError(f"root {place} has no volume yet", hint))
    raise_problems(problems)
    for warning in found.warnings:
        session.warn(f"storkit: {options.file}: {warning}")
    save(session, replace(guest, root=root, disks=bind(session, disks)))


def clone(session: Session, options: Namespace) -> None:
    """A guest like another one, with clones of the disks that it writes."""
    from storkit.guests import clone as cloning

    source = files.load(session.guests, options.source)
    if options.name in files.names(session.guests):
        raise Conflict(f"guest {options.name} exists already", f"storkit guest show {options.name}")
    guest = cloning.clone(source, options.name, options.set)
    refuse_to_share(session, guest)
    names = cloning.volume_names(source, options.name)
    copies = {
        old.volume: new.volume
        for old, new in [(source.root, guest.root), *zip(source.disks, guest.disks, strict=False)]
        if old and new and new.volume == names.get(old.volume)
    }
    made: list[tuple[Volume, list[Volume]]] = []

    def build() -> Plan:
        originals = session.survey.find_all(list(copies), _uuids([source.root, *source.disks]))
        if not made:
            must_be_free(session, list(copies.values()))
            for volume in originals:
                pool = session.inventory.pool(volume.pool)
                kind = "tree" if volume.kind == "tree" else "disk"
                copy = new_volume(pool, copies[volume.name], volume.size, origin=volume.uuid, kind=kind)
                made.append((volume, [copy]))
        return planner.clone(made, session.inventory)

    if copies and session.change(build) is None:
        return
    if guest.root:
        guest = replace(guest, root=replace(guest.root, uuid=tree(session, guest.root.volume).uuid))
    save(session, replace(guest, disks=bind(session, guest.disks)))


def save(session: Session, guest: Guest, replace_: bool = False) -> None:
    """Write a guest's file and say where it is."""
    refuse_to_share(session, guest)
    if session.options.dry_run:
        session.result(codec.dump(guest), files.dumps(guest))
        return
    if replace_ and guest.name in files.names(session.guests):
        old = files.load(session.guests, guest.name)
        _refuse_unless_stopped(session, old, "its description stays as it is")
        guest = replace(guest, uuid=old.uuid)
    path = files.save(session.guests, guest, replace_)
    session.result(codec.dump(guest), f"{guest.name}: {path}")


def bind(session: Session, disks: list[Disk]) -> list[Disk]:
    """Disks with the UUIDs of their volumes: the record then names the disk itself, whatever its name stands for."""
    if not disks:
        return []
    volumes = session.survey.find_all([disk.volume for disk in disks], _uuids(disks))
    by_name = {volume.name: volume for volume in volumes}
    for disk, volume in zip(disks, volumes, strict=True):
        if by_name[volume.name] != volume:
            raise Conflict(
                f"two disks would be named {volume.name}, and a host has one of that name", "clone one of them"
            )
        if volume.kind == "tree":
            raise UsageError(f"volume {volume.name} is a tree, and no disk", f"write --root {volume.name}")
        if volume.kind != "disk" and not disk.readonly:
            raise Conflict(
                f"volume {volume.name} is a golden image or a snapshot: no guest can write it",
                f"storkit volume clone {volume.name} NEW, or --disk {volume.name}:ro",
            )
    pairs = zip(disks, volumes, strict=True)
    return [replace(disk, volume=volume.name, uuid=volume.uuid) for disk, volume in pairs]


def _uuids(disks: Iterable[Disk | Root | None]) -> dict[str, str]:
    """What a record knows of its volumes beside their names."""
    return {disk.volume: disk.uuid for disk in disks if disk and disk.uuid}


def subject(session: Session, name: str, *hosts: str) -> Subject:
    """A guest, its volumes and what is true of both. `hosts` are asked beside those that have its disks.

    A guest can only run where its disks are exported to: other hosts need not answer.
    """
    guest = files.load(session.guests, name)
    volumes = session.survey.find_all([disk.volume for disk in guest.disks], _uuids(guest.disks))
    for disk, volume in zip(guest.disks, volumes, strict=True):
        if disk.uuid and disk.uuid != volume.uuid:
            raise Unsafe(
                f"volume {volume.name} is not the disk of guest {name} any more: UUID {volume.uuid}, not {disk.uuid}",
                f"bring the right volume back, or: storkit guest define {name} --replace {_disk_words(guest)}",
            )
    guest = replace(guest, disks=[replace(d, uuid=v.uuid) for d, v in zip(guest.disks, volumes, strict=True)])
    guest, root = _with_root(session, guest)
    exports = session.survey.exports(volumes)
    root_exports = _root_exports(session, guest, [root] if root else [])
    asked = dict.fromkeys([*(export.client for export in exports), *hosts])
    if not volumes:
        asked = dict.fromkeys([*session.inventory.hosts, *hosts])
    for host in asked:
        if config := session.connections.find(host):
            session.connections.inventory = session.inventory.with_host(config)
    places, states = _where(session, guest, asked, volumes, exports)
    running = [state for state in states.values() if state.status in ("running", "paused")]
    machine = next((state.machine for state in running if state.machine), guest.machine)
    has = {state.host: state.volumes for state in running}
    return Subject(
        guest, volumes, exports, places, session.inventory, machine, _shared(session, guest, volumes), has, root,
        root_exports, _reasons(states), [host for host, state in states.items() if state.status == "stopped"],
    )  # fmt: skip


def _disk_words(guest: Guest) -> str:
    """A guest's disks as `guest define` takes them."""
    return " ".join(f"--disk {disk.volume}{':ro' if disk.readonly else ''}" for disk in guest.disks)


def _where(
    session: Session, guest: Guest, hosts: Iterable[str], volumes: list[Volume], exports: list[Export]
) -> tuple[dict[str, str], dict[str, GuestState]]:
    """Where a guest is, of these hosts, as Survey.where tells it.

    Without an export no server lets it in: of its disks to the host, or of its root to itself. A root lets in the
    instance that was started last, and no other: where that one answers, hosts that are silent do not count.
    """
    able = {export.client for export in exports} if volumes else None
    rooted = guest.root is not None and not guest.disks
    if guest.root and rooted:
        roots = session.survey.present([guest.root.volume], _uuids([guest.root]))
        able = set() if roots and not _root_exports(session, guest, roots) else None
    places, states = session.survey.where(guest.name, f"hypervisor:{guest.hypervisor}", hosts, able)
    if rooted and {"running", "paused"} & set(places.values()):
        places = {host: status for host, status in places.items() if status != "unknown"}
    return places, states


def _reasons(states: dict[str, GuestState]) -> dict[str, str]:
    return {host: state.reason for host, state in states.items() if state.reason}


def _root_exports(session: Session, guest: Guest, roots: list[Volume]) -> list[Export]:
    """The exports of a guest's root to itself."""
    return [export for export in session.survey.exports(roots) if export.client == guest_client(guest.name)]


def _shared(session: Session, guest: Guest, volumes: list[Volume]) -> frozenset[str]:
    """The read-only volumes of a guest that other guests have as well."""
    readonly = {disk.volume for disk in guest.disks if disk.readonly}
    if not readonly:
        return frozenset()
    others = [other for other in files.load_all(session.guests) if other.name != guest.name]
    used = {disk.volume for other in others for disk in other.disks}
    return frozenset(volume.uuid for volume in volumes if volume.name in readonly & used)


def start(session: Session, options: Namespace) -> None:
    guest = files.load(session.guests, options.name)
    first = next((disk for disk in [*guest.disks, guest.root] if disk), None)
    home = options.on or (session.survey.find_all([first.volume], _uuids([first]))[0].host if first else "local")
    host = session.host(home, given=True)

    def build() -> Plan:
        what = subject(session, options.name, host)
        if not what.running:
            call = {"guest": codec.dump(what.guest)}
            problems = session.connections.to(host).call(what.target, "check", call)
            raise_problems([Conflict(f"{host}: {problem}", f"storkit host check {host}") for problem in problems])
        return migration.start(what, host, session.inventory)

    if session.change(build):
        session.result({"guest": options.name, "host": host, "status": "running"}, f"{options.name} runs on {host}")


def resume(session: Session, options: Namespace) -> None:
    host = ""

    def build() -> Plan:
        nonlocal host
        # Wherever it is: also where a fence has left it without its disk.
        what = subject(session, options.name, *session.survey.hosts())
        host = next(iter(what.running), "")
        return migration.wake(what, session.inventory)

    if done := session.change(build):
        text = f"{options.name} goes on on {host}" if done[0].steps else f"{options.name} runs on {host} already"
        session.result({"guest": options.name, "host": host, "status": "running"}, text)


def stop(session: Session, options: Namespace) -> None:
    def build() -> Plan:
        # Wherever it is: also where a fence has left it without its disk.
        what = subject(session, options.name, *session.survey.hosts())
        only = session.host(options.on) if options.on else ""
        return migration.stop(what, options.force, options.timeout, only, session.inventory)

    if session.change(build):
        where = f" on {options.on}" if options.on else ""
        session.result({"guest": options.name, "status": "stopped"}, f"{options.name} is stopped{where}")


def delete(session: Session, options: Namespace) -> None:
    guest = files.load(session.guests, options.name)
    _refuse_unless_stopped(session, guest, "it cannot be forgotten")
    if not session.options.dry_run:
        files.delete(session.guests, options.name)
    session.result({"deleted": options.name})


def _places(session: Session, guest: Guest) -> tuple[dict[str, str], dict[str, str], list[Volume]]:
    """Where a guest is, whatever has become of its volumes; why it is paused there, if nobody wanted it; and those of
    its volumes that there are."""
    volumes = session.survey.present([disk.volume for disk in guest.disks], _uuids(guest.disks))
    hosts, exports = session.survey.hosts(volumes), session.survey.exports(volumes)
    # Whom a disk is exported to that nobody can be asked about is not known: then every host counts.
    places, states = _where(session, guest, hosts, volumes if len(volumes) == len(guest.disks) else [], exports)
    return places, _reasons(states), volumes


def _refuse_unless_stopped(session: Session, guest: Guest, so: str) -> None:
    """Raise Conflict if a guest is anywhere, or may be, or sleeps."""
    places, _, volumes = _places(session, guest)
    for hold in {volume.hold for volume in volumes if volume.hold and volume.hold.guest == guest.uuid}:
        raise Conflict(f"guest {guest.name} sleeps since {hold.since}: {so}", wake(guest.name))
    if not places:
        return
    where = ", ".join(f"{status} on {session.inventory.shown(host)}" for host, status in places.items())
    strange = next((host for host in places if session.inventory.lacks(host)), "")
    raise Conflict(
        f"guest {guest.name} is {where}: {so}",
        f"storkit fence {strange}" if strange else f"storkit guest stop {guest.name}",
    )


def list_(session: Session, options: Namespace) -> None:
    rows, data = list[tuple[object, ...]](), list[dict[str, Any]]()
    for name in files.names(session.guests):
        try:
            guest = files.load(session.guests, name)
        except StorkitError as error:
            rows.append((name, "damaged", "-", "-", "-", "-"))
            data.append({"name": name, "error": error.to_json()})
            session.warn(f"storkit: guest {name}: {in_a_line(error)}")
            continue
        places, reasons, more = dict[str, str](), dict[str, str](), dict[str, Any]()
        try:
            places, reasons, volumes = _places(session, guest)
            shown = migration.shown(places, reasons, volumes)
            more = {"hold": codec.dump(next((each.hold for each in volumes if each.hold), None))}
        except StorkitError as error:
            shown, more = "unsupported" if isinstance(error, Unsupported) else "unknown", {"error": error.to_json()}
            session.warn(f"storkit: guest {guest.name}: {in_a_line(error)}")
        disks = ", ".join(
            name for name in [guest.root.volume if guest.root else "", *(d.volume for d in guest.disks)] if name
        )
        rows.append((guest.name, shown, format_size(guest.memory), guest.vcpus, guest.hypervisor, disks))
        found = {"places": places, "reasons": reasons, "disks": disks.split(", ")}
        data.append({"name": guest.name, "uuid": guest.uuid, **found, **more})
    header = ("NAME", "STATE", "MEMORY", "VCPUS", "HYPERVISOR", "DISKS")
    session.result(data, output.table(header, rows))


def show(session: Session, options: Namespace) -> None:
    what = subject(session, options.name)
    data = {**codec.dump(what.guest), "places": what.places, "reasons": what.reasons}
    lines: list[tuple[str, object]] = [
        ("name", what.name),
        ("uuid", what.guest.uuid),
        ("memory", format_size(what.guest.memory)),
        ("vcpus", what.guest.vcpus),
        ("hypervisor", what.guest.hypervisor),
        ("state", what.shown),
    ]
    if hold := next((volume.hold for volume in what.volumes if volume.hold), None):
        lines.append(("asleep", f"since {hold.since}, saved on {hold.host} {hold.file}".rstrip()))
    data["hold"] = codec.dump(hold)
    if what.root and what.guest.root:
        lines.append(("root", f"{what.root.name}, {what.guest.root.address}, {what.root.uuid}"))
        data["root_exports"] = codec.dump(what.root_exports)
    lines += [(f"disk {n}", f"{v.name}, {format_size(v.size)}, {v.uuid}") for n, v in enumerate(what.volumes)]
    session.result(data, output.fields(lines))


def render(session: Session, options: Namespace) -> None:
    from storkit.guests import render as rendering

    what = subject(session, options.name)
    kind = options.kind or what.guest.hypervisor
    host = session.host(options.on) if options.on else next(iter(what.running), "")
    sources: list[DiskSource] = []
    if host:
        found = {a.uuid: a.source for a in session.survey.attachments([host], what.volumes)[host]}
        missing = [volume.name for volume in what.volumes if volume.uuid not in found]
        if missing:
            raise NotFound(
                f"{', '.join(missing)} is not attached on {host}", f"storkit attach {missing[0]} --on {host}"
            )
        sources = [found[volume.uuid] for volume in what.volumes]
    else:
        sources = [DiskSource("block", path=f"/dev/storkit/{volume.name}") for volume in what.volumes]
    text = rendering.render(what.guest, sources, kind, templates=[session.inventory.directory / "templates"])
    session.result({"guest": options.name, "for": kind, "text": text}, text.rstrip("\n"))
