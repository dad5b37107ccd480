"""The hosts of one inventory, and everything that can be done with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from storkit.core import inventory
from storkit.core.errors import HostUnreachable, ServiceUnreachable, StorkitError
from storkit.core.host import state_directory
from storkit.core.model import Damaged
from storkit.plans.intent.coordinator import Coordinator, Planned

if TYPE_CHECKING:
    from storkit.core.host import Declared
    from storkit.core.inventory import Inventory
    from storkit.plans.intent.attachments import AttachmentActs
    from storkit.plans.intent.fences import FenceActs
    from storkit.plans.intent.fleets.acts import FleetActs
    from storkit.plans.intent.golden.acts import ImageActs
    from storkit.plans.intent.guests import GuestActs
    from storkit.plans.intent.hosts import HostActs
    from storkit.plans.intent.journals import PlanActs
    from storkit.plans.intent.moving.migrations import MigrationActs
    from storkit.plans.intent.running.sleeping import SleepActs
    from storkit.plans.intent.volumes import VolumeActs
    from storkit.plans.plan import Plan
    from storkit.plans.steprun import Reporter

T = TypeVar("T")


class Storkit:
    """What `storkit.api.open` gives. Not to be shared by threads that change things at the same time."""

    def __init__(
        self,
        file: Path | None,
        state: Path | None,
        *,
        warn: Callable[[str], None] | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        place = state or state_directory()
        self._coordinator = Coordinator(inventory.load(file), place, warn or _log, reporter)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End all connections. What was begun and has not ended stays in its journal."""
        self._coordinator.close()

    @cached_property
    def volumes(self) -> VolumeActs:
        """Make, copy, resize, delete and look at volumes."""
        from storkit.plans.intent.volumes import VolumeActs

        return self._each_a_call(VolumeActs(self._coordinator))

    @cached_property
    def attachments(self) -> AttachmentActs:
        """Attach volumes on hosts, detach them, prove that hosts see one disk."""
        from storkit.plans.intent.attachments import AttachmentActs

        return self._each_a_call(AttachmentActs(self._coordinator))

    @cached_property
    def guests(self) -> GuestActs:
        """Define, start, stop and look at guests."""
        from storkit.plans.intent.guests import GuestActs

        return self._each_a_call(GuestActs(self._coordinator))

    @cached_property
    def fleets(self) -> FleetActs:
        """Many guests of one image, each a machine of its own."""
        from storkit.plans.intent.fleets.acts import FleetActs

        return self._each_a_call(FleetActs(self._coordinator))

    @cached_property
    def images(self) -> ImageActs:
        """Versions of golden images."""
        from storkit.plans.intent.golden.acts import ImageActs

        return self._each_a_call(ImageActs(self._coordinator))

    @cached_property
    def migrate(self) -> MigrationActs:
        """Move running guests."""
        from storkit.plans.intent.moving.migrations import MigrationActs

        return self._each_a_call(MigrationActs(self._coordinator))

    @cached_property
    def sleep(self) -> SleepActs:
        """Save guests to files, and wake them up."""
        from storkit.plans.intent.running.sleeping import SleepActs

        return self._each_a_call(SleepActs(self._coordinator))

    @cached_property
    def fences(self) -> FenceActs:
        """Cut hosts off every disk, and let them in again."""
        from storkit.plans.intent.fences import FenceActs

        return self._each_a_call(FenceActs(self._coordinator))

    @cached_property
    def hosts(self) -> HostActs:
        """Look at hosts and pools, and bring back what a reboot has ended."""
        from storkit.plans.intent.hosts import HostActs

        return self._each_a_call(HostActs(self._coordinator))

    @cached_property
    def plans(self) -> PlanActs:
        """Look at plans, resume them and roll them back."""
        from storkit.plans.intent.journals import PlanActs

        return self._each_a_call(PlanActs(self._coordinator))

    def one_call(self) -> AbstractContextManager[None]:
        """What is called in it counts as one call: a silent host is waited for once. Otherwise every call asks it
        again."""
        return self._coordinator.call()

    def _each_a_call(self, acts: T) -> T:
        """The same object, each of whose public methods is a call."""
        kind = type(acts)
        methods = {name: _begun(each, self._coordinator) for name, each in vars(kind).items() if _is_public(name, each)}
        acts.__class__ = type(kind.__name__, (kind,), {"__doc__": kind.__doc__, **methods})
        return acts

    @property
    def inventory(self) -> Inventory:
        """Hosts, pools, transports and defaults, as the inventory has them."""
        return self._coordinator.inventory

    @property
    def state(self) -> Path:
        """The directory where plans are kept."""
        return self._coordinator.state

    @property
    def planning(self) -> bool:
        """Whether `plan` is at work, so that nothing is changed."""
        return self._coordinator.planning

    def plan(self, act: Callable[[], object]) -> Plan | None:
        """The plan of what `act` would do, which is not done. None: it needs none (a guest's file is written)."""
        before, self._coordinator.planning = self._coordinator.planning, True
        try:
            act()
        except Planned as planned:
            return planned.plan
        finally:
            self._coordinator.planning = before
        return None

    def changed(self, error: StorkitError) -> bool | None:
        """Whether what failed so has changed something that is not as it was; None: that is not known."""
        return self._coordinator.changed(error)

    @property
    def silent(self) -> Mapping[str, HostUnreachable | ServiceUnreachable]:
        """The hosts that did not answer in the last call, or were not waited for, and why: what is there is unknown."""
        return self._coordinator.survey.unknown

    @property
    def off(self) -> Mapping[str, Declared]:
        """The hosts that a person has declared off, where that was asked."""
        return self._coordinator.survey.off

    @property
    def failed(self) -> Mapping[str, StorkitError]:
        """The pools that could not be looked at so far, though their hosts answer."""
        return self._coordinator.survey.failed

    @property
    def unread(self) -> Mapping[tuple[str, str], StorkitError]:
        """What hosts could not say: of their exports, attachments or guests, by host and target (`transport:NAME`,
        `hypervisor:NAME`), and of hosts that are declared off (`host:off`)."""
        return self._coordinator.survey.unread

    @property
    def damaged(self) -> list[Damaged]:
        """The damaged volumes that were come across."""
        return list(self._coordinator.survey.damaged.values())

    def needs(self, volume: Damaged) -> StorkitError:
        """The error of whatever needs a damaged volume."""
        return self._coordinator.survey.of_damaged(volume)

    def known_volumes(self) -> list[str]:
        """The names of volumes that this machine knows without asking another: those of its own pools, and those that
        were found or made from here."""
        own = [pool for pool in self.inventory.pools.values() if self.inventory.host(pool.host).machine == "local"]
        survey = self._coordinator.survey
        return sorted({*survey.hints.names(), *(volume.name for volume in survey.volumes(pools=own))})


def _is_public(name: str, each: object) -> bool:
    return callable(each) and not name.startswith("_")


def _begun(method: Callable[..., Any], coordinator: Coordinator) -> Callable[..., Any]:
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with coordinator.call():
            return method(*args, **kwargs)

    return call


def _log(text: str) -> None:
    import logging

    logging.getLogger("storkit").warning("%s", text)
