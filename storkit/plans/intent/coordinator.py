"""One coordinator at work: whom it knows, what it has seen, and the one way in which it changes anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from storkit.core.errors import NOTHING_CHANGED, PUT_BACK, Conflict, StepFailed, StorkitError
from storkit.core.guest import Guest, KeptGuest
from storkit.core.inventory import Inventory, PoolConfig
from storkit.core.model import Usage
from storkit.hosts.connections import Connections
from storkit.plans.remembered import Hints, Named
from storkit.plans.survey import Survey

if TYPE_CHECKING:  # a command that only looks makes no plan: the engine, with every verb, is a third of what it imports
    from storkit.plans.engine import Engine
    from storkit.plans.journal import Journals
    from storkit.plans.plan import Plan, Step
    from storkit.plans.steprun import Reporter

T = TypeVar("T")


class Planned(Exception):
    """A coordinator that only plans has made its plan, which is not run."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.title)
        self.plan = plan


@dataclass(frozen=True, slots=True)
class Ran:
    """A plan that was run, and what its steps gave, as JSON values by step."""

    plan: Plan
    results: dict[str, Any]

    @property
    def done(self) -> list[tuple[Step, Any]]:
        """The steps that were carried out, each with its result."""
        return [(step, self.results[step.id]) for step in self.plan.steps if step.id in self.results]

    def of(self, verb: str) -> list[Any]:
        """What the steps of a verb gave, each step's list after the other."""
        return [each for step, result in self.done if step.verb == verb for each in result or ()]


class Coordinator:
    """The inventory, the connections, and everything that is asked and changed through them."""

    def __init__(
        self, inventory: Inventory, state: Path, warn: Callable[[str], None], reporter: Reporter | None = None
    ) -> None:
        self.state = state
        self.warn = warn
        """Told of what does not stop a command, a line at a time."""
        self.reporter = reporter
        """Who watches plans run."""
        self.named = Named(state)
        self.connections = Connections(inventory, self.named)
        self.survey = Survey(self.connections, Hints(state))
        self.planning = False
        """Whether plans are made and not run: what would change anything raises Planned."""
        self.acted = False
        """Whether something was begun to be changed by other means than the connections."""
        self.kept_in: dict[str, tuple[PoolConfig, str]] = {}
        """The pool and the volume that guests without files were found to be kept with: where to look first."""
        self._machines: dict[str, Any] = {}
        self._calls = 0

    def another(self) -> Coordinator:
        """One more coordinator of the same hosts and plans: what one holds and has connected to is not the other's."""
        return Coordinator(self.inventory, self.state, self.warn)

    @contextmanager
    def call(self) -> Iterator[None]:
        """One call of a program's: a host that is silent is waited for once in it, and asked again in the next. Calls
        inside it are part of it."""
        if not self._calls:
            self.survey.forget_silent()
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    @property
    def inventory(self) -> Inventory:
        return self.connections.inventory

    @property
    def guests(self) -> Path:
        """The directory of guests' files."""
        return self.inventory.directory / "guests"

    @property
    def engine(self) -> Engine:
        from storkit.plans.engine import Engine

        return Engine(self.connections, self.state, self.reporter)

    @property
    def journals(self) -> Journals:
        from storkit.plans.journal import Journals

        return Journals(self.state / "plans")

    def hypervisors(self, kept: Iterable[KeptGuest] = ()) -> list[str]:
        """The hypervisors that there may be guests of: the default, those of the inventory, those that guests' files
        name, and those of guests that are kept. All that storkit knows where one of these files cannot be read: it may
        name any."""
        from storkit.core import registry
        from storkit.core.backend import Hypervisor
        from storkit.guests import files

        known = registry.names(Hypervisor)  # type: ignore[type-abstract]
        found = {self.inventory.defaults.hypervisor, *self.inventory.hypervisors}
        found |= {each.hypervisor for each in kept} & set(known)
        try:
            found |= {guest.hypervisor for guest in files.load_all(self.guests)}
        except (StorkitError, OSError):
            found.update(known)
        return sorted(found)

    def host(self, name: str, *, given: bool = False) -> str:
        """The name of a host that a person named, perhaps by its URL. Raises NotFound.

        `given`: it is to be given a disk. A URL is remembered then, since that disk's grant will name it.
        """
        config = self.inventory.host(name)
        if config.name not in self.inventory.hosts:
            self.connections.inventory = self.inventory.with_host(config)
            if given and not self.planning:
                self.named.add(config.name)
        return config.name

    def client(self, name: str) -> tuple[str, bool]:
        """The client of exports that a person named, and whether it is a host that can be asked.

        One that is not in the inventory can still be cut off: the grants name it. Nor is a directory asked that no host
        has its state in: to ask it would make one of it.
        """
        if self.connections.find(name):
            return self.host(name), True
        if ":" not in name:
            return name, False
        config = self.inventory.host(name)
        if config.machine == "local" and not Path(config.name.removeprefix("local:"), "setup.json").exists():
            return config.name, False
        return self.host(name), True

    def change(self, build: Callable[[], Plan], *, over_marks: bool = False) -> Ran:
        """Build a plan, lock its names, build it again from what is true now, and run that.

        The first look refuses what is to be refused, before anything is locked; the second is needed because another
        command may have ended between the first one and the lock. `build` asks twice what another command may have
        changed, and no more. `over_marks`: unfinished plans of the same names are given up; this plan works from the
        truth alone. Raises Planned if this coordinator only plans.
        """
        begun = False
        self._machines.clear()
        try:
            plan = build()
            if self.planning:
                raise Planned(plan)
            if plan.holds:
                self.engine.hold(plan.holds, over_marks=over_marks, title=plan.title)
                again = build()
                if again.holds != plan.holds:
                    raise Conflict("another command changed the same volumes meanwhile", "look at them, then try again")
                plan = again
            begun = True
            return Ran(plan, self.engine.run(plan))
        except StorkitError as error:
            if not begun:
                error.left = NOTHING_CHANGED
            raise
        finally:
            self.connections.unlock()

    def once(self, about: tuple[str, str, Guest], ask: Callable[[], T]) -> T:
        """What a host says of its machine for a guest's record (programs, versions), asked once for a plan and that
        very record: another command that changes the record is asked for anew."""
        key = repr(about)
        if key not in self._machines:
            self._machines[key] = ask()
        known: T = self._machines[key]
        return known

    def changed(self, error: StorkitError) -> bool | None:
        """Whether a command that fails so has changed something that is not as it was; None: that is not known."""
        if error.left in (NOTHING_CHANGED, PUT_BACK) or not (self.acted or self.connections.acted):
            return False
        return True if isinstance(error, StepFailed) else None

    def fullness(self, pools: Iterable[PoolConfig]) -> list[str]:
        """What there is to be said of how full these pools are: warned of, and returned."""
        return self.said_of(self.survey.usage(pools))

    def said_of(self, usages: Iterable[Usage]) -> list[str]:
        """As `fullness`, of pools that have been asked."""
        warnings = [warning for usage in usages for warning in usage.warnings]
        for warning in warnings:
            self.warn(warning)
        return warnings

    def close(self) -> None:
        self.survey.hints.save()
        self.connections.close()
