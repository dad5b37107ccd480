"""`storkit guest ...`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from storkit.cli import editor, output
from storkit.cli.session import Session
from storkit.core import codec
from storkit.core.errors import NotFound, UsageError
from storkit.core.units import format_size

if TYPE_CHECKING:
    from argparse import Namespace

    from storkit.api import Guest
    from storkit.core.model import Volume, VolumeHold

MOST_CLONES = 10_000


def define(session: Session, options: Namespace) -> None:
    from storkit.api import GuestWish

    wanted = GuestWish(
        memory=options.memory,
        vcpus=options.vcpus,
        hypervisor=options.hypervisor,
        machine=options.machine,
        console=options.console,
        kernel=options.kernel,
        initrd=options.initrd,
        cmdline=options.cmdline,
        firmware=options.firmware,
        nvram=options.nvram,
        disks=options.disk,
        bridges=options.bridge,
        root=options.root,
        address=options.address,
        gateway=options.gateway,
        without=options.without or (),
        agent=options.agent or None,
    )
    _saved(session, session.site.guests.define(options.name, wanted, change=options.replace))


def adopt(session: Session, options: Namespace) -> None:
    from storkit.api import AdoptionWish

    wish = AdoptionWish(
        options.on or "", options.all, _volumes(options.disk), options.local, options.config, options.pid
    )
    guests = session.site.guests.adopt(options.names, wish)
    lines = (f"{guest.name}: {', '.join(disk.volume for disk in guest.disks)}" for guest in guests)
    session.result(codec.dump(guests), "\n".join(map(output.shown, lines)))


def release(session: Session, options: Namespace) -> None:
    guest = session.site.guests.release(options.name)
    session.result(
        {"released": guest.name}, f"{guest.name} is {guest.hypervisor}'s alone, with its disks where they were"
    )


def _volumes(texts: list[str]) -> dict[str, str]:
    """What is said of disks, as TARGET=VOLUME."""
    volumes: dict[str, str] = {}
    for text in texts:
        path, equals, volume = text.rpartition("=")
        if not equals:
            raise UsageError(f"{text!r} is no TARGET=VOLUME", "for example --disk vda=web, or --disk /dev/vg/web=web")
        volumes[path] = volume
    return volumes


def import_(session: Session, options: Namespace) -> None:
    volumes = _volumes(options.disk)
    _saved(session, session.site.guests.import_(options.file, volumes, options.name or "", options.local))


def clone(session: Session, options: Namespace) -> None:
    guests = session.site.guests
    names = _clones(options)
    made = guests.clone(options.source, names, options.set)
    if len(made) == 1 and options.count is None:
        _saved(session, made[0], guests.differences(options.source, made[0]))
        return
    changed = guests.differences(options.source, made[0])
    text = "\n".join([changed, *(f"{guest.name}: {guests.path(guest.name)}" for guest in made)])
    session.result([codec.dump(guest) for guest in made], text)


def _clones(options: Namespace) -> list[str]:
    """The names of the guests that are to be made."""
    if options.count is None and options.template is None:
        if not options.names:
            raise UsageError("no guest is named that is to be made", "storkit guest clone SRC NEW...")
        return list(options.names)
    template, count = options.template or "", options.count or 0
    if options.names or not 1 <= count <= MOST_CLONES or not re.fullmatch(r"[^%]*%(?:0?\d)?d[^%]*", template):
        hint = f"storkit guest clone SRC --count 20 --name web%02d; at most {MOST_CLONES}"
        raise UsageError("--count and --name go together, and with no other names", hint)
    return [template % number for number in range(1, count + 1)]


def _saved(session: Session, guest: Guest, changed: str = "") -> None:
    """Say where a guest's file is; with --dry-run, what it would be. `changed`: of a clone, what is another there."""
    guests = session.site.guests
    text = guests.text(guest) if session.site.planning else f"{guest.name}: {guests.path(guest.name)}"
    text = f"{changed}\n{text}" if changed else text
    session.result(codec.dump(guest), text)


def start(session: Session, options: Namespace) -> None:
    hosts = session.site.guests.start_all(matching(session, options.names), options.on or "")
    data = [{"guest": name, "host": host, "status": "running"} for name, host in hosts.items()]
    text = "\n".join(f"{name} runs on {host}" for name, host in hosts.items())
    session.result(one_or_all(data, options.names), text)


