"""Versions of a golden image built by scripts, in a real Debian that boots for it."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tests.e2e.fleets import MEMORY
from tests.e2e.fleets import golden as small_image
from tests.e2e.world import World
from tests.guestkit import cloud, debian

pytestmark = pytest.mark.parametrize("world", ["qcow2"], indirect=True)
SCRIPT = """\
#!/bin/bash
set -eu
[[ $0 == /root/storkit.* ]]
read -r line && exit 9
hostname > /root/built-by
echo changed > /etc/issue
echo it is done
echo and complained >&2
"""


PATIENCE = 900.0
"""Seconds in which an emulated processor boots a Debian, beside whatever else a machine has to do."""


def words(world: World, script: str, *more: object) -> tuple[object, ...]:
    """The command that builds by a script."""
    kit, file = debian.build(), world.directory / "script"
    file.write_text(script)
    return ("--json", "image", "build", "debian", "--script", file, "--memory", debian.MEMORY, "--kernel", kit.kernel,
            "--initrd", kit.initrd, "--cmdline", f"{debian.CMDLINE} root=/dev/vda", *more)  # fmt: skip


def build(world: World, script: str, *more: object, ok: int | None = 0) -> Any:
    return world.storkit(*words(world, script, *more), ok=ok, patience=PATIENCE)


def told(world: World, volume: str, path: str) -> str:
    """A file in a volume's file system."""
    disk = world.disk(volume)
    done = subprocess.run(["/sbin/debugfs", "-R", f"cat {path}", disk], capture_output=True, check=True)
    return done.stdout.decode().strip()


def volumes(world: World) -> list[str]:
    return [each["name"] for each in world.storkit("--json", "volume", "list").json]


def nothing_else(world: World, *wanted: str) -> None:
    assert volumes(world) == list(wanted)
    for what in ("fleet", "guest"):
        assert world.storkit("--json", what, "list").json == []
    assert [left for left in world.leftovers() if "qemu" in left] == []


@pytest.fixture
def image(world: World) -> World:
    world.storkit("volume", "import", "--golden", debian.build().root, "debian")
    return world


@pytest.mark.slow
def test_a_script_that_fails_may_leave_its_machine_and_begins_anew(image: World) -> None:
    failed = build(image, "echo one; echo two; exit 3", "--keep", ok=6)
    assert "the script on debian-build-01 failed with status 3: two\n  | one\n" in failed.stderr
    assert "storkit fleet ssh debian-build-01" in failed.stderr
    shown = image.storkit("fleet", "ssh", "debian-build-01", "--", "hostname", argv=image.argv)
    assert shown.stdout == "debian-build-01\n"
    assert build(image, "true").json["name"] == "debian@2"


def test_a_version_is_what_a_script_has_made_of_another(image: World) -> None:
    made = build(image, SCRIPT).json
    assert (made["name"], made["source"], made["newest"]) == ("debian@2", "debian@1", True)
    assert made["output"] == "it is done\nand complained\n"
    nothing_else(image, "debian", "debian.v2")
    assert told(image, "debian.v2", "/etc/issue") == "changed"
    assert told(image, "debian.v2", "/root/built-by") == "debian-build-01"
    # What made it a member of a fleet is as it was in the image.
    for path in ("/etc/hostname", "/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key", "/root/.ssh/authorized_keys",
                 "/etc/systemd/network/10-storkit0.network", "/etc/hosts"):  # fmt: skip
        assert told(image, "debian.v2", path) == told(image, "debian", path), path
    assert image.storkit("--json", "image", "verify", "debian").json["compared"]
    # It stands on nothing.
    image.storkit("volume", "delete", "debian")
    assert told(image, "debian.v2", "/etc/issue") == "changed"


@pytest.mark.slow
def test_what_failed_leaves_nothing_and_what_was_killed_is_finished(image: World) -> None:
    build(image, "false", ok=6)
    nothing_else(image, "debian")
    build(image, "true")
    journals = image.storkit("--json", "plan", "list").json
    sealing = [each["title"] for each in journals].index("make debian.v2 of debian-build-01")
    files = [image.directory / "coordinator" / "plans" / f"{each['id']}.jsonl" for each in journals]
    begun = [each["title"] for each in journals[:sealing]]
    last = max(number for number, title in enumerate(begun) if title.startswith("make 1 members"))
    # The first line of a journal is its plan.
    before = sum(len(file.read_text().splitlines()) - 1 for file in files[last:sealing])
    for number, more in enumerate((3, 9), 3):
        command = words(image, f"echo {number}")
        assert image.killed(f"after:{before + more}", *command, patience=PATIENCE).status == -9
        assert "debian-build" in str(image.storkit("--json", "fleet", "list").json)
        made = build(image, f"echo {number}").json
        assert made["name"] == f"debian@{number}"
        nothing_else(image, "debian", *(f"debian.v{each}" for each in range(2, number + 1)))


