"""`storkit volume ...`, attach, detach, verify."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from storkit.cli import output
from storkit.cli.session import Session
from storkit.core import codec
from storkit.core.errors import Conflict, NotFound, StorkitError, UsageError, raise_problems
from storkit.core.inventory import PoolConfig
from storkit.core.model import Export, Volume, check_name, guest_of
from storkit.core.units import format_size, parse_size
from storkit.plans import planner
from storkit.plans.lookup import parts
from storkit.plans.plan import Plan


def create(session: Session, options: Namespace) -> None:
    problems: list[StorkitError] = []
    size = _checked(lambda: parse_size(options.size), problems)
    pool = _checked(lambda: _pool(session, options), problems)
    _checked(lambda: check_name("volume", options.name), problems)
    raise_problems(problems)

    def build() -> Plan:
        must_be_free(session, [options.name], pool)
        return planner.create([volume], session.inventory)

    volume = new_volume(pool, options.name, size)
    _report(session, session.change(build), "created")


def import_(session: Session, options: Namespace) -> None:
    if options.tree:
        return _import_tree(session, options)
    problems: list[StorkitError] = []
    wanted = _checked(lambda: parse_size(options.size), problems) if options.size is not None else 0
    limit = _checked(lambda: parse_size(options.max_size), problems) if options.max_size is not None else 0
    pool = _checked(lambda: _pool(session, options), problems)
    _checked(lambda: check_name("volume", options.name), problems)
    raise_problems(problems)
    from storkit import images
    from storkit.cli import stream

    must_be_free(session, [options.name], pool)
    host = session.connections.to(pool.host)
    spooled: Path | None = None
    file = options.file
    try:
        if file == stream.STANDARD:
            if host.config.machine != "local":
                raise UsageError(f"standard input cannot be imported on {pool.host}", "copy the file there and name it")
            spooled = stream.read(session.state, limit or images.MAX_SIZE)
            file = str(spooled)
        elif host.config.machine == "local":
            file = str(Path(file).absolute())
        source = {"source": file, "format": options.format or "", "checksum": options.checksum or "",
                  "max_size": limit}  # fmt: skip
        with stream.named(spooled):
            info = host.call("images", "inspect", source)
        if padding := info.get("padding"):
            session.warn(f"storkit: {options.file}: {padding} bytes of zeros make whole sectors of it")
        size = max(wanted, info["virtual_size"])
        if wanted and wanted < info["virtual_size"]:
            raise UsageError(
                f"the image is {format_size(info['virtual_size'])} large, more than {format_size(wanted)}",
                "leave --size out, or make it larger",
            )
        volume = new_volume(pool, options.name, size)
        kind = "image" if options.golden else "disk"

        def build() -> Plan:
            return planner.import_image(volume, source, kind, session.inventory)

        _report(session, session.change(build), "imported")
    finally:
        if spooled is not None:
            spooled.unlink(missing_ok=True)


def _import_tree(session: Session, options: Namespace) -> None:
    problems: list[StorkitError] = []
    pool = _checked(lambda: _pool(session, options), problems)
    _checked(lambda: check_name("volume", options.name), problems)
    for flag in ("format", "golden", "size", "max_size", "checksum"):
        if getattr(options, flag):
            problems.append(UsageError(f"--{flag.replace('_', '-')} is for images of disks", "leave it out"))
    if options.file == "-":
        problems.append(UsageError("a tree is read twice, and standard input only once", "keep the tar in a file"))
    raise_problems(problems)
    local = session.inventory.host(pool.host).machine == "local"
    source = str(Path(options.file).absolute()) if local else options.file
    volume = new_volume(pool, options.name, 0, kind="tree")

    def build() -> Plan:
        must_be_free(session, [options.name], pool)
        return planner.import_tree(volume, source, session.inventory)

    _report(session, session.change(build), "imported")


def export(session: Session, options: Namespace) -> None:
    from storkit import images
    from storkit.cli import stream

    if options.file == stream.STANDARD:
        stream.export(session, options)
        return

    def build() -> Plan:
        volume = session.survey.volume(options.name)
        host = session.inventory.host(volume.host)
        file = options.file
        if host.machine == "local":
            file = str(Path(file).absolute())
            images.refuse_export(volume, Path(file), options.format, options.compress)
        return planner.export_image(volume, file, options.format, options.compress, session.inventory)

    done = session.change(build)
    if done:
        name = parts(options.name)[1]
        session.result({"volume": name, "file": options.file}, output.shown(f"{name} is in {options.file}"))


def clone(session: Session, options: Namespace) -> None:
    problems: list[StorkitError] = []
    wanted = _checked(lambda: parse_size(options.size), problems) if options.size is not None else 0
    for name in options.names:
        _checked(lambda name=name: check_name("volume", name), problems)
    twice = {name for name in options.names if options.names.count(name) > 1} if len(options.names) < 100 else set()
    if twice or len(set(options.names)) < len(options.names):
        problems.append(UsageError(f"named twice: {', '.join(sorted(twice)) or 'a volume'}", "name each clone once"))
    raise_problems(problems)
    volumes: list[Volume] = []

    def build() -> Plan:
        source = session.survey.volume(options.source)
        if not volumes:
            must_be_free(session, options.names)
        if wanted and wanted < source.size:
            raise UsageError(
                f"{source.name} is {format_size(source.size)} large; a clone cannot be smaller", "leave --size out"
            )
        if not volumes:
            pool = session.inventory.pool(source.pool)
            size = wanted or source.size
            kind = "tree" if source.kind == "tree" else "disk"
            volumes.extend(new_volume(pool, name, size, origin=source.uuid, kind=kind) for name in options.names)
        if source.kind in ("disk", "tree"):
            planner.refuse_written(source, session.survey.exports([source]), "cloned")
        return planner.clone([(source, volumes)], session.inventory)

    _report(session, session.change(build), "cloned")


def snapshot(session: Session, options: Namespace) -> None:
    check_name("volume", options.name)
    made: list[Volume] = []

    def build() -> Plan:
        source = session.survey.volume(options.source)
        if not made:
            must_be_free(session, [options.name])
            pool = session.inventory.pool(source.pool)
            made.append(new_volume(pool, options.name, source.size, origin=source.uuid, kind="snapshot"))
        return planner.snapshot(source, made[0], session.inventory)

    _report(session, session.change(build), "made")


def resize(session: Session, options: Namespace) -> None:
    size = parse_size(options.size)

    def build() -> Plan:
        volume = session.survey.volume(options.name)
        if size < volume.size and options.shrink < 2:
            raise UsageError(
                f"{volume.name} is {format_size(volume.size)} large; at {format_size(size)} its end would be cut off",
                "shrink the file system in it, then: "
                f"storkit volume resize {options.name} {options.size} --shrink --shrink",
            )
        exports = session.survey.exports([volume])
        return planner.resize(volume, size, options.shrink >= 2, exports, session.inventory)

    _report(session, session.change(build), "resized")


def delete(session: Session, options: Namespace) -> None:
    from storkit.cli import disks

    def build() -> Plan:
        volumes = session.survey.find_all(options.names)
        if not options.force:
            disks.refuse_to_delete(session, volumes)
        return planner.delete(volumes, session.survey.exports(volumes), session.inventory)

    if session.change(build):
        names = [parts(name)[1] for name in options.names]
        for name in names:
            session.survey.hints.drop(name)
        session.result({"deleted": names})


def list_(session: Session, options: Namespace) -> None:
    pools = [session.inventory.pool(options.pool)] if options.pool else None
    volumes = session.survey.volumes(pools=pools)
    damaged = list(session.survey.damaged.values())
    _warn_of_twins(session, volumes)
    rows: list[tuple[str, ...]] = [
        (v.name, format_size(v.size), f"{v.kind}, held" if v.hold else v.kind, v.format, v.pool, v.host, v.made)
        for v in volumes
    ]
    rows += [(each.name, "-", "damaged", "-", each.pool, each.host, "-") for each in damaged]
    header = ("NAME", "SIZE", "KIND", "FORMAT", "POOL", "HOST", "MADE")
    data = codec.dump(volumes) if session.options.json else []
    data += [
        {"name": each.name, "pool": each.pool, "host": each.host, "error": session.survey.of_damaged(each).to_json()}
        for each in damaged
    ]
    session.result(data, output.table(header, rows))


def _warn_of_twins(session: Session, volumes: list[Volume]) -> None:
    """A name that stands for two volumes, made while a pool could not be asked, is no name to go by."""
    pools: dict[str, list[str]] = {}
    for volume in volumes:
        pools.setdefault(volume.name, []).append(volume.pool)
    for name, places in pools.items():
        if len(places) > 1:
            session.survey.hints.drop(name)
            whole = " or ".join(f"{pool}/{name}" for pool in places)
            session.warn(f"storkit: volume {name} is in pool {' and in pool '.join(places)}: write {whole}")


def show(session: Session, options: Namespace) -> None:
    volume = session.survey.volume(options.name)
    exports = session.survey.exports([volume])
    attached = session.survey.attachments(_clients(exports), [volume])
    data = {
        **codec.dump(volume),
        "generation": max([volume.generation, *(export.generation for export in exports)]),
        "writers": sorted(planner.writers(exports, volume)),
        "exports": codec.dump(exports),
        "attachments": [codec.dump(each) for group in attached.values() for each in group],
    }
    lines = [(key, data[key]) for key in ("name", "uuid", "kind", "format", "pool", "host", "path", "made", "created")]
    lines.insert(2, ("size", format_size(volume.size)))
    if hold := volume.hold:
        lines.append(
            ("held", f"guest {hold.name} sleeps since {hold.since}, saved on {hold.host} {hold.file}".rstrip())
        )
    lines.append(("generation", data["generation"]))
    lines.append(("writers", ", ".join(data["writers"]) or "nobody"))
    lines += [
        (f"on {e.client}", ("writes" if e.writable else "reads") + ("" if e.live else ", but its server is down"))
        for e in exports
    ]
    lines += [
        (f"at {a.host}", f"{a.path} ({a.state})" if a.broken else a.path) for group in attached.values() for a in group
    ]
    session.result(data, output.fields(lines))


def _clients(exports: list[Export]) -> list[str]:
    """The hosts among the clients: no other host need be asked about a volume, since no server lets it in."""
    return list(dict.fromkeys(export.client for export in exports if not guest_of(export.client)))


def attach(session: Session, options: Namespace) -> None:
    attachments = _attach(session, options, lambda: [session.survey.volume(options.volume)])
    if attachments:
        if not (options.read_only or attachments[0]["writable"]):
            session.warn(f"storkit: nobody writes volume {attachments[0]['volume']}: it is attached for reading only")
        session.result(attachments[0], output.shown(attachments[0]["path"]))


def attach_pool(session: Session, options: Namespace) -> None:
    pool = session.inventory.pool(options.pool)
    attachments = _attach(session, options, lambda: _all_of(session, pool))
    if attachments:
        session.result(attachments, "\n".join(output.shown(attachment["path"]) for attachment in attachments))


def _attach(session: Session, options: Namespace, find: Callable[[], list[Volume]]) -> list[Any]:
    """Attach volumes on the host `--on`; the attachments, each with its pool's warnings, none for a dry run."""
    host = session.host(options.on, given=True)
    pools: dict[str, PoolConfig] = {}

    def build() -> Plan:
        volumes = find()
        pools.update((volume.pool, session.inventory.pool(volume.pool)) for volume in volumes)
        return planner.attach(volumes, host, session.survey.exports(volumes), not options.read_only, session.inventory)

    done = session.change(build)
    if not done:
        return []
    plan, results = done
    warnings = session.pool_warnings(pools.values())
    made = [attachment for step in plan.steps if step.verb == "attach" for attachment in results[step.id]]
    return [{**attachment, "warnings": warnings} for attachment in made]


