"""Plans for guests that move: live migration with its window of two writers, and what is left behind; and a guest as it
was seen, which all plans for guests go by. Pure functions, as planner's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from storkit.core import registry
from storkit.core.errors import Conflict, NotFound, StorkitError, Unsafe, Unsupported, raise_problems
from storkit.core.guest import Guest
from storkit.core.holds import all_held
from storkit.core.inventory import Inventory
from storkit.core.model import ALIVE, Export, Volume, closed, guest_client
from storkit.plans.plan import Hold, Plan, Stages, Step
from storkit.plans.planner import add_attach, add_detach, add_proof, finish_plan, locks_of, set_writers, writers_of
from storkit.plans.verb import step
from storkit.plans.verbs.exports import ExportVolumes, UnexportVolumes
from storkit.plans.verbs.guests import DefineGuest, UndefineGuest
from storkit.plans.verbs.moves import ConfirmPlace, ReceiveGuest, ResumeGuest, RetireGuest, SendGuest


@dataclass(frozen=True, slots=True)
class GuestView:
    """A guest, its disks' volumes in order, and what was seen of both."""

    guest: Guest
    volumes: list[Volume]
    exports: list[Export]
    places: dict[str, str]
    """Host to the guest's status there; `stopped` left out, `unknown` for a silent host."""
    inventory: Inventory
    machine: str = ""
    shared: frozenset[str] = field(default_factory=frozenset)
    """UUIDs of read-only volumes that other guests may use as well."""
    has: dict[str, dict[str, str]] = field(default_factory=dict)
    """Host to the volumes, UUID to name, that the guest was started with where it runs."""
    root: Volume | None = None
    """The tree that the guest mounts as its root. The right to write it is the guest's own, wherever it runs."""
    root_exports: list[Export] = field(default_factory=list)
    """Those to the guest itself."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why the guest is paused, by host, where nobody wanted it; or what moves it away from there."""
    stopped: list[str] = field(default_factory=list)
    """Hosts that know the guest and do not run it: one that lost its power under it, for example."""
    edited: list[str] = field(default_factory=list)
    """Hosts where somebody has changed its configuration in the hypervisor itself."""
    pinned: dict[str, str] = field(default_factory=dict)
    """Why the guest cannot leave a host before its next stop, by host."""

    @property
    def name(self) -> str:
        return self.guest.name

    @property
    def target(self) -> str:
        return f"hypervisor:{self.guest.hypervisor}"

    @property
    def client(self) -> str:
        """The client that the export of the guest's root is for."""
        return guest_client(self.name)

    def rooted(self) -> None:
        """Raise Unsafe if the guest runs without the right to write its root."""
        if self.root and self.running and not any(export.writable for export in self.root_exports):
            raise Unsafe(
                f"guest {self.name} runs on {', '.join(self.running)} from before its root {self.root.name} was taken",
                f"storkit guest stop {self.name} --force, then start it",
            )

    @property
    def all_volumes(self) -> list[Volume]:
        """Those of its disks, and its root."""
        return [*self.volumes, *([self.root] if self.root else [])]

    @property
    def written(self) -> list[Volume]:
        """The volumes that the guest writes."""
        readonly = {disk.volume for disk in self.guest.disks if disk.readonly}
        return [volume for volume in self.volumes if volume.name not in readonly]

    @property
    def shown(self) -> str:
        """Where the guest is, for people."""
        return shown(self.places, self.reasons, self.volumes)

    def awake(self, what: str) -> None:
        """Raise Conflict if a guest sleeps on a volume that this one writes: its disks cannot be `what`."""
        raise_problems(all_held(self.written, what))

    def stays(self) -> None:
        """Raise Conflict if a volume of it is being moved: nothing else is begun with its disks."""
        problems = [
            Conflict(why, f"storkit plan list; it is ended by: storkit volume move {volume.name} --to POOL")
            for volume in self.written
            if (why := closed(volume))
        ]
        raise_problems(problems)

    @property
    def running(self) -> list[str]:
        return [host for host, status in self.places.items() if status in ALIVE]

    def known(self) -> None:
        """Raise Unsafe if a host is silent: the guest could be running there. Conflict: it is being started there."""
        silent = [host for host, status in self.places.items() if status == "unknown"]
        if silent:
            # To fence a host leaves a guest its root if another silent host may run it.
            cut = f"detach {self.root.name} --on {self.client}" if self.root_exports and self.root else ""
            # Where there is no disk to take away, a person has to look.
            word = "" if self.exports else " --confirmed-off"
            raise Unsafe(
                f"guest {self.name} may be running on {', '.join(silent)}, which cannot be asked",
                f"storkit {cut or f'fence {silent[0]}{word}'}, or bring {silent[0]} back",
            )
        starting = [host for host, status in self.places.items() if status == "starting"]
        if starting:
            raise Conflict(
                f"guest {self.name} is just being started on {', '.join(starting)} by another command",
                f"wait, then: storkit migrate status {self.name};"
                f" if it stays so: storkit guest stop {self.name} --force",
            )
        for host, has in self.has.items():
            if list(has) != list(dict.fromkeys(volume.uuid for volume in self.volumes)):
                raise Unsafe(
                    f"guest {self.name} runs on {host} with other disks than its record says: "
                    + (", ".join(f"{name} ({uuid})" for uuid, name in has.items()) or "none"),
                    "put those back into its record, in this order, for as long as it runs",
                )


