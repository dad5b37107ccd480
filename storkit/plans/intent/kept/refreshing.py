"""What an administrator has changed in the hypervisor itself (`virsh edit`): shown, taken over into what is kept of a
guest, and never written over.

It is what the guest's host says, and another host will run it: a person looks at it before it is kept.
"""

from __future__ import annotations

from dataclasses import replace

from storkit.core.errors import Conflict, Unsafe, raise_problems
from storkit.core.guest import Guest
from storkit.core.model import Original
from storkit.guests import document, secrets
from storkit.guests.documents import foreign
from storkit.plans.intent import views
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.kept import checkout
from storkit.plans.intent.kept.checkout import Difference, diff
from storkit.plans.migration import GuestView


def refuse(what: GuestView, hosts: list[str], then: str) -> None:
    """Raise Conflict if a guest was changed on one of these hosts, which would be lost."""
    if where := [host for host in what.edited if host in hosts]:
        message = f"guest {what.name} was changed on {', '.join(where)} by its hypervisor's own tools: {then}"
        raise Conflict(message, f"storkit guest diff {what.name}; then storkit guest refresh {what.name}")


def warn(coordinator: Coordinator, what: GuestView, hosts: list[str]) -> None:
    """Say where goes what was changed on these hosts, where nobody is asked."""
    for host in what.edited:
        if host in hosts:
            directory = f"{what.guest.hypervisor}-edited/ of that host's state directory"
            coordinator.warn(
                f"guest {what.name} was changed on {host} by its hypervisor's own tools: it is kept in {directory}"
            )


def edits(coordinator: Coordinator, name: str) -> list[Difference]:
    """What was changed on the hosts that have a guest, in the hypervisor's own words."""
    return [_difference(name, host, original) for host, original in _found(coordinator, name)[1].items()]


def refresh(coordinator: Coordinator, name: str, force: bool = False) -> tuple[int, list[Difference]]:
    """Take over what was changed on a guest's host, as a new generation, and what that was; no difference: nothing was.
    Generation 0: nothing keeps the guest.

    Raises Conflict: its files here say what is not kept either, or two hosts have it differently. UsageError: its disks
    were changed. Unsafe, without `force`: it would open more of another host than its volumes.
    """
    what, there = _found(coordinator, name)
    if not there:
        return 0, []
    if len({(each.document, *sorted(each.secrets.items())) for each in there.values()}) > 1:
        message = f"guest {name} was changed on {' and on '.join(there)}, and not in the same way"
        raise Conflict(message, f"storkit guest diff {name}; storkit guest edit {name}")
    state = checkout.state(coordinator, name)
    if state.kept and state.generation is not None and not state.same:
        message = f"guest {name} was changed on {', '.join(there)}, and its files here say what is not kept"
        raise Conflict(message, f"storkit guest diff {name}; then storkit guest commit {name}, or checkout --force")
    host, original = next(iter(there.items()))
    text = document.refreshed(what.guest, original.before, original.document)
    if not force:
        _refuse_more(coordinator, what.guest, text, host)
    second = name + document.SUFFIXES[what.guest.hypervisor]
    generation = checkout.edit(coordinator, name, lambda texts: {**texts, second: text})
    if coordinator.planning:
        return generation, []
    secrets.keep(coordinator.state, what.guest.uuid, original.secrets)
    now = views.wherever(coordinator, name).guest
    for each, seen in there.items():
        hypervisor = coordinator.connections.to(each).hypervisor(what.target)
        hypervisor.note(now, seen.document, secrets.load(coordinator.state, now))
    return generation, [_difference(name, each, seen) for each, seen in there.items()]


def _found(coordinator: Coordinator, name: str) -> tuple[GuestView, dict[str, Original]]:
    """A guest, and how those of its hosts have it where it was changed."""
    what = views.wherever(coordinator, name)
    asked = [host for host in what.edited if host in what.places or host in {each.client for each in what.exports}]
    said = {host: coordinator.connections.to(host).hypervisor(what.target).edited(name) for host in asked}
    return what, {host: originals[0] for host, originals in said.items() if originals}


def _difference(name: str, host: str, original: Original) -> Difference:
    file = f"{host}/{name}"
    text = diff((f"{file} as storkit made it", original.before), (f"{file} as it is", original.document))
    if not text:
        text = f"--- {file}\n+++ {file}\n(nothing but passwords)\n"
    return Difference(file, text)


def _refuse_more(coordinator: Coordinator, guest: Guest, text: str, host: str) -> None:
    """Raise Unsafe if a guest would open what it has not before, on whatever host it is: its host says so."""
    if coordinator.inventory.host(host).machine == "local":
        return

    def opened(one: Guest) -> set[str]:
        return {each.partition(": ")[2] or each for each in foreign.opened(one)}

    more = sorted(opened(replace(guest, document=text)) - opened(guest))
    raise_problems([
        Unsafe(f"guest {guest.name} opens or runs more than before, by the words of host {host}: {each}",
               f"look at it: storkit guest diff {guest.name}; then storkit guest refresh {guest.name} --force")
        for each in more
    ])  # fmt: skip
