"""Fleets with the real command line and real QEMUs, whose disks are small file systems that nobody boots: made,
completed, grown, set back, replaced, swept and destroyed, whatever was killed or taken away by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from storkit.system.timeouts import scaled
from tests.e2e.fleets import MEMORY, create, golden, known_hosts, names, nothing_left, states, told
from tests.e2e.world import World, each_format


@each_format
def test_members_are_machines_of_their_own_and_are_gone_in_the_end(world: World) -> None:
    golden(world)
    made = create(world, 3, "--on", "a", "b")
    assert [(each["name"], each["host"]) for each in made.json["members"]] == [
        ("web-01", "a"), ("web-02", "b"), ("web-03", "a"),
    ]  # fmt: skip
    assert made.json["unset"] == [] and "laid" not in made.json
    guests = {name: world.storkit("--json", "guest", "show", name).json for name in states(world)}
    for path, own in (
        ("/etc/hostname", lambda name: name),
        ("/etc/machine-id", lambda name: guests[name]["uuid"].replace("-", "")),
    ):
        assert [told(world, name, path) for name in guests] == [own(name) for name in guests]
    keys = [told(world, name, "/etc/ssh/ssh_host_ed25519_key.pub") for name in guests]
    initiators = [told(world, name, "/etc/iscsi/initiatorname.iscsi") for name in guests]
    assert len(set(keys)) == len(set(initiators)) == 3 and told(world, "web-01", "/etc/ssh/ssh_host_rsa_key") == ""
    # the same command again: all is there
    before = {name: world.storkit("--json", "volume", "show", name).json["uuid"] for name in guests}
    create(world, 3, "--on", "a", "b")
    assert before == {name: world.storkit("--json", "volume", "show", name).json["uuid"] for name in guests}
    world.storkit("fleet", "start", "web")
    assert set(states(world).values()) == {"running"}
    inventory = world.storkit("--json", "fleet", "inventory", "web").json["all"]["children"]["web"]["hosts"]
    assert len({each["ansible_port"] for each in inventory.values()}) == 3 and list(inventory) == list(guests)
    config = world.storkit("fleet", "inventory", "web", "--ssh").stdout
    assert "Host web-02\n" in config and "StrictHostKeyChecking yes" in config
    known = Path(
        next(line.split()[1] for line in config.splitlines() if "UserKnownHostsFile" in line).strip('"')
    ).read_text()
    assert [line.split(" ", 1)[1] for line in known.splitlines()] == keys
    # a guest that is nobody's member is not touched, and journals have no private key
    world.guest("own")
    plans = (world.directory / "coordinator" / "plans").rglob("*")
    journals = "".join(path.read_text() for path in plans if path.is_file())
    assert "PRIVATE KEY" not in journals and "web-01" in journals
    world.storkit("fleet", "destroy", "web")
    assert names(world, "guest") == ["own"] and names(world) == ["debian", "own"]
    world.storkit("guest", "delete", "own")
    world.storkit("volume", "delete", "own")
    nothing_left(world)


def test_one_is_set_back_while_others_run_and_another_is_replaced(world: World) -> None:
    golden(world)
    create(world, 3, "--start")
    uuid = world.storkit("--json", "guest", "show", "web-02").json["uuid"]
    (members,) = (world.directory / "coordinator" / "fleets").glob("*/members")
    keys = {file.stem: json.loads(file.read_text()) for file in members.iterdir()}
    (other,) = [line for line in world.processes() if "guest=web-01" in line]
    reset = world.storkit("--json", "fleet", "reset", "web", "web-02").json
    assert reset["reset"] == ["web-02"] and set(states(world).values()) == {"running"}
    assert other in world.processes(), "the others run on"
    after = world.storkit("--json", "guest", "show", "web-02").json
    assert after["uuid"] == uuid
    world.storkit("fleet", "replace", "web", "web-03")
    assert states(world) == {"web-01": "running", "web-02": "running", "web-03": "stopped"}
    world.storkit("fleet", "stop", "web", "--force")
    world.storkit("fleet", "reset", "web", "--all")
    assert set(states(world).values()) == {"stopped"}
    assert told(world, "web-02", "/etc/hostname") == "web-02"
    now = {file.stem: json.loads(file.read_text()) for file in members.iterdir()}
    assert now[uuid] == keys[uuid] and len(now) == 3 and set(now) != set(keys)
    assert told(world, "web-02", "/etc/ssh/ssh_host_ed25519_key") == keys[uuid]["private"].strip()
    for wrong in ([], ["web-02", "--all"]):
        refused = world.storkit("fleet", "reset", "web", *wrong, ok=2)
        assert "name the members, or say --all" in refused.stderr
    assert world.storkit("fleet", "reset", "web", "web-99", ok=4).stderr.count("web-99")
    world.storkit("fleet", "destroy", "web")
    nothing_left(world)


def test_what_was_taken_away_by_hand_is_told_and_made_again(world: World) -> None:
    golden(world)
    create(world, 4, "--start")
    world.storkit("guest", "stop", "web-0[12]", "--force")
    world.storkit("guest", "delete", "web-01")
    world.storkit("volume", "delete", "--force", "web-02")
    (world.directory / "guests" / "web-03.toml").unlink()
    assert states(world) == {"web-01": "missing", "web-02": "missing", "web-03": "running", "web-04": "running"}
    # A disk that was a guest's may have what somebody wants to keep.
    refused = create(world, 4, ok=5)
    assert "volume web-01 is there, and may have what somebody wants to keep" in refused.stderr
    world.storkit("volume", "delete", "web-01")
    create(world, 4)
    assert states(world) == {"web-01": "stopped", "web-02": "stopped", "web-03": "running", "web-04": "running"}
    assert told(world, "web-01", "/etc/hostname") == "web-01"
    world.storkit("guest", "stop", "web-04", "--force")
    world.storkit("guest", "delete", "web-04")
    world.storkit("volume", "delete", "web-04", "web-02", "--force")
    world.storkit("fleet", "destroy", "web")
    nothing_left(world)


POINTS = [f"after:{number}" for number in (0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13)]
"""Of a plan's five steps with two entries each and an end, and of the next plan, which keeps the guests."""


