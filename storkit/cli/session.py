"""One run of the command line: the inventory, the connections, the engine, and how results and errors are shown."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storkit.core.errors import (
    NOTHING_CHANGED,
    PUT_BACK,
    Conflict,
    Interrupted,
    StepFailed,
    StorkitError,
    in_a_line,
)

if TYPE_CHECKING:
    from storkit.core.inventory import Inventory, PoolConfig
    from storkit.core.model import Usage
    from storkit.plans.plan import Plan


class Session:
    """What commands work with."""

    def __init__(self, options: Namespace) -> None:
        from storkit.core import inventory
        from storkit.hosts.connections import Connections
        from storkit.plans.remembered import Hints, Named
        from storkit.plans.survey import Survey

        self.options = options
        given = Path(options.inventory) if options.inventory else None
        self.state = Path(options.state).absolute() if options.state else inventory.state_directory()
        self.named = Named(self.state)
        self.connections = Connections(inventory.load(given), self.named)
        self.survey = Survey(self.connections, Hints(self.state))
        self._changed = False
        """Whether a plan was begun: then an error of the next one does not say that nothing was changed."""
        self.acted = False
        """Whether this command has begun to change something by other means than its connections."""

    @property
    def inventory(self) -> Inventory:
        return self.connections.inventory

    @property
    def guests(self) -> Path:
        """The directory of guests' files."""
        return self.inventory.directory / "guests"

    def hypervisors(self) -> list[str]:
        """The hypervisors that there may be guests of: the default, those of the inventory, those that guests' files
        name. All that storkit knows where one of these files cannot be read: it may name any."""
        from storkit.core import registry
        from storkit.core.backend import Hypervisor
        from storkit.guests import files

        found = {self.inventory.defaults.hypervisor, *self.inventory.hypervisors}
        try:
            found |= {guest.hypervisor for guest in files.load_all(self.guests)}
        except (StorkitError, OSError):
            found.update(registry.names(Hypervisor))  # type: ignore[type-abstract]
        return sorted(found)

    def host(self, name: str, *, given: bool = False) -> str:
        """The name of the host that was named on the command line, which may be a URL. Raises NotFound.

        `given`: it is to be given a disk. A URL is remembered then, since that disk's grant will name it.
        """
        config = self.inventory.host(name)
        if config.name not in self.inventory.hosts:
            self.connections.inventory = self.inventory.with_host(config)
            if given and not self.options.dry_run:
                self.named.add(config.name)
        return config.name

    def client(self, name: str) -> tuple[str, bool]:
        """The client of exports that was named on the command line, and whether it is a host that can be asked.

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

    def engine(self) -> Any:
        """The engine, with a reporter that fits where stderr goes."""
        from storkit.cli import output
        from storkit.plans.engine import Engine, Silent

        reporter: Any = Silent()
        if self.options.verbose:
            reporter = output.Lines()
        elif sys.stderr.isatty() and not self.options.json:
            reporter = output.Bars()
        return Engine(self.connections, self.state, reporter)

    def change(self, build: Callable[[], Plan], *, over_marks: bool = False) -> tuple[Plan, dict[str, Any]] | None:
        """Build a plan, lock its names, build it again from what is true now, and run it. None for a dry run.

        `over_marks`: unfinished plans of the same names are given up; this plan works from the truth alone.
        The second look is needed because another command may have ended between the first one and the lock.
        """
        changed, engine = self._changed, self.engine()
        try:
            plan = build()
            if self.options.dry_run:
                self.show_plan(plan)
                return None
            if plan.holds:
                engine.hold(plan.holds, over_marks=over_marks, title=plan.title)
                again = build()
                if again.holds != plan.holds:
                    raise Conflict("another command changed the same volumes meanwhile", "look at them, then try again")
                plan = again
            self._changed = True
            return plan, engine.run(plan)
        except StorkitError as error:
            if not self._changed:
                error.left = NOTHING_CHANGED
            elif changed and error.left in (NOTHING_CHANGED, PUT_BACK):  # that is true of the last plan alone
                error.left = ""
            raise
        finally:
            self.connections.unlock()

    def changed(self, error: StorkitError) -> bool | None:
        """Whether a command that fails so has changed something that is not as it was; None: that is not known."""
        if error.left in (NOTHING_CHANGED, PUT_BACK) or not (self.acted or self.connections.acted):
            return False
        return True if isinstance(error, StepFailed) else None

    def show_plan(self, plan: Plan) -> None:
        """Print a plan that is not run."""
        from storkit.cli import output
        from storkit.core import codec
        from storkit.plans import verbs

        if self.options.json:
            self.print_json(codec.dump(plan))
        else:
            out(output.describe(plan, lambda step: verbs.VERBS[step.verb].undoable or bool(verbs.of(step).again(step))))

    def result(self, data: Any, text: str = "") -> None:
        """Print what a command found or made: JSON for scripts, `text` for people."""
        if self.options.json:
            self.print_json(data)
        elif text:
            from storkit.cli import output

            # What goes into a file or a pipe may be a document (guest render), which stays as it is.
            out(output.lines_shown(text) if sys.stdout.isatty() else text)

    def print_json(self, data: Any) -> None:
        import json

        out(json.dumps(data, indent=2))

    def tell_what_is_wrong(self) -> None:
        """Name the pools that could not be looked at, and the damaged volumes that were come across."""
        from storkit.cli import output

        for pool, error in self.survey.failed.items():
            self.warn(f"storkit: pool {pool} cannot be looked at: {in_a_line(error)}")
            for hint, said_by in dict.fromkeys((each.hint, each.said_by) for each in error.each):
                output.advise(hint, said_by)
        for (host, target), error in sorted(self.survey.unread.items()):
            name = target.partition(":")[2]
            self.warn(f"storkit: host {host} cannot say all of what {name} has there: {in_a_line(error)}")
        for damaged in self.survey.damaged.values():
            self.warn(f"storkit: pool {damaged.pool}: {damaged.message}")
            local = self.inventory.host(damaged.host).machine == "local"
            output.advise(damaged.hint, "" if local else damaged.host)

    def pool_warnings(self, pools: Iterable[PoolConfig]) -> list[str]:
        """What there is to be said of how full these pools are: printed for people, and returned for scripts."""
        return self.usage_warnings(self.survey.usage(pools))

    def usage_warnings(self, usages: Iterable[Usage]) -> list[str]:
        """As `pool_warnings`, of pools that have been asked."""
        warnings = [warning for usage in usages for warning in usage.warnings]
        for warning in warnings:
            self.warn(f"storkit: {warning}")
        return warnings

    def warn(self, text: str) -> None:
        """A line for people, on stderr."""
        from storkit.cli import output

        output.say(text)


def out(text: str) -> None:
    """Print on standard output. Raises Conflict where it takes nothing more (a full disk)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        # What is left in its buffer would be tried again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        message = f"standard output cannot be written: {error.strerror}"
        raise Conflict(message, "send it somewhere else: storkit ... > FILE") from error


