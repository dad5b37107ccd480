"""`storkit migrate ...`."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import Any

from storkit.cli import output
from storkit.cli.guest import subject
from storkit.cli.session import Session
from storkit.cli.volume import proof_line
from storkit.core import codec, registry
from storkit.core.errors import Conflict, StorkitError, Unsupported, in_a_line, raise_problems
from storkit.guests import files
from storkit.plans import migration
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