@pytest.mark.parametrize("point", POINTS)
def test_a_fleet_that_was_half_made_is_completed_by_the_same_command(world: World, point: str) -> None:
    golden(world)
    words = ("fleet", "create", "web", "--image", "debian", "--count", 2, *MEMORY)
    world.killed(point, *words)
    world.storkit(*words)
    assert states(world) == {"web-01": "stopped", "web-02": "stopped"}
    assert [told(world, name, "/etc/hostname") for name in ("web-01", "web-02")] == ["web-01", "web-02"]
    world.storkit("fleet", "destroy", "web")
    nothing_left(world)


@pytest.mark.parametrize("point", ["after:2", "after:4", "after:8", "after:13"])
def test_a_fleet_that_was_half_made_is_destroyed(world: World, point: str) -> None:
    golden(world)
    world.killed(point, "fleet", "create", "web", "--image", "debian", "--count", 2, *MEMORY)
    world.storkit("fleet", "destroy", "web")
    nothing_left(world)


@pytest.mark.parametrize("point", [f"after:{number}" for number in (2, 11, 12, 14, 16, 17, 18, 19)])
def test_a_reset_that_was_killed_is_repeated(world: World, point: str) -> None:
    golden(world)
    create(world, 2, "--start")
    world.killed(point, "fleet", "reset", "web", "web-01")
    world.storkit("fleet", "reset", "web", "web-01")
    assert states(world)["web-02"] == "running" and states(world)["web-01"] in ("running", "stopped")
    world.storkit("fleet", "stop", "web", "--force")
    assert told(world, "web-01", "/etc/hostname") == "web-01"
    world.storkit("fleet", "destroy", "web")
    nothing_left(world)


