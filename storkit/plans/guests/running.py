"""Plans for guests that stay where they are: started, stopped, let go on; many in one. Pure functions, as planner's."""

from __future__ import annotations

from collections.abc import Sequence

from storkit.core.errors import Conflict, StorkitError, collected, raise_problems
from storkit.core.inventory import Inventory
from storkit.plans import migration
from storkit.plans.migration import GuestView, each_once, from_before, guest_holds, others
from storkit.plans.plan import Plan, Stages, Step
from storkit.plans.planner import add_attach, finish_plan, writers_of
from storkit.plans.verb import step
from storkit.plans.verbs.guests import StartGuest, StopGuest, WakeGuest


def start(starts: Sequence[tuple[GuestView, str]], inventory: Inventory) -> Plan:
    """Give guests their disks, each on a host, and start them there. Raises all that speaks against any of them."""
    problems: list[StorkitError] = []
    for subject, host in starts:
        with collected(problems):
            _refuse_start(subject, host)
    raise_problems(problems)
    stages = Stages()
    for host in dict.fromkeys(host for _, host in starts):
        here = [subject for subject, where in starts if where == host]
        volumes, written = each_once(s.volumes for s in here), each_once(s.written for s in here)
        add_attach(stages, volumes, host, {host}, inventory, written=written)
    new = [(subject, host) for subject, host in starts if host not in subject.running]
    for subject, _ in new:
        migration.give_root(stages, subject)
    stages.then(*(migration.define(subject, host) for subject, host in new))
    stages.then(
        *(step(StartGuest(subject.name), host, subject.target, f"start {subject.name} on {host}")
          for subject, host in new)
    )  # fmt: skip
    hosts = " and ".join(dict.fromkeys(host for _, host in starts))
    title = f"start {titled([subject for subject, _ in starts])} on {hosts}"
    return finish_plan(title, stages, guest_holds(*(subject for subject, _ in starts)), inventory)


def titled(subjects: Sequence[GuestView]) -> str:
    """Guests for a title: the first few names, and how many there are."""
    names = [subject.name for subject in subjects]
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} ... {names[-1]} ({len(names)} guests)"


def _refuse_start(subject: GuestView, host: str) -> None:
    """Raise what keeps a guest from being started on a host."""
    subject.known()
    subject.awake(f"written by {host}")
    if not subject.running:
        subject.stays()
    if subject.running and subject.running != [host]:
        raise Conflict(
            f"guest {subject.name} already runs on {', '.join(subject.running)}",
            f"storkit migrate run {subject.name} --to {host}, or storkit guest stop {subject.name}",
        )
    for volume in subject.written:
        others = writers_of(subject.exports, volume) - {host}
        if host in subject.running and host not in writers_of(subject.exports, volume):
            raise from_before(subject, host, volume)
        if others:
            raise Conflict(
                f"volume {volume.name} of guest {subject.name} is written by {', '.join(sorted(others))}",
                f"storkit migrate cleanup {subject.name}, or storkit detach {volume.name} --on {min(others)}",
            )
    subject.rooted()


def stop(subjects: Sequence[GuestView], force: bool, timeout: float, only: str, inventory: Inventory) -> Plan:
    """Stop guests wherever they are, or on the host `only`, and take their disks back from there."""
    problems: list[StorkitError] = []
    for subject in subjects if not force else ():
        with collected(problems):
            subject.known()
    raise_problems(problems)
    stages = Stages()
    add_stop(stages, subjects, force, timeout, only)
    title = f"stop {titled(subjects)}{f' on {only}' if only else ''}"
    return finish_plan(title, stages, guest_holds(*subjects), inventory)


def add_stop(stages: Stages, subjects: Sequence[GuestView], force: bool, timeout: float, only: str = "") -> None:
    """Stop guests, and take their disks from the hosts that had them."""
    steps: list[Step] = []
    for subject in subjects:
        hosts = [host for host in subject.places if only in ("", host)]
        # By force, one that does not answer is ended as well: its host must answer for it.
        running = [host for host in hosts if subject.places[host] in ("running", "paused", "starting", "unknown")]
        verb = StopGuest(subject.name, force, timeout)
        steps += [step(verb, host, subject.target, f"stop {subject.name} on {host}") for host in running]
    stages.then(*steps)
    for subject in subjects:
        elsewhere = {status for host, status in subject.places.items() if only not in ("", host)}
        if not elsewhere & {"running", "paused", "arrived", "starting", "unknown"}:
            migration.take_root(stages, subject)
    migration.leave_all(stages, [(subject, [only] if only else others(subject)) for subject in subjects])


def wake(subject: GuestView, inventory: Inventory) -> Plan:
    """Let a guest go on that stands still where it is: where its host may write its disks, and it runs nowhere else."""
    subject.known()
    if len(subject.running) != 1:
        raise migration.running_problem(subject)
    here = subject.running[0]
    subject.awake(f"written by {here}")
    for volume in subject.written:
        if here not in writers_of(subject.exports, volume):
            raise from_before(subject, here, volume)
    subject.rooted()
    stages = Stages()
    if subject.places[here] == "paused":
        stages.then(step(WakeGuest(subject.name), here, subject.target, f"let {subject.name} go on on {here}"))
    return finish_plan(f"resume {subject.name} on {here}", stages, guest_holds(subject), inventory)
