"""What a host had when it was cut off, until its guests run elsewhere: a command that is repeated finds no exports to
tell by any more."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from storkit.core.identities import HostName, Uuid
from storkit.tech.grants import check_host_slug
from storkit.tech.records import RecordFiles


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The volumes that the host could write, of guests that have not been started since."""

    host: HostName
    volumes: list[Uuid]


def records(state: Path) -> RecordFiles[Unfinished]:
    """Those of a coordinator, by the slugs of hosts."""
    return RecordFiles(state / "evacuations", Unfinished, "the record of an evacuation", check_host_slug)
