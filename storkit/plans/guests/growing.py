"""A volume that becomes larger under the guests that have it. A pure function, as planner's."""

from __future__ import annotations

from storkit.core import registry
from storkit.core.errors import Conflict, raise_problems
from storkit.core.holds import held
from storkit.core.inventory import Inventory
from storkit.core.model import Volume, closed
from storkit.core.units import format_size
from storkit.plans.plan import Plan, Stages
from storkit.plans.planner import finish_plan, locks_of, with_changed
from storkit.plans.verb import step
from storkit.plans.verbs.attachments import AttachVolumes
from storkit.plans.verbs.exports import GrowExports
from storkit.plans.verbs.guests import GrowGuest
from storkit.plans.verbs.volumes import ResizeVolumes


def grow(volume: Volume, size: int, hosts: list[str], guests: list[tuple[str, str, str]], inventory: Inventory) -> Plan:
    """Make a volume larger under those who have it. `hosts` have it attached; `guests` have it open: each one's name,
    its host, and the target of its hypervisor.

    A raw one gets longer first. A qcow2 image is made larger by the QEMU that has it open: its server's, or the guest's
    own where the transport shows it as a file.
    """
    raise_problems(held(volume, "resized"))
    if why := closed(volume):
        raise Conflict(why, f"storkit plan list; it is ended by: storkit volume move {volume.name} --to POOL")
    stages, larger, target = Stages(), with_changed(volume, size=size), inventory.transport(volume.pool)
    said = f"{volume.name} from {format_size(volume.size)} to {format_size(size)}"
    resize = step(ResizeVolumes([larger], served=True), volume.host, f"pool:{volume.pool}", f"resize {said}")
    told = [
        step(GrowGuest(name, volume.uuid, size), host, hypervisor, f"let guest {name} see {volume.name} larger")
        for name, host, hypervisor in guests
    ]
    guests_own = volume.format == "qcow2" and not registry.transport(target.partition(":")[2]).locks_images
    if guests_own:
        stages.then(*told)
    if volume.format != "qcow2" or guests_own:
        stages.then(resize)
    stages.then(step(GrowExports([larger]), volume.host, target, f"serve {said}"))
    stages.then(
        *(step(AttachVolumes([larger]), host, target, f"let {host} see {volume.name} larger", peer=volume.host)
          for host in hosts)
    )  # fmt: skip
    if not guests_own:
        stages.then(*told)
    if volume.format == "qcow2" and not guests_own:
        stages.then(resize)
    return finish_plan(f"resize {said}, in use", stages, locks_of([volume]), inventory)
