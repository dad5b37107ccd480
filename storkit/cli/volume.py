"""`storkit volume ...`, attach, detach, verify."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from storkit.cli import output
from storkit.cli.session import Session
from storkit.core import codec
from storkit.core.errors import StorkitError, UsageError, raise_problems
from storkit.core.model import Usage, closed
from storkit.core.units import format_size

if TYPE_CHECKING:
    from argparse import Namespace

    from storkit.api import Proof, Volume

STANDARD = "-"
"""Standard input or output, where a file is named; a file of that name is ./-"""


def create(session: Session, options: Namespace) -> None:
    volume = session.site.volumes.create(options.name, options.size, options.pool or "", options.if_missing)
    _report(session, [volume], "created")


def adopt(session: Session, options: Namespace) -> None:
    place, name = options.place, options.name or ""
    volume = session.site.volumes.adopt(place, name, host=options.on or "", pool=options.pool or "")
    was = f", {volume.was} before" if volume.was != volume.path else ""
    line = f"{volume.name}: {volume.path}{was}, {format_size(volume.size)}, {volume.uuid}"
    session.result(codec.dump(volume), output.shown(line))


def release(session: Session, options: Namespace) -> None:
    released = session.site.volumes.release(options.names, options.force)
    data = [{"volume": each.volume.name, "uuid": each.volume.uuid, "place": each.place} for each in released]
    lines = (output.shown(f"{each.volume.name}: no volume any more; its bytes are {each.place}") for each in released)
    session.result(data, "\n".join(lines))


def import_(session: Session, options: Namespace) -> None:
    if options.tree:
        _report(session, [_import_tree(session, options)], "imported")
        return
    source = options.file
    if source == STANDARD:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("standard input is a terminal, and no image", "storkit volume import - NAME < FILE")
        source = sys.stdin.buffer
    volume = session.site.volumes.import_image(
        source,
        options.name,
        pool=options.pool or "",
        golden=options.golden,
        format=options.format or "",
        size=options.size,
        max_size=options.max_size,
        checksum=options.checksum or "",
    )
    _report(session, [volume], "imported")


def _import_tree(session: Session, options: Namespace) -> Volume:
    problems: list[StorkitError] = []
    for flag in ("format", "golden", "size", "max_size", "checksum"):
        if getattr(options, flag):
            problems.append(UsageError(f"--{flag.replace('_', '-')} is for images of disks", "leave it out"))
    if options.file == STANDARD:
        problems.append(UsageError("a tree is read twice, and standard input only once", "keep the tar in a file"))
    raise_problems(problems)
    return session.site.volumes.import_tree(options.file, options.name, options.pool or "")


def export(session: Session, options: Namespace) -> None:
    if options.file == STANDARD:
        _pour(session, options)
        return
    session.site.volumes.export(options.name, options.file, options.format, options.compress)
    name = options.name.rpartition("/")[2]
    session.result({"volume": name, "file": options.file}, output.shown(f"{name} is in {options.file}"))


def _pour(session: Session, options: Namespace) -> None:
    """Write a volume to standard output; every word goes to standard error."""
    problems: list[StorkitError] = []
    if options.json:
        problems.append(UsageError("standard output is for the image, and not for JSON", "leave --json out"))
    elif sys.stdout is None or sys.stdout.isatty():
        hint = f"storkit volume export {options.name} - > FILE"
        problems.append(UsageError("a disk image is nothing for a terminal", hint))
    raise_problems(problems)
    sys.stdout.flush()
    size = session.site.volumes.pour(options.name, sys.stdout.buffer, options.format, options.compress)
    name = options.name.rpartition("/")[2]
    if options.dry_run:
        output.say(f"write {name} to standard output")
    else:
        output.say(f"{name}: {format_size(size)} written to standard output ({options.format})")


def clone(session: Session, options: Namespace) -> None:
    _report(session, session.site.volumes.clone(options.source, options.names, options.size), "cloned")


def snapshot(session: Session, options: Namespace) -> None:
    _report(session, [session.site.volumes.snapshot(options.source, options.name)], "made")


def resize(session: Session, options: Namespace) -> None:
    done = session.site.volumes.resize(options.name, options.size, cut_off=options.shrink >= 2)
    for guest, seen in done.guests.items():
        if not seen:
            session.say(f"guest {guest} sees the new size at its next start")
    session.result([{**codec.dump(done.volume), "guests": done.guests}], _made_lines([done.volume], "resized"))


def flatten(session: Session, options: Namespace) -> None:
    _report(session, session.site.volumes.flatten(options.names), "stands on no other volume")


def restore(session: Session, options: Namespace) -> None:
    done = session.site.volumes.restore(options.name, options.snapshot, options.discard)
    text = _made_lines([done.volume], f"as it was in {options.snapshot}")
    text += f"\nwhat it was before is kept as {done.kept}" if done.kept else ""
    session.result([{**codec.dump(done.volume), "kept": done.kept}], text)


def move(session: Session, options: Namespace) -> None:
    done = session.site.volumes.move(options.name, options.to, options.keep, options.rate)
    volume = done.volume
    text = f"{volume.name}: in pool {volume.pool} of host {volume.host}"
    text += f", no longer in {done.was}" if done.was else " already"
    lines = [output.shown(text)]
    lines += [f"guest {done.guest} went on, and stood still for {done.stall_ms} ms"] if done.guest else []
    lines += [f"what was there is kept as {done.kept}"] if done.kept else []
    data = {**codec.dump(volume), "was_in": done.was, "kept": done.kept, "digest": done.digest}
    data.update({"guest": done.guest, "stall_ms": done.stall_ms})
    session.result([data], "\n".join(lines))


def rename(session: Session, options: Namespace) -> None:
    _report(session, [session.site.volumes.rename(options.name, options.new)], f"{options.name} until now")


def delete(session: Session, options: Namespace) -> None:
    session.result({"deleted": session.site.volumes.delete(options.names, options.force, options.if_exists)})


def list_(session: Session, options: Namespace) -> None:
    found = session.site.volumes.listing(options.pool or "", options.long)
    used = {(usage.pool, name): taken for usage in found.usages for name, taken in usage.used.items()}
    names = {v.uuid: v.name for v in found.volumes}
    rows: list[tuple[str, ...]] = []
    data: list[dict[str, Any]] = []
    for v in found.volumes:
        taken, guests = used.get((v.pool, v.name)), found.guests.get(v.uuid, [])
        row = (v.name, format_size(v.size), f"{v.kind}, held" if v.hold else v.kind, v.format, v.pool, v.host, v.made)
        size = "unknown" if taken is None else format_size(taken)
        more = (size, names.get(v.origin, v.origin) or "-", ", ".join(guests) or "-")
        rows.append((*row, *more) if options.long else row)
        if options.json:
            data.append({**codec.dump(v), **({"used": taken, "guests": guests} if options.long else {})})
    header = ("NAME", "SIZE", "KIND", "FORMAT", "POOL", "HOST", "MADE", *(("USED", "ORIGIN", "GUESTS") * options.long))
    none = ("-",) * (len(header) - 6)
    rows += [(each.name, "-", "damaged", "-", each.pool, each.host, *none) for each in found.damaged]
    data += [
        {"name": each.name, "pool": each.pool, "host": each.host, "error": session.site.needs(each).to_json()}
        for each in found.damaged
    ]
    session.result(data, "\n\n".join([output.table(header, rows), *map(_filled, found.usages)]))


def _filled(usage: Usage) -> str:
    """How full a pool is, in a line."""
    full = f"pool {usage.pool}: {format_size(usage.free)} of {format_size(usage.total)} free"
    thin = "" if usage.metadata is None else f", its metadata {usage.metadata} % full"
    return f"{full}{thin}; volumes can grow to {format_size(usage.provisioned)}"


def show(session: Session, options: Namespace) -> None:
    found = session.site.volumes.show(options.name)
    data = {
        **codec.dump(found.volume),
        "generation": found.generation,
        "writers": found.writers,
        "exports": codec.dump(found.exports),
        "attachments": codec.dump(found.attachments),
    }
    lines = [(key, data[key]) for key in ("name", "uuid", "kind", "format", "pool", "host", "path", "made", "created")]
    lines.insert(2, ("size", format_size(found.volume.size)))
    if why := closed(found.volume):
        lines.append(("closed", f"{why}: nothing uses it"))
    if hold := found.volume.hold:
        lines.append(
            ("held", f"guest {hold.name} sleeps since {hold.since}, saved on {hold.host} {hold.file}".rstrip())
        )
    if found.volume.term:
        lines.append(("manager", f"{found.volume.manager or 'none'}, in term {found.volume.term}"))
    lines.append(("generation", data["generation"]))
    lines.append(("writers", ", ".join(found.writers) or "nobody"))
    lines += [
        (f"on {e.client}", ("writes" if e.writable else "reads") + ("" if e.live else ", but its server is down"))
        for e in found.exports
    ]
    for a in found.attachments:
        lines.append((f"at {a.host}", f"{a.path} ({a.state})" if a.broken else a.path))
        lines += [(f"at {a.host} by", f"{path.portal}: {path.state}") for path in a.paths]
    session.result(data, output.fields(lines))


def attach(session: Session, options: Namespace) -> None:
    attached = session.site.attachments.attach(options.volume, options.on, write=not options.read_only)
    (attachment,) = attached.attachments
    data = {**codec.dump(attachment), "warnings": attached.warnings}
    session.result(data, output.shown(attachment.path))


def attach_pool(session: Session, options: Namespace) -> None:
    attached = session.site.attachments.attach_pool(options.pool, options.on, write=not options.read_only)
    data = [{**codec.dump(each), "warnings": attached.warnings} for each in attached.attachments]
    session.result(data, "\n".join(output.shown(each.path) for each in attached.attachments))


def detach(session: Session, options: Namespace) -> None:
    client = session.site.attachments.detach(options.volume, options.on)
    session.result({"volume": options.volume.rpartition("/")[2], "detached": client})


def detach_pool(session: Session, options: Namespace) -> None:
    client = session.site.attachments.detach_pool(options.pool, options.on)
    session.result({"pool": options.pool, "detached": client})


def verify(session: Session, options: Namespace) -> None:
    proofs = session.site.attachments.verify(options.volume, options.on or ())
    session.result(codec.dump(proofs), "\n".join(proof_line(proof) for proof in proofs))


def proof_line(proof: Proof) -> str:
    """A proof for people."""
    hosts = " and ".join(proof.hosts)
    many = "see one disk" if len(proof.hosts) > 1 else "sees it"
    seen = f"{proof.identity}, {format_size(proof.size)}, {proof.blocks} blocks alike"
    return output.shown(f"{proof.volume}: {hosts} {many}: {seen}")


def _report(session: Session, volumes: list[Volume], what: str) -> None:
    session.result(codec.dump(volumes), _made_lines(volumes, what))


def _made_lines(volumes: list[Volume], what: str) -> str:
    return "\n".join(output.shown(f"{v.name}: {what} ({v.made}), {format_size(v.size)}, {v.uuid}") for v in volumes)
