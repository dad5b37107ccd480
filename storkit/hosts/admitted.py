"""What a manager does for another host's hooks: the verbs of HookVerbs, for the one host that the key is bound to.

    command="storkit agent --for xen2",restrict ssh-ed25519 ...

Nothing that the other end says of itself is believed: who it is says the key; where it is, of which volumes it may have
a part, which pools there are and how they are served say this host's own file (storkit.hosts.accept). A verb takes the
lock that coordinators take, for as long as it lasts, and refuses what a plan has begun to change.

What it gives it gives last, and takes back if it cannot give all: a manager that is killed in between leaves the host
with a right that it had been let in to, which the same call, made again, finds and completes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from uuid import uuid4

from storkit.core import registry
from storkit.core.backend import Transport
from storkit.core.calls import Targets
from storkit.core.contracts.hooks import Entered, EnterReason, HookVerbs, LeaveReason
from storkit.core.errors import Conflict, NotAllowed, StorkitError, Unsafe, UsageError, raise_problems
from storkit.core.holds import held, wake
from storkit.core.host import SYSTEM_STATE, Claim, state_directory
from storkit.core.model import Client, Export, Volume, VolumeHold, closed
from storkit.hosts import rights
from storkit.hosts.accept import Accepted, GuestHost, Limits, default_file, load
from storkit.hosts.guard import Guard
from storkit.hosts.setup import PoolSettings, Setup
from storkit.hosts.site import Performer
from storkit.system import locks
from storkit.system.timeouts import scaled

MOST_NAMES = 64
"""Volumes of one call: more than any guest has disks."""
PATIENCE = scaled(10.0)
"""Seconds that a hook waits for a command which has its volumes: the hypervisor waits for the hook meanwhile."""
DEFAULT_TRANSPORT = "nbd"


class BoundLimits(Limits):
    """What a key may have done that is bound to a host: what HookVerbs has, by this host's own file."""

    def __init__(self, client: str, file: Path | None = None) -> None:
        """Raises UsageError: there is no such file; NotAllowed: it does not name the host."""
        where = file or default_file()
        accepted = load(where)
        hint = f"there, as root: storkit hooks admit {client} --volumes 'POOL/*'"
        if accepted is None or not accepted.host or client not in accepted.guest_hosts:
            raise NotAllowed(f"this host admits no hooks of host {client}: {where} does not name it", hint)
        super().__init__(host=accepted.host)
        self.client = client
        self.own = accepted

    def check(self, request: dict[str, Any]) -> None:
        if request.get("do") != "call" or request.get("target") != "hook":
            what = request.get("verb") if request.get("do") == "call" else request.get("do")
            raise NotAllowed(
                f"the key of host {self.client} is for its hooks alone, and not for {str(what)[:40]!r}",
                "use a key of a coordinator for everything else",
            )

    def setup(self, told: Setup) -> Setup:
        """This host by its own file: what the other end told is left out."""
        return own_setup(self.own)


def own_setup(accepted: Accepted) -> Setup:
    """A host as its own file has it."""
    import os

    return Setup(
        accepted.host,
        accepted.address,
        accepted.state or str(SYSTEM_STATE if os.geteuid() == 0 else state_directory()),
        {
            name: PoolSettings(
                str(table.get("type", "directory")), {key: value for key, value in table.items() if key != "type"}
            )
            for name, table in accepted.pools.items()
        },
        accepted.transports,
        served_by=sorted({served_by(accepted, name) for name in accepted.pools}),
    )


def served_by(accepted: Accepted, pool: str) -> str:
    """The target (`transport:NAME`) that a pool's volumes go by."""
    kind = str(accepted.pools.get(pool, {}).get("type", "directory"))
    name = accepted.transport_of.get(pool) or registry.pool(kind).transport or DEFAULT_TRANSPORT
    return f"transport:{name}"


@dataclass(frozen=True, slots=True)
class _Part:
    """A volume, how it is served, and who has it."""

    volume: Volume
    target: str
    exports: list[Export]

    @property
    def writers(self) -> set[str]:
        return {export.client for export in self.exports if export.writable}

    @property
    def generation(self) -> int:
        return max([self.volume.generation, *(export.generation for export in self.exports)])


