"""The keys of a fleet: its own, by which its members let ssh in, and each member's host key, by which ssh knows it.
They lie in the coordinator's state alone, 0600: nothing is trusted at first use, and no plan or journal has one.

STATE/fleets/UUID/login, login.pub   the fleet's own, as ssh(1) takes it
STATE/fleets/UUID/known_hosts        the members' public keys, as ssh(1) takes them
STATE/fleets/UUID/cloud-config       what cloud-init is to do beside that, if anything: it may have passwords in it
STATE/fleets/UUID/members/*.json     each member's, by the UUID of its guest
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from storkit.core import codec
from storkit.core.errors import Conflict
from storkit.core.identities import Line, Uuid
from storkit.core.model import Secret
from storkit.system.files import make_private, read_json, write_atomic, write_many
from storkit.system.parallel import for_each_at_once
from storkit.system.run import run

COMMENT = "storkit"
"""Alike in all keys, so that each is as long as the other: a clone's key is written over another one's place."""
SEED_BYTES = 512
_LOGIN = "login"
_MEMBERS = "members"
_CONFIG = "cloud-config"


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
    """What is secret of a fleet, and of some of its members."""

    private: Secret
    public: Line
    members: dict[Uuid, MemberKeys] = field(default_factory=dict)
    """By their guests' UUIDs."""
    cloud_config: Secret = field(default_factory=lambda: Secret(""))
    """What cloud-init is to do in each beside making it itself (`#cloud-config`); empty: nothing."""


def there(state: Path, fleet: str) -> bool:
    """Whether this machine has the keys of the fleet of a UUID."""
    return (_directory(state, fleet) / _LOGIN).exists()


def load(state: Path, fleet: str, guests: Iterable[str]) -> FleetKeys:
    """The keys of a fleet, and of these of its members. Raises Conflict: they are not here."""
    directory = _directory(state, fleet)
    files = {guest: directory / _MEMBERS / f"{guest}.json" for guest in guests}
    if not (directory / _LOGIN).exists() or not all(file.exists() for file in files.values()):
        raise Conflict("the fleet's keys are not on this machine", f"go on where it was created, or copy {directory}")
    members = {guest: codec.load(MemberKeys, read_json(file, "keys"), str(file)) for guest, file in files.items()}
    config = directory / _CONFIG
    text = config.read_text() if config.exists() else ""
    return FleetKeys(*_read(directory / _LOGIN), members, Secret(text))


def configure(state: Path, fleet: str, text: str) -> None:
    """Keep what cloud-init is to do in the members of a fleet that is to be made."""
    directory = _directory(state, fleet)
    make_private(directory)
    write_atomic(directory / _CONFIG, text)


def make(state: Path, fleet: str, guests: Sequence[str]) -> None:
    """Make the keys of a fleet, and of these members, where there are none."""
    directory = _directory(state, fleet)
    make_private(directory)
    make_private(directory / _MEMBERS)
    work = directory / "new"
    shutil.rmtree(work, ignore_errors=True)
    make_private(work)
    try:
        wanted = [] if there(state, fleet) else [_LOGIN]
        wanted += [guest for guest in guests if not (directory / _MEMBERS / f"{guest}.json").exists()]
        for_each_at_once(lambda name: _generate(work / name), wanted)
        members = []
        for name in wanted:
            private, public = _read(work / name)
            if name == _LOGIN:
                write_atomic(directory / f"{_LOGIN}.pub", public + "\n")
                write_atomic(directory / _LOGIN, private.reveal())
                continue
            made = MemberKeys(private, public, Secret(os.urandom(SEED_BYTES).hex()))
            text = json.dumps(codec.dump(made, reveal=True)) + "\n"
            members.append((directory / _MEMBERS / f"{name}.json", text))
        if members:
            write_many(members)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def drop(state: Path, fleet: str, guests: Iterable[str]) -> None:
    """Forget the keys of members; there need be none."""
    for guest in guests:
        (_directory(state, fleet) / _MEMBERS / f"{guest}.json").unlink(missing_ok=True)


def forget(state: Path, fleet: str) -> None:
    """Remove all keys of a fleet; there need be none."""
    shutil.rmtree(_directory(state, fleet), ignore_errors=True)


def for_ssh(state: Path, fleet: str, names: Mapping[str, str]) -> tuple[Path, Path]:
    """The files that ssh(1) is given: the fleet's key, and the host keys of all its members. `names`: guests' UUIDs to
    the names of members."""
    directory = _directory(state, fleet)
    members = load(state, fleet, names).members
    file = directory / "known_hosts"
    text = "".join(f"{name} {members[uuid].public}\n" for uuid, name in names.items())
    if not file.exists() or file.read_text() != text:
        write_atomic(file, text)
    return directory / _LOGIN, file


def _generate(file: Path) -> None:
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", COMMENT, "-f", file], package="openssh-client")


def _read(file: Path) -> tuple[Secret, str]:
    return Secret(file.read_text()), file.with_name(file.name + ".pub").read_text().strip()


def _directory(state: Path, fleet: str) -> Path:
    return state / "fleets" / fleet