def run(options: Namespace) -> int:
    """Carry out a parsed command; its exit status."""
    module, _, name = options.function.partition(":")
    session: Session | None = None
    try:
        function = getattr(importlib.import_module(f"storkit.cli.{module}"), name)
        if options.function in ("host:agent", "completion:print_"):
            return int(function(options) or 0)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background job
                signal.signal(number, _interrupt)
        session = Session(options)
        status = int(function(session, options) or 0)
        for host, error in session.survey.silent.items():
            off = session.survey.off.get(host)
            word = f"declared off by {off.by}, {off.since}" if off else "what is there is unknown"
            session.warn(f"storkit: {error.message}; {word}")
        session.tell_what_is_wrong()
        sys.stdout.flush()
        return status
    except StorkitError as error:
        return failed(error, options.json, session)
    except KeyboardInterrupt:
        return failed(Interrupted("interrupted", "storkit plan list"), options.json, session)
    except Exception as error:
        from storkit.system import files

        if isinstance(error, BrokenPipeError):
            # Whoever read our output has seen enough (`storkit volume list | head`).
            sys.stderr.close()
            return 0
        if isinstance(error, OSError) and (error.filename or error.errno in files.MEANINGS):
            place = files.place(error, session.state if session else Path())
            return failed(files.explain(error, place), options.json, session)
        import traceback

        traceback.print_exc()
        bug = StorkitError(f"a bug in storkit: {type(error).__name__}: {error}", "report it; storkit plan list")
        return failed(bug, options.json, session)
    finally:
        if session is not None:
            session.survey.hints.save()
            session.connections.close()


def _interrupt(number: int, frame: Any) -> None:
    """A request to end is taken as Ctrl-C: what was begun is named, and can be resumed or rolled back.

    The threads that wait for other hosts are told as well: the process ends only after them.
    """
    if conversation := sys.modules.get("storkit.hosts.remote.conversation"):
        conversation.hang_up()
    raise KeyboardInterrupt


def failed(error: StorkitError, json: bool, session: Session | None = None) -> int:
    """Tell an error, for scripts too if they asked for JSON; its exit status. Without a session nothing was begun."""
    from json import dumps

    from storkit.cli import output

    if json:
        with suppress(Conflict):  # stderr has it as well
            changed = session.changed(error) if session else False
            out(dumps({"error": {**error.to_json(), "changed": changed}}, indent=2))
    output.explain(error)
    return error.exit_code