def _all_of(session: Session, pool: PoolConfig) -> list[Volume]:
    # A tree is its guest's to mount, and no host's.
    volumes = [volume for volume in session.survey.volumes(pools=[pool]) if volume.kind != "tree"]
    if pool.host in session.survey.silent:
        raise session.survey.silent[pool.host]
    if pool.name in session.survey.failed:
        raise session.survey.failed[pool.name]
    session.survey.refuse_damaged(name for where, name in session.survey.damaged if where == pool.name)
    if not volumes:
        raise NotFound(f"pool {pool.name} has no volumes", f"storkit volume create NAME SIZE --pool {pool.name}")
    return volumes


def detach(session: Session, options: Namespace) -> None:
    if _detach(session, options, lambda: [session.survey.volume(options.volume)]):
        session.result({"volume": parts(options.volume)[1], "detached": options.on})


def detach_pool(session: Session, options: Namespace) -> None:
    pool = session.inventory.pool(options.pool)
    if _detach(session, options, lambda: _all_of(session, pool)):
        session.result({"pool": pool.name, "detached": options.on})


def _detach(session: Session, options: Namespace, find: Callable[[], list[Volume]]) -> bool:
    """Detach volumes from the host `--on`; False for a dry run."""
    host, asked = (options.on, False) if guest_of(options.on) else session.client(options.on)
    options.on, lost = host, list[Volume]()

    def build() -> Plan:
        volumes = find()
        exports = session.survey.exports(volumes)
        if not asked:
            lost[:] = [volume for volume in volumes if host in planner.writers(exports, volume)]
            return _cut_off(session, volumes, [export for export in exports if export.client == host], host)
        exported = {export.uuid for export in exports if export.client == host}
        _refuse_from_under_a_guest(session, [volume for volume in volumes if volume.uuid in exported], host)
        return planner.detach(volumes, host, session.inventory)

    done = session.change(build) is not None
    if done and lost and not guest_of(host):
        session.warn(
            f"storkit: {host}, which is not in the inventory and was not asked, could write {planner.names_of(lost)} "
            "until now: a guest that still runs there has lost its disk"
        )
    return done