class _Act(Targets):
    """One verb under way: what it finds, and what it does, by the epoch of the lock that it has."""

    def __init__(self, performer: Performer, accepted: Accepted, epoch: int) -> None:
        self._performer, self._accepted, self._epoch = performer, accepted, epoch

    def call(self, target: str, verb: str, args: dict[str, Any]) -> Any:
        return self._performer.perform(target, verb, args, epoch=self._epoch)

    def parts(self, volumes: list[Volume]) -> list[_Part]:
        """These volumes with all that they are exported by, in their order. Raises Conflict: by another transport than
        the file says. Two transports would give two rights that know nothing of each other."""
        uuids, found, problems = [volume.uuid for volume in volumes], list[_Part](), list[StorkitError]()
        everywhere = {target: self.transport(target).find_exports(uuids) for target in self._targets()}
        for volume in volumes:
            own = served_by(self._accepted, volume.pool)
            exports = {
                target: [export for export in there if export.uuid == volume.uuid]
                for target, there in everywhere.items()
            }
            for target in sorted(target for target, there in exports.items() if there and target != own):
                name = target.partition(":")[2]
                said = own.partition(":")[2]
                message = f"volume {volume.name} is exported by {name}, and this host's own file says {said}"
                hint = f'there, in the file: [transport_of] {volume.pool} = "{name}"'
                problems.append(Conflict(message, hint))
            found.append(_Part(volume, own, exports.get(own, [])))
        raise_problems(problems)
        return found

    def _targets(self) -> set[str]:
        """The transports that are in use here, or may be."""
        state = self._performer.site.state
        names = registry.names(Transport)  # type: ignore[type-abstract]
        used = {f"transport:{name}" for name in names if (state / name).is_dir()}
        return used | {served_by(self._accepted, pool) for pool in self._accepted.pools}