def matching(session: Session, patterns: list[str]) -> list[str]:
    """The guests that are named, each by its name or by a pattern. Raises NotFound: one matches none."""
    from fnmatch import fnmatchcase

    known = session.site.guests.names() if any(_is_pattern(each) for each in patterns) else []
    found: list[str] = []
    for pattern in patterns:
        names = [name for name in known if fnmatchcase(name, pattern)] if _is_pattern(pattern) else [pattern]
        if not names:
            raise NotFound(f"no guest is called like {pattern!r}", "storkit guest list")
        found += names
    return list(dict.fromkeys(found))


def _is_pattern(text: str) -> bool:
    return any(character in text for character in "*?[")


def one_or_all(data: list[Any], names: list[str]) -> Any:
    """What a script gets: of one guest that is named, what is said of it; otherwise a list."""
    return data[0] if len(names) == 1 and not _is_pattern(names[0]) else data


def address(session: Session, options: Namespace) -> None:
    from dataclasses import asdict

    names = matching(session, options.names)
    found = session.site.guests.addresses(names)
    rows = [
        (each.guest, f"{each.address} port {each.port}" if each.port else each.address, each.seen, each.mac, each.host)
        for each in found
    ]
    text = output.table(("GUEST", "ADDRESS", "SEEN AS", "CARD", "HOST"), rows) if rows else ""
    session.result([asdict(each) for each in found], text)
    unknown = [name for name in names if name not in {each.guest for each in found}]
    for name in unknown:
        session.say(f"no address of {name} is known: it does not run, or has said nothing yet that its host has seen")


def snapshot(session: Session, options: Namespace) -> None:
    kept = session.site.guests.snapshot(options.name, options.label)
    data = {"guest": kept.guest, "snapshots": kept.snapshots, "paused": kept.paused, "frozen": kept.frozen}
    if kept.frozen or kept.why:
        session.say(kept.said)
    still = "; it stood still meanwhile" if kept.paused else ""
    session.result(data, f"{kept.guest} is kept: {', '.join(kept.snapshots.values())}{still}")


def revert(session: Session, options: Namespace) -> None:
    done = session.site.guests.revert(options.name, options.label, options.discard)
    data = {"guest": options.name, "volumes": {each.volume.name: each.kept for each in done}}
    lines = [f"{each.volume.name} is set back" + (f"; before: {each.kept}" if each.kept else "") for each in done]
    session.result(data, "\n".join(lines))


def resume(session: Session, options: Namespace) -> None:
    host, stood = session.site.guests.resume(options.name)
    text = f"{options.name} goes on on {host}" if stood else f"{options.name} runs on {host} already"
    session.result({"guest": options.name, "host": host, "status": "running"}, text)


def stop(session: Session, options: Namespace) -> None:
    names = matching(session, options.names)
    session.site.guests.stop_all(names, options.on or "", options.force, options.timeout)
    where = f" on {options.on}" if options.on else ""
    text = "\n".join(f"{name} is stopped{where}" for name in names)
    session.result(one_or_all([{"guest": name, "status": "stopped"} for name in names], options.names), text)


def move(session: Session, options: Namespace) -> None:
    done = session.site.guests.move(
        options.name, options.to, options.pool or "", options.stop, options.start, options.rate
    )
    lines = [
        f"{each.volume.name}: in pool {each.volume.pool}, {f'no longer in {each.was}' if each.was else 'as before'}"
        for each in done.volumes
    ]
    lines.append(f"{done.guest}: {'started' if done.started else 'can be started'} on {done.host}")
    volumes = [{"volume": each.volume.name, "pool": each.volume.pool, "was_in": each.was} for each in done.volumes]
    data = {"guest": done.guest, "host": done.host, "volumes": volumes, "started": done.started}
    session.result(data, "\n".join(map(output.shown, lines)))


def rename(session: Session, options: Namespace) -> None:
    guest = session.site.guests.rename(options.name, options.new)
    session.result({"guest": guest.name, "was": options.name}, output.shown(f"{guest.name}: {options.name} until now"))


def delete(session: Session, options: Namespace) -> None:
    try:
        session.site.guests.delete(options.name)
    except NotFound:
        if not options.if_exists:
            raise
    session.result({"deleted": options.name})


def commit(session: Session, options: Namespace) -> None:
    generation = session.site.guests.commit(options.name)
    text = f"{options.name} is kept: generation {generation}"
    if not generation:
        text = f"{options.name} is in {session.site.guests.path(options.name)} alone: it writes no volume that keeps it"
    session.result({"guest": options.name, "generation": generation}, text)


