"""Fleets of machines whose disks are small file systems that nobody boots: made, and looked at."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from tests.e2e.world import World

MEMORY = ("--memory", "16MiB")


def golden_image(directory: Path, name: str = "debian", more: tuple[str, ...] = ()) -> Path:
    """A file system with what a small machine has in it, of 8 MiB."""
    tree = directory / f"{name}.tree"
    for below in ("etc/ssh", "etc/iscsi", "etc/network", "usr/sbin", "usr/lib/systemd", "usr/bin", "root"):
        (tree / below).mkdir(parents=True, exist_ok=True)
    programs = ("usr/sbin/sshd", "usr/lib/systemd/systemd")
    for file in (*programs, "etc/network/interfaces", "etc/ssh/ssh_host_rsa_key", *more):
        (tree / file).write_text("golden")
    (tree / "etc/hostname").write_text("golden\n")
    image = directory / f"{name}.img"
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(image), "8M"], check=True, env=environment)
    return image


def golden(world: World, name: str = "debian", more: tuple[str, ...] = ()) -> None:
    world.storkit("volume", "import", "--golden", golden_image(world.directory, name, more), name)


def told(world: World, member: str, path: str) -> str:
    """A file in a member's file system."""
    disk = world.disk(member)
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    subprocess.run(["e2fsck", "-fn", str(disk)], check=True, capture_output=True, env=environment)
    done = subprocess.run(["debugfs", "-R", f"cat {path}", str(disk)], capture_output=True, check=True, env=environment)
    return done.stdout.decode("latin-1").strip()


def states(world: World, fleet: str = "web") -> dict[str, str]:
    return {each["name"]: each["status"] for each in world.storkit("--json", "fleet", "show", fleet).json["members"]}


def names(world: World, what: str = "volume") -> list[str]:
    return [each["name"] for each in world.storkit("--json", what, "list").json]


def create(world: World, count: int, *more: object, name: str = "web", ok: int | None = 0) -> Any:
    words = ("--json", "fleet", "create", name, "--image", "debian", "--count", count, *MEMORY, *more)
    return world.storkit(*words, ok=ok)


def known_hosts(config: str) -> Path:
    """The file that ssh is told of by the printed configuration."""
    return Path(next(line.split()[1] for line in config.splitlines() if "UserKnownHostsFile" in line).strip('"'))


def nothing_left(world: World) -> None:
    assert names(world) == ["debian"] and names(world, "guest") == [] and names(world, "fleet") == []
    assert [left for left in world.leftovers() if "/fleets/" in left or "qemu" in left] == []
    assert not list((world.directory / "coordinator" / "fleets").glob("*-*-*"))