def _cut_off(session: Session, volumes: list[Volume], ended: list[Export], client: str) -> Plan:
    """Take volumes from a guest, whose root they are, or from a host that is not in the inventory: as fence does with a
    host's disks, at the servers alone, for one that nobody can ask."""
    if not ended:
        if session.inventory.lacks(client):
            session.inventory.host(client)  # no grant names it either: a slip of the pen, most likely
        names = planner.names_of(volumes)
        raise NotFound(f"volume {names} is not exported to {client}", f"storkit volume show {volumes[0].name}")
    by_uuid = {volume.uuid: volume for volume in volumes}
    return planner.cut_off([(by_uuid[export.uuid], export) for export in ended], session.inventory)


def _refuse_from_under_a_guest(session: Session, volumes: list[Volume], host: str) -> None:
    """Raise Conflict if a guest on the host has one for its disk: to cut off the host itself, there is fence."""
    names = {volume.uuid: volume.name for volume in volumes}
    if not names:
        return
    problems: list[StorkitError] = []
    for hypervisor in session.hypervisors():
        for states in session.survey.guests([host], f"hypervisor:{hypervisor}").values():
            for state in states:
                if state.status in ("stopped", "migrated"):
                    continue
                problems += [
                    Conflict(
                        f"guest {state.name} is {state.status} on {host}, and volume {names[uuid]} is its disk",
                        f"storkit guest stop {state.name}, or storkit migrate cleanup {state.name}",
                    )
                    for uuid in state.volumes
                    if uuid in names
                ]
    raise_problems(problems)