def checkout(session: Session, options: Namespace) -> None:
    file = session.site.guests.checkout(options.name, options.force, options.generation)
    session.result({"guest": options.name, "file": str(file)}, f"{options.name}: {file}")


def diff(session: Session, options: Namespace) -> None:
    found = session.site.guests.changes(options.name)
    session.result(codec.dump(found), "".join(each.text for each in found).rstrip("\n"))


def refresh(session: Session, options: Namespace) -> None:
    generation, changes = session.site.guests.refresh(options.name, options.force)
    lines = [each.text.rstrip("\n") for each in changes]
    kept = f": generation {generation}" if generation else ""
    lines.append(f"{options.name} {f'is as its hypervisor has it{kept}' if changes else 'was not changed'}")
    session.result({"guest": options.name, "generation": generation, "changes": codec.dump(changes)}, "\n".join(lines))


def edit(session: Session, options: Namespace) -> None:
    with editor.in_editor() as edited:
        generation = session.site.guests.edit(options.name, edited)
    text = f"{options.name} is kept: generation {generation}" if generation else f"{options.name} was not changed"
    session.result({"guest": options.name, "generation": generation}, text)


def list_(session: Session, options: Namespace) -> None:
    rows, data = list[tuple[object, ...]](), list[dict[str, Any]]()
    for entry in session.site.guests.listing():
        guest = entry.guest
        more = {"error": entry.error.to_json()} if entry.error else {"hold": codec.dump(_hold(entry.volumes))}
        if guest is None:
            rows.append((entry.name, entry.shown, "-", "-", "-", "-"))
            data.append({"name": entry.name, **more})
            continue
        disks = [name for name in [guest.root.volume if guest.root else "", *(d.volume for d in guest.disks)] if name]
        rows.append(
            (guest.name, entry.shown, format_size(guest.memory), guest.vcpus, guest.hypervisor, ", ".join(disks))
        )
        found = {"places": entry.places, "reasons": entry.reasons, "disks": disks}
        data.append({"name": guest.name, "uuid": guest.uuid, **found, **more})
    header = ("NAME", "STATE", "MEMORY", "VCPUS", "HYPERVISOR", "DISKS")
    session.result(data, output.table(header, rows))


def show(session: Session, options: Namespace) -> None:
    what = session.site.guests.show(options.name)
    data = {**codec.dump(what.guest), "places": what.places, "reasons": what.reasons, "edited": what.edited}
    lines: list[tuple[str, object]] = [
        ("name", what.name),
        ("uuid", what.guest.uuid),
        ("memory", format_size(what.guest.memory)),
        ("vcpus", what.guest.vcpus),
        ("hypervisor", what.guest.hypervisor),
        *([("firmware", what.guest.boot.firmware)] if what.guest.boot.firmware != "bios" else []),
        ("state", what.shown),
    ]
    kept = session.site.guests.kept(options.name)
    data["kept"] = codec.dump(kept)
    if kept.kept:
        files = "no files here" if kept.generation is None else f"the files here are of generation {kept.generation}"
        files = "as the files here say" if kept.same else files
        lines.append(("kept", f"generation {kept.kept.generation}, by {kept.kept.by}, {kept.kept.since}; {files}"))
    if what.edited:
        lines.append(("changed", f"on {', '.join(what.edited)}: storkit guest diff {what.name}"))
    if hold := _hold(what.volumes):
        lines.append(("asleep", f"since {hold.since}, saved on {hold.host} {hold.file}".rstrip()))
    data["hold"] = codec.dump(hold)
    if what.root and what.guest.root:
        lines.append(("root", f"{what.root.name}, {what.guest.root.address}, {what.root.uuid}"))
        data["root_exports"] = codec.dump(what.root_exports)
    flash = {disk.uuid for disk in what.guest.disks if disk.bus == "flash"}
    lines += [
        ("nvram" if v.uuid in flash else f"disk {n}", f"{v.name}, {format_size(v.size)}, {v.uuid}")
        for n, v in enumerate(what.volumes)
    ]
    session.result(data, output.fields(lines))


def _hold(volumes: list[Volume]) -> VolumeHold | None:
    """What a guest's disks are held by while it sleeps."""
    return next((volume.hold for volume in volumes if volume.hold), None)


def render(session: Session, options: Namespace) -> None:
    kind, text = session.site.guests.render(options.name, options.kind or "", options.on or "")
    session.result({"guest": options.name, "for": kind, "text": text}, text.rstrip("\n"))
