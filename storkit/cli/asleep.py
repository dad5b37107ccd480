"""`storkit guest save`, `guest restore`, `guest discard`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storkit.cli.session import Session
from storkit.core import codec

if TYPE_CHECKING:
    from argparse import Namespace


def save(session: Session, options: Namespace) -> None:
    done = session.site.sleep.save(options.name, options.file or "")
    session.result(codec.dump(done), f"{done.guest} sleeps; its memory is on {done.host} in {done.file}")


def restore(session: Session, options: Namespace) -> None:
    done = session.site.sleep.restore(options.name, options.file or "", options.on or "")
    text = f"{done.guest} is awake on {done.host}" + (", and stands still as it did before" if done.paused else "")
    status = "paused" if done.paused else "running"
    session.result({"guest": done.guest, "host": done.host, "status": status}, text)


def discard(session: Session, options: Namespace) -> None:
    names = session.site.sleep.discard(options.name, options.force)
    text = f"the memory of {options.name} is given up: {', '.join(names)} is as after a power cut"
    session.result({"guest": options.name, "volumes": names}, text)