@pytest.mark.parametrize("second", ["after:0", "after:2", "after:11"])
def test_a_reset_that_was_killed_twice_is_repeated(world: World, second: str) -> None:
    """Each has a disk in mind of its own, and finds what the one before has left."""
    golden(world)
    create(world, 2, "--start")
    for point in ("after:14", second):
        world.killed(point, "fleet", "reset", "web", "web-01")
    world.storkit("fleet", "reset", "web", "web-01")
    world.storkit("fleet", "stop", "web", "--force")
    assert told(world, "web-01", "/etc/hostname") == "web-01"
    world.storkit("fleet", "destroy", "web")
    nothing_left(world)


@pytest.mark.parametrize("point", [f"after:{number}" for number in (0, 1, 4, 8, 12, 14, 16)])
@pytest.mark.parametrize("verb", ["destroy", "replace"])
def test_what_was_killed_as_it_removed_members_is_repeated(world: World, verb: str, point: str) -> None:
    golden(world)
    create(world, 2, "--start")
    words = ("fleet", verb, "web", *(["web-01"] if verb == "replace" else []))
    ended = world.killed(point, *words).status != -9
    if verb == "replace":
        # one that is gone already is made by `create`
        again = world.storkit(*words, ok=None)
        assert again.status == 0 or "is not there" in again.stderr, again
        create(world, 2)
        assert states(world) == {"web-01": "stopped", "web-02": "running"}
        assert told(world, "web-01", "/etc/hostname") == "web-01"
    if verb == "replace" or not ended:
        world.storkit("fleet", "destroy", "web")
    nothing_left(world)


@each_format
def test_two_fleets_of_one_image_at_once(world: World) -> None:
    golden(world)
    words = ("--json", "fleet", "create")
    both = [world.popen(*words, name, "--image", "debian", "--count", 3, *MEMORY) for name in ("one", "two")]
    for command in both:
        said, complaint = command.communicate(timeout=scaled(120))
        assert command.returncode == 0, complaint
        assert json.loads(said)["unset"] == []
    members = [f"{fleet}-0{number}" for fleet in ("one", "two") for number in range(1, 4)]
    for path in ("/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub", "/etc/iscsi/initiatorname.iscsi"):
        assert len({told(world, member, path) for member in members}) == 6
    # and one of them by two commands
    both = [world.popen(*words, "one", "--image", "debian", "--count", 5, *MEMORY) for _ in range(2)]
    assert sorted(command.wait(scaled(120)) for command in both) in ([0, 0], [0, 5])
    assert list(states(world, "one").values()) == ["stopped"] * 5


def test_what_is_somebody_elses_is_neither_taken_nor_ended(world: World) -> None:
    golden(world)
    # a guest of a member's name, with a disk of another; and one with a disk of the member's name
    world.guest("mysql")
    world.storkit("guest", "delete", "mysql")
    world.storkit("guest", "define", "web-01", "--disk", "mysql", "--memory", "16MiB")
    world.storkit("guest", "start", "web-01")
    world.storkit("volume", "create", "web-02", "1MiB")
    world.storkit("guest", "define", "web-02", "--disk", "web-02", "--memory", "16MiB")
    world.storkit("volume", "clone", "debian", "web-03")
    running = world.processes()
    refused = create(world, 3, ok=5).stderr
    assert "guest web-01 is there, and is not this fleet's" in refused and "guest web-02" in refused
    assert "volume web-03 is there" in refused and names(world, "fleet") == []
    assert world.processes() == running and {"mysql", "web-02", "web-03"} <= set(names(world))
    # a disk that another guest has by now; a member's name that is another guest's by now
    create(world, 2, name="ci")
    world.storkit("guest", "delete", "ci-02")
    world.storkit("guest", "define", "mine", "--disk", "ci-02", "--memory", "16MiB")
    refused = world.storkit("fleet", "destroy", "ci", ok=5).stderr
    assert "volume ci-02 is a disk of guest mine" in refused and {"ci-01", "ci-02"} <= set(names(world))
    world.storkit("guest", "delete", "mine")
    world.storkit("volume", "delete", "ci-02")
    world.storkit("volume", "create", "ci-02", "1MiB")
    world.storkit("guest", "define", "ci-02", "--disk", "ci-02", "--memory", "16MiB")
    assert "is not there" in world.storkit("fleet", "reset", "ci", "ci-02", ok=5).stderr
    world.storkit("guest", "start", "ci-02")
    world.storkit("fleet", "destroy", "ci")
    assert names(world, "guest") == ["ci-02", "web-01", "web-02"] and "ci-02" in names(world)
    assert world.storkit("--json", "guest", "show", "ci-02").json["places"] == {"a": "running"}


