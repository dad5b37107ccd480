"""Versions of golden images. Version 3 of `debian` is the volume `debian.v3`, and its first one is `debian`: each is a
volume of kind image as others are, wherever its pool is, and its name alone says which version of what it is.

NAME@3 stands for it wherever something to clone from is named; NAME alone for the newest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from storkit.core.errors import Conflict, NotFound, UsageError, raise_problems
from storkit.core.inventory import PoolConfig
from storkit.core.model import NAME_MAX, Volume, check_name, closed
from storkit.plans.intent.coordinator import Coordinator
from storkit.plans.lookup import parts

_VERSION = re.compile(r"(.+)\.v([2-9]|[1-9][0-9]{1,5})", re.ASCII)
_NUMBER = re.compile(r"[1-9][0-9]{0,5}", re.ASCII)
LONGEST_NAME = NAME_MAX - len(".v999999")
"""The name of an image, which its versions' volumes go on with."""


@dataclass(frozen=True, slots=True)
class Version:
    """A volume as the version of an image."""

    image: str
    number: int
    volume: Volume

    @property
    def shown(self) -> str:
        return f"{self.image}@{self.number}"


@dataclass(frozen=True, slots=True)
class ImageVersion:
    """A version of a golden image, where it comes from, and who uses it."""

    image: str
    version: int
    volume: Volume
    newest: bool
    source: str
    """What it was made from: a version as NAME@2, or a volume's name; empty: nothing that is still there."""
    clones: list[str] = field(default_factory=list)
    """The volumes that were cloned from it, and are still there."""
    needed: list[str] = field(default_factory=list)
    """Those whose bytes stand on its own, versions of images among them."""
    fleets: list[str] = field(default_factory=list)
    """The fleets of this machine that are made of it."""

    @property
    def name(self) -> str:
        return f"{self.image}@{self.version}"


def split(name: str) -> tuple[str, int]:
    """The image, and the number of its version, that a golden volume of this name is."""
    match = _VERSION.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, 1)


def volume_name(image: str, number: int) -> str:
    """The name of the volume that is a version. Raises UsageError: it would be too long."""
    check_name("image", image)
    if len(image) > LONGEST_NAME or split(image)[1] > 1:
        message = f"{image!r} cannot name an image: its versions are volumes {image[:20]}.v2 and so on"
        raise UsageError(message, f"use {LONGEST_NAME} characters at most, which do not end as a version's do")
    return image if number == 1 else f"{image}.v{number}"


def asked(name: str) -> tuple[str, str, int]:
    """Pool (empty: none is said), image, and number (0: none is said) of NAME, NAME@3 or POOL/NAME@3."""
    place, at, number = name.rpartition("@")
    if not at:
        return (*parts(name), 0)
    if not _NUMBER.fullmatch(number):
        raise UsageError(f"{number!r:.40} is no version of an image", "write NAME@3, or NAME for the newest one")
    return (*parts(place), int(number))


def among(volumes: Iterable[Volume], image: str = "") -> list[Version]:
    """The versions (of one image, or of all) that are among volumes, those of one image in their order."""
    found = [Version(*split(each.name), each) for each in volumes if is_version(each)]
    wanted = [version for version in found if not image or version.image == image]
    return sorted(wanted, key=lambda version: (version.image, version.volume.pool, version.number))


def is_version(volume: Volume) -> bool:
    """Whether a volume is a version of an image: not what a fleet's members are cloned from (`prepared`), nor what is
    closed while it is moved."""
    return volume.kind == "image" and volume.made != "prepared" and not closed(volume)


def of(coordinator: Coordinator, name: str) -> list[Version]:
    """The versions that NAME, NAME@3 or POOL/NAME stand for, in their order. Raises NotFound; Conflict: they are in
    several pools."""
    place, image, number = asked(name)
    survey = coordinator.survey
    versions = among(survey.volumes(None, _pools(coordinator, place)), image)
    found = [version for version in versions if number in (0, version.number)]
    pools = list(dict.fromkeys(version.volume.pool for version in found))
    if len(pools) > 1:
        hint = f"write {' or '.join(f'{pool}/{name}' for pool in pools)}"
        raise Conflict(f"image {image} is in pool {' and in pool '.join(pools)}", hint)
    if not number:
        _refuse_damaged(coordinator, image, pools)
    if not found:
        raise_problems([*survey.silent.values(), *survey.failed.values()])  # it may be there
        survey.refuse_damaged([volume_name(image, number or 1)])
        there = f"its versions: {', '.join(str(version.number) for version in versions)}"
        raise NotFound(
            f"there is no image {image}{f'@{number}' if number else ''}", there if versions else "storkit image list"
        )
    return found


def source(coordinator: Coordinator, name: str, stays: str = "") -> Volume:
    """The volume to clone from that a person has named: NAME@3, the newest version of NAME, or the volume NAME.
    `stays`: the volume that NAME alone stands for if it is any version of it."""
    place, own, number = asked(name)
    if stays and not number and own == split(stays)[0]:
        return coordinator.survey.volume(f"{place}/{stays}" if place else stays)
    if number:
        (version,) = of(coordinator, name)
        return version.volume
    there = coordinator.survey.present([name])
    if there and (not is_version(there[0]) or split(own)[1] > 1):
        return there[0]
    # All versions of an image are in one pool: where one is there, no other pool need be asked.
    pools = [coordinator.inventory.pool(there[0].pool)] if there else _pools(coordinator, place)
    versions = among(coordinator.survey.volumes(None, pools), own)
    if len({version.volume.pool for version in versions}) > 1:
        of(coordinator, name)
    _refuse_damaged(coordinator, own, [version.volume.pool for version in versions])
    return versions[-1].volume if versions else coordinator.survey.volume(name)


def _refuse_damaged(coordinator: Coordinator, image: str, pools: Iterable[str]) -> None:
    """Raise Unsafe if one of an image's versions is damaged: it may be the newest, and no older one is taken for it."""
    there = [name for pool, name in coordinator.survey.damaged if pool in pools and split(name)[0] == image]
    coordinator.survey.refuse_damaged(there)


def _pools(coordinator: Coordinator, place: str) -> list[PoolConfig] | None:
    return [coordinator.inventory.pool(place)] if place else None
