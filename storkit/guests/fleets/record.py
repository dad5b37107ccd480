"""Fleets: guests of one image, as one file beside the inventory: fleets/NAME.toml. Its members are guests as others
are, NAME-01 and so on, each with a file in guests/."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass, field, fields
from datetime import datetime
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

from storkit.core import codec
from storkit.core.errors import Conflict, NotFound, StorkitError, UsageError, raise_problems
from storkit.core.guest import Boot, Nic
from storkit.core.identities import (
    Count,
    GuestName,
    Hex,
    HostName,
    Line,
    MaybeUuid,
    PoolName,
    Uuid,
    VolumeName,
    Word,
    check_name,
)
from storkit.core.imagefiles import Inside, Laid
from storkit.guests.files import SUFFIX
from storkit.guests.files import names as names
from storkit.guests.limits import OWN_CARDS
from storkit.system.files import explain, sync_directory, write_atomic

MOST = 4000
"""Members that a fleet's network has addresses for (a /20)."""
LONGEST_NAME = 48
"""A member's volumes have names of their own, which end in more than its number."""


@dataclass(frozen=True, slots=True)
class Made:
    """What was made for a member, by its UUID: what has another one is somebody else's, whatever its name."""

    guest: Uuid
    disk: Uuid
    seed: MaybeUuid = ""
    was: MaybeUuid = ""
    """The disk that `reset` replaces by `disk`, until it has."""


@dataclass(frozen=True, slots=True)
class Build:
    """The version of a golden image that a fleet's only member is to become."""

    version: VolumeName
    uuid: Uuid
    """Of that volume, which is made in the end."""
    recipe: Hex
    """SHA-256 of what it is made from, in the words of who has asked for it, and of its script."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Guests of one image. Sizes in bytes."""

    name: GuestName
    uuid: Uuid
    image: VolumeName
    image_uuid: Uuid
    pool: PoolName
    """The image's, where the members' disks are as well."""
    count: Count
    width: Count
    """Digits of a member's number."""
    memory: Count
    vcpus: Count = 1
    hypervisor: Word = "qemu"
    hosts: list[HostName] = field(default_factory=list)
    """Over which the members are spread, in turn."""
    boot: Boot = field(default_factory=Boot)
    bridge: Line = ""
    """The bridge of each host that the members are on; empty: a network of their own, which needs no root."""
    settings: list[Line] = field(default_factory=list)
    """KEY=VALUE for each member's record, as `guest clone --set` takes them."""
    base: MaybeUuid = ""
    """The volume that the members are cloned from: the image's clone in which their slots are laid. Empty: the image
    itself, in which nothing can be laid."""
    inside: Inside = field(default_factory=lambda: Inside(""))
    laid: list[Laid] = field(default_factory=list)
    made: dict[GuestName, Made] = field(default_factory=dict)
    """Members to what is theirs, written before that is made."""
    build: Build | None = None
    created: Line = ""
    expires: Line = ""
    """When `fleet sweep` destroys it (ISO 8601, UTC); empty: never."""

    @property
    def base_name(self) -> str:
        return f"{self.name}.base"

    @property
    def seeded(self) -> bool:
        """Whether each member has a second disk, from which cloud-init takes who it is."""
        return self.inside.cloud_init

    @property
    def nics(self) -> list[Nic]:
        """The cards that each member has."""
        if self.bridge:
            return [Nic(self.bridge)]
        kinds = OWN_CARDS.get(self.hypervisor, ("user", "group"))
        return [Nic(kind=kind, group=self.group if kind == "group" else "") for kind in kinds]

    @property
    def enterable(self) -> bool:
        """Whether a port of its host leads to each member's SSH."""
        return any(nic.kind == "user" for nic in self.nics)

    @property
    def members(self) -> list[str]:
        return [self.member(number) for number in range(1, self.count + 1)]

    def member(self, number: int) -> str:
        """The name of member `number`, from 1 on."""
        return f"{self.name}-{number:0{self.width}}"

    def number(self, member: str) -> int:
        """The number of a member. Raises NotFound."""
        digits = member.removeprefix(f"{self.name}-")
        number = int(digits) if digits.isascii() and digits.isdecimal() else 0
        if 1 <= number <= self.count and member == self.member(number):
            return number
        raise NotFound(
            f"fleet {self.name} has no member {member!r}", f"storkit fleet show {self.name}; one is {self.member(1)}"
        )

    def host(self, member: str) -> str:
        """The host that a member is to run on."""
        return self.hosts[(self.number(member) - 1) % len(self.hosts)]

    @property
    def network(self) -> IPv4Network:
        """The members' own network. It is theirs alone, so that two fleets that have the same do not meet."""
        digest = hashlib.sha256(self.uuid.encode()).digest()
        return IPv4Network((bytes([10, 64 + digest[0] % 128, digest[1] & 0xF0, 0]), 20))

    def address(self, member: str) -> IPv4Interface:
        """A member's address in the fleet's network."""
        network = self.network
        return IPv4Interface(f"{network[self.number(member)]}/{network.prefixlen}")

    @property
    def group(self) -> str:
        """ADDRESS:PORT of the multicast group by which QEMU joins the members of one host (RFC 2365: 239.192.0.0/14 is
        an organisation's own)."""
        digest = hashlib.sha256(f"{self.uuid}/group".encode()).digest()
        address = IPv4Address(bytes([239, 192 + digest[0] % 4, digest[1], digest[2]]))
        return f"{address}:{20000 + int.from_bytes(digest[3:5]) % 40000}"


