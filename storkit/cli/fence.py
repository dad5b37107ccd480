"""`storkit fence`, `storkit unfence`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storkit.cli.session import Session
from storkit.core import codec

if TYPE_CHECKING:
    from argparse import Namespace


def fence(session: Session, options: Namespace) -> None:
    fenced = session.site.fences.fence(options.host, options.confirmed_off)
    names = ", ".join(sorted({export.volume for export in fenced.lost})) or "nothing: it had no disk"
    word = f"; by your word it is off, until storkit unfence {fenced.host}" if options.confirmed_off else ""
    data = {"host": fenced.host, "lost": codec.dump(fenced.lost)}
    session.result(data, f"{fenced.host} is cut off: {names}{word}")


def unfence(session: Session, options: Namespace) -> None:
    host = session.site.fences.unfence(options.host)
    session.result({"host": host}, f"{host} may be given disks again")