def shown(places: dict[str, str], reasons: dict[str, str], volumes: Iterable[Volume] = ()) -> str:
    """Where a guest with these disks is and, if it is paused though nobody wanted it, why."""
    words = (
        f"{status} on {host}" + (f" ({reasons[host]})" if host in reasons else "") for host, status in places.items()
    )
    return ", ".join(words) or ("asleep" if any(volume.hold for volume in volumes) else "stopped")


def each_once(groups: Iterable[list[Volume]]) -> list[Volume]:
    return list({volume.uuid: volume for group in groups for volume in group}.values())


def from_before(subject: GuestView, host: str, volume: Volume) -> StorkitError:
    """What a guest has in its memory is older than the disk that was taken from its host: it must never write again."""
    return Unsafe(
        f"guest {subject.name} runs on {host} from before volume {volume.name} was taken from there",
        f"storkit guest stop {subject.name} --force, then start it",
    )


def migrate(subject: GuestView, destination: str, parts: set[str], inventory: Inventory) -> Plan:
    """Prepare, run and finish a live migration: `parts` says which of them.

    The window, in which source and destination may both write, opens in `prepare` and closes in `finish`.
    """
    source = _source(subject, destination, parts)
    stages = Stages()
    if "prepare" in parts:
        add_attach(stages, subject.volumes, destination, None, inventory)
        title = f"prove that {source} and {destination} see one disk"
        add_proof(stages, subject.volumes, [source, destination], source, title, inventory)
        title = f"open the window: {source} and {destination} write"
        set_writers(stages, subject.written, {source, destination}, title, inventory)
        stages.then(define(subject, destination))
    if "run" in parts:
        receive = stages.then(
            step(
                ReceiveGuest(subject.name),
                destination,
                subject.target,
                f"await {subject.name} on {destination}",
                peer=source,
            )
        )
        assert receive is not None
        stages.then(
            step(
                SendGuest(subject.name, receive.id, paused=subject.places[source] == "paused"),
                source,
                subject.target,
                f"move {subject.name} from {source} to {destination}",
                peer=destination,
            )
        )
    if "finish" in parts:
        _finish(stages, subject, destination, [source] if source else [])
    verb = "migrate" if "run" in parts else f"{' and '.join(sorted(parts))} migration of"
    return finish_plan(f"{verb} {subject.name} from {source} to {destination}", stages, guest_holds(subject), inventory)


def finish(subject: GuestView, inventory: Inventory) -> Plan:
    """After the hypervisor has moved a guest: only the host it runs on keeps the disk."""
    subject.known()
    subject.awake("given to where its guest runs")
    subject.stays()
    if len(subject.running) != 1:
        raise running_problem(subject)
    here = subject.running[0]
    stages = Stages()
    _finish(stages, subject, here, others(subject, here))
    return finish_plan(f"finish migration of {subject.name} to {here}", stages, guest_holds(subject), inventory)