CONFIG = """\
#cloud-config
hostname: another
write_files:
- {path: /root/made, content: "by cloud-init"}
users:
- {name: web, lock_passwd: true}
runcmd:
- [sh, -c, "hostname > /root/built-by"]
"""


def by_cloud_init(world: World, text: str, *more: object, ok: int = 0) -> Any:
    """An image that has cloud-init, and what it makes of it."""
    kit, file = cloud.build(), world.directory / "config.yaml"
    world.storkit("volume", "import", "--golden", kit.root, "debian")
    file.write_text(text)
    boot = ("--memory", cloud.MEMORY, "--kernel", kit.kernel, "--initrd", kit.initrd, "--cmdline",
            f"{cloud.CMDLINE} root=/dev/vda", "--timeout", 4 * PATIENCE)  # fmt: skip
    command = ("--json", "image", "build", "debian", "--cloud-config", file, *boot, *more)
    return world.storkit(*command, ok=ok, patience=4 * PATIENCE)


@pytest.mark.slow
def test_what_cloud_init_has_failed_to_do_is_no_version(world: World) -> None:
    failed = by_cloud_init(world, "#cloud-config\nruncmd: [[sh, -c, 'echo it is wrong; exit 4']]\n", ok=6).stderr
    assert "cloud-init on debian-build-01 failed with status" in failed
    assert "it is wrong" in failed and "status: error" in failed
    nothing_else(world, "debian")


@pytest.mark.slow
def test_cloud_init_makes_a_version(world: World) -> None:
    passwords, script = "swordfish", world.directory / "script"
    script.write_text("cat /root/made; id -un web")
    made = by_cloud_init(world, f"{CONFIG}# {passwords}\n", "--script", script).json
    assert made["name"] == "debian@2" and made["output"].endswith("by cloud-initweb\n")
    nothing_else(world, "debian", "debian.v2")
    assert told(world, "debian.v2", "/root/built-by") == "debian-build-01"  # who it is was not the text's to say
    for path in ("/etc/hostname", "/etc/machine-id", "/etc/hosts", "/root/.ssh/authorized_keys"):
        assert told(world, "debian.v2", path) == told(world, "debian", path), path
    assert told(world, "debian.v2", "/var/lib/cloud/instance/user-data.txt") == ""
    kept = [file for file in (world.directory / "coordinator").rglob("*") if file.is_file()]
    assert kept and not any(passwords.encode() in each.read_bytes() for each in kept)


def test_a_cloud_config_is_refused_where_nobody_would_carry_it_out(world: World) -> None:
    small_image(world)
    file = world.directory / "config.yaml"
    command = ("image", "build", "debian", "--cloud-config", file, *MEMORY)
    file.write_text("packages: [nginx]\n")
    assert "the first line of a cloud-config" in world.storkit(*command, ok=2).stderr
    file.write_text("#cloud-config\npackages: [nginx]\n")
    refused = world.storkit(*command, ok=3)
    assert "image debian has no cloud-init in it" in refused.stderr and "--script" in refused.stderr
    assert "nothing is to be done" in world.storkit("image", "build", "debian", ok=2).stderr
    both = ("--script", "-", "--cloud-config", "-")
    assert "cannot be both" in world.storkit("image", "build", "debian", *both, ok=2).stderr
    nothing_else(world, "debian")


@pytest.mark.parametrize("point", [f"after:{number}" for number in (0, 2, 5, 8, 12, 16, 20)])
def test_what_was_killed_as_it_began_is_found_and_removed(world: World, point: str) -> None:
    """The image boots nothing: the command that follows gives up in its turn, and leaves nothing of both."""
    small_image(world)
    (world.directory / "script").write_text("true")
    command = ("image", "build", "debian", "--script", world.directory / "script", *MEMORY, "--timeout", 1)
    assert world.killed(point, *command).status == -9
    assert "does not let ssh in after 1 seconds" in world.storkit(*command, ok=8).stderr
    nothing_else(world, "debian")


def test_what_cannot_be_built_is_refused_before_anything_is_made(world: World) -> None:
    small_image(world)
    assert "the script is empty" in build(world, " \n", ok=2).stderr
    assert "there is no image debian@7" in build(world, "true", "--from", "debian@7", ok=4).stderr
    assert "clone debian to debian-build.base" in build(world, "true", "--dry-run").stdout
    nothing_else(world, "debian")
    world.storkit("fleet", "create", "debian-build", "--image", "debian", "--count", 1, *MEMORY)
    assert "is not of a build of debian" in build(world, "true", ok=5).stderr
    world.storkit("fleet", "destroy", "debian-build")
    world.storkit("volume", "import", "--golden", world.directory / "script", "none", "--format", "raw")
    refused = world.storkit("image", "build", "none", "--script", world.directory / "script", ok=5)
    assert "nobody can get into a clone of none" in refused.stderr
    nothing_else(world, "debian", "none")
