"""Versions of golden images with the real command line: which one a name stands for, where each comes from and who uses
it, sealed, verified and pruned."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fleets import MEMORY, golden
from tests.e2e.world import World, each_format

MIB = 1 << 20


def content(number: int) -> bytes:
    return bytes([number]) * MIB + bytes(2 * MIB) + b"end" + bytes(MIB - 3)


def version(world: World, number: int, image: str = "golden") -> Any:
    """A version whose bytes are made of its number, by a volume that was written."""
    file = world.directory / f"{image}.img"
    file.write_bytes(content(number))
    if number == 1:
        world.storkit("volume", "import", "--golden", file, image)
        return world.storkit("--json", "image", "seal", image).json
    world.storkit("volume", "import", file, "work")
    made = world.storkit("--json", "image", "seal", "work", image).json
    world.storkit("volume", "delete", "work")
    return made


def images(world: World, *name: str) -> dict[str, Any]:
    found = world.storkit("--json", "image", "show" if name else "list", *name).json
    return {each["name"]: each for each in found}


def starts_with(world: World, volume: str) -> int:
    return world.disk(volume).read_bytes()[0]


@each_format
def test_a_name_alone_is_the_newest_and_a_number_is_that_one(world: World) -> None:
    made = [version(world, number) for number in (1, 2, 3)]
    assert [(each["name"], each["volume"]["name"]) for each in made] == [
        ("golden@1", "golden"), ("golden@2", "golden.v2"), ("golden@3", "golden.v3"),
    ]  # fmt: skip
    for number, each in enumerate(made, 1):
        assert each["volume"]["checksum"] == f"sha256:{hashlib.sha256(content(number)).hexdigest()}"
        assert each["volume"]["kind"] == "image"
    for name, number in (("golden", 3), ("golden@1", 1), ("golden@2", 2), ("default/golden@2", 2), ("golden.v2", 2)):
        world.storkit("volume", "clone", name, "clone")
        assert starts_with(world, "clone") == number
        world.storkit("volume", "delete", "clone")
    for name, said in (
        ("golden@4", "there is no image golden@4"),
        ("none@1", "there is no image none@1"),
        ("none", "there is no volume none"),
    ):
        assert said in world.storkit("volume", "clone", name, "clone", ok=4).stderr
    for name in ("golden@", "golden@0", "golden@x", "golden@1@2", "@1"):
        assert world.storkit("volume", "clone", name, "clone", ok=2).stderr
    # A fleet stays with the version that it was made of, also where it grows.
    world.storkit("fleet", "create", "ci", "--image", "golden@2", "--count", 1, *MEMORY)
    world.storkit("fleet", "create", "ci", "--image", "golden", "--count", 2, *MEMORY)
    assert starts_with(world, "ci-01") == starts_with(world, "ci-02") == 2
    refused = world.storkit("fleet", "create", "ci", "--image", "golden@3", "--count", 2, *MEMORY, ok=5)
    assert "with another image" in refused.stderr
    assert images(world)["golden@2"]["fleets"] == ["ci"]
    world.storkit("fleet", "destroy", "ci")


@each_format
def test_what_nobody_uses_is_pruned_and_nothing_else(world: World) -> None:
    for number in (1, 2, 3, 4, 5):
        version(world, number)
    world.storkit("volume", "clone", "golden@2", "web")
    world.storkit("fleet", "create", "ci", "--image", "golden@3", "--count", 1, *MEMORY)
    shown = images(world, "golden")
    overlay = world.storkit("--json", "volume", "show", "web").json["made"] == "overlay"
    assert shown["golden@2"]["clones"] == ["web"] and shown["golden@3"]["fleets"] == ["ci"]
    assert shown["golden@2"]["needed"] == (["web"] if overlay else [])
    assert [each["newest"] for each in shown.values()] == [False, False, False, False, True]
    for wrong in (("golden@2",), ("golden", "--keep", 0)):
        assert "keeps its newest version" in world.storkit("image", "prune", *wrong, ok=2).stderr
    world.storkit("attach", "golden.v4", "--on", "b", "--read-only")
    gone = ["golden@1"] if overlay else ["golden@1", "golden@2"]
    dry = world.storkit("-n", "image", "prune", "golden").stdout
    assert "delete golden" in dry and "golden.v5" not in dry and len(images(world)) == 5
    assert world.storkit("--json", "image", "prune", "golden").json == {"image": "golden", "deleted": gone}
    world.storkit("detach", "golden.v4", "--on", "b")
    assert world.storkit("--json", "image", "prune", "golden", "--keep", 2).json["deleted"] == []
    world.storkit("fleet", "destroy", "ci")
    world.storkit("volume", "flatten", "web")
    rest = [f"golden@{number}" for number in (1, 2, 3, 4) if f"golden@{number}" not in gone]
    assert world.storkit("--json", "image", "prune", "golden").json["deleted"] == rest
    assert list(images(world)) == ["golden@5"]
    # The first is gone, and the name still stands for the newest.
    world.storkit("volume", "clone", "golden", "db")
    assert (starts_with(world, "db"), starts_with(world, "web")) == (5, 2)
    assert version(world, 6)["name"] == "golden@6"


@each_format
def test_a_version_is_verified_and_a_changed_one_is_named(world: World) -> None:
    version(world, 1)
    made = version(world, 2)
    found = world.storkit("--json", "image", "verify", "golden").json
    assert found["name"] == "golden@2" and found["found"] == made["volume"]["checksum"] and found["compared"]
    path = Path(made["volume"]["path"])
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    at = data.index(b"end")
    data[at : at + 3] = b"bad"
    path.write_bytes(data)
    wrong = world.storkit("image", "verify", "golden@2", ok=9)
    assert (
        f"golden@2 is sha256:{hashlib.sha256(content(2).replace(b'end', b'bad')).hexdigest()}, and was" in wrong.stderr
    )
    assert "golden@1" in world.storkit("image", "verify", "golden@1").stdout
    path.write_bytes(data[: len(data) // 2])
    assert "golden@2 is damaged" in world.storkit("image", "verify", "golden@2", ok=9).stderr
    world.storkit("volume", "import", "--golden", world.directory / "golden.img", "old")
    assert "no checksum was kept" in world.storkit("image", "verify", "old").stdout


def test_an_older_version_is_not_taken_for_one_that_is_damaged(world: World) -> None:
    version(world, 1)
    sidecar = Path(version(world, 2)["volume"]["path"]).with_suffix(".json")
    sidecar.write_text("{")
    for words in (("volume", "clone", "golden", "web"), ("image", "prune", "golden"), ("image", "verify", "golden")):
        assert "golden.v2" in world.storkit(*words, ok=9).stderr
    world.storkit("volume", "clone", "golden@1", "web")
    assert starts_with(world, "web") == 1


def test_what_is_sealed_is_written_no_more(world: World) -> None:
    world.guest("web")
    refused = world.storkit("image", "seal", "web", ok=5)
    assert "volume web is a disk of guest web" in refused.stderr and "storkit image seal web IMAGE" in refused.stderr
    world.storkit("guest", "start", "web")
    assert "is written by a" in world.storkit("image", "seal", "web", "golden", ok=5).stderr
    world.storkit("guest", "stop", "web", "--force")
    made = world.storkit("--json", "image", "seal", "web", "golden").json
    assert (made["name"], made["source"], made["volume"]["kind"]) == ("golden@1", "web", "image")
    world.storkit("guest", "delete", "web")
    assert world.storkit("--json", "image", "seal", "web").json["name"] == "web@1"
    assert world.storkit("--json", "image", "seal", "web", "golden").json["source"] == "web@1"
    for name in ("a/b", "golden.v2", "x" * 60):
        world.storkit("image", "seal", "web", name, ok=2)
    assert world.storkit("image", "show", "nothing", ok=4).stderr.count("storkit image list") == 1


@pytest.mark.parametrize("point", [f"{when}:{number}" for number in (0, 1, 2, 3, 4) for when in ("before", "after")])
def test_a_seal_that_was_killed_is_resumed_or_rolled_back(world: World, point: str) -> None:
    version(world, 1)
    file = world.directory / "golden.img"
    file.write_bytes(content(2))
    world.storkit("volume", "import", file, "work")
    ended = world.killed(point, "image", "seal", "work", "golden").status == 0
    begun = [each for each in world.storkit("--json", "plan", "list").json if each["status"] == "interrupted"]
    verb = "resume" if point.startswith("after") else "rollback"
    again = [world.storkit("plan", verb, each["id"], ok=None).status for each in begun]
    sealed = ended or (begun and verb == "resume" and again == [0])
    if not sealed:
        assert list(images(world)) == ["golden@1"]
        world.storkit("image", "seal", "work", "golden")
    assert list(images(world)) == ["golden@1", "golden@2"]
    assert world.storkit("--json", "image", "verify", "golden").json["compared"]


def test_a_fleet_s_base_is_no_version(world: World) -> None:
    golden(world)
    world.storkit("image", "seal", "debian")
    world.storkit("fleet", "create", "web", "--image", "debian@1", "--count", 1, *MEMORY)
    assert list(images(world)) == ["debian@1"]
    world.storkit("fleet", "destroy", "web")