def cleanup(subject: GuestView, inventory: Inventory) -> Plan:
    """Make rights and attachments match where the guest runs, from the truth alone."""
    subject.known()
    subject.awake("given to where its guest runs")
    subject.stays()
    arrived = [host for host, status in subject.places.items() if status == "arrived"]
    if len(subject.running) > 1 or (len(arrived) > 1 and not subject.running):
        raise running_problem(subject)
    stages = Stages()
    if arrived and not subject.running:
        here = arrived[0]
        stages.then(step(ResumeGuest(subject.name), here, subject.target, f"let {subject.name} go on on {here}"))
        _finish(stages, subject, here, others(subject, here))
    elif subject.running:
        here = subject.running[0]
        _finish(stages, subject, here, others(subject, here))
    else:
        take_root(stages, subject)
        lost = [host for host, status in subject.places.items() if status == "migrated"]
        leave(stages, subject, others(subject), lost)
    return finish_plan(f"clean up after {subject.name}", stages, guest_holds(subject), inventory)


def _source(subject: GuestView, destination: str, parts: set[str]) -> str:
    subject.known()
    subject.awake(f"written by {destination}")
    subject.stays()
    if not subject.running:
        raise Conflict(f"guest {subject.name} does not run", f"storkit guest start {subject.name} --on {destination}")
    if len(subject.running) > 1:
        raise running_problem(subject)
    if subject.running == [destination]:
        raise Conflict(f"guest {subject.name} already runs on {destination}", f"storkit migrate status {subject.name}")
    source = subject.running[0]
    subject.rooted()
    problems: list[StorkitError] = []
    for volume in subject.written:
        strangers = writers_of(subject.exports, volume) - {source, destination}
        if strangers:
            problems.append(
                Unsafe(
                    f"volume {volume.name} is written by {', '.join(sorted(strangers))} too",
                    f"storkit detach {volume.name} --on {min(strangers)}",
                )
            )
        if source not in writers_of(subject.exports, volume):
            problems.append(
                Unsafe(
                    f"guest {subject.name} runs on {source}, which has no right to write volume {volume.name}",
                    f"storkit migrate cleanup {subject.name}",
                )
            )
    raise_problems(problems)
    return source


def refuse_to_leave(subject: GuestView, instead: str) -> None:
    """Raise Unsupported if its hypervisor lets no running guest go, or not this one. `instead`: what can be done."""
    kind = subject.guest.hypervisor
    for host, why in subject.pinned.items():
        message = f"guest {subject.name} stays on {host} until its next stop: {why}"
        raise Unsupported(message, f"storkit guest stop {subject.name}, {instead}")
    if not registry.hypervisor(kind).moves:
        message = f"guest {subject.name} runs under {kind}, which can neither move nor save a guest that runs"
        raise Unsupported(message, f"storkit guest stop {subject.name}, {instead}")


def running_problem(subject: GuestView) -> StorkitError:
    if len(subject.running) > 1:
        for host in subject.running:
            if subject.places[host] == "running" and host in subject.reasons:
                return Conflict(
                    f"guest {subject.name} is being moved away from {host}: {subject.reasons[host]}",
                    f"wait for its end, then: storkit migrate status {subject.name}",
                )
        return Unsafe(
            f"guest {subject.name} runs on {' and '.join(subject.running)}: two writers",
            f"storkit guest stop {subject.name} --force --on STALE-HOST; then migrate cleanup {subject.name}",
        )
    return NotFound(f"guest {subject.name} runs on no host", f"storkit migrate cleanup {subject.name}")


def _finish(stages: Stages, subject: GuestView, here: str, others: list[str]) -> None:
    name, others = subject.name, sorted(others)
    stages.then(step(ConfirmPlace(name, others), here, subject.target, f"see that {name} runs on {here} alone"))
    # What is left of it may have its disks open past every server: with that, no right is taken from its host.
    _retire(stages, [(subject, others)])
    set_writers(stages, subject.written, {here}, f"close the window: only {here} writes", subject.inventory)
    _let_go(stages, [(subject, others)])