def test_what_cannot_be_seen_is_not_taken_for_lost(world: World) -> None:
    golden(world)
    create(world, 2, "--start")
    running = world.processes()
    sidecar = world.directory / "a" / "volumes" / "web-01.json"
    text = sidecar.read_text()
    sidecar.write_text("garbage")
    assert "web-01" in create(world, 2, ok=9).stderr
    assert "web-01" in world.storkit("fleet", "destroy", "web", ok=9).stderr
    sidecar.write_text(text)
    assert world.processes() == running and set(states(world).values()) == {"running"}
    # a member that has lost its disk, and runs, is ended by nobody but who says so
    create(world, 2)
    world.storkit("fleet", "destroy", "web")
    nothing_left(world)


def test_what_cannot_be_done_is_found_before_anything_is_lost(world: World) -> None:
    golden(world)
    create(world, 2, "--start")
    running = world.processes()
    elsewhere = ("--state", world.directory / "another")
    for verb in ("reset", "replace"):
        refused = world.storkit("fleet", verb, "web", "web-01", *elsewhere, ok=5)
        assert "the fleet's keys are not on this machine" in refused.stderr
    assert "is no plan that could be shown" in world.storkit("-n", "fleet", "run", "web", "--", "id", ok=2).stderr
    assert "is no plan that could be shown" in world.storkit("-n", "fleet", "ssh", "web-01", ok=2).stderr
    assert world.processes() == running
    # what was refused leaves no record behind
    for words in (
        ("--set", "nonsense=1"),
        ("--hypervisor", "nope"),
        ("--hypervisor", "xl"),
        ("--vcpus", "0"),
        ("--bridge", "b r"),
    ):
        assert create(world, 1, *words, name="new", ok=None).status in (2, 3, 4)
        assert names(world, "fleet") == ["web"]
    create(world, 1, name="new")
    world.storkit("volume", "create", "web-03", "1MiB")
    assert "web-03" in create(world, 4, ok=5).stderr and len(states(world)) == 2
    # the image is of no use any more once its clones do not stand on it
    if world.storkit("--json", "volume", "show", "web.base").json["made"] != "overlay":
        world.storkit("volume", "delete", "debian")
        world.storkit("fleet", "replace", "web", "web-01")


def test_a_clone_that_stands_on_what_members_were_cloned_from_outlives_them(world: World) -> None:
    golden(world)
    create(world, 1)
    world.storkit("volume", "clone", "web-01", "keep")
    destroyed = world.storkit("fleet", "destroy", "web")
    assert names(world, "fleet") == [] and "keep" in names(world) and "web-01" not in names(world)
    if "web.base" in names(world):
        assert "web.base stays: keep stand on it" in destroyed.stderr
    assert told(world, "keep", "/etc/hostname") == "web-01"


