"""`storkit host ...`, pool list, status, agent."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from storkit.cli import output
from storkit.cli.session import Session
from storkit.core import codec
from storkit.core.errors import (
    HostUnreachable,
    StorkitError,
    Unsupported,
    UsageError,
    collected,
    quoted,
    raise_problems,
)
from storkit.core.model import guest_of
from storkit.core.units import format_size


def list_(session: Session, options: Namespace) -> None:
    hosts = list(session.inventory.hosts.values())
    rows = [(host.name, host.url, host.reach, host.state) for host in hosts]
    session.result(codec.dump(hosts), output.table(("HOST", "URL", "ADDRESS", "STATE"), rows))


def check(session: Session, options: Namespace) -> int:
    """1 if a host is not ready; 7 if one does not answer."""
    from storkit.plans.checkup import Checkup

    names = {session.host(name): name for name in options.hosts or session.inventory.hosts}
    checkup = Checkup(session.connections, session.hypervisors())
    reports = checkup.examine(list(names))
    session.survey.silent.update(checkup.silent)
    worst, rows, beneath, data = 0, [], [], list[Any]()
    for report in reports:
        name, problems = names[report.host], report.problems
        if report.error:
            unreachable = isinstance(report.error, HostUnreachable)
            rows.append((name, "unreachable" if unreachable else "broken", report.error.message))
            data.append({"host": name, "error": report.error.to_json()})
            worst = max(worst, report.error.exit_code)
        else:
            count = f"{len(problems)} problem" + "s" * (len(problems) > 1)
            state = ("incomplete", count) if problems else ("ready", f"Linux {report.facts['kernel']}")
            rows.append((name, *state))
            said = {"problems": [each.to_json() for each in problems], "warnings": report.warnings}
            data.append({"host": name, **report.facts, **said})
            worst = max(worst, report.status)
            for warning in report.warnings:
                session.warn(f"storkit: {warning}")
        beneath.append([line for each in problems for line in output.told(each.message, each.hint, each.said_by)])
    header, *lines = output.table(("HOST", "STATE", "DETAILS"), rows).splitlines()
    text = [header, *(line for row, more in zip(lines, beneath, strict=True) for line in (row, *more))]
    session.result(data, "\n".join(text))
    return worst


def restore(session: Session, options: Namespace) -> None:
    """Start the servers of exports again, with the rights they had, and make attachments again, wherever one has ended;
    hosts that are silent stay as they are."""
    if options.boot:
        _restore_at_boot(session, options)
        return
    inventory, back, problems = session.inventory, list[Any](), list[StorkitError]()
    homes = {pool.host for pool in inventory.pools.values()}
    asked = {name: session.host(name) for name in options.hosts or inventory.hosts}
    session.connections.reach(asked.values())
    # Servers before their clients.
    for name in sorted(asked, key=lambda name: name not in homes):
        for target in inventory.served_by:
            try:
                back += session.connections.to(asked[name]).call(target, "restore", {})
            except HostUnreachable as error:
                session.survey.silent[name] = error
                break
            except StorkitError as error:
                problems.append(error)
    raise_problems(problems)
    session.result(back, f"{len(back)} exports are served")


def _restore_at_boot(session: Session, options: Namespace) -> None:
    from storkit.hosts import accept
    from storkit.hosts.setup import LOCAL, remembered, teller
    from storkit.hosts.site import Performer, site

    if options.hosts:
        raise UsageError(
            "--boot is for this machine alone", "storkit host restore HOST, or storkit host restore --boot"
        )
    back, problems = list[Any](), list[StorkitError]()
    file = Path(options.file) if options.file else None
    own = accept.load(file or accept.default_file())
    state = Path(own.state) if own and own.state and not options.state else session.state
    if given := remembered(state):
        # What this machine's own command told, root has said.
        limits = None if (who := teller(state)) == LOCAL else accept.limits(who, file)
        given = limits.setup(given) if limits else given
        performer = Performer(given, site(given), limits)
        session.acted = True
        for target in given.served_by:
            try:
                back += performer.perform(target, "restore", {})
            except StorkitError as error:
                problems.append(error)
    raise_problems(problems)
    session.result(back, f"{len(back)} exports are served")


def pools(session: Session, options: Namespace) -> None:
    usages = session.survey.usage()
    rows = [
        (u.pool, u.host, session.inventory.pools[u.pool].type, *(format_size(n) for n in
         (u.total, u.free, u.provisioned, u.allocated)))
        for u in usages
    ]  # fmt: skip
    failed = {**{pool.name: session.survey.silent.get(pool.host) for pool in session.inventory.pools.values()},
              **session.survey.failed}  # fmt: skip
    data = codec.dump(usages)
    for name, error in failed.items():
        pool = session.inventory.pools[name]
        if error:
            rows.append((name, pool.host, pool.type, *("unknown",) * 4))
            data.append({"pool": name, "host": pool.host, "error": error.to_json()})
    session.result(data, output.table(("POOL", "HOST", "TYPE", "SIZE", "FREE", "PROVISIONED", "ALLOCATED"), rows))
    for usage in usages:
        for warning in usage.warnings:
            session.warn(f"storkit: {warning}")


def status(session: Session, options: Namespace) -> None:
    from storkit.plans.journal import Journals

    exports = session.survey.all_exports(partial=True)
    clients = {export.client for group in exports.values() for export in group if not guest_of(export.client)}
    everyone = dict.fromkeys([*session.inventory.hosts, *sorted(clients)])
    attachments = session.survey.attachments(everyone, partial=True)
    if session.survey.silent:
        session.survey.declared_off()
    journals = Journals(session.state / "plans")
    open_plans = []
    for plan in journals.ids():
        try:
            record = journals.read(plan)
            if not record.end:
                open_plans.append((plan, record.status, record.plan.title))
        except StorkitError as error:
            open_plans.append((plan, "damaged", error.message))
    rows = []
    for home, group in exports.items():
        for export in group:
            states = [a.state for a in attachments.get(export.client, []) if a.uuid == export.uuid]
            unread = (export.client, f"transport:{export.transport}") in session.survey.unread
            state = ("writes" if export.writable else "reads") + ("" if export.live else ", server down")
            if guest_of(export.client):
                there = "itself"
            elif export.client not in attachments:
                there = "unknown" if session.connections.find(export.client) else "unknown (not in the inventory)"
            else:
                there = states[0] if states else "unknown" if unread else "not attached"
            rows.append((export.volume, home, export.client, state, there))
    # Who holds what a silent or unreadable home would tell of is not passed over.
    told = {(export.uuid, export.client) for group in exports.values() for export in group}
    right = "unknown" if session.survey.silent or session.survey.unread else "not exported"
    rows += [
        (attachment.volume, "unknown", host, right, attachment.state)
        for host, group in attachments.items()
        for attachment in group
        if (attachment.uuid, host) not in told
    ]
    others = {
        export.uuid: quoted(f"volume {export.volume} is open for writing on {home}: by {export.others}",
                            session.survey.speaker(home))
        for home, group in exports.items() for export in group if export.others
    }  # fmt: skip
    paused, usages = _paused(session), session.survey.usage()
    asleep = [
        {"volume": name, "pool": usage.pool, **codec.dump(hold)}
        for usage in usages
        for name, hold in usage.held.items()
    ]
    parts = [output.table(("VOLUME", "HOME", "CLIENT", "RIGHT", "THERE"), rows) if rows else "no exports"]
    parts += others.values()
    parts += [f"guest {one['guest']} is paused on {one['host']}: {one['reason']}" for one in paused]
    parts += [f"guest {one['name']} sleeps on volume {one['volume']} since {one['since']}" for one in asleep]
    if open_plans:
        parts.append(output.table(("PLAN", "STATUS", "WHAT"), open_plans))
    data = {
        "exports": codec.dump(exports),
        "attachments": codec.dump(attachments),
        "paused": paused,
        "asleep": asleep,
        "plans": [{"id": plan, "status": state, "title": title} for plan, state, title in open_plans],
        "silent": sorted(session.survey.silent),
        "unread": [
            {"host": host, "transport": target.partition(":")[2], "error": error.to_json()}
            for (host, target), error in sorted(session.survey.unread.items())
        ],
        "warnings": session.usage_warnings(usages),
    }
    session.result(data, "\n\n".join(parts))


def _paused(session: Session) -> list[dict[str, str]]:
    """The guests that stand still though nobody wanted it, and why."""
    from storkit.core.guest import Guest
    from storkit.guests import files

    guests, problems = list[Guest](), list[StorkitError]()
    for name in files.names(session.guests):
        with collected(problems):
            guests.append(files.load(session.guests, name))
    for problem in problems:
        session.warn(f"storkit: {problem.message}")
    found: list[dict[str, str]] = []
    for hypervisor in sorted({guest.hypervisor for guest in guests}):
        names = [guest.name for guest in guests if guest.hypervisor == hypervisor]
        try:
            states = session.survey.guests(session.inventory.hosts, f"hypervisor:{hypervisor}", names)
        except Unsupported:  # `guest list` says so
            continue
        for host, there in states.items():
            found += [{"guest": state.name, "host": host, "reason": state.reason} for state in there if state.reason]
    return found


def agent(options: Namespace) -> int:
    from storkit.hosts.remote.agent import serve

    return serve(grade=options.grade, file=Path(options.file) if options.file else None)
