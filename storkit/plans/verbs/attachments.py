"""The verbs of attachments, at the clients: attached, detached, and proved to be one disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from storkit.core.errors import Unsafe
from storkit.core.identities import HostName, Uuid
from storkit.core.model import Attachment, Offer, Volume
from storkit.hosts import elsewhere
from storkit.plans.plan import Step
from storkit.plans.proof import Comparison, Proof, same_disk
from storkit.plans.verb import BlindVerb, Run, Verb, names, uuids


def offered(run: Run, home: str, host: str, target: str, volumes: list[Volume]) -> list[Offer]:
    """What a host needs to attach volumes. It is fetched, with its credential, from the home host when it is needed,
    and never kept. Raises Unsafe: it leads elsewhere."""
    offers = run.on(home).transport(target).offers(volumes, host)
    strange = [offer.socket or offer.path for offer in offers if offer.socket or offer.path]
    same = run.same_machine(home, host)
    if strange and not same:
        raise Unsafe(
            f"host {home} offers {strange[0]} to host {host}, which is on another machine",
            "believe nothing that it says until you know why",
        )
    for offer in offers:
        elsewhere.refuse(offer, run.doors(home, target), home, host, same)
    return offers


@dataclass(frozen=True)
class _Attached(Verb[list[Uuid]]):
    """Volumes at one host; the step's peer is their home. `find`: which of them it had before."""

    volumes: list[Volume]

    def find(self, run: Run, step: Step) -> list[Uuid]:
        found = run.on(step.host).transport(step.target).find_attachments(uuids(self.volumes))
        return [attachment.uuid for attachment in found]

    def _attach(self, run: Run, step: Step, volumes: list[Volume]) -> list[Attachment]:
        offers = offered(run, step.peer, step.host, step.target, volumes)
        return run.on(step.host).transport(step.target).attach(offers)


@dataclass(frozen=True)
class AttachVolumes(_Attached):
    """Undone by detaching what was not attached before."""

    verb: ClassVar[str] = "attach"

    def act(self, run: Run, step: Step) -> list[Attachment]:
        return self._attach(run, step, self.volumes)

    def undo(self, run: Run, step: Step, before: list[Uuid]) -> None:
        if had_not := [volume for volume in self.volumes if volume.uuid not in before]:
            run.on(step.host).transport(step.target).detach(had_not)

    def by_hand(self, step: Step) -> str:
        return "; ".join(f"storkit detach {name} --on {step.host}" for name in names(self.volumes))


@dataclass(frozen=True)
class DetachVolumes(_Attached):
    """Undone by attaching what was attached before."""

    verb: ClassVar[str] = "detach"

    def act(self, run: Run, step: Step) -> None:
        run.on(step.host).transport(step.target).detach(self.volumes)

    def undo(self, run: Run, step: Step, before: list[Uuid]) -> None:
        if had := [volume for volume in self.volumes if volume.uuid in before]:
            self._attach(run, step, had)

    def by_hand(self, step: Step) -> str:
        return "; ".join(f"storkit attach {name} --on {step.host}" for name in names(self.volumes))


@dataclass(frozen=True)
class Prove(BlindVerb):
    """Evidence from every host in `hosts`, compared. The result is what was compared, for people and scripts."""

    verb: ClassVar[str] = "prove"
    question = True
    ROUNDS: ClassVar[int] = 5
    """A guest that writes can change a block between two readings: differing blocks are read again, this often."""
    volumes: list[Volume]
    hosts: list[HostName]

    def needs(self, step: Step) -> set[str]:
        return set(self.hosts)

    def act(self, run: Run, step: Step) -> list[Proof]:
        return [self._prove(run, step, volume) for volume in self.volumes]

    def _prove(self, run: Run, step: Step, volume: Volume) -> Proof:
        comparison = Comparison()
        offsets: list[int] | None = None
        for _ in range(self.ROUNDS):
            seen = [run.on(host).transport(step.target).evidence([volume], offsets)[0] for host in self.hosts]
            same_disk(volume.name, seen)
            offsets = comparison.add(seen)
            if not offsets:
                break
        blocks = comparison.conclude(volume.name, self.hosts)
        return Proof(volume.name, volume.uuid, self.hosts, seen[0].identity, seen[0].size, blocks)
