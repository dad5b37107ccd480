"""One run of the command line: what it works with, and how results and errors are shown."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storkit.api import process
from storkit.core.errors import Conflict, Interrupted, StorkitError, in_a_line

if TYPE_CHECKING:
    from argparse import Namespace

    from storkit.api import Reporter


_WORDS = {"off": "which hosts are declared off", "drained": "whether it takes guests"}
"""Of what a host keeps persons' words, by the target's name."""


class Session:
    """What commands work with."""

    def __init__(self, options: Namespace) -> None:
        from storkit import api

        self.options = options
        self.site = api.open(options.inventory, options.state, warn=self.say, reporter=_reporter(options))

    def carry_out(self, function: Callable[[Session, Namespace], int | None]) -> int:
        """Call a command's function; with --dry-run print the plan that it has made. Its exit status."""
        with self.site.one_call():
            return self._carry_out(function)

    def _carry_out(self, function: Callable[[Session, Namespace], int | None]) -> int:
        from storkit.cli import output
        from storkit.core import codec

        if not self.options.dry_run:
            return int(function(self, self.options) or 0)
        status: list[int | None] = []
        plan = self.site.plan(lambda: status.append(function(self, self.options)))
        if plan is None:
            return int(status[0] or 0)
        if self.options.json:
            self.print_json(codec.dump(plan))
        else:
            out(output.describe(plan, self.site.plans.is_final))
        return 0

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

        for pool, error in self.site.failed.items():
            self.say(f"pool {pool} cannot be looked at: {in_a_line(error)}")
            for hint, said_by in dict.fromkeys((each.hint, each.said_by) for each in error.each):
                output.advise(hint, said_by)
        for (host, target), error in sorted(self.site.unread.items()):
            kind, _, name = target.partition(":")
            what = f"all of what {name} has there" if kind != "host" else _WORDS[name]
            self.say(f"host {host} cannot say {what}: {in_a_line(error)}")
        for damaged in self.site.damaged:
            self.say(f"pool {damaged.pool}: {damaged.message}")
            local = self.site.inventory.host(damaged.host).machine == "local"
            output.advise(damaged.hint, "" if local else damaged.host)

    def say(self, text: str) -> None:
        """A line for people, on stderr, with our name before it."""
        from storkit.cli import output

        output.say(f"storkit: {text}")


def _reporter(options: Namespace) -> Reporter | None:
    """Who tells how far a plan is, as it fits where stderr goes."""
    from storkit.cli import output

    if options.verbose:
        return output.Lines()
    return output.Bars() if sys.stderr.isatty() and not options.json else None


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
        if options.function in ("host:agent", "completion:print_", "hooks:libvirt", "hooks:xen"):
            return int(function(options) or 0)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background job
                signal.signal(number, _interrupt)
        session = Session(options)
        status = session.carry_out(function)
        for host, error in session.site.silent.items():
            off = session.site.off.get(host)
            word = f"declared off by {off.by}, {off.since}" if off else "what is there is unknown"
            session.say(f"{error.message}; {word}")
        session.tell_what_is_wrong()
        sys.stdout.flush()
        return status
    except StorkitError as error:
        return failed(error, options.json, session)
    except KeyboardInterrupt:
        return failed(Interrupted("interrupted", "storkit plan list"), options.json, session)
    except Exception as error:
        if isinstance(error, BrokenPipeError):
            # Whoever read our output has seen enough (`storkit volume list | head`).
            sys.stderr.close()
            return 0
        if isinstance(error, OSError) and (
            known := process.explained(error, session.site.state if session else Path())
        ):
            return failed(known, options.json, session)
        import traceback

        traceback.print_exc()
        bug = StorkitError(f"a bug in storkit: {type(error).__name__}: {error}", "report it; storkit plan list")
        return failed(bug, options.json, session)
    finally:
        if session is not None:
            session.site.close()


def _interrupt(number: int, frame: Any) -> None:
    """A request to end is taken as Ctrl-C: what was begun is named, and can be resumed or rolled back.

    The threads that wait for other hosts are told as well: the process ends only after them.
    """
    process.hang_up()
    raise KeyboardInterrupt


def failed(error: StorkitError, json: bool, session: Session | None = None) -> int:
    """Tell an error, for scripts too if they asked for JSON; its exit status. Without a session nothing was begun."""
    from json import dumps

    from storkit.cli import output

    if json:
        with suppress(Conflict):  # stderr has it as well
            changed = session.site.changed(error) if session else False
            out(dumps({"error": {**error.to_json(), "changed": changed}}, indent=2))
    output.explain(error)
    return error.exit_code
