"""`storkit fence`, `storkit unfence`."""

from __future__ import annotations

from argparse import Namespace

from storkit.cli.guest import root_exports, where
from storkit.cli.session import Session
from storkit.core import codec, planner
from storkit.core.errors import StorkitError
from storkit.core.model import Export, Volume, guest_client
from storkit.guests import files


def fence(session: Session, options: Namespace) -> None:
    host = session.inventory.host(options.host).name
    roots = _roots(session, host)
    done = session.change(lambda: planner.fence(host, session.inventory, roots))
    if done:
        plan, results = done
        lost = [export for step in plan.steps if step.verb == "fence" for export in results[step.id]]
        lost += codec.dump([export for _, export in roots])
        names = ", ".join(sorted({export["volume"] for export in lost})) or "nothing: it had no disk"
        session.result({"host": host, "lost": lost}, f"{host} is cut off: {names}")


def unfence(session: Session, options: Namespace) -> None:
    host = session.inventory.host(options.host).name
    if session.change(lambda: planner.unfence(host, session.inventory)):
        session.result({"host": host}, f"{host} may be given disks again")


def _roots(session: Session, host: str) -> list[tuple[Volume, Export]]:
    """Trees and their exports to guests that may run on a host: a server knows a guest by its address alone.

    What cannot be looked at is named, and keeps no host's disks from being taken.
    """
    found: list[tuple[Volume, Export]] = []
    try:
        for guest in files.load_all(session.guests):
            if guest.root is None:
                continue
            trees = [volume for volume in session.survey.volumes([guest.root.volume]) if volume.host != host]
            disks = session.survey.volumes([disk.volume for disk in guest.disks])
            places = where(session, guest, session.survey.hosts(disks), disks, session.survey.exports(disks))
            if host not in places:
                continue
            if elsewhere := [name for name, status in places.items() if name != host and status == "unknown"]:
                session.warn(
                    f"storkit: guest {guest.name} may run on {host} or {', '.join(elsewhere)}, and keeps its root; "
                    f"to take it: storkit detach {guest.root.volume} --on {guest_client(guest.name)}"
                )
            else:
                found += [(tree, export) for tree in trees for export in root_exports(session, guest, [tree])]
    except StorkitError as error:
        session.warn(f"storkit: guests with their root on NFS are not looked at: {error.message}")
    return found
