"""The verbs of exports, at the volumes' home hosts: who has a volume, and who may write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from storkit.core import registry
from storkit.core.identities import ClientName, MaybeAddress, MaybeUuid, Uuid
from storkit.core.model import Client, Export, Volume, guest_of
from storkit.plans.plan import Step
from storkit.plans.verb import BlindVerb, Run, Verb, names, seen, uuids


@dataclass(frozen=True)
class _Exported(Verb[list[Export]]):
    """Volumes and clients of an export. `find`: who had one before, and who could write."""

    volumes: list[Volume]
    clients: list[ClientName]
    addresses: dict[ClientName, MaybeAddress] = field(default_factory=dict)
    """Where guests are that are clients themselves."""

    def find(self, run: Run, step: Step) -> list[Export]:
        return run.on(step.host).transport(step.target).find_exports(uuids(self.volumes))

    def undo(self, run: Run, step: Step, before: list[Export]) -> None:
        transport = run.on(step.host).transport(step.target)
        for volume in self.volumes:
            had = _clients_of(volume, before)
            for name in self.clients:
                if name in had:
                    transport.export([volume], [client(run, step.host, name, self.addresses)])
                else:
                    transport.unexport([volume], [name])

    def _detach(self) -> str:
        return "; ".join(
            f"storkit detach {name} --on {client}" for name in names(self.volumes) for client in self.clients
        )


@dataclass(frozen=True)
class ExportVolumes(_Exported):
    """Let clients read volumes."""

    verb: ClassVar[str] = "export"

    def act(self, run: Run, step: Step) -> list[Export]:
        clients = [client(run, step.host, name, self.addresses) for name in self.clients]
        return run.on(step.host).transport(step.target).export(self.volumes, clients)

    def by_hand(self, step: Step) -> str:
        return self._detach()


@dataclass(frozen=True)
class GrowExports(BlindVerb):
    """What serves volumes shows them larger. Nothing makes them smaller again."""

    verb: ClassVar[str] = "grow"
    undoable = False
    volumes: list[Volume]

    def act(self, run: Run, step: Step) -> None:
        run.on(step.host).transport(step.target).grow(self.volumes)

    def by_hand(self, step: Step) -> str:
        return "; ".join(f"storkit volume resize {volume.name} {volume.size}B" for volume in self.volumes)

    def again(self, step: Step) -> str:
        return self.by_hand(step)


@dataclass(frozen=True)
class UnexportVolumes(_Exported):
    """Take volumes from clients, and with them the right to write."""

    verb: ClassVar[str] = "unexport"

    def act(self, run: Run, step: Step) -> None:
        run.on(step.host).transport(step.target).unexport(self.volumes, self.clients)

    def undo(self, run: Run, step: Step, before: list[Export]) -> None:
        super().undo(run, step, before)
        for volume in self._awake(run, step):
            if writers := sorted(name for name, export in _clients_of(volume, before).items() if export.writable):
                run.on(step.host).transport(step.target).set_writers([volume], writers)

    def _awake(self, run: Run, step: Step) -> list[Volume]:
        """The volumes on which no guest sleeps, as their pools have them now: nobody gets the right to write the others
        back, whom the guest's save had not come to take it from yet."""
        sleeping: set[str] = set()
        for pool in {volume.pool for volume in self.volumes}:
            group = [volume.name for volume in self.volumes if volume.pool == pool]
            found = run.on(step.host).pool(f"pool:{pool}").find(group)
            sleeping.update(volume.uuid for volume in found if volume.hold)
        return [volume for volume in self.volumes if volume.uuid not in sleeping]

    def by_hand(self, step: Step) -> str:
        return self._detach()


@dataclass(frozen=True)
class CutOff(_Exported):
    """End an export to a client that nobody asks. As a fence, it is repeated and never put back: what the client did
    meanwhile nobody has seen."""

    verb: ClassVar[str] = "cut_off"
    undoable = False

    def act(self, run: Run, step: Step) -> None:
        run.on(step.host).transport(step.target).unexport(self.volumes, self.clients)

    def again(self, step: Step) -> str:
        return self._detach()


@dataclass(frozen=True)
class SetWriters(Verb[dict[Uuid, list[ClientName]]]):
    """The server decides; where a transport's clients have to take a right up, each that has it is told to.

    `find`: the writers before, by volume.
    """

    verb: ClassVar[str] = "set_writers"
    volumes: list[Volume]
    hosts: list[ClientName]
    exported: str = ""
    """The step before this one that has exported the volumes, to be attached after it: what was there it has found, and
    a client that had no export then has nothing yet that could take a right up. Empty: there is none."""

    def needs(self, step: Step) -> set[str]:
        return super().needs(step) | (set(self.hosts) if _claims(step.target) else set())

    def find(self, run: Run, step: Step) -> dict[Uuid, list[ClientName]]:
        exports = (
            self._had(run)
            if self.exported
            else (run.on(step.host).transport(step.target).find_exports(uuids(self.volumes)))
        )
        return {
            uuid: sorted(export.client for export in exports if export.uuid == uuid and export.writable)
            for uuid in uuids(self.volumes)
        }

    def act(self, run: Run, step: Step) -> None:
        had = {export.client for export in self._had(run)} if self.exported else set(self.hosts)
        self._set(run, step, self.volumes, self.hosts, [host for host in self.hosts if host in had])

    def undo(self, run: Run, step: Step, before: dict[Uuid, list[ClientName]]) -> None:
        for volume in self.volumes:
            exports = run.on(step.host).transport(step.target).find_exports([volume.uuid])
            if exports or before[volume.uuid]:
                self._set(run, step, [volume], before[volume.uuid], before[volume.uuid])

    def _had(self, run: Run) -> list[Export]:
        return seen(ExportVolumes([], []), run.before(self.exported))

    def _set(
        self, run: Run, step: Step, volumes: list[Volume], hosts: list[ClientName], attached: list[ClientName],
        hold: MaybeUuid = "",
    ) -> None:  # fmt: skip
        transport = run.on(step.host).transport(step.target)
        if hold:
            transport.set_writers(volumes, hosts, hold)
        else:
            transport.set_writers(volumes, hosts)
        for host in attached if _claims(step.target) else ():
            run.on(host).transport(step.target).claim(volumes, hosts)


def client(run: Run, home: str, name: str, guests: Mapping[str, str]) -> Client:
    """Host `name` as a client for servers of host `home`; a guest has its address in `guests`."""
    if guest_of(name):
        return Client(name, False, guests.get(name, ""))
    same = run.same_machine(home, name)
    return Client(name, same, run.address(name), "" if same else run.source(name, home))


def _clients_of(volume: Volume, exports: list[Export]) -> dict[str, Export]:
    return {export.client: export for export in exports if export.uuid == volume.uuid}


def _claims(target: str) -> bool:
    return registry.transport(target.partition(":")[2]).claims
