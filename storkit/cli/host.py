"""`storkit host ...`, pool list, status, agent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from storkit.cli import output
from storkit.cli.session import Session
from storkit.core import codec
from storkit.core.errors import HostUnreachable, StepFailed, UsageError, in_a_line
from storkit.core.model import ATTACHED
from storkit.core.units import format_size

if TYPE_CHECKING:
    from argparse import Namespace

    from storkit.api import Acceptance, Drift, Overview


def list_(session: Session, options: Namespace) -> None:
    hosts = list(session.site.inventory.hosts.values())
    rows = [(host.name, host.url, host.reach, host.state) for host in hosts]
    session.result(codec.dump(hosts), output.table(("HOST", "URL", "ADDRESS", "STATE"), rows))


def check(session: Session, options: Namespace) -> int:
    """1 if a host is not ready; 7 if one does not answer."""
    worst, rows, beneath, data = 0, [], [], list[Any]()
    for name, report in session.site.hosts.check(options.hosts).items():
        problems = report.problems
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
                session.say(warning)
        beneath.append([line for each in problems for line in output.told(each.message, each.hint, each.said_by)])
    header, *lines = output.table(("HOST", "STATE", "DETAILS"), rows).splitlines()
    text = [header, *(line for row, more in zip(lines, beneath, strict=True) for line in (row, *more))]
    session.result(data, "\n".join(text))
    return worst


def add(session: Session, options: Namespace) -> int:
    """As `check`, of that host."""
    from storkit.api import JoinWish

    wish = JoinWish(options.address or "", options.host_state or "", options.file or "", options.program)
    joined = session.site.hosts.add(options.name, options.url, wish)
    session.say(f"{joined.host} is in {joined.inventory}")
    if joined.authorized:
        session.say(f"storkit {joined.installed} is on {joined.host}")
        if not joined.unit:
            session.say("no systemd there that root may use: call `storkit host restore --boot` when it has booted")
        output.advise(f"for a coordinator's key, in authorized_keys there: {joined.authorized} KEY")
        output.advise(f"there, as root: storkit host accept --from-inventory {joined.host} --inventory INVENTORY")
    (report,) = session.site.hosts.check([joined.host]).values()
    if session.options.json:
        problems = [each.to_json() for each in report.problems]
        error = report.error.to_json() if report.error else None
        session.result({**codec.dump(joined), "problems": problems, "error": error})
        return report.status
    options.hosts = [joined.host]
    return check(session, options)


def upgrade(session: Session, options: Namespace) -> None:
    done = session.site.hosts.upgrade(options.hosts, options.file or "", options.program)
    rows = [(each.host, each.before or "none", each.after) for each in done]
    session.result(
        codec.dump(done), output.table(("HOST", "BEFORE", "NOW"), rows) if rows else "no host is reached by ssh"
    )


def remove(session: Session, options: Namespace) -> None:
    file = session.site.hosts.remove(options.host)
    session.result({"host": options.host, "inventory": str(file)}, f"{options.host} is in {file} no longer")


def drain(session: Session, options: Namespace) -> int:
    """10 if guests are left there."""
    from storkit.api import DrainWish
    from storkit.cli.migrate import moved_data, moved_line

    wish = DrainWish(options.to, options.first, options.at_once, options.shutdown_rest, options.timeout)
    done = session.site.hosts.drain(options.host, wish)
    for each in done.left:
        output.explain(each.error)
    data = {
        "host": done.host,
        "moved": [moved_data(each) for each in done.moved],
        "shut_down": done.shut_down,
        "left": [{"guest": each.guest, "error": each.error.to_json()} for each in done.left],
    }
    lines = [moved_line(each) for each in done.moved]
    lines += [f"{name} is shut down" for name in done.shut_down]
    lines += [f"{each.guest} is still on {done.host}" for each in done.left]
    session.result(data, "\n".join([*lines, f"{done.host} takes no guests, until storkit host undrain {done.host}"]))
    return StepFailed.exit_code if done.left else 0


def evacuate(session: Session, options: Namespace) -> int:
    """10 if guests were not started, or the host was not cut off everywhere."""
    from storkit.api import EvacuationWish

    wish = EvacuationWish(options.to, options.first, options.confirmed_off)
    done = session.site.hosts.evacuate(options.host, wish)
    for each in done.left:
        output.explain(each.error)
    for problem in done.problems:
        output.explain(problem)
    data = {
        "host": done.host,
        "problems": [problem.to_json() for problem in done.problems],
        "lost": codec.dump(done.lost),
        "started": [{"guest": guest, "host": host} for guest, host in done.started.items()],
        "left": [{"guest": each.guest, "error": each.error.to_json()} for each in done.left],
    }
    cut = "is not cut off everywhere" if done.problems else f"is cut off, until storkit unfence {done.host}"
    lines = [f"{done.host} {cut}"]
    lines += [f"{guest} runs on {host}" for guest, host in done.started.items()]
    lines += [f"{each.guest} was not started" for each in done.left]
    session.result(data, "\n".join(lines))
    return StepFailed.exit_code if done.left or done.problems else 0


def undrain(session: Session, options: Namespace) -> None:
    host = session.site.hosts.undrain(options.host)
    session.result({"host": host}, f"{host} takes guests again")


def restore(session: Session, options: Namespace) -> None:
    if options.boot and options.hosts:
        raise UsageError(
            "--boot is for this machine alone", "storkit host restore HOST, or storkit host restore --boot"
        )
    if options.boot:
        file = Path(options.file) if options.file else None
        back = session.site.hosts.restore_at_boot(file, session.site.state if options.state else None)
    else:
        back = session.site.hosts.restore(options.hosts)
    session.result(codec.dump(back), f"{len(back)} exports are served")


def accept(session: Session, options: Namespace) -> None:
    from storkit.api import AcceptWish

    wish = AcceptWish(
        targets=tuple(options.targets),
        import_directories=tuple(options.import_dir),
        export_directories=tuple(options.export_dir),
        templates=options.templates or "",
        state=options.state or "",
        remove=tuple(options.remove),
        from_inventory=options.from_inventory or "",
        file=Path(options.file) if options.file else None,
    )
    found = session.site.hosts.accept(wish)
    data = {
        "file": str(found.file),
        "exists": found.exists,
        "accepted": {key.rstrip("_"): value for key, value in codec.dump(found.accepted).items()},
        "asked": [{"target": target, "why": why} for target, why in found.asked],
    }
    session.result(data, _accepted(found, named=bool(options.file)))
    if found.written:
        output.say(f"{found.file} is written: it holds for every key that starts `storkit agent` here")


def _accepted(found: Acceptance, named: bool) -> str:
    """What is accepted, and how to accept what was asked for. `named`: the file was, so it has to be again."""
    missing = not (found.exists or found.changed)
    parts = [f"{found.file} does not exist: a key without a grade is root's here" if missing else found.text.rstrip()]
    if found.asked:
        parts.append(output.table(("ASKED FOR", "AS"), found.asked))
        words = [target for target, _ in found.asked] + (["--file", str(found.file)] if named else [])
        parts.append(f"to accept it: storkit host accept {' '.join(words)}")
    return "\n\n".join(parts)


def pools(session: Session, options: Namespace) -> None:
    rows: list[tuple[str, ...]] = []
    data: list[Any] = []
    for each in session.site.hosts.pools():
        if usage := each.usage:
            sizes = (usage.total, usage.free, usage.provisioned, usage.allocated)
            rows.append((each.pool, each.host, each.type, *(format_size(size) for size in sizes)))
            data.append(codec.dump(usage))
        elif each.error:
            rows.append((each.pool, each.host, each.type, *("unknown",) * 4))
            data.append({"pool": each.pool, "host": each.host, "error": each.error.to_json()})
    session.result(data, output.table(("POOL", "HOST", "TYPE", "SIZE", "FREE", "PROVISIONED", "ALLOCATED"), rows))


def status(session: Session, options: Namespace) -> int:
    found = session.site.hosts.status()
    if options.check:
        return _checked(session, found)
    rows = [(held.volume, held.home, held.client, held.right, held.there) for held in found.holdings]
    parts = [output.table(("VOLUME", "HOME", "CLIENT", "RIGHT", "THERE"), rows) if rows else "no exports"]
    paths = [
        (each.volume, host, path.portal, path.state)
        for host, group in found.attachments.items()
        for each in group
        for path in each.paths
    ]
    if paths:
        parts.append(output.table(("VOLUME", "HOST", "PATH", "STATE"), paths))
    parts += found.others + found.doubled
    parts += [
        f"host {host} takes no guests: {said.by} drains it since {said.since}" for host, said in found.drained.items()
    ]
    parts += [f"guest {state.name} is paused on {state.host}: {state.reason}" for state in found.paused]
    parts += [f"guest {one.hold.name} sleeps on volume {one.volume} since {one.hold.since}" for one in found.asleep]
    plans = [(plan.id, plan.status, plan.error.message if plan.error else plan.title) for plan in found.plans]
    if plans:
        parts.append(output.table(("PLAN", "STATUS", "WHAT"), plans))
    data = {
        "exports": codec.dump(found.exports),
        "attachments": codec.dump(found.attachments),
        "guests": [
            {"guest": state.name, "host": state.host, "hypervisor": state.hypervisor, "status": state.status}
            for state in found.guests
            if state.status != "stopped"
        ],
        "paused": [{"guest": state.name, "host": state.host, "reason": state.reason} for state in found.paused],
        "asleep": [{"volume": one.volume, "pool": one.pool, **codec.dump(one.hold)} for one in found.asleep],
        "drained": codec.dump(found.drained),
        "plans": [{"id": plan, "status": state, "title": title} for plan, state, title in plans],
        "silent": sorted(session.site.silent),
        "unread": [
            {"host": host, "target": target, "transport": transport, "error": error.to_json()}
            for (host, target), error in sorted(session.site.unread.items())
            for transport in [target.removeprefix("transport:") if target.startswith("transport:") else ""]
        ],
        "warnings": found.warnings,
    }
    session.result(data, "\n\n".join(parts))
    return 0


def _checked(session: Session, found: Overview) -> int:
    """What a monitoring system is told: 0 fine, 1 warning, 2 critical, as its plugins have it."""
    site = session.site
    critical = [f"host {host} does not answer" for host in site.silent if host not in site.off]
    critical += [f"host {host} cannot say all: {in_a_line(error)}" for (host, _), error in site.unread.items()]
    critical += [f"pool {pool} cannot be looked at: {in_a_line(error)}" for pool, error in site.failed.items()]
    critical += found.others + found.doubled
    critical += [f"guest {state.name} is paused on {state.host}: {state.reason}" for state in found.paused]
    critical += [
        f"{export.volume} is not served to {export.client} by {home}"
        for home, group in found.exports.items()
        for export in group
        if not export.live
    ]
    critical += [
        f"{each.volume} on {host} is {each.state}"
        for host, group in found.attachments.items()
        for each in group
        if each.state != ATTACHED
    ]
    warning = [*found.warnings]
    warning += [
        f"{each.volume} on {host} has lost its path {path.portal}: {path.state}"
        for host, group in found.attachments.items()
        for each in group
        for path in each.lost
    ]
    warning += [f"plan {plan.id} ({plan.title}) is {plan.status}" for plan in found.plans if plan.status != "running"]
    warning += [f"host {host} takes no guests" for host in found.drained]
    warning += [f"host {host} is declared off" for host in site.off]
    level = 2 if critical else 1 if warning else 0
    word = ("OK", "WARNING", "CRITICAL")[level]
    data = {"status": word.lower(), "critical": critical, "warning": warning}
    count = sum(map(len, found.exports.values()))
    why = "; ".join([*critical, *warning]) or f"{count} exports"
    session.result(data, output.shown(f"{word}: {why}"))
    return level


def audit(session: Session, options: Namespace) -> int:
    found = session.site.hosts.audit()
    session.result([_drift(each) for each in found], "\n".join(map(_told, found)) or "nothing differs")
    return 1 if found else 0


def sweep(session: Session, options: Namespace) -> int:
    orphans = [each for each in session.site.hosts.audit() if each.orphan]
    if not orphans:
        session.result([], "no orphans")
        return 0
    if not options.yes:
        session.result([{**_drift(each), "removed": False} for each in orphans], "\n".join(map(_told, orphans)))
        session.say("nothing was removed: to have these commands carried out, say --yes")
        return 0
    done = session.site.hosts.sweep(orphans)
    data = [
        {**_drift(one.orphan), "removed": one.error is None, **({"error": one.error.to_json()} if one.error else {})}
        for one in done
    ]
    lines = [
        f"{one.orphan.name}: {in_a_line(one.error)}" if one.error else f"removed: {one.orphan.name}, {one.orphan.what}"
        for one in done
    ]
    session.result(data, "\n".join(map(output.shown, lines)))
    return 10 if any(one.error for one in done) else 0


def _drift(each: Drift) -> dict[str, object]:
    data: dict[str, object] = codec.dump(each)
    return data


def _told(each: Drift) -> str:
    lines = [f"{each.kind} {each.name}: {each.what}"]
    lines += [f"  mend: {each.mend}"] if each.mend else []
    lines += [f"  host {each.said_by} says: {each.advice}"] if each.advice else []
    return "\n".join(map(output.shown, lines))


def agent(options: Namespace) -> int:
    from storkit.api.process import serve

    if options.for_host and options.grade:
        raise UsageError("a key is bound to a host, or has a grade", "storkit agent --for HOST, without --grade")
    return serve(options.grade, Path(options.file) if options.file else None, options.for_host or "")
