"""Members of a fleet removed, whatever is left of them: what a person, or a kill, has taken away stops nothing."""

from __future__ import annotations

from collections.abc import Sequence

from storkit.core.errors import StorkitError, collected, raise_problems
from storkit.core.guest import Guest
from storkit.core.model import Volume
from storkit.guests import files, secrets
from storkit.guests.fleets import keys
from storkit.guests.fleets.record import Fleet
from storkit.plans import migration, planner
from storkit.plans.intent import views
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.intent.kept import sources
from storkit.plans.plan import Plan, Stages
from storkit.plans.verb import step
from storkit.plans.verbs.volumes import DeleteVolumes


def remove(coordinator: Coordinator, fleet: Fleet, members: Sequence[str], whole: bool = False) -> None:
    """Stop members by force, delete their volumes, and forget them. `whole`: and what they were all cloned from."""
    guests = _guests(coordinator, members)

    def build() -> Plan:
        subjects = [views.remains(coordinator, guest) for guest in guests]
        problems: list[StorkitError] = []
        for subject in subjects:
            with collected(problems):
                subject.awake("deleted")
        raise_problems(problems)
        volumes = _volumes(coordinator, fleet, members, guests)
        base = [each for each in coordinator.survey.present([fleet.base_name]) if each.uuid == fleet.base]
        stages = Stages()
        migration.add_stop(stages, subjects, True, 0.0)
        for group in (volumes, base if whole else []):
            stages.then(
                *(step(DeleteVolumes(part), part[0].host, f"pool:{pool}", f"delete {planner.names_of(part)}")
                  for pool, part in planner.by_pool(group).items())
            )  # fmt: skip
        held = {volume.uuid: volume for subject in subjects for volume in subject.all_volumes}
        held |= {volume.uuid: volume for volume in [*volumes, *(base if whole else [])]}
        title = f"destroy fleet {fleet.name}" if whole else f"remove {', '.join(members)}"
        return planner.finish_plan(title, stages, planner.locks_of(list(held.values())), coordinator.inventory)

    # What is to be removed has no unfinished plans.
    coordinator.change(build, over_marks=True)
    for guest in guests:
        files.delete(coordinator.guests, guest.name)
        secrets.forget(coordinator.state, guest.uuid)
    keys.drop(coordinator.state, fleet.uuid, [guest.uuid for guest in guests])


def _guests(coordinator: Coordinator, members: Sequence[str]) -> list[Guest]:
    """The members' guests: those that have files here, and others that their pools keep."""
    here = set(files.names(coordinator.guests))
    without = {member for member in members if member not in here}
    kept = {each.name: (pool, each) for pool, each in sources.only_kept(coordinator)} if without else {}
    return [
        files.load(coordinator.guests, member) if member in here else sources.read(coordinator, *kept[member])
        for member in members
        if member in here or member in kept
    ]


def _volumes(coordinator: Coordinator, fleet: Fleet, members: Sequence[str], guests: Sequence[Guest]) -> list[Volume]:
    """The members' volumes: those that their records name by UUID, and those that were made for them and that no record
    names yet."""
    names = [name for member in members for name in (member, f"{member}-seed")]
    recorded = {disk.uuid for guest in guests for disk in guest.disks}
    made_of = {fleet.base, fleet.image_uuid} - {""}
    return [
        volume for volume in coordinator.survey.present(names) if volume.uuid in recorded or volume.origin in made_of
    ]