def test_a_half_written_base_is_made_anew_and_an_image_of_a_member_is_no_member(world: World) -> None:
    golden(world)
    world.killed("after:4", "fleet", "create", "web", "--image", "debian", "--count", 1, *MEMORY)
    path = Path(world.storkit("--json", "volume", "show", "web.base").json["path"])
    with path.open("r+b") as file:  # a power cut
        file.seek(1024 * 1024)
        file.write(b"garbage" * 1000)
    create(world, 1)
    assert told(world, "web-01", "/etc/hostname") == "web-01"
    first = told(world, "web-01", "/root/.ssh/authorized_keys")
    world.storkit("volume", "export", "web-01", world.directory / "again.img")
    world.storkit("volume", "import", "--golden", world.directory / "again.img", "again")
    for bridge in ((), ("--bridge", "br0")):
        world.storkit("fleet", "create", "other", "--image", "again", "--count", 1, *MEMORY, *bridge)
        assert told(world, "other-01", "/root/.ssh/authorized_keys") not in ("", first)
        assert "web-01" not in told(world, "other-01", "/etc/hosts")
        world.storkit("fleet", "destroy", "other")


def test_one_that_does_not_stop_and_one_that_has_moved(world: World) -> None:
    golden(world)
    create(world, 3, "--start")
    (other,) = [line for line in world.processes() if "guest=web-01" in line]
    os.kill(int(other.partition(":")[0]), 9)
    late = world.storkit("fleet", "stop", "web", "--timeout", "0.1", ok=None)
    assert late.status in (8, 10) and "did not shut down" in late.stderr
    world.storkit("migrate", "run", "web-02", "--to", "b")
    shown = {each["name"]: each["host"] for each in world.storkit("--json", "fleet", "show", "web").json["members"]}
    assert shown["web-02"] == "b" and states(world)["web-02"] == "running"
    world.storkit("fleet", "start", "web")
    assert set(states(world).values()) == {"running"}
    inventory = world.storkit("fleet", "inventory", "web", "--ssh").stdout
    known = known_hosts(inventory)
    before = known.read_text()
    world.storkit("fleet", "run", "web", "--on", "web-03", "--timeout", "1", "--", "true", ok=None)
    assert known.read_text() == before and before.count("ssh-ed25519") == 3
    world.storkit("fleet", "stop", "web", "--force")
    world.storkit("fleet", "destroy", "web")
    nothing_left(world)


def test_a_fleet_grows_and_is_refused_as_another(world: World) -> None:
    golden(world)
    create(world, 2)
    create(world, 5)
    assert list(states(world)) == [f"web-0{number}" for number in range(1, 6)]
    assert len({told(world, name, "/etc/machine-id") for name in states(world)}) == 5
    assert "already" in create(world, 3, ok=5).stderr
    assert "another vcpus" in create(world, 5, "--vcpus", 2, ok=5).stderr
    assert "digits" in create(world, 100, ok=5).stderr
    wrong_words = ("w_b", "--image", "nope", "--count", 0, "--memory", "5", "--ttl", "x")
    refused = world.storkit("fleet", "create", *wrong_words, ok=2)
    for wrong in ("w_b", "0", "no unit", "'x'"):
        assert wrong in refused.stderr
    plain = world.storkit("volume", "create", "disk", "8MiB")
    assert plain.status == 0
    refused = world.storkit("fleet", "create", "x", "--image", "disk", "--count", 1, ok=5)
    assert "no golden image" in refused.stderr and "x" not in names(world, "fleet")
    world.storkit("volume", "create", "new-01", "8MiB")
    assert "new-01" in create(world, 1, name="new", ok=5).stderr
    assert "new" not in names(world, "fleet") and "new-01" in names(world), "what is somebody's stays"