def path(directory: Path, name: str) -> Path:
    """The file of a fleet. Raises UsageError for what cannot name one."""
    return directory / (check_name("fleet", name) + SUFFIX)


def load(directory: Path, name: str) -> Fleet:
    """The fleet of a name. Raises NotFound; UsageError with what is wrong in its file."""
    file = path(directory, name)
    try:
        data = tomllib.loads(file.read_text())
    except FileNotFoundError:
        known = ", ".join(names(directory)) or "none"
        raise NotFound(f"there is no fleet {name!r}", f"fleets in {directory}: {known}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read: {error}", f"check it: less {file}") from None
    fleet = codec.load(Fleet, {"name": name, **data}, str(file))
    problems: list[StorkitError] = []
    if fleet.name != name:
        problems.append(UsageError(f"{file}: name: {fleet.name!r} is not the file's name", "rename the file"))
    if not 1 <= fleet.count <= MOST or not 1 <= fleet.width <= 4:
        problems.append(UsageError(f"{file}: count: a fleet has 1 to {MOST} members", "edit it"))
    if fleet.expires and _when(fleet.expires) is None:
        problems.append(UsageError(f"{file}: expires: {fleet.expires!r:.60} is no time", "2026-11-30T10:00:00+00:00"))
    if not fleet.hosts:
        problems.append(UsageError(f"{file}: hosts: none is named", "edit it"))
    raise_problems(problems)
    return fleet


def save(directory: Path, fleet: Fleet) -> Path:
    """Write a fleet's file, over one that is there."""
    import tomli_w

    file = path(directory, fleet.name)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        data = {key: value for key, value in codec.dump(fleet).items() if value not in ("", [], {}, None)}
        write_atomic(file, tomli_w.dumps(data), 0o644)
    except OSError as error:
        raise explain(error, file) from error
    return file


def delete(directory: Path, name: str) -> None:
    """Remove a fleet's file; it need not be there."""
    file = path(directory, name)
    try:
        file.unlink(missing_ok=True)
        if directory.is_dir():
            sync_directory(directory)
    except OSError as error:
        raise explain(error, file) from error


def over(fleet: Fleet, now: datetime) -> bool:
    """Whether a fleet's time is over."""
    end = _when(fleet.expires) if fleet.expires else None
    return end is not None and end <= now


def _when(text: str) -> datetime | None:
    """A time that has its zone; None: it is none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else None


def refuse_change(old: Fleet, new: Fleet) -> None:
    """Raise Conflict if a fleet that is there is another than what is wanted, but for its size."""
    same = {"name", "uuid", "count", "width", "base", "inside", "laid", "made", "created", "expires"}
    changed = [f.name for f in fields(Fleet) if f.name not in same and getattr(old, f.name) != getattr(new, f.name)]
    if changed:
        message = f"fleet {old.name} exists already, with another {', '.join(changed)}"
        raise Conflict(message, f"storkit fleet destroy {old.name}, or give this one another name")
