"""The verbs of fleets: what makes each clone of one image a machine of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from storkit.core import codec
from storkit.core.imagefiles import Laid, Piece
from storkit.core.model import Volume
from storkit.guests.fleets import identity
from storkit.guests.fleets.identity import MemberIdentity
from storkit.guests.fleets.keys import FleetKeys
from storkit.guests.fleets.record import Fleet
from storkit.plans.plan import Step
from storkit.plans.verb import BlindVerb, Run

_AT_ONCE = 64
"""Members in one call: a line between hosts has an end."""


@dataclass(frozen=True)
class LayFiles(BlindVerb):
    """What all members have alike, and places for what they have not, in the volume that they are cloned from. No undo:
    rolling back the `clone` before it deletes the volume."""

    verb: ClassVar[str] = "lay"
    volume: Volume
    fleet: Fleet

    def act(self, run: Run, step: Step) -> list[Laid]:
        files = identity.to_lay(self.fleet, run.fleet_keys(self.fleet.uuid, []))
        return run.on(step.host).images.lay(self.volume, self.fleet.inside, files)


@dataclass(frozen=True, slots=True)
class Clone:
    """A member's volumes, and who it is."""

    who: MemberIdentity
    disk: Volume
    seed: Volume | None = None


@dataclass(frozen=True)
class Personalise(BlindVerb):
    """Who each member is, written into its volumes, which nobody has had yet. No undo: rolling back what made the
    volumes deletes them."""

    verb: ClassVar[str] = "personalise"
    fleet: Fleet
    clones: list[Clone]
    laid: str = ""
    """The step that has laid the places; empty: the fleet's record has them."""

    def act(self, run: Run, step: Step) -> None:
        laid = codec.load(list[Laid], run.result(self.laid), "what was laid") if self.laid else self.fleet.laid
        for begin in range(0, len(self.clones), _AT_ONCE):
            part = self.clones[begin : begin + _AT_ONCE]
            keys = run.fleet_keys(self.fleet.uuid, [each.who.uuid for each in part])
            volumes = [volume for each in part for volume in (each.disk, each.seed) if volume]
            run.on(step.host).images.write_in(volumes, self._pieces(part, keys, laid))

    def _pieces(self, clones: Sequence[Clone], keys: FleetKeys, laid: Sequence[Laid]) -> dict[str, list[Piece]]:
        found: dict[str, list[Piece]] = {}
        for clone in clones:
            found[clone.disk.uuid] = identity.pieces(self.fleet, clone.who, keys.members[clone.who.uuid], laid)
            if clone.seed:
                from storkit.guests.fleets import seed

                image = seed.image(identity.cloud_config(self.fleet, clone.who, keys))
                found[clone.seed.uuid] = list(identity.sparse(image))
        return found
