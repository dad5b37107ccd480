"""The keys of a fleet: its own, by which its members let ssh in, and each member's host key, by which ssh knows it.
They lie in the coordinator's state alone, 0600: nothing is trusted at first use, and no plan or journal has one.

STATE/fleets/UUID/keys.json     all of them            STATE/fleets/UUID/login, login.pub     what ssh(1) is given
STATE/fleets/UUID/known_hosts   the members' public keys
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from storkit.core import codec
from storkit.core.identities import Line, Uuid
from storkit.core.model import Secret
from storkit.system.files import make_private, read_json, write_atomic
from storkit.system.parallel import for_each_at_once
from storkit.system.run import run

COMMENT = "storkit"
"""Alike in all keys, so that each is as long as the other: a clone's key is written over another one's place."""
SEED_BYTES = 512


@dataclass(frozen=True, slots=True)
class MemberKeys:
    """What is secret of a member."""

    private: Secret
    """Its SSH host key (Ed25519), as its file has it."""
    public: Line
    seed: Secret
    """What its random number generator begins with: hexadecimal."""


@dataclass(frozen=True, slots=True)
class FleetKeys:
    """What is secret of a fleet."""

    private: Secret
    public: Line
    members: dict[Line, MemberKeys] = field(default_factory=dict)
    """By their guests' UUIDs."""
    fleet: Uuid = ""


def load(state: Path, fleet: str) -> FleetKeys | None:
    """The keys of the fleet of a UUID; None: there are none here."""
    file = _directory(state, fleet) / "keys.json"
    if not file.exists():
        return None
    return codec.load(FleetKeys, read_json(file, "keys"), str(file))


def make(state: Path, fleet: str, guests: Sequence[str]) -> FleetKeys:
    """The keys of a fleet, those of these members made where there are none; other members' are kept."""
    directory = _directory(state, fleet)
    make_private(directory)
    keys = load(state, fleet)
    missing = [guest for guest in guests if keys is None or guest not in keys.members]
    work = directory / "new"
    shutil.rmtree(work, ignore_errors=True)
    make_private(work)
    try:
        wanted = [*([] if keys else ["login"]), *missing]
        for_each_at_once(lambda name: _generate(work / name), wanted)
        if keys is None:
            keys = FleetKeys(*_read(work / "login"), fleet=fleet)
        made = {guest: MemberKeys(*_read(work / guest), Secret(os.urandom(SEED_BYTES).hex())) for guest in missing}
    finally:
        shutil.rmtree(work, ignore_errors=True)
    keys = replace(keys, members={**keys.members, **made})
    _save(directory, keys)
    return keys


def drop(state: Path, fleet: str, guests: Sequence[str]) -> None:
    """Forget the keys of members, which are to be others."""
    if keys := load(state, fleet):
        left = {uuid: each for uuid, each in keys.members.items() if uuid not in guests}
        _save(_directory(state, fleet), replace(keys, members=left))


def forget(state: Path, fleet: str) -> None:
    """Remove all keys of a fleet; there need be none."""
    shutil.rmtree(_directory(state, fleet), ignore_errors=True)


def for_ssh(state: Path, fleet: str, names: dict[str, str]) -> tuple[Path, Path]:
    """The files that ssh(1) is given: the fleet's key, and the members' host keys. `names`: guests' UUIDs to names."""
    directory = _directory(state, fleet)
    keys = load(state, fleet)
    known = {uuid: each.public for uuid, each in keys.members.items()} if keys else {}
    lines = [f"{name} {known[uuid]}\n" for uuid, name in names.items() if uuid in known]
    file = directory / "known_hosts"
    make_private(directory)
    write_atomic(file, "".join(lines))
    return directory / "login", file


def _save(directory: Path, keys: FleetKeys) -> None:
    write_atomic(directory / "keys.json", json.dumps(codec.dump(keys, reveal=True)) + "\n")
    write_atomic(directory / "login", keys.private.reveal())
    write_atomic(directory / "login.pub", keys.public + "\n")


def _generate(file: Path) -> None:
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", COMMENT, "-f", file], package="openssh-client")


def _read(file: Path) -> tuple[Secret, str]:
    return Secret(file.read_text()), file.with_name(file.name + ".pub").read_text().strip()


def _directory(state: Path, fleet: str) -> Path:
    return state / "fleets" / fleet
