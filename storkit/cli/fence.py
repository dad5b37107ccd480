"""`storkit fence`, `storkit unfence`."""

from __future__ import annotations

import getpass
import socket
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from storkit.cli.session import Session
from storkit.core import codec
from storkit.core.errors import Conflict, StepFailed, StorkitError, Unsafe, collected, raise_problems
from storkit.core.guest import Guest
from storkit.core.model import Export, Volume, check_name, guest_client
from storkit.guests import files
from storkit.plans import planner
from storkit.plans.journal import Journals
from storkit.plans.plan import Plan, Step


def fence(session: Session, options: Namespace) -> None:
    """Cuts a host off wherever that can be done, whatever fails elsewhere. Raises StepFailed: not everywhere; Unsafe,
    with the host's disks taken: a guest there may still write its root on NFS."""
    host, _ = session.client(options.host)
    if session.inventory.lacks(host):
        _must_be_granted(session, host)
    problems: list[StorkitError] = []

    def build() -> Plan:
        return planner.fence(host, session.inventory, _confirmed(session, host) if options.confirmed_off else None)

    done = _as_far_as_it_goes(session, build, problems)
    if done == [] and not options.confirmed_off:
        for error in problems:
            error.hint += (
                f"; where no storage can, once you have seen that it is off: storkit fence {host} --confirmed-off"
            )
    lost = [export for step, result in done for export in result if step.verb == "fence"] if done else []
    # Afterwards: hosts that do not answer take their time, and the disks should not wait for it.
    roots, kept = _roots(session, host)
    if roots and done is not None:
        with collected(problems):
            session.change(lambda: planner.cut_off(roots, session.inventory), over_marks=True)
            lost += codec.dump([export for _, export in roots])
    for _, export in roots if done is None else []:
        session.warn(f"storkit: then {export.client} would lose its root {export.volume}")
    names = ", ".join(sorted({export["volume"] for export in lost})) or "nothing: it had no disk"
    if problems and lost:
        session.warn(f"storkit: {host} has lost {names}")
    raise_problems(problems + kept)
    if done is not None:
        word = f"; by your word it is off, until storkit unfence {host}" if options.confirmed_off else ""
        session.result({"host": host, "lost": lost}, f"{host} is cut off: {names}{word}")


def unfence(session: Session, options: Namespace) -> None:
    """Raises StepFailed: not everywhere."""
    host, _ = session.client(options.host)
    if session.inventory.lacks(host):
        session.warn(f"storkit: host {check_name('host', host)} is not in the inventory")
    answering = session.survey.answering(session.inventory.hosts)
    said = session.survey.declared_off().get(host)
    keepers = sorted({*answering, *(said.keepers if said else ())})
    problems: list[StorkitError] = []
    done = _as_far_as_it_goes(session, lambda: planner.unfence(host, keepers, session.inventory), problems)
    raise_problems(problems)
    if done is not None:
        session.result({"host": host}, f"{host} may be given disks again")


def _must_be_granted(session: Session, host: str) -> None:
    """Raise NotFound if a host that is not in the inventory is in no grant either; a silent server may have one."""
    homes = {pool.host for pool in session.inventory.pools.values()}
    exports = session.survey.all_exports(sorted(homes))
    granted = any(export.client == host for group in exports.values() for export in group)
    if not granted and exports.keys() == homes:
        session.inventory.host(host)


def _confirmed(session: Session, host: str) -> planner.Confirmed:
    """A person's word that a host is off. Raises Unsafe: it answers; Conflict: nobody is there to keep the word."""
    hosts = session.survey.answering(dict.fromkeys([host, *session.inventory.hosts]))
    if host in hosts:
        raise Unsafe(f"host {host} answers: it is not off", f"storkit fence {host}")
    if not hosts:
        raise Conflict(f"no host answers that could keep the word that {host} is off", "storkit host check")
    by = f"{getpass.getuser()}@{socket.gethostname()}"
    return planner.Confirmed(by, hosts)


def _as_far_as_it_goes(
    session: Session, build: Callable[[], Plan], problems: list[StorkitError]
) -> list[tuple[Step, Any]] | None:
    """Run a plan whose steps stay done when others fail: what is done, and its results. None for a dry run."""
    try:
        ran = session.change(build)
    except StepFailed as error:
        problems.append(error)
        record = Journals(session.state / "plans").read(error.plan)
        ran = record.plan, record.done
    if ran is None:
        return None
    plan, results = ran
    return [(step, results[step.id]) for step in plan.steps if step.id in results]


def _roots(session: Session, host: str) -> tuple[list[tuple[Volume, Export]], list[StorkitError]]:
    """The roots, and their exports, of guests that may run on a host: their server knows them by their addresses alone.

    And what keeps a guest's root from being among them: where another silent host may run it as well, it may be well.
    """
    found: list[tuple[Volume, Export]] = []
    problems: list[StorkitError] = []
    with collected(problems):
        guests = files.load_all(session.guests)
        rooted = {guest_client(guest.name): guest for guest in guests if guest.root}
        roots = {guest.root.volume: guest.root.uuid for guest in guests if guest.root}
        trees = {tree.uuid: tree for tree in session.survey.present(roots, roots) if tree.host != host}
        exports = [export for export in session.survey.exports(list(trees.values())) if export.client in rooted]
        places = _places(session, [rooted[export.client] for export in exports], host)
        for export in exports:
            guest = rooted[export.client].name
            may, others = may_run(places[guest], host)
            if may and not others:
                found.append((trees[export.uuid], export))
            elif may:
                message = f"guest {guest} may run on {host}, or on {', '.join(others)}, and has kept its root"
                problems.append(Unsafe(message, f"storkit detach {export.volume} --on {export.client}"))
    return found, problems


def may_run(places: dict[str, str], host: str) -> tuple[bool, list[str]]:
    """Whether a guest that is in these places may run on a host, and the silent hosts that it may run on instead."""
    there = places.get(host, "")
    elsewhere = {name: status for name, status in places.items() if name != host}
    if there != "unknown":
        return bool(there), []
    return not {"running", "paused"} & set(elsewhere.values()), [*elsewhere]


def _places(session: Session, guests: list[Guest], host: str) -> dict[str, dict[str, str]]:
    """Where each guest is not known to be stopped: host to status, `unknown` where the host is silent."""
    places: dict[str, dict[str, str]] = {guest.name: {} for guest in guests}
    hosts = list(dict.fromkeys([*session.survey.hosts(), host])) if guests else []
    off: set[str] | None = None
    for hypervisor in sorted({guest.hypervisor for guest in guests}):
        names = [guest.name for guest in guests if guest.hypervisor == hypervisor]
        states = session.survey.guests(hosts, f"hypervisor:{hypervisor}", names)
        if off is None:
            off = set(session.survey.declared_off()) - {host} if set(hosts) - states.keys() else set()
        for each in hosts:
            if each not in states and each in off:
                continue
            known = {state.name: state.status for state in states.get(each, [])}
            for name in names:
                status = known.get(name, "stopped") if each in states else "unknown"
                if status != "stopped":
                    places[name][each] = status
    return places