def test_nothing_is_made_by_a_plan_and_fleets_end_when_their_time_is_over(world: World) -> None:
    golden(world)
    plan = world.storkit("-n", "fleet", "create", "web", "--image", "debian", "--count", 2, *MEMORY).stdout
    assert "clone debian to web.base" in plan and names(world, "fleet") == [] and names(world) == ["debian"]
    create(world, 1, "--ttl", "2h", name="long")
    create(world, 1, "--ttl", "1m", name="short")
    file = world.directory / "fleets" / "short.toml"
    text = file.read_text()
    line = next(line for line in text.splitlines() if line.startswith("expires"))
    file.write_text(text.replace(line, 'expires = "2020-01-01T00:00:00+00:00"'))
    assert world.storkit("--json", "fleet", "sweep").json == {"destroyed": ["short"]}
    assert names(world, "fleet") == ["long"]
    assert world.storkit("-n", "fleet", "destroy", "long").stdout.count("delete") and names(world, "fleet") == ["long"]


def test_cloud_init_is_told_by_a_second_disk(world: World) -> None:
    golden(world, more=("usr/bin/cloud-init",))
    made = create(world, 2)
    assert made.json["unset"] == []
    assert [disk["volume"] for disk in world.storkit("--json", "guest", "show", "web-02").json["disks"]] == [
        "web-02", "web-02-seed",
    ]  # fmt: skip
    seed = world.disk("web-02-seed").read_bytes()
    assert b'"local-hostname": "web-02"' in seed and b"BEGIN OPENSSH PRIVATE KEY" in seed and b"web-01" in seed
    assert told(world, "web-02", "/etc/hostname") == "golden", "cloud-init sets it"
    world.storkit("fleet", "start", "web")
    world.storkit("fleet", "reset", "web", "web-01")
    assert set(states(world).values()) == {"running"}
    world.storkit("fleet", "destroy", "web")
    nothing_left(world)


def test_an_image_in_which_nothing_is_found_says_what_its_members_have_in_common(world: World) -> None:
    image = world.directory / "blank.img"
    with image.open("wb") as file:
        file.truncate(4 << 20)
    world.storkit("volume", "import", "--golden", image, "debian")
    made = create(world, 2)
    assert "host name, machine id" in made.json["unset"][0] and "have in common: host name" in made.stderr
    assert names(world) == ["debian", "web-01", "web-02"]
    world.storkit("fleet", "destroy", "web")
    create(world, 1, "--identity", "cloud-init")
    assert names(world) == ["debian", "web-01", "web-01-seed"]
    world.storkit("fleet", "destroy", "web")
    golden(world, "real")
    world.storkit("fleet", "create", "bare", "--image", "real", "--count", 1, "--identity", "none", *MEMORY)
    assert told(world, "bare-01", "/etc/hostname") == "golden"


def test_many_guests_in_one_command(world: World) -> None:
    golden(world)
    create(world, 3)
    plans = len(world.storkit("--json", "plan", "list").json)
    started = world.storkit("--json", "guest", "start", "web-*").json
    assert [each["guest"] for each in started] == ["web-01", "web-02", "web-03"]
    assert len(world.storkit("--json", "plan", "list").json) == plans + 1
    alone = world.storkit("--json", "guest", "start", "web-01").json
    assert alone == {"guest": "web-01", "host": "a", "status": "running"}
    refused = world.storkit("guest", "start", "nothing-*", ok=4)
    assert "no guest is called like 'nothing-*'" in refused.stderr
    world.storkit("guest", "stop", "web-01", "web-02", "--force")
    assert states(world) == {"web-01": "stopped", "web-02": "stopped", "web-03": "running"}
    # more memory than there is, for all of them together: before any starts
    world.storkit("fleet", "destroy", "web")
    total = int(next(line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line))
    half = f"{total // 1024 * 6 // 10}MiB"
    words = ("big", "--image", "debian", "--count", 2, "--memory", half, "--start")
    refused = world.storkit("fleet", "create", *words, ok=5)
    assert "of memory are wanted" in refused.stderr and set(states(world, "big").values()) == {"stopped"}
