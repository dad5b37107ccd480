"""Who may be given what over NFS: everything that is refused before anything is changed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from storkit.core.errors import Conflict, StorkitError, Unsupported
from storkit.core.model import Volume, guest_of
from storkit.tech.nfs.names import NfsClientGrant, NfsGrant, NfsSettings

_BOOTS = re.compile(r"[^\s,\"']+")


def clients(
    volume: Volume, addresses: dict[str, list[str]], granted: dict[str, NfsClientGrant]
) -> Iterable[StorkitError]:
    """Why a volume cannot go to these clients, beside those that have it."""
    for client, where in addresses.items():
        if bool(guest_of(client)) != (volume.kind == "tree"):
            yield _misplaced(volume, client)
        for other, theirs in granted.items():
            if other != client and (same := sorted(set(where) & set(theirs.addresses))):
                message = f"hosts {client} and {other} both come from {same[0]}: NFS cannot give them different rights"
                yield Unsupported(message, f"volume {volume.name} needs another transport, or they other addresses")
        for other in granted.keys() - {client} if guest_of(client) else ():
            message = (
                f"volume {volume.name} is the root of guest {guest_of(other)}, and two guests cannot write one tree"
            )
            hint = f"storkit volume clone {volume.name} NEW; or storkit guest stop {guest_of(other)}"
            yield Conflict(message, hint)


def shared(addresses: dict[str, list[str]], everyone: Sequence[NfsGrant]) -> Iterable[StorkitError]:
    """With whom clients would share an address, where one of the two is a guest. Its right hangs on its address alone,
    and when it ends so does all NFS state of that address. `everyone`: all grants of this server."""
    owners = {at: other for grant in everyone for other, theirs in grant.clients.items() for at in theirs.addresses}
    guests = {at: other for at, other in owners.items() if guest_of(other)}
    for client, where in addresses.items():
        theirs = owners if guest_of(client) else guests
        if same := sorted(at for at in where if theirs.get(at, client) != client):
            other = theirs[same[0]]
            message = f"{client} and {other} both come from {same[0]}: each could mount what the other has"
            yield Unsupported(message, f"give guest {guest_of(client) or guest_of(other)} an address of its own")


def _misplaced(volume: Volume, client: str) -> StorkitError:
    if volume.kind == "tree":
        hint = f"storkit guest define NAME --root {volume.name} --address ADDRESS; or clone it"
        return Unsupported(f"volume {volume.name} is a tree: its guest mounts it, no host", hint)
    message = f"volume {volume.name} is a {volume.kind}, and {client} can mount a tree only"
    return Unsupported(message, f"give it to the guest with --disk {volume.name}")


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
