"""The passwords of guests' documents, apart from these: STATE/secrets/UUID.json of the coordinator, 0600. They go to a
host that a guest is to run on, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from storkit.core import codec
from storkit.core.errors import Conflict
from storkit.core.guest import Guest
from storkit.core.model import Secret
from storkit.guests import document
from storkit.system.files import make_private, read_json, write_atomic


def keep(state: Path, uuid: str, secrets: Mapping[str, Secret]) -> None:
    """Keep the passwords of the guest of a UUID."""
    if secrets:
        file = _file(state, uuid)
        make_private(file.parent)
        write_atomic(file, json.dumps(codec.dump(dict(secrets), reveal=True)) + "\n")


def load(state: Path, guest: Guest) -> dict[str, Secret]:
    """The passwords that a guest's document needs. Raises Conflict: they are not here."""
    names = document.needed(guest)
    if not names:
        return {}
    file = _file(state, guest.uuid)
    known: dict[str, Secret] = {}
    if file.exists():
        known = codec.load(dict[str, Secret], read_json(file, "passwords"), str(file))
    if missing := [name for name in names if name not in known]:
        message = f"the document of guest {guest.name} has passwords that are not on this machine: {', '.join(missing)}"
        raise Conflict(message, f"copy {file} from the machine that imported it, or import the guest again")
    return {name: known[name] for name in names}


def forget(state: Path, uuid: str) -> None:
    """Remove the passwords of a guest; there need be none."""
    _file(state, uuid).unlink(missing_ok=True)


def _file(state: Path, uuid: str) -> Path:
    return state / "secrets" / f"{uuid}.json"
