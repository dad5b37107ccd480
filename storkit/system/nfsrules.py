"""Who may be given what over NFS: everything that is refused before anything is changed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from storkit.core.errors import Conflict, StorkitError, Unsupported
from storkit.core.model import Volume, guest_of
from storkit.system.nfsgrant import Grant, Granted, NfsSettings

_BOOTS = re.compile(r"[^\s,\"']+")


def clients(
    volume: Volume, addresses: dict[str, list[str]], granted: dict[str, Granted], everyone: Sequence[Grant]
) -> Iterable[StorkitError]:
    """Why a volume cannot go to these clients, beside those that have it. `everyone`: all grants of this server."""
    for client, where in addresses.items():
        if bool(guest_of(client)) != (volume.kind == "tree"):
            yield _misplaced(volume, client)
        for other, theirs in granted.items():
            if other != client and (same := sorted(set(where) & set(theirs.addresses))):
                message = f"hosts {client} and {other} both come from {same[0]}: NFS cannot give them different rights"
                yield Unsupported(message, f"volume {volume.name} needs another transport, or they other addresses")
        if guest_of(client):
            yield from _guest(volume, client, where, granted, everyone)


def _misplaced(volume: Volume, client: str) -> StorkitError:
    if volume.kind == "tree":
        hint = f"storkit guest define NAME --root {volume.name} --address ADDRESS; or clone it"
        return Unsupported(f"volume {volume.name} is a tree: its guest mounts it, no host", hint)
    message = f"volume {volume.name} is a {volume.kind}, and {client} can mount a tree only"
    return Unsupported(message, f"give it to the guest with --disk {volume.name}")


def _guest(
    volume: Volume, client: str, addresses: list[str], granted: dict[str, Granted], everyone: Sequence[Grant]
) -> Iterable[StorkitError]:
    for other in granted.keys() - {client}:
        message = f"volume {volume.name} is the root of guest {guest_of(other)}, and two guests cannot write one tree"
        yield Conflict(message, f"storkit volume clone {volume.name} NEW; or storkit guest stop {guest_of(other)}")
    for grant in everyone:
        for other, theirs in grant.clients.items():
            if other != client and (same := sorted(set(addresses) & set(theirs.addresses))):
                message = f"{client} and {other} both come from {same[0]}: each could mount what the other has"
                yield Unsupported(message, f"give guest {guest_of(client)} an address of its own")


def tree(volume: Volume, settings: NfsSettings, managed: bool) -> Iterable[StorkitError]:
    """Why a tree cannot be a guest's root."""
    if not managed:
        message = f"volume {volume.name} is on a server that storkit does not manage, and cannot be exported to a guest"
        yield Unsupported(message, "use a pool whose host is the NFS server")
    if settings.sec != "sys":
        yield Unsupported(f"sec = {settings.sec!r}: no kernel mounts its root with Kerberos", 'sec = "sys"')
    if not _BOOTS.fullmatch(volume.path):
        message = f"{volume.path!r} cannot stand on a kernel's command line"
        yield Unsupported(message, "use a pool directory without spaces, commas and quotes")