def leave(stages: Stages, subject: GuestView, hosts: list[str], lost: Collection[str] = ()) -> None:
    """Retire what is left of a guest on hosts, and take its disks away from them. `lost`: those of them that have sent
    its memory away, which nobody has."""
    leave_all(stages, [(subject, hosts)], lost)


def leave_all(stages: Stages, left: Sequence[tuple[GuestView, list[str]]], lost: Collection[str] = ()) -> None:
    """As `leave`, for guests that each leave hosts."""
    _retire(stages, left, lost)
    _let_go(stages, left)


def _retire(stages: Stages, left: Sequence[tuple[GuestView, list[str]]], lost: Collection[str] = ()) -> None:
    said = dict.fromkeys(lost, ", which runs nowhere else: its memory is lost")
    stages.then(
        *(step(RetireGuest(subject.name), host, subject.target, f"retire {subject.name} on {host}{said.get(host, '')}")
          for subject, hosts in left for host in hosts)
    )  # fmt: skip


def _let_go(stages: Stages, left: Sequence[tuple[GuestView, list[str]]]) -> None:
    """Forget guests on the hosts that they have left, and take their disks away from these."""
    stages.then(*(_undefine(subject, host) for subject, hosts in left for host in hosts))
    together: dict[tuple[str, ...], list[GuestView]] = {}
    for subject, hosts in left:
        together.setdefault(tuple(hosts), []).append(subject)
    for hosts_left, subjects in together.items():
        mine = [volume for subject in subjects for volume in subject.volumes if volume.uuid not in subject.shared]
        if hosts_left:
            add_detach(stages, mine, list(hosts_left), subjects[0].inventory)


def give_root(stages: Stages, subject: GuestView) -> None:
    """Export the root to the guest, for writing. An export that it has from an earlier start ends first: what another
    instance of the guest has mounted, somewhere, does not exist any more."""
    if subject.root is None or subject.guest.root is None:
        return
    tree, name, address = subject.root, subject.client, subject.guest.root.host
    if subject.root_exports:
        take_root(stages, subject)
    title = f"export {tree.name} to {name} at {address}"
    stages.then(step(ExportVolumes([tree], [name], {name: address}), tree.host, _served(subject, tree), title))
    set_writers(stages, [tree], {name}, f"let guest {subject.name} write", subject.inventory)


def take_root(stages: Stages, subject: GuestView) -> None:
    """End the export of the root to the guest."""
    if subject.root is None or subject.guest.root is None:
        return
    tree, name, address = subject.root, subject.client, subject.guest.root.host
    title = f"end the export of {tree.name} to {name}"
    stages.then(step(UnexportVolumes([tree], [name], {name: address}), tree.host, _served(subject, tree), title))


def _served(subject: GuestView, volume: Volume) -> str:
    return subject.inventory.transport(volume.pool)


def define(subject: GuestView, host: str) -> Step:
    transports = [_served(subject, volume) for volume in subject.volumes]
    verb = DefineGuest(subject.guest, subject.volumes, transports, subject.machine)
    return step(verb, host, subject.target, f"render {subject.name}'s configuration on {host}")


def _undefine(subject: GuestView, host: str) -> Step:
    transports = [_served(subject, volume) for volume in subject.volumes]
    verb = UndefineGuest(subject.guest, subject.volumes, transports, subject.machine)
    return step(verb, host, subject.target, f"forget {subject.name} on {host}")


def others(subject: GuestView, here: str = "") -> list[str]:
    """The hosts but `here` that have anything of a guest: its disks, itself, or what is left of it."""
    clients = {export.client for export in subject.exports}
    return sorted({*clients, *subject.places, *subject.stopped} - {here})


def guest_holds(*subjects: GuestView) -> list[Hold]:
    shared = each_once([v for v in subject.volumes if v.uuid in subject.shared] for subject in subjects)
    mine = each_once([v for v in subject.all_volumes if v.uuid not in subject.shared] for subject in subjects)
    return locks_of(mine) + locks_of(shared, shared=True)
