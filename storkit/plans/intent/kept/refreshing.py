"""What an administrator has changed in the hypervisor itself (`virsh edit`): shown, taken over into what is kept of a
guest, and never written over.

It is what the guest's host says, and another host will run it: a person looks at it before it is kept.
"""

from __future__ import annotations

from storkit.core.errors import Conflict, HostUnreachable, ServiceUnreachable
from storkit.core.guest import Guest
from storkit.core.model import Original
from storkit.guests import document, secrets
from storkit.plans.intent import views
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.kept import checkout, sources
from storkit.plans.migration import GuestView


def refuse(what: GuestView, hosts: list[str], then: str) -> None:
    """Raise Conflict if a guest was changed on one of these hosts, which would be lost."""
    if where := [host for host in what.edited if host in hosts]:
        message = f"guest {what.name} was changed on {', '.join(where)} by its hypervisor's own tools: {then}"
        raise Conflict(message, f"storkit guest diff {what.name}; then storkit guest refresh {what.name}")


def found(coordinator: Coordinator, guest: Guest, hosts: list[str]) -> dict[str, Original]:
    """How these hosts have a guest that was changed there."""
    target = f"hypervisor:{guest.hypervisor}"
    said = {host: coordinator.connections.to(host).hypervisor(target).edited(guest.name) for host in hosts}
    return {host: originals[0] for host, originals in said.items() if originals}


def edits(coordinator: Coordinator, name: str) -> list[checkout.Difference]:
    """Where hosts that answer have a guest otherwise than its document says."""
    guest = sources.load(coordinator, name)
    if not guest.document:
        return []
    try:
        what = views.wherever(coordinator, name)
        there = found(coordinator, what.guest, what.edited)
    except (HostUnreachable, ServiceUnreachable):
        return []
    file = name + document.SUFFIXES[guest.hypervisor]
    ours = f"guests/{file}", guest.document
    return [
        checkout.Difference(f"{file} on {host}", checkout.diff(ours, (f"{host}/{file}", original.document)))
        for host, original in there.items()
    ]


def refresh(coordinator: Coordinator, name: str) -> int:
    """Take over what was changed on a guest's host, as a new generation; 0: nothing was, or nothing keeps the guest.

    Raises Conflict: its files here say what is not kept either, or two hosts have it differently.
    """
    what = views.wherever(coordinator, name)
    there = found(coordinator, what.guest, what.edited)
    if not there:
        return 0
    if len({original.document for original in there.values()}) > 1:
        message = f"guest {name} was changed on {' and on '.join(there)}, and not in the same way"
        raise Conflict(message, f"storkit guest diff {name}; storkit guest edit {name}")
    state = checkout.state(coordinator, name)
    if state.kept and state.generation is not None and not state.same:
        message = f"guest {name} was changed on {', '.join(there)}, and its files here say what is not kept"
        raise Conflict(message, f"storkit guest diff {name}; then storkit guest commit {name}, or checkout --force")
    original = next(iter(there.values()))
    second = name + document.SUFFIXES[what.guest.hypervisor]
    generation = checkout.edit(coordinator, name, lambda texts: {**texts, second: original.document})
    if coordinator.planning:
        return generation
    secrets.keep(coordinator.state, what.guest.uuid, original.secrets)
    now = views.wherever(coordinator, name).guest
    for host in there:
        hypervisor = coordinator.connections.to(host).hypervisor(what.target)
        hypervisor.note(now, secrets.load(coordinator.state, now))
    return generation