def verify(session: Session, options: Namespace) -> None:
    def build() -> Plan:
        volume = session.survey.volume(options.volume)
        hosts = [session.host(name) for name in options.on or ()]
        if not hosts:
            attached = session.survey.attachments(_clients(session.survey.exports([volume])), [volume])
            hosts = [host for host, found in attached.items() if found]
        if not hosts:
            raise NotFound(
                f"volume {volume.name} is attached nowhere", f"storkit attach {volume.name} --on HOST, on two hosts"
            )
        return planner.verify(volume, hosts, session.inventory)

    done = session.change(build)
    if done:
        proofs = next(iter(done[1].values()))
        session.result(proofs, "\n".join(proof_line(proof) for proof in proofs))


def proof_line(proof: dict[str, Any]) -> str:
    """A proof for people."""
    hosts = " and ".join(proof["hosts"])
    many = "see one disk" if len(proof["hosts"]) > 1 else "sees it"
    seen = f"{proof['identity']}, {format_size(proof['size'])}, {proof['blocks']} blocks alike"
    return output.shown(f"{proof['volume']}: {hosts} {many}: {seen}")


def _pool(session: Session, options: Namespace) -> PoolConfig:
    return session.inventory.pool(options.pool or session.inventory.defaults.pool)


def new_volume(pool: PoolConfig, name: str, size: int, *, origin: str = "", kind: str = "disk") -> Volume:
    """A volume that is yet to be made, with a UUID of its own."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"name": name, "uuid": str(uuid4()), "size": size, "pool": pool.name, "host": pool.host,
              "origin": origin, "kind": kind, "created": now}  # fmt: skip
    return codec.load(Volume, record)


def must_be_free(session: Session, names: list[str], pool: PoolConfig | None = None) -> None:
    """A name stands for one disk on every host: it must be free in every pool that answers; the others are named at
    the end. `pool` is where they are to be made. A damaged volume keeps its name."""
    taken = session.survey.volumes(names)
    if pool and pool.name in session.survey.failed:
        raise session.survey.failed[pool.name]
    session.survey.refuse_damaged(names)
    raise_problems(
        [
            Conflict(f"volume {volume.name} exists already in pool {volume.pool}", f"storkit volume show {volume.name}")
            for volume in taken
        ]
    )


def _checked(action: Any, problems: list[StorkitError]) -> Any:
    try:
        return action()
    except StorkitError as error:
        problems.append(error)
        return None


def _report(session: Session, done: Any, what: str) -> None:
    if not done:
        return
    plan, results = done
    volumes = list(results[plan.steps[-1].id])
    session.survey.hints.put(codec.load(list[Volume], volumes))
    text = "\n".join(
        output.shown(f"{v['name']}: {what} ({v['made']}), {format_size(v['size'])}, {v['uuid']}") for v in volumes
    )
    session.result(volumes, text)