class AdmittedHooks(HookVerbs):
    """The hooks of one host, at the manager."""

    def __init__(self, performer: Performer, limits: BoundLimits) -> None:
        self._performer = performer
        self._guard = Guard(performer.site)
        self._accepted = limits.own
        self._client = limits.client
        self._policy: GuestHost = limits.own.guest_hosts[limits.client]

    # The verbs

    def enter(self, names: list[str], guest: str, uuid: str, why: EnterReason, read_only: bool = False) -> Entered:
        with self._locked(names, f"{why} of guest {guest}") as (act, volumes):
            parts = act.parts(volumes)
            raise_problems([problem for part in parts for problem in self._refused(part, guest, uuid, why, read_only)])
            given = [
                part.volume.name
                for part in parts
                if not any(export.client == self._client and (read_only or export.writable) for export in part.exports)
            ]
            self._let_in(act, parts, why, read_only)
            offers = {
                offer.uuid: offer
                for target, group in _by_target(parts).items()
                for offer in act.transport(target).offers([part.volume for part in group], self._client)
            }
            writers = set().union(*(part.writers for part in parts)) | (set() if read_only else {self._client})
            return Entered([offers[volume.uuid] for volume in volumes], given, sorted(writers))

    def woken(self, names: list[str], uuid: str) -> None:
        with self._locked(names, f"guest {uuid} is awake") as (act, volumes):
            asleep = [part for part in act.parts(volumes) if part.volume.hold is not None]
            problems: list[StorkitError] = []
            for part in asleep:
                assert part.volume.hold is not None
                if part.volume.hold.guest != uuid:
                    problems += held(part.volume, "woken up for another guest")
                elif part.writers != {self._client}:
                    problems.append(self._not_alone(part))
            raise_problems(problems)
            for part in asleep:
                assert part.volume.hold is not None
                act.pool(f"pool:{part.volume.pool}").release([part.volume], part.volume.hold.id)

    def may_leave(self, names: list[str], why: LeaveReason) -> list[str]:
        with self._locked(names, "a question", patience=0.0) as (act, volumes):
            return [part.volume.name for part in self._leaving(act, volumes, why)]

    def leave(self, names: list[str], why: LeaveReason) -> None:
        with self._locked(names, f"the guest is not here: {why}") as (act, volumes):
            for target, group in _by_target(self._leaving(act, volumes, why)).items():
                mine = [part.volume for part in group if any(each.client == self._client for each in part.exports)]
                if mine:
                    act.transport(target).unexport(mine, [self._client])

    def hold(self, names: list[str], guest: str, uuid: str, file: str) -> None:
        with self._locked(names, f"guest {guest} is saved") as (act, volumes):
            since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            hold = VolumeHold(uuid, guest, str(uuid4()), 0, since, self._client, file)
            new, problems = list[_Part](), list[StorkitError]()
            for part in act.parts(volumes):
                there = part.volume.hold
                if there is not None and (there.guest, there.host, there.file) == (uuid, self._client, file):
                    continue
                new.append(part)
                if there is not None:
                    problems += held(part.volume, f"held for guest {guest} as well")
                elif part.writers != {self._client}:
                    problems.append(self._not_alone(part))
            raise_problems(problems)
            with ExitStack() as undo:
                for pool, group in _by_pool(new).items():
                    wanted = [replace(part.volume, hold=replace(hold, generation=part.generation)) for part in group]
                    undo.callback(_quietly, act.pool(pool).release, wanted, hold.id)
                    act.pool(pool).hold(wanted)
                undo.pop_all()

    # What is refused

    def _refused(self, part: _Part, guest: str, uuid: str, why: EnterReason, read_only: bool) -> Iterator[StorkitError]:
        volume, others = part.volume, sorted(part.writers - {self._client})
        if volume.kind == "tree":
            yield Unsafe(f"volume {volume.name} is a tree: its guest mounts it, and no host")
        if unready := closed(volume):
            yield Unsafe(unready, f"storkit volume show {volume.name}")
        if read_only:
            return
        if volume.kind in ("image", "snapshot"):
            yield Unsafe(
                f"volume {volume.name} is {'an' if volume.kind == 'image' else 'a'} {volume.kind}: nobody writes it",
                "storkit volume clone it, and use the clone; or make the guest's disk read-only",
            )
        if why == "wake":
            yield from self._refused_to_wake(volume, uuid)
        else:
            yield from held(volume, f"written by {self._client}")
        if why == "arrive":
            if len(others) > 1:
                message = f"volume {volume.name} is written by {' and '.join(others)}: no third host is let in"
                yield Conflict(message, f"storkit migrate cleanup {guest}")
            elif not others and self._client not in part.writers:
                message = f"nobody writes volume {volume.name}, so no guest can arrive with it"
                yield Conflict(message, f"attach it where guest {guest} runs: storkit attach {volume.name} --on HOST")
        elif others:
            message = f"volume {volume.name} is written by {', '.join(others)}"
            hint = f"stop guest {guest} there; if it runs nowhere: storkit detach {volume.name} --on {others[0]}"
            yield Conflict(message, hint)

    def _refused_to_wake(self, volume: Volume, uuid: str) -> Iterator[StorkitError]:
        if volume.hold is None:
            message = f"no guest sleeps on volume {volume.name}: the memory is that of an earlier state of the disk"
            yield Conflict(message, "start the guest anew, without the memory")
        elif not uuid or volume.hold.guest != uuid:
            yield Conflict(
                f"guest {volume.hold.name} sleeps on volume {volume.name} since {volume.hold.since}, and not this one",
                wake(volume.hold.name),
            )

    def _leaving(self, act: _Act, volumes: list[Volume], why: LeaveReason) -> list[_Part]:
        """What the host may leave: where the reason is not known, what another one may write that was let in."""
        return [part for part in act.parts(volumes) if why != "unknown" or part.writers - {self._client}]

    def _not_alone(self, part: _Part) -> StorkitError:
        having = ", ".join(sorted(part.writers)) or "nobody"
        message = f"volume {part.volume.name} is written by {having}, and not by {self._client} alone"
        return Conflict(message, f"storkit volume show {part.volume.name}")

    # What is given

    def _let_in(self, act: _Act, parts: list[_Part], why: EnterReason, read_only: bool) -> None:
        """Export these volumes to the host, and let it write them: all, or none."""
        here = Client(self._client, not self._policy.address, self._policy.address)
        with ExitStack() as undo:
            for target, group in _by_target(parts).items():
                transport = act.transport(target)
                new = [part.volume for part in group if all(each.client != self._client for each in part.exports)]
                if new:
                    undo.callback(_quietly, transport.unexport, new, [self._client])
                    transport.export(new, [here])
            for (target, writers, sleep), group in ({} if read_only else self._wanted(parts, why)).items():
                for part in group:
                    if any(each.client == self._client for each in part.exports):
                        back = act.transport(target).set_writers
                        undo.callback(_quietly, back, [part.volume], sorted(part.writers))
                act.transport(target).set_writers([part.volume for part in group], list(writers), sleep)
            undo.pop_all()

    def _wanted(self, parts: list[_Part], why: EnterReason) -> dict[tuple[str, tuple[str, ...], str], list[_Part]]:
        """The writers that volumes are to have, where they have them not yet: by transport, writers and sleep."""
        found: dict[tuple[str, tuple[str, ...], str], list[_Part]] = defaultdict(list)
        for part in parts:
            if self._client not in part.writers:
                sleep = part.volume.hold.id if why == "wake" and part.volume.hold else ""
                found[part.target, tuple(sorted({*part.writers, self._client})), sleep].append(part)
        return found

    # Volumes, and their lock

    @contextmanager
    def _locked(self, names: list[str], what: str, patience: float = PATIENCE) -> Iterator[tuple[_Act, list[Volume]]]:
        """The volumes of these names, in their order, under their lock."""
        names = list(dict.fromkeys(names))
        before = self._find(names)
        holder = f"a hook of host {self._client}: {what}"
        claim = Claim([volume.uuid for volume in before])
        titles = {volume.uuid: f"volume {volume.name}" for volume in before}
        taken: list[locks.Lock]
        taken, _ = self._guard.lock([claim], holder, titles=titles, patience=patience)
        try:
            volumes = self._find(names)
            if [volume.uuid for volume in volumes] != claim.names:
                raise Conflict("the volumes were changed by another command meanwhile", "try again")
            self._performer.asked = rights.from_afar(holder)
            yield _Act(self._performer, self._accepted, self._guard.epoch()), volumes
        finally:
            for lock in taken:
                lock.release(remove=True)

    def _find(self, names: list[str]) -> list[Volume]:
        """The volumes of these names in the pools of the host's policy. Raises NotAllowed: it has not all of them; it
        learns nothing of what there is beside them."""
        if not names or len(names) > MOST_NAMES:
            raise UsageError(f"{len(names)} volumes, where 1 to {MOST_NAMES} are asked for at once")
        act, problems = _Act(self._performer, self._accepted, 0), list[StorkitError]()
        found: dict[str, list[Volume]] = defaultdict(list)
        for pool in self._accepted.pools:
            wanted = [name for name in names if self._may_have(pool, name)]
            for volume in act.pool(f"pool:{pool}").find(wanted) if wanted else ():
                found[volume.name].append(volume)
        for name in names:
            if not found[name]:
                message = f"host {self._client} may not have a volume {name} of host {self._accepted.host}"
                hint = f"if there is one: storkit hooks admit {self._client} --volumes POOL/{name}, there, as root"
                problems.append(NotAllowed(message, hint))
            elif len(found[name]) > 1:
                pools = " and ".join(volume.pool for volume in found[name])
                problems.append(Conflict(f"there are two volumes {name}, in the pools {pools}", "rename one of them"))
        raise_problems(problems)
        return [found[name][0] for name in names]

    def _may_have(self, pool: str, name: str) -> bool:
        patterns = (each.partition("/") for each in self._policy.volumes)
        return any(fnmatchcase(pool, pools) and fnmatchcase(name, names) for pools, _, names in patterns)


def _quietly(undo: Callable[..., object], *args: Any) -> None:
    """Take something back. The error for which it is done counts: what cannot be taken back is the host's own right,
    which the same call finds again, and `leave` gives up."""
    with suppress(StorkitError):
        undo(*args)


def _by_target(parts: Iterable[_Part]) -> dict[str, list[_Part]]:
    groups: dict[str, list[_Part]] = defaultdict(list)
    for part in parts:
        groups[part.target].append(part)
    return groups


def _by_pool(parts: Iterable[_Part]) -> dict[str, list[_Part]]:
    groups: dict[str, list[_Part]] = defaultdict(list)
    for part in parts:
        groups[f"pool:{part.volume.pool}"].append(part)
    return groups
