"""Guests started and stopped, many in one plan: what each needs is seen to before the first of them starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from storkit.core.errors import Conflict, StorkitError, collected, raise_problems
from storkit.core.identities import check_seconds
from storkit.plans.guests import running
from storkit.plans.intent import views
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.kept import refreshing, sources
from storkit.plans.intent.moving.keptoff import refuse_drained
from storkit.plans.migration import GuestView
from storkit.plans.plan import Plan


def start(coordinator: Coordinator, wanted: Mapping[str, str]) -> dict[str, str]:
    """Start guests, each on the host that `wanted` has for it (empty: the home of its first disk); those hosts."""
    where = _hosts(coordinator, wanted)

    def build() -> Plan:
        subjects = [(views.guest_view(coordinator, name, host), host) for name, host in where.items()]
        problems: list[StorkitError] = []
        for subject, host in subjects:
            if not subject.running:
                with collected(problems):
                    _refuse_unfit(coordinator, subject, host, _memory_before(subjects, subject, host))
        raise_problems(problems)
        return running.start(subjects, coordinator.inventory)

    coordinator.change(build)
    return where


def stop(coordinator: Coordinator, names: Sequence[str], host: str, force: bool, timeout: float) -> None:
    """Stop guests wherever they are, or on one host (GuestActs.stop)."""
    check_seconds(timeout)
    only = coordinator.host(host) if host else ""

    def build() -> Plan:
        subjects = [views.wherever(coordinator, name, *([only] if only else [])) for name in dict.fromkeys(names)]
        problems: list[StorkitError] = []
        for subject in subjects:
            ends = [only] if only else subject.edited
            if not force:
                with collected(problems):
                    refreshing.refuse(subject, ends, "that would end with it")
        raise_problems(problems)
        for subject in subjects:
            refreshing.warn(coordinator, subject, [only] if only else subject.edited)
        return running.stop(subjects, force, timeout, only, coordinator.inventory)

    coordinator.change(build)


def _hosts(coordinator: Coordinator, wanted: Mapping[str, str]) -> dict[str, str]:
    """Where each guest is to run."""
    firsts = {}
    for name, host in wanted.items():
        guest = sources.load(coordinator, name)
        first = next((disk for disk in [*guest.disks, guest.root] if disk), None)
        if first and not host:
            firsts[name] = first
    homes = coordinator.survey.find_all([disk.volume for disk in firsts.values()], views.uuids(firsts.values()))
    found = {name: volume.host for name, volume in zip(firsts, homes, strict=True)}
    return {name: coordinator.host(host or found.get(name, "local"), given=True) for name, host in wanted.items()}


def _memory_before(subjects: Sequence[tuple[GuestView, str]], subject: GuestView, host: str) -> int:
    """The memory of the guests that are to be started on a host before this one, in bytes."""
    total = 0
    for other, where in subjects:
        if other is subject:
            break
        total += other.guest.memory if where == host and not other.running else 0
    return total


def _refuse_unfit(coordinator: Coordinator, what: GuestView, host: str, before: int) -> None:
    """Raise what keeps a guest from being started on a host. `before`: the memory that others will have taken there."""
    refuse_drained(coordinator, host, what.guest)
    refreshing.refuse(what, what.edited, "that would not be what is started")
    sources.refuse_unseen(coordinator, what.guest, what.all_volumes, host)
    sources.refuse_old(coordinator, what.guest, what.all_volumes)
    hypervisor = coordinator.connections.to(host).hypervisor(what.target)
    guest = replace(what.guest, memory=what.guest.memory + before)
    problems = coordinator.once((host, "check", guest), lambda: hypervisor.check(guest))
    raise_problems([Conflict(f"{host}: {problem}", f"storkit host check {host}") for problem in problems])
