"""`storkit migrate ...`, and what moves a guest in time: `guest save`, `guest restore`, `guest discard`."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from storkit.cli import output
from storkit.cli.guest import subject
from storkit.cli.session import Session
from storkit.cli.volume import proof_line
from storkit.core import codec, registry
from storkit.core.errors import (
    Conflict,
    HostUnreachable,
    NotFound,
    StorkitError,
    Unsafe,
    Unsupported,
    UsageError,
    in_a_line,
    raise_problems,
)
from storkit.core.guest import Guest
from storkit.core.model import Saved, VolumeHold
from storkit.guests import files
from storkit.plans import migration, sleep
from storkit.plans.migration import Subject
from storkit.plans.plan import Plan

EVERYTHING = {"prepare", "run", "finish"}


def run(session: Session, options: Namespace) -> None:
    _migrate(session, options, EVERYTHING)


def prepare(session: Session, options: Namespace) -> None:
    _migrate(session, options, {"prepare"})


def _migrate(session: Session, options: Namespace, parts: set[str]) -> None:
    destination = session.host(options.to, given=True)
    pools: dict[str, None] = {}

    def build() -> Plan:
        what = subject(session, options.name, destination)
        pools.update(dict.fromkeys(volume.pool for volume in [*what.volumes, *([what.root] if what.root else [])]))
        plan = migration.migrate(what, destination, parts, session.inventory)
        if what.places.get(destination) not in (None, "incoming"):
            raise Conflict(
                f"guest {what.name} is {what.places[destination]} on {destination}",
                f"storkit migrate cleanup {what.name}",
            )
        raise_problems(_differences(session, what, destination))
        return plan

    done = session.change(build)
    if not done:
        return
    plan, results = done
    by_verb = {step.verb: results[step.id] for step in plan.steps}
    proofs = by_verb.get("prove") or []
    moved = by_verb.get("send")
    warnings = session.pool_warnings(session.inventory.pool(name) for name in pools)
    data = {"guest": options.name, "to": destination, "plan": plan.id, "proof": proofs, "migration": moved,
            "warnings": warnings}  # fmt: skip
    lines = [proof_line(proof) for proof in proofs]
    if moved:
        down = "" if moved["downtime_ms"] is None else f", down for {moved['downtime_ms']} ms"
        lines.append(f"{options.name} runs on {destination}: moved in {moved['total_ms']} ms{down}")
    else:
        lines.append(
            f"{destination} is ready and may write; move {options.name} there, then: storkit migrate finish "
            f"{options.name} (or: storkit migrate abort {options.name})"
        )
    session.result(data, "\n".join(lines))


def _differences(session: Session, what: Subject, destination: str) -> list[StorkitError]:
    """Everything that would keep the guest from running at the destination, and what the two hosts differ in."""
    source = what.running[0]
    there = session.connections.to(destination)
    guest = {"guest": codec.dump(replace(what.guest, machine=what.machine))}
    arrives = not session.connections.same_machine(source, destination)
    problems: list[StorkitError] = [
        Conflict(f"{destination}: {problem}", f"storkit host check {destination}")
        for problem in there.call(what.target, "check", {**guest, "arrives": arrives})
    ]
    home = {volume.host for volume in what.volumes}
    for name in sorted(home - {destination, source}):
        session.connections.to(name)
    for transport in sorted({session.inventory.transport(volume.pool).partition(":")[2] for volume in what.written}):
        if not registry.transport(transport).window:
            problems.append(
                Unsupported(f"{transport} cannot give two hosts the right to write", "choose another transport")
            )
    ours = session.connections.to(source).call(what.target, "fingerprint", guest)
    theirs = there.call(what.target, "fingerprint", guest)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            problems.append(
                Conflict(
                    f"{key} differs: {ours.get(key, 'none')} on {source}, {theirs.get(key, 'none')} on {destination}",
                    "make them the same on both hosts, or stop the guest and start it there",
                )
            )
    return problems


def finish(session: Session, options: Namespace) -> None:
    _settle(session, options, migration.finish)


def cleanup(session: Session, options: Namespace) -> None:
    _settle(session, options, migration.cleanup, over_marks=True)


def abort(session: Session, options: Namespace) -> None:
    _settle(session, options, migration.finish)


def _settle(session: Session, options: Namespace, planner: Any, over_marks: bool = False) -> None:
    def build() -> Plan:
        hosts = session.survey.hosts()
        plan: Plan = planner(subject(session, options.name, *hosts), session.inventory)
        return plan

    done = session.change(build, over_marks=over_marks)
    if done:
        what = subject(session, options.name)
        here = ", ".join(what.running)
        text = f"{options.name} runs on {here}, which alone may write" if here else f"{options.name} runs nowhere"
        session.result({"guest": options.name, "places": what.places}, text)


def status(session: Session, options: Namespace) -> None:
    names = [options.name] if options.name else files.names(session.guests)
    rows: list[tuple[object, ...]] = []
    data: list[dict[str, Any]] = []
    for name in names:
        try:
            what = subject(session, name, *session.survey.hosts())
        except StorkitError as error:
            if options.name:
                raise
            session.warn(f"storkit: guest {name}: {in_a_line(error)}")
            if not isinstance(error, Unsupported):
                rows.append((name, "unknown", "unknown", "unknown"))
                data.append({"guest": name, "error": error.to_json()})
            continue
        hosts = {export.client for export in what.exports if export.writable}
        writers = sorted({*hosts, *(export.client for export in what.root_exports if export.writable)})
        rows.append(
            (
                name,
                what.shown,
                ", ".join(writers) or "nobody",
                "open" if len(hosts) > 1 else "closed",
            )
        )
        data.append(
            {
                "guest": name,
                "places": what.places,
                "reasons": what.reasons,
                "writers": writers,
                "window": len(hosts) > 1,
                "exports": codec.dump([*what.exports, *what.root_exports]),
            }
        )
    session.result(data, output.table(("GUEST", "STATE", "WRITERS", "WINDOW"), rows))


def save(session: Session, options: Namespace) -> None:
    """Raises everything that keeps the guest from being saved before anything changes."""
    sleeping = VolumeHold("", options.name, str(uuid4()), 0, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "", "")
    hold = sleeping

    def build() -> Plan:
        nonlocal hold
        what = subject(session, options.name, *session.survey.hosts())
        here = sleep.runs_on(what)
        file = _file(session, here, options.file)
        hold = replace(sleeping, guest=what.guest.uuid, host=here, file=file)
        _refuse_file(session, what, here, file)
        said = _fingerprint(session, what, here)
        if said["definition"] != "as recorded":
            raise Conflict(
                f"the record of guest {what.name} is not what it runs by: {said['definition']}",
                f"put it back as it was, or: storkit guest stop {what.name}",
            )
        return sleep.save(what, hold, sleep.asked(what, hold, said), session.inventory)

    if done := session.change(build):
        (saved,) = [done[1][step.id] for step in done[0].steps if step.verb == "save"]
        text = f"{options.name} sleeps; its memory is on {hold.host} in {saved['file']}"
        session.result({"guest": options.name, "host": hold.host, "file": saved["file"], "hold": hold.id}, text)


def restore(session: Session, options: Namespace) -> None:
    """Raises everything that keeps the guest from waking up there before anything changes."""
    host, paused = "", False

    def build() -> Plan:
        nonlocal host, paused
        what = subject(session, options.name, *session.survey.hosts())
        hold = sleep.sleep_of(what)
        host = session.host(options.on or hold.host, given=True)
        sleep.refuse_elsewhere(what)
        file = _file(session, host, options.file or hold.file)
        saved = _saved(session, what, hold, host, file)
        paused, what = saved.paused, replace(what, machine=saved.machine)
        found = session.connections.to(host).hypervisor(what.target).check(_guest(what))
        problems: list[StorkitError] = [
            Conflict(f"{host}: {problem}", f"storkit host check {host}") for problem in found
        ]
        raise_problems(problems)
        sleep.refuse_restore(what, hold, saved, _fingerprint(session, what, host), host)
        return sleep.restore(what, host, hold, saved, file, session.inventory)

    if session.change(build, over_marks=True):
        status = "paused" if paused else "running"
        text = f"{options.name} is awake on {host}" + (", and stands still as it did before" if paused else "")
        session.result({"guest": options.name, "host": host, "status": status}, text)


def discard(session: Session, options: Namespace) -> None:
    """Raises Conflict without --force."""
    names: list[str] = []

    def build() -> Plan:
        what = subject(session, options.name, *session.survey.hosts())
        hold = sleep.sleep_of(what)
        names[:] = [volume.name for volume in what.written if volume.hold]
        if not options.force:
            raise Conflict(
                f"all that guest {what.name} had in its memory would be lost, as by a power cut",
                f"storkit guest restore {what.name}; or, if you mean it: storkit guest discard {what.name} --force",
            )
        keeps = hold.host in session.inventory.hosts and bool(session.survey.answering([hold.host]))
        return sleep.discard(what, hold, keeps, session.inventory)

    if session.change(build, over_marks=True):
        text = f"the memory of {options.name} is given up: {', '.join(names)} is as after a power cut"
        session.result({"guest": options.name, "volumes": names}, text)


def _file(session: Session, host: str, file: str | None) -> str:
    """A file of a host, as the host is told of it."""
    if not file:
        return ""
    if session.inventory.host(host).machine == "local":
        return str(Path(file).absolute())
    if not file.startswith("/"):
        raise UsageError(f"{file} is a file of host {host}, and no absolute path", "name it from / on")
    return file


def _fingerprint(session: Session, what: Subject, host: str) -> dict[str, str]:
    """What the guest needs of a host, and the record that it is by."""
    found = session.connections.to(host).hypervisor(what.target).fingerprint(_guest(what))
    return {**found, "record": sleep.record(what)}


def _guest(what: Subject) -> Guest:
    """The guest's record with the machine type that it runs with."""
    return replace(what.guest, machine=what.machine)


def _refuse_file(session: Session, what: Subject, host: str, file: str) -> None:
    """Raise Conflict if a file has the name already. In the host's own place it is an earlier memory."""
    if not file:
        return
    try:
        session.connections.to(host).hypervisor(what.target).saved(what.name, file)
    except NotFound:
        return
    except Unsafe:
        pass
    raise Conflict(f"{file} exists already on {host}", "choose another name, or remove it there")


def _saved(session: Session, what: Subject, hold: VolumeHold, host: str, file: str) -> Saved:
    """What the memory says of itself. Raises NotFound: this host cannot read it, and how to bring it there."""

    def asked(of: str, file: str) -> Saved:
        return session.connections.to(of).hypervisor(what.target).saved(what.name, file)

    try:
        return asked(host, file)
    except NotFound as error:
        if host == hold.host:
            raise
        try:
            there = asked(hold.host, hold.file).file
        except (NotFound, HostUnreachable):
            raise error from None
        copy = f"/var/tmp/{what.name}.memory"
        raise NotFound(
            f"{host} has no {file or 'memory of guest ' + what.name}: it was saved on {hold.host} in {there}",
            f"scp {hold.host}:{there} {host}:{copy}; storkit guest restore {what.name} {copy} --on {host}",
        ) from None
