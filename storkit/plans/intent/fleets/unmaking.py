"""Members of a fleet removed, whatever is left of them: what a person, or a kill, has taken away stops nothing. What is
somebody else's stays, whatever its name."""

from __future__ import annotations

from collections.abc import Sequence

from storkit.core.errors import StorkitError, collected, raise_problems
from storkit.core.model import Volume
from storkit.guests import files, secrets
from storkit.guests.fleets import keys
from storkit.guests.fleets.record import Fleet
from storkit.plans import planner
from storkit.plans.guests import running
from storkit.plans.intent import disks, views
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.fleets import members as present
from storkit.plans.plan import Plan, Stages
from storkit.plans.verb import step
from storkit.plans.verbs.volumes import DeleteVolumes


def remove(coordinator: Coordinator, fleet: Fleet, members: Sequence[str], whole: bool = False) -> None:
    """Stop members by force, delete their volumes, and forget them. `whole`: and what they were all cloned from."""
    mine = present.guests(coordinator, fleet, members)
    guests = list(mine.values())
    stays: list[Volume] = []

    def build() -> Plan:
        subjects = [views.remains(coordinator, guest) for guest in guests]
        problems: list[StorkitError] = []
        for subject in subjects:
            with collected(problems):
                subject.awake("deleted")
        names = [name for member in members for name in (member, f"{member}-seed")]
        there = present.volumes(coordinator, fleet, [*names, fleet.base_name])
        of = {name: member for member in members for name in (member, f"{member}-seed")}
        volumes = [volume for name, volume in there.items() if name in of and present.is_own(fleet, of[name], volume)]
        base = [volume for volume in there.values() if fleet.base and volume.uuid == fleet.base]
        stays[:] = _standing(coordinator, fleet, {volume.uuid for volume in volumes}) if whole and base else []
        base = base if whole and not stays else []
        with collected(problems):
            disks.refuse_to_lose(coordinator, [*volumes, *base], "delete", but=list(mine))
        raise_problems(problems)
        stages = Stages()
        running.add_stop(stages, subjects, True, 0.0)
        for group in (volumes, base):
            stages.then(
                *(step(DeleteVolumes(part), part[0].host, f"pool:{pool}", f"delete {planner.names_of(part)}")
                  for pool, part in planner.by_pool(group))
            )  # fmt: skip
        held = {volume.uuid: volume for subject in subjects for volume in subject.all_volumes}
        held |= {volume.uuid: volume for volume in [*volumes, *base]}
        title = f"destroy fleet {fleet.name}" if whole else f"remove {', '.join(members)}"
        return planner.finish_plan(title, stages, planner.locks_of(list(held.values())), coordinator.inventory)

    # What is to be removed has no unfinished plans.
    coordinator.change(build, over_marks=True)
    if stays:
        names = ", ".join(volume.name for volume in stays)
        coordinator.warn(f"image {fleet.base_name} stays: {names} stand on it")
    for guest in guests:
        files.delete(coordinator.guests, guest.name)
        secrets.forget(coordinator.state, guest.uuid)
    gone = [made.guest for member in members if (made := fleet.made.get(member))]
    keys.drop(coordinator.state, fleet.uuid, gone)


def _standing(coordinator: Coordinator, fleet: Fleet, going: set[str]) -> list[Volume]:
    """The volumes that stand on what the members were cloned from, but for those that are deleted with it."""
    there = coordinator.survey.volumes(None, [coordinator.inventory.pool(fleet.pool)])
    return [each for each in there if each.made == "overlay" and each.origin == fleet.base and each.uuid not in going]
