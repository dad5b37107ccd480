"""Which version of which image a name stands for, and what a checksum of a disk is of."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from storkit.core.errors import UsageError
from storkit.core.model import Volume
from storkit.plans.intent.golden import building, versions
from storkit.tech.files.content import examining

UUID = "cc18ff28-316c-43a9-9f2c-38e3cc63bc95"


@pytest.mark.parametrize(
    ("name", "image", "number"),
    [("debian", "debian", 1), ("debian.v2", "debian", 2), ("debian.v10", "debian", 10), ("debian.v1", "debian.v1", 1),
     ("debian.v02", "debian.v02", 1), ("debian.v", "debian.v", 1), (".v2", ".v2", 1), ("a.v2.v3", "a.v2", 3)],
)  # fmt: skip
def test_a_volume_s_name_says_which_version_it_is(name: str, image: str, number: int) -> None:
    assert versions.split(name) == (image, number)


@pytest.mark.parametrize("number", [1, 2, 10, 999999])
def test_the_volume_of_a_version_is_found_again_by_its_name(number: int) -> None:
    assert versions.split(versions.volume_name("debian-12.1", number)) == ("debian-12.1", number)


@pytest.mark.parametrize("image", ["", "a/b", "a.v2", "x" * (versions.LONGEST_NAME + 1), "..", "a@1"])
def test_what_cannot_name_an_image(image: str) -> None:
    with pytest.raises(UsageError):
        versions.volume_name(image, 2)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("debian", ("", "debian", 0)), ("debian@3", ("", "debian", 3)), ("pool/debian@12", ("pool", "debian", 12)),
     ("pool/debian", ("pool", "debian", 0))],
)  # fmt: skip
def test_what_a_person_names(name: str, meant: tuple[str, str, int]) -> None:
    assert versions.asked(name) == meant


@pytest.mark.parametrize(
    "name", ["debian@", "debian@0", "debian@03", "debian@-1", "debian@x", "@1", "a@1@2", "debian@1 "]
)
def test_what_names_no_version(name: str) -> None:
    with pytest.raises(UsageError):
        versions.asked(name)


def test_disks_and_bases_of_fleets_are_no_versions_and_the_others_are_in_their_order() -> None:
    def volume(name: str, kind: str = "image", made: str = "imported") -> Volume:
        return Volume(name, UUID, 512, kind=kind, made=made)  # type: ignore[arg-type]

    there = [volume("a.v10"), volume("a.v9"), volume("a"), volume("a.v3", "disk"), volume("web.base", made="prepared")]
    assert [each.shown for each in versions.among([*there, volume("b.v2")])] == ["a@1", "a@9", "a@10", "b@2"]
    assert [each.number for each in versions.among([*there, volume("b.v2")], "b")] == [2]


@pytest.mark.parametrize("image", ["debian", "debian_12.1", "x" * versions.LONGEST_NAME, "a-.", "1"])
def test_the_fleet_of_a_build_can_begin_host_names(image: str) -> None:
    name = building.fleet_name(image)
    assert name.replace("-", "").isalnum() and name.endswith("-build") and len(name) <= 40 and name[0] != "-"


@pytest.mark.parametrize(
    "pieces",
    [[], [(0, 5)], [(1 << 20, 3)], [(0, 1), ((9 << 20) - 1, 1)], [(3 << 20, 4 << 20)], [(5 << 20, 4 << 20)]],
)
def test_the_checksum_is_that_of_all_bytes_holes_too(tmp_path: Path, pieces: list[tuple[int, int]]) -> None:
    path, size = tmp_path / "disk", 9 << 20
    with path.open("wb") as file:
        file.truncate(size)
        for offset, length in pieces:
            file.seek(offset)
            file.write(os.urandom(length))
    done: list[int] = []
    with path.open("rb") as file:
        found = examining.digest(file.fileno(), size, done.append)
    assert found == hashlib.sha256(path.read_bytes()).hexdigest()
    assert done == sorted(done) and done[-1] == size
