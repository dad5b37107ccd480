"""`storkit volume import -` and `storkit volume export NAME -`: images through pipes."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storkit.cli import output
from storkit.cli.session import Session
from storkit.core import codec
from storkit.core.errors import Conflict, StorkitError, UsageError, raise_problems
from storkit.core.model import Volume
from storkit.core.units import format_size
from storkit.plans import planner
from storkit.tech.files import streams

STANDARD = "-"
"""Standard input or output, where a file is named; a file of that name is ./-"""


def read(state: Path, limit: int) -> Path:
    """Standard input as a file, which the caller removes."""
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("standard input is a terminal, and no image", "storkit volume import - NAME < FILE")
    return streams.spool(sys.stdin.buffer, state, limit)


@contextmanager
def named(spooled: Path | None) -> Iterator[None]:
    """What is wrong with the file that standard input was kept in is wrong with standard input."""
    try:
        yield
    except StorkitError as error:
        for problem in error.each if spooled else ():
            problem.message = problem.message.replace(str(spooled), "standard input")
            problem.args = (problem.message,)
        raise


def export(session: Session, options: Namespace) -> None:
    """Write a volume to standard output, once all of it is known to be there; every word goes to standard error.

    It changes nothing, so it needs no plan; the volume stays locked meanwhile, as for an export to a file.
    """
    problems: list[StorkitError] = []
    if options.json:
        problems.append(UsageError("standard output is for the image, and not for JSON", "leave --json out"))
    elif sys.stdout is None or sys.stdout.isatty():
        hint = f"storkit volume export {options.name} - > FILE"
        problems.append(UsageError("a disk image is nothing for a terminal", hint))
    raise_problems(problems)
    volume = _volume(session, options.name)
    if options.dry_run:
        output.say(f"write {volume.name} to standard output")
        return
    session.engine().hold(planner.holds([volume]))
    try:
        if _volume(session, options.name) != volume:
            raise Conflict("another command changed the same volume meanwhile", "look at it, then try again")
        file = streams.place(session.state)
        call = {"volume": codec.dump(volume), "file": str(file), "format": options.format,
                "compress": options.compress}  # fmt: skip
        try:
            size = session.connections.to(volume.host).call("images", "export_image", call)["size"]
            sys.stdout.flush()
            streams.pour(file, size, sys.stdout.fileno())
        finally:
            file.unlink(missing_ok=True)
    finally:
        session.connections.unlock()
    output.say(f"{volume.name}: {format_size(size)} written to standard output ({options.format})")


def _volume(session: Session, name: str) -> Volume:
    volume = session.survey.volume(name)
    if session.inventory.host(volume.host).machine != "local":
        file = f"/var/tmp/{volume.name}.img"
        raise UsageError(
            f"volume {name} is on {volume.host}, and cannot be exported to standard output here",
            f"storkit volume export {name} {file}, and copy {file} from {volume.host}",
        )
    return volume
