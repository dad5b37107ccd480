"""`storkit fence`, `storkit unfence`."""

from __future__ import annotations

from argparse import Namespace

from storkit.cli.session import Session
from storkit.core import codec, planner
from storkit.core.errors import StorkitError, Unsafe, collected, raise_problems
from storkit.core.model import Export, Volume, guest_client
from storkit.guests import files
from storkit.guests.record import Guest


def fence(session: Session, options: Namespace) -> None:
    """Raises Unsafe, with the host's disks taken, if a guest there may still write its root on NFS."""
    host = session.inventory.host(options.host).name
    done = session.change(lambda: planner.fence(host, "fence", session.inventory))
    lost = [export for result in done[1].values() for export in result] if done else []
    # Afterwards: hosts that do not answer take their time, and the disks should not wait for it.
    roots, problems = _roots(session, host)
    if roots and done:
        session.change(lambda: planner.cut_off(roots, session.inventory), over_marks=True)
        lost += codec.dump([export for _, export in roots])
    for _, export in roots if not done else []:
        session.warn(f"storkit: then {export.client} would lose its root {export.volume}")
    raise_problems(problems)
    if done:
        names = ", ".join(sorted({export["volume"] for export in lost})) or "nothing: it had no disk"
        session.result({"host": host, "lost": lost}, f"{host} is cut off: {names}")


def unfence(session: Session, options: Namespace) -> None:
    host = session.inventory.host(options.host).name
    if session.change(lambda: planner.fence(host, "unfence", session.inventory)):
        session.result({"host": host}, f"{host} may be given disks again")


def _roots(session: Session, host: str) -> tuple[list[tuple[Volume, Export]], list[StorkitError]]:
    """The roots, and their exports, of guests that may run on a host: their server knows them by their addresses alone.

    And what keeps a guest's root from being among them: where another silent host may run it as well, it may be well.
    """
    found: list[tuple[Volume, Export]] = []
    problems: list[StorkitError] = []
    with collected(problems):
        guests = files.load_all(session.guests)
        rooted = {guest_client(guest.name): guest for guest in guests if guest.root}
        names = [guest.root.volume for guest in guests if guest.root]
        trees = {tree.uuid: tree for tree in session.survey.volumes(names) if tree.host != host} if names else {}
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
    session.connections.inventory = session.inventory.with_host(session.inventory.host(host))
    for hypervisor in sorted({guest.hypervisor for guest in guests}):
        names = [guest.name for guest in guests if guest.hypervisor == hypervisor]
        states = session.survey.guests(hosts, f"hypervisor:{hypervisor}", names)
        for each in hosts:
            known = {state.name: state.status for state in states.get(each, [])}
            for name in names:
                status = known.get(name, "stopped") if each in states else "unknown"
                if status != "stopped":
                    places[name][each] = status
    return places
